"""Idempotency-Key: a request that comes again is done once, and told the same."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.processes import Answer, ServerProcess, request
from tests.redis_server import RedisServer
from tests.ws_client import WsClient

CHESS = {
    "sync_mode": "per_participant",
    "participants": [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(2)],
}


@pytest.fixture(scope="module", params=["memory", "redis"])
def urls(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Of processes that share their sessions: one on memory, two on Redis."""
    if request.param == "memory":
        server = ServerProcess()
        yield [server.url, server.url]
        server.stop()
        return
    redis = RedisServer()
    servers = [ServerProcess(f"--broker={redis.url}") for _ in range(2)]
    yield [server.url for server in servers]
    for server in servers:
        server.stop()
    redis.close()


async def post(url: str, path: str, body: Any = None, key: str | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["Idempotency-Key"] = key
    return await request(url + path, "POST", body, named)


async def running(url: str, **fields: Any) -> str:
    created = await post(url, "/v1/sessions", CHESS | fields)
    session_id: str = created.data["session_id"]
    await post(url, f"/v1/sessions/{session_id}/start")
    return session_id


async def version(url: str, session_id: str) -> int:
    read = await request(f"{url}/v1/sessions/{session_id}", "GET", None, {})
    found: int = read.data["version"]
    return found


async def test_a_switch_that_comes_again_is_told_the_same_and_applied_no_more(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/switch"
    first = await post(urls[0], path, key=key)
    again = await post(urls[1], path, key=key)
    assert (first.status, again.status) == (200, 200)
    assert again.raw == first.raw
    assert again.headers["etag"] == first.headers["etag"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await version(urls[0], session_id) == 3
    assert (await post(urls[1], path, key=uuid4().hex)).data["version"] == 4


async def test_a_session_created_again_is_the_same_session(urls: list[str]) -> None:
    key = uuid4().hex
    first, again = [await post(url, "/v1/sessions", CHESS, key) for url in urls]
    assert (first.status, again.status) == (201, 201)
    assert again.raw == first.raw
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_message_sent_again_is_published_once(urls: list[str]) -> None:

    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/messages"
    async with await WsClient.connect(f"{urls[0].replace('http', 'ws')}/ws?sessionId={session_id}") as client:
        assert (await client.recv())["type"] == "CONNECTED"
        for url in (*urls, *urls):
            assert (await post(url, path, {"type": "NOTE", "n": 1}, key)).status == 202
        assert (await post(urls[1], path, {"type": "NOTE", "n": 2}, uuid4().hex)).status == 202
        assert [(await client.recv())["n"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("path", ["/switch", "/messages", ""], ids=["command", "message", "creation"])
async def test_the_same_key_with_another_body_is_refused(urls: list[str], path: str) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    bodies = {
        "/switch": [{}, {"expected_version": 99}],
        "/messages": [{"type": "A"}, {"type": "B"}],
        "": [CHESS, CHESS | {"metadata": {"a": 1}}],
    }[path]
    full = f"/v1/sessions/{session_id}{path}" if path else "/v1/sessions"
    assert (await post(urls[0], full, bodies[0], key)).status in (200, 201, 202)
    other = await post(urls[1], full, bodies[1], key)
    assert (other.status, other.body["error"]["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_key_belongs_to_one_path(urls: list[str]) -> None:
    key = uuid4().hex
    first, second = await running(urls[0]), await running(urls[0])
    for session_id in (first, second):
        answer = await post(urls[0], f"/v1/sessions/{session_id}/switch", key=key)
        assert "idempotent-replayed" not in answer.headers
        assert await version(urls[0], session_id) == 3


async def test_what_was_refused_is_decided_anew(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/resume"
    assert (await post(urls[0], path, key=key)).status == 400  # it is running
    await post(urls[0], f"/v1/sessions/{session_id}/pause")
    assert (await post(urls[1], path, key=key)).status == 200


async def test_of_twenty_at_once_one_is_applied(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/switch"
    answers = await asyncio.gather(*(post(urls[n % 2], path, key=key) for n in range(20)))
    assert {answer.raw for answer in answers} == {answers[0].raw}
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert await version(urls[0], session_id) == 3


async def test_a_long_answer_is_told_again_as_the_current_state(urls: list[str]) -> None:
    seats = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(50)]
    key = uuid4().hex
    first = await post(urls[0], "/v1/sessions", CHESS | {"participants": seats}, key)
    session_id = first.data["session_id"]
    await post(urls[0], f"/v1/sessions/{session_id}/start")
    again = await post(urls[1], "/v1/sessions", CHESS | {"participants": seats}, key)
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status, again.data["session_id"], again.data["version"]) == (201, session_id, 2)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Idempotency-Key": "x" * 256}, "Idempotency-Key"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "0"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "86401"}, "Idempotency-TTL"),
        ({"Idempotency-Key": "k", "Idempotency-TTL": "soon"}, "Idempotency-TTL"),
    ],
    ids=["long", "zero", "beyond", "no number"],
)
async def test_a_bad_key_is_refused_and_named(urls: list[str], headers: dict[str, str], field: str) -> None:
    session_id = await running(urls[0])
    answer = await request(f"{urls[0]}/v1/sessions/{session_id}/switch", "POST", None, headers)
    assert answer.status == 400
    assert [each["field"] for each in answer.body["error"]["details"]] == [field]
    assert await version(urls[0], session_id) == 2


async def test_a_key_is_forgotten_when_its_time_is_over(urls: list[str]) -> None:
    session_id, key = await running(urls[0]), uuid4().hex
    path = f"/v1/sessions/{session_id}/switch"
    await post(urls[0], path, key=key, Idempotency_TTL="1")
    assert "idempotent-replayed" in (await post(urls[0], path, key=key, Idempotency_TTL="1")).headers
    async with asyncio.timeout(10):
        while "idempotent-replayed" in (await post(urls[0], path, key=key, Idempotency_TTL="1")).headers:
            await asyncio.sleep(0.05)
    assert await version(urls[0], session_id) == 4
