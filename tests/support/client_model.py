"""A client of protocol v2 as the contract has it: what it makes of changes. It imports nothing of ours."""

from typing import Any

State = dict[str, Any]


class OutOfStep(Exception):
    """The update does not apply to the state; a client would ask for a new one."""


def position_of(state: State | None) -> str | None:
    """By which a client names the state it has."""
    return None if state is None else f"{state['epoch']}-{state['version']}-{state['commit']}"


def apply_changes(state: State, changes: State) -> State:
    """The next state. It shares with the old one and with the changes what it has from them."""
    after = {name: changes.get(name, value) for name, value in state.items()}
    if set(changes) - set(state):
        raise OutOfStep(f"the state has no {sorted(set(changes) - set(state))}")
    if "participants" in changes:
        after["participants"] = apply_to_participants(state["participants"], changes["participants"])
    return after


def apply_to_participants(participants: list[State], moved: list[State]) -> list[State]:
    """Who is new stands at the end. One who left and came back is told of twice, and is then new."""
    after = {each["participant_id"]: each for each in participants}
    for each in moved:
        participant_id = each["participant_id"]
        if each.get("removed"):
            after.pop(participant_id, None)
        elif participant_id not in after:
            after[participant_id] = each
        elif set(each) - set(after[participant_id]):
            raise OutOfStep(f"{participant_id} has no {sorted(set(each) - set(after[participant_id]))}")
        else:
            after[participant_id] = after[participant_id] | each
    return list(after.values())


def apply_update(state: State | None, update: State) -> State:
    """The state that the update turns this one into. Raises OutOfStep where it belongs to another."""
    if state is None or update["from"] != position_of(state):
        raise OutOfStep(f"{update['from']} is not {position_of(state)}")
    after = apply_changes(state, update["changes"])
    if update["position"] != position_of(after):
        raise OutOfStep(f"{update['position']} was promised, {position_of(after)} has come")
    return after
