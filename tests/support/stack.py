"""A real stack, as `make up` starts it, and a load through its nginx."""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.environment import without_settings
from tests.support.load import chess, data, eventually, identity, rest
from tests.support.processes import ROOT, request
from tests.support.ws_client import Closed, WsClient

PROCESSES = 4


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that the system gives to connections."""
    while True:
        base = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return base


def cluster_ports() -> int:
    """The first of six free ports in a row whose buses, 10,000 above, are free too, and not given either."""
    while True:
        base = random.randrange(12_000, 20_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in (*range(base, base + 6), *range(base + 10_000, base + 10_006)):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return base


class Stack:
    """deploy/stack.py with a folder and ports of the test's own."""

    def __init__(self, run: Path, *options: str) -> None:
        base = free_ports(2)
        self.run = run
        self.names = [f"lockstep-{n}" for n in range(1, PROCESSES + 1)]
        self.metrics_port = base
        self.listen = f"127.0.0.1:{base + 1}"
        self.url = f"http://{self.listen}"
        self.ws_url = f"ws://{self.listen}"
        self.options = [
            *(f"--listen={self.listen}", f"--metrics-port={base}", f"--processes={PROCESSES}"),
            *("--connections=1000", *options),
        ]

    def command(self, name: str, *options: str, **how: Any) -> "subprocess.CompletedProcess[str]":
        how["env"] = without_settings() | how.get("env", {})
        return subprocess.run(
            [sys.executable, "deploy/stack.py", name, f"--run={self.run}", *options],
            **({"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120, "check": False} | how),
        )

    def up(self, **how: Any) -> "subprocess.CompletedProcess[str]":
        return self.command("up", *self.options, **how)

    async def roll(self) -> "subprocess.CompletedProcess[str]":
        return await asyncio.to_thread(self.command, "roll")

    def pids(self) -> dict[str, int]:
        """What runs, by supervisord's account."""
        lines = self.command("ctl", "status").stdout.splitlines()
        found = [line.split() for line in lines if " pid " in line]
        return {words[0].rpartition(":")[2]: int(words[3].rstrip(",")) for words in found}

    async def all_ready(self) -> str:
        for name in self.names:
            try:
                answer = await request("http://localhost/ready", "GET", unix_socket=self.socket_of(name))
                if answer.status != 200:
                    return f"{name} is not ready"
            except OSError as error:
                return f"{name}: {error}"
        return ""

    def socket_of(self, name: str) -> Path:
        return self.run / f"{name}.sock"


@dataclass
class Returning:
    """A client that comes back as clients/js/lockstep.js does."""

    url: str
    session_id: str
    name: str
    state: dict[str, Any] | None = None
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    away_s: list[float] = field(default_factory=list)
    closes: list[int | None] = field(default_factory=list)
    refused: int = 0
    went_back: bool = False

    async def run(self) -> None:
        attempt, lost_at_s = 0, None
        url = f"{self.url}/ws?sessionId={self.session_id}"
        while True:
            try:
                # By this name nginx's log tells which process it was with.
                headers = {"X-Request-ID": f"{self.name}-{len(self.closes)}"}
                client = await WsClient.connect(url, limit=2**20, headers=headers)
            except (OSError, asyncio.IncompleteReadError):
                client = None
                self.refused += 1
            began_s = time.monotonic()
            if client is not None:
                await self._follow(client, lost_at_s)
                self.synced.clear()
            now_s = time.monotonic()
            if client is not None or lost_at_s is None:
                lost_at_s = now_s
            if client is not None and (now_s - began_s > 10 or self.closes[-1] == 1001):
                attempt = 0
            await asyncio.sleep(random.random() * min(15, 0.5 * 2**attempt))
            attempt += 1

    async def _follow(self, client: WsClient, lost_at_s: float | None) -> None:
        try:
            await client.send({"type": "RECONNECT"})
            while not isinstance(message := await client.recv(timeout_s=60), Closed):
                if "state" not in message:
                    continue
                newer = message["state"]
                self.went_back |= self.state is not None and newer["version"] < self.state["version"]
                self.state = newer
                if message["type"] == "STATE_SYNC":
                    self.synced.set()
                    if lost_at_s is not None:
                        self.away_s.append(time.monotonic() - lost_at_s)
                        lost_at_s = None
            self.closes.append(message.code)
        except ConnectionError:
            self.closes.append(None)
        finally:
            client.abort()


@dataclass
class Load:
    """Clients that watch and callers that switch, all through nginx; and what became of them."""

    stack: Stack
    session_ids: list[str]
    clients: list[Returning]
    statuses: Counter[int] = field(default_factory=Counter)
    bodies: list[Any] = field(default_factory=list)
    applied: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    without_retry_after: int = 0
    stopped: bool = False

    async def call(self, worker: int) -> None:
        turn = worker
        while not self.stopped:
            turn += 1
            session_id = self.session_ids[turn * 7 % len(self.session_ids)]
            answer = await rest(f"{self.stack.url}/v1/sessions/{session_id}/switch", timeout_s=15)
            self.statuses[answer.code] += 1
            if answer.code == 200:
                self.applied[session_id] += 1
            else:
                self.bodies.append(answer.body)
                self.without_retry_after += "Retry-After" not in answer.headers
                self.unknown += b'"unknown"' in (answer.body or b"")
            await asyncio.sleep(0.02)

    async def some_answers(self, count: int = 100) -> None:
        """Go on when the callers have had so many answers more."""
        wanted = self.statuses.total() + count
        await eventually(self._complaint(lambda: self.statuses.total() >= wanted), 30, "callers are stuck")

    async def everybody_is_back(self) -> None:
        await eventually(
            self._complaint(lambda: all(client.synced.is_set() for client in self.clients)),
            20,
            "not all are back",
        )

    @staticmethod
    def _complaint(holds: Callable[[], bool]) -> Any:
        async def complaint() -> str:
            return "" if holds() else "not yet"

        return complaint

    async def check_converged(self) -> None:
        """Call when nobody changes anything any more."""

        async def complaint() -> str:
            stored = {}
            for each in self.session_ids:
                stored[each] = data(await rest(f"{self.stack.url}/v1/sessions/{each}", method="GET"))
            behind = [
                client
                for client in self.clients
                if client.state is None or identity(client.state) != identity(stored[client.session_id])
            ]
            return f"{len(behind)} are behind" if behind else ""

        await eventually(complaint, 10, "clients have not converged")
        assert not any(client.went_back for client in self.clients)

    async def check_counted_once(self) -> None:
        """Every switch that was answered 200 is one version, and there are no others."""
        for each in self.session_ids:
            state = data(await rest(f"{self.stack.url}/v1/sessions/{each}", method="GET"))
            assert state["version"] == 2 + self.applied[each]

    @property
    def away_s(self) -> list[float]:
        return [away_s for client in self.clients for away_s in client.away_s]


@contextlib.asynccontextmanager
async def loaded(stack: Stack, clients: int, workers: int) -> AsyncIterator[Load]:
    session_ids = []
    for _ in range(10):
        created = data(await rest(f"{stack.url}/v1/sessions", chess()))
        session_ids.append(created["session_id"])
        data(await rest(f"{stack.url}/v1/sessions/{session_ids[-1]}/start"))
    mark = os.urandom(4).hex()
    returning = [Returning(stack.ws_url, session_ids[n % 10], f"{mark}-{n}") for n in range(clients)]
    load = Load(stack, session_ids, returning)
    watching = [asyncio.create_task(client.run()) for client in load.clients]
    calling = []
    try:
        await load.everybody_is_back()
        calling = [asyncio.create_task(load.call(worker)) for worker in range(workers)]
        await load.some_answers()
        yield load
        load.stopped = True
        await asyncio.gather(*calling)
        await load.everybody_is_back()
        await load.check_converged()
    finally:
        for task in (*watching, *calling):
            task.cancel()
        await asyncio.gather(*watching, *calling, return_exceptions=True)
