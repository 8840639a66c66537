"""What only a broker with a network in between can get wrong."""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ujson

from tests.support.load import chess, data, eventually, rest
from tests.support.processes import ServerProcess
from tests.support.redis_faults import fill, lose_its_disk, lose_its_replicas
from tests.support.redis_server import Proxy, RedisServer, free_port
from tests.support.ws_client import Closed, WsClient, abort_all


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@contextlib.asynccontextmanager
async def server(url: str, *options: str, **how: Any) -> Any:
    """A process of its own, started in a thread: the way to Redis may lead through this loop."""
    prefix = f"{uuid.uuid4()}-"
    process = await asyncio.to_thread(
        ServerProcess, f"--broker={url}", f"--prefix={prefix}", "--log-level=warning", *options, **how
    )
    process.prefix = prefix
    try:
        yield process
    finally:
        abort_all()
        await asyncio.to_thread(process.stop)


async def running(process: ServerProcess, **fields: Any) -> str:
    session_id = data(await rest(f"{process.url}/v1/sessions", chess(**fields)))["session_id"]
    data(await rest(f"{process.url}/v1/sessions/{session_id}/start"))
    return str(session_id)


def now_ms(redis: RedisServer) -> int:
    with redis.client as client:
        seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


class CommitFault:
    """Lets the next commit through to Redis, and does `fault` to its reply."""

    def __init__(self, proxy: Proxy, fault: str) -> None:
        self.fault = fault
        self.is_armed = False
        self.hits = 0
        self._strikes = False
        proxy.on_request = self._on_request
        proxy.on_reply = self._on_reply

    def _on_request(self, data: bytes) -> bytes:
        if self.is_armed and b"STATE_UPDATE" not in data and b'"version":' in data and b"EVALSHA" in data:
            self.is_armed, self._strikes = False, True
        return data

    def _on_reply(self, data: bytes) -> bytes | None:
        if not self._strikes or b"applied" not in data:
            return data
        self._strikes = False
        self.hits += 1
        return b"" if self.fault == "swallowed" else None


@pytest.mark.parametrize("fault", ["swallowed", "cut"])
async def test_a_commit_whose_reply_is_lost_is_applied_once_and_told_truly(
    redis: RedisServer, fault: str
) -> None:
    async with Proxy(redis.port) as proxy, server(proxy.url) as process:
        session_id = await running(process)
        trouble = CommitFault(proxy, fault)
        for turn in range(5):
            trouble.is_armed = True
            answer = await rest(f"{process.url}/v1/sessions/{session_id}/switch")
            version = data(await rest(f"{process.url}/v1/sessions/{session_id}", method="GET"))["version"]
            assert version == 3 + turn, "not applied once"
            if answer.code == 503:
                assert ujson.loads(answer.body)["error"]["details"] == {"outcome": "unknown"}
            else:
                assert data(answer)["version"] == version
        assert trouble.hits == 5


async def test_a_lost_reply_whose_change_was_overtaken_is_not_applied_again(redis: RedisServer) -> None:
    prefix = f"{uuid.uuid4()}-"
    async with Proxy(redis.port) as proxy:
        process = await asyncio.to_thread(ServerProcess, f"--broker={proxy.url}", f"--prefix={prefix}")
        other = await asyncio.to_thread(ServerProcess, f"--broker={redis.url}", f"--prefix={prefix}")
        try:
            session_id = await running(other)
            trouble = CommitFault(proxy, "swallowed")
            trouble.is_armed = True
            losing = asyncio.create_task(rest(f"{process.url}/v1/sessions/{session_id}/switch"))

            async def lost() -> str:
                return "" if trouble.hits else "nothing lost yet"

            await eventually(lost, 5, "the reply was not swallowed")
            overtaking = data(await rest(f"{other.url}/v1/sessions/{session_id}/switch"))
            assert overtaking["version"] == 4
            answer = await losing
            assert answer.code in (200, 503)
            stored = data(await rest(f"{other.url}/v1/sessions/{session_id}", method="GET"))
            assert stored["version"] == 4, "the switch was applied a second time"
        finally:
            for each in (process, other):
                await asyncio.to_thread(each.stop)


