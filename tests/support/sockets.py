"""Sessions over REST, and clients that watch them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.support.processes import ServerProcess
from tests.support.ws_client import WsClient


def new_id() -> str:
    return str(uuid.uuid4())


def watch_url(server: ServerProcess, session_id: str) -> str:
    return f"{server.ws_url}/ws?sessionId={session_id}"


@asynccontextmanager
async def watching(server: ServerProcess, *session_ids: str, **how: Any) -> AsyncIterator[list[WsClient]]:
    """A client for each id given, greeted already."""
    async with AsyncExitStack() as stack:
        clients = []
        for session_id in session_ids:
            client = await stack.enter_async_context(
                await WsClient.connect(watch_url(server, session_id), **how)
            )
            assert (await client.recv())["type"] == "CONNECTED"
            clients.append(client)
        yield clients


async def create(
    server: ServerProcess, session_id: str | None = None, *, seats: int = 2, **fields: Any
) -> dict[str, Any]:
    """A chess clock, unless `fields` say something else."""
    body = {
        "session_id": session_id or new_id(),
        "sync_mode": "per_participant",
        "participants": [{"participant_id": new_id(), "total_time_ms": 60_000} for _ in range(seats)],
    } | fields
    answer = await server.call("POST", "/v1/sessions", body)
    assert answer.status == 201, answer.raw
    state: dict[str, Any] = answer.data
    return state


async def command(server: ServerProcess, session_id: str, name: str, **body: Any) -> dict[str, Any]:
    """SESSION_BUSY says that nothing was applied: it is sent again, as often as a slow machine needs it."""
    answer = await server.call("POST", f"/v1/sessions/{session_id}/{name}", body)
    while answer.status == 503 and answer.body["error"]["code"] == "SESSION_BUSY":
        answer = await server.call("POST", f"/v1/sessions/{session_id}/{name}", body)
    state: dict[str, Any] = answer.data
    return state
