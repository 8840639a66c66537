"""The service that loads, settles, decides and commits, over a broker where others come in between."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from broker.memory import MemoryBroker
from broker.redis import RedisBroker
from lockstep import sessions
from lockstep.changes import Changed, Context
from lockstep.contract import Broker, Commit, Outcome
from lockstep.errors import (
    BrokerUnavailable,
    Conflict,
    EventsGone,
    InvalidStateTransition,
    PreconditionFailed,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    StateCorrupt,
)
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.rules import state_json
from lockstep.rules.state import Session, Status
from lockstep.rules.state_json import iso
from lockstep.rules.steps import Step
from lockstep.session_list import LOADED_AT_ONCE, MAX_LISTED_BYTES, SessionList
from lockstep.sessions import Sessions
from lockstep.wire import heads
from tests.support import settled_rules as engine
from tests.support.brokers import Ears, YieldingBroker
from tests.support.commits import commit_of, new_id, next_epoch
from tests.support.loop_time import LoopTime
from tests.support.redis_server import RedisServer
from tests.support.sessions import spec, told

HOUR_MS = 3_600_000
T0_MS = 1_704_067_200_000
GIVE_UP_S = sessions.GIVE_UP_S


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up because the machine is slow."""
    monkeypatch.setattr(sessions, "GIVE_UP_S", 60.0)


@pytest.fixture
def as_impatient_as_it_is(_patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "GIVE_UP_S", GIVE_UP_S)


class OfferedBroker(MemoryBroker):
    """Remembers what it is offered, in the order it came."""

    def __init__(self) -> None:
        super().__init__()
        self.offered: list[Commit] = []

    async def commit(self, commit: Commit) -> Outcome:
        self.offered.append(commit)
        return await super().commit(commit)


class CountingBroker(MemoryBroker):
    """Counts the bytes of the states that are loaded whole."""

    loaded_bytes = 0

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        states = await super().load(session_ids, at_most_bytes)
        self.loaded_bytes += sum(len(each) for each in states if each is not None)
        return states

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        states = await MemoryBroker.load(self, session_ids)
        return [state and state[: heads.BEGINNING_BYTES] for state in states]


@asynccontextmanager
async def service(
    broker: Broker | None = None, lifetimes: Lifetimes | None = None
) -> AsyncIterator[Sessions]:
    broker = broker or YieldingBroker()
    await broker.start(Ears())
    yield Sessions(broker, lifetimes or Lifetimes(), Metrics())
    await broker.close()


async def running(service: Sessions, mode: str = "per_participant", **fields: Any) -> Session:
    session = (await service.create(spec(mode, **fields))).session
    return (await service.apply(session.session_id, engine.start)).session


async def store(broker: Broker, step: Step) -> Session:
    """A session put there as it is, whatever instants it tells of."""
    commit, session = commit_of(broker, None, step)
    assert await broker.commit(commit) is Outcome.APPLIED
    return session


async def began(broker: Broker, ago_ms: int, mode: str = "per_participant", **fields: Any) -> Session:
    """A session that was started some time ago, and that nobody has looked at since."""
    at_ms = broker.now_ms() - ago_ms
    step = engine.create(spec(mode, **fields), next_epoch(), at_ms)
    return await store(broker, step.followed_by(engine.start(step.session, at_ms)))


