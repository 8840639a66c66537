"""What another system, a restored backup or a hand left in the sorted sets stands in nobody's way."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from broker.redis import RedisBroker
from broker.store import LAPSE_GRACE_MS
from lockstep.contract import Commit, EpochTooLow, IdempotencyRecord, Outcome
from lockstep.errors import SessionExists, SessionNotFound
from lockstep.identifiers import epoch_instant_ms
from lockstep.lifetimes import Lifetimes
from lockstep.live.deadlines import SWEEP_LIMIT, Deadlines
from lockstep.live.hub import Hub
from lockstep.metrics import Metrics
from lockstep.rules import state_json
from lockstep.rules.state import Session
from lockstep.rules.steps import Step
from lockstep.sessions import Sessions
from lockstep.wire import payloads
from tests.support import settled_rules as engine
from tests.support.brokers import Ears
from tests.support.commits import ONE_DAY_MS, applied, commit_of, created, new_id, next_epoch
from tests.support.load import eventually
from tests.support.peers import FakePeer
from tests.support.redis_server import RedisServer
from tests.support.sessions import spec
from tests.support.shifted_redis import shim


@asynccontextmanager
async def broker_on(redis: RedisServer) -> AsyncIterator[tuple[RedisBroker, Ears, str]]:
    prefix = f"{uuid.uuid4()}-"
    broker, ears = RedisBroker(redis.url, prefix, "all", allow_eviction=False, metrics=Metrics()), Ears()
    await broker.start(ears)
    try:
        yield broker, ears, prefix
    finally:
        await broker.close()


async def runs_out(broker: RedisBroker, in_ms: int) -> Session:
    at_ms = broker.now_ms() - 1_000 + in_ms
    step = engine.create(spec("global", total_time_ms=1_000, on_timeout="flag"), next_epoch(), at_ms)
    step = replace_id(step)
    commit, session = commit_of(broker, None, step.followed_by(engine.start(step.session, at_ms)))
    assert await broker.commit(commit) is Outcome.APPLIED
    return session


def replace_id(step: Step) -> Step:
    session = replace(step.session, session_id=new_id())
    return Step(session, tuple(replace(each, session=session) for each in step.transitions))


def is_flagged(ears: Ears, session: Session) -> bool:
    heads = [
        update.head
        for payload in ears.published
        if isinstance(update := payloads.read_published(payload, 0), payloads.Update)
    ]
    return any(
        head is not None and head.session_id == session.session_id and head.order[1] == 3 for head in heads
    )


async def test_deadlines_that_are_no_states_own_are_put_right_and_starve_nobody(
    redis_server: RedisServer,
) -> None:
    async with broker_on(redis_server) as (broker, ears, prefix):
        key, now_ms = f"{prefix}deadlines", broker.now_ms()
        far = [await runs_out(broker, in_ms=600_000) for _ in range(3)]
        pending = await created(broker, new_id())
        spoiled = [await runs_out(broker, in_ms=-30_000) for _ in range(3)]
        with redis_server.client as client:
            client.zadd(key, {str(uuid.uuid4()): 1 for _ in range(2 * SWEEP_LIMIT)})
            client.zadd(key, {"nobody": "-inf", b"\xff\xfe": 2, "half": 2.5, "soon": now_ms + 0.5})
            client.zadd(key, {far[0].session_id: 3, far[1].session_id: 3.5, pending.session_id: 3})
            client.zadd(key, {"a list": 4, "no state": 4, "another's": 4})
            client.rpush(f"{prefix}session:a list", "item")
            client.set(f"{prefix}session:no state", "text")
            client.set(f"{prefix}session:another's", state_json.to_json(far[2]))
            for session in spoiled:
                client.setrange(f"{prefix}session:{session.session_id}", 250, b"\x00" * 50)
        deadlines = Deadlines(broker, Sessions(broker, Lifetimes(), Metrics()))
        deadlines.start()
        try:
            session = await runs_out(broker, in_ms=-1_000)
            await ears.until(lambda ears: is_flagged(ears, session))

            async def complaint() -> str:
                with redis_server.client as client:
                    left = dict(client.zrange(key, 0, -1, withscores=True))
                wanted = {each.session_id.encode(): each.deadline_ms for each in far}
                return "" if left == wanted else f"{len(left)}: {list(left.items())[:5]}"

            await eventually(complaint, 20, "what is no state's own is still there")
        finally:
            await deadlines.close()


async def test_lapses_that_are_no_states_own_end_no_session_and_starve_nobody(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_on(redis_server) as (broker, ears, prefix):
        key = f"{prefix}sessions"
        kept = [await created(broker, new_id()) for _ in range(2)]
        lapses = [await lapse_of(redis_server, key, each) for each in kept]
        foreign, junk = new_id(), [str(uuid.uuid4()) for _ in range(100)]
        with redis_server.client as client:
            client.zadd(key, dict.fromkeys([foreign, *junk, "nobody", b"\xff\xfe", "half"], 1.5))
            client.zadd(key, {"never": "-inf", "for ever": "inf"})
            client.zadd(key, {kept[0].session_id: 2})
            client.rpush(f"{prefix}session:{foreign}", "item")
        deadlines = Deadlines(broker, Sessions(broker, Lifetimes(), Metrics()))
        deadlines.start()
        try:
            lapsed = await created(broker, new_id(), lapses_in_ms=1)
            await ears.until(
                lambda ears: any(
                    b"SESSION_DELETED" in each and lapsed.session_id.encode() in each
                    for each in ears.published
                )
            )

            async def complaint() -> str:
                with redis_server.client as client:
                    left = dict(client.zrange(key, 0, -1, withscores=True))
                del left[b"for ever"]
                wanted = {each.session_id.encode() for each in kept}
                return "" if set(left) == wanted else str(list(left.items())[:5])

            await eventually(complaint, 20, "what is no state's own is still there")
            for session, at_ms in zip(kept, lapses, strict=True):
                assert abs(await lapse_of(redis_server, key, session) - at_ms) <= 2
            with redis_server.client as client:
                assert client.lrange(f"{prefix}session:{foreign}", 0, -1) == [b"item"]
            pages = await broker.page((0, ""), 10)
            assert {session_id for _, session_id in pages} == {
                *(each.session_id for each in kept),
                "for ever",
            }
            assert await broker.load([each.session_id for each in kept]) == [
                state_json.to_json(each) for each in kept
            ]
        finally:
            await deadlines.close()
        await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.fixture
def foreign() -> str:
    return new_id()


async def test_a_key_of_another_type_keeps_no_other_session_from_being_repaired(
    redis_server: RedisServer, foreign: str
) -> None:
    async with broker_on(redis_server) as (broker, _, prefix):
        with redis_server.client as client:
            client.hset(f"{prefix}session:{foreign}", "somebody", "else")
        sessions = Sessions(broker, Lifetimes(), Metrics())
        # It hears nothing: only what it reads.
        hub = Hub(broker, sessions, Deadlines(broker, sessions), Metrics())
        try:
            session, beside = await created(broker, new_id()), FakePeer()
            await hub.join(foreign, FakePeer())
            await hub.join(session.session_id, beside)
            session = await applied(broker, session, engine.start)
            hub.on_gap()
            async with asyncio.timeout(20):
                while ("STATE_SYNC", session.version) not in beside.heard:
                    await asyncio.sleep(0.01)
            assert await broker.beginnings([foreign]) == [None]
        finally:
            await hub.close()


async def test_where_a_key_of_another_type_is_there_is_no_session_and_none_is_made(
    redis_server: RedisServer, foreign: str
) -> None:
    async with broker_on(redis_server) as (broker, _, prefix):
        key, sessions = f"{prefix}session:{foreign}", Sessions(broker, Lifetimes(), Metrics())
        with redis_server.client as client:
            client.hset(key, "somebody", "else")
            for ask in (
                lambda: sessions.read(foreign),
                lambda: sessions.apply(foreign, engine.start),
                lambda: sessions.publish(foreign, b'{"type":"NOTE"}'),
                lambda: sessions.events(foreign, None, None),
            ):
                with pytest.raises(SessionNotFound):
                    await ask()
            assert await broker.history(foreign, 0, 1_000) is None
            with pytest.raises(SessionExists):
                await sessions.create(spec(session_id=foreign))
            assert client.hgetall(key) == {b"somebody": b"else"}
            await sessions.delete(foreign)
            assert not client.exists(key)
        session = (await sessions.create(spec(session_id=foreign))).session
        assert await sessions.read(foreign) == state_json.to_json(session)


async def test_epochs_compare_alike_in_every_locale() -> None:
    server = RedisServer(env={"LD_PRELOAD": str(shim("estonian"))})
    try:
        async with broker_on(server) as (broker, _, prefix):
            with server.client as client:
                assert client.eval("return 't' < 'z' and 1 or 0", 0) == 0
                for last, epoch, is_above in (
                    ("0lqtw8xc0aaaa", "0lqtw8xc0aaaz", True),
                    ("0lqtw8xctaaaa", "0lqtw8xczaaaa", True),
                    ("0lqtw8xczaaaa", "0lqtw8xctaaaa", False),
                    ("0lqtw8x9zaaaa", "0lqtw8xa0aaaa", True),
                    ("0lqtw8xa0aaaa", "0lqtw8xa0aaaa", False),
                ):
                    client.set(f"{prefix}epoch", last)
                    step = engine.create(spec(), epoch, broker.now_ms())
                    commit, _ = commit_of(broker, None, step)
                    if is_above:
                        assert await broker.commit(commit) is Outcome.APPLIED
                    else:
                        with pytest.raises(EpochTooLow):
                            await broker.commit(commit)
    finally:
        server.close()


NO_EPOCHS = (
    "",
    "7",
    "-1",
    "1e99",
    "99999999999999",
    "somebody else",
    "0LQTW8XC0AAAA",
    "zzzzzzzzzzzzz",
    b"\xff",
)


@pytest.mark.parametrize("last", NO_EPOCHS)
async def test_what_is_no_epoch_keeps_nobody_from_creating(
    redis_server: RedisServer, last: str | bytes
) -> None:
    async with broker_on(redis_server) as (broker, _, prefix):
        sessions = Sessions(broker, Lifetimes(), Metrics())
        with redis_server.client as client:
            client.set(f"{prefix}epoch", last)
            for _ in range(2):
                created = (await sessions.create(spec())).session
                assert client.get(f"{prefix}epoch") == created.epoch.encode()
                assert abs(epoch_instant_ms(created.epoch) - broker.now_ms()) < 10_000


@pytest.mark.parametrize("last", ["1234567890123", "9999999999999", "y" + 12 * "0"])
async def test_an_epoch_of_a_far_time_keeps_nobody_from_creating(
    redis_server: RedisServer, last: str
) -> None:
    async with broker_on(redis_server) as (broker, _, prefix):
        sessions = Sessions(broker, Lifetimes(), Metrics())
        with redis_server.client as client:
            client.set(f"{prefix}epoch", last)
        # As after a clock that was set back: each is above the last one, and many at once are made, too.
        created = await asyncio.gather(*(sessions.create(spec()) for _ in range(50)))
        epochs = [step.session.epoch for step in created]
        assert len(set(epochs)) == 50
        assert all(len(epoch) == 13 and last < epoch for epoch in epochs)
        for step in created:
            assert await sessions.read(step.session.session_id) == state_json.to_json(step.session)


def lost_creation(broker: RedisBroker) -> tuple[Commit, Commit]:
    """A creation, and the same as it is offered again some time later."""
    commit, _ = commit_of(broker, None, engine.create(spec(), next_epoch(), broker.now_ms()))
    return commit, replace(commit, now_ms=commit.now_ms - 3_000)


async def test_recent_events_are_no_leftovers_of_another_history(redis_server: RedisServer) -> None:
    """As where a key was restored, or removed, by hand."""
    async with broker_on(redis_server) as (broker, _, prefix):
        session = await applied(broker, await created(broker, new_id()), engine.start, engine.pause)
        state_key = f"{prefix}session:{session.session_id}"
        events_key = f"{prefix}events:{session.session_id}"
        state, own = await broker.recent(session.session_id, 10, 100_000)
        assert len(own) == 3

        async def recent_of(*entries: tuple[str, bytes]) -> list[bytes]:
            with redis_server.client as client:
                client.delete(events_key)
                for entry_id, event in entries:
                    client.xadd(events_key, {"event": event}, id=entry_id)
            found, events = await broker.recent(session.session_id, 10, 100_000)
            assert found == state
            return events

        first, second, third = zip(("1-0", "2-0", "3-0"), own, strict=True)
        # Of a history that went on further, those up to the state are its own.
        assert await recent_of(first, second, third, ("4-0", b"later")) == own
        # Whose last event is another's is another's altogether, whether it ends there or not.
        others = (("1-0", b"other"), ("2-0", b"other"), ("3-0", b"other"))
        assert await recent_of(*others) == []
        assert await recent_of(*others, ("4-0", b"other")) == []
        # One that ends before the state's version has not its last.
        assert await recent_of(*others[:2]) == []
        assert await recent_of(first, second) == []
        # What is before a gap was there before.
        assert await recent_of(others[0], third) == [own[2]]
        assert await recent_of(first, ("2-1", b"other"), third) == [own[2]]
        assert await recent_of() == []
        with redis_server.client as client:
            client.delete(state_key)
        assert await broker.recent(session.session_id, 10, 100_000) == (None, [])
        with redis_server.client as client:
            client.hset(state_key, "no", "string")
        assert await broker.recent(session.session_id, 10, 100_000) == (None, [])


async def test_a_creation_whose_answer_was_lost_does_not_come_back_after_its_deletion(
    redis_server: RedisServer,
) -> None:
    async with broker_on(redis_server) as (broker, _, _):
        commit, late = lost_creation(broker)
        assert await broker.commit(commit) is Outcome.APPLIED
        assert await broker.delete(commit.session_id)
        for _ in range(2):
            for again in (commit, late):
                # Of any other answer whoever creates makes it anew, by another epoch or at another instant.
                assert await broker._try_commit(again, is_retry=True) is None
            await created(broker, new_id())
        assert await broker.load([commit.session_id]) == [None]


async def test_a_creation_that_was_certainly_not_made_can_be_made_anew(redis_server: RedisServer) -> None:
    async with broker_on(redis_server) as (broker, _, _):
        commit, late = lost_creation(broker)
        assert await broker._try_commit(late, is_retry=True) is Outcome.WRONG_TIME
        await created(broker, new_id())
        with pytest.raises(EpochTooLow):
            await broker._try_commit(
                replace(commit, record=IdempotencyRecord("key", b"{}", 60_000)), is_retry=True
            )


@pytest.mark.parametrize("score", ["-70000", "-1", "0", "1.5", "-inf", "inf", None])
async def test_a_lapse_that_is_not_the_states_own_spoils_no_expiry(
    redis_server: RedisServer, score: str | None
) -> None:
    async with broker_on(redis_server) as (broker, _, prefix):
        session = await runs_out(broker, in_ms=-1_000)
        key = f"{prefix}session:{session.session_id}"
        with redis_server.client as client:
            if score is None:
                client.zrem(f"{prefix}sessions", session.session_id)
            else:
                client.zadd(f"{prefix}sessions", {session.session_id: score})
            expires_at_ms = client.pexpiretime(key)
            flagged = await applied(broker, session, engine.settle, settled=1, lapses_in_ms=30 * ONE_DAY_MS)
            assert await broker.load([session.session_id]) == [state_json.to_json(flagged)]
            history = await broker.history(session.session_id, flagged.version - 1, 10_000)
            assert history is not None
            assert len(history.events) == 1
            # It prolongs nothing and shortens nothing, but by the ms between two looks at the time.
            assert abs(client.pexpiretime(key) - expires_at_ms) <= 50
            lapses_at_ms = await lapse_of(redis_server, f"{prefix}sessions", session)
            assert client.pexpiretime(key) - lapses_at_ms == LAPSE_GRACE_MS
        assert await broker.lapse(10) == 0


async def lapse_of(redis: RedisServer, key: str, session: Session) -> int:
    with redis.client as client:
        score = client.zscore(key, session.session_id)
    assert score is not None
    return int(score)
