"""A Redis that takes no changes loses nothing: what reads goes on, also a process that starts."""

import asyncio
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_client
import ujson

from broker import link
from broker.redis import RedisBroker
from lockstep.metrics import Metrics
from tests.support.brokers import started as hearing
from tests.support.load import chess, data, eventually, rest
from tests.support.processes import ServerProcess, wait_until
from tests.support.redis_server import Proxy, RedisServer
from tests.support.ws_client import Closed, WsClient, abort_all

WHYS = ["full", "without replicas", "a replica", "without a disk"]


class Reluctant(RedisServer):
    """Takes no changes when told so."""

    def stop_taking(self, why: str) -> None:
        with self.client as client:
            if why == "full":
                client.config_set("maxmemory", 1)
            elif why == "without replicas":
                client.config_set("min-replicas-to-write", 1)
            elif why == "a replica":
                client.replicaof("127.0.0.1", "1")  # of nobody who answers
            else:
                client.config_set("save", "3600 1")
                (self.folder / "dump.rdb").mkdir()
                client.bgsave()
                wait_until(lambda: client.info()["rdb_last_bgsave_status"] == "err", what="the failure")

    def take_again(self) -> None:
        with self.client as client:
            client.config_set("maxmemory", 0)
            client.config_set("min-replicas-to-write", 0)
            client.replicaof("no", "one")
            if (self.folder / "dump.rdb").is_dir():
                (self.folder / "dump.rdb").rmdir()
                client.bgsave()
                wait_until(lambda: client.info()["rdb_last_bgsave_status"] == "ok", what="the saving")

    def takes(self) -> bool:
        with self.client as client:
            try:
                client.set("something", 1)
            except redis_client.RedisError:
                return False
            return True


@pytest.fixture
def redis() -> Iterator[Reluctant]:
    server = Reluctant()
    yield server
    server.close()


def started(redis: RedisServer, prefix: str, *options: str) -> ServerProcess:
    return ServerProcess(f"--broker={redis.url}", f"--prefix={prefix}", "--log-level=warning", *options)


async def running(process: ServerProcess, **fields: Any) -> str:
    session_id = data(await rest(f"{process.url}/v1/sessions", chess(**fields)))["session_id"]
    data(await rest(f"{process.url}/v1/sessions/{session_id}/start"))
    return str(session_id)


async def assert_reads_go_on(process: ServerProcess, session_id: str) -> WsClient:
    """A socket of that process."""
    state = data(await rest(f"{process.url}/v1/sessions/{session_id}", method="GET"))
    assert state["status"] == "running"
    assert (await rest(f"{process.url}/ready", method="GET")).code == 200
    client = await WsClient.connect(f"{process.ws_url}/ws?sessionId={session_id}")
    assert (await client.recv())["type"] == "CONNECTED"
    await client.send({"type": "RECONNECT"})
    assert (await client.recv())["state"] == state
    return client


async def switched(process: ServerProcess, session_id: str) -> str:
    answer = await rest(f"{process.url}/v1/sessions/{session_id}/switch")
    return "" if answer.code == 200 else f"{answer.code}: {answer.body!r}"