async def read(service: Sessions, session_id: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(await service.read(session_id))
    return stored


# --- many at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 5])
async def test_fifty_switches_at_once_are_fifty_versions(processes: int) -> None:
    async with service(broker := YieldingBroker()) as first:
        services = [first, *(Sessions(broker, Lifetimes(), Metrics()) for _ in range(processes - 1))]
        before = await running(first, seats=3)
        steps = await asyncio.gather(
            *(services[turn % processes].apply(before.session_id, engine.switch) for turn in range(50))
        )
        assert sorted(step.session.version for step in steps) == list(range(3, 53))
        after = await read(first, before.session_id)
        assert after["version"] == 52
        events = await told(first, before.session_id)
        assert [event["version"] for event in events] == list(range(1, 53))
        assert sum(each["cycle_count"] for each in after["participants"]) == 50


async def test_what_an_answer_said_is_what_the_history_says() -> None:
    async with service(broker := YieldingBroker()) as first:
        second = Sessions(broker, Lifetimes(), Metrics())
        before = await running(first)
        steps = await asyncio.gather(
            *(each.apply(before.session_id, engine.switch) for each in (first, second) * 10)
        )
        events = {event["version"]: event for event in await told(first, before.session_id)}
        for step in steps:
            active = step.session.active_participant
            assert active is not None
            changes = events[step.session.version]["changes"]
            assert changes["active_participant_id"] == active.participant_id
            assert changes["commit"] == step.session.commit


async def test_of_ten_creations_at_once_one_wins() -> None:
    async with service() as sessions_:
        body = spec()
        outcomes = await asyncio.gather(*(sessions_.create(body) for _ in range(10)), return_exceptions=True)
        won = [each.session for each in outcomes if isinstance(each, Changed)]
        assert len(won) == 1
        assert sum(isinstance(each, SessionExists) for each in outcomes) == 9
        assert await sessions_.read(body.session_id) == state_json.to_json(won[0])


async def test_a_second_create_leaves_the_first_untouched() -> None:
    async with service() as sessions_:
        before = await running(sessions_)
        with pytest.raises(SessionExists, match=before.session_id):
            await sessions_.create(spec(session_id=before.session_id))
        assert await sessions_.read(before.session_id) == state_json.to_json(before)


async def test_a_later_creation_of_an_id_has_a_greater_epoch() -> None:
    async with service() as sessions_:
        first = (await sessions_.create(spec())).session
        await asyncio.sleep(0.002)
        await sessions_.delete(first.session_id)
        second = (await sessions_.create(spec(session_id=first.session_id))).session
        assert second.epoch > first.epoch
        assert len(second.epoch) == 13
        assert int(second.epoch[:9], 36) == second.created_at_ms


async def test_each_commit_has_a_name_of_its_own() -> None:
    async with service() as sessions_:
        before = await running(sessions_)
        names = {before.commit}
        for _ in range(20):
            step = await sessions_.apply(before.session_id, engine.switch)
            assert len(step.session.commit) == 8
            names.add(step.session.commit)
        assert len(names) == 21


async def test_a_double_click_switches_once() -> None:
    async with service() as sessions_:
        before = await running(sessions_)
        seen = before.participants[0].participant_id

        def rule(session: Session, now_ms: int) -> Step:
            return engine.switch(session, now_ms, expected_participant_id=seen)

        outcomes = await asyncio.gather(
            *(sessions_.apply(before.session_id, rule) for _ in range(5)), return_exceptions=True
        )
        assert sum(isinstance(each, Changed) for each in outcomes) == 1
        assert sum(isinstance(each, Conflict) for each in outcomes) == 4
        assert (await read(sessions_, before.session_id))["version"] == before.version + 1


# --- settle first --------------------------------------------------------------------------------


async def test_a_command_on_a_due_session_settles_first() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        step = await sessions_.apply(session.session_id, engine.switch)
        assert [each.type for each in step.transitions] == ["flagged", "switched"]
        flagged, switched = (await told(sessions_, session.session_id))[2:]
        assert flagged["at"] == iso(session.deadline_ms)
        assert (flagged["version"], switched["version"]) == (3, 4)
        assert step.transitions[-1].ended_expired == session.participants[0].participant_id


async def test_a_read_of_a_due_session_settles_it_once() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        reads = await asyncio.gather(*(sessions_.read(session.session_id) for _ in range(20)))
        assert len(set(reads)) == 1
        after = json.loads(reads[0])
        assert (after["version"], after["deadline_ms"]) == (3, None)
        assert after["participants"][0]["has_expired"] is True
        assert after["updated_at"] == iso(session.deadline_ms)


async def test_a_read_of_a_session_that_is_not_due_commits_nothing() -> None:
    async with service(broker := OfferedBroker()) as sessions_:
        session = await running(sessions_)
        offered = len(broker.offered)
        assert await sessions_.read(session.session_id) == state_json.to_json(session)
        assert (await sessions_.settle(session.session_id)).transitions == ()
        assert len(broker.offered) == offered


async def test_a_refusal_still_commits_what_fell_due() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000, on_timeout="expire")
        with pytest.raises(InvalidStateTransition) as refused:
            await sessions_.apply(session.session_id, engine.switch)
        assert refused.value.message == (
            f"Session {session.session_id} not running (current status: expired)"
        )
        raw = (await broker.load([session.session_id]))[0]
        assert raw is not None
        stored = state_json.from_json(raw)
        assert (stored.version, stored.status) == (3, Status.EXPIRED)


