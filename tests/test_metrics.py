"""/metrics: what a scripted scenario implies, to the last count."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.support.metrics import figures
from tests.support.processes import ServerProcess, request
from tests.support.redis_server import RedisServer
from tests.support.ws_client import Closed, WsClient


@asynccontextmanager
async def changes_of(url: str) -> AsyncIterator[dict[str, float]]:
    """What has been counted within; gauges as they are at the end."""
    before = await figures(url)
    changes: dict[str, float] = {}
    yield changes
    changes.update({name: value - before.get(name, 0.0) for name, value in (await figures(url)).items()})


@pytest.fixture
def server() -> Any:
    server = ServerProcess("--log-level=warning")
    yield server
    server.stop()


async def post(url: str, path: str, body: Any = None) -> Any:
    answer = await request(f"{url}/v1/sessions{path}", "POST", body)
    return answer.body


def chess() -> dict[str, Any]:
    seats = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(2)]
    return {"sync_mode": "per_participant", "participants": seats}


async def joined(server: ServerProcess, session_id: str) -> WsClient:
    client = await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}")
    assert (await client.recv())["type"] == "CONNECTED"
    return client


async def test_a_scenario_is_counted_to_the_last_message(server: ServerProcess) -> None:
    async with changes_of(server.url) as seen:
        session_id = (await post(server.url, "", chess()))["data"]["session_id"]
        clients = [await joined(server, session_id) for _ in range(3)]
        await post(server.url, f"/{session_id}/start")
        await post(server.url, f"/{session_id}/switch")
        await post(server.url, f"/{session_id}/messages", {"type": "NOTE"})
        for client in clients:
            assert [(await client.recv())["type"] for _ in range(3)] == ["STATE_UPDATE"] * 2 + ["NOTE"]
        await clients[0].send({"type": "PING"})
        await clients[0].send({"type": "RECONNECT"})
        await clients[0].send({"type": "NONSENSE"})
        assert [(await clients[0].recv())["type"] for _ in range(3)] == ["PONG", "STATE_SYNC", "ERROR"]
        now = await figures(server.url)
        assert (now["lockstep_connections"], now["lockstep_rooms"]) == (3, 1)
        await post(server.url, f"/{session_id}/resume")  # refused: it is running
        await request(f"{server.url}/v1/sessions/{session_id}", "DELETE")
        for client in clients:
            assert (await client.recv())["type"] == "SESSION_DELETED"
            assert await client.recv() == Closed(1000, "Session deleted")
            await client.close()
        async with asyncio.timeout(10):
            while (await figures(server.url)).get('lockstep_connections_closed_total{code="1000"}', 0) < 3:
                await asyncio.sleep(0.01)
    expected = {
        "lockstep_connections": 0,
        "lockstep_rooms": 0,
        "lockstep_connections_opened_total": 3,
        'lockstep_connections_closed_total{code="1000"}': 3,
        'lockstep_messages_total{direction="in",type="PING"}': 1,
        'lockstep_messages_total{direction="in",type="RECONNECT"}': 1,
        'lockstep_messages_total{direction="in",type="unknown"}': 1,
        'lockstep_messages_total{direction="out",type="CONNECTED"}': 3,
        'lockstep_messages_total{direction="out",type="STATE_UPDATE"}': 6,
        'lockstep_messages_total{direction="out",type="RELAYED"}': 3,
        'lockstep_messages_total{direction="out",type="PONG"}': 1,
        'lockstep_messages_total{direction="out",type="STATE_SYNC"}': 1,
        'lockstep_messages_total{direction="out",type="ERROR"}': 1,
        'lockstep_messages_total{direction="out",type="SESSION_DELETED"}': 3,
        "lockstep_broadcast_seconds_count": 2,
        "lockstep_gaps_total": 0,
        "lockstep_resyncs_total": 0,
        "lockstep_junk_total": 0,
        "lockstep_slow_closes_total": 0,
        "lockstep_conflated_states_total": 0,
        'lockstep_request_seconds_count{code="201",method="POST",route="/v1/sessions"}': 1,
        'lockstep_request_seconds_count{code="200",method="POST",route="/v1/sessions/ID/start"}': 1,
        'lockstep_request_seconds_count{code="200",method="POST",route="/v1/sessions/ID/switch"}': 1,
        'lockstep_request_seconds_count{code="202",method="POST",route="/v1/sessions/ID/messages"}': 1,
        'lockstep_request_seconds_count{code="400",method="POST",route="/v1/sessions/ID/resume"}': 1,
        'lockstep_request_seconds_count{code="204",method="DELETE",route="/v1/sessions/ID"}': 1,
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert not [name for name, value in seen.items() if value < 0]


async def test_paths_do_not_grow_the_figures(server: ServerProcess) -> None:
    for path in ("/first", f"/v1/sessions/{uuid4()}", "/metrics"):
        await request(f"{server.url}{path}", "GET")
    before = set(await figures(server.url))
    for number in range(0, 2000, 50):
        paths = [f"/nowhere/{number + n}" for n in range(25)] + [f"/v1/sessions/{uuid4()}" for _ in range(25)]
        await asyncio.gather(*(request(f"{server.url}{path}", "GET") for path in paths))
    after = set(await figures(server.url))
    assert after == before
    unknown = (await figures(server.url))[
        'lockstep_request_seconds_count{code="404",method="GET",route="unknown"}'
    ]
    assert unknown == 1001


async def test_expiries_gaps_and_syncs_are_counted() -> None:
    redis = RedisServer()
    server = ServerProcess(f"--broker={redis.url}", "--log-level=error")
    try:
        body = chess()
        body["participants"][0]["total_time_ms"] = 1000
        session_id = (await post(server.url, "", body))["data"]["session_id"]
        async with await joined(server, session_id) as client:
            await post(server.url, f"/{session_id}/start")
            started, expired = [await client.recv() for _ in range(2)]
            assert [each["state"]["version"] for each in (started, expired)] == [2, 3]
            before = await figures(server.url)
            assert before["lockstep_expiry_lateness_seconds_count"] == 1
            late_ms = expired["timestamp"] - started["state"]["deadline_ms"]
            assert before["lockstep_expiry_lateness_seconds_sum"] == pytest.approx(late_ms / 1000)
            assert before["lockstep_redis_seconds_count"] > 0
            assert before["lockstep_probe_age_seconds"] < 10
            assert before["lockstep_ready"] == 1
            with redis.client as admin:
                admin.client_kill_filter(_type="pubsub")
                async with asyncio.timeout(10):
                    while (now := await figures(server.url))["lockstep_gaps_total"] == before[
                        "lockstep_gaps_total"
                    ]:
                        await asyncio.sleep(0.01)
            assert now["lockstep_gaps_total"] == before["lockstep_gaps_total"] + 1
            redis.kill()
            async with asyncio.timeout(10):
                while (await figures(server.url))["lockstep_ready"]:
                    await asyncio.sleep(0.01)
    finally:
        server.stop()
        redis.close()
