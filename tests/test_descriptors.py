"""A process that may open no more files keeps what it needs itself: clients do not take the way to Redis."""

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from handlers.listening import MIN_DESCRIPTORS, RESERVED_DESCRIPTORS
from tests.support.load import chess, data, eventually, rest
from tests.support.processes import ROOT, ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.ws_client import WsClient

PLACES = 30


def open_files(process: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer(aof=True)
    yield server
    server.close()


class Crowd:
    """Clients that come until nobody is let in any more, and wait then."""

    def __init__(self, url: str) -> None:
        self.inside: list[WsClient] = []
        self._comers = [asyncio.create_task(self._come(url)) for _ in range(3 * PLACES)]

    async def _come(self, url: str) -> None:
        client = await WsClient.connect(url)
        await client.recv_type("CONNECTED", timeout_s=100)
        self.inside.append(client)

    async def rises_above(self, count: int) -> None:
        async def complaint() -> str:
            return "" if len(self.inside) > count else f"{len(self.inside)} are inside"

        await eventually(complaint, 20, "nobody is let in")

    async def stands_still(self) -> None:
        """Wait until nobody has come for a while."""
        count = -1
        while count != len(self.inside) or not count:
            count = len(self.inside)
            await asyncio.sleep(1.5)  # longer than until the next look whether there is room

    def close(self) -> None:
        for comer in self._comers:
            comer.cancel()


@pytest.mark.long
async def test_a_process_full_of_clients_comes_back_to_redis(redis: RedisServer) -> None:
    start = (ServerProcess, f"--broker={redis.url}", "--log-level=warning")
    full, other = [await asyncio.to_thread(*start) for _ in range(2)]
    session_id = data(await rest(f"{other.url}/v1/sessions", chess()))["session_id"]
    data(await rest(f"{other.url}/v1/sessions/{session_id}/start"))
    limit = open_files(full) + PLACES + RESERVED_DESCRIPTORS
    resource.prlimit(full.pid, resource.RLIMIT_NOFILE, (limit, limit))
    crowd = Crowd(f"{full.ws_url}/ws?sessionId={session_id}")
    try:
        await crowd.rises_above(PLACES // 2)
        await crowd.stands_still()
        assert len(crowd.inside) < 2 * PLACES, "all were let in"
        assert open_files(full) <= limit - RESERVED_DESCRIPTORS + 2
        first = crowd.inside[0]
        redis.kill()
        await asyncio.sleep(1.5)  # its connections are gone, and there are descriptors that others could take
        redis.start()

        async def unswitched() -> str:
            answer = await rest(f"{other.url}/v1/sessions/{session_id}/switch")
            return "" if answer.code == 200 else str(answer.code)

        await eventually(unswitched, 20, "the other process does not come back")
        stored = data(await rest(f"{other.url}/v1/sessions/{session_id}", method="GET"))
        while True:
            message = await first.recv(20)
            if message.get("state", {}).get("version") == stored["version"]:
                break
        inside = len(crowd.inside)
        for client in crowd.inside[:10]:
            client.abort()
        await crowd.rises_above(inside)
        assert any("no more clients are let in" in str(line["message"]) for line in full.log())
    finally:
        crowd.close()
        for process in (full, other):
            await asyncio.to_thread(process.stop)


def test_a_limit_without_room_for_clients_ends_the_start_with_one_line() -> None:
    limit = MIN_DESCRIPTORS - 1
    command = f"ulimit -n {limit}; exec {sys.executable} server.py --port=0"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"only {limit} files may be open" in line
    assert str(MIN_DESCRIPTORS) in line
