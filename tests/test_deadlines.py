"""A clock that runs out is told: once, whoever prompts for it, and also where nobody watches."""

import asyncio
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from broker.memory import MemoryBroker
from lockstep.contract import Outcome
from lockstep.errors import BrokerUnavailable, SessionNotFound
from lockstep.lifetimes import Lifetimes
from lockstep.live.deadlines import Deadlines
from lockstep.metrics import Metrics
from lockstep.rules import state_json
from lockstep.rules.state import Session
from lockstep.rules.state_json import iso
from lockstep.sessions import Sessions
from lockstep.wire import payloads
from tests.support import settled_rules as engine
from tests.support.brokers import PATIENCE_S, Ears
from tests.support.commits import commit_of, creation, new_id, next_epoch
from tests.support.fake_time import FakeTime
from tests.support.sessions import spec, told


class FakeBroker:
    """Real time unless it is told another, clocks that differ as it is told, and as many due sessions."""

    agenda_turns = 1

    def __init__(self, source: Any = time) -> None:
        self.clock = MemoryBroker(source)
        # How far the clock of a session is ahead of the first store's.
        self.ahead_ms: dict[str | None, int] = {}
        self.sessions_due: list[tuple[int, str]] = []
        self.failures = 0
        self.sweeps = 0

    def now_ms(self, session_id: str | None = None) -> int:
        return self.clock.now_ms() + self.ahead_ms.get(session_id, 0)

    async def due(self, ahead_ms: int, limit: int, turn: int | None = None) -> list[tuple[int, str]]:
        self.sweeps += 1
        if self.sweeps <= self.failures:
            raise BrokerUnavailable
        return [each for each in self.sessions_due if each[0] <= self.now_ms(each[1]) + ahead_ms][:limit]

    async def lapse(self, limit: int, turn: int | None = None) -> int:
        return 0


