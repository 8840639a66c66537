"""What each command does in each mode, worked out by hand: plain calls with instants."""

import pytest
from msgspec import structs

from lockstep.errors import (
    Conflict,
    InvalidStateTransition,
    LockstepError,
    PreconditionFailed,
    ValidationError,
)
from lockstep.rules.state import Mode, OnTimeout, Session, Status
from tests.support import settled_rules as engine
from tests.support.sessions_under_test import (
    DAY,
    DEFAULT_POLICY,
    EPOCH,
    EXAM,
    LAPS,
    NOBODY,
    ROUNDS,
    SESSION,
    T0,
    TEAMS,
    A,
    B,
    C,
    D,
    active,
    expired,
    pending,
    remaining,
    running,
    turns,
    used,
)


def a_session_of(mode: Mode) -> Session:
    """Of A and B, pending; whatever clock the mode has, there is a minute on it."""
    return pending(
        60_000,
        60_000,
        mode=mode,
        groups=("red", "blue"),
        total_time_ms=60_000,
        time_per_cycle_ms=60_000,
        max_time_ms=60_000,
    )


def refusal(rule: engine.Rule, session: Session, now_ms: int) -> LockstepError:
    """What the rule is refused with; that it changed nothing goes without saying, states being frozen."""
    with pytest.raises(LockstepError) as caught:
        rule(session, now_ms)
    return caught.value


# --- create and start ----------------------------------------------------------------------------


def test_a_created_session_is_pending_at_version_1_and_nothing_runs() -> None:
    session = pending(60_000, 60_000)
    assert (session.status, session.version) == (Status.PENDING, 1)
    assert (session.active, session.deadline_ms, session.cycle_started_at_ms) == (None, None, None)
    assert (session.created_at_ms, session.updated_at_ms, session.started_at_ms) == (T0, T0, None)


def test_creation_is_one_transition() -> None:
    spec = engine.Spec(SESSION, Mode.COUNT_UP, OnTimeout.EXPIRE, ())
    step = engine.create(spec, EPOCH, T0)
    (transition,) = step.transitions
    assert (transition.type, transition.at_ms, transition.session) == ("created", T0, step.session)


@pytest.mark.parametrize(
    ("mode", "shown_ms"),
    [
        (Mode.PER_PARTICIPANT, 60_000),
        (Mode.PER_GROUP, 60_000),
        (Mode.PER_CYCLE, 60_000),
        (Mode.GLOBAL, 60_000),
        (Mode.COUNT_UP, 0),
    ],
)
def test_a_pending_session_never_falls_due(mode: Mode, shown_ms: int) -> None:
    session = a_session_of(mode)
    assert session.running_clock_ms == shown_ms
    assert engine.settle(session, T0 + DAY) == engine.Step(session)


def test_start_begins_the_first_turn_by_participant_index() -> None:
    session = engine.start(pending(60_000, 60_000, 60_000, order=(7, 2, 5)), T0 + 1_000).session
    assert (session.status, active(session)) == (Status.RUNNING, B)
    assert (session.cycle_started_at_ms, session.started_at_ms) == (T0 + 1_000, T0 + 1_000)
    assert session.deadline_ms == T0 + 61_000


def test_start_begins_the_turn_of_the_named_participant() -> None:
    session = engine.start(pending(60_000, 30_000, 60_000), T0, participant_id=B).session
    assert (active(session), session.deadline_ms) == (B, T0 + 30_000)


def test_start_charges_nobody_for_the_time_before_it() -> None:
    session = engine.start(pending(60_000, 60_000), T0 + 50_000).session
    assert (remaining(session), used(session)) == ((60_000, 60_000), (0, 0))


def test_start_refuses_an_unknown_participant() -> None:
    error = refusal(lambda s, t: engine.start(s, t, participant_id=NOBODY), pending(60_000), T0)
    assert isinstance(error, ValidationError)
    assert [violation["field"] for violation in error.details] == ["participant_id"]


def test_without_participants_start_makes_nobody_active() -> None:
    session = running(mode=Mode.GLOBAL, total_time_ms=60_000)
    assert (session.active, session.deadline_ms) == (None, T0 + 60_000)


# --- per_participant -----------------------------------------------------------------------------


def test_switch_charges_the_active_clock() -> None:
    session = engine.switch(running(60_000, 60_000), T0 + 4_000).session
    assert remaining(session) == (56_000, 60_000)
    assert used(session) == (4_000, 0)
    assert turns(session) == (1, 0)


def test_switch_starts_the_clock_of_the_next() -> None:
    session = engine.switch(running(60_000, 30_000), T0 + 4_000).session
    assert (active(session), session.cycle_started_at_ms) == (B, T0 + 4_000)
    assert session.deadline_ms == T0 + 34_000


def test_switch_rewards_the_turn_that_ends_and_no_other() -> None:
    session = running(60_000, 60_000, increment_ms=2_000)
    session = engine.switch(session, T0 + 4_000).session
    assert remaining(session) == (58_000, 60_000)
    session = engine.switch(session, T0 + 5_000).session
    assert remaining(session) == (58_000, 61_000)


def test_an_increment_may_take_a_bank_beyond_what_it_began_with() -> None:
    session = engine.switch(running(60_000, 60_000, increment_ms=2_000), T0).session
    assert remaining(session) == (62_000, 60_000)
    assert session.participants[0].budget_ms == 60_000


def test_pause_resume_adjust_and_complete_are_not_rewarded() -> None:
    session = running(60_000, 60_000, increment_ms=2_000)
    session = engine.pause(session, T0 + 1_000).session
    session = engine.resume(session, T0 + 2_000).session
    session = engine.adjust(session, T0 + 3_000, delta_ms=100, target=A).session
    session = engine.complete(session, T0 + 4_000).session
    assert remaining(session) == (57_100, 60_000)


def test_a_flagged_clock_earns_no_increment() -> None:
    session = engine.switch(running(1_000, 60_000, increment_ms=2_000), T0 + 5_000).session
    assert remaining(session) == (0, 60_000)


