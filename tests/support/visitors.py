"""Clients of sessions with presence, over real servers, and what REST says of who is there."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.api import body_of
from tests.support.followers import V2, Follower, View
from tests.support.presence_view import PresenceView
from tests.support.processes import ServerProcess
from tests.support.tokens import token
from tests.support.ws_client import WsClient

ADMIN = {"Authorization": f"Bearer {token()}"}


async def created(server: ServerProcess, **fields: Any) -> str:
    body = body_of("global", 0, **({"presence": True} | fields))
    answer = await server.call("POST", "/v1/sessions", json.dumps(body).encode(), ADMIN)
    assert answer.status == 201, answer.raw
    return str(answer.data["session_id"])


async def delete(server: ServerProcess, session_id: str) -> None:
    assert (await server.call("DELETE", f"/v1/sessions/{session_id}", None, ADMIN)).status == 204


async def listing(server: ServerProcess, session_id: str) -> tuple[dict[str, int], int]:
    """As REST has it: connections by subject, and how many are anonymous."""
    answer = await server.call("GET", f"/v1/sessions/{session_id}/presence", None, ADMIN)
    assert answer.status == 200, answer.raw
    present, anonymous = answer.data["present"], answer.data["anonymous"]
    instants = [(each["since"], each["subject"]) for each in present]
    assert instants == sorted(instants)
    assert answer.data["total"] == len(present) + anonymous
    return {each["subject"]: each["connections"] for each in present}, anonymous


async def eventually(expected: Any, ask: Any, timeout_s: float = 20.0) -> None:
    found = None
    try:
        async with asyncio.timeout(timeout_s):
            while (found := await ask()) != expected:
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found}, and not {expected}") from None


class Visitor(Follower):
    """A client of a subject, or of none, that follows one session and hears who is there."""

    def __init__(self, server: ServerProcess, session_id: str, subject: str | None, **how: str) -> None:
        claims = {} if subject is None else {"sub": subject}
        bearer = {"Authorization": f"Bearer {token('view', **claims)}"}
        super().__init__(server.ws_url, (V2 | how) | bearer)
        self.session_id = session_id
        self.subject = subject

    @property
    def view(self) -> View:
        return self.views[self.session_id]

    @property
    def presence(self) -> PresenceView:
        assert self.view.presence is not None
        return self.view.presence

    async def hears(self, *subjects: str, anonymous: int = 0) -> None:
        """It is told that these are there, and so many anonymous ones."""

        def is_told() -> bool:
            presence = self.view.presence
            return presence is not None and (presence.subjects, presence.anonymous) == (
                set(subjects),
                anonymous,
            )

        try:
            await self.until(is_told)
        except AssertionError:
            raise AssertionError(f"{self.subject} has {self.view.presence}, not {subjects}") from None


class Scene:
    """One session with presence, and who visits it. Who is not sent off stays to the end."""

    def __init__(self, servers: list[ServerProcess], stack: AsyncExitStack, session_id: str) -> None:
        self.servers = servers
        self.session_id = session_id
        self._stack = stack

    async def visitor(self, subject: str | None, door: int = 0, **how: str) -> Visitor:
        visitor = Visitor(self.servers[door], self.session_id, subject, **how)
        await visitor.connect()
        await visitor.follow(self.session_id)
        self._stack.push_async_callback(visitor.leave)
        return visitor

    async def old_client(self, subject: str | None, door: int = 0) -> WsClient:
        """One that speaks protocol v1."""
        claims = {} if subject is None else {"sub": subject}
        url = f"{self.servers[door].ws_url}/ws?sessionId={self.session_id}"
        bearer = {"Authorization": f"Bearer {token('view', **claims)}"}
        client = await self._stack.enter_async_context(await WsClient.connect(url, headers=bearer))
        assert (await client.recv())["type"] == "CONNECTED"
        return client

    async def listing(self, door: int = 0) -> tuple[dict[str, int], int]:
        return await listing(self.servers[door], self.session_id)


@asynccontextmanager
async def a_scene(servers: list[ServerProcess], **fields: Any) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(servers, stack, await created(servers[0], **fields))


def started(secret: Path, *options: str) -> ServerProcess:
    return ServerProcess(f"--jwt-secret-file={secret}", "--log-level=warning", "--drain-s=2", *options)
