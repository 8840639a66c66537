"""What a process hears from a Redis Cluster, and which sessions may have missed something when it did not."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest

import broker.probe as probe_module
from broker.cluster.broker import ClusterBroker
from broker.keys import PARTITIONS, partition_of, slot_of
from broker.topic import Topic
from lockstep.metrics import Metrics
from tests.support import settled_rules as engine
from tests.support.brokers import PATIENCE_S, Ears, started
from tests.support.commits import applied, created
from tests.support.load import eventually
from tests.support.redis_cluster import ClusterNode, RedisCluster

ROUTINGS = ("all", "targeted")


def session_in(partition: int) -> str:
    """An id of this partition."""
    return next(each for each in iter(lambda: str(uuid.uuid4()), "") if partition_of(each) == partition)


SESSION_IN = [session_in(each) for each in range(PARTITIONS)]


def partitions_of(master: ClusterNode) -> set[int]:
    """Those that it has by its own account."""
    return {
        each
        for first, last, owner, *_ in master.ask("CLUSTER", "SLOTS")  # type: ignore[attr-defined]
        for each in range(PARTITIONS)
        if owner[1] == master.announced_port and first <= slot_of(each) <= last
    }


async def until_gap_of(
    partitions: set[int],
    ears: Ears,
    since: int,
    caplog: pytest.LogCaptureFixture,
    lost: ClusterNode | None = None,
) -> None:
    """A gap of all these has come since then; and none of any others, unless one more connection was lost.

    A machine that is busy for seconds may cost any connection; that to `lost` is lost anyway.
    """

    def gaps() -> list[set[int]]:
        return [affected(ears, gap) for gap in range(since, ears.gaps)]

    await ears.until(lambda ears: partitions in gaps())
    assert not any(record.name == "broker.subscriptions" for record in caplog.records), "it gave up itself"
    expected = "" if lost is None else f":{lost.announced_port} "
    if all(
        expected and expected in each.getMessage() for each in caplog.records if each.name == "broker.link"
    ):
        assert all(each == partitions for each in gaps())


def affected(ears: Ears, gap: int) -> set[int]:
    """The partitions that a gap affects."""
    is_affected = ears.gaps_of[gap]
    return {each for each in range(PARTITIONS) if is_affected is None or is_affected(SESSION_IN[each])}


class Process:
    """One process's broker on the cluster, and what it heard."""

    def __init__(self, broker: ClusterBroker, ears: Ears, prefix: str) -> None:
        self.broker = broker
        self.ears = ears
        self.prefix = prefix
        self._since = 0

    async def until_told_of(self, session_id: str) -> None:
        """It was heard of; or told, since it was asked for last, that something may have been missed."""

        def is_told(ears: Ears) -> bool:
            is_heard = any(session_id.encode() in each for each in ears.published)
            return is_heard or any(gap is None or gap(session_id) for gap in ears.gaps_of[self._since :])

        await self.ears.until(is_told)

    async def until_heard(self, session_id: str) -> None:
        async def complaint() -> str:
            self._since = self.ears.gaps
            return "" if await self.broker.hear(session_id) else "not yet"

        await eventually(complaint, PATIENCE_S, "the session is not heard")


@asynccontextmanager
async def process(cluster: RedisCluster, routing: str = "all", *session_ids: str) -> AsyncIterator[Process]:
    prefix = f"{uuid.uuid4().hex[:8]}:"
    broker = ClusterBroker(cluster.url, prefix, routing, False, Metrics())
    async with started(broker, *session_ids) as ears:
        yield Process(broker, ears, prefix)


# --- what is heard -------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ROUTINGS)
async def test_what_happens_in_each_partition_is_heard(redis_cluster: RedisCluster, routing: str) -> None:
    ids = [session_in(each) for each in range(PARTITIONS)]
    async with process(redis_cluster, routing, *ids) as here:
        for session_id in ids:
            await created(here.broker, session_id)
            assert await here.broker.publish(session_id, b'{"type":"HELLO"}')
        await here.ears.until(lambda ears: len(ears.published) >= PARTITIONS <= len(ears.relayed))
        assert {json.loads(each)["sessionId"] for each in here.ears.published} == set(ids)
        assert sorted(here.ears.relayed) == sorted((each, b'{"type":"HELLO"}') for each in ids)


