"""Who comes and who leaves while a session lives, in each mode: worked out by hand."""

from typing import Any

import pytest
from msgspec import structs

from lockstep.errors import Conflict, InvalidStateTransition, LockstepError, ValidationError
from lockstep.rules.seating import MAX_INDEX
from lockstep.rules.state import TERMINAL, Mode, OnTimeout, Participant, Session, Status
from lockstep.rules.state_json import to_dict
from tests.support import settled_rules as engine
from tests.support.sessions_under_test import (
    EXAM,
    LAPS,
    NOBODY,
    ROUNDS,
    T0,
    TEAMS,
    A,
    B,
    C,
    D,
    E,
    active,
    expired,
    pending,
    remaining,
    running,
    used,
)

OF_EACH_MODE: dict[Mode, dict[str, Any]] = {
    Mode.PER_PARTICIPANT: {},
    Mode.PER_GROUP: {"mode": Mode.PER_GROUP, "groups": ("red", "blue")},
    Mode.PER_CYCLE: ROUNDS,
    Mode.GLOBAL: EXAM,
    Mode.COUNT_UP: LAPS | {"max_time_ms": 60_000},
}


def newcomer(participant_id: str = C, bank_ms: int | None = None, **fields: Any) -> dict[str, Any]:
    """As a request is read: what it does not say is None."""
    nothing = {"participant_index": None, "group_id": None}
    return nothing | {"participant_id": participant_id, "total_time_ms": bank_ms} | fields


def seat(session: Session, now_ms: int, *newcomers: dict[str, Any]) -> Session:
    return engine.seat(session, now_ms, participants=newcomers).session


def unseat(session: Session, now_ms: int, participant_id: str) -> Session:
    return engine.unseat(session, now_ms, participant_id=participant_id).session


def ids(session: Session) -> list[str]:
    return [each.participant_id for each in session.participants]


def in_turn(session: Session, turns: int, now_ms: int) -> list[str | None]:
    """Who is active after each of so many switches."""
    found = []
    for _ in range(turns):
        session = engine.switch(session, now_ms).session
        found.append(active(session))
    return found


def violations(session: Session, *newcomers: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as refused:
        seat(session, T0, *newcomers)
    return {each["field"]: each["code"] for each in refused.value.details}


def late(mode: Mode) -> dict[str, Any]:
    """A newcomer that a session of this mode takes."""
    bank_ms = 30_000 if mode in (Mode.PER_PARTICIPANT, Mode.PER_GROUP) else None
    return newcomer(C, bank_ms, group_id="green" if mode is Mode.PER_GROUP else None)


# --- coming --------------------------------------------------------------------------------------


def test_newcomers_sit_down_at_the_end_with_all_their_time() -> None:
    session = seat(pending(60_000, 50_000), T0 + 1000, newcomer(C, 40_000), newcomer(D, 30_000, group_id="x"))
    assert ids(session) == [A, B, C, D]
    assert session.participants[2] == Participant(C, 2, 40_000, 40_000)
    assert session.participants[3] == Participant(D, 3, 30_000, 30_000, group_id="x")
    assert (session.version, session.updated_at_ms) == (2, T0 + 1000)


def test_all_newcomers_of_a_command_are_one_version_called_seated() -> None:
    (transition,) = engine.seat(
        running(60_000), T0, participants=[newcomer(B, 60_000), newcomer(C, 60_000)]
    ).transitions
    assert (transition.type, transition.session.version) == ("seated", 3)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING, Status.PAUSED])
def test_nothing_but_the_seats_moves_when_somebody_comes_or_leaves(mode: Mode, status: Status) -> None:
    session = pending(60_000, 60_000, **OF_EACH_MODE[mode])
    if status is not Status.PENDING:
        session = engine.start(session, T0).session
    if status is Status.PAUSED:
        session = engine.pause(session, T0 + 4000).session
    came = seat(session, T0 + 7000, late(mode))
    assert came.participants[:2] == session.participants
    left = unseat(came, T0 + 9000, C)
    for version, after in ((1, came), (2, left)):
        assert to_dict(after) | {"participants": [], "updated_at": None} == to_dict(session) | {
            "participants": [],
            "updated_at": None,
            "version": session.version + version,
        }
    assert left.participants == session.participants