def test_flag_keeps_the_turn_and_stops_the_clock_at_zero() -> None:
    step = engine.settle(running(1_000, 60_000), T0 + 9_000)
    session = step.session
    assert [(t.type, t.at_ms) for t in step.transitions] == [("flagged", T0 + 1_000)]
    assert (session.status, active(session), session.deadline_ms) == (Status.RUNNING, A, None)
    assert (remaining(session), expired(session)) == ((0, 60_000), (True, False))
    assert session.cycle_started_at_ms == T0 + 1_000


def test_time_after_a_flag_counts_as_used_but_is_taken_from_nobody() -> None:
    session = engine.switch(running(1_000, 60_000), T0 + 5_000).session
    assert (used(session), remaining(session)) == ((5_000, 0), (0, 60_000))


def test_a_flag_happens_once() -> None:
    session = engine.settle(running(1_000, 60_000), T0 + 9_000).session
    assert engine.settle(session, T0 + DAY) == engine.Step(session)


def test_pause_and_resume_after_a_flag_do_not_flag_again() -> None:
    session = engine.settle(running(1_000, 60_000), T0 + 2_000).session
    session = engine.pause(session, T0 + 3_000).session
    session = engine.resume(session, T0 + 4_000).session
    assert session.deadline_ms is None
    assert engine.settle(session, T0 + DAY).transitions == ()
    assert used(session) == (3_000, 0)


def test_advance_begins_the_next_turn_at_the_deadline() -> None:
    step = engine.settle(running(1_000, 60_000, on_timeout=OnTimeout.ADVANCE), T0 + 9_000)
    session = step.session
    assert [(t.type, t.at_ms) for t in step.transitions] == [("advanced", T0 + 1_000)]
    assert (active(session), session.cycle_started_at_ms) == (B, T0 + 1_000)
    assert session.deadline_ms == T0 + 61_000
    assert (remaining(session), expired(session), turns(session)) == ((0, 60_000), (True, False), (1, 0))


def test_advance_rewards_nobody() -> None:
    session = running(1_000, 60_000, on_timeout=OnTimeout.ADVANCE, increment_ms=2_000)
    assert remaining(engine.settle(session, T0 + 1_000).session) == (0, 60_000)


def test_an_expired_participant_is_passed_over_from_then_on() -> None:
    session = running(1_000, 60_000, 60_000, on_timeout=OnTimeout.ADVANCE)
    for seconds, follows in enumerate([C, B, C, B], start=2):
        session = engine.switch(session, T0 + seconds * 1_000).session
        assert active(session) == follows


def test_advance_ends_the_session_at_the_deadline_of_the_last_clock() -> None:
    step = engine.settle(running(1_000, 2_000, 4_000, on_timeout=OnTimeout.ADVANCE), T0 + DAY)
    session = step.session
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [
        ("advanced", 1_000),
        ("advanced", 3_000),
        ("expired", 7_000),
    ]
    assert [t.session.version for t in step.transitions] == [3, 4, 5]
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 7_000)
    assert (remaining(session), expired(session)) == ((0, 0, 0), (True, True, True))
    assert used(session) == (1_000, 2_000, 4_000)


def test_expire_ends_the_session_at_the_deadline() -> None:
    step = engine.settle(running(1_000, 60_000, on_timeout=OnTimeout.EXPIRE), T0 + 9_000)
    session = step.session
    assert [(t.type, t.at_ms) for t in step.transitions] == [("expired", T0 + 1_000)]
    assert (session.status, session.active, session.deadline_ms) == (Status.EXPIRED, None, None)
    assert (session.cycle_started_at_ms, session.completed_at_ms) == (None, T0 + 1_000)
    assert (remaining(session), expired(session), used(session)) == ((0, 60_000), (True, False), (1_000, 0))


# --- per_group -----------------------------------------------------------------------------------


def test_all_of_a_group_show_its_bank() -> None:
    session = engine.pause(running(60_000, 60_000, 30_000, **TEAMS), T0 + 4_000).session
    assert (remaining(session), used(session)) == ((56_000, 56_000, 30_000), (4_000, 0, 0))


def test_within_a_group_the_bank_runs_on_without_increment() -> None:
    session = running(60_000, 60_000, 30_000, increment_ms=2_000, **TEAMS)
    session = engine.switch(session, T0 + 4_000).session
    assert (active(session), session.cycle_started_at_ms) == (B, T0 + 4_000)
    assert (remaining(session), turns(session)) == ((56_000, 56_000, 30_000), (1, 0, 0))
    assert session.deadline_ms == T0 + 60_000


def test_leaving_a_group_rewards_its_bank() -> None:
    session = running(60_000, 60_000, 30_000, increment_ms=2_000, **TEAMS)
    session = engine.switch(session, T0 + 4_000, next_participant_id=C).session
    assert remaining(session) == (58_000, 58_000, 30_000)
    assert session.deadline_ms == T0 + 34_000


def test_a_flag_is_the_whole_groups() -> None:
    session = engine.settle(running(1_000, 1_000, 30_000, **TEAMS), T0 + 5_000).session
    assert (active(session), expired(session)) == (A, (True, True, False))
    session = engine.switch(session, T0 + 5_000).session
    assert (active(session), used(session)) == (C, (5_000, 0, 0))
    assert remaining(session) == (0, 0, 30_000)


def test_nobody_of_an_expired_group_can_be_named() -> None:
    session = engine.settle(running(1_000, 1_000, 30_000, **TEAMS), T0 + 1_000).session
    error = refusal(lambda s, t: engine.switch(s, t, next_participant_id=B), session, T0 + 2_000)
    assert type(error) is Conflict


def test_advance_leaves_the_expired_group() -> None:
    session = running(1_000, 1_000, 30_000, on_timeout=OnTimeout.ADVANCE, **TEAMS)
    session = engine.settle(session, T0 + 1_000).session
    assert (active(session), session.deadline_ms) == (C, T0 + 31_000)


def test_advance_ends_the_session_when_the_last_group_has_run_out() -> None:
    session = running(1_000, 1_000, 2_000, on_timeout=OnTimeout.ADVANCE, **TEAMS)
    session = engine.settle(session, T0 + DAY).session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 3_000)


