"""States: which of two is later, and what changes lead to."""

from collections.abc import Mapping
from typing import cast

from lockstep_client.types import Changes, Participant, State


def is_newer(state: Mapping[str, object], than: Mapping[str, object] | None) -> bool:
    """Whether one state of a session is later than another, or than none.

    Within an epoch versions rise; an id that was deleted and created again begins at version 1 of a greater
    epoch. What carries no version is taken as it comes.
    """
    if than is None or "version" not in than or "version" not in state:
        return True
    return _order(state) > _order(than)


def _order(state: Mapping[str, object]) -> tuple[str, int]:
    return cast(str, state.get("epoch", "")), cast(int, state["version"])


def apply_changes(state: State, changes: Changes) -> State:
    """The state that these changes lead to, as protocol v2 tells them.

    They are fields with their new values; of participants those that moved, each with its fields that moved,
    `removed` where it left; who is new stands at the end. The state before stays as it is, and what did not
    change is shared with it.
    """
    after = cast(State, {**state, **changes})
    if "participants" in changes:
        seats = {each["participant_id"]: each for each in state["participants"]}
        for moved in changes["participants"]:
            participant_id = moved["participant_id"]
            if moved.get("removed"):
                seats.pop(participant_id, None)
            else:
                seats[participant_id] = cast(Participant, {**seats.get(participant_id, {}), **moved})
        after["participants"] = list(seats.values())
    return after
