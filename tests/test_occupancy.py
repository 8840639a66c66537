"""How many are inside, counted over all processes."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import broker.counters as counters_module
from broker.redis import RedisBroker
from lockstep.contract import Affected, Attendance
from lockstep.metrics import Metrics
from tests.support.load import eventually
from tests.support.redis_faults import lose_its_disk
from tests.support.redis_server import Proxy, RedisServer

LIMIT = 10


class Nobody:
    """Listens to nothing."""

    def on_published(self, payload: bytes) -> None:
        pass

    def on_relayed(self, session_id: str, payload: bytes) -> None:
        pass

    def on_presence(
        self, session_id: str, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None: ...

    def on_gap(self, affected: Affected | None = None) -> None:
        pass


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@contextlib.asynccontextmanager
async def processes(url: str, number: int = 3) -> AsyncIterator[list[RedisBroker]]:
    brokers = [RedisBroker(url, "", "all", allow_eviction=False, metrics=Metrics()) for _ in range(number)]
    for broker in brokers:
        await broker.start(Nobody())
    try:
        yield brokers
    finally:
        for broker in brokers:
            await broker.close()


def counted(redis: RedisServer, key: str = "room") -> list[int]:
    """The counts that Redis has, without the processes'."""
    with redis.client as client:
        return sorted(int(count) for count in client.hvals(f"inside:{key}"))


async def counts(redis: RedisServer, expected: list[int], key: str = "room") -> None:
    async def complaint() -> str:
        found = await asyncio.to_thread(counted, redis, key)
        return "" if found == sorted(expected) else f"{found} is not {sorted(expected)}"

    await eventually(complaint, 5, "Redis does not count what is inside")


@pytest.mark.parametrize("seed", range(5))
async def test_as_many_are_let_in_as_there_is_room_whoever_knocks_and_leaves(
    redis: RedisServer, seed: int
) -> None:
    chance = random.Random(seed)
    async with processes(redis.url) as brokers:
        inside = [0, 0, 0]

        async def visit(at: int) -> None:
            if await brokers[at].enter("room", LIMIT):
                inside[at] += 1
                assert sum(inside) <= LIMIT
                await asyncio.sleep(chance.random() / 100)
                inside[at] -= 1
                brokers[at].leave("room", LIMIT)

        await asyncio.gather(*(visit(chance.randrange(3)) for _ in range(500)))
        await counts(redis, [])
        # Of a crowd that stays, exactly as many as there is room for.
        crowd = [chance.randrange(3) for _ in range(3 * LIMIT)]
        entered = await asyncio.gather(*(brokers[at].enter("room", LIMIT) for at in crowd))
        assert sum(entered) == LIMIT
        held = [
            sum(is_in for which, is_in in zip(crowd, entered, strict=True) if which == at) for at in range(3)
        ]
        await counts(redis, [count for count in held if count])


@pytest.mark.parametrize("seed", range(5))
async def test_lost_connections_lose_and_invent_nobody(redis: RedisServer, seed: int) -> None:
    chance = random.Random(seed)
    async with processes(redis.url) as brokers:
        inside = [0, 0, 0]
        faults_to_come = 10

        async def come_and_go(at: int) -> None:
            rounds_left = 20  # when the faults are over
            while rounds_left:
                rounds_left -= not faults_to_come
                if await brokers[at].enter("room", 1000):
                    inside[at] += 1
                if inside[at] and chance.random() < 0.5:
                    inside[at] -= 1
                    brokers[at].leave("room", 1000)
                await asyncio.sleep(0)

        visitors = [asyncio.create_task(come_and_go(at)) for at in range(3) for _ in range(5)]
        while faults_to_come:
            await asyncio.sleep(0.05)  # visits go on between the faults
            with redis.client as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")
            faults_to_come -= 1
        await asyncio.gather(*visitors)
        await counts(redis, [count for count in inside if count])
        for at, broker in enumerate(brokers):
            for _ in range(inside[at]):
                broker.leave("room", 1000)
        await counts(redis, [])


async def test_who_left_over_a_lost_connection_is_counted_out_over_the_next(redis: RedisServer) -> None:
    async with Proxy(redis.port) as proxy, processes(proxy.url, 1) as (broker,):
        assert await broker.enter("room", LIMIT)
        lost: list[bytes] = []

        def lose(data: bytes) -> bytes | None:
            if lost or b"HDEL" not in data:
                return data
            lost.append(data)
            return None

        proxy.on_request = lose
        broker.leave("room", LIMIT)
        await counts(redis, [])
        assert lost


async def test_a_redis_that_lost_its_data_is_told_who_is_inside(redis: RedisServer) -> None:
    async with processes(redis.url) as brokers:
        for broker in brokers:
            assert await broker.enter("room", LIMIT)
            assert await broker.enter("room", LIMIT)
        with redis.client as client:
            client.flushall()
        await counts(redis, [2, 2, 2])