def test_expire_ends_the_session_with_the_first_group_that_runs_out() -> None:
    session = running(1_000, 1_000, 30_000, on_timeout=OnTimeout.EXPIRE, **TEAMS)
    session = engine.settle(session, T0 + DAY).session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 1_000)
    assert expired(session) == (True, True, False)


# --- per_cycle -----------------------------------------------------------------------------------


def test_each_turn_has_a_new_cycle() -> None:
    session = engine.switch(running(None, None, **ROUNDS), T0 + 4_000).session
    assert (active(session), session.clock_ms, session.deadline_ms) == (B, 10_000, T0 + 14_000)
    assert (used(session), turns(session)) == ((4_000, 0), (1, 0))


def test_advance_is_the_default_of_cycles_and_keeps_their_beat() -> None:
    assert DEFAULT_POLICY[Mode.PER_CYCLE] is OnTimeout.ADVANCE
    step = engine.settle(running(None, None, **ROUNDS), T0 + 35_000)
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [
        ("advanced", 10_000),
        ("advanced", 20_000),
        ("advanced", 30_000),
    ]
    assert (active(step.session), step.session.deadline_ms) == (B, T0 + 40_000)
    assert (used(step.session), turns(step.session)) == ((20_000, 10_000), (2, 1))


def test_nobody_is_out_after_a_cycle_advanced() -> None:
    session = engine.settle(running(None, None, **ROUNDS), T0 + 10_000).session
    assert expired(session) == (False, False)


def test_a_flag_lasts_until_the_next_cycle() -> None:
    session = running(None, None, on_timeout=OnTimeout.FLAG, **ROUNDS)
    session = engine.settle(session, T0 + 15_000).session
    assert (active(session), expired(session), session.clock_ms) == (A, (True, False), 0)
    session = engine.switch(session, T0 + 16_000).session
    assert (active(session), expired(session), session.clock_ms) == (B, (False, False), 10_000)
    assert used(session) == (16_000, 0)


def test_a_flagged_cycle_may_be_followed_by_one_of_the_same_participant() -> None:
    session = running(None, None, on_timeout=OnTimeout.FLAG, **ROUNDS)
    session = engine.switch(session, T0 + 15_000, next_participant_id=A).session
    assert (active(session), expired(session), session.deadline_ms) == (A, (False, False), T0 + 25_000)


def test_expire_ends_the_session_with_its_first_cycle_that_runs_out() -> None:
    session = engine.settle(running(None, None, on_timeout=OnTimeout.EXPIRE, **ROUNDS), T0 + 15_000).session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 10_000)
    assert used(session) == (10_000, 0)


def test_a_time_that_does_not_count_in_the_mode_is_kept_as_it_is() -> None:
    session = running(7_000, 8_000, total_time_ms=9_000, increment_ms=1_000, **ROUNDS)
    session = engine.switch(session, T0 + 9_500).session
    assert (remaining(session), session.total_time_ms) == ((7_000, 8_000), 9_000)


# --- global --------------------------------------------------------------------------------------


def test_a_global_switch_changes_who_is_active_only() -> None:
    session = engine.switch(running(None, None, increment_ms=2_000, **EXAM), T0 + 4_000).session
    assert (active(session), session.clock_ms, session.deadline_ms) == (B, 56_000, T0 + 60_000)
    assert (used(session), turns(session), session.total_time_ms) == ((4_000, 0), (1, 0), 60_000)


def test_expire_is_the_default_of_a_global_clock() -> None:
    assert DEFAULT_POLICY[Mode.GLOBAL] is OnTimeout.EXPIRE
    session = engine.settle(running(None, None, **EXAM), T0 + DAY).session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 60_000)
    assert (used(session), expired(session)) == ((60_000, 0), (False, False))


def test_a_global_flag_is_nobodys_and_happens_once() -> None:
    step = engine.settle(running(None, None, on_timeout=OnTimeout.FLAG, **EXAM), T0 + DAY)
    session = step.session
    assert [(t.type, t.at_ms) for t in step.transitions] == [("flagged", T0 + 60_000)]
    assert (session.status, session.clock_ms, session.deadline_ms) == (Status.RUNNING, 0, None)
    assert (expired(session), session.is_flagged) == ((False, False), True)


def test_turns_go_on_after_a_global_flag() -> None:
    session = running(None, None, on_timeout=OnTimeout.FLAG, **EXAM)
    for seconds, follows in [(70, B), (71, A)]:
        session = engine.switch(session, T0 + seconds * 1_000).session
        assert (active(session), session.deadline_ms, session.clock_ms) == (follows, None, 0)
    assert used(session) == (70_000, 1_000)


def test_a_global_session_without_participants_has_no_switch() -> None:
    error = refusal(engine.switch, running(**EXAM), T0 + 1_000)
    assert (error.status, error.code) == (400, "VALIDATION_ERROR")


def test_a_global_session_without_participants_runs_stands_and_ends() -> None:
    session = engine.pause(running(**EXAM), T0 + 10_000).session
    session = engine.resume(session, T0 + 20_000).session
    session = engine.settle(session, T0 + DAY).session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 70_000)


# --- count_up ------------------------------------------------------------------------------------


def test_a_switch_is_a_lap_and_its_time_is_told() -> None:
    first = engine.switch(running(None, None, **LAPS), T0 + 4_000)
    second = engine.switch(first.session, T0 + 9_500)
    assert [first.transitions[-1].lap_ms, second.transitions[-1].lap_ms] == [4_000, 5_500]
    session = second.session
    assert (session.lap_count, session.clock_ms, active(session)) == (2, 9_500, A)
    assert (used(session), turns(session)) == ((4_000, 5_500), (1, 1))


def test_without_participants_a_switch_is_a_lap_all_the_same() -> None:
    step = engine.switch(running(**LAPS), T0 + 4_000)
    assert (step.transitions[-1].lap_ms, step.session.lap_count) == (4_000, 1)
    assert (step.session.status, step.session.active) == (Status.RUNNING, None)


