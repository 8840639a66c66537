"""What each version changed: applying changes gives the next state, to the byte, and several can be one."""

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lockstep.rules import changes
from lockstep.rules.changes import applied, between, merged
from lockstep.rules.state import Mode, Participant, Session
from lockstep.rules.state_json import StateJson, dumps, from_json, to_dict, to_json
from tests.support import settled_rules as engine
from tests.support.plans import Plan, moves, plans, plans_with_visits
from tests.support.sessions import as_events
from tests.support.sessions_under_test import NOBODY, T0, A, B, C, D, pending, running

FEW = settings(max_examples=100, derandomize=True, deadline=None, database=None)
MANY = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def chess() -> Session:
    """Running, at version 2, with a commit as the service would have given it."""
    return replace(running(60_000, 60_000), commit="AbC_-012")


def told(before: Session | None, after: Session) -> dict[str, Any]:
    """The changes as clients get them: JSON and back."""
    data: dict[str, Any] = json.loads(dumps(between(before, after)))
    return data


# --- histories at random -------------------------------------------------------------------------

_IDS = (A, B, C, D, NOBODY)
_METADATA = st.sampled_from([{}, {"a": 1}, {"a": True}, {"a": 1.0}, {"b": 0, "a": 1}, {"a": 1, "b": 0}])
_SEATINGS = st.tuples(
    st.lists(st.sampled_from(_IDS), max_size=2),
    st.lists(st.tuples(st.sampled_from(_IDS), st.integers(0, 2), st.booleans()), max_size=2),
    st.none() | st.integers(0, 4),
    st.none() | _METADATA,
)


def seated(session: Session, seating: tuple[Any, ...]) -> Session:
    """The next version: some leave or move, some come, or come again, and somebody is active."""
    leaving, coming, active, metadata = seating
    if session.version % 2:  # who comes again does so in a version after the one in which it left
        coming = []
    else:
        leaving = []
    seats = [each for each in session.participants if each.participant_id not in leaving]
    for participant_id, used_ms, has_group in coming:
        known = [place for place, each in enumerate(seats) if each.participant_id == participant_id]
        if known:
            seats[known[0]] = replace(seats[known[0]], used_ms=used_ms)
        else:
            seats.append(
                Participant(
                    participant_id, 7 - used_ms, used_ms=used_ms, group_id="red" if has_group else None
                )
            )
    return replace(
        session,
        version=session.version + 1,
        participants=tuple(seats),
        active=active % len(seats) if seats and active is not None else None,
        metadata=session.metadata if metadata is None else metadata,
    )


@st.composite
def seatings(draw: st.DrawFn) -> list[Session]:
    """Successive states of which nothing but the seats, their holders and the metadata moves."""
    session = pending(1000, 1000, mode=Mode.COUNT_UP)
    states = [session]
    for seating in draw(st.lists(_SEATINGS, max_size=8)):
        states.append(seated(states[-1], seating))
    return states


def states_of(plan: Plan) -> list[Session]:
    return [plan.created().session, *(transition.session for _, transition, _ in moves(plan))]


def only_what_moved(state: dict[str, Any], moved: dict[str, Any]) -> bool:
    """Do the changes name no field that has the value it had?"""
    seats = {each["participant_id"]: each for each in state["participants"]}
    pairs = [(state, {name: value for name, value in moved.items() if name != "participants"})]
    for each in moved.get("participants", ()):
        fields = {name: value for name, value in each.items() if name != "participant_id"}
        pairs.append((seats.get(each["participant_id"], {}), fields))
    return all(name not in old or dumps(old[name]) != dumps(new[name]) for old, new in pairs for name in new)