async def test_a_process_that_stood_still_does_not_take_that_for_silence(redis: RedisServer) -> None:
    async with Proxy(redis.port) as proxy, server(proxy.url) as process:
        session_id = await running(process)
        stopped = asyncio.Event()

        def stop_at_a_commit(piece: bytes) -> bytes:
            if session_id.encode() in piece and not stopped.is_set():
                process.process.send_signal(signal.SIGSTOP)
                stopped.set()
            return piece

        proxy.on_request = stop_at_a_commit
        switching = asyncio.create_task(rest(f"{process.url}/v1/sessions/{session_id}/switch"))
        await stopped.wait()
        await asyncio.sleep(3.5)  # longer than any patience with Redis, whose reply is waiting to be read
        process.process.send_signal(signal.SIGCONT)
        assert data(await switching)["version"] == 3
        assert [line for line in process.log() if line["level"] != "info"] == []


async def test_while_redis_is_away_rest_answers_503_and_sockets_stay_open(redis: RedisServer) -> None:
    async with Proxy(redis.port) as proxy, server(proxy.url) as process:
        session_id = await running(process)
        client = await WsClient.connect(f"{process.ws_url}/ws?sessionId={session_id}")
        await client.recv()
        proxy.refuses = True
        proxy.cut()
        for _ in range(3):
            began = time.monotonic()
            answer = await rest(f"{process.url}/v1/sessions/{session_id}/switch")
            assert answer.code == 503
            error = ujson.loads(answer.body)["error"]
            assert error["code"] == "BROKER_UNAVAILABLE"
            assert error["details"]["outcome"] in ("not_applied", "unknown")
            assert answer.headers["Retry-After"] == "1"
            assert time.monotonic() - began < 9, "the wait is bounded"
        assert (await rest(f"{process.url}/health", method="GET")).code == 200
        ready = await rest(f"{process.url}/ready", method="GET")
        assert ready.code == 503
        assert ujson.loads(ready.body)["reasons"]
        await client.send({"type": "PING"})
        await client.recv_type("PONG")
        # Whoever comes now is greeted at once, and gets the state when Redis is back.
        late = await WsClient.connect(f"{process.ws_url}/ws?sessionId={session_id}")
        assert (await late.recv())["type"] == "CONNECTED"
        proxy.refuses = False
        assert (await late.recv())["type"] == "STATE_SYNC"
        assert (await client.recv())["type"] == "STATE_SYNC"

        async def complaint() -> str:
            answer = await rest(f"{process.url}/v1/sessions/{session_id}/switch")
            return "" if answer.code == 200 else str(answer.code)

        await eventually(complaint, 10, "changes are not accepted again")


@pytest.mark.long
async def test_a_dead_subscription_beside_a_living_connection_makes_the_process_not_ready(
    redis: RedisServer,
) -> None:
    async with Proxy(redis.port) as proxy, server(proxy.url) as process:

        def without_publications(data: bytes) -> bytes:
            return b"" if b"message\r\n" in data else data

        proxy.on_reply = without_publications

        async def complaint() -> str:
            answer = await rest(f"{process.url}/ready", method="GET")
            return "" if answer.code == 503 else "it is ready"

        assert await eventually(complaint, 10, "nobody noticed") > 0
        assert data(await rest(f"{process.url}/v1/sessions", chess()))["status"] == "pending"
        proxy.on_reply = lambda data: data

        async def still_unready() -> str:
            answer = await rest(f"{process.url}/ready", method="GET")
            return "" if answer.code == 200 else answer.body.decode()

        await eventually(still_unready, 15, "it did not recover")


