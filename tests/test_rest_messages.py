"""REST: messages to everybody who watches a session."""

import asyncio
from typing import Any

import pytest

from tests.support.api import Api, error_of, fields_of
from tests.support.ws_client import PING, TEXT, WsClient


def message_of(size: int) -> bytes:
    """A message of so many bytes."""
    frame = b'{"type":"NOTE","text":""}'
    return frame[:-2] + b"x" * (size - len(frame)) + frame[-2:]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"CHAT","text":"hello"}',
        b' { "type" : "CHAT" , "n" : [ 1.50, 1E2, -0 ] } ',
        '{"text":"né \\ud83d\\ude00","type":"x"}'.encode(),
        b'{"type":"X","n":123456789012345678901234567890}',
        b'{"type":"X","deep":' + b"[" * 90 + b"]" * 90 + b"}",
        b'{"type":"X","sessionId":"other","message":{"type":"INNER"}}',
        message_of(65_536),
    ],
    ids=lambda raw: str(raw)[:40],
)
async def test_a_message_reaches_every_client_as_it_was_sent(api: Api, raw: bytes) -> None:
    session_id = (await api.create())["session_id"]
    url = f"{api.url.replace('http', 'ws')}/ws?sessionId={session_id}"
    clients = [await WsClient.connect(url, limit=2**20) for _ in range(2)]
    for client in clients:
        await client.recv_type("CONNECTED")
    assert (await api("POST", f"/v1/sessions/{session_id}/messages", raw)).status == 202
    for client in clients:
        async with asyncio.timeout(10):
            while (frame := await client.recv_frame())[0] == PING:
                pass
        assert frame == (TEXT, raw)
        client.abort()


@pytest.mark.parametrize(
    "kind", ["CONNECTED", "STATE_UPDATE", "STATE_SYNC", "SESSION_DELETED", "PONG", "ERROR"]
)
async def test_the_servers_own_types_are_refused(api: Api, kind: str) -> None:
    session_id = (await api.create())["session_id"]
    assert fields_of(await api("POST", f"/v1/sessions/{session_id}/messages", {"type": kind})) == {"type"}


@pytest.mark.parametrize("body", [None, [], "x", {}, {"type": 5}, {"type": ""}, {"message": {"type": "X"}}])
async def test_a_message_without_a_type_is_refused(api: Api, body: Any) -> None:
    session_id = (await api.create())["session_id"]
    answer = await api("POST", f"/v1/sessions/{session_id}/messages", body)
    error_of(answer, 400, "VALIDATION_ERROR")


async def test_a_message_over_64_kib_is_too_large(api: Api) -> None:
    session_id = (await api.create())["session_id"]
    answer = await api("POST", f"/v1/sessions/{session_id}/messages", message_of(65_537))
    error_of(answer, 413, "PAYLOAD_TOO_LARGE")
