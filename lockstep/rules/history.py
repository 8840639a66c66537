"""What each version changed: the events of a session."""

from collections.abc import Sequence
from typing import Any

from lockstep.rules.state import Session
from lockstep.rules.state_json import dumps, iso, participant_to_dict, participants_to_list, top_level
from lockstep.rules.steps import Transition


def events(
    before: Session | None,
    transitions: Sequence[Transition],
    actor: str | None = None,
    request_id: str | None = None,
) -> list[bytes]:
    """One JSON object per transition; its `changes` turn the state before it into the state after it."""
    encoded = []
    for transition in transitions:
        event: dict[str, Any] = {
            "version": transition.session.version,
            "type": transition.type,
            "at": iso(transition.at_ms),
        }
        if actor is not None:
            event["actor"] = actor
        if request_id is not None:
            event["request_id"] = request_id
        if transition.lap_ms is not None:
            event["lap_ms"] = transition.lap_ms
        event["changes"] = _changes(before, transition.session)
        encoded.append(dumps(event))
        before = transition.session
    return encoded


_ABSENT = object()


def _changes(before: Session | None, after: Session) -> dict[str, Any]:
    new = top_level(after)
    if before is None:
        return new | {"participants": participants_to_list(after)}
    old = top_level(before)
    changes = {key: value for key, value in new.items() if old.get(key, _ABSENT) != value}
    moved = []
    for place, (was, now) in enumerate(zip(before.participants, after.participants, strict=True)):
        was_active, now_active = place == before.active, place == after.active
        if was is now and was_active is now_active:
            continue
        old_seat, new_seat = participant_to_dict(was, was_active), participant_to_dict(now, now_active)
        fields = {key: value for key, value in new_seat.items() if old_seat[key] != value}
        if fields:
            moved.append({"participant_id": now.participant_id} | fields)
    if moved:
        changes["participants"] = moved
    return changes