@pytest.mark.long
async def test_lifetimes_are_kept_and_a_lapse_is_told(redis: RedisServer) -> None:
    lifetimes = [
        f"--keep-{kind}-s={seconds}"
        for kind, seconds in {"pending": 1, "running": 2, "running-without-deadline": 1, "paused": 1}.items()
    ]
    async with server(redis.url, *lifetimes, "--keep-terminal-s=1") as process:
        url = f"{process.url}/v1/sessions"
        pending = data(await rest(url, chess()))["session_id"]
        long_clock = await running(process, budget_ms=6_000)
        abandoned = data(
            await rest(
                url,
                {
                    "sync_mode": "per_cycle",
                    "time_per_cycle_ms": 1000,
                    "participants": [{"participant_id": str(uuid.uuid4())}],
                },
            )
        )["session_id"]
        data(await rest(f"{url}/{abandoned}/start"))
        clients = {}
        for session_id in (pending, long_clock, abandoned):
            clients[session_id] = await WsClient.connect(f"{process.ws_url}/ws?sessionId={session_id}")
        for session_id in (pending, abandoned):
            gone = await clients[session_id].recv_type("SESSION_DELETED", timeout_s=10)
            assert gone["deleted"] is True
            assert await clients[session_id].recv() == Closed(1000, "Session deleted")
            assert (await rest(f"{url}/{session_id}", method="GET")).code == 404
        # Its clock runs longer than all the lifetimes, and so does it.
        flagged = await clients[long_clock].recv_type("STATE_UPDATE", timeout_s=10)
        assert flagged["state"]["participants"][0]["has_expired"] is True
        assert data(await rest(f"{url}/{long_clock}", method="GET"))["status"] == "running"
        with redis.client as client:
            assert client.zscore(f"{process.prefix}sessions", pending) is None


async def test_a_corrupt_state_hurts_nobody_else(redis: RedisServer) -> None:
    prefix = f"{uuid.uuid4()}-"
    process = ServerProcess(f"--broker={redis.url}", f"--prefix={prefix}", "--log-level=warning")
    try:
        corrupt, well = await running(process), await running(process)
        with redis.client as client:
            client.set(f"{prefix}session:{corrupt}", b'{"session_id":"nonsense')
        for _ in range(3):
            for path, method in ((corrupt, "GET"), (f"{corrupt}/switch", "POST")):
                answer = await rest(f"{process.url}/v1/sessions/{path}", method=method)
                assert answer.code == 500
                assert ujson.loads(answer.body)["error"]["code"] == "STATE_CORRUPT"
            data(await rest(f"{process.url}/v1/sessions/{well}/switch"))
        assert len([line for line in process.log() if line.get("session_id") == corrupt]) == 1
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("url", "redis_options", "complaint"),
    [
        ("ftp://127.0.0.1/0", None, "the scheme must be"),
        ("redis://127.0.0.1:notaport/0", None, "broker"),
        ("redis+sentinel://127.0.0.1/0", None, "host:port"),
        ("redis://:wrong@127.0.0.1:{port}/0", ["--requirepass", "right"], "WRONGPASS"),
        ("redis://127.0.0.1:{port}/0", ["--requirepass", "right"], "NOAUTH"),
        ("redis://127.0.0.1:{port}/0", ["--maxmemory-policy", "allkeys-lru"], "maxmemory-policy"),
    ],
)
async def test_a_redis_that_cannot_be_used_ends_the_start_with_one_line(
    url: str, redis_options: list[str] | None, complaint: str
) -> None:
    own = None
    if redis_options is not None:
        own = RedisServer(*redis_options, wait=False)
        url = url.format(port=own.port)
    refused = ServerProcess(f"--broker={url}", "--log-level=error", wait=False)
    try:
        _, told = await asyncio.to_thread(refused.process.communicate, timeout=15)
        assert refused.process.returncode not in (0, None)
        (line,) = told.decode().splitlines()
        assert complaint in line
        assert "wrong" not in line.lower().replace("wrongpass", "")
    finally:
        if own is not None:
            own.close()


async def test_eviction_is_accepted_when_told_so() -> None:
    own = RedisServer("--maxmemory-policy", "allkeys-lru")
    try:
        async with server(own.url, "--allow-eviction=yes") as process:
            assert (await rest(f"{process.url}/ready", method="GET")).code == 200
    finally:
        own.close()


async def test_a_start_without_redis_waits_for_it_and_says_so() -> None:
    port = free_port()
    process = ServerProcess(f"--broker=redis://127.0.0.1:{port}/0", wait=False)
    assert process.process.stderr is not None
    line = await asyncio.to_thread(process.process.stderr.readline)
    assert b"waiting for Redis" in line
    own = RedisServer(port=port)
    try:
        await asyncio.to_thread(process.wait_until_ready)
        assert (await rest(f"{process.url}/ready", method="GET")).code == 200
    finally:
        process.stop()
        own.close()


