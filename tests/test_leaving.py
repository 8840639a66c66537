"""A client may leave at any moment, also while it is let in or answered: nothing of it stays behind."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest

from broker.memory import MemoryBroker
from handlers import connection as connection_module
from lockstep.config import Settings
from server import Server
from tests.support.load import eventually
from tests.support.loop_time import LoopTime
from tests.support.ws_client import Closed, WsClient

SECRET = "s" * 32
# Of a token that runs out. Longer than a slow machine takes to let a client in.
TTL_S = 100


class Gate:
    """Holds up calls of one method of the broker until it is opened."""

    def __init__(self, server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open = asyncio.Event()
        self.waiting = 0
        method = getattr(server.broker, name)

        async def gated(*args: Any) -> Any:
            self.waiting += 1
            try:
                await self.is_open.wait()
            finally:
                self.waiting -= 1
            return await method(*args)

        monkeypatch.setattr(server.broker, name, gated)

    async def reached(self) -> None:
        async def complaint() -> str:
            return "" if self.waiting else "nobody waits there"

        await eventually(complaint, 5, "the client did not come so far")


@asynccontextmanager
async def a_server(tmp_path: Path) -> AsyncIterator[tuple[Server, str]]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    server = Server(
        Settings(
            port=0, jwt_secret_file=str(secret), max_connections_per_session=10, max_connections_per_ip=10
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        await server.start([listener])
        try:
            yield server, f"ws://127.0.0.1:{port}/ws"
        finally:
            if not server._is_draining:
                await server.stop()


def token(ttl_s: float) -> str:
    return jwt.encode({"sid": "*", "scope": "view", "exp": time.time() + ttl_s}, SECRET, "HS256")


def traces(server: Server) -> dict[str, Any]:
    """What the process keeps of its clients, where it is anything."""
    assert isinstance(server.broker, MemoryBroker)
    kept = {
        "peers": server.hub.peers,
        "rooms": server.hub.rooms,
        "joining": server.hub._joining,
        "unread rooms": server.hub.repair._new.session_ids,
        "heartbeats": server.heartbeat.sockets.owners(),
        "places": server.broker._occupancy.counts,
        "armed deadlines": server.deadlines._armed,
    }
    return {name: what for name, what in kept.items() if what}


async def assert_no_trace(server: Server) -> None:
    async def complaint() -> str:
        return str(traces(server) or "")

    await eventually(complaint, 10, "something stayed behind")


@pytest.mark.parametrize("how", ["reset", "token expires", "token expires and it is cut off"])
@pytest.mark.parametrize("at", ["enter", "hear"])
async def test_a_client_that_leaves_while_it_is_let_in_leaves_no_trace(
    at: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_TIMEOUT_S", 0.1)
    async with a_server(tmp_path) as (server, url):
        gate = Gate(server, at, monkeypatch)
        client = await WsClient.connect(f"{url}?sessionId={uuid4()}&token={token(TTL_S)}")
        await gate.reached()
        closed = server.metrics.count_closed
        ended = asyncio.Event()
        monkeypatch.setattr(server.metrics, "count_closed", lambda code: (closed(code), ended.set()))
        if how == "reset":
            client.abort()
        else:
            LoopTime(runs=True).skip(TTL_S)
        if how == "token expires":
            assert (await client.recv()).code == 4501
        elif how == "token expires and it is cut off":
            await asyncio.wait_for(ended.wait(), 10)
        gate.is_open.set()
        await asyncio.wait_for(ended.wait(), 10)
        await assert_no_trace(server)


@pytest.mark.parametrize("at", ["load", "beginnings"])
async def test_a_client_that_leaves_while_it_is_answered_leaves_no_trace(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_server(tmp_path) as (server, url):
        gate = Gate(server, at, monkeypatch)
        client = await WsClient.connect(f"{url}?sessionId={uuid4()}&token={token(600)}")
        assert (await client.recv())["type"] == "CONNECTED"
        await client.send({"type": "RECONNECT"})
        await gate.reached()
        client.abort()
        gate.is_open.set()
        await assert_no_trace(server)


async def test_a_client_that_is_refused_a_place_leaves_no_trace(tmp_path: Path) -> None:
    async with a_server(tmp_path) as (server, url):
        session_id = uuid4()
        clients = [
            await WsClient.connect(f"{url}?sessionId={session_id}&token={token(600)}") for _ in range(12)
        ]
        first = [await client.recv() for client in clients]
        assert any(isinstance(each, Closed) for each in first), "all were let in"
        assert any(isinstance(each, dict) and each["type"] == "CONNECTED" for each in first)
        for client in clients:
            client.abort()
        await assert_no_trace(server)


async def test_a_client_that_comes_while_the_process_ends_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_server(tmp_path) as (server, url):
        gate = Gate(server, "hear", monkeypatch)
        client = await WsClient.connect(f"{url}?sessionId={uuid4()}&token={token(600)}")
        await gate.reached()
        stopping = asyncio.create_task(server.stop())
        gate.is_open.set()
        while not isinstance(await client.recv(), Closed):
            pass  # it may have been greeted before
        await stopping
        await assert_no_trace(server)
