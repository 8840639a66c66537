"""What each version changed: the events of a session."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import astuple

from lockstep.rules.state import Session
from lockstep.rules.state_json import (
    Count,
    Instant,
    Object,
    Version,
    dumps,
    iso,
    participant_json,
    state_json,
    state_without_participants,
)
from lockstep.rules.steps import Transition


class Event(Struct, kw_only=True):
    """One version of a session; its `changes` turn the state before it into the state after it."""

    version: Version
    type: str
    at: Instant
    actor: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    lap_ms: Count | UnsetType = UNSET
    changes: Object


def events(
    before: Session | None,
    transitions: Sequence[Transition],
    actor: str | None = None,
    request_id: str | None = None,
) -> list[bytes]:
    """One event in JSON per transition."""
    encoded = []
    for transition in transitions:
        at = iso(transition.at_ms)
        assert at is not None
        event = Event(
            version=transition.session.version,
            type=transition.type,
            at=at,
            actor=UNSET if actor is None else actor,
            request_id=UNSET if request_id is None else request_id,
            lap_ms=UNSET if transition.lap_ms is None else transition.lap_ms,
            changes=_changes(before, transition.session),
        )
        encoded.append(dumps(event))
        before = transition.session
    return encoded


def _changes(before: Session | None, after: Session) -> Any:
    if before is None:
        return state_json(after)
    changes = _differences(state_without_participants(before), state_without_participants(after))
    participants = []
    for index, (old, new) in enumerate(zip(before.participants, after.participants, strict=True)):
        was_active, is_active = index == before.active, index == after.active
        if old is new and was_active is is_active:
            continue
        fields = _differences(participant_json(old, was_active), participant_json(new, is_active))
        if fields:
            participants.append({"participant_id": new.participant_id} | fields)
    if participants:
        changes["participants"] = participants
    return changes


def _differences(old: Struct, new: Struct) -> dict[str, Any]:
    """The fields of `new`, by their names in JSON, that `old` has not, or has with another value."""
    fields = zip(new.__struct_encode_fields__, astuple(new), astuple(old), strict=True)
    return {name: value for name, value, was in fields if value != was and value is not UNSET}