def test_a_lap_leaves_out_the_pauses_in_it() -> None:
    session = engine.pause(running(None, **LAPS), T0 + 1_000).session
    session = engine.resume(session, T0 + 50_000).session
    step = engine.switch(session, T0 + 52_000)
    assert (step.transitions[-1].lap_ms, step.session.clock_ms) == (3_000, 3_000)


def test_only_a_switch_ends_a_lap() -> None:
    session = engine.switch(running(None, **LAPS), T0 + 1_000).session
    step = engine.complete(session, T0 + 3_000)
    assert (step.session.lap_count, step.transitions[-1].lap_ms) == (1, None)


def test_elapsed_time_without_a_limit_is_never_due() -> None:
    session = running(None, **LAPS)
    assert session.deadline_ms is None
    assert engine.settle(session, T0 + 100 * DAY).transitions == ()


def test_elapsed_time_ends_at_max_time() -> None:
    session = engine.switch(running(None, None, max_time_ms=10_000, **LAPS), T0 + 4_000).session
    assert session.deadline_ms == T0 + 10_000
    session = engine.settle(session, T0 + DAY).session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 10_000)
    assert (used(session), expired(session)) == ((4_000, 6_000), (False, False))


def test_pauses_do_not_count_towards_max_time() -> None:
    session = engine.pause(running(None, max_time_ms=10_000, **LAPS), T0 + 4_000).session
    session = engine.resume(session, T0 + 50_000).session
    assert session.deadline_ms == T0 + 56_000


# --- settle first --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_a_millisecond_before_the_deadline_nothing_is_due(mode: Mode) -> None:
    session = engine.start(a_session_of(mode), T0).session
    assert engine.settle(session, T0 + 59_999) == engine.Step(session)
    assert [t.at_ms for t in engine.settle(session, T0 + 60_000).transitions] == [T0 + 60_000]


def test_a_switch_at_the_deadline_is_too_late_for_the_clock() -> None:
    session = running(60_000, 60_000, increment_ms=2_000)
    in_time = engine.switch(session, T0 + 59_999)
    assert [t.type for t in in_time.transitions] == ["switched"]
    assert remaining(in_time.session) == (2_001, 60_000)
    too_late = engine.switch(session, T0 + 60_000)
    assert [(t.type, t.at_ms - T0) for t in too_late.transitions] == [
        ("flagged", 60_000),
        ("switched", 60_000),
    ]
    assert (remaining(too_late.session), expired(too_late.session)) == ((0, 60_000), (True, False))


def test_a_switch_at_the_deadline_of_an_expiring_session_is_refused() -> None:
    session = running(60_000, 60_000, on_timeout=OnTimeout.EXPIRE)
    error = refusal(engine.switch, session, T0 + 60_000)
    assert error.message == f"Session {SESSION} not running (current status: expired)"


def test_a_late_switch_ends_the_turn_that_runs_by_then() -> None:
    session = running(1_000, 60_000, 60_000, on_timeout=OnTimeout.ADVANCE)
    step = engine.switch(session, T0 + 3_000)
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [("advanced", 1_000), ("switched", 3_000)]
    assert (active(step.session), used(step.session)) == (C, (1_000, 2_000, 0))


def test_a_switch_that_names_whose_turn_it_ends_is_refused_when_that_turn_is_over() -> None:
    session = running(1_000, 60_000, 60_000, on_timeout=OnTimeout.ADVANCE)
    error = refusal(lambda s, t: engine.switch(s, t, expected_participant_id=A), session, T0 + 3_000)
    assert type(error) is Conflict


def test_pause_complete_and_adjust_settle_first() -> None:
    session = running(1_000, 60_000, on_timeout=OnTimeout.ADVANCE)
    paused = engine.pause(session, T0 + 3_000).session
    completed = engine.complete(session, T0 + 3_000).session
    adjusted = engine.adjust(session, T0 + 3_000, delta_ms=500, target=B).session
    assert remaining(paused) == remaining(completed) == (0, 58_000)
    assert (remaining(adjusted), active(adjusted)) == ((0, 58_500), B)


def test_the_versions_of_a_step_follow_one_another() -> None:
    step = engine.switch(running(None, None, **ROUNDS), T0 + 25_000)
    assert [t.session.version for t in step.transitions] == [3, 4, 5]
    assert [t.session.updated_at_ms - T0 for t in step.transitions] == [10_000, 20_000, 25_000]


def test_at_most_500_expiries_settle_at_once() -> None:
    session = running(None, None, mode=Mode.PER_CYCLE, time_per_cycle_ms=1_000)
    first = engine.settle(session, T0 + 1_200_500)
    assert (len(first.transitions), first.session.updated_at_ms) == (500, T0 + 500_000)
    second = engine.settle(first.session, T0 + 1_200_500)
    third = engine.settle(second.session, T0 + 1_200_500)
    assert (len(second.transitions), len(third.transitions)) == (500, 200)
    assert third.session.deadline_ms == T0 + 1_201_000


def test_a_command_never_overtakes_what_is_due_however_much_that_is() -> None:
    session = running(None, None, mode=Mode.PER_CYCLE, time_per_cycle_ms=1_000)
    step = engine.switch(session, T0 + 700_500)
    assert (used(step.session), turns(step.session)) == ((350_500, 350_000), (351, 350))


# --- whose turn is next --------------------------------------------------------------------------


def test_turns_go_round_by_participant_index_with_gaps() -> None:
    session = running(60_000, 60_000, 60_000, 60_000, order=(30, 4, 100, 7))
    found = [active(session)]
    for _ in range(4):
        session = engine.switch(session, T0).session
        found.append(active(session))
    assert found == [B, D, A, C, B]


def test_equal_indexes_take_turns_in_the_order_given() -> None:
    session = running(60_000, 60_000, 60_000, 60_000, order=(1, 0, 1, 0))
    found = [active(session)]
    for _ in range(4):
        session = engine.switch(session, T0).session
        found.append(active(session))
    assert found == [B, D, A, C, B]


