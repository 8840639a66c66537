"""A long life with much coming and going, after which a process holds no more than before.

`SOAK_S` in the environment says how long, in seconds; 300 without it, half an hour before a release.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.load import Watcher, chess, data, eventually, identity, rest, watching
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.ws_client import Closed, WsClient

SOAK_S = float(os.environ.get("SOAK_S", "300"))
# Caches, pools and the allocator take what they take once; that is no leak.
WARM_UP_S = min(60.0, max(15.0, SOAK_S / 4))
# In half an hour some 25,000 clients come and go at each process: 700 bytes lost with each would show.
RSS_MAY_GROW_BYTES = 16 * 2**20
# A silent client is found after the ping interval and the timeout.
QUIET_S = 12.0

PROCESSES = 2
SESSIONS = 40
VISITORS = 60
SILENT_VISITORS = 5
CALLERS = 4
LASTING_SESSIONS = 4
LASTING_WATCHERS = 8
FAULT_EVERY_S = 5.0
# What an application may be told; anything else is a bug.
STATUSES = {200, 201, 202, 204, 400, 404, 409, 503}


@dataclass
class Life:
    """Sessions, visitors and callers at all processes; `ended` tells everyone to stop."""

    servers: list[ServerProcess]
    redis: RedisServer
    dice: random.Random
    ended: bool = False
    # Those that exist or may exist: a creation whose outcome is unknown counts until it has been deleted.
    session_ids: dict[str, None] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    visits: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return self.dice.choice(self.servers).url

    @property
    def session_id(self) -> str | None:
        return self.dice.choice(list(self.session_ids)) if self.session_ids else None

    async def call(self, path: str, body: Any = None, method: str = "POST") -> int:
        answer = await rest(f"{self.url}/v1/sessions{path}", body, method)
        self.statuses[answer.code] += 1
        return answer.code

    async def gardener(self) -> None:
        """Creates sessions and deletes them."""
        while not self.ended:
            if len(self.session_ids) < SESSIONS or self.dice.random() < 0.5:
                spec = chess()
                self.session_ids[spec["session_id"]] = None
                await self.call("", spec)
                await self.call(f"/{spec['session_id']}/start")
            elif session_id := self.session_id:
                await self.delete(session_id)
            await asyncio.sleep(0.1)

    async def delete(self, session_id: str) -> None:
        if await self.call(f"/{session_id}", method="DELETE") == 204:
            self.session_ids.pop(session_id, None)

    async def caller(self) -> None:
        """Changes sessions, and sends messages to their clients."""
        while not self.ended:
            command = self.dice.choice(["switch"] * 6 + ["pause", "resume", "messages"])
            if session_id := self.session_id:
                body = {"type": "NOTE", "text": "x" * 500} if command == "messages" else None
                await self.call(f"/{session_id}/{command}", body)
            await asyncio.sleep(0.02)

    async def visitor(self, *, silent: bool) -> None:
        """Comes, stays for a while, and goes, with a close frame or without one; if silent, it is cut off."""
        while not self.ended:
            session_id = self.session_id
            url = f"{self.dice.choice(self.servers).ws_url}/ws?sessionId={session_id}"
            try:
                client = await WsClient.connect(url, limit=2**18, answers_pings=not silent)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)
                continue
            self.visits += 1
            try:
                await client.send({"type": "RECONNECT"})
                stays_s = 20.0 if silent else self.dice.uniform(0.1, 4.0)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(stays_s):
                        while not isinstance(await client.recv(60), Closed):
                            pass
                if self.dice.random() < 0.5:
                    await client.close()
            except OSError:
                pass  # it was cut off while it wrote
            finally:
                client.abort()

    async def misfortune(self) -> None:
        """One fault after the other, with some time between them to recover."""
        faults: list[Callable[[], Awaitable[None]]] = [
            self.kill_subscribers,
            self.kill_commands,
            self.freeze,
            self.restart,
        ]
        while not self.ended:
            await asyncio.sleep(FAULT_EVERY_S)
            fault = faults[self.faults.total() % len(faults)]
            self.faults[fault.__name__] += 1
            await fault()

    async def kill_subscribers(self) -> None:
        with self.redis.client as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def kill_commands(self) -> None:
        with self.redis.client as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")

    async def freeze(self) -> None:
        self.redis.freeze()
        try:
            await asyncio.sleep(2)
        finally:
            self.redis.thaw()

    async def restart(self) -> None:
        """With its data: it writes everything to its log at once."""
        self.redis.kill()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self.redis.start)

    async def run(self, seconds: float) -> None:
        lasting = [chess() for _ in range(LASTING_SESSIONS)]
        for spec in lasting:
            data(await rest(f"{self.url}/v1/sessions", spec))
            data(await rest(f"{self.url}/v1/sessions/{spec['session_id']}/start"))
        lasting_ids = [spec["session_id"] for spec in lasting]
        async with watching(self.servers, lasting_ids, LASTING_WATCHERS) as watchers:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.gardener())
                tasks.create_task(self.misfortune())
                for _ in range(CALLERS):
                    tasks.create_task(self.caller())
                for number in range(VISITORS):
                    tasks.create_task(self.visitor(silent=number < SILENT_VISITORS))
                tasks.create_task(self.change_lasting(lasting_ids))
                await asyncio.sleep(seconds)
                self.ended = True
            await self.converged(watchers)
        # Also what was deleted while Redis was away; deleting what is not there is no error.
        self.session_ids |= dict.fromkeys(lasting_ids)
        await eventually(self.nothing_left, 30, "sessions cannot be deleted")

    async def change_lasting(self, session_ids: list[str]) -> None:
        while not self.ended:
            await self.call(f"/{self.dice.choice(session_ids)}/switch")
            await asyncio.sleep(0.05)

    async def nothing_left(self) -> str:
        for session_id in list(self.session_ids):
            await self.delete(session_id)
        return f"{len(self.session_ids)} are left" if self.session_ids else ""

    async def converged(self, watchers: list[Watcher]) -> None:
        """Those who stayed all the time hold what is stored."""

        async def complaint() -> str:
            for watcher in watchers:
                answer = await rest(f"{self.url}/v1/sessions/{watcher.session_id}", method="GET")
                if answer.code != 200:
                    return f"{watcher.session_id}: {answer.code}"
                if watcher.identity != identity(data(answer)):
                    return f"{watcher.identity} is not what is stored"
            return ""

        await eventually(complaint, 20, "clients have not converged")


@dataclass(frozen=True)
class Holdings:
    """What a process holds when nobody is there."""

    rss_bytes: int
    fds: int

    @classmethod
    def of(cls, server: ServerProcess) -> "Holdings":
        return cls(server.rss_bytes(), len(list(Path(f"/proc/{server.pid}/fd").iterdir())))


def stored(redis: RedisServer) -> set[bytes]:
    with redis.client as client:
        return set(client.keys("*"))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer(aof=True)
    yield server
    server.close()


@pytest.fixture
def servers(redis: RedisServer) -> Iterator[list[ServerProcess]]:
    processes = [ServerProcess(f"--broker={redis.url}", "--log-level=error") for _ in range(PROCESSES)]
    yield processes
    for process in processes:
        process.stop()


@pytest.mark.long
def test_a_long_life_leaves_nothing_behind(redis: RedisServer, servers: list[ServerProcess]) -> None:
    # Not an `async def`, which has a time limit made for short tests.
    asyncio.run(soak(redis, servers))


async def soak(redis: RedisServer, servers: list[ServerProcess]) -> None:
    dice = random.Random(20)
    await Life(servers, redis, dice).run(WARM_UP_S)
    await asyncio.sleep(QUIET_S)
    before, keys_before = [Holdings.of(server) for server in servers], stored(redis)

    life = Life(servers, redis, dice)
    await life.run(SOAK_S)
    print(f"{life.visits} visits, answers {dict(life.statuses)}, faults {dict(life.faults)}")
    assert set(life.statuses) <= STATUSES
    assert stored(redis) == keys_before, "keys are left in Redis"
    await asyncio.sleep(QUIET_S)

    for server, then in zip(servers, before, strict=True):
        now = Holdings.of(server)
        print(f"process {server.pid}: before {then}, after {now}")
        assert now.fds <= then.fds, "sockets are left open"
        grown_bytes = now.rss_bytes - then.rss_bytes
        assert grown_bytes <= RSS_MAY_GROW_BYTES, f"memory grew by {grown_bytes / 2**20:.1f} MiB"
        # That Redis was away is told in a line; a traceback is a bug.
        bugs = [line for line in server.log() if "traceback" in line]
        assert not bugs, bugs[:3]
