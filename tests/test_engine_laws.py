"""What is true of every session, whatever is asked of it and whenever: laws over random sessions."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec import structs

from lockstep.errors import LockstepError
from lockstep.rules.history import events
from lockstep.rules.state import BANK_MODES, TERMINAL, Mode, Participant, Session, Status
from lockstep.rules.state_json import from_iso, from_json, to_dict, to_json
from lockstep.rules.steps import Step, Transition
from tests.support import settled_rules as engine
from tests.support.plans import Command, Plan, at_or_after, moves, obey, plans, plans_with_visits, settled
from tests.support.sessions_under_test import DAY, T0, Counter, Moment, Refused

# The same examples in every run; the many more of the long run are new ones each time.
FEW = settings(max_examples=50, derandomize=True, deadline=None, database=None)
MANY = settings(
    max_examples=3_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


VISITS = ("seated", "unseated", "annotated")
"""Transitions that charge no clock."""


# --- what happened -------------------------------------------------------------------------------

END = 10 * DAY
"""Later than anything that a plan can bring about."""


def history(plan: Plan) -> tuple[Transition, ...]:
    """All transitions of the plan, from the creation on."""
    step = plan.created()
    for command in plan.commands:
        step = step.followed_by(obey(step.session, command)[0])
    return step.transitions


def ran_ms(before: Session, transition: Transition) -> int:
    """How long the clock ran between a state and the transition that followed it."""
    return transition.at_ms - before.updated_at_ms if before.status is Status.RUNNING else 0


def law(test: Callable[[Plan], None]) -> Callable[[], None]:
    return FEW(given(plans())(test))


# --- when ----------------------------------------------------------------------------------------


@settings(FEW, max_examples=150)
@given(plans())
def test_the_engine_agrees_with_a_session_that_counts_every_millisecond(plan: Plan) -> None:
    session, counter = plan.created().session, Counter.of(plan.spec)
    assert [Moment(T0, to_dict(session))] == counter.passed
    for command in plan.commands:
        seen = len(counter.passed)
        step, refusal = obey(session, command)
        codes: tuple[str | None, ...] = (None,)
        try:
            counter = counter.obey(command.name, command.at_ms, **command.arguments)
        except Refused as refused:
            counter, _ = counter.wait(command.at_ms)
            codes = refused.codes
        assert (refusal and refusal.code) in codes
        found = [Moment(t.at_ms, to_dict(t.session), t.lap_ms, t.ended_expired) for t in step.transitions]
        assert found == counter.passed[seen:]
        session = step.session


@law
def test_it_does_not_matter_when_or_how_often_an_expiry_is_noticed(plan: Plan) -> None:
    step = plan.created()
    for command in plan.commands:
        for earlier_ms, limit in command.peeks:
            noticed_ms = at_or_after(step.session, command.at_ms) - earlier_ms
            step = step.followed_by(engine.settle(step.session, noticed_ms, limit))
        step = step.followed_by(obey(step.session, command)[0])
    assert step.transitions == history(plan)


@law
def test_it_does_not_matter_by_how_many_steps_what_is_due_is_settled(plan: Plan) -> None:
    for transition in history(plan):
        at_once, in_pieces = (
            engine.settle(transition.session, transition.at_ms + 30),
            Step(transition.session),
        )
        for _ in range(len(at_once.transitions) + 1):
            piece = engine.settle(in_pieces.session, transition.at_ms + 30, limit=1)
            assert len(piece.transitions) <= 1
            in_pieces = in_pieces.followed_by(piece)
        assert in_pieces == at_once


@law
def test_an_expiry_happens_at_its_deadline_and_not_a_millisecond_earlier(plan: Plan) -> None:
    for before, transition, command in moves(plan):
        if command is None:
            assert transition.at_ms == before.deadline_ms
            if transition.at_ms > before.updated_at_ms:
                assert engine.settle(before, transition.at_ms - 1) == Step(before)
            assert engine.settle(before, transition.at_ms).transitions[0] == transition
        elif before.deadline_ms is not None:
            assert transition.at_ms < before.deadline_ms


@law
def test_a_switch_at_the_deadline_is_too_late_and_one_a_millisecond_earlier_is_not(plan: Plan) -> None:
    for transition in history(plan):
        session, deadline_ms = transition.session, transition.session.deadline_ms
        if deadline_ms is None:
            continue
        expiry = engine.settle(session, deadline_ms).transitions[0]
        too_late, _ = obey(session, Command("switch", deadline_ms, {}))
        assert too_late.transitions[0] == expiry
        if session.updated_at_ms < deadline_ms:
            in_time, refusal = obey(session, Command("switch", deadline_ms - 1, {}))
            assert len(in_time.transitions) == (refusal is None)


@law
def test_an_instant_before_the_last_change_counts_as_that_of_the_last_change(plan: Plan) -> None:
    session = plan.created().session
    for command in plan.commands:
        late = replace(command, at_ms=at_or_after(session, command.at_ms))
        step, refusal = obey(session, command)
        assert (step, str(refusal)) == (obey(session, late)[0], str(obey(session, late)[1]))
        session = step.session


# --- versions and events -------------------------------------------------------------------------


@law
def test_every_transition_is_one_version_and_one_event(plan: Plan) -> None:
    transitions = history(plan)
    versions = list(range(1, len(transitions) + 1))
    assert [t.session.version for t in transitions] == versions
    assert [event.version for event in events(None, transitions)] == versions
    assert [t.at_ms for t in transitions] == [t.session.updated_at_ms for t in transitions]


@law
def test_a_step_ends_with_the_state_of_its_last_transition(plan: Plan) -> None:
    session = plan.created().session
    for command in plan.commands:
        step, refusal = obey(session, command)
        assert step.session == (step.transitions[-1].session if step.transitions else session)
        assert refusal is not None or step.transitions or command.name == "complete"
        session = step.session


@law
def test_the_instants_of_a_session_never_go_back(plan: Plan) -> None:
    instants = [t.at_ms for t in history(plan)]
    assert instants == sorted(instants)


@law
def test_a_refused_command_might_as_well_not_have_been_sent(plan: Plan) -> None:
    plan = plan.forwards()
    session, accepted = plan.created().session, []
    for command in plan.commands:
        untouched = copy.deepcopy(session)
        try:
            session = command(session).session
            accepted.append(command)
        except LockstepError:
            assert session == untouched
    without = history(Plan(plan.spec, tuple(accepted)))[-1].session
    end_ms = plan.commands[-1].at_ms if plan.commands else T0
    assert settled(session, end_ms) == settled(without, end_ms)
    assert settled(session, end_ms).session == settled(history(plan)[-1].session, end_ms).session


@law
def test_equal_arguments_give_equal_answers(plan: Plan) -> None:
    session = plan.created().session
    for command in plan.commands:
        step, refusal = obey(session, command)
        again, refused_again = obey(from_json(to_json(session)), command)
        assert (again, repr(refused_again)) == (step, repr(refusal))
        session = step.session


@law
def test_what_has_ended_stays_as_it_is(plan: Plan) -> None:
    for transition in history(plan):
        session = transition.session
        if session.status not in TERMINAL:
            continue
        assert engine.settle(session, END) == Step(session)
        for command in plan.commands:
            step, refusal = obey(session, command)
            assert step == Step(session)
            assert (refusal is None) == (command.name == "complete" and session.status is Status.COMPLETED)


# --- time ----------------------------------------------------------------------------------------


@law
def test_running_time_is_charged_exactly_once(plan: Plan) -> None:
    ran = used = 0
    ran_of = {p.participant_id: 0 for p in plan.spec.participants}
    for before, transition, _ in moves(plan):
        seats = transition.session.participants
        ran_of = {p.participant_id: ran_of.get(p.participant_id, 0) for p in seats}  # who comes again is new
        if before.active_participant is not None:
            ran += ran_ms(before, transition)
            ran_of[before.active_participant.participant_id] += ran_ms(before, transition)
        used += sum(p.used_ms for p in seats) - sum(
            p.used_ms for p in before.participants if p.participant_id in ran_of
        )
        if transition.type not in VISITS:  # those charge nothing: what ran is charged with what comes next
            assert {p.participant_id: p.used_ms for p in seats} == ran_of
            assert used == ran


@law
def test_an_elapsed_clock_shows_all_running_time_and_its_laps_make_it_up(plan: Plan) -> None:
    ran = in_laps = laps = 0
    for before, transition, _ in moves(plan):
        session = transition.session
        ran += ran_ms(before, transition)
        if session.mode is not Mode.COUNT_UP:
            assert transition.lap_ms is None
            continue
        in_laps += transition.lap_ms or 0
        laps += transition.lap_ms is not None
        assert session.clock_ms == (None if session.status in TERMINAL else ran)
        assert (in_laps + session.lap_elapsed_ms, laps) == (ran, session.lap_count)


def account_of(session: Session, participant: Participant) -> str:
    own = session.mode is Mode.PER_PARTICIPANT
    return participant.participant_id if own else f"group {participant.group_id}"


@law
def test_a_bank_is_its_budget_and_increments_and_adjustments_less_what_was_charged(plan: Plan) -> None:
    created = plan.created().session
    if created.mode not in BANK_MODES:
        return
    given_ms = {account_of(created, p): p.budget_ms or 0 for p in created.participants}
    charged = dict.fromkeys(given_ms, 0)
    after_flag = dict.fromkeys(given_ms, 0)
    for before, transition, command in moves(plan):
        session, ending = transition.session, before.active_participant
        if ending is not None:
            account = account_of(before, ending)
            (after_flag if ending.has_expired else charged)[account] += ran_ms(before, transition)
            heir = session.active_participant
            if (
                command is not None
                and command.name == "switch"
                and heir is not None
                and not ending.has_expired
            ):
                is_rewarded = account_of(session, heir) != account
                given_ms[account] += before.increment_ms if is_rewarded else 0
        if command is not None and command.name == "adjust":
            target = command.arguments["target"]
            (account,) = {
                account_of(before, p) for p in before.participants if target in (p.participant_id, p.group_id)
            }
            given_ms[account] += applied_ms(
                given_ms[account] - charged[account], command.arguments["delta_ms"]
            )
        for participant in session.participants:
            account = account_of(session, participant)
            assert participant.remaining_ms == given_ms[account] - charged[account]
        for account, charged_ms in charged.items():
            used_ms = sum(p.used_ms for p in session.participants if account_of(session, p) == account)
            assert charged_ms == used_ms - after_flag[account]


def applied_ms(clock_ms: int, delta_ms: int) -> int:
    """What is left of an adjustment by a clock that stops at 0 and at a day."""
    if delta_ms < 0:
        return max(delta_ms, -clock_ms)
    return min(delta_ms, max(0, DAY - clock_ms))


@law
def test_the_one_clock_is_what_it_began_with_and_adjustments_less_what_was_charged(plan: Plan) -> None:
    clock_ms = plan.created().session.clock_ms
    for before, transition, command in moves(plan):
        session = transition.session
        if session.mode not in (Mode.PER_CYCLE, Mode.GLOBAL) or session.status in TERMINAL:
            continue
        assert clock_ms is not None
        clock_ms -= min(clock_ms, ran_ms(before, transition))
        if command is not None and command.name == "adjust":
            clock_ms += applied_ms(clock_ms, command.arguments["delta_ms"])
        is_new_turn = sum(p.cycle_count for p in session.participants) > sum(
            p.cycle_count for p in before.participants
        )
        if session.mode is Mode.PER_CYCLE and is_new_turn:
            clock_ms = session.time_per_cycle_ms
        assert session.clock_ms == clock_ms


@law
def test_time_is_never_created(plan: Plan) -> None:
    for before, transition, command in moves(plan):
        name = command.name if command is not None else ""
        for was, now in zip(before.participants, transition.session.participants, strict=True):
            if was.remaining_ms is None or now.remaining_ms is None:
                assert was.remaining_ms is now.remaining_ms
                continue
            gift_ms = max(0, command.arguments["delta_ms"]) if command is not None and name == "adjust" else 0
            if (name == "switch" and was in (before.active_participant,)) or before.mode is Mode.PER_GROUP:
                gift_ms += before.increment_ms if name == "switch" else 0
            assert now.remaining_ms <= was.remaining_ms + gift_ms
            assert now.budget_ms == was.budget_ms


@law
def test_only_the_active_clock_runs(plan: Plan) -> None:
    for before, transition, command in moves(plan):
        if command is not None and command.name == "adjust":
            continue
        active = before.active_participant
        for was, now in zip(before.participants, transition.session.participants, strict=True):
            if before.mode not in BANK_MODES or active is None:
                assert now.remaining_ms == was.remaining_ms
            elif account_of(before, was) != account_of(before, active):
                assert (now.remaining_ms, now.has_expired) == (was.remaining_ms, was.has_expired)


# --- what is shown -------------------------------------------------------------------------------


@law
def test_no_number_of_a_state_is_negative_or_a_fraction(plan: Plan) -> None:
    def numbers(value: Any) -> Iterator[Any]:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from numbers(inner)
        elif not isinstance(value, str | bool | None):
            yield value

    for transition in history(plan):
        assert all(type(number) is int and number >= 0 for number in numbers(to_dict(transition.session)))


@law
def test_a_state_read_back_is_the_state_written(plan: Plan) -> None:
    for transition in history(plan):
        written = structs.replace(transition.session, commit="aZ3_-xyz")
        assert from_json(to_json(written)) == written
        assert to_json(from_json(to_json(written))) == to_json(written)


@law
def test_the_deadline_is_the_start_of_the_cycle_and_what_remained_then(plan: Plan) -> None:
    for transition in history(plan):
        session, state = transition.session, to_dict(transition.session)
        has_flag = state.get("is_flagged", False) or any(
            p["has_expired"] and p["is_active"] for p in state["participants"]
        )
        if state["status"] != "running":
            assert (state["deadline_ms"], state["cycle_started_at"]) == (None, None)
            continue
        since_ms = from_iso(state["cycle_started_at"])
        if transition.type not in VISITS:
            assert since_ms == session.updated_at_ms
        if session.mode is Mode.COUNT_UP:
            left_ms = (
                None if session.max_time_ms is None else session.max_time_ms - state["clock"]["elapsed_ms"]
            )
        else:
            left_ms = None if has_flag else state["clock"]["remaining_ms"]
        assert state["deadline_ms"] == (None if left_ms is None else since_ms + left_ms)


@law
def test_a_state_shows_what_its_status_says(plan: Plan) -> None:
    for transition in history(plan):
        state = to_dict(transition.session)
        is_over = state["status"] in ("expired", "completed", "cancelled")
        has_turn = state["status"] in ("running", "paused") and state["participants"]
        assert (state["clock"] is None) == is_over
        assert (state["session_completed_at"] is None) == (not is_over)
        assert (state["session_started_at"] is None) == (
            state["status"] in ("pending", "cancelled")
        ) or is_over
        on_turn = [p["participant_id"] for p in state["participants"] if p["is_active"]]
        assert on_turn == ([state["active_participant_id"]] if has_turn else [])
        assert (state["active_participant_id"] is not None) == bool(has_turn)


@law
def test_an_expired_clock_is_empty_and_only_who_has_a_clock_can_expire(plan: Plan) -> None:
    for transition in history(plan):
        session = transition.session
        for participant in session.participants:
            if participant.has_expired:
                assert session.mode in BANK_MODES | {Mode.PER_CYCLE}
                assert participant.remaining_ms == 0 or session.mode is Mode.PER_CYCLE
        assert not session.is_flagged or (session.mode is Mode.GLOBAL and not session.clock_ms)


# --- many more -----------------------------------------------------------------------------------

LAWS = [test for name, test in sorted(globals().items()) if hasattr(test, "hypothesis")]


@pytest.mark.long
@pytest.mark.parametrize("test", LAWS, ids=lambda test: test.__name__)
def test_the_law_holds_for_many_more_sessions(test: Any) -> None:
    MANY(given(plans())(test.hypothesis.inner_test))()


# --- where participants come and leave -------------------------------------------------------------

TRUE_WITH_VISITS = (
    test_a_refused_command_might_as_well_not_have_been_sent,
    test_a_state_read_back_is_the_state_written,
    test_a_step_ends_with_the_state_of_its_last_transition,
    test_a_switch_at_the_deadline_is_too_late_and_one_a_millisecond_earlier_is_not,
    test_an_expired_clock_is_empty_and_only_who_has_a_clock_can_expire,
    test_an_expiry_happens_at_its_deadline_and_not_a_millisecond_earlier,
    test_an_instant_before_the_last_change_counts_as_that_of_the_last_change,
    test_equal_arguments_give_equal_answers,
    test_every_transition_is_one_version_and_one_event,
    test_it_does_not_matter_by_how_many_steps_what_is_due_is_settled,
    test_it_does_not_matter_when_or_how_often_an_expiry_is_noticed,
    test_no_number_of_a_state_is_negative_or_a_fraction,
    test_running_time_is_charged_exactly_once,
    test_the_deadline_is_the_start_of_the_cycle_and_what_remained_then,
    test_the_instants_of_a_session_never_go_back,
)


@pytest.mark.parametrize("test", TRUE_WITH_VISITS, ids=lambda test: test.__name__)
def test_the_law_holds_where_participants_come_and_leave(test: Any) -> None:
    settings(FEW, max_examples=25)(given(plans_with_visits())(test.hypothesis.inner_test))()


@FEW
@given(plans_with_visits())
def test_whoever_comes_or_leaves_moves_no_clock_and_no_other(plan: Plan) -> None:
    for before, transition, _ in moves(plan):
        if transition.type not in VISITS:
            continue
        after = transition.session
        assert before.active_participant == after.active_participant
        known = {p.participant_id for p in before.participants}
        stayed = [p for p in after.participants if p.participant_id in known]
        assert stayed == [p for p in before.participants if p in stayed]
        same = {"participants": (), "active": None, "version": 0, "updated_at_ms": 0, "metadata": {}}
        assert structs.replace(after, **same) == structs.replace(before, **same)
        if before.status is Status.RUNNING:
            assert after.deadline_ms == before.deadline_ms


@FEW
@given(plans_with_visits())
def test_of_the_seats_the_limits_always_hold(plan: Plan) -> None:
    for transition in history(plan):
        session = transition.session
        seats = session.participants
        assert len({p.participant_id for p in seats}) == len(seats)
        assert seats or session.mode in (Mode.GLOBAL, Mode.COUNT_UP)
        if session.mode is Mode.PER_GROUP:
            banks = {(p.group_id, p.budget_ms, p.remaining_ms, p.has_expired) for p in seats}
            assert len(banks) == len({p.group_id for p in seats})


@FEW
@given(plans_with_visits())
def test_without_its_annotations_a_session_goes_the_same_way(plan: Plan) -> None:
    plan = plan.forwards()
    without = Plan(plan.spec, tuple(each for each in plan.commands if each.name != "annotate"))
    end_ms = max((command.at_ms for command in plan.commands), default=T0)

    def way(of: Plan) -> list[tuple[str, Session]]:
        told = history(of)
        # What the last command makes due at once happens with the next one, be that an annotation.
        told += settled(told[-1].session, end_ms).transitions
        return [
            (t.type, structs.replace(t.session, version=0, metadata={}))
            for t in told
            if t.type != "annotated"
        ]

    assert way(plan) == way(without)


OF_VISITS = (
    test_whoever_comes_or_leaves_moves_no_clock_and_no_other,
    test_of_the_seats_the_limits_always_hold,
    test_without_its_annotations_a_session_goes_the_same_way,
)


@pytest.mark.long
@pytest.mark.parametrize("test", [*TRUE_WITH_VISITS, *OF_VISITS], ids=lambda test: test.__name__)
def test_the_law_holds_for_many_more_who_come_and_leave(test: Any) -> None:
    MANY(given(plans_with_visits())(test.hypothesis.inner_test))()