@pytest.mark.long
@pytest.mark.parametrize("routing", ["all", "targeted"])
async def test_processes_whose_system_clocks_differ_agree_on_time(redis: RedisServer, routing: str) -> None:
    if shutil.which("faketime") is None:
        pytest.fail("faketime is missing: install Debian's package faketime", pytrace=False)
    ask = ["faketime", "-f", "+0s", "printenv", "LD_PRELOAD"]
    library = (await asyncio.to_thread(subprocess.check_output, ask, text=True)).strip()
    ahead = {"LD_PRELOAD": library, "FAKETIME": "+5s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    options = (f"--broker={redis.url}", f"--prefix={uuid.uuid4()}-", f"--routing={routing}")
    right, fast = ServerProcess(*options), ServerProcess(*options, env=ahead)
    try:
        began_ms = now_ms(redis)
        session_id = await running(right, budget_ms=3_600_000)
        clients = [
            await WsClient.connect(f"{each.ws_url}/ws?sessionId={session_id}") for each in (right, fast)
        ]
        for client in clients:
            await client.recv()
        for turn in range(10):
            before_ms = now_ms(redis)
            answer = await rest(f"{(right, fast)[turn % 2].url}/v1/sessions/{session_id}/switch")
            assert answer.code == 200, "its instants are refused"
            after_ms = now_ms(redis)
            for client in clients:
                message = await client.recv_type("STATE_UPDATE")
                assert before_ms - 500 < message["timestamp"] < after_ms + 500
        used_ms = sum(seat["time_used_ms"] for seat in message["state"]["participants"])
        assert used_ms < after_ms - began_ms + 500, "the difference of the clocks was charged to somebody"
        for process in (right, fast):
            before = redis.client.time()
            told = ujson.loads((await rest(f"{process.url}/v1/time", method="GET")).body)["timestamp_ms"]
            after = redis.client.time()
            # To within 50 ms beyond what passed while we asked.
            assert before[0] * 1000 + before[1] / 1000 - 50 < told < after[0] * 1000 + after[1] / 1000 + 50
    finally:
        right.stop()
        fast.stop()


@pytest.mark.parametrize("trouble", [fill, lose_its_disk, lose_its_replicas])
async def test_a_redis_that_takes_no_writes_loses_nothing_and_is_read(
    trouble: Callable[[RedisServer], None],
) -> None:
    own = RedisServer()
    try:
        async with server(own.url) as process:
            session_id = await running(process, budget_ms=3_600_000)
            url = f"{process.url}/v1/sessions/{session_id}"
            data(await rest(f"{url}/switch"))
            before = data(await rest(url, method="GET")), data(await rest(f"{url}/events", method="GET"))
            client = await WsClient.connect(f"{process.ws_url}/ws?sessionId={session_id}")
            await client.recv_type("CONNECTED")
            await asyncio.to_thread(trouble, own)
            for request in (rest(f"{url}/switch"), rest(f"{process.url}/v1/sessions", chess())):
                answer = await request
                assert answer.code == 503
                assert ujson.loads(answer.body)["error"]["details"] == {"outcome": "not_applied"}
            after = data(await rest(url, method="GET")), data(await rest(f"{url}/events", method="GET"))
            assert after == before
            await client.send({"type": "RECONNECT"})
            assert (await client.recv_type("STATE_SYNC"))["state"] == before[0]
            assert (await rest(f"{url}/messages", {"type": "NOTE"})).code == 202
            assert (await client.recv())["type"] == "NOTE", "something else was told meanwhile"
            deleted = await rest(url, method="DELETE")
            assert deleted.code == (204 if trouble is fill else 503)
    finally:
        own.close()


@pytest.mark.parametrize("key", ["sessions", "deadlines"])
async def test_a_key_that_becomes_somebody_elses_costs_no_session_anything(
    redis: RedisServer, key: str
) -> None:
    async with server(redis.url) as process:
        session_id = await running(process, budget_ms=3_600_000)
        url = f"{process.url}/v1/sessions/{session_id}"
        before = data(await rest(url, method="GET"))
        with redis.client as client:
            client.rename(process.prefix + key, process.prefix + "ours")
            client.hset(process.prefix + key, "somebody", "else")
            for _ in range(2):
                answer = await rest(f"{url}/switch")
                assert answer.code == 503
                assert ujson.loads(answer.body)["error"]["details"] == {"outcome": "not_applied"}
                assert data(await rest(url, method="GET")) == before
            client.rename(process.prefix + "ours", process.prefix + key)
        assert data(await rest(f"{url}/switch"))["version"] == before["version"] + 1
