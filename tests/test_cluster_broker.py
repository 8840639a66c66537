"""What a Redis Cluster has of its own beside what every broker promises (test_broker.py)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from msgspec import structs

from broker.cluster.broker import ClusterBroker
from broker.keys import PARTITIONS, Keys, partition_of
from broker.store import RedisStore
from lockstep.contract import Attendance, Broker, Charge, Outcome
from lockstep.idempotency import Idempotent, Replay
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.sessions import NOBODY, Sessions
from tests.support import settled_rules as engine
from tests.support.brokers import Ears, comes_true, started
from tests.support.commits import commit_of, created, creation, fell_due, new_id
from tests.support.redis_cluster import RedisCluster
from tests.support.sessions import spec

ONE = Attendance(1, 1_700_000_000_000)


def broker_of(cluster: RedisCluster, prefix: str, routing: str = "all") -> ClusterBroker:
    return ClusterBroker(cluster.url, prefix, routing, allow_eviction=False, metrics=Metrics())


@pytest.fixture
def prefix() -> str:
    return f"{uuid4()}-"


@asynccontextmanager
async def processes(
    cluster: RedisCluster, prefix: str, *session_ids: str, number: int = 2
) -> AsyncIterator[list[tuple[ClusterBroker, Ears]]]:
    async with AsyncExitStack() as stack:
        brokers = [broker_of(cluster, prefix) for _ in range(number)]
        yield [(each, await stack.enter_async_context(started(each, *session_ids))) for each in brokers]


async def refusal(broker: Broker) -> str:
    """Why it does not start; empty if it does."""
    try:
        async with started(broker):
            return ""
    except ValueError as error:
        return str(error)


def ids_of_all_partitions() -> list[str]:
    """One session for each."""
    found: dict[int, str] = {}
    while len(found) < PARTITIONS:
        session_id = new_id()
        found.setdefault(partition_of(session_id), session_id)
    return list(found.values())


# --- what is agreed on ---------------------------------------------------------------------------


async def test_a_process_with_another_number_of_partitions_does_not_start(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with started(broker_of(redis_cluster, prefix)):
        with redis_cluster.client as client:
            assert client.get(Keys(prefix, 0).partitions) == str(PARTITIONS).encode()
            client.set(Keys(prefix, 0).partitions, 32)
    assert await refusal(broker_of(redis_cluster, prefix)) == (
        "broker: sessions there are in 32 partitions, not in 64: choose another --prefix"
    )


async def test_a_process_that_routes_otherwise_does_not_start(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with started(broker_of(redis_cluster, prefix)):
        assert await refusal(broker_of(redis_cluster, prefix, "targeted")) == (
            "broker: other processes route all: --routing must be the same"
        )


async def test_what_is_in_the_way_in_any_partition_is_named_when_a_process_starts(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    key = Keys(prefix, 41).deadlines
    with redis_cluster.client as client:
        client.set(key, "another's")
    assert await refusal(broker_of(redis_cluster, prefix)) == (
        f"broker: the key {key} of Redis is a string, not a sorted set: choose another --prefix"
    )


def test_a_prefix_with_a_brace_is_refused(redis_cluster: RedisCluster) -> None:
    with pytest.raises(ValueError, match="--prefix must have none"):
        broker_of(redis_cluster, "my{own}-")


# --- all partitions as one -----------------------------------------------------------------------


async def test_the_list_of_all_partitions_is_in_one_order_and_its_cursor_holds(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with started(broker := broker_of(redis_cluster, prefix)):
        ids = [new_id() for _ in range(150)]
        commits = [
            creation(broker, each, lapses_in_ms=60_000 + place % 50)[0] for place, each in enumerate(ids)
        ]
        assert set(await asyncio.gather(*map(broker.commit, commits))) == {Outcome.APPLIED}
        expected = sorted((each.lapses_at_ms, each.session_id) for each in commits)
        for limit in (1, 7, 40, 150, 200):
            seen: list[tuple[int, str]] = []
            while page := await broker.page(seen[-1] if seen else (0, ""), limit):
                assert len(page) == min(limit, len(expected) - len(seen))
                seen += page
            assert seen == expected


async def test_a_session_that_comes_or_goes_moves_no_other_one_in_the_list(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with started(broker := broker_of(redis_cluster, prefix)):
        for place in range(20):
            await created(broker, new_id(), lapses_in_ms=60_000 + place * 1_000)
        page, before = await broker.page((0, ""), 10), await broker.page((0, ""), 20)
        await created(broker, new_id(), lapses_in_ms=1_000)
        assert await broker.delete(page[3][1])
        assert page + await broker.page(page[-1], 10) == before


async def test_what_is_due_or_lapses_is_found_once_in_all_turns(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with started(broker := broker_of(redis_cluster, prefix)):
        due = [await fell_due(broker, each, ago_ms=100) for each in ids_of_all_partitions()]
        found = [await broker.due(0, 100, turn) for turn in range(broker.agenda_turns)]
        assert sorted(each for some in found for each in some) == await broker.due(0, 100)
        assert {each for some in found for _, each in some} == {each.session_id for each in due}
        for each in ids_of_all_partitions():
            await created(broker, each, lapses_in_ms=1)
        await asyncio.sleep(0.03)
        assert sum([await broker.lapse(100, turn) for turn in range(broker.agenda_turns)]) == PARTITIONS
        assert await broker.lapse(100) == 0


async def test_states_of_many_partitions_are_loaded_in_the_order_asked_for(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with started(broker := broker_of(redis_cluster, prefix)):
        ids = ids_of_all_partitions()
        for each in ids[1:]:
            await created(broker, each)
        states = await broker.load([*ids, ids[5]])
        assert states[0] is None
        assert [state[15:51].decode() for state in states[1:] if state is not None] == [*ids[1:], ids[5]]
        assert states[-1] == states[5]
        size = sum(len(state) for state in states[:10] if state is not None)
        assert await broker.load(ids, size) == states[:10]


async def test_no_more_bytes_than_asked_for_come_from_all_partitions_together(
    redis_cluster: RedisCluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    load = RedisStore.load

    async def load_and_note(self: RedisStore, *arguments: Any) -> list[bytes | None]:
        states = await load(self, *arguments)
        sizes.extend(len(state or b"") for state in states)
        return states

    async with started(broker := broker_of(redis_cluster, prefix)):
        ids = ids_of_all_partitions()
        for each in ids[1:]:
            await created(broker, each)
        with redis_cluster.client as client:
            client.hset(Keys(prefix, partition_of(ids[0])).state(ids[0]), "is", "no session")
        monkeypatch.setattr(RedisStore, "load", load_and_note)
        for at_most_bytes in (1, 5_000):
            states = await broker.load(ids[1:], at_most_bytes)
            assert sum(sizes) == sum(len(state or b"") for state in states)
            assert len(states) == 1 or 1 < sum(sizes) <= at_most_bytes
            sizes.clear()
        assert (await broker.load(ids, 5_000))[0] is None


# --- counted and present -------------------------------------------------------------------------


async def test_as_many_are_let_in_as_there_is_room_for_in_all_processes(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with processes(redis_cluster, prefix, number=3) as running:
        rooms = [f"session:{new_id()}" for _ in range(6)]
        for room in rooms:
            entered = await asyncio.gather(
                *(broker.enter(room, 5) for broker, _ in running for _ in range(4))
            )
            assert sum(entered) == 5
            counts = [sum(entered[start : start + 4]) for start in (0, 4, 8)]
            for (broker, _), count in zip(running, counts, strict=True):
                for _ in range(count):
                    broker.leave(room, 5)
            with redis_cluster.client as client:
                key = Keys(prefix, partition_of(room)).occupancy(room)

                async def is_empty(key: str = key) -> bool:
                    return not await asyncio.to_thread(client.hgetall, key)

                await comes_true(is_empty)


async def test_what_a_dead_process_let_in_makes_room(redis_cluster: RedisCluster, prefix: str) -> None:
    room = f"session:{new_id()}"
    keys = Keys(prefix, partition_of(room))
    async with started(broker := broker_of(redis_cluster, prefix)):
        with redis_cluster.client as client:
            client.hset(keys.occupancy(room), mapping={"dead": 3, "alive": 1})
            client.set(keys.life_sign("alive"), 1, ex=600)
            assert [await broker.enter(room, 3) for _ in range(3)] == [True, True, False]
            assert set(client.hgetall(keys.occupancy(room))) == {b"alive", broker._process.encode()}


async def test_what_a_commit_is_counted_in_is_counted_with_it(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    session_id, counts = new_id(), []
    async with started(broker := broker_of(redis_cluster, prefix)):
        session = await created(broker, session_id)
        session_charge = Charge(f"switch:{session_id}", 5, 60_000)
        commit, _ = commit_of(broker, session, engine.start(session, broker.now_ms(session_id)))
        commit = structs.replace(
            commit, charge=session_charge, on_counted=lambda count, left_ms: counts.append(count)
        )
        assert await broker.commit(commit) is Outcome.APPLIED
        general = Charge("general:192.0.2.7", 9, 60_000)
        assert [count for count, _ in await broker.spend([general, session_charge])] == [1, 2]
    assert counts == [1]


async def test_who_is_present_in_any_partition_is_heard_and_withdrawn_for_the_dead(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    ids, dead = ids_of_all_partitions()[:5], new_id()
    async with processes(redis_cluster, prefix, *ids) as [(one, _), (other, ears)]:
        for each in ids:
            one.attend(each, "ann", ONE)
        for each in ids:
            await ears.until_present(each, {"ann": ONE})
            assert list((await other.present(each)).values()) == [{"ann": ONE}]
        one.attend(ids[0], "ann", None)
        await ears.until_present(ids[0])
        keys = Keys(prefix, partition_of(ids[1]))
        with redis_cluster.client as client:
            client.hset(keys.presence(ids[1]), f"{dead} ben", "1 1")
            client.hset(keys.presence_of(dead), ids[1], "")
            client.hset(keys.presence_processes, dead, "1")
        await ears.until(lambda ears: (ids[1], dead, None) in ears.presence)
        with redis_cluster.client as client:

            async def is_forgotten() -> bool:
                return not await asyncio.to_thread(client.hexists, keys.presence_processes, dead)

            await comes_true(is_forgotten)


# --- done once -----------------------------------------------------------------------------------


async def test_a_creation_without_an_id_is_made_once_for_its_key(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    async with processes(redis_cluster, prefix) as [(one, _), (other, _)]:
        services = [Sessions(each, Lifetimes(), Metrics()) for each in (one, other)]
        for number in range(10):
            name = ("POST", "/v1/sessions", "", f"key {number}")
            once = Idempotent.of(name, name, b"{}", {}, 60)
            context = structs.replace(NOBODY, idempotent=once)
            unnamed = structs.replace(spec("global", total_time_ms=1_000), session_id="")
            made = await services[number % 2].create(unnamed, context)
            with pytest.raises(Replay) as again:
                await services[1 - number % 2].create(unnamed, context)
            assert again.value.record.session_id == made.session.session_id
        assert len(await one.page((0, ""), 20)) == 10