def check_that_changes_lead_from_state_to_state(states: list[Session]) -> None:
    first, *_ = states
    assert dumps(applied({}, told(None, first))) == to_json(first)
    for before, after in pairwise(states):
        state = json.loads(to_json(before))
        untouched = copy.deepcopy(state)
        moved = told(before, after)
        assert dumps(applied(state, moved)) == to_json(after)
        assert state == untouched
        assert only_what_moved(state, moved)
        # Decoded states have other objects than those that the rules hand on; the changes are the same.
        assert told(from_json(to_json(before)), from_json(to_json(after))) == moved


def check_that_several_changes_are_as_good_as_one(states: list[Session]) -> None:
    steps = [told(None, states[0]), *(told(*pair) for pair in pairwise(states))]
    untouched = copy.deepcopy(steps)
    for begin in range(len(states)):
        for end in range(begin, len(states)):
            together = merged(steps[begin + 1 : end + 1])
            assert dumps(applied(to_dict(states[begin]), together)) == to_json(states[end])
            # What is merged can be merged with more.
            in_pieces = merged([together, *steps[end + 1 :]])
            assert dumps(applied(to_dict(states[begin]), in_pieces)) == to_json(states[-1])
    assert dumps(applied({}, merged(steps))) == to_json(states[-1])
    assert steps == untouched


@FEW
@given(plans() | plans_with_visits())
def test_changes_lead_from_state_to_state_to_the_byte(plan: Plan) -> None:
    check_that_changes_lead_from_state_to_state(states_of(plan))


@FEW
@given(seatings())
def test_changes_lead_from_state_to_state_where_participants_come_and_go(states: list[Session]) -> None:
    check_that_changes_lead_from_state_to_state(states)


@settings(FEW, max_examples=60)
@given(plans() | plans_with_visits())
def test_several_changes_are_as_good_as_one(plan: Plan) -> None:
    check_that_several_changes_are_as_good_as_one(states_of(plan))


@FEW
@given(seatings())
def test_several_changes_are_as_good_as_one_where_participants_come_and_go(states: list[Session]) -> None:
    check_that_several_changes_are_as_good_as_one(states)


@pytest.mark.long
@pytest.mark.parametrize("histories", [plans_with_visits().map(states_of), seatings()], ids=["rules", "any"])
@pytest.mark.parametrize(
    ("check", "examples"),
    [
        (check_that_changes_lead_from_state_to_state, 10_000),
        (check_that_several_changes_are_as_good_as_one, 2_000),
    ],
    ids=["one by one", "several as one"],
)
def test_it_holds_for_many_more_histories(histories: Any, check: Any, examples: int) -> None:
    settings(MANY, max_examples=examples)(given(histories)(check))()


# --- what they say -------------------------------------------------------------------------------


def test_of_a_participant_that_comes_they_have_all_and_of_one_that_leaves_that_it_did() -> None:
    before = running(60_000, 60_000)
    a, b = before.participants
    late = Participant(C, 7, 30_000, 30_000)
    assert told(before, replace(before, participants=(a, b, late)))["participants"] == [
        {
            "participant_id": C,
            "participant_index": 7,
            "budget_ms": 30_000,
            "total_time_ms": 30_000,
            "time_remaining_ms": 30_000,
            "time_used_ms": 0,
            "cycle_count": 0,
            "is_active": False,
            "has_expired": False,
        }
    ]
    assert told(before, replace(before, participants=(a,)))["participants"] == [
        {"participant_id": B, "removed": True}
    ]


def test_who_moves_up_where_another_left_has_not_changed() -> None:
    before = engine.switch(running(60_000, 60_000), T0 + 1000).session
    after = replace(before, participants=before.participants[1:], active=0)
    assert told(before, after)["participants"] == [{"participant_id": A, "removed": True}]


def test_who_joined_and_left_again_is_in_no_merged_change() -> None:
    before = running(60_000, 60_000)
    joined = replace(before, participants=(*before.participants, Participant(C, 2)))
    together = merged([told(before, joined), told(joined, before)])
    assert together == {"participants": []}


