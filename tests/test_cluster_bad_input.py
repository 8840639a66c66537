"""A Redis Cluster that cannot be used, or not so: one line says what is wrong, and the doctor says it too."""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from broker import examine, findings, open_broker
from broker.cluster import doctor as cluster_doctor
from broker.cluster import topology
from broker.endpoint import parse
from broker.keys import Keys
from lockstep.config import Settings
from lockstep.metrics import Metrics
from tests.support.brokers import started
from tests.support.processes import Answer, ServerProcess, running
from tests.support.redis_cluster import ClusterNode, RedisCluster
from tests.support.redis_server import Proxy, RedisServer, free_port
from tests.support.sockets import create, watching

OPTIONS = (
    *("--appendonly", "yes", "--cluster-require-full-coverage", "no"),
    *("--client-output-buffer-limit", "pubsub", "64mb", "16mb", "30"),
)
AWAY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """One that the doctor finds no fault in, and that is left so."""
    cluster = RedisCluster(*OPTIONS, node_timeout_ms=15_000, can_cut=True)
    yield cluster
    cluster.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor takes no busy machine for a Redis that is far, or away."""
    monkeypatch.setattr(findings, "SLOW_MS", 5_000.0)
    monkeypatch.setattr(findings, "PROBE_TIMEOUT_S", 20.0)
    monkeypatch.setattr(cluster_doctor, "START_TIMEOUT_S", 20.0)
    monkeypatch.setattr(topology, "ASK_TIMEOUT_S", 20.0)


async def refused(url: str, **settings: str) -> str:
    """The line with which a process ends."""
    broker = open_broker(Settings(broker=url, **settings), Metrics())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\Abroker: [^\n]+\Z") as refusal:
        async with asyncio.timeout(20), started(broker):
            pass
    await broker.close()
    return str(refusal.value)


@contextlib.asynccontextmanager
async def waiting(url: str) -> AsyncIterator[str]:
    """What a process says that waits for its cluster."""
    server = ServerProcess(f"--broker={url}", "--log-level=warning", wait=False)
    try:
        assert server.process.stderr is not None
        yield (await asyncio.to_thread(server.process.stderr.readline)).decode()
    finally:
        server.kill()


async def asked(server: ServerProcess, path: str) -> Answer | None:
    """The answer to a GET; None as long as the process does not listen."""
    try:
        return await server.call("GET", path)
    except ConnectionRefusedError:
        return None


async def complaints(url: str, **settings: str) -> list[str]:
    """What the doctor says is to be mended."""
    found = await examine(Settings(broker=url, **settings))  # type: ignore[arg-type]
    return [text for is_ok, text in found if not is_ok]


@contextlib.contextmanager
def configured(node: ClusterNode, name: str, value: str) -> Iterator[None]:
    with node.client as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, before)


# --- what is named wrongly -----------------------------------------------------------------------


async def test_one_redis_that_is_named_as_a_cluster_is_refused(redis_server: RedisServer) -> None:
    url = f"redis+cluster://127.0.0.1:{redis_server.port}"
    assert "this is one Redis, not a Redis Cluster: name it as redis://host:port/db" in await refused(url)
    (found,) = await complaints(url)
    assert "name it as redis://host:port/db" in found


async def test_a_cluster_that_is_named_as_one_redis_is_refused(cluster: RedisCluster) -> None:
    url = f"redis://127.0.0.1:{cluster.nodes[0].announced_port}"
    said = "this is a Redis Cluster: name it as redis+cluster://host:port,host:port"
    assert said in await refused(url)
    assert await complaints(url) == [f"Redis: {said}"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://127.0.0.1:7000/0", "a Redis Cluster has no /db"),
        ("redis+cluster://127.0.0.1:7000,/?db=1", "node number 2 is not host:port"),
        ("redis+cluster://127.0.0.1", "node number 1 is not host:port"),
        ("redis+cluster://127.0.0.1:7000/?db=1", "db is none of its options"),
        ("rediss+cluster://127.0.0.1:7000/?ssl_ca_certs=/nowhere", "its certificates cannot be read"),
    ],
)
def test_what_no_cluster_has_in_its_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\Abroker: [^\n]+\Z") as refusal:
        parse(url)
    assert said in str(refusal.value)


# --- nodes that are away -------------------------------------------------------------------------


async def test_a_node_that_takes_a_connection_and_does_not_answer_is_said_not_to_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "ASK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (found,) = await complaints(f"redis+cluster://{address}")
        assert f"{address} (it does not answer)" in found


async def test_nodes_that_are_away_are_passed_over_for_others(cluster: RedisCluster) -> None:
    url = cluster.url.replace("//", f"//{AWAY},")
    async with asyncio.timeout(20), started(open_broker(Settings(broker=url), Metrics())):
        pass
    (found,) = await complaints(url)
    assert found.startswith(f"nodes: {AWAY} ([Errno 111]")


async def test_a_process_waits_for_nodes_that_are_all_away_and_names_them() -> None:
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{free_port()}"
    async with waiting(url) as line:
        assert f"waiting for the Redis Cluster at {url}: [Errno 111]" in line
    (found,) = await complaints(url)
    assert found.startswith("Redis Cluster: none of its nodes can be used: 127.0.0.1:1 ([Errno 111]")


async def test_changes_are_refused_and_clients_kept_until_a_first_node_answers(cluster: RedisCluster) -> None:
    with running(ServerProcess(f"--broker={cluster.url}")) as before:
        session_id = (await create(before))["session_id"]
    async with Proxy(cluster.nodes[0].announced_port) as seed:
        seed.refuses = True
        port = free_port()
        broker = f"--broker=redis+cluster://127.0.0.1:{seed.port}"
        with running(ServerProcess(broker, f"--port={port}", wait=False)) as server:
            server.url = f"http://127.0.0.1:{port}"
            async with asyncio.timeout(20):
                while (ready := await asked(server, "/ready")) is None:
                    await asyncio.sleep(0.05)
            assert ready.status == 503
            assert ready.body["reasons"] == ["the masters of the Redis Cluster are not known yet"]
            for method, path in (("GET", ""), ("POST", "/start"), ("DELETE", "")):
                answer = await server.call(method, f"/v1/sessions/{session_id}{path}")
                assert (answer.status, answer.body["error"]["code"]) == (503, "BROKER_UNAVAILABLE")
                assert answer.body["error"]["details"] == {"outcome": "not_applied"}
            async with watching(server, session_id) as (client,):
                seed.refuses = False
                sync = await client.recv(timeout_s=20)
                assert (sync["type"], sync["state"]["session_id"]) == ("STATE_SYNC", session_id)


# --- a cluster that is not as it has to be -------------------------------------------------------


async def test_slots_that_nobody_has_are_named(cluster: RedisCluster) -> None:
    master = cluster.masters()[0]
    (first, last), _ = sorted(cluster.ranges())[0]
    for node in cluster.nodes:
        node.ask("CLUSTER", "DELSLOTSRANGE", first, last)
    try:
        async with waiting(cluster.url) as line:
            assert "of the 64 partitions: redis-cli --cluster fix HOST:PORT" in line
        count = f"{last - first + 1:,} of 16,384"
        found = await complaints(cluster.url)
        assert f"slots: nobody has {count}, so nothing starts: redis-cli --cluster fix HOST:PORT" in found
    finally:
        master.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        cluster.wait_until_whole()


async def test_another_number_of_partitions_is_refused(cluster: RedisCluster) -> None:
    with cluster.client as client:
        client.set(Keys("odd-", 0).partitions, 32)
    said = await refused(cluster.url, prefix="odd-")
    assert "sessions there are in 32 partitions, not in 64: choose another --prefix" in said
    (found,) = await complaints(cluster.url, prefix="odd-")
    assert found.startswith("partitions: 32 are recorded, and not 64")


@pytest.mark.parametrize("name", ["partitions", "routing"])
async def test_another_kind_of_key_where_something_is_agreed_on_is_refused(
    cluster: RedisCluster, name: str
) -> None:
    prefix = f"hash-of-{name}-"
    key = getattr(Keys(prefix, 0), name)
    with cluster.client as client:
        client.hset(key, "field", "value")
    said = await refused(cluster.url, prefix=prefix)
    assert f"the key {key} of Redis is not a string: choose another --prefix" in said


async def test_another_routing_than_that_of_the_others_is_refused(cluster: RedisCluster) -> None:
    with cluster.client as client:
        client.set(Keys("routed-", 0).routing, "targeted")
    said = await refused(cluster.url, prefix="routed-")
    assert "other processes route targeted: --routing must be the same" in said


async def test_a_master_that_may_evict_sessions_is_refused(cluster: RedisCluster) -> None:
    with configured(cluster.masters()[1], "maxmemory-policy", "allkeys-lru"):
        assert "maxmemory-policy is allkeys-lru" in await refused(cluster.url)
        (found,) = await complaints(cluster.url)
        assert "eviction: allkeys-lru" in found


async def test_nodes_that_are_too_old_are_refused(cluster: RedisCluster) -> None:
    with cluster.answering_with(b"redis_version:7.0.15", b"redis_version:6.2.14"):
        assert "Redis is 6.2.14, 7.0 or newer is needed" in await refused(cluster.url)
        found = await complaints(cluster.url)
        assert [each for each in found if each.endswith("Redis version: 6.2.14; 7.0 or newer is needed")]


async def test_nodes_without_sharded_channels_are_refused() -> None:
    cluster = RedisCluster(*OPTIONS, "--rename-command", "SSUBSCRIBE", "", node_timeout_ms=15_000)
    try:
        assert "Redis has no SSUBSCRIBE: sharded channels" in await refused(cluster.url)
        assert any("SSUBSCRIBE" in each for each in await complaints(cluster.url))
    finally:
        cluster.close()


async def test_what_ends_a_start_is_said_in_no_other_line(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "deaf", "on", ">hush", "~*", "&*", "+@all", "-ssubscribe")
    try:
        said = await refused(cluster.url.replace("//", "//deaf:hush@"))
        assert "Redis user deaf may not SSUBSCRIBE session-updates:{*}: give it +ssubscribe" in said
    finally:
        for node in cluster.nodes:
            node.ask("ACL", "DELUSER", "deaf")
    with configured(cluster.masters()[1], "maxmemory-policy", "allkeys-lru"):
        await refused(cluster.url)
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


# --- what the doctor alone says ------------------------------------------------------------------


async def test_the_doctor_finds_no_fault_in_a_good_cluster_and_looks_at_each_master(
    cluster: RedisCluster,
) -> None:
    found = await examine(Settings(broker=cluster.url))
    assert [text for is_ok, text in found if not is_ok] == []
    texts = [text for _, text in found]
    assert "slots: 3 masters have all 16,384" in texts
    for master in cluster.masters():
        own = [text for text in texts if text.startswith(f"127.0.0.1:{master.announced_port}: ")]
        looks = ("Redis version", "eviction", "persistence", "replicas", "round trip", "clock", "Pub/Sub")
        for each in looks:
            assert any(f": {each}: " in text for text in own), each


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("appendonly", "no", "persistence: no append-only file"),
        ("cluster-require-full-coverage", "yes", "full coverage: while one master is away"),
    ],
)
async def test_the_doctor_says_what_a_master_lacks(
    cluster: RedisCluster, name: str, value: str, said: str
) -> None:
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(configured(node, name, value))
        found = await complaints(cluster.url)
    assert found
    assert all(said in each for each in found)


async def test_the_doctor_says_how_far_the_clocks_of_masters_are_apart() -> None:
    cluster = RedisCluster(*OPTIONS, replicas=0, node_timeout_ms=15_000, clocks_ahead_s=(0, 0.5, -0.25))
    try:
        async with asyncio.timeout(20):
            while not (
                found := [each for each in await complaints(cluster.url) if each.startswith("clocks ")]
            ):
                await asyncio.sleep(0.1)
        said = re.match(r"clocks of the masters: (\d+) ms between the first and the last; ", found[0])
        assert said is not None
        # What is measured on a busy machine is a little off; it is more than between any two of them.
        assert 600 < int(said[1]) < 900
    finally:
        cluster.close()


async def test_the_doctor_names_a_master_without_a_replica(cluster: RedisCluster) -> None:
    master = cluster.masters()[2]
    (replica,) = cluster.replicas_of(master)
    replica.ask("CLUSTER", "REPLICATE", cluster.masters()[0].id)
    try:
        async with asyncio.timeout(20):
            while not (found := await complaints(cluster.url)):
                await asyncio.sleep(0.1)
        assert [each.partition(";")[0] for each in found] == [
            f"127.0.0.1:{master.announced_port}: replicas: none in step"
        ]
    finally:
        replica.ask("CLUSTER", "REPLICATE", master.id)
        cluster.wait_until_whole()
