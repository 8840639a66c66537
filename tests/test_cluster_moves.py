"""Where a slot is on its way to another master, or has gone there, nothing that was acknowledged is lost."""

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from broker.cluster import partition as partition_module
from broker.cluster.broker import ClusterBroker
from broker.keys import Keys, partition_of, slot_of
from broker.resp import RespConnection
from lockstep.contract import Attendance, Charge, Outcome
from lockstep.errors import BrokerUnavailable
from lockstep.metrics import Metrics
from lockstep.rules import state_json
from lockstep.rules.state import Session
from tests.support import settled_rules as engine
from tests.support.brokers import PATIENCE_S, Ears, comes_true, started
from tests.support.commits import applied, commit_of, created, new_id
from tests.support.redis_cluster import RedisCluster, SlotMove

ONE = Attendance(1, 1_700_000_000_000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """One whose slots move; no replica takes over unasked."""
    cluster = RedisCluster(masters=2, replicas=1, node_timeout_ms=15_000)
    yield cluster
    cluster.close()


@pytest.fixture
def broker(cluster: RedisCluster) -> ClusterBroker:
    return ClusterBroker(cluster.url, f"{uuid4()}-", "all", allow_eviction=False, metrics=Metrics())


def slot_of_session(session_id: str) -> int:
    return slot_of(partition_of(session_id))


def begin_to_move(cluster: RedisCluster, session_id: str) -> SlotMove:
    slot = slot_of_session(session_id)
    return cluster.move(slot, cluster.other_master(cluster.master_of(slot)))


async def stored(broker: ClusterBroker, session_id: str) -> bytes | None:
    (found,) = await broker.load([session_id])
    return found


async def switched(broker: ClusterBroker, session: Session) -> Session:
    return await applied(broker, session, engine.switch)


def is_heard(ears: Ears, session: Session) -> bool:
    text = f'"version":{session.version},"commit":"{session.commit}"'.encode()
    return any(text in payload for payload in ears.published)


async def followed(broker: ClusterBroker, ears: Ears, session: Session) -> Session:
    """One more change, of which is heard, or else is told afterwards that something may have been missed."""
    gaps = ears.gaps
    session = await switched_after_all(broker, session)
    await ears.until(lambda ears: is_heard(ears, session) or ears.gaps > gaps)
    return session


async def test_a_commit_goes_to_where_the_session_has_moved(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    session_id = new_id()
    async with started(broker, session_id) as ears:
        session = await applied(broker, await created(broker, session_id), engine.start)
        for _ in range(2):
            gaps = ears.gaps
            await asyncio.to_thread(begin_to_move(cluster, session_id).finish)
            session = await switched(broker, session)
            assert await stored(broker, session_id) == state_json.to_json(session)
            await ears.until(lambda ears, before=gaps: ears.gaps > before)  # type: ignore[misc]
            session = await followed(broker, ears, session)


async def test_what_is_read_is_found_on_either_side_of_a_move(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    session_id = new_id()
    async with started(broker):
        session = await created(broker, session_id)
        move = begin_to_move(cluster, session_id)
        try:
            assert await stored(broker, session_id) == state_json.to_json(session)
            await asyncio.to_thread(move.move)
            # ASK leads there.
            assert await stored(broker, session_id) == state_json.to_json(session)
            assert await stored(broker, new_id()) is None
        finally:
            await asyncio.to_thread(move.finish)
        assert await stored(broker, session_id) == state_json.to_json(session)


async def test_a_commit_waits_for_a_move_that_is_over_soon(
    cluster: RedisCluster, broker: ClusterBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long it takes here to end the move, which is soon.
    monkeypatch.setattr(partition_module, "RETRIED_FOR_S", 60.0)
    session_id = new_id()
    async with started(broker):
        session = await applied(broker, await created(broker, session_id), engine.start)
        move = begin_to_move(cluster, session_id)
        await asyncio.to_thread(move.move, 1)
        switching = asyncio.create_task(switched(broker, session))
        await asyncio.sleep(0.3)
        assert not switching.done()
        await asyncio.to_thread(move.finish)
        session = await switching
        assert await stored(broker, session_id) == state_json.to_json(session)


async def test_a_commit_is_refused_as_not_applied_where_a_move_takes_longer(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    session_id = new_id()
    async with started(broker):
        session = await applied(broker, await created(broker, session_id), engine.start)
        move = begin_to_move(cluster, session_id)
        try:
            await asyncio.to_thread(move.move, 1)
            commit, _ = commit_of(broker, session, engine.switch(session, broker.now_ms(session_id)))
            began_s = time.monotonic()
            with pytest.raises(BrokerUnavailable) as refused:
                await broker.commit(commit)
            assert refused.value.details == {"outcome": "not_applied"}
            assert time.monotonic() - began_s > 1.5
            # Nobody else has to wait for that.
            other_id = new_id()
            while partition_of(other_id) == partition_of(session_id):
                other_id = new_id()
            await created(broker, other_id)
        finally:
            await asyncio.to_thread(move.finish)
        assert await stored(broker, session_id) == state_json.to_json(session)
        await switched(broker, session)


async def test_counts_and_who_is_present_go_along_with_their_partition(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    session_id = new_id()
    keys = Keys(broker._prefix, partition_of(session_id))
    room = next(name for name in map(str, range(10_000)) if partition_of(name) == partition_of(session_id))
    async with started(broker):
        await created(broker, session_id)
        assert await broker.enter(room, 3)
        broker.attend(session_id, "ann", ONE)
        assert [count for count, _ in await broker.spend([Charge(f"switch:{session_id}", 9, 60_000)])] == [1]
        move = begin_to_move(cluster, session_id)
        await asyncio.to_thread(move.move, 2)
        broker.leave(room, 3)
        broker.attend(session_id, "ben", ONE)
        broker.attend(session_id, "ann", None)
        await asyncio.to_thread(move.finish)
        assert [count for count, _ in await broker.spend([Charge(f"switch:{session_id}", 9, 60_000)])] == [2]

        def is_right() -> bool:
            with cluster.client as client:
                there = [field.partition(b" ")[2] for field in client.hgetall(keys.presence(session_id))]
                return there == [b"ben"] and not client.exists(keys.occupancy(room))

        await comes_true(lambda: asyncio.to_thread(is_right))
        assert [await broker.enter(room, 1) for _ in range(2)] == [True, False]


async def test_who_comes_and_goes_while_a_slot_stays_half_moved_is_told_when_it_is_over(
    cluster: RedisCluster, broker: ClusterBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "RETRIED_FOR_S", 0.2)
    session_id = new_id()
    keys = Keys(broker._prefix, partition_of(session_id))
    other = ClusterBroker(cluster.url, broker._prefix, "all", allow_eviction=False, metrics=Metrics())
    async with started(broker), started(other, session_id) as ears:
        broker.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        move = begin_to_move(cluster, session_id)
        try:
            # Of the keys of one step this one is over, and the others are not.
            await asyncio.to_thread(move.move_these, [keys.presence_processes.encode()])
            broker.attend(session_id, "ben", ONE)
            broker.attend(session_id, "ann", None)
            async with asyncio.timeout(PATIENCE_S):
                while not broker._of(session_id).presence._is_put_off:
                    assert list((await other.present(session_id)).values()) == [{"ann": ONE}]
                    await asyncio.sleep(0.02)
        finally:
            await asyncio.to_thread(move.finish)
        # What was published on the way may have been missed, which is told; then it is read.

        async def only_ben_is_there() -> bool:
            return list((await other.present(session_id)).values()) == [{"ben": ONE}]

        await comes_true(only_ben_is_there)


async def test_a_process_that_connects_anew_while_a_slot_is_on_its_way_still_shows_that_it_lives(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    session_id = new_id()
    partition = broker._of(session_id)
    life_sign = partition.keys.life_sign(broker._process)
    async with started(broker):
        await created(broker, session_id)
        move = begin_to_move(cluster, session_id)
        try:
            await asyncio.to_thread(move.move_these, [life_sign.encode()])
            partition.link.master.link.reset("a test")
            async with asyncio.timeout(PATIENCE_S):
                await partition.link.master.link.connected()
            assert not partition.is_prepared
            assert await partition.link.call("PEXPIRE", life_sign, 5_000)
            await partition.look()
            assert await partition.link.call("PTTL", life_sign) > 5_000
        finally:
            await asyncio.to_thread(move.finish)
        await comes_true(lambda: partition.is_prepared)


async def test_who_left_is_counted_out_once_where_the_old_master_never_answered(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    room = str(uuid4())
    key = Keys(broker._prefix, partition_of(room)).occupancy(room)
    async with started(broker):
        for _ in range(3):
            assert await broker.enter(room, 9)
        partition = broker._partitions[partition_of(room)]
        before, node = partition.link.master, cluster.master_of(slot_of(partition.number))
        (replica,) = cluster.replicas_of(node)
        node.freeze()
        try:
            broker.leave(room, 9)
            await asyncio.to_thread(replica.ask, "CLUSTER", "FAILOVER", "TAKEOVER")
            async with asyncio.timeout(PATIENCE_S):
                while partition.link.master is before or not partition.is_prepared or before.link.is_up:
                    broker._masters.look_soon()
                    await asyncio.sleep(0.02)
            await broker._look()
            assert await partition.link.call("HVALS", key) == [b"2"]
        finally:
            node.thaw()
            await asyncio.to_thread(cluster.wait_until_whole)


async def test_a_partition_that_comes_while_its_master_is_connected_to_is_made_ready_there(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    session_id = new_id()
    partition = broker._of(session_id)
    has_prepared, has_moved, ready_at = asyncio.Event(), asyncio.Event(), list[object]()
    async with started(broker):
        slot = slot_of_session(session_id)
        source = cluster.master_of(slot)
        (there,) = [
            each for each in broker._masters.with_partitions() if partition.number not in each.partitions
        ]
        prepare_all, prepare = there._prepare, partition.prepare

        async def prepare_all_slowly(connection: RespConnection) -> None:
            await prepare_all(connection)
            has_prepared.set()
            while not has_moved.is_set():
                await connection.call("PING")

        async def prepare_and_note(connection: RespConnection) -> None:
            await prepare(connection)
            ready_at.append(connection)

        there.link._on_up = prepare_all_slowly
        partition.prepare = prepare_and_note  # type: ignore[method-assign]
        there.link.reset("a test")
        async with asyncio.timeout(PATIENCE_S):
            await has_prepared.wait()
            await asyncio.to_thread(cluster.reshard, slot, cluster.other_master(source))
            while partition.link.master is not there:
                await asyncio.sleep(0.01)
            has_moved.set()
            while there.link.connection is None or there.link.connection not in ready_at:
                await asyncio.sleep(0.01)
        assert partition.is_prepared


async def test_a_replica_that_takes_over_is_found_and_clients_are_made_current(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    ids = [new_id() for _ in range(20)]
    async with started(broker, *ids) as ears:
        sessions = [await applied(broker, await created(broker, each), engine.start) for each in ids]
        there = cluster.master_of(slot_of_session(ids[0]))
        gaps = ears.gaps
        await asyncio.to_thread(cluster.failover, there)
        for session in sessions:
            await followed(broker, ears, session)
        await ears.until(lambda ears: ears.gaps > gaps)


async def switched_after_all(broker: ClusterBroker, session: Session) -> Session:
    """Also where it is refused for a while."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await switched(broker, session)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


async def test_no_acknowledged_change_is_lost_while_slots_move_under_load(
    cluster: RedisCluster, broker: ClusterBroker
) -> None:
    ids = [new_id() for _ in range(8)]
    is_over = asyncio.Event()
    refusals: list[str] = []
    versions = dict.fromkeys(ids, 0)

    async def play(session: Session) -> Session:
        while not is_over.is_set():
            commit, after = commit_of(
                broker, session, engine.switch(session, broker.now_ms(session.session_id))
            )
            try:
                outcome = await broker.commit(commit)
            except BrokerUnavailable as refused:
                refusals.append(str(refused.details))
                continue
            if outcome is Outcome.APPLIED:
                session = after
                versions[session.session_id] = session.version
            else:
                assert outcome is Outcome.WRONG_TIME, outcome
        return session

    async with started(broker, *ids) as ears:
        sessions = [await applied(broker, await created(broker, each), engine.start) for each in ids]
        playing = [asyncio.create_task(play(each)) for each in sessions]
        for session_id in ids[:4]:
            move = begin_to_move(cluster, session_id)
            for _ in range(3):
                await asyncio.to_thread(move.move, 2)
            await asyncio.to_thread(move.finish)
        await comes_true(lambda: min(versions.values()) > 3)
        is_over.set()
        last = await asyncio.gather(*playing)
        assert set(refusals) <= {str({"outcome": "not_applied"})}
        for session in last:
            assert await stored(broker, session.session_id) == state_json.to_json(session)
            await followed(broker, ears, session)
