"""What a version changed of a state, how that is applied to the state before it, and several as one.

`changes` are the top-level fields that moved, with their new values. Of the participants they have those that
moved, by `participant_id`, in an order that matters: with the fields that moved; all fields of one that is
new, which goes to the end; `"removed": true` of one that left. Nested objects, and arrays but
`participants`, are replaced whole. Which keys a state and a participant have never changes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import astuple

from lockstep.rules.state import Session
from lockstep.rules.state_json import (
    StateJson,
    dumps,
    participant_json,
    state_differences,
    to_dict,
)

_ORDER = {name: place for place, name in enumerate(StateJson.__struct_encode_fields__)}


def between(before: Session | None, after: Session) -> dict[str, Any]:
    """The changes from a state to the one right after it, as builtins; all of that one without a `before`."""
    if before is None:
        return to_dict(after)
    changes = state_differences(before, after)
    # Equal values may be written differently: 1, 1.0 and true are equal, and objects in any order.
    if before.metadata is not after.metadata and dumps(before.metadata) != dumps(after.metadata):
        changes["metadata"] = after.metadata
    if participants := _participants_between(before, after):
        changes["participants"] = participants
    return changes


def applied(state: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The next state, as builtins, its keys in the order in which a state has them."""
    after = state | changes
    if len(after) > len(state):  # a creation; or fields that a process of before does not know
        after = {name: after[name] for name in sorted(after, key=lambda name: _ORDER.get(name, len(_ORDER)))}
    if "participants" in changes:
        seats = {each["participant_id"]: each for each in state.get("participants", ())}
        for moved in changes["participants"]:
            participant_id = moved["participant_id"]
            if moved.get("removed"):
                seats.pop(participant_id, None)
            else:
                seats[participant_id] = seats.get(participant_id, {}) | moved
        after["participants"] = list(seats.values())
    return after


def merged(changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The changes of successive versions as one: to apply it is to apply them one after the other."""
    together: dict[str, Any] = {}
    for each in changes:
        together |= each
    if "participants" in together:
        together["participants"] = _participants_merged(
            moved for each in changes for moved in each.get("participants", ())
        )
    return together


def _participants_between(before: Session, after: Session) -> list[dict[str, Any]]:
    """Who stays keeps the order, and newcomers are at the end."""
    moved: list[dict[str, Any]] = []
    seats, place = after.participants, 0
    was_active, is_active = before.active, after.active
    for index, old in enumerate(before.participants):
        new = seats[place] if place < len(seats) else None
        if new is not old or (index == was_active) is not (place == is_active):
            if new is None or new.participant_id != old.participant_id:
                moved.append({"participant_id": old.participant_id, "removed": True})
                continue
            fields = _differences(
                participant_json(old, index == was_active), participant_json(new, place == is_active)
            )
            if fields:
                moved.append({"participant_id": old.participant_id} | fields)
        place += 1
    for index in range(place, len(seats)):
        moved.append(msgspec.to_builtins(participant_json(seats[index], index == is_active)))
    return moved


def _differences(old: Struct, new: Struct) -> dict[str, Any]:
    """The fields of `new`, by their names in JSON, that `old` has with another value."""
    fields = zip(new.__struct_encode_fields__, astuple(new), astuple(old), strict=True)
    return {name: value for name, value, was in fields if value != was and value is not UNSET}


def _participants_merged(moves: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those who were there before, then newcomers; one who left and came again is removed, then new."""
    moved: dict[str, dict[str, Any]] = {}
    joined: dict[str, dict[str, Any]] = {}
    for each in moves:
        participant_id = each["participant_id"]
        if each.get("removed"):
            if joined.pop(participant_id, None) is None:
                moved[participant_id] = each
        elif participant_id in joined:
            joined[participant_id] |= each
        elif "participant_index" in each:  # which nothing changes: this one is new
            joined[participant_id] = dict(each)
        else:
            moved[participant_id] = moved.get(participant_id, {}) | each
    return [*moved.values(), *joined.values()]
