"""Watching clients and working callers, and what must hold of them in the end."""

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ujson
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest, HTTPResponse

from tests.support.followers import View
from tests.support.processes import ServerProcess
from tests.support.ws_client import Closed, WsClient


async def rest(
    url: str, body: Any = None, method: str = "POST", timeout_s: float = 10.0, **headers: str
) -> HTTPResponse:
    """One request; errors are answers, too. status 599: no answer at all."""
    client = AsyncHTTPClient(max_clients=400)
    request = HTTPRequest(
        url,
        method=method,
        body=None if method in ("GET", "DELETE") else ujson.dumps(body) if body is not None else "",
        headers={"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()},
        request_timeout=timeout_s,
    )
    try:
        return await client.fetch(request, raise_error=False)
    except (OSError, HTTPError):
        return HTTPResponse(request, 599)


def data(response: HTTPResponse) -> Any:
    assert response.code < 300, (response.code, response.body)
    return ujson.loads(response.body)["data"]


async def history(url: str, session_id: str) -> list[dict[str, Any]]:
    """All events of a session, page by page."""
    events: list[dict[str, Any]] = []
    since = ""
    while True:
        page = data(await rest(f"{url}/v1/sessions/{session_id}/events{since}", method="GET"))
        events += page["events"]
        if page["next_since"] is None:
            return events
        since = f"?since={page['next_since']}"


def chess(session_id: str | None = None, budget_ms: int = 3_600_000, **fields: Any) -> dict[str, Any]:
    return {
        "session_id": session_id or str(uuid.uuid4()),
        "sync_mode": "per_participant",
        "participants": [{"participant_id": str(uuid.uuid4()), "total_time_ms": budget_ms} for _ in "ab"],
    } | fields


@dataclass
class Watcher:
    """One client that comes back when it is cut off, and remembers what it was told."""

    url: str
    session_id: str
    state: dict[str, Any] | None = None
    is_gone: bool = False
    updates: list[tuple[str, int]] = field(default_factory=list)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    reconnects: int = -1
    messages: list[Any] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            try:
                client = await self._connect()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)
                continue
            if self.is_gone:
                await asyncio.sleep(0.05)
            self.reconnects += 1
            try:
                await self._greet(client)
                while not isinstance(message := await client.recv(timeout_s=3600), Closed):
                    await self._take(client, message)
            except ConnectionError:
                pass  # it was cut off while it wrote
            finally:
                client.abort()

    async def _connect(self) -> WsClient:
        return await WsClient.connect(f"{self.url}/ws?sessionId={self.session_id}", limit=2**20)

    async def _greet(self, client: WsClient) -> None:
        # As every client does that wants to show something before something happens.
        await client.send({"type": "RECONNECT"})

    async def _take(self, client: WsClient, message: Any) -> None:
        kind = message["type"]
        if kind == "CONNECTED":
            self.connected.set()
        elif kind == "STATE_UPDATE":
            self.state, self.is_gone = message["state"], False
            self.updates.append((self.state["epoch"], self.state["version"]))
        elif kind == "STATE_SYNC":
            self.state, self.is_gone = message["state"], False
        elif kind == "SESSION_DELETED":
            self.state, self.is_gone = None, True
        else:
            self.messages.append(message)

    @property
    def identity(self) -> tuple[str, int, str] | None:
        return None if self.state is None else identity(self.state)


# A server of before speaks JSON alone.
_ENCODINGS = itertools.cycle(["lockstep.v2.json", "lockstep.v2.msgpack, lockstep.v2.json"])


class ChangesWatcher(Watcher):
    """The same in protocol v2: it applies changes, and comes back with the position that it has.

    Of these connections every second one is in MessagePack, whoever comes or comes back by it.
    """

    def __init__(self, url: str, session_id: str) -> None:
        super().__init__(url, session_id)
        self.view = View(session_id, keeps_states=False)

    async def _connect(self) -> WsClient:
        headers = {"Sec-WebSocket-Protocol": next(_ENCODINGS)}
        return await WsClient.connect(f"{self.url}/ws", headers=headers, limit=2**20)

    async def _greet(self, client: WsClient) -> None:
        position = {} if self.view.position is None else {"position": self.view.position}
        await client.send({"type": "SUBSCRIBE", "id": 1, "sessionId": self.session_id} | position)

    async def _take(self, client: WsClient, message: Any) -> None:
        if self.view.take(message):
            self.connected.set()
            self.state, self.updates = self.view.state, self.view.events
            self.is_gone = self.state is None
        elif message["type"] == "MESSAGE":
            self.messages.append(message["message"])
        elif message["type"] == "ERROR":
            assert message["code"] == "BROKER_UNAVAILABLE", message
            await asyncio.sleep(message["retryAfterMs"] / 1000)
            await self._greet(client)


PROTOCOLS: tuple[type[Watcher], ...] = (Watcher, ChangesWatcher)


def identity(state: dict[str, Any]) -> tuple[str, int, str]:
    return state["epoch"], state["version"], state["commit"]


@contextlib.asynccontextmanager
async def watching(
    servers: list[ServerProcess],
    session_ids: list[str],
    clients: int,
    protocols: Sequence[type[Watcher]] = PROTOCOLS,
) -> AsyncIterator[list[Watcher]]:
    """`clients` watchers, spread over the servers, the sessions and the protocols."""
    watchers = []
    for n in range(clients):
        session, server = divmod(n, len(servers))
        protocol, session = divmod(session, len(session_ids))
        kind = protocols[protocol % len(protocols)]
        watchers.append(kind(servers[server].ws_url, session_ids[session]))
    tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
    try:
        await asyncio.gather(*(asyncio.wait_for(watcher.connected.wait(), 20) for watcher in watchers))
        yield watchers
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):
                raise AssertionError("a watcher was told what cannot be") from end


@dataclass
class Switcher:
    """Switches sessions at all servers until told to stop, and keeps account of the answers."""

    servers: list[ServerProcess]
    session_ids: list[str]
    pause_s: float = 0.01
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    unknown: int = 0
    slowest_s: float = 0.0
    stopped: bool = False

    async def run(self, worker: int) -> None:
        turn = worker
        while not self.stopped:
            turn += 1
            server = self.servers[turn % len(self.servers)]
            session_id = self.session_ids[turn * 7 % len(self.session_ids)]
            request_id = uuid.uuid4().hex
            began = time.monotonic()
            response = await rest(
                f"{server.url}/v1/sessions/{session_id}/switch", timeout_s=8, X_Request_ID=request_id
            )
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.statuses[response.code] = self.statuses.get(response.code, 0) + 1
            if response.code == 200:
                self.acknowledged.setdefault(session_id, []).append(request_id)
            elif response.code == 503 and b'"unknown"' in response.body:
                self.unknown += 1
            await asyncio.sleep(self.pause_s)


@contextlib.asynccontextmanager
async def switching(
    servers: list[ServerProcess], session_ids: list[str], workers: int = 8
) -> AsyncIterator[Switcher]:
    switcher = Switcher(servers, session_ids)
    tasks = [asyncio.create_task(switcher.run(worker)) for worker in range(workers)]
    try:
        yield switcher
    finally:
        switcher.stopped = True
        await asyncio.gather(*tasks)


async def eventually(check: Any, timeout_s: float, what: str) -> float:
    """Wait until `await check()` gives no complaint; how long it took."""
    began = time.monotonic()
    while True:
        complaint = await check()
        if not complaint:
            return time.monotonic() - began
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"{what}, after {timeout_s} s: {complaint}")
        await asyncio.sleep(0.02)