def test_a_named_participant_is_next_and_the_order_goes_on_from_there() -> None:
    session = engine.switch(running(60_000, 60_000, 60_000, 60_000), T0, next_participant_id=C).session
    assert active(session) == C
    assert active(engine.switch(session, T0).session) == D


def test_a_switch_to_oneself_is_a_turn_of_its_own_and_earns_nothing() -> None:
    session = running(60_000, 60_000, increment_ms=2_000)
    session = engine.switch(session, T0 + 5_000, next_participant_id=A).session
    assert (active(session), remaining(session), turns(session)) == (A, (55_000, 60_000), (1, 0))
    assert (session.cycle_started_at_ms, session.deadline_ms) == (T0 + 5_000, T0 + 60_000)


def test_a_turn_that_comes_back_earns_nothing() -> None:
    alone = engine.switch(running(60_000, increment_ms=2_000), T0 + 5_000).session
    assert remaining(alone) == (55_000,)
    session = engine.switch(running(1_000, 60_000, increment_ms=2_000), T0 + 1_000).session
    session = engine.switch(session, T0 + 2_000).session
    assert (active(session), remaining(session)) == (B, (0, 59_000))


def test_a_lone_participant_follows_upon_themselves() -> None:
    session = engine.switch(running(60_000), T0 + 5_000).session
    assert (session.status, active(session), turns(session)) == (Status.RUNNING, A, (1,))


def test_when_all_others_have_run_out_the_turn_comes_back() -> None:
    session = engine.switch(running(1_000, 60_000), T0 + 1_000).session
    session = engine.switch(session, T0 + 2_000).session
    assert (session.status, active(session), remaining(session)) == (Status.RUNNING, B, (0, 59_000))


def test_a_switch_with_nobody_left_ends_the_session() -> None:
    session = engine.switch(running(1_000, 2_000), T0 + 1_000).session
    step = engine.switch(session, T0 + 5_000)
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [("flagged", 3_000), ("expired", 5_000)]
    session = step.session
    assert (session.status, session.completed_at_ms) == (Status.EXPIRED, T0 + 5_000)
    assert (active(session), session.deadline_ms, session.cycle_started_at_ms) == (None, None, None)
    assert used(session) == (1_000, 4_000)


def test_a_flag_of_the_last_clock_does_not_end_the_session() -> None:
    session = engine.settle(running(1_000), T0 + DAY).session
    assert (session.status, active(session)) == (Status.RUNNING, A)


def test_a_bank_that_was_emptied_while_it_stood_is_not_next() -> None:
    session = engine.adjust(running(60_000, 60_000, 60_000), T0, delta_ms=-60_000, target=B).session
    assert active(engine.switch(session, T0 + 1_000).session) == C


def test_switch_refuses_an_unknown_heir() -> None:
    error = refusal(lambda s, t: engine.switch(s, t, next_participant_id=NOBODY), running(60_000, 60_000), T0)
    assert (error.status, error.code, error.message) == (400, "VALIDATION_ERROR", "Request validation failed")
    assert [violation["field"] for violation in error.details] == ["next_participant_id"]


def test_switch_refuses_an_heir_whose_clock_has_expired() -> None:
    session = engine.switch(running(1_000, 60_000), T0 + 1_000).session
    error = refusal(lambda s, t: engine.switch(s, t, next_participant_id=A), session, T0 + 2_000)
    assert (error.status, error.code) == (409, "CONFLICT")


def test_a_flagged_participant_cannot_switch_to_themselves() -> None:
    error = refusal(
        lambda s, t: engine.switch(s, t, next_participant_id=A), running(1_000, 60_000), T0 + 1_000
    )
    assert (error.status, error.code) == (409, "CONFLICT")


def test_a_switch_tells_whose_turn_ended_if_that_clock_had_run_out() -> None:
    in_time = engine.switch(running(1_000, 60_000), T0 + 999)
    too_late = engine.switch(running(1_000, 60_000), T0 + 1_000)
    assert in_time.transitions[-1].ended_expired is None
    assert too_late.transitions[-1].ended_expired == A


def test_a_switch_that_ends_the_session_tells_it_too() -> None:
    assert engine.switch(running(1_000), T0 + 1_000).transitions[-1].ended_expired == A


# --- what the sender saw -------------------------------------------------------------------------


def test_a_switch_that_names_the_turn_it_ends_switches_once() -> None:
    session = engine.switch(running(60_000, 60_000), T0 + 1_000, expected_participant_id=A).session
    error = refusal(lambda s, t: engine.switch(s, t, expected_participant_id=A), session, T0 + 1_000)
    assert (type(error), error.status, error.code) == (Conflict, 409, "CONFLICT")


def test_expecting_somebody_unknown_is_a_conflict() -> None:
    error = refusal(
        lambda s, t: engine.switch(s, t, expected_participant_id=NOBODY), running(60_000, 60_000), T0
    )
    assert (type(error), error.status) == (Conflict, 409)


def test_expecting_somebody_where_nobody_is_active_is_a_conflict() -> None:
    error = refusal(lambda s, t: engine.switch(s, t, expected_participant_id=A), running(**LAPS), T0)
    assert (type(error), error.status) == (Conflict, 409)


def test_an_expected_version_that_holds_lets_the_rule_through() -> None:
    session = running(60_000, 60_000)
    assert engine.expecting(engine.switch, version=2)(session, T0 + 1_000) == engine.switch(
        session, T0 + 1_000
    )


@pytest.mark.parametrize("version", [0, 1, 3])
def test_an_expected_version_that_does_not_hold_is_a_conflict(version: int) -> None:
    error = refusal(engine.expecting(engine.switch, version=version), running(60_000, 60_000), T0 + 1_000)
    assert (type(error), error.status, error.code) == (Conflict, 409, "CONFLICT")


def test_the_expected_version_is_that_of_the_settled_session() -> None:
    session = running(1_000, 60_000)
    error = refusal(engine.expecting(engine.switch, version=2), session, T0 + 1_000)
    assert type(error) is Conflict
    step = engine.expecting(engine.switch, version=3)(session, T0 + 1_000)
    assert [(t.type, t.session.version) for t in step.transitions] == [("flagged", 3), ("switched", 4)]


