"""A server as a backend meets it, by REST; what several tests ask of it and of its answers."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

from tornado.netutil import bind_sockets

from lockstep.config import Settings
from server import Server
from tests.support.processes import Answer, request

DAY_MS = 86_400_000
SOME_ID = "5e000000-0000-4000-8000-000000000000"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
COMMANDS = [
    "start",
    "switch",
    "pause",
    "resume",
    "complete",
    "cancel",
    "adjust",
    "seat",
    "unseat",
    "annotate",
]
LEAST_BODIES: dict[str, Any] = {
    "adjust": {"delta_ms": 1_000},
    "seat": {"participants": [{}]},
    "unseat": {"participant_id": SOME_ID},
    "annotate": {"metadata": {}},
}
"""What the commands say that must say something."""

ROUTES = {
    "/v1/sessions": {"GET", "POST"},
    f"/v1/sessions/{SOME_ID}": {"GET", "DELETE"},
    **{f"/v1/sessions/{SOME_ID}/{name}": {"POST"} for name in [*COMMANDS, "messages", "disconnect"]},
    f"/v1/sessions/{SOME_ID}/events": {"GET"},
    f"/v1/sessions/{SOME_ID}/stream": {"GET"},
    "/v1/time": {"GET"},
    "/health": {"GET"},
    "/ready": {"GET"},
    "/": {"GET"},
    "/ws": {"GET"},
}


class Api:
    """A server, asked by its URL."""

    def __init__(self, url: str, server: Server | None = None) -> None:
        self.url = url
        self._server = server

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def server(self) -> Server:
        """What runs in this very process."""
        assert self._server is not None
        return self._server

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Header names with _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(self.url + path, method, body, named)

    async def create(self, mode: str = "per_participant", seats: int = 2, **fields: Any) -> dict[str, Any]:
        answer = await self("POST", "/v1/sessions", body_of(mode, seats, **fields))
        assert answer.status == 201, answer.raw
        created: dict[str, Any] = answer.data
        return created

    async def running(self, *args: Any, **fields: Any) -> dict[str, Any]:
        session = await self.create(*args, **fields)
        return await self.done(session["session_id"], "start")

    async def command(self, session_id: str, name: str, body: Any = None, **headers: str) -> Answer:
        return await self("POST", f"/v1/sessions/{session_id}/{name}", body, **headers)

    async def done(self, session_id: str, name: str, body: Any = None, **headers: str) -> dict[str, Any]:
        answer = await self.command(session_id, name, body, **headers)
        assert answer.status == 200, answer.raw
        done: dict[str, Any] = answer.data
        return done

    async def read(self, session_id: str) -> dict[str, Any]:
        answer = await self("GET", f"/v1/sessions/{session_id}")
        assert answer.status == 200, answer.raw
        read: dict[str, Any] = answer.data
        return read

    async def events(self, session_id: str, query: str = "") -> list[dict[str, Any]]:
        """The events of all pages, from where the query begins."""
        events: list[dict[str, Any]] = []
        while True:
            answer = await self("GET", f"/v1/sessions/{session_id}/events{query}")
            assert answer.status == 200, answer.raw
            assert len(answer.raw) <= 262_144 or len(answer.data["events"]) == 1
            events += answer.data["events"]
            if answer.data["next_since"] is None:
                return events
            query = f"?since={answer.data['next_since']}&epoch={answer.data['epoch']}"


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Api]:
    """A server in this process, with nothing in it yet."""
    sockets = bind_sockets(0, "127.0.0.1")
    server = Server(Settings(port=0, **settings))
    await server.start(sockets)
    try:
        yield Api(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", server)
    finally:
        await server.stop()


def body_of(mode: str = "per_participant", seats: int = 2, **fields: Any) -> dict[str, Any]:
    group = {"group_id": "red"} if mode == "per_group" else {}
    times = {"global": {"total_time_ms": 60_000}, "per_cycle": {"time_per_cycle_ms": 10_000}}.get(mode, {})
    participants = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} | group for _ in range(seats)]
    return {"sync_mode": mode, "participants": participants} | times | fields


def error_of(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """The error in an answer, after a look at its form."""
    assert answer.status == status, answer.raw
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]
    assert list(answer.body) == ["error"]
    error: dict[str, Any] = answer.body["error"]
    assert {"code", "message"} <= set(error) <= {"code", "message", "details", "retry_after_seconds"}
    assert None not in error.values()
    assert (error["code"], bool(error["message"])) == (code, True)
    if "details" in error:
        assert isinstance(error["details"], list if code == "VALIDATION_ERROR" else dict)
    return error


def fields_of(answer: Answer) -> set[str]:
    """The fields that a refused request is told of."""
    error = error_of(answer, 400, "VALIDATION_ERROR")
    assert error["message"] == "Request validation failed"
    for violation in error["details"]:
        assert set(violation) == {"field", "message", "code"}
        assert all(isinstance(text, str) and text for text in violation.values())
    return {violation["field"] for violation in error["details"]}


def tag(session: dict[str, Any]) -> str:
    return f'"{session["epoch"]}-{session["version"]}-{session["commit"]}"'


def instant_ms(text: str) -> int:
    assert INSTANT.fullmatch(text)
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def ids(session: dict[str, Any]) -> list[str]:
    return [participant["participant_id"] for participant in session["participants"]]


async def each_kind_of_answer(api: Api, may_change: bool = True, **headers: str) -> list[Answer]:
    session_id = (await api.running())["session_id"]
    path = f"/v1/sessions/{session_id}"
    current = (await api("GET", path)).headers["etag"]
    return [
        await api("GET", "/health", **headers),
        await api("GET", "/ready", **headers),
        await api("GET", "/v1/time", **headers),
        await api("POST", "/v1/sessions", body_of(), **headers),
        await api("POST", "/v1/sessions", {}, **headers),
        await api("POST", "/v1/sessions", b"{", **headers),
        await api("POST", "/v1/sessions", b"{}", **headers | {"Content_Type": "text/plain"}),
        # What a page sends that may not send anything is not read on for long.
        *([await api("POST", "/v1/sessions", b" " * 1_048_577, **headers)] if may_change else []),
        await api("GET", path, **headers),
        await api("GET", path, **headers | {"If_None_Match": current}),
        await api("GET", f"/v1/sessions/{uuid4()}", **headers),
        await api("POST", f"{path}/start", **headers),
        await api("POST", f"{path}/switch", {"expected_version": 1}, **headers),
        await api("POST", f"{path}/switch", **headers | {"If_Match": '"x"'}),
        await api("GET", f"{path}/events?epoch=0000000000000", **headers),
        await api("DELETE", path, **headers),
        await api("GET", "/nowhere", **headers),
        await api("PUT", "/health", **headers),
        await api("BREW", "/health", **headers),
        *[await api("GET", path, **headers) for path in ("/", "/page.js", "/client/index.js", "/ws")],
        *[await api("PUT", path, **headers) for path in ("/", "/ws")],
        *[await api("OPTIONS", path, **headers) for path in ("/", "/ws", "/health", "/v1/sessions")],
    ]
