"""What a player may do by itself: plain calls with instants."""

import pytest
from hypothesis import given

from lockstep.access import Access, Scope
from lockstep.errors import Forbidden, InvalidStateTransition, LockstepError
from lockstep.rules.state import BANK_MODES, Mode, OnTimeout, Session, Status
from tests.support import settled_rules as engine
from tests.support.fuzzing import examples
from tests.support.plans import Plan, moves, plans
from tests.support.sessions_under_test import (
    LAPS,
    T0,
    TEAMS,
    A,
    B,
    C,
    active,
    pending,
    remaining,
    running,
)
from tests.support.settled_rules import guarded

SWITCH = guarded(engine.switch, *Access(Scope.PLAY, subject=A.upper()).guards)


def reason(session: Session, now_ms: int = T0 + 500, rule: engine.Rule = SWITCH) -> str:
    """Why the switch is forbidden; empty where it is made."""
    try:
        rule(session, now_ms)
    except Forbidden as forbidden:
        found: str = forbidden.details["reason"]
        return found
    return ""


def test_a_player_hands_its_turn_on() -> None:
    session = SWITCH(running(60_000, 60_000, increment_ms=2_000), T0 + 4_000).session
    assert (active(session), remaining(session)) == (B, (58_000, 60_000))
    assert reason(session) == "turn"


@pytest.mark.parametrize(
    "alone",
    [
        running(60_000),
        running(60_000, mode=Mode.PER_GROUP, groups=("red",)),
        running(None, mode=Mode.PER_CYCLE, time_per_cycle_ms=10_000),
        running(None, mode=Mode.GLOBAL, total_time_ms=60_000),
    ],
    ids=lambda session: session.mode.value,
)
def test_a_player_never_hands_the_turn_to_itself(alone: Session) -> None:
    assert reason(alone) == "turn"
    host = guarded(engine.switch, *Access(Scope.CONTROL).guards)
    assert active(host(alone, T0 + 500).session) == A


def test_when_nobody_else_has_time_a_players_turn_stays_with_it() -> None:
    session = engine.switch(running(60_000, 1_000), T0).session
    session = engine.settle(session, T0 + 1_000).session  # B has run out
    session = engine.switch(session, T0 + 2_000).session
    assert (active(session), remaining(session)) == (A, (60_000, 0))
    assert reason(session, T0 + 3_000) == "turn"


def test_within_a_group_a_player_hands_the_turn_to_a_member() -> None:
    session = SWITCH(running(60_000, 60_000, 60_000, **TEAMS), T0 + 500).session
    assert active(session) == B


def test_a_lap_is_ones_own_also_alone() -> None:
    session = SWITCH(running(None, **LAPS), T0 + 500).session
    assert (active(session), session.lap_count) == (A, 1)
    session = SWITCH(running(None, None, **LAPS), T0 + 500).session
    assert (active(session), session.lap_count) == (B, 1)
    assert reason(session) == "turn"


def test_without_participants_it_is_no_players_turn() -> None:
    assert reason(running(**LAPS)) == "turn"
    assert reason(running(mode=Mode.GLOBAL, total_time_ms=60_000)) == "turn"


def test_a_turn_that_has_passed_at_its_deadline_is_nobodys_to_end() -> None:
    session = running(1_000, 60_000, on_timeout=OnTimeout.ADVANCE)
    assert reason(session, T0 + 999) == ""
    assert reason(session, T0 + 1_000) == "turn"


def test_what_is_not_running_is_told_as_such_but_only_to_whose_turn_it_is() -> None:
    paused = engine.pause(running(60_000, 60_000), T0 + 100).session
    for session in (pending(60_000, 60_000), paused, engine.complete(paused, T0 + 200).session):
        with pytest.raises(InvalidStateTransition):
            SWITCH(session, T0 + 500)
    other = guarded(engine.switch, *Access(Scope.PLAY, subject=C).guards)
    assert reason(paused, rule=other) == "turn"


@given(plans())
@examples(100)
def test_a_player_can_do_nothing_but_end_its_own_turn(plan: Plan) -> None:
    """Whatever has happened: the turn is another's then, and nobody has time that it had not before."""
    for before, _, _ in moves(plan):
        for participant in before.participants:
            rule = guarded(engine.switch, *Access(Scope.PLAY, subject=participant.participant_id).guards)
            try:
                step = rule(before, before.updated_at_ms)
            except LockstepError:
                continue
            after = step.session
            assert before.status is Status.RUNNING
            assert step.transitions[-1].type == "switched"
            if before.mode is not Mode.COUNT_UP:
                assert after.active_participant is not None
                assert after.active_participant.participant_id != participant.participant_id
            for was, now in zip(before.participants, after.participants, strict=True):
                gift_ms = before.increment_ms if was.group_id == participant.group_id else 0
                if before.mode in BANK_MODES:
                    assert was.remaining_ms is not None
                    assert now.remaining_ms is not None
                    assert now.remaining_ms <= was.remaining_ms + gift_ms