def test_if_match_holds_for_epoch_and_version_together() -> None:
    session = structs.replace(running(60_000, 60_000), commit="Zk8w_q1B")
    assert session.tag == f'"{EPOCH}-2-Zk8w_q1B"'
    for tags in ({session.tag}, {f'"{EPOCH}-2"'}, {'"other"', session.tag}, {"*"}):
        step = engine.expecting(engine.pause, tags=frozenset(tags))(session, T0 + 1_000)
        assert step == engine.pause(session, T0 + 1_000)


@pytest.mark.parametrize(
    "tag", [f'"{EPOCH}-1"', '"0000000000000-2"', f"{EPOCH}-2", f'"{EPOCH}-2-Zk8w_q1B"', '""']
)
def test_if_match_that_does_not_hold_is_412(tag: str) -> None:
    rule = engine.expecting(engine.pause, tags=frozenset({tag}))
    error = refusal(rule, running(60_000, 60_000), T0 + 1_000)
    assert (type(error), error.status, error.code) == (PreconditionFailed, 412, "CONFLICT")


def test_if_match_of_nothing_never_holds() -> None:
    error = refusal(engine.expecting(engine.pause, tags=frozenset()), running(60_000), T0)
    assert error.status == 412


# --- pause and resume ----------------------------------------------------------------------------


def test_pause_charges_and_stands_still() -> None:
    session = engine.pause(running(60_000, 60_000, increment_ms=2_000), T0 + 4_000).session
    assert (session.status, active(session), remaining(session)) == (Status.PAUSED, A, (56_000, 60_000))
    assert (session.cycle_started_at_ms, session.deadline_ms, turns(session)) == (None, None, (0, 0))
    assert engine.settle(session, T0 + 100 * DAY).transitions == ()


def test_resume_goes_on_with_the_same_turn() -> None:
    session = engine.pause(running(60_000, 60_000), T0 + 4_000).session
    session = engine.resume(session, T0 + 100_000).session
    assert (session.status, active(session), used(session)) == (Status.RUNNING, A, (4_000, 0))
    assert (session.cycle_started_at_ms, session.deadline_ms) == (T0 + 100_000, T0 + 156_000)
    assert session.started_at_ms == T0


def test_pauses_do_not_count_however_many_there_are() -> None:
    session = running(60_000, 60_000)
    for second in range(0, 20, 2):
        session = engine.pause(session, T0 + second * 1_000 + 1_000).session
        session = engine.resume(session, T0 + second * 1_000 + 2_000).session
    assert (remaining(session), used(session)) == ((50_000, 60_000), (10_000, 0))


# --- adjust --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "running", "paused"])
@pytest.mark.parametrize(
    ("mode", "target"),
    [
        (Mode.PER_PARTICIPANT, B),
        (Mode.PER_GROUP, B),
        (Mode.PER_GROUP, "blue"),
        (Mode.PER_CYCLE, None),
        (Mode.GLOBAL, None),
    ],
)
def test_adjust_gives_and_takes_in_every_status(mode: Mode, target: str | None, status: str) -> None:
    session = a_session_of(mode)
    if status != "pending":
        session = engine.start(session, T0, participant_id=B).session
    if status == "paused":
        session = engine.pause(session, T0).session
    for delta_ms, left_ms in [(5_000, 65_000), (-10_000, 55_000)]:
        step = engine.adjust(session, T0, delta_ms=delta_ms, target=target)
        session = step.session
        assert [t.type for t in step.transitions] == ["adjusted"]
        assert (session.status, session.version) == (Status(status), step.transitions[0].session.version)
        clock_ms = session.participants[1].remaining_ms if target else session.clock_ms
        assert clock_ms == left_ms
    if target:
        assert session.participants[0].remaining_ms == 60_000
    assert session.deadline_ms == (T0 + 55_000 if status == "running" else None)


def test_adjust_of_a_running_clock_charges_it_first() -> None:
    session = engine.adjust(running(60_000, 60_000), T0 + 4_000, delta_ms=1_000, target=A).session
    assert (remaining(session), used(session)) == ((57_000, 60_000), (4_000, 0))
    assert (session.cycle_started_at_ms, session.deadline_ms) == (T0 + 4_000, T0 + 61_000)


def test_adjust_of_another_clock_leaves_the_deadline() -> None:
    session = engine.adjust(running(60_000, 60_000), T0 + 4_000, delta_ms=1_000, target=B).session
    assert (remaining(session), session.deadline_ms) == ((56_000, 61_000), T0 + 60_000)
    assert session.cycle_started_at_ms == T0 + 4_000


def test_adjust_changes_what_is_left_and_not_what_it_began_with() -> None:
    session = engine.adjust(pending(60_000), T0, delta_ms=5_000, target=A).session
    assert session.participants[0].budget_ms == 60_000
    session = engine.adjust(running(**EXAM), T0, delta_ms=5_000).session
    assert (session.total_time_ms, session.clock_ms) == (60_000, 65_000)


def test_adjust_of_a_cycle_does_not_outlast_it() -> None:
    session = engine.adjust(running(None, None, **ROUNDS), T0, delta_ms=5_000).session
    assert session.deadline_ms == T0 + 15_000
    assert engine.switch(session, T0).session.deadline_ms == T0 + 10_000


def test_adjust_of_a_member_is_adjust_of_the_group() -> None:
    by_member = engine.adjust(running(60_000, 60_000, 30_000, **TEAMS), T0, delta_ms=-1_000, target=B)
    by_group = engine.adjust(running(60_000, 60_000, 30_000, **TEAMS), T0, delta_ms=-1_000, target="red")
    assert by_member == by_group
    assert remaining(by_group.session) == (59_000, 59_000, 30_000)