def test_the_clock_runs_on_and_is_charged_once_when_the_turn_ends() -> None:
    session = seat(running(60_000, 60_000), T0 + 5000, newcomer(C, 60_000))
    assert (session.cycle_started_at_ms, session.deadline_ms) == (T0, T0 + 60_000)
    session = engine.switch(session, T0 + 8000).session
    assert (remaining(session), used(session)) == ((52_000, 60_000, 60_000), (8000, 0, 0))


def test_what_fell_due_before_happens_before() -> None:
    step = engine.seat(running(1000, 60_000), T0 + 5000, participants=[newcomer(C, 60_000)])
    assert [(each.type, each.at_ms) for each in step.transitions] == [
        ("flagged", T0 + 1000),
        ("seated", T0 + 5000),
    ]


@pytest.mark.parametrize(
    ("order", "given", "expected"),
    [
        ((0, 1), (None,), (2,)),
        ((0, 1), (None, None), (2, 3)),
        ((7, 3), (None, None), (8, 9)),
        ((7, 3), (5, None), (5, 8)),
        ((7, 3), (None, 20, None), (8, 20, 21)),
        ((7, 3), (0, 7), (0, 7)),
        ((MAX_INDEX, 3), (None, None), (MAX_INDEX, MAX_INDEX)),
    ],
)
def test_an_index_that_is_left_out_is_the_highest_so_far_and_one(
    order: tuple[int, ...], given: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    newcomers = [
        newcomer((C, D, E)[place], 60_000, participant_index=index) for place, index in enumerate(given)
    ]
    session = seat(pending(60_000, 60_000, order=order), T0, *newcomers)
    assert tuple(each.participant_index for each in session.participants[2:]) == expected


def test_a_newcomers_turn_comes_by_its_index() -> None:
    session = running(60_000, 60_000, order=(10, 20))
    session = seat(session, T0, newcomer(C, 60_000, participant_index=15), newcomer(D, 60_000))
    assert in_turn(session, 4, T0 + 1000) == [C, B, D, A]


def test_of_equal_indexes_the_newcomers_comes_later() -> None:
    session = seat(running(60_000, 60_000), T0, newcomer(C, 60_000, participant_index=0))
    assert in_turn(session, 3, T0 + 1000) == [C, B, A]


def test_before_the_start_the_clock_on_show_is_that_of_who_will_be_first() -> None:
    session = seat(pending(60_000, order=(5,)), T0, newcomer(B, 30_000, participant_index=1))
    assert to_dict(session)["clock"] == {"kind": "participant", "remaining_ms": 30_000}
    assert active(engine.start(session, T0).session) == B


def test_a_turn_can_pass_to_a_newcomer_where_all_others_are_out() -> None:
    session = running(1000, 60_000, on_timeout=OnTimeout.FLAG)
    session = structs.replace(
        session,
        participants=(session.participants[0], structs.replace(session.participants[1], has_expired=True)),
    )
    session = seat(session, T0 + 2000, newcomer(C, 60_000))
    assert in_turn(session, 1, T0 + 3000) == [C]


@pytest.mark.parametrize("fields", [EXAM, LAPS])
def test_the_next_switch_begins_the_first_turn_where_nobody_was(fields: dict[str, Any]) -> None:
    session = running(**fields)
    session = seat(session, T0 + 2000, newcomer(A, participant_index=3), newcomer(B, participant_index=1))
    assert active(session) is None
    step = engine.switch(session, T0 + 5000)
    session = step.session
    assert (session.status, active(session), used(session)) == (Status.RUNNING, B, (0, 0))
    assert [each.cycle_count for each in session.participants] == [0, 0]
    assert session.clock_ms == (55_000 if fields is EXAM else 5000)
    assert step.transitions[-1].lap_ms == (None if fields is EXAM else 5000)
    session = engine.switch(session, T0 + 6000).session
    assert (active(session), used(session)) == (A, (0, 1000))


def test_the_first_turn_can_be_given_to_anybody() -> None:
    session = seat(running(**EXAM), T0, newcomer(A), newcomer(B))
    assert active(engine.switch(session, T0, next_participant_id=B).session) == B
    with pytest.raises(Conflict):
        engine.switch(session, T0, expected_participant_id=A)


def test_an_empty_session_that_was_not_started_begins_with_its_newcomer() -> None:
    assert active(engine.start(seat(pending(**EXAM), T0, newcomer(A)), T0).session) == A


# --- groups --------------------------------------------------------------------------------------


def test_who_comes_to_a_group_takes_its_bank_as_it_is() -> None:
    session = engine.switch(
        running(60_000, 60_000, 50_000, **TEAMS), T0 + 7000, next_participant_id=C
    ).session
    session = seat(session, T0 + 9000, newcomer(D, group_id="red"), newcomer(E, group_id="blue"))
    assert remaining(session) == (53_000, 53_000, 50_000, 53_000, 50_000)
    assert [each.budget_ms for each in session.participants[3:]] == [60_000, 50_000]
    session = engine.switch(session, T0 + 10_000).session
    assert remaining(session) == (53_000, 53_000, 47_000, 53_000, 47_000)


def test_who_comes_to_a_group_that_is_out_is_out() -> None:
    session = seat(running(1000, 1000, 50_000, **TEAMS), T0 + 2000, newcomer(D, group_id="red"))
    assert (expired(session), remaining(session)) == ((True, True, False, True), (0, 0, 50_000, 0))
    assert in_turn(session, 2, T0 + 3000) == [C, C]


def test_a_group_that_is_there_takes_no_other_time() -> None:
    session = running(60_000, 60_000, 50_000, **TEAMS)
    for bank_ms in (60_000, 1000):
        assert violations(session, newcomer(D, bank_ms, group_id="red")) == {
            "participants.0.total_time_ms": "not_allowed"
        }


def test_a_new_group_is_as_at_the_creation() -> None:
    session = running(60_000, 60_000, 50_000, **TEAMS)
    assert violations(
        session,
        newcomer(D, 30_000, group_id="green"),
        newcomer(E, 30_001, group_id="green"),
        newcomer(NOBODY, group_id="white"),
        newcomer("0" + NOBODY[1:], 30_000),
    ) == {
        "participants.1.total_time_ms": "group",
        "participants.2.total_time_ms": "required",
        "participants.3.group_id": "required",
    }
    session = seat(session, T0, newcomer(D, 30_000, group_id="green"), newcomer(E, 30_000, group_id="green"))
    assert remaining(session) == (60_000, 60_000, 50_000, 30_000, 30_000)


def test_within_a_new_group_each_says_its_time_though_it_be_the_same() -> None:
    session = running(60_000, 60_000, 50_000, **TEAMS)
    newcomers = (newcomer(D, 30_000, group_id="green"), newcomer(E, group_id="green"))
    assert violations(session, *newcomers) == {"participants.1.total_time_ms": "required"}


def test_where_time_is_each_ones_own_a_group_is_but_a_name() -> None:
    session = running(60_000, 60_000, groups=("red", "red"))
    assert remaining(seat(session, T0, newcomer(C, 30_000, group_id="red"))) == (60_000, 60_000, 30_000)


# --- who cannot come -----------------------------------------------------------------------------


def refused(session: Session, *newcomers: dict[str, Any]) -> LockstepError:
    with pytest.raises(LockstepError) as caught:
        seat(session, T0, *newcomers)
    return caught.value


def test_who_has_a_bank_of_its_own_must_bring_it() -> None:
    assert violations(running(60_000), newcomer(B, 60_000), newcomer(C)) == {
        "participants.1.total_time_ms": "required"
    }


@pytest.mark.parametrize("fields", [ROUNDS, EXAM, LAPS])
def test_where_no_bank_runs_a_time_may_be_given_and_is_kept(fields: dict[str, Any]) -> None:
    session = seat(running(None, **fields), T0, newcomer(B), newcomer(C, 5000))
    assert remaining(session) == (None, None, 5000)


def test_who_is_seated_already_is_a_conflict_and_nobody_is_seated() -> None:
    assert isinstance(refused(running(60_000), newcomer(B, 60_000), newcomer(A, 60_000)), Conflict)


def test_a_thousand_is_the_most() -> None:
    crowd = [newcomer(f"{number:08d}{NOBODY[8:]}") for number in range(998)]
    session = seat(running(None, **ROUNDS), T0, *crowd)
    assert isinstance(refused(session, newcomer(B), newcomer(C)), Conflict)
    full = seat(session, T0, newcomer(B))
    assert len(full.participants) == 1000
    assert isinstance(refused(full, newcomer(C)), Conflict)
    assert len(seat(unseat(full, T0, B), T0, newcomer(C)).participants) == 1000


def test_of_violations_no_more_than_a_hundred_are_told() -> None:
    crowd = [newcomer(f"{number:08d}{NOBODY[8:]}") for number in range(300)]
    error = refused(running(60_000), *crowd)
    assert isinstance(error, ValidationError)
    assert [each["field"] for each in error.details] == [
        f"participants.{place}.total_time_ms" for place in range(100)
    ]


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_session_that_has_ended_seats_and_unseats_nobody(status: Status) -> None:
    session = structs.replace(pending(60_000, 60_000), status=status)
    for rule, arguments in (
        (engine.seat, {"participants": [newcomer(C, 60_000)]}),
        (engine.unseat, {"participant_id": A}),
    ):
        with pytest.raises(InvalidStateTransition, match=rf"\(current status: {status}\)"):
            rule(session, T0, **arguments)


# --- leaving -------------------------------------------------------------------------------------


def test_who_leaves_is_one_version_called_unseated() -> None:
    (transition,) = engine.unseat(running(60_000, 60_000), T0 + 1000, participant_id=B).transitions
    assert (transition.type, transition.session.version, ids(transition.session)) == ("unseated", 3, [A])


@pytest.mark.parametrize(("leaving", "order"), [(A, [C, B]), (C, [A, B])])
def test_the_turn_stays_with_whose_it_is(leaving: str, order: list[str]) -> None:
    session = engine.switch(running(60_000, 60_000, 60_000), T0 + 1000).session
    session = unseat(session, T0 + 2000, leaving)
    assert (active(session), session.deadline_ms) == (B, T0 + 61_000)
    assert in_turn(session, 2, T0 + 3000) == order


@pytest.mark.parametrize("status", [Status.RUNNING, Status.PAUSED])
def test_whose_turn_it_is_cannot_leave(status: Status) -> None:
    session = running(60_000, 60_000)
    if status is Status.PAUSED:
        session = engine.pause(session, T0).session
    with pytest.raises(Conflict):
        unseat(session, T0 + 1000, A)
    assert ids(unseat(engine.switch(running(60_000, 60_000), T0).session, T0, A)) == [B]


def test_before_the_start_anybody_can_leave() -> None:
    session = unseat(pending(60_000, 50_000), T0, A)
    assert to_dict(session)["clock"] == {"kind": "participant", "remaining_ms": 50_000}


@pytest.mark.parametrize("mode", list(Mode))
def test_the_last_can_leave_where_the_mode_needs_nobody(mode: Mode) -> None:
    session = unseat(pending(60_000, 60_000, **OF_EACH_MODE[mode]), T0, A)
    if mode in (Mode.GLOBAL, Mode.COUNT_UP):
        assert unseat(session, T0, B).participants == ()
    else:
        with pytest.raises(Conflict):
            unseat(session, T0, B)


def test_who_sat_down_and_had_no_turn_can_leave_an_empty_session_again() -> None:
    session = unseat(seat(running(**EXAM), T0, newcomer(A)), T0, A)
    assert session.participants == ()
    with pytest.raises(ValidationError):
        engine.switch(session, T0)


def test_a_stranger_cannot_leave() -> None:
    with pytest.raises(ValidationError) as caught:
        unseat(running(60_000, 60_000), T0, NOBODY)
    assert [(each["field"], each["code"]) for each in caught.value.details] == [
        ("participant_id", "unknown_participant")
    ]


def test_who_comes_again_begins_anew() -> None:
    session = engine.switch(running(60_000, 60_000), T0 + 9000).session
    session = seat(unseat(session, T0 + 9000, A), T0 + 9000, newcomer(A, 30_000))
    assert session.participants[1] == Participant(A, 2, 30_000, 30_000)


def test_a_groups_bank_stays_with_its_others_and_goes_with_its_last() -> None:
    session = engine.switch(
        running(60_000, 60_000, 50_000, **TEAMS), T0 + 7000, next_participant_id=C
    ).session
    session = unseat(session, T0 + 7000, A)
    assert remaining(session) == (53_000, 50_000)
    session = unseat(session, T0 + 7000, B)
    assert violations(session, newcomer(A, group_id="red")) == {"participants.0.total_time_ms": "required"}
    assert remaining(seat(session, T0 + 8000, newcomer(A, 30_000, group_id="red"))) == (50_000, 30_000)