class FakeSessions:
    """Remembers who was prompted for, and when."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.prompted: list[tuple[str, int]] = []
        self.refusal: Exception | None = None
        self._moved = asyncio.Event()

    async def settle(self, session_id: str) -> None:
        self.prompted.append((session_id, self.broker.now_ms()))
        self._moved.set()
        if self.refusal is not None:
            raise self.refusal

    @property
    def ids(self) -> list[str]:
        return [session_id for session_id, _ in self.prompted]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._moved.clear()
                await self._moved.wait()


@asynccontextmanager
async def timers(
    sweeping: bool = False, source: Any = time
) -> AsyncIterator[tuple[Deadlines, FakeSessions, FakeBroker]]:
    broker = FakeBroker(source)
    sessions = FakeSessions(broker)
    deadlines = Deadlines(broker, sessions)  # type: ignore[arg-type]
    if sweeping:
        deadlines.start()
    yield deadlines, sessions, broker
    await deadlines.close()


@asynccontextmanager
async def process(count: int = 1) -> AsyncIterator[tuple[MemoryBroker, Sessions, Ears, list[Deadlines]]]:
    """As many `Deadlines` as processes would have, on one broker; none of them sweeps yet."""
    broker, ears = MemoryBroker(), Ears()
    await broker.start(ears)
    sessions = [Sessions(broker, Lifetimes(), Metrics()) for _ in range(count)]
    deadlines = [Deadlines(broker, each) for each in sessions]
    yield broker, sessions[0], ears, deadlines
    for each in deadlines:
        await each.close()
    await broker.close()


async def runs_out(broker: MemoryBroker, in_ms: int) -> Session:
    """A running session whose clock of one second runs out so soon."""
    at_ms = broker.now_ms() - 1_000 + in_ms
    step = engine.create(spec("global", total_time_ms=1_000, on_timeout="flag"), next_epoch(), at_ms)
    commit, session = commit_of(broker, None, step.followed_by(engine.start(step.session, at_ms)))
    assert await broker.commit(commit) is Outcome.APPLIED
    return session


def flags(ears: Ears) -> list[str]:
    """The sessions of `runs_out` whose clock was told to have run out, in the order of telling."""
    published = [payloads.read_published(payload, 0) for payload in ears.published]
    return [
        each.session_id
        for each in published
        if isinstance(each, payloads.Update) and each.head is not None and each.head.order[1] == 3
    ]


# --- timers --------------------------------------------------------------------------------------


async def test_what_is_armed_is_prompted_once_and_not_before_it_is_due() -> None:
    async with timers() as (deadlines, sessions, broker):
        due_ms = {f"s{place}": broker.now_ms() + 30 + 10 * place for place in (3, 0, 4, 1, 2)}
        for session_id, deadline_ms in due_ms.items():
            deadlines.arm(session_id, deadline_ms)
        deadlines.arm("last", broker.now_ms() + 150)
        await sessions.until(lambda: "last" in sessions.ids)
        assert sessions.ids == ["s0", "s1", "s2", "s3", "s4", "last"]
        for session_id, at_ms in sessions.prompted[:5]:
            assert at_ms >= due_ms[session_id]


async def test_what_is_due_already_is_prompted_at_once() -> None:
    async with timers() as (deadlines, sessions, broker):
        deadlines.arm("far", broker.now_ms() + 60_000)
        deadlines.arm("late", broker.now_ms() - 5_000)
        await sessions.until(lambda: sessions.ids == ["late"])


async def test_armed_twice_for_the_same_instant_is_prompted_once() -> None:
    async with timers() as (deadlines, sessions, broker):
        at_ms = broker.now_ms() + 20
        for _ in range(3):
            deadlines.arm("s", at_ms)
        deadlines.arm("last", at_ms + 60)
        await sessions.until(lambda: "last" in sessions.ids)
        assert sessions.ids == ["s", "last"]


async def test_armed_anew_is_not_prompted_at_the_instant_before() -> None:
    async with timers() as (deadlines, sessions, broker):
        now_ms = broker.now_ms()
        deadlines.arm("later", now_ms + 20)
        deadlines.arm("never", now_ms + 20)
        deadlines.arm("sooner", now_ms + 60_000)
        deadlines.arm("later", now_ms + 120)
        deadlines.arm("never", None)
        deadlines.arm("sooner", now_ms + 40)
        deadlines.arm("middle", now_ms + 80)
        await sessions.until(lambda: "later" in sessions.ids)
        assert sessions.ids == ["sooner", "middle", "later"]


async def test_armed_anew_after_it_was_prompted_is_prompted_again() -> None:
    async with timers() as (deadlines, sessions, broker):
        for turn in range(1, 6):
            deadlines.arm("s", broker.now_ms() + 10)
            await sessions.until(lambda turn=turn: len(sessions.prompted) == turn)


async def test_a_clock_that_moves_its_deadline_ten_thousand_times_is_prompted_once() -> None:
    async with timers() as (deadlines, sessions, broker):
        now_ms = broker.now_ms()
        for turn in range(10_000):
            deadlines.arm("s", now_ms + 600_000 - turn)
            deadlines.arm(f"other {turn % 100}", now_ms + 600_000 + turn)
        for turn in range(100):
            deadlines.arm(f"other {turn}", None)
        deadlines.arm("s", broker.now_ms() + 20)
        await sessions.until(lambda: sessions.prompted)
        deadlines.arm("last", broker.now_ms() + 20)
        await sessions.until(lambda: "last" in sessions.ids)
        assert sessions.ids == ["s", "last"]


async def test_nothing_is_prompted_after_close() -> None:
    async with timers(sweeping=True) as (deadlines, sessions, broker), timers() as (others, seen, _):
        deadlines.arm("s", broker.now_ms() + 30)
        broker.sessions_due = [(broker.now_ms() - 1_000, "swept")]
        await deadlines.close()
        others.arm("last", broker.now_ms() + 700)
        await seen.until(lambda: seen.prompted)
        assert sessions.prompted == []


# --- the sweep -----------------------------------------------------------------------------------


async def test_the_sweep_prompts_for_what_nobody_armed() -> None:
    async with timers(sweeping=True) as (_, sessions, broker):
        long_due_ms, soon_ms = broker.now_ms() - 60_000, broker.now_ms() + 300
        broker.sessions_due = [(long_due_ms, "long due"), (soon_ms, "soon")]
        await sessions.until(lambda: {"long due", "soon"} <= set(sessions.ids))
        assert min(at_ms for session_id, at_ms in sessions.prompted if session_id == "soon") >= soon_ms


async def test_the_sweep_goes_on_after_the_broker_was_away() -> None:
    async with timers(sweeping=True) as (_, sessions, broker):
        broker.failures = 1
        broker.sessions_due = [(broker.now_ms() - 1_000, "s")]
        await sessions.until(lambda: sessions.prompted)
        assert broker.sweeps >= 2


async def test_a_prompt_that_failed_is_made_again_by_the_sweep() -> None:
    async with timers(sweeping=True) as (_, sessions, broker):
        sessions.refusal = BrokerUnavailable()
        broker.sessions_due = [(broker.now_ms() - 1_000, "s")]
        await sessions.until(lambda: len(sessions.prompted) >= 2)


async def test_a_session_deleted_meanwhile_is_nothing_to_talk_of(caplog: pytest.LogCaptureFixture) -> None:
    async with timers() as (deadlines, sessions, broker):
        sessions.refusal = SessionNotFound("s")
        deadlines.arm("s", broker.now_ms())
        await sessions.until(lambda: sessions.prompted)
        await asyncio.sleep(0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_sweep_finds_what_is_due_before_it_was_armed_for() -> None:
    """Whoever armed it may have missed a change; the store knows better."""
    async with timers(sweeping=True) as (deadlines, sessions, broker):
        deadlines.arm("s", broker.now_ms() + 3_600_000)
        broker.sessions_due = [(broker.now_ms() - 1_000, "s")]
        await sessions.until(lambda: sessions.prompted)


async def test_each_session_is_prompted_by_its_own_clock() -> None:
    fake = FakeTime()
    async with timers(source=fake) as (deadlines, sessions, broker):
        broker.ahead_ms = {"ahead": 3_600_000, "behind": -3_600_000}
        now_ms = broker.now_ms()
        deadlines.arm("ahead", now_ms + 3_600_040)
        deadlines.arm("behind", now_ms - 3_600_000 + 20)
        deadlines.arm("first", now_ms + 60)
        for place, session_id in enumerate(("behind", "ahead", "first")):
            assert len(sessions.prompted) == place
            fake.passed_s += 0.0205
            await sessions.until(lambda place=place: len(sessions.prompted) > place)
            assert sessions.ids[place:] == [session_id]


async def test_a_session_whose_clock_was_set_back_is_prompted_when_it_is_due_by_it() -> None:
    fake = FakeTime()
    async with timers(source=fake) as (deadlines, sessions, broker):
        due_ms = broker.now_ms() + 20
        deadlines.arm("s", due_ms)
        deadlines.arm("last", due_ms + 20)
        broker.ahead_ms["s"] = -200
        while len(sessions.prompted) < 2:
            fake.passed_s += 0.01
            await asyncio.sleep(0.01)
        assert sessions.ids == ["last", "s"]
        assert sessions.prompted[1][1] >= due_ms + 200


async def test_the_sweep_prompts_for_a_session_whose_clock_was_set_forward() -> None:
    async with timers(sweeping=True) as (deadlines, sessions, broker):
        deadline_ms = broker.now_ms() + 3_600_000
        deadlines.arm("s", deadline_ms)
        broker.ahead_ms["s"] = 7_200_000
        broker.sessions_due = [(deadline_ms, "s")]
        await sessions.until(lambda: sessions.prompted)


# --- with real sessions --------------------------------------------------------------------------


async def test_an_expiry_is_published_though_nobody_reads() -> None:
    async with process() as (broker, sessions, ears, (deadlines,)):
        session = await runs_out(broker, in_ms=100)
        deadlines.arm(session.session_id, session.deadline_ms)
        await ears.until(lambda ears: flags(ears))
        head = json.loads(ears.published[-1])
        assert head["timestamp"] >= (session.deadline_ms or 0)
        assert head["state"]["updated_at"] == iso(session.deadline_ms)
        assert [each["type"] for each in await told(sessions, session.session_id)][2:] == ["flagged"]


async def test_an_expiry_that_all_processes_prompt_for_happens_once() -> None:
    async with process(4) as (broker, sessions, ears, all_deadlines):
        running = [await runs_out(broker, in_ms=100) for _ in range(20)]
        for deadlines in all_deadlines:
            deadlines.start()
            for session in running:
                deadlines.arm(session.session_id, session.deadline_ms)
        await ears.until(lambda ears: len(flags(ears)) >= 20)
        # Each has a turn more than its prompts need.
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(flags(ears)) == sorted(session.session_id for session in running)
        for session in running:
            types = [each["type"] for each in await told(sessions, session.session_id)]
            assert types[2:] == ["flagged"]


async def test_a_session_that_nobody_watches_is_settled_by_the_sweep() -> None:
    async with process() as (broker, _, ears, (deadlines,)):
        session = await runs_out(broker, in_ms=-5_000)
        deadlines.start()
        await ears.until(lambda ears: flags(ears) == [session.session_id])
        assert await broker.due(0, 10) == []


async def test_the_sweep_announces_what_has_lapsed() -> None:
    async with process() as (broker, _, ears, (deadlines,)):
        commit, session = creation(broker, new_id(), lapses_in_ms=100)
        assert await broker.commit(commit) is Outcome.APPLIED
        deadlines.start()
        await ears.until(lambda ears: len(ears.published) == 2)
        end = json.loads(ears.published[1])
        assert (end["type"], end["epoch"]) == ("SESSION_DELETED", session.epoch)


async def spoiled(broker: MemoryBroker) -> Session:
    """A session that is due, and whose stored state breaks off."""
    session = await runs_out(broker, in_ms=-60_000)
    commit, _ = commit_of(broker, session, engine.pause(session, session.updated_at_ms))
    broken_off = state_json.to_json(session)[:250]
    assert await broker.commit(replace(commit, state=broken_off, deadline_ms=1)) is Outcome.APPLIED
    return session


async def test_a_due_session_that_cannot_be_read_does_not_keep_the_others_waiting() -> None:
    async with process() as (broker, _, ears, (deadlines,)):
        await spoiled(broker)
        deadlines.start()
        for _ in range(3):
            session = await runs_out(broker, in_ms=-1_000)
            await ears.until(lambda ears, wanted=session.session_id: wanted in flags(ears))


async def test_a_due_session_that_cannot_be_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lockstep")
    async with process() as (broker, _, ears, (deadlines,)):
        spoiled_id = (await spoiled(broker)).session_id
        deadlines.start()
        for _ in range(3):
            session = await runs_out(broker, in_ms=-1_000)
            await ears.until(lambda ears, wanted=session.session_id: wanted in flags(ears))
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and vars(record).get("session_id") == spoiled_id
    ]
    assert len(lines) == 1


async def test_deadlines_that_are_put_off_again_and_again_take_no_more_memory() -> None:
    """As each switch does with a clock of hours, of which the next deadline is later than the last."""
    async with timers() as (deadlines, sessions, broker):
        now_ms = broker.now_ms()
        deadlines.arm("soon", now_ms + 300)
        tracemalloc.start()
        for later_ms in range(20_000):
            deadlines.arm("far", now_ms + 3_600_000 + later_ms)
        taken_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken_bytes < 100_000
        await sessions.until(lambda: sessions.ids == ["soon"])