def test_a_clock_stops_at_zero_and_at_a_day() -> None:
    session = pending(60_000, DAY)
    session = engine.adjust(session, T0, delta_ms=-60_001, target=A).session
    session = engine.adjust(session, T0, delta_ms=1, target=B).session
    assert remaining(session) == (0, DAY)
    session = engine.adjust(session, T0, delta_ms=DAY, target=A).session
    assert remaining(session) == (DAY, DAY)
    session = engine.adjust(session, T0, delta_ms=-DAY, target=A).session
    assert remaining(session) == (0, DAY)
    assert engine.adjust(pending(**EXAM), T0, delta_ms=DAY).session.clock_ms == DAY
    assert engine.adjust(pending(**EXAM), T0, delta_ms=-DAY).session.clock_ms == 0


def test_a_gift_never_takes_what_increments_have_given() -> None:
    session = engine.switch(running(DAY, DAY, increment_ms=1_000), T0).session
    session = engine.adjust(session, T0, delta_ms=1, target=A).session
    assert remaining(session) == (DAY + 1_000, DAY)


def test_a_running_clock_taken_to_zero_is_due_at_once() -> None:
    session = engine.adjust(running(60_000, 60_000), T0 + 4_000, delta_ms=-DAY, target=A).session
    assert (session.deadline_ms, expired(session)) == (T0 + 4_000, (False, False))
    step = engine.settle(session, T0 + 4_000)
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [("flagged", 4_000)]


def test_a_clock_emptied_before_its_turn_is_due_when_that_begins() -> None:
    session = engine.adjust(pending(60_000, 60_000), T0, delta_ms=-DAY, target=A).session
    session = engine.start(session, T0 + 1_000).session
    assert (session.status, active(session), session.deadline_ms) == (Status.RUNNING, A, T0 + 1_000)


def test_a_paused_clock_taken_to_zero_is_due_at_resume() -> None:
    session = engine.pause(running(**EXAM), T0 + 1_000).session
    session = engine.adjust(session, T0 + 2_000, delta_ms=-DAY).session
    assert session.deadline_ms is None
    session = engine.resume(session, T0 + 3_000).session
    assert session.deadline_ms == T0 + 3_000
    assert engine.settle(session, T0 + 3_000).session.status is Status.EXPIRED


def test_a_flagged_clock_that_is_given_time_runs_again_and_can_flag_again() -> None:
    session = engine.settle(running(1_000, 60_000), T0 + 3_000).session
    session = engine.adjust(session, T0 + 5_000, delta_ms=2_000, target=A).session
    assert (expired(session), remaining(session), session.deadline_ms) == (
        (False, False),
        (2_000, 60_000),
        T0 + 7_000,
    )
    step = engine.settle(session, T0 + 9_000)
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [("flagged", 7_000)]
    assert used(step.session) == (7_000, 0)


def test_a_flagged_clock_from_which_time_is_taken_stays_flagged() -> None:
    session = engine.settle(running(1_000, 60_000), T0 + 1_000).session
    session = engine.adjust(session, T0 + 2_000, delta_ms=-1, target=A).session
    assert (expired(session), session.deadline_ms) == ((True, False), None)


def test_a_flagged_cycle_and_a_flagged_global_clock_run_again_when_given_time() -> None:
    for session in (
        running(None, None, mode=Mode.PER_CYCLE, time_per_cycle_ms=60_000, on_timeout=OnTimeout.FLAG),
        running(None, None, on_timeout=OnTimeout.FLAG, **EXAM),
    ):
        flagged = engine.settle(session, T0 + 60_000).session
        assert engine.adjust(flagged, T0 + 70_000, delta_ms=-1).session.deadline_ms is None
        given = engine.adjust(flagged, T0 + 70_000, delta_ms=5_000).session
        assert (given.deadline_ms, given.clock_ms, expired(given)) == (T0 + 75_000, 5_000, (False, False))
        assert not given.is_flagged


def test_a_flagged_clock_may_be_given_time_while_paused() -> None:
    session = engine.pause(engine.settle(running(1_000), T0 + 1_000).session, T0 + 2_000).session
    session = engine.adjust(session, T0 + 3_000, delta_ms=4_000, target=A).session
    session = engine.resume(session, T0 + 10_000).session
    assert (expired(session), session.deadline_ms) == ((False,), T0 + 14_000)


def test_who_was_passed_over_and_is_given_time_has_turns_again() -> None:
    session = engine.settle(running(1_000, 60_000, on_timeout=OnTimeout.ADVANCE), T0 + 1_000).session
    session = engine.adjust(session, T0 + 2_000, delta_ms=5_000, target=A).session
    session = engine.switch(session, T0 + 3_000).session
    assert (active(session), session.deadline_ms) == (A, T0 + 8_000)


def test_a_group_that_is_given_time_has_all_its_members_back() -> None:
    session = engine.settle(running(1_000, 1_000, 30_000, **TEAMS), T0 + 1_000).session
    session = engine.adjust(session, T0 + 2_000, delta_ms=5_000, target=B).session
    assert (expired(session), remaining(session)) == ((False,) * 3, (5_000, 5_000, 30_000))
    assert session.deadline_ms == T0 + 7_000


@pytest.mark.parametrize(
    ("mode", "target"),
    [
        (Mode.PER_PARTICIPANT, None),
        (Mode.PER_PARTICIPANT, NOBODY),
        (Mode.PER_GROUP, None),
        (Mode.PER_GROUP, "green"),
        (Mode.PER_CYCLE, A),
        (Mode.GLOBAL, A),
        (Mode.COUNT_UP, None),
        (Mode.COUNT_UP, A),
    ],
)
def test_adjust_refuses_what_is_no_clock_of_the_mode(mode: Mode, target: str | None) -> None:
    error = refusal(lambda s, t: engine.adjust(s, t, delta_ms=1, target=target), a_session_of(mode), T0)
    assert (error.status, error.code) == (400, "VALIDATION_ERROR")


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_complete_charges_and_clears(mode: Mode) -> None:
    session = engine.complete(engine.start(a_session_of(mode), T0).session, T0 + 4_000).session
    assert (session.status, session.completed_at_ms) == (Status.COMPLETED, T0 + 4_000)
    assert (session.active, session.clock_ms, session.deadline_ms) == (None, None, None)
    assert (session.cycle_started_at_ms, used(session)) == (None, (4_000, 0))
    if mode in (Mode.PER_PARTICIPANT, Mode.PER_GROUP):
        assert remaining(session) == (56_000, 60_000)


