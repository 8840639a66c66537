"""What a process may not do at a master of a Redis Cluster is said when it starts."""

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from broker.cluster.broker import ClusterBroker
from lockstep.contract import Attendance, Charge, IdempotencyRecord
from lockstep.metrics import Metrics
from tests.support import settled_rules as engine
from tests.support.brokers import started
from tests.support.commits import applied, created, fell_due, new_id
from tests.support.redis_cluster import RedisCluster

DOCS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
USER = "lockstep"


def documented(prefix: str) -> list[str]:
    """Both lines of the docs, word by word, for this prefix."""
    (of_one,) = re.findall(r"^    ACL SETUSER lockstep (.*)$", DOCS, re.MULTILINE)
    (of_cluster,) = re.findall(r"^    (~lockstep-\S+ .*)$", DOCS, re.MULTILINE)
    words = f"{of_one} {of_cluster}".replace(">PASSWORD", ">pw").split()
    return [word.replace("lockstep-", prefix) for word in words]


@pytest.fixture
def prefix() -> str:
    return f"{uuid4()}-"


@pytest.fixture
def cluster(redis_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """The one that is shared, with a user of its own for a while."""
    yield redis_cluster
    for node in redis_cluster.nodes:
        node.ask("ACL", "DELUSER", USER)
        node.ask("ACL", "LOG", "RESET")


def give(cluster: RedisCluster, rules: list[str], masters: int = 3) -> None:
    """All nodes, or the first masters alone."""
    for node in cluster.nodes if masters == 3 else cluster.masters()[:masters]:
        node.ask("ACL", "SETUSER", USER, "reset", *rules)


def broker_of(cluster: RedisCluster, prefix: str, routing: str = "all") -> ClusterBroker:
    url = cluster.url.replace("://", f"://{USER}:pw@")
    return ClusterBroker(url, prefix, routing, allow_eviction=False, metrics=Metrics())


async def complaint(broker: ClusterBroker) -> str:
    """Why it does not start; empty if it does."""
    try:
        async with started(broker):
            return ""
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("routing", ["all", "targeted"])
async def test_the_rights_of_the_docs_suffice_on_a_cluster(
    cluster: RedisCluster, prefix: str, routing: str
) -> None:
    give(cluster, documented(prefix))
    session_id, once = new_id(), IdempotencyRecord("key", b'{"a":1}', 60_000)
    async with started(broker := broker_of(cluster, prefix, routing), session_id) as ears:
        session = await applied(broker, await created(broker, session_id), engine.start)
        await fell_due(broker, new_id())
        assert await broker.due(1_000, 10)
        assert await broker.lapse(10) == 0
        assert await broker.page((0, ""), 10)
        assert await broker.publish(session_id, b'{"type":"NOTE"}', once)
        await ears.until(lambda ears: ears.relayed)
        assert (await broker.recall(session_id, "key"))[1] is not None
        assert await broker.history(session_id, 0, 10_000)
        assert (await broker.recent(session_id, 10, 10_000))[1]
        assert await broker.spend([Charge("general:a", 1, 1_000)])
        assert await broker.enter("room", 9)
        broker.leave("room", 9)
        broker.attend(session_id, "ann", Attendance(1, 1))
        assert await broker.present(session_id) == {}
        for _ in range(4):
            await broker._look()
        broker.unhear(session_id)
        assert await broker.delete(session.session_id)
    for node in cluster.nodes:
        assert node.ask("ACL", "LOG") == []


@pytest.mark.parametrize(
    "right",
    ["+spublish", "+ssubscribe", "+cluster|slots", "+asking", "~{prefix}deadlines:*", "&{prefix}ws:*"],
)
async def test_a_right_that_is_missing_at_one_master_ends_the_start_with_a_line(
    cluster: RedisCluster, prefix: str, right: str
) -> None:
    missing = right.format(prefix=prefix)
    give(cluster, documented(prefix))
    give(cluster, [word for word in documented(prefix) if word != missing], masters=1)
    told = await complaint(broker_of(cluster, prefix))
    assert told.startswith(f"broker: Redis user {USER} may not "), told
    named = missing.replace("deadlines:*", "deadlines:{*}").replace("ws:*", "ws:{*}")
    assert named in told.partition(": give it ")[2].split()
