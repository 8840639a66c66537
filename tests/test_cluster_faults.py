"""Whatever happens to a Redis Cluster: no client stays behind, nothing acknowledged is lost."""

import asyncio
import uuid
from collections.abc import Iterator
from functools import partial

import pytest
import ujson

from broker.cluster.broker import ClusterBroker
from broker.keys import PARTITIONS, partition_of, slot_of
from lockstep.metrics import Metrics
from tests.support.brokers import started
from tests.support.faults import LoopLag, Scene, scene
from tests.support.load import eventually, rest
from tests.support.redis_cluster import ClusterNode, RedisCluster
from tests.support.variants import first_of

ROUTINGS = ("all", "targeted")


@pytest.fixture(scope="module")
def calm_cluster() -> Iterator[RedisCluster]:
    """One whose masters stay what they are."""
    cluster = RedisCluster("--appendonly", "yes", node_timeout_ms=15_000)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster("--appendonly", "yes", can_cut=True)
    yield cluster
    cluster.close()


def slots_of(play: Scene) -> list[int]:
    """The slots of the scene's sessions."""
    return sorted({slot_of(partition_of(watcher.session_id)) for watcher in play.watchers})


def shift(cluster: RedisCluster, slots: list[int]) -> None:
    """Move each of these slots to another master."""
    for slot in slots:
        cluster.reshard(slot, cluster.other_master(cluster.master_of(slot)))


async def all_is_well(play: Scene) -> None:
    await play.served()
    await play.converged()
    await play.assert_nothing_lost()
    play.assert_updates_rise()
    play.assert_refused_in_time()
    assert not any(watcher.is_gone for watcher in play.watchers)


@pytest.mark.parametrize("routing", first_of(["targeted", "all"]))
async def test_slots_that_move_while_sessions_change_leave_nobody_behind(
    calm_cluster: RedisCluster, routing: str
) -> None:
    options = (f"--routing={routing}", f"--prefix={routing}:")
    async with scene(calm_cluster.url, 1, *options, sessions=4, clients=16) as play:
        await asyncio.to_thread(shift, calm_cluster, slots_of(play)[:2])
        await all_is_well(play)


@pytest.mark.long
@pytest.mark.parametrize("routing", ROUTINGS)
async def test_all_slots_move_there_and_back_and_nobody_is_left_behind(
    calm_cluster: RedisCluster, routing: str
) -> None:
    options = (f"--routing={routing}", f"--prefix={routing}-all:")
    async with scene(calm_cluster.url, 3, *options) as play, LoopLag(play.servers[0]) as lag:
        for _ in range(2):
            await asyncio.to_thread(shift, calm_cluster, slots_of(play))
        await all_is_well(play)
        lag.assert_turned()


# --- masters -------------------------------------------------------------------------------------


def partition_zero(cluster: RedisCluster) -> ClusterNode:
    """The master by whose clock clients go."""
    return cluster.master_of(slot_of(0))


async def replaced(cluster: RedisCluster, master: ClusterNode) -> ClusterNode:
    """Another has taken over."""
    return await asyncio.to_thread(cluster.replacement, master, slot_of(0))


async def readiness(play: Scene) -> list[str]:
    answer = await rest(f"{play.servers[0].url}/ready", method="GET")
    said = ujson.loads(answer.body)
    return list(said.get("not_served", []) if answer.code == 200 else said["reasons"])


async def ready_again(play: Scene) -> None:
    async def complaint() -> str:
        return "; ".join(await readiness(play))

    await eventually(complaint, 20, "it is not ready again")