def test_a_pending_or_paused_session_can_be_completed() -> None:
    paused = engine.pause(running(60_000), T0 + 1_000).session
    for session in (pending(60_000), paused):
        completed = engine.complete(session, T0 + 9_000).session
        assert (completed.status, used(completed)) == (Status.COMPLETED, used(session))


def test_completing_twice_changes_nothing() -> None:
    session = engine.complete(running(60_000, 60_000), T0 + 4_000).session
    assert engine.complete(session, T0 + 9_000) == engine.Step(session)


def test_a_session_that_ran_out_before_it_was_completed_has_expired() -> None:
    session = running(1_000, on_timeout=OnTimeout.EXPIRE)
    error = refusal(engine.complete, session, T0 + 1_000)
    assert (error.status, error.code) == (400, "INVALID_STATE_TRANSITION")


def test_cancel_ends_a_pending_session() -> None:
    session = engine.cancel(pending(60_000, 60_000), T0 + 4_000).session
    assert (session.status, session.completed_at_ms) == (Status.CANCELLED, T0 + 4_000)
    assert (session.active, session.started_at_ms, remaining(session)) == (None, None, (60_000, 60_000))


# --- refusals ------------------------------------------------------------------------------------


def in_each_status() -> dict[str, Session]:
    return {
        "pending": pending(60_000, 60_000),
        "running": running(60_000, 60_000),
        "paused": engine.pause(running(60_000, 60_000), T0).session,
        "expired": engine.settle(running(1_000, on_timeout=OnTimeout.EXPIRE), T0 + 1_000).session,
        "completed": engine.complete(running(60_000), T0).session,
        "cancelled": engine.cancel(pending(60_000), T0).session,
    }


ALLOWED = {
    "start": ["pending"],
    "switch": ["running"],
    "pause": ["running"],
    "resume": ["paused"],
    "adjust": ["pending", "running", "paused"],
    "complete": ["pending", "running", "paused", "completed"],
    "cancel": ["pending"],
}
RULES: dict[str, engine.Rule] = {
    "start": engine.start,
    "switch": engine.switch,
    "pause": engine.pause,
    "resume": engine.resume,
    "adjust": lambda session, now_ms: engine.adjust(session, now_ms, delta_ms=1, target=A),
    "complete": engine.complete,
    "cancel": engine.cancel,
}


@pytest.mark.parametrize("status", in_each_status())
@pytest.mark.parametrize("command", RULES)
def test_a_command_is_allowed_in_the_statuses_of_the_contract_and_no_other(command: str, status: str) -> None:
    session = in_each_status()[status]
    assert session.status == status
    if status in ALLOWED[command]:
        RULES[command](session, T0 + 2_000)
        return
    error = refusal(RULES[command], session, T0 + 2_000)
    assert isinstance(error, InvalidStateTransition)
    assert (error.status, error.code) == (400, "INVALID_STATE_TRANSITION")
    assert error.message.startswith(f"Session {SESSION} ")
    assert error.message.endswith(f" (current status: {status})")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("switch", "pending", f"Session {SESSION} not running (current status: pending)"),
        ("switch", "paused", f"Session {SESSION} not running (current status: paused)"),
        ("start", "running", f"Session {SESSION} cannot be started (current status: running)"),
        ("pause", "paused", f"Session {SESSION} cannot be paused (current status: paused)"),
        ("resume", "running", f"Session {SESSION} cannot be resumed (current status: running)"),
    ],
)
def test_a_refusal_names_the_session_and_its_status(command: str, status: str, message: str) -> None:
    assert refusal(RULES[command], in_each_status()[status], T0 + 2_000).message == message


def test_a_refusal_names_the_status_after_what_was_due() -> None:
    session = running(1_000, on_timeout=OnTimeout.EXPIRE)
    error = refusal(engine.pause, session, T0 + 1_000)
    assert error.message == f"Session {SESSION} cannot be paused (current status: expired)"


# --- a clock that steps backwards ----------------------------------------------------------------


def test_a_step_backwards_gives_no_time_back() -> None:
    session = engine.switch(running(60_000, 60_000), T0 + 10_000).session
    session = engine.switch(session, T0 + 7_000).session
    assert (remaining(session), used(session)) == ((50_000, 60_000), (10_000, 0))
    session = engine.switch(session, T0 + 12_000).session
    assert (remaining(session), used(session)) == ((48_000, 60_000), (12_000, 0))


def test_no_instant_of_a_session_lies_before_the_one_before_it() -> None:
    session = engine.switch(running(60_000, 60_000), T0 + 10_000).session
    step = engine.pause(session, T0 + 7_000)
    assert (step.transitions[0].at_ms, step.session.updated_at_ms) == (T0 + 10_000, T0 + 10_000)
    session = engine.resume(step.session, T0 + 1_000).session
    assert (session.cycle_started_at_ms, session.deadline_ms) == (T0 + 10_000, T0 + 70_000)


def test_a_start_before_the_creation_is_one_at_the_creation() -> None:
    session = engine.start(pending(60_000), T0 - 5_000).session
    assert (session.started_at_ms, session.deadline_ms) == (T0, T0 + 60_000)


def test_what_is_due_at_the_last_change_comes_first_also_when_the_clock_stepped_back() -> None:
    session = engine.adjust(running(60_000, 60_000), T0 + 5_000, delta_ms=-DAY, target=A).session
    step = engine.switch(session, T0 + 4_000)
    assert [(t.type, t.at_ms - T0) for t in step.transitions] == [("flagged", 5_000), ("switched", 5_000)]


def test_equal_instants_take_no_time() -> None:
    session = running(60_000, 60_000)
    for _ in range(6):
        session = engine.switch(session, T0).session
    assert (remaining(session), turns(session), session.version) == ((60_000, 60_000), (3, 3), 8)
