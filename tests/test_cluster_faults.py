"""Whatever happens to a Redis Cluster: no client stays behind, nothing acknowledged is lost."""

import asyncio
from collections.abc import Iterator

import pytest

from broker.keys import partition_of, slot_of
from tests.support.faults import LoopLag, Scene, scene
from tests.support.redis_cluster import RedisCluster

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


@pytest.mark.parametrize("routing", ROUTINGS)
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