async def test_a_process_that_has_no_connection_to_a_master_is_ready_for_the_others(
    calm_cluster: RedisCluster,
) -> None:
    broker = ClusterBroker(calm_cluster.url, "ready:", "all", False, metrics := Metrics())
    first, *others = calm_cluster.masters()
    lost = [number for number in range(PARTITIONS) if calm_cluster.master_of(slot_of(number)) is first]

    async def complaint() -> str:
        """Empty where it is ready, but not for those."""
        if reasons := broker.not_ready():
            return "; ".join(reasons)
        found = b"lockstep_unserved_partitions %.1f\n" % len(lost) in metrics.text()
        said = [each.partition(":")[0] for each in broker.not_served()]
        wanted = [f"partitions {', '.join(map(str, lost))}"] if lost else []
        return "" if found and said == wanted else f"not served: {said}"

    async def is_not_ready() -> str:
        named = [str(node.port) for node in (first, *others)]
        reasons = broker.not_ready()
        return "" if all(any(port in each for each in reasons) for port in named) else f"only {reasons}"

    def freeze(node: ClusterNode) -> None:
        node.freeze()
        (master,) = [each for each in broker._masters.with_partitions() if each.address[1] == node.port]
        master.link.reset("a test")  # as it is soon, since nothing moves on it

    async with started(broker):
        try:
            freeze(first)
            await eventually(complaint, 10, "it is not ready for the others")
            for node in others:
                freeze(node)
            await eventually(is_not_ready, 10, "it is ready for nobody")
        finally:
            for node in (first, *others):
                node.thaw()
        lost.clear()
        await eventually(complaint, 20, "it is not ready again")


@pytest.mark.long
async def test_a_replica_that_takes_over_in_good_order_leaves_nobody_behind(cluster: RedisCluster) -> None:
    async with scene(cluster.url) as play, LoopLag(play.servers[0]) as lag:
        await asyncio.to_thread(cluster.failover, partition_zero(cluster))
        await all_is_well(play)
        await ready_again(play)
        lag.assert_turned()


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "frozen", "cut off"])
@pytest.mark.parametrize("routing", ROUTINGS)
async def test_when_a_master_is_lost_every_client_shows_what_its_replica_has(
    cluster: RedisCluster, how: str, routing: str
) -> None:
    async with scene(cluster.url, 3, f"--routing={routing}") as play, LoopLag(play.servers[0]) as lag:
        master = partition_zero(cluster)
        {"killed": master.kill, "frozen": master.freeze, "cut off": partial(cluster.cut_off, master)}[how]()

        async def says_which() -> str:
            reasons = await readiness(play)
            is_named = any(str(master.announced_port) in each for each in reasons)
            return "" if is_named else f"it gives other reasons: {reasons}"

        await eventually(says_which, 10, "the process says that all is served")
        await replaced(cluster, master)
        await play.served()
        await ready_again(play)
        await play.converged()
        play.assert_refused_in_time()
        lag.assert_turned()
        # The old one comes back, and must not be taken for the master.
        {"killed": master.start, "frozen": master.thaw, "cut off": cluster.reconnect}[how]()
        await asyncio.to_thread(cluster.wait_until_whole)
        await play.converged()
        assert await readiness(play) == []


@pytest.mark.long
async def test_what_others_publish_is_heard_at_another_node_when_the_one_is_lost(
    cluster: RedisCluster,
) -> None:
    broker = ClusterBroker(cluster.url, "", "all", False, Metrics())
    async with started(broker) as ears:
        at = broker._hearing._heard_at[broker._hearing._of_others]
        master = next(each for each in broker._masters.with_partitions() if each.subscriber is at)
        (node,) = [each for each in cluster.nodes if each.announced_port == master.address[1]]
        payload = ujson.dumps({"sessionId": str(uuid.uuid4()), "state": {}})
        other = cluster.other_master(node)
        await asyncio.to_thread(other.ask, "PUBLISH", "session-updates", payload)
        await ears.until_published(1)
        gaps = ears.gaps
        node.kill()

        async def heard() -> str:
            await asyncio.to_thread(other.ask, "PUBLISH", "session-updates", payload)
            return "" if len(ears.published) > 1 else "nothing has come"

        await eventually(heard, 10, "nobody hears what others publish")
        # Something was heard there before, so that something may have been missed, about whomever.
        assert None in ears.gaps_of[gaps:]
