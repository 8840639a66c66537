"""The cluster that tests run on: it does what they ask of it."""

from collections.abc import Iterator

import pytest
import redis
from redis.crc import key_slot

from tests.support.processes import wait_until
from tests.support.redis_cluster import SLOTS, RedisCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster(can_cut=True)
    yield cluster
    cluster.close()


def test_three_masters_serve_all_slots_and_each_has_a_replica(cluster: RedisCluster) -> None:
    assert len(cluster.masters()) == 3
    assert [len(cluster.replicas_of(master)) for master in cluster.masters()] == [1, 1, 1]
    with cluster.client as client:
        client.set("a", "1")
        assert client.get("a") == b"1"


def test_a_slot_that_is_half_moved_is_asked_at_both(cluster: RedisCluster) -> None:
    with cluster.client as client:
        for number in range(4):
            client.set(f"{{tag}}:{number}", number)
        slot = key_slot(b"tag")
        move = cluster.move(slot, cluster.other_master(cluster.master_of(slot)))
        assert move.move(2) == 2
        left = move.remaining_keys()
        moved = next(key for key in (f"{{tag}}:{number}" for number in range(4)) if key.encode() not in left)
        with pytest.raises(redis.exceptions.AskError):
            move.source.ask("GET", moved)
        move.finish()
        assert cluster.master_of(slot) is move.target
        assert [client.get(f"{{tag}}:{number}") for number in range(4)] == [b"0", b"1", b"2", b"3"]


def test_a_failover_leaves_the_replica_with_the_slots(cluster: RedisCluster) -> None:
    master = cluster.masters()[0]
    replica = cluster.failover(master)
    assert cluster.masters()[0] is replica
    cluster.wait_until_whole()
    assert cluster.replicas_of(replica) == [master]


@pytest.mark.long
def test_a_master_that_is_cut_off_lives_and_is_replaced(cluster: RedisCluster) -> None:
    master = cluster.masters()[0]
    cluster.cut_off(master)
    replica = cluster.replacement(master, 0)
    assert master.info("replication")["role"] == "master"
    cluster.reconnect()
    wait_until(lambda: cluster.replicas_of(replica) == [master], 30, "the return of the old master")
    cluster.wait_until_whole()


@pytest.mark.long
def test_a_master_that_is_killed_is_replaced_and_comes_back_as_a_replica(cluster: RedisCluster) -> None:
    master = cluster.masters()[1]
    master.kill()
    replica = cluster.replacement(master, SLOTS // 2)
    master.start()
    wait_until(lambda: cluster.replicas_of(replica) == [master], 30, "the return of the old master")
    cluster.wait_until_whole()