def test_who_left_and_joined_again_is_at_the_end_and_new() -> None:
    before = running(60_000, 60_000)
    a, b = before.participants
    left = replace(before, participants=(b,), active=None)
    joined = replace(left, participants=(b, replace(a, group_id="red")))
    together = merged([told(before, left), told(left, joined)])
    assert [each.get("removed") for each in together["participants"]] == [True, None]
    assert dumps(applied(to_dict(before), together)) == to_json(joined)


@pytest.mark.parametrize(
    "metadata", [{"a": True}, {"a": 1.0}, {"a": -0.0}, {"a": 10**30}, {"a": [{"x": 1, "y": 2}]}]
)
def test_metadata_that_is_written_otherwise_has_moved_though_it_be_equal(metadata: Any) -> None:
    equal = {"a": 1} if metadata["a"] == 1 else {"a": 0}
    if isinstance(metadata["a"], list):
        equal = {"a": [{"y": 2, "x": 1}]}
    before = replace(running(60_000), metadata=equal)
    after = replace(before, metadata=metadata)
    assert dumps(applied(to_dict(before), told(before, after))) == to_json(after)


def test_fields_that_a_state_did_not_have_stand_where_states_have_them() -> None:
    after = to_dict(running(60_000, mode=Mode.COUNT_UP, max_time_ms=60_000))
    assert list(after) == [name for name in StateJson.__struct_encode_fields__ if name in after]
    before = {
        name: value for name, value in after.items() if name not in ("epoch", "metadata", "max_time_ms")
    }
    moved = {name: after[name] for name in ("max_time_ms", "epoch", "metadata")}
    assert dumps(applied(before, moved)) == dumps(after)


def test_nothing_merged_is_nothing() -> None:
    assert changes.merged([]) == {}


# --- events --------------------------------------------------------------------------------------


def test_the_event_of_a_creation_holds_the_whole_state() -> None:
    session = pending(60_000, 60_000)
    step = engine.Step(session, (engine.Transition(session, "created", T0),))
    (event,) = as_events(None, step.transitions)
    assert event.pop("changes") == to_dict(session)
    assert event == {"version": 1, "type": "created", "at": "2024-01-01T00:00:00.000Z"}


def test_an_event_holds_only_what_moved() -> None:
    before = chess()
    step = engine.switch(before, T0 + 2000)
    (event,) = as_events(before, step.transitions)
    assert event["changes"].keys() <= {
        *("version", "commit", "deadline_ms", "active_participant_id", "clock", "cycle_started_at"),
        *("updated_at", "participants"),
    }
    first, second = event["changes"]["participants"]
    assert first == {
        "participant_id": A,
        "total_time_ms": 58_000,
        "time_remaining_ms": 58_000,
        "time_used_ms": 2000,
        "cycle_count": 1,
        "is_active": False,
    }
    assert second == {"participant_id": B, "is_active": True}


def test_an_event_says_who_asked_and_in_which_request_if_somebody_did() -> None:
    before = chess()
    transitions = engine.pause(before, T0).transitions
    (asked,) = as_events(before, transitions, "arbiter", "r-1")
    assert (asked["actor"], asked["request_id"]) == ("arbiter", "r-1")
    (unasked,) = as_events(before, transitions)
    assert unasked.keys() == {"version", "type", "at", "changes"}


def test_an_event_carries_the_data_that_came_with_its_command() -> None:
    before = chess()
    transitions = engine.switch(before, T0 + 1000).transitions
    (event,) = as_events(before, transitions, None, None, {"move": "e4", "n": 10**30})
    assert event["data"] == {"move": "e4", "n": 10**30}


def test_an_event_names_whose_turn_ended_after_its_clock_had_run_out() -> None:
    before = chess()
    step = engine.switch(before, T0 + 70_000)
    flagged, switched = as_events(before, step.transitions)
    assert "expired_participant_id" not in flagged
    assert switched["expired_participant_id"] == A