async def test_who_is_sent_away_leaves_no_trace(redis: RedisServer) -> None:
    async with processes(redis.url, 2) as (one, other):
        assert await one.enter("room", 2)
        assert await other.enter("room", 2)
        assert not await one.enter("room", 2)  # and it knows of the other one from now on
        knock = asyncio.create_task(one.enter("room", 2))
        await asyncio.sleep(0)  # it knocks
        one.leave("room", 2)  # too late for that one
        assert not await knock
        await counts(redis, [1])


@pytest.mark.parametrize("reconnects", [False, True])
async def test_who_comes_and_goes_while_redis_has_no_memory_left_is_counted_afterwards(
    redis: RedisServer, reconnects: bool
) -> None:
    async with processes(redis.url, 2) as (one, other):
        assert await one.enter("room", LIMIT)
        with redis.client as client:
            client.config_set("maxmemory", 1)
        for _ in range(3):
            assert await one.enter("room", LIMIT), "nobody is sent away for want of memory"
            assert await other.enter("room", LIMIT)
        one.leave("room", LIMIT)
        if reconnects:
            with redis.client as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")
            await one.load(["any"])
            await other.load(["any"])
        with redis.client as client:
            client.config_set("maxmemory", 0)
        await counts(redis, [3, 3])


async def test_counts_that_redis_refused_are_not_added_to_those_it_still_has(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters_module, "SLICE", 1)
    async with processes(redis.url, 1) as (broker,):
        for room in 3 * ["room", "other room"]:
            assert await broker.enter(room, LIMIT)
        lose_its_disk(redis)
        with redis.client as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        await broker.load(["any"])
        broker.leave("room", LIMIT)
        with redis.client as client:
            client.config_set("stop-writes-on-bgsave-error", "no")
        await counts(redis, [2])
        await counts(redis, [3], "other room")


async def test_who_leaves_when_a_count_was_refused_just_now_is_counted_out(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(redis.url, 1) as (broker,):
        for _ in range(3):
            assert await broker.enter("room", LIMIT)
        connection = await broker._link.connected()
        call = connection.call

        def refused(_: "asyncio.Future[object]") -> None:
            monkeypatch.setattr(connection, "call", call)
            redis.client.config_set("stop-writes-on-bgsave-error", "no")
            broker.leave("room", LIMIT)

        def call_and_see(*command: Any) -> "asyncio.Future[Any]":
            reply = call(*command)
            if command[0] == "HSET":
                reply.add_done_callback(refused)
            return reply

        lose_its_disk(redis)
        monkeypatch.setattr(connection, "call", call_and_see)
        await broker._counters.send_all(connection)
        await counts(redis, [2])


async def test_who_enters_while_all_counts_are_said_again_is_counted(redis: RedisServer) -> None:
    async with processes(redis.url, 1) as (broker,):
        assert await broker.enter("room", LIMIT)
        entering = [asyncio.create_task(broker.enter("room", LIMIT)) for _ in range(3)]
        await asyncio.sleep(0)  # they are on their way
        await broker._counters.send_all(await broker._link.connected())
        assert all(await asyncio.gather(*entering))
        await counts(redis, [4])


async def test_who_leaves_while_all_counts_are_said_again_is_counted_out(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters_module, "SLICE", 1)
    rooms = ["room", "other room"]
    async with processes(redis.url, 1) as (broker,):
        for room in 2 * rooms:
            assert await broker.enter(room, LIMIT)
        saying = asyncio.create_task(broker._counters.send_all(await broker._link.connected()))
        await asyncio.sleep(0)  # the first has been said
        for room in rooms:
            broker.leave(room, LIMIT)
        await saying
        assert [await asyncio.to_thread(counted, redis, room) for room in rooms] == [[1], [1]]


async def test_processes_that_have_ended_in_good_order_are_forgotten_in_time(redis: RedisServer) -> None:
    async with processes(redis.url, number=1) as [here]:
        for _ in range(3):
            async with processes(redis.url, number=1) as [passing]:
                assert await passing.enter("room", LIMIT)
                assert await here.enter("room", LIMIT)
                passing.leave("room", LIMIT)
                await eventually_counted(redis, len(here._counters._occupancy.counts))
        assert len(here._counters._others) == 3
        await here._counters.keep()
        assert not here._counters._others
        async with processes(redis.url, number=1) as [other]:
            entered = [await each.enter("room", LIMIT) for _ in range(LIMIT) for each in (here, other)]
            assert sum(entered) == LIMIT - 3


async def eventually_counted(redis: RedisServer, processes: int) -> None:
    async def complaint() -> str:
        counts = await asyncio.to_thread(counted, redis)
        return "" if len(counts) == processes else f"there are counts of {len(counts)} processes"

    await eventually(complaint, 10, "who has ended is still counted")
