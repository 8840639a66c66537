"""Commits for the tests of brokers, as the service makes them."""

import secrets
import time
from collections.abc import Callable
from uuid import uuid4

from msgspec import structs

from broker.keys import partition_of
from lockstep.contract import MAX_BEHIND_MS, Broker, Commit, Outcome
from lockstep.identifiers import new_epoch
from lockstep.rules import history, state_json
from lockstep.rules.engine import Spec
from lockstep.rules.state import Mode, OnTimeout, Participant, Session
from lockstep.rules.steps import Rule, Step
from lockstep.wire import heads
from tests.support import settled_rules as engine

ONE_DAY_MS = 86_400_000
_MADE_AT_MS = [0]


def next_epoch() -> str:
    """Above those of all creations before, whatever their instants are said to be."""
    # A second ahead: not in the same millisecond as one that a service has just made.
    _MADE_AT_MS.append(max(_MADE_AT_MS.pop() + 1, int(time.time() * 1000) + 1000))
    return new_epoch(_MADE_AT_MS[0])


def spec(session_id: str, mode: Mode = Mode.PER_PARTICIPANT, bank_ms: int = 60_000, **fields: object) -> Spec:
    return Spec(
        session_id=session_id,
        mode=mode,
        on_timeout=OnTimeout.EXPIRE if mode in (Mode.GLOBAL, Mode.COUNT_UP) else OnTimeout.FLAG,
        participants=tuple(Participant(str(uuid4()), place, bank_ms, bank_ms) for place in range(2)),
        **fields,  # type: ignore[arg-type]
    )


def commit_of(
    broker: Broker, before: Session | None, step: Step, *, settled: int = 0, lapses_in_ms: int = ONE_DAY_MS
) -> tuple[Commit, Session]:
    """A commit of the step; the first `settled` of its transitions are expiries."""
    now_ms = broker.now_ms()
    session = structs.replace(step.session, commit=secrets.token_urlsafe(6))
    transitions = (*step.transitions[:-1], structs.replace(step.transitions[-1], session=session))
    commit = Commit(
        session_id=session.session_id,
        expected=heads.beginning(before) if before else b"",
        state=state_json.to_json(session),
        beginning=heads.beginning(session),
        first_version=transitions[0].session.version,
        events=tuple(state_json.dumps(event) for event in history.events(before, transitions)),
        now_ms=now_ms,
        deadline_ms=session.deadline_ms,
        due_ms=transitions[settled - 1].at_ms if settled else None,
        lapses_at_ms=now_ms + lapses_in_ms,
        prolongs=settled < len(transitions),
        not_before_ms=before.updated_at_ms if before else 0,
    )
    return commit, session


def creation(broker: Broker, session_id: str, ago_ms: int = 0, **fields: object) -> tuple[Commit, Session]:
    """The commit of a new session whose instants lie `ago_ms` back."""
    lapses_in_ms = fields.pop("lapses_in_ms", ONE_DAY_MS)
    at_ms = broker.now_ms() - ago_ms
    created = engine.create(spec(session_id, **fields), next_epoch(), at_ms)  # type: ignore[arg-type]
    return commit_of(broker, None, created, lapses_in_ms=lapses_in_ms)  # type: ignore[arg-type]


async def _committed(broker: Broker, decide: Callable[[], tuple[Commit, Session]]) -> Session:
    """Decided again, as by the service, where its instant was over when it came: all had stood still."""
    while True:
        commit, session = decide()
        outcome = await broker.commit(commit)
        was_late = outcome is Outcome.WRONG_TIME and broker.now_ms() - commit.now_ms > MAX_BEHIND_MS
        if not was_late:
            assert outcome is Outcome.APPLIED, outcome
            return session


async def created(broker: Broker, session_id: str, ago_ms: int = 0, **fields: object) -> Session:
    return await _committed(broker, lambda: creation(broker, session_id, ago_ms, **fields))


async def applied(broker: Broker, before: Session, *rules: Rule, ago_ms: int = 0, **how: int) -> Session:
    """One commit of all these rules, one transition each."""

    def decide() -> tuple[Commit, Session]:
        step = Step(before)
        for rule in rules:
            step = step.followed_by(rule(step.session, broker.now_ms() - ago_ms))
        return commit_of(broker, before, step, **how)

    return await _committed(broker, decide)


async def fell_due(broker: Broker, session_id: str, ago_ms: int = 5_000) -> Session:
    """A running session of one second, which was over some time ago and nobody has settled."""
    session = await created(broker, session_id, ago_ms=ago_ms + 1_000, mode=Mode.GLOBAL, total_time_ms=1_000)
    return await applied(broker, session, engine.start, ago_ms=ago_ms + 1_000)


def new_id() -> str:
    return str(uuid4())


def new_id_beside(session_id: str) -> str:
    """One that a store of many parts keeps where it keeps that session."""
    while partition_of(beside := new_id()) != partition_of(session_id):
        pass
    return beside