@pytest.mark.parametrize("routing", ["all", pytest.param("targeted", marks=pytest.mark.long)])
@pytest.mark.parametrize("why", WHYS)
async def test_beside_a_redis_that_takes_no_changes_reads_sockets_and_starts_go_on(
    redis: Reluctant, why: str, routing: str
) -> None:
    prefix, option = f"{uuid.uuid4()}-", f"--routing={routing}"
    before = await asyncio.to_thread(started, redis, prefix, option)
    processes = [before]
    try:
        session_id, falls_due = await running(before), await running(before, budget_ms=1000)
        redis.stop_taking(why)
        stopped_s = time.monotonic()
        assert not redis.takes()
        processes.append(await asyncio.to_thread(started, redis, prefix, option))
        with redis.client as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(1.2)  # the short clock has run out, and the processes have looked at Redis
        clients = [await assert_reads_go_on(process, session_id) for process in processes]
        for process in processes:
            data(await rest(f"{process.url}/v1/sessions/{falls_due}", method="GET"))
            answer = await rest(f"{process.url}/v1/sessions/{session_id}/switch")
            assert answer.code == 503
            assert ujson.loads(answer.body)["error"]["details"]["outcome"] == "not_applied"
        redis.take_again()
        for process in processes:
            await eventually(lambda at=process: switched(at, session_id), 15, "no change is taken")
        for client in clients:
            while (await client.recv_type("STATE_UPDATE"))["state"]["version"] < 4:
                pass
        for process in processes:
            # Not one connection for each look at it: that it is alive is enough.
            dropped = [line for line in process.log() if "connecting anew" in str(line["message"])]
            most = 3 * (1 + (time.monotonic() - stopped_s) / link.REPLICA_S) if why == "a replica" else 0
            assert len(dropped) <= most, dropped
    finally:
        abort_all()
        for process in processes:
            await asyncio.to_thread(process.stop)


@pytest.mark.parametrize("why", WHYS)
async def test_what_is_lost_before_a_process_could_write_is_told_when_it_can(
    redis: Reluctant, why: str
) -> None:
    prefix = f"{uuid.uuid4()}-"
    other = await asyncio.to_thread(started, redis, prefix)
    session_id = await running(other)
    await asyncio.to_thread(other.stop)
    with redis.client as client:
        client.delete(f"{prefix}routing", *client.keys(f"{prefix}process:*"))
    redis.stop_taking(why)
    process = await asyncio.to_thread(started, redis, prefix)
    try:
        client = await assert_reads_go_on(process, session_id)
        redis.take_again()
        with redis.client as direct:
            direct.delete(f"{prefix}session:{session_id}")
        gone = await client.recv_type("SESSION_DELETED", timeout_s=20)
        assert gone["sessionId"] == session_id
        assert await client.recv() == Closed(1000, "Session deleted")

        async def unrecorded() -> str:
            with redis.client as direct:
                recorded = direct.get(f"{prefix}routing"), len(direct.keys(f"{prefix}process:*"))
                return "" if recorded == (b"all", 1) else str(recorded)

        await eventually(unrecorded, 10, "it did not make up for what it could not write")
    finally:
        abort_all()
        await asyncio.to_thread(process.stop)


async def test_a_process_that_started_on_a_replica_goes_to_the_master_that_its_name_leads_to(
    redis: Reluctant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself: nobody asks it for a change."""
    monkeypatch.setattr(link, "REPLICA_S", 0.5)
    redis.stop_taking("a replica")
    master = RedisServer()

    async def no_sign() -> str:
        with master.client as client:
            return "" if client.keys("process:*") else "it has left no sign of life there"

    try:
        async with Proxy(redis.port) as name:
            broker = RedisBroker(name.url, prefix="", routing="all", allow_eviction=False, metrics=Metrics())
            async with hearing(broker):
                name.target_port = master.port
                await eventually(no_sign, 10, "it stayed with the replica")
    finally:
        master.close()


async def test_a_process_that_turns_out_to_route_otherwise_says_so_and_gets_no_traffic(
    redis: Reluctant,
) -> None:
    prefix = f"{uuid.uuid4()}-"
    redis.stop_taking("without replicas")
    process = await asyncio.to_thread(started, redis, prefix, "--routing=targeted")
    try:
        process.process.send_signal(signal.SIGSTOP)
        redis.take_again()
        with redis.client as client:
            client.set(f"{prefix}routing", "all")
        process.process.send_signal(signal.SIGCONT)

        async def is_ready() -> str:
            answer = await rest(f"{process.url}/ready", method="GET")
            return "" if answer.code == 503 else "it is ready"

        await eventually(is_ready, 10, "it still gets traffic")
        assert any("other processes route all" in str(line["message"]) for line in process.log())
    finally:
        abort_all()
        await asyncio.to_thread(process.stop)
