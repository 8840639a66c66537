"""What each version changed: the events of a session."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from lockstep.rules import changes
from lockstep.rules.state import Session
from lockstep.rules.state_json import Count, Instant, Object, UuidText, Version, dumps, iso
from lockstep.rules.steps import Transition


class Event(Struct, kw_only=True):
    """One version of a session; its `changes` turn the state before it into the state after it.

    `data` is what the caller gave along with the command, and `expired_participant_id` names whose turn
    ended after its clock had run out.
    """

    version: Version
    type: str
    at: Instant
    actor: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    data: Object | UnsetType = UNSET
    lap_ms: Count | UnsetType = UNSET
    expired_participant_id: UuidText | UnsetType = UNSET
    changes: Object


def events(
    before: Session | None,
    transitions: Sequence[Transition],
    actor: str | None = None,
    request_id: str | None = None,
    data: dict[str, Any] | None = None,
) -> list[Event]:
    """One event per transition. Its `changes` and `data` are encoded, so that they are encoded once."""
    told = []
    for transition in transitions:
        at = iso(transition.at_ms)
        assert at is not None
        told.append(
            Event(
                version=transition.session.version,
                type=transition.type,
                at=at,
                actor=UNSET if actor is None else actor,
                request_id=UNSET if request_id is None else request_id,
                data=UNSET if data is None else Raw(dumps(data)),
                lap_ms=UNSET if transition.lap_ms is None else transition.lap_ms,
                expired_participant_id=UNSET
                if transition.ended_expired is None
                else transition.ended_expired,
                changes=Raw(dumps(changes.between(before, transition.session))),
            )
        )
        before = transition.session
    return told
