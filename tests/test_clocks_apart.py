"""Masters of a cluster whose clocks are far apart: each session goes by its own, and clients know how far."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from broker.keys import partition_of, slot_of
from lockstep.rules.state_json import from_iso
from tests.support.commits import new_id
from tests.support.load import data, eventually, rest
from tests.support.metrics import figures
from tests.support.processes import ServerProcess
from tests.support.redis_cluster import RedisCluster
from tests.support.ws_client import WsClient

# The last one has partition 0, by which clients go.
AHEAD_S = (60.0, -60.0, 0.0)
# What a busy machine may take over a request.
SLOW_S = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster(replicas=0, node_timeout_ms=15_000, clocks_ahead_s=AHEAD_S)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def server(cluster: RedisCluster) -> Iterator[ServerProcess]:
    server = ServerProcess(f"--broker={cluster.url}", "--log-level=warning")
    yield server
    server.stop()


def session_at(cluster: RedisCluster, place: int) -> str:
    ids = iter(new_id, "")
    return next(each for each in ids if cluster.master_of(slot_of(partition_of(each))).place == place)


async def start(server: ServerProcess, session_id: str) -> None:
    """A session of one second."""
    spec = {"session_id": session_id, "sync_mode": "global", "total_time_ms": 1000, "on_timeout": "expire"}
    participants = [{"participant_id": new_id()}]
    data(await rest(f"{server.url}/v1/sessions", spec | {"participants": participants}))
    data(await rest(f"{server.url}/v1/sessions/{session_id}/start"))


async def until(client: WsClient, status: str) -> dict[str, Any]:
    """The state that says so."""
    while True:
        state: dict[str, Any] = (await client.recv(SLOW_S)).get("state", {})
        if state.get("status") == status:
            return state


@pytest.mark.parametrize("place", range(3))
async def test_a_session_is_dated_and_expires_by_its_masters_clock(
    cluster: RedisCluster, server: ServerProcess, place: int
) -> None:
    session_id = await asyncio.to_thread(session_at, cluster, place)
    async with await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}") as client:
        await start(server, session_id)
        state = await until(client, "expired")
        began_ms = from_iso(state["session_started_at"])
        assert began_ms is not None
        assert abs(began_ms - (time.time() + AHEAD_S[place]) * 1000) < SLOW_S * 1000
        assert from_iso(state["updated_at"]) == began_ms + 1000


async def test_clients_are_told_how_far_the_clocks_are_apart(server: ServerProcess) -> None:
    headers = {"Sec-WebSocket-Protocol": "lockstep.v2.json"}
    async with await WsClient.connect(f"{server.ws_url}/ws", headers=headers) as client:
        welcome = await client.recv()
        assert 60_000 <= welcome["errorMs"] < 60_000 + SLOW_S * 1000
        assert abs(welcome["timestamp"] - time.time() * 1000) < SLOW_S * 1000


async def test_clocks_that_are_apart_are_counted(server: ServerProcess) -> None:
    async def complaint() -> str:
        return "" if (await figures(server.url))["lockstep_clocks_apart_total"] else "nothing is counted"

    await eventually(complaint, SLOW_S, "nobody looks")