async def test_a_session_without_clients_is_not_heard_in_targeted_routing(
    redis_cluster: RedisCluster,
) -> None:
    heard, unheard = session_in(5), session_in(5)
    async with process(redis_cluster, "targeted", heard) as here:
        for session_id in (unheard, heard):
            await created(here.broker, session_id)
            assert await here.broker.publish(session_id, b'{"type":"HELLO"}')
        await here.ears.until(lambda ears: ears.relayed)
        assert {json.loads(each)["sessionId"] for each in here.ears.published} == {heard}
        assert here.ears.relayed == [(heard, b'{"type":"HELLO"}')]


@pytest.mark.parametrize("routing", ROUTINGS)
async def test_what_others_publish_is_heard_on_each_channel(
    redis_cluster: RedisCluster, routing: str
) -> None:
    session_id = session_in(7)
    state = {"sessionId": session_id, "state": {"a": 1}}
    message = {"sessionId": session_id.upper(), "message": {"type": "HELLO"}}
    async with process(redis_cluster, routing, session_id) as here:
        owner = redis_cluster.master_of(slot_of(7))
        elsewhere = redis_cluster.other_master(owner)
        for node, *words in (
            (owner, "SPUBLISH", f"{here.prefix}session-updates:{{7}}", json.dumps(state)),
            (owner, "SPUBLISH", f"{here.prefix}ws:{{7}}", json.dumps(message)),
            (elsewhere, "PUBLISH", f"{here.prefix}session-updates", json.dumps(state)),
            (elsewhere, "PUBLISH", f"{here.prefix}ws:{session_id.upper()}", json.dumps(message["message"])),
        ):
            await asyncio.to_thread(node.ask, *words)
        await here.ears.until(lambda ears: len(ears.published) == 2 == len(ears.relayed))
        assert [json.loads(each) for each in here.ears.published] == [state, state]
        assert [each for each, _ in here.ears.relayed] == [session_id, session_id]


async def test_junk_on_a_channel_of_messages_is_handed_on_as_junk(redis_cluster: RedisCluster) -> None:
    async with process(redis_cluster) as here:
        owner = redis_cluster.master_of(slot_of(7))
        channel = f"{here.prefix}ws:{{7}}"
        for junk in ("no json", "[]", '{"sessionId":7,"message":{}}'):
            await asyncio.to_thread(owner.ask, "SPUBLISH", channel, junk)
        await here.ears.until_published(3)
        assert here.ears.relayed == []


# --- what may have been missed -------------------------------------------------------------------