async def test_a_refusal_of_a_session_that_is_not_due_commits_nothing() -> None:
    async with service(broker := OfferedBroker()) as sessions_:
        session = await running(sessions_)
        offered = len(broker.offered)
        with pytest.raises(InvalidStateTransition):
            await sessions_.apply(session.session_id, engine.resume)
        assert len(broker.offered) == offered


async def test_a_settled_expiry_and_its_command_are_one_commit() -> None:
    async with service(broker := OfferedBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        broker.offered.clear()
        await sessions_.apply(session.session_id, engine.pause, Context("anna", "r-1"))
        (commit,) = broker.offered
        assert commit.due_ms == session.deadline_ms
        assert commit.prolongs
        flagged, paused = map(json.loads, commit.events)
        assert (flagged["type"], paused["type"]) == ("flagged", "paused")
        assert "actor" not in flagged
        assert (paused["actor"], paused["request_id"]) == ("anna", "r-1")


async def test_what_happens_by_itself_prolongs_nothing() -> None:
    async with service(broker := OfferedBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        broker.offered.clear()
        await sessions_.settle(session.session_id)
        (commit,) = broker.offered
        assert commit.due_ms == session.deadline_ms
        assert not commit.prolongs


async def test_more_than_500_expiries_go_in_several_commits_and_others_have_their_turn() -> None:
    log: list[str | int] = []

    class Watched(MemoryBroker):
        async def commit(self, commit: Commit) -> Outcome:
            log.append(len(commit.events))
            return await super().commit(commit)

    async def be_there() -> None:
        while True:
            log.append("turn")
            await asyncio.sleep(0)

    async with service(broker := Watched()) as sessions_:
        session = await began(broker, 1_700_500, "per_cycle", time_per_cycle_ms=1_000)
        log.clear()
        others = asyncio.create_task(be_there())
        after = await read(sessions_, session.session_id)
        others.cancel()
        commits = [place for place, entry in enumerate(log) if entry != "turn"]
        sizes = [log[place] for place in commits]
        assert sizes[:3] == [500, 500, 500]
        # A slow machine may see some more fall due meanwhile.
        assert sum(int(size) for size in sizes) >= 1_700
        assert all(int(size) <= 500 for size in sizes)
        for earlier, later in pairwise(commits):
            assert "turn" in log[earlier:later]
        assert after["version"] == 2 + sum(int(size) for size in sizes)
        versions = [each["version"] for each in await told(sessions_, session.session_id)]
        assert versions[-1] >= after["version"]
        assert versions == list(range(versions[-1] - 999, versions[-1] + 1))


async def test_a_command_is_applied_after_more_than_500_expiries() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, 1_200_500, "per_cycle", time_per_cycle_ms=1_000)
        step = await sessions_.apply(session.session_id, engine.pause)
        assert step.session.status is Status.PAUSED
        types = [each["type"] for each in await told(sessions_, session.session_id)]
        assert types[-1] == "paused"
        assert set(types[:-1]) <= {"advanced", "created", "started"}


async def test_settling_for_longer_than_two_seconds_is_not_losing(as_impatient_as_it_is: None) -> None:
    """SESSION_BUSY says that others were faster, and that nothing was applied."""

    loop_time = LoopTime()

    class Slow(MemoryBroker):
        """A commit takes 0.3 s, and nothing else any time at all."""

        def now_ms(self, session_id: str | None = None) -> int:
            return T0_MS

        async def commit(self, commit: Commit) -> Outcome:
            await loop_time.pass_s(0.3)
            return await super().commit(commit)

    async with service(broker := Slow()) as sessions_:
        session = await began(broker, 4_000_500, "per_cycle", time_per_cycle_ms=1_000)
        assert (await read(sessions_, session.session_id))["version"] == 4_002
        assert loop_time.passed_s > 2


# --- losing --------------------------------------------------------------------------------------


async def test_a_conflict_is_decided_again_on_the_new_state_at_a_fresh_instant() -> None:
    seen: list[tuple[int, int]] = []

    class Overtaken(MemoryBroker):
        """Somebody else switches just before the first commit it is offered."""

        overtaken_by: Sessions | None = None

        async def commit(self, commit: Commit) -> Outcome:
            other, self.overtaken_by = self.overtaken_by, None
            if other is not None:
                await other.apply(commit.session_id, engine.switch)
                await asyncio.sleep(0.005)
            return await super().commit(commit)

    def rule(session: Session, now_ms: int) -> Step:
        seen.append((session.version, now_ms))
        return engine.switch(session, now_ms)

    async with service(broker := Overtaken()) as sessions_:
        before = await running(sessions_)
        broker.overtaken_by = Sessions(broker, Lifetimes(), Metrics())
        step = await sessions_.apply(before.session_id, rule)
        assert step.session.version == 4
        (first_version, first_ms), (second_version, second_ms) = seen
        assert (first_version, second_version) == (2, 3)
        assert second_ms > first_ms


async def test_after_two_seconds_of_losing_the_session_is_busy(as_impatient_as_it_is: None) -> None:
    class Busy(MemoryBroker):
        losing = False

        async def commit(self, commit: Commit) -> Outcome:
            if self.losing:
                await loop_time.pass_s(0.01)
            return Outcome.CONFLICT if self.losing else await super().commit(commit)

    async with service(broker := Busy()) as sessions_:
        before = await running(sessions_)
        broker.losing = True
        loop_time = LoopTime()
        with pytest.raises(SessionBusy) as busy:
            await sessions_.apply(before.session_id, engine.switch)
        assert 2 <= loop_time.passed_s < 2.02
        assert (busy.value.status, busy.value.code) == (503, "SESSION_BUSY")
        assert busy.value.retry_after_s
        broker.losing = False
        assert await sessions_.read(before.session_id) == state_json.to_json(before)
        assert (await sessions_.apply(before.session_id, engine.switch)).session.version == 3


async def test_the_wrong_time_is_tried_again() -> None:
    class Doubting(MemoryBroker):
        doubts = 3

        async def commit(self, commit: Commit) -> Outcome:
            self.doubts -= 1
            return Outcome.WRONG_TIME if self.doubts >= 0 else await super().commit(commit)

    async with service(broker := Doubting()) as sessions_:
        session = (await sessions_.create(spec())).session
        broker.doubts = 3
        assert (await sessions_.apply(session.session_id, engine.start)).session.version == 2


async def test_a_creation_that_is_always_at_the_wrong_time_is_given_up(as_impatient_as_it_is: None) -> None:
    class Elsewhen(MemoryBroker):
        async def commit(self, commit: Commit) -> Outcome:
            return Outcome.WRONG_TIME

    async with service(Elsewhen()) as sessions_:
        with pytest.raises((SessionBusy, BrokerUnavailable)):
            async with asyncio.timeout(60):
                await sessions_.create(spec())


async def test_a_session_that_is_busy_does_not_hold_up_another() -> None:
    class Stuck(MemoryBroker):
        stuck_id = ""
        let_go: asyncio.Event

        async def commit(self, commit: Commit) -> Outcome:
            if commit.session_id == self.stuck_id:
                await self.let_go.wait()
            return await super().commit(commit)

    async with service(broker := Stuck()) as sessions_:
        broker.let_go = asyncio.Event()
        stuck, others = await running(sessions_), [await running(sessions_) for _ in range(20)]
        broker.stuck_id = stuck.session_id
        waiting = asyncio.create_task(sessions_.apply(stuck.session_id, engine.switch))
        async with asyncio.timeout(10):
            for other in others:
                await sessions_.apply(other.session_id, engine.switch)
        assert not waiting.done()
        broker.let_go.set()
        assert (await waiting).session.version == 3


# --- what a refused sender is told ---------------------------------------------------------------


async def test_a_conflict_carries_the_current_state() -> None:
    async with service() as sessions_:
        session = await running(sessions_)
        with pytest.raises(Conflict) as conflict:
            await sessions_.apply(session.session_id, engine.expecting(engine.switch, version=1))
        assert conflict.value.details == {"state": json.loads(state_json.to_json(session))}
        with pytest.raises(PreconditionFailed) as failed:
            await sessions_.apply(
                session.session_id, engine.expecting(engine.switch, tags=frozenset({'"other-1"'}))
            )
        assert failed.value.details == {"state": json.loads(state_json.to_json(session))}


async def test_a_conflict_carries_the_state_with_what_fell_due() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        with pytest.raises(Conflict) as conflict:
            await sessions_.apply(session.session_id, engine.expecting(engine.switch, version=2))
        current = await read(sessions_, session.session_id)
        assert current["version"] == 3
        assert conflict.value.details == {"state": current}


async def test_commands_of_no_session_are_told_so() -> None:
    async with service() as sessions_:
        missing = new_id()
        for call in (
            sessions_.read(missing),
            sessions_.settle(missing),
            sessions_.apply(missing, engine.start),
            sessions_.publish(missing, b"{}"),
            sessions_.events(missing, None, None),
        ):
            with pytest.raises(SessionNotFound, match=f"^Session {missing} not found$"):
                await call
        await sessions_.delete(missing)


# --- a state that cannot be read -----------------------------------------------------------------


GOOD_HEAD = '{{"session_id":"{}","epoch":"0lqtw8xc0abcd","version":7,"commit":"abcdefgh","deadline_ms":1,'


async def spoiled(broker: Broker, raw: str) -> str:
    """A session whose stored bytes are these."""
    commit, session = commit_of(broker, None, engine.create(spec(), next_epoch(), broker.now_ms()))
    spoiled = raw.format(session.session_id).encode()
    assert await broker.commit(replace(commit, state=spoiled)) is Outcome.APPLIED
    return session.session_id


@pytest.mark.parametrize(
    "raw",
    [
        "garbage",
        "[]",
        "null",
        "7",
        '"a string"',
        "{{}}",
        '{{"session_id":"{}"}}',
        GOOD_HEAD,
        GOOD_HEAD + '"sync_mode":"per_participant"}}',
        GOOD_HEAD + '"sync_mode":"per_moon","clock":null,"participants":[]}}',
        GOOD_HEAD + '"sync_mode":"per_participant","clock":null,"participants":5}}',
        GOOD_HEAD + '"sync_mode":"per_participant","clock":null,"participants":[5]}}',
    ],
)
async def test_a_state_that_cannot_be_read_is_told_and_logged_once(
    raw: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session_id = await spoiled(broker, raw)
        before = await broker.load([session_id])
        caplog.set_level(logging.INFO, logger="lockstep")
        for _ in range(3):
            with pytest.raises(StateCorrupt):
                await sessions_.read(session_id)
            with pytest.raises(StateCorrupt):
                await sessions_.apply(session_id, engine.start)
        (record,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
        assert vars(record)["session_id"] == session_id
        assert await broker.load([session_id]) == before


async def test_a_state_that_cannot_be_read_can_be_deleted_and_created_anew() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session_id = await spoiled(broker, "garbage")
        await sessions_.delete(session_id)
        session = (await sessions_.create(spec(session_id=session_id))).session
        assert await sessions_.read(session_id) == state_json.to_json(session)


@pytest.mark.parametrize(
    "raw",
    [
        '{{"session_id":"{0}","epoch":"0lqtw8xc0abcd","version":"x"}}',
        '{{"session_id":"{0}","epoch":"0lqtw8xc0abcd","version":1,"commit":"short","deadline_ms":null}}',
        '{{"session_id":"{0}","epoch":"0lqtw8xc0abcd"}}',
        '{{"session_id":"{0}","epoch":"0lqtw8xc","version":1}}',
        '{{"session_id":"{0}","epoch":"0LQTW8XC0ABCD","version":1}}',
        '{{"session_id":"{0}"}}',
        GOOD_HEAD,
        GOOD_HEAD.replace("{}", "00000000-0000-4000-8000-0000000000ff"),
        "garbage{0}",
    ],
)
@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_whatever_is_stored_of_a_session_is_gone_when_it_is_deleted(
    kind: str, raw: str, redis_server: RedisServer
) -> None:
    redis = RedisBroker(redis_server.url, f"{uuid4()}-", "all", allow_eviction=False, metrics=Metrics())
    async with service(broker := redis if kind == "redis" else YieldingBroker()) as sessions_:
        session_id = await spoiled(broker, raw)
        await sessions_.delete(session_id)
        assert await broker.load([session_id]) == [None]


async def test_a_state_that_cannot_be_read_does_not_spoil_the_list() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        good = (await sessions_.create(spec())).session
        await spoiled(broker, "garbage")
        listed, _ = await SessionList(broker).page(None, 10, (0, ""))
        assert [json.loads(each)["session_id"] for each in listed] == [good.session_id]
        listed, _ = await SessionList(broker).page(Status.PENDING, 10, (0, ""))
        assert [json.loads(each)["session_id"] for each in listed] == [good.session_id]


# --- history -------------------------------------------------------------------------------------


def replayed(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The state that the changes lead to, the first event bringing all of it."""
    current: dict[str, Any] = {}
    for event in events:
        changes = dict(event["changes"])
        moved = changes.pop("participants", [])
        if event["type"] == "created":
            current["participants"] = moved
        else:
            seats = {each["participant_id"]: each for each in current["participants"]}
            for each in moved:
                seats[each["participant_id"]].update(each)
        current |= changes
    return current


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "per_participant", "increment_ms": 2_000},
        {"mode": "per_cycle", "time_per_cycle_ms": 20_000},
        {"mode": "global", "total_time_ms": 100_000},
        {"mode": "count_up", "max_time_ms": 100_000},
    ],
    ids=lambda fields: fields["mode"],
)
async def test_replaying_the_events_gives_the_state(fields: dict[str, Any]) -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, ago_ms=61_000, **fields)
        # Its first two versions were one commit, of which only the last has a name.
        for rule in (
            engine.switch,
            engine.switch,
            engine.pause,
            engine.resume,
            engine.switch,
            engine.complete,
        ):
            await sessions_.apply(session.session_id, rule)
        events = await told(sessions_, session.session_id)
        assert replayed(events) == await read(sessions_, session.session_id)


async def test_events_go_on_after_a_version() -> None:
    async with service() as sessions_:
        session = await running(sessions_)
        await sessions_.apply(session.session_id, engine.pause)
        for since, versions in ((0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (99, [])):
            page = await sessions_.events(session.session_id, since, session.epoch)
            assert (page.epoch, page.next_since) == (session.epoch, None)
            assert [json.loads(each)["version"] for each in page.events] == versions


async def test_events_settle_first() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        assert [each["type"] for each in await told(sessions_, session.session_id)][-1] == "flagged"


async def test_events_that_are_not_kept_any_more_are_gone() -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        session = await began(broker, 1_100_500, "per_cycle", time_per_cycle_ms=1_000)
        current = await read(sessions_, session.session_id)
        await sessions_.apply(session.session_id, engine.pause)
        oldest = (await told(sessions_, session.session_id))[0]["version"]
        assert oldest > 100
        with pytest.raises(EventsGone):
            await sessions_.events(session.session_id, oldest - 2, None)
        page = await sessions_.events(session.session_id, oldest - 1, current["epoch"])
        assert json.loads(page.events[0])["version"] == oldest


async def test_events_of_another_epoch_are_gone() -> None:
    async with service() as sessions_:
        first = await running(sessions_)
        await sessions_.delete(first.session_id)
        second = (await sessions_.create(spec(session_id=first.session_id))).session
        with pytest.raises(EventsGone) as gone:
            await sessions_.events(first.session_id, 0, first.epoch)
        assert gone.value.status == 410
        page = await sessions_.events(first.session_id, 0, second.epoch)
        assert (page.epoch, len(page.events)) == (second.epoch, 1)


async def test_an_event_tells_who_and_in_which_request_where_known() -> None:
    async with service() as sessions_:
        session = (await sessions_.create(spec(), Context("anna", "r-1"))).session
        await sessions_.apply(session.session_id, engine.start)
        created, started = await told(sessions_, session.session_id)
        assert (created["actor"], created["request_id"]) == ("anna", "r-1")
        assert not {"actor", "request_id"} & started.keys()


async def test_changes_name_only_what_moved() -> None:
    async with service() as sessions_:
        session = await running(sessions_, seats=3)
        await sessions_.apply(session.session_id, engine.pause)
        created, started, paused = (each["changes"] for each in await told(sessions_, session.session_id))
        assert len(created["participants"]) == 3
        first = session.participants[0].participant_id
        assert started["participants"] == [{"participant_id": first, "is_active": True}]
        assert {"status", "version", "commit", "deadline_ms", "cycle_started_at"} <= paused.keys()
        assert not {"session_id", "epoch", "sync_mode", "metadata", "active_participant_id"} & paused.keys()


# --- the list ------------------------------------------------------------------------------------


async def all_pages(broker: Broker, status: Status | None, limit: int) -> list[str]:
    found: list[str] = []
    place: tuple[int, str] | None = (0, "")
    while place is not None:
        page, place = await SessionList(broker).page(status, limit, place)
        assert len(page) <= limit
        assert len(page) == limit or place is None
        found += [json.loads(raw)["session_id"] for raw in page]
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_the_list_goes_through_all_sessions_of_a_status_once(limit: int) -> None:
    async with service(broker := YieldingBroker()) as sessions_:
        pending, in_progress = set(), set()
        for place in range(7):
            session = (await sessions_.create(spec())).session
            if place % 2:
                await sessions_.apply(session.session_id, engine.start)
                in_progress.add(session.session_id)
            else:
                pending.add(session.session_id)
        for status, expected in (
            (Status.PENDING, pending),
            (Status.RUNNING, in_progress),
            (Status.CANCELLED, set()),
            (None, pending | in_progress),
        ):
            found = await all_pages(broker, status, limit)
            assert len(found) == len(expected)
            assert set(found) == expected


async def test_the_list_tells_states_as_stored() -> None:
    async with service(broker := OfferedBroker()):
        session = await began(broker, ago_ms=90_000)
        broker.offered.clear()
        listed, place = await SessionList(broker).page(Status.RUNNING, 10, (0, ""))
        assert listed == [state_json.to_json(session)]
        assert place is None
        assert broker.offered == []


async def test_a_page_of_the_list_is_bounded_in_bytes_and_none_is_left_out() -> None:
    """States of 1,000 participants among small ones."""
    async with service(broker := CountingBroker()) as sessions_:
        expected = set()
        for place in range(30):
            seats = 1000 if place % 3 == 0 else 2
            expected.add((await sessions_.create(spec(seats=seats))).session.session_id)
        for status in (None, Status.PENDING):
            found = []
            position: tuple[int, str] | None = (0, "")
            while position is not None:
                broker.loaded_bytes = 0
                page, position = await SessionList(broker).page(status, 100, position)
                size = sum(map(len, page))
                assert size <= MAX_LISTED_BYTES or len(page) == 1
                assert broker.loaded_bytes <= size + LOADED_AT_ONCE * 300_000
                found += [json.loads(raw)["session_id"] for raw in page]
            assert len(found) == len(expected)
            assert set(found) == expected
        broker.loaded_bytes = 0
        assert await SessionList(broker).page(Status.RUNNING, 100, (0, "")) == ([], None)
        assert broker.loaded_bytes == 0


# --- how long ------------------------------------------------------------------------------------


async def test_a_session_is_kept_as_long_as_its_status_says() -> None:
    async with service(broker := OfferedBroker()) as sessions_:

        async def kept_ms(rule: engine.Rule, session: Session) -> int:
            await sessions_.apply(session.session_id, rule)
            return broker.offered[-1].lapses_at_ms - broker.offered[-1].now_ms

        session = (await sessions_.create(spec())).session
        assert broker.offered[-1].lapses_at_ms - broker.offered[-1].now_ms == 24 * HOUR_MS
        await sessions_.apply(session.session_id, engine.start)
        commit = broker.offered[-1]
        assert commit.deadline_ms is not None
        assert commit.lapses_at_ms == commit.deadline_ms + 24 * HOUR_MS
        assert await kept_ms(engine.pause, session) == 7 * 24 * HOUR_MS
        assert await kept_ms(engine.complete, session) == HOUR_MS
        without_deadline = (await sessions_.create(spec("count_up"))).session
        assert await kept_ms(engine.start, without_deadline) == 48 * HOUR_MS
        assert await kept_ms(engine.switch, without_deadline) == 48 * HOUR_MS
        cancelled = (await sessions_.create(spec())).session
        assert await kept_ms(engine.cancel, cancelled) == HOUR_MS


async def test_a_flagged_session_is_kept_two_days_from_its_last_command() -> None:
    async with service(broker := OfferedBroker()) as sessions_:
        session = await began(broker, ago_ms=90_000)
        await sessions_.settle(session.session_id)
        assert heads.read_head(broker.offered[-1].state)
        await sessions_.apply(
            session.session_id,
            lambda session, now_ms: engine.adjust(
                session, now_ms, delta_ms=1_000, target=session.participants[1].participant_id
            ),
        )
        commit = broker.offered[-1]
        assert commit.prolongs
        assert commit.lapses_at_ms == commit.now_ms + 48 * HOUR_MS


async def test_lifetimes_are_settings() -> None:
    broker = OfferedBroker()
    async with service(broker, Lifetimes(pending_ms=1_000)) as sessions_:
        await sessions_.create(spec())
        assert broker.offered[-1].lapses_at_ms == broker.offered[-1].now_ms + 1_000


# --- epochs --------------------------------------------------------------------------------------


def test_an_epoch_is_thirteen_characters_and_later_ones_compare_greater() -> None:
    instants = [0, 1, 35, 36, 1_704_067_200_000, 1_704_067_200_001, 36**9 - 1]
    epochs = [sessions.new_epoch(instant) for instant in instants]
    assert all(len(epoch) == 13 for epoch in epochs)
    assert epochs == sorted(epochs)
    assert [int(epoch[:9], 36) for epoch in epochs] == instants
    assert len({sessions.new_epoch(0) for _ in range(50)}) > 40