@pytest.mark.parametrize("routing", ROUTINGS)
async def test_a_lost_connection_is_a_gap_of_that_masters_partitions_alone(
    redis_cluster: RedisCluster, routing: str, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = session_in(7)
    async with process(redis_cluster, routing, session_id) as here:
        master = redis_cluster.master_of(slot_of(7))
        gaps = here.ears.gaps
        await asyncio.to_thread(master.ask, "CLIENT", "KILL", "TYPE", "pubsub")
        await until_gap_of(partitions_of(master), here.ears, gaps, caplog, lost=master)
        await here.until_heard(session_id)
        await created(here.broker, session_id)
        await here.until_told_of(session_id)


@pytest.mark.parametrize("routing", ROUTINGS)
async def test_a_partition_that_moves_is_heard_where_it_is_and_a_gap_of_it_alone(
    redis_cluster: RedisCluster, routing: str, caplog: pytest.LogCaptureFixture
) -> None:
    moving, other = session_in(9), session_in(10)
    slot = slot_of(9)
    async with process(redis_cluster, routing, moving, other) as here:
        source = redis_cluster.master_of(slot)
        for target in (redis_cluster.other_master(source), source):
            gaps = here.ears.gaps
            await asyncio.to_thread(redis_cluster.reshard, slot, target)
            # Heard there, and told then: what was published in between is looked for.
            await until_gap_of({9}, here.ears, gaps, caplog)
        for session_id in (moving, other):
            await here.until_heard(session_id)
            await created(here.broker, session_id)
            await here.until_told_of(session_id)


async def test_the_gap_of_a_moved_partition_comes_when_it_is_heard_again(redis_cluster: RedisCluster) -> None:
    session_id, slot = session_in(11), slot_of(11)
    is_heard_at_gap: list[bool] = []
    async with process(redis_cluster) as here:
        topic = here.broker._hearing._topics[11]
        tell = here.broker._hearing.on_gap

        def note(topics: Collection[Topic]) -> None:
            # Others may have gaps, too, where a connection was lost.
            if topic in topics:
                is_heard_at_gap.append(topic.is_heard)
            tell(topics)

        for master in here.broker._masters.with_partitions():
            master.subscriber._on_gap = note
        source = redis_cluster.master_of(slot)
        await asyncio.to_thread(redis_cluster.reshard, slot, redis_cluster.other_master(source))
        await here.ears.until(lambda ears: is_heard_at_gap)
        await here.until_heard(session_id)
        await created(here.broker, session_id)
        await here.until_told_of(session_id)
        # Nodes that know of it later may have taken it back in between.
        assert all(is_heard_at_gap)
        await asyncio.to_thread(redis_cluster.reshard, slot, source)


async def test_what_is_done_at_the_new_place_of_a_slot_on_its_way_is_looked_for(
    redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can hear it there before the slot has arrived, which may take as long as it likes."""
    session_id, slot = session_in(12), slot_of(12)
    async with process(redis_cluster) as here:
        # All keys of a change are there: where one is missing it is refused until the slot has arrived.
        session = await applied(here.broker, await created(here.broker, session_id), engine.start)
        source = redis_cluster.master_of(slot)
        move = redis_cluster.move(slot, redis_cluster.other_master(source))
        await asyncio.to_thread(move.move)
        await applied(here.broker, session, engine.switch)
        try:
            await until_gap_of({12}, here.ears, here.ears.gaps, caplog)
        finally:
            await asyncio.to_thread(move.finish)
            await asyncio.to_thread(redis_cluster.reshard, slot, source)


async def test_sessions_that_are_joined_while_their_partition_moves_are_heard(
    redis_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    slot = slot_of(13)
    source = redis_cluster.master_of(slot)
    async with process(redis_cluster, "targeted") as here:
        gaps, ids = here.ears.gaps, list[str]()
        for target in (redis_cluster.other_master(source), source):
            moving = asyncio.create_task(asyncio.to_thread(redis_cluster.reshard, slot, target))
            while not moving.done():
                ids.append(session_in(13))
                await here.broker.hear(ids[-1])
                await asyncio.sleep(0.002)
            await moving
        for session_id in ids[:: len(ids) // 30 or 1]:
            await here.until_heard(session_id)
            await created(here.broker, session_id)
            await here.until_told_of(session_id)
        await until_gap_of({13}, here.ears, gaps, caplog)


# --- probes --------------------------------------------------------------------------------------


async def test_each_partition_is_probed_in_its_turn(redis_cluster: RedisCluster) -> None:
    async with process(redis_cluster) as here:
        topics = here.broker._hearing._topics
        began_s = time.monotonic()
        for master in here.broker._masters.with_partitions():
            for _ in master.partitions:
                sent = [each.probe_received_at_s for each in master.subscriber.topics]
                await master.probe.look()
                # It comes by the other connection.
                while sent == [each.probe_received_at_s for each in master.subscriber.topics]:
                    await asyncio.sleep(0.001)
        assert all(each.probe_received_at_s > began_s for each in topics)
        assert here.broker.not_ready() == []


async def test_a_partition_whose_probe_does_not_come_back_is_heard_anew(
    redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "PROBE_TOO_OLD_S", 0.5)
    async with process(redis_cluster) as here:
        topic = here.broker._hearing._topics[14]
        assert topic.probe is not None
        assert topic._subscriptions is not None
        topic._subscriptions.forget([topic.probe])
        gaps = here.ears.gaps
        (master,) = [each for each in here.broker._masters.with_partitions() if 14 in each.partitions]

        async def complaint() -> str:
            await master.probe.look()
            told = [gap for gap in here.ears.gaps_of[gaps:] if gap is None or gap(SESSION_IN[14])]
            return "" if told else "nothing was told"

        await eventually(complaint, PATIENCE_S, "it is deaf to a partition")
        await here.until_heard(SESSION_IN[14])
