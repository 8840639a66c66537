"""REST as a backend meets it: each row of the table, each error, each header, each limit."""

import asyncio
import gc
import json
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.platform.asyncio import AsyncIOLoop
from tornado.web import RequestHandler

from broker.memory import MemoryBroker
from handlers.api import ApiHandler, Front
from lockstep.config import Settings
from lockstep.contract import Commit, Outcome
from lockstep.errors import BrokerUnavailable
from lockstep.rules import engine
from server import Server
from tests.load import eventually
from tests.processes import Answer, ServerProcess, request
from tests.ws_client import PING, TEXT, WsClient

DAY_MS = 86_400_000
SOME_ID = "5e000000-0000-4000-8000-000000000000"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
COMMANDS = ["start", "switch", "pause", "resume", "complete", "cancel", "adjust"]


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


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    server = ServerProcess("--log-level=info")
    yield server
    server.stop()


@pytest.fixture
def api(process: ServerProcess) -> Api:
    """A server process that other tests here have used too."""
    return Api(process.url)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Api]:
    """A server in this process, with nothing in it yet."""
    sockets = bind_sockets(0, "127.0.0.1")
    server = Server(Settings(port=0, **settings))
    await server.start(sockets)
    yield Api(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", server)
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


# --- the plainest handlers, by pytest-tornado ----------------------------------------------------


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """The plugin's own sets its loop in a way that Tornado calls deprecated."""
    loop = AsyncIOLoop(make_current=False)
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


@pytest.fixture
def app() -> Front:
    return Server(Settings(origins="*")).front


@pytest.mark.gen_test
async def test_health_is_ok_and_bare(http_client: Any, base_url: str) -> None:
    answer = await http_client.fetch(f"{base_url}/health")
    assert json.loads(answer.body) == {"status": "ok"}
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.gen_test
async def test_ready_is_ready_and_bare(http_client: Any, base_url: str) -> None:
    answer = await http_client.fetch(f"{base_url}/ready")
    assert (answer.code, json.loads(answer.body)) == (200, {"status": "ready"})


@pytest.mark.gen_test
async def test_an_unknown_route_is_not_found_in_json(http_client: Any, base_url: str) -> None:
    answer = await http_client.fetch(f"{base_url}/nowhere", raise_error=False)
    assert (answer.code, json.loads(answer.body)["error"]["code"]) == (404, "NOT_FOUND")
    assert answer.headers["Content-Type"].startswith("application/json")


@pytest.mark.gen_test
async def test_a_session_can_be_created_and_read(http_client: Any, base_url: str) -> None:
    url = f"{base_url}/v1/sessions"
    as_json = {"Content-Type": "application/json"}
    created = await http_client.fetch(url, method="POST", headers=as_json, body=json.dumps(body_of()))
    session = json.loads(created.body)["data"]
    read = await http_client.fetch(f"{url}/{session['session_id']}")
    assert (created.code, json.loads(read.body)) == (201, {"data": session})


# --- create and read -----------------------------------------------------------------------------


async def test_create_answers_201_with_the_state(api: Api) -> None:
    body = body_of(seats=3, increment_ms=2_000, metadata={"round": 1})
    answer = await api("POST", "/v1/sessions", body)
    assert answer.status == 201
    assert list(answer.body) == ["data"]
    assert answer.headers["content-type"].startswith("application/json")
    session = answer.data
    assert UUID(session["session_id"]).version == 4
    assert re.fullmatch("[0-9a-z]{13}", session["epoch"])
    assert (session["version"], session["status"], session["sync_mode"]) == (1, "pending", "per_participant")
    assert ids(session) == [each["participant_id"] for each in body["participants"]]
    assert [each["participant_index"] for each in session["participants"]] == [0, 1, 2]
    assert (session["increment_ms"], session["metadata"]) == (2_000, {"round": 1})
    assert (session["time_per_cycle_ms"], session["deadline_ms"]) == (None, None)
    assert "max_time_ms" not in session
    assert session["created_at"] == session["updated_at"]
    assert INSTANT.fullmatch(session["created_at"])
    assert session["clock"] == {"kind": "participant", "remaining_ms": 60_000}
    head = '{{"session_id":"{}","epoch":"{}","version":1,"commit":"{}","deadline_ms":null,'.format(
        session["session_id"], session["epoch"], session["commit"]
    )
    assert answer.raw.startswith(b'{"data":' + head.encode())
    assert (await api.read(session["session_id"])) == session


@pytest.mark.parametrize("mode", ["per_participant", "per_cycle", "per_group", "global", "count_up"])
async def test_each_mode_runs_from_create_to_complete(api: Api, mode: str) -> None:
    session = await api.create(mode)
    session_id = session["session_id"]
    assert (await api.done(session_id, "start"))["status"] == "running"
    assert (await api.done(session_id, "switch"))["active_participant_id"] == ids(session)[1]
    assert (await api.done(session_id, "pause"))["cycle_started_at"] is None
    assert (await api.done(session_id, "resume"))["status"] == "running"
    done = await api.done(session_id, "complete")
    assert (done["status"], done["version"], done["clock"]) == ("completed", 6, None)
    assert (done["active_participant_id"], done["deadline_ms"]) == (None, None)
    assert not any(each["is_active"] for each in done["participants"])


async def test_a_second_create_answers_409_and_leaves_the_first_untouched(api: Api) -> None:
    session = await api.running()
    session_id = session["session_id"]
    for same in (session_id, session_id.upper()):
        second = await api("POST", "/v1/sessions", body_of(session_id=same))
        error_of(second, 409, "SESSION_EXISTS")
    assert await api.read(session_id) == session
    assert len(await api.events(session_id)) == 2


async def test_of_many_creates_of_an_id_one_wins(api: Api) -> None:
    session_id = str(uuid4())
    answers = await asyncio.gather(
        *(api("POST", "/v1/sessions", body_of(session_id=session_id)) for _ in range(20))
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19
    (won,) = (answer.data for answer in answers if answer.status == 201)
    assert await api.read(session_id) == won


async def test_ids_are_the_same_in_upper_case(api: Api) -> None:
    session_id, participant_id = str(uuid4()), str(uuid4())
    body = body_of(session_id=session_id.upper(), seats=1)
    body["participants"].append({"participant_id": participant_id.upper(), "total_time_ms": 5_000})
    session = (await api("POST", "/v1/sessions", body)).data
    assert (session["session_id"], ids(session)[1]) == (session_id, participant_id)
    upper = session_id.upper()
    assert await api.read(upper) == session
    started = await api.done(upper, "start", {"participant_id": participant_id.upper()})
    assert (started["session_id"], started["active_participant_id"]) == (session_id, participant_id)
    switched = await api.done(upper, "switch", {"expected_participant_id": participant_id.upper()})
    assert switched["version"] == 3
    assert len(await api.events(upper)) == 3
    assert (await api("POST", f"/v1/sessions/{upper}/messages", {"type": "X"})).status == 202
    assert (await api("DELETE", f"/v1/sessions/{upper}")).status == 204
    error_of(await api("GET", f"/v1/sessions/{session_id}"), 404, "SESSION_NOT_FOUND")


async def test_null_means_absent(api: Api) -> None:
    body = body_of(
        session_id=None,
        increment_ms=None,
        max_time_ms=None,
        total_time_ms=None,
        metadata=None,
        on_timeout=None,
    )
    body["participants"][0] |= {"participant_index": None, "group_id": None}
    session = (await api("POST", "/v1/sessions", body)).data
    assert (session["increment_ms"], session["metadata"], session["on_timeout"]) == (0, {}, "flag")
    assert "max_time_ms" not in session
    assert "group_id" not in session["participants"][0]
    started = await api.done(
        session["session_id"], "start", {"participant_id": None, "expected_version": None}
    )
    assert started["active_participant_id"] == ids(session)[0]
    nulls = {"next_participant_id": None, "expected_participant_id": None, "expected_version": None}
    assert (await api.done(session["session_id"], "switch", nulls))["version"] == 3


@pytest.mark.parametrize("body", [None, {}, b""])
async def test_a_commands_body_may_be_missing_or_empty(api: Api, body: Any) -> None:
    session_id = (await api.create())["session_id"]
    for name in ("start", "switch", "pause", "resume", "complete"):
        await api.done(session_id, name, body)
    await api.done((await api.create())["session_id"], "cancel", body)


async def test_metadata_comes_back_as_it_was_given(api: Api) -> None:
    metadata = {
        "": None,
        "text": 'né / \\ " \u2028 \x00 \U0001f600',
        "numbers": [0, -1, 2**53, 2**64, -(10**30), 0.1, 1.5e-7, 1e22],
        "deep": [[[[{"a": {"b": [True, False, None, {}, []]}}]]]],
    }
    session = await api.create(metadata=metadata)
    assert session["metadata"] == metadata
    assert (await api.running(metadata=metadata))["metadata"] == metadata


async def test_reading_what_is_not_there_is_404(api: Api) -> None:
    session_id = str(uuid4())
    for method, path, body in [
        ("GET", "", None),
        ("GET", "/events", None),
        ("POST", "/messages", {"type": "X"}),
        *(("POST", f"/{name}", {"delta_ms": 1} if name == "adjust" else None) for name in COMMANDS),
    ]:
        answer = await api(method, f"/v1/sessions/{session_id}{path}", body)
        error = error_of(answer, 404, "SESSION_NOT_FOUND")
        assert error == {"code": "SESSION_NOT_FOUND", "message": f"Session {session_id} not found"}


# --- the limits ----------------------------------------------------------------------------------


def with_bank(time_ms: int) -> dict[str, Any]:
    return body_of() | {"participants": [{"participant_id": str(uuid4()), "total_time_ms": time_ms}]}


def metadata_of(size: int) -> dict[str, str]:
    return {"k": "x" * (size - len('{"k":""}'))}


TIMES = [(999, False), (1_000, True), (DAY_MS, True), (DAY_MS + 1, False)]
LIMITS = [
    *((with_bank(ms), "participants.0.total_time_ms", fits) for ms, fits in TIMES),
    *(
        (body_of(mode, **{field: ms}), field, fits)
        for mode, field in (
            ("per_cycle", "time_per_cycle_ms"),
            ("global", "total_time_ms"),
            ("count_up", "max_time_ms"),
        )
        for ms, fits in TIMES
    ),
    *((body_of(increment_ms=ms), "increment_ms", 0 <= ms <= 60_000) for ms in (-1, 0, 60_000, 60_001)),
    *((body_of(metadata=metadata_of(size)), "metadata", size <= 4096) for size in (4096, 4097)),
    *((body_of(mode, seats=1_000), "participants", True) for mode in ("per_group", "count_up")),
    *((body_of(mode, seats=1_001), "participants", False) for mode in ("per_participant", "global")),
    *((body_of(mode, seats=0), "participants", True) for mode in ("global", "count_up")),
    *((body_of(m, seats=0), "participants", False) for m in ("per_participant", "per_cycle", "per_group")),
]


@pytest.mark.parametrize(("body", "field", "fits"), LIMITS, ids=lambda value: str(value)[:40])
async def test_what_fits_the_limits_is_created_and_nothing_else(
    api: Api, body: dict[str, Any], field: str, fits: bool
) -> None:
    body = body | {"session_id": str(uuid4())}
    answer = await api("POST", "/v1/sessions", body)
    read = await api("GET", f"/v1/sessions/{body['session_id']}")
    if fits:
        assert (answer.status, read.status) == (201, 200)
    else:
        assert fields_of(answer) == {field}
        error_of(read, 404, "SESSION_NOT_FOUND")


async def test_all_violations_are_told_at_once(api: Api) -> None:
    body = body_of(increment_ms=-1, on_timeout="never", colour="red", session_id="x")
    body["participants"][1] |= {
        "total_time_ms": "60000",
        "participant_id": body["participants"][0]["participant_id"],
    }
    assert fields_of(await api("POST", "/v1/sessions", body)) == {
        "increment_ms",
        "on_timeout",
        "colour",
        "session_id",
        "participants.1.total_time_ms",
        "participants.1.participant_id",
    }


async def test_a_thousand_participants_take_their_turns(api: Api) -> None:
    session = await api.running("per_cycle", seats=1_000)
    switched = await api.done(session["session_id"], "switch")
    assert switched["active_participant_id"] == ids(session)[1]
    last = await api.done(session["session_id"], "switch", {"next_participant_id": ids(session)[999]})
    assert last["active_participant_id"] == ids(session)[999]
    assert (await api.done(session["session_id"], "switch"))["active_participant_id"] == ids(session)[0]


# --- commands ------------------------------------------------------------------------------------


ALLOWED = {
    "start": {"pending"},
    "switch": {"running"},
    "pause": {"running"},
    "resume": {"paused"},
    "adjust": {"pending", "running", "paused"},
    "complete": {"pending", "running", "paused", "completed"},
    "cancel": {"pending"},
}
COMPLAINTS = {
    "start": "cannot be started",
    "switch": "not running",
    "pause": "cannot be paused",
    "resume": "cannot be resumed",
}
ROADS = {
    "pending": [],
    "running": ["start"],
    "paused": ["start", "pause"],
    "completed": ["start", "complete"],
    "cancelled": ["cancel"],
    "expired": ["start", "adjust"],
}


@pytest.mark.parametrize("status", ROADS)
async def test_a_command_is_allowed_where_the_table_says_so(api: Api, status: str) -> None:
    for name in COMMANDS:
        session = await api.create("global")
        session_id = session["session_id"]
        for step in ROADS[status]:
            session = await api.done(session_id, step, {"delta_ms": -DAY_MS} if step == "adjust" else None)
        session = await api.read(session_id)
        assert session["status"] == status
        answer = await api.command(session_id, name, {"delta_ms": 1_000} if name == "adjust" else None)
        if status in ALLOWED[name]:
            assert answer.status == 200, (name, answer.raw)
            moved = 0 if (name, status) == ("complete", "completed") else 1
            assert answer.data["version"] == session["version"] + moved
        else:
            error = error_of(answer, 400, "INVALID_STATE_TRANSITION")
            assert f"(current status: {status})" in error["message"]
            if name in COMPLAINTS:
                complaint = f"Session {session_id} {COMPLAINTS[name]} (current status: {status})"
                assert error["message"] == complaint
            assert await api.read(session_id) == session


async def test_completing_twice_changes_nothing(api: Api) -> None:
    session = await api.running()
    first = await api.done(session["session_id"], "complete")
    second = await api.done(session["session_id"], "complete")
    assert second == first
    assert len(await api.events(session["session_id"])) == 3


async def test_switch_answers_who_is_active_now(api: Api) -> None:
    session = await api.running(increment_ms=1_000)
    answer = await api.done(session["session_id"], "switch")
    assert set(answer) == {
        "session_id",
        "active_participant_id",
        "cycle_started_at",
        "participants",
        "status",
        "version",
    }
    assert (answer["session_id"], answer["version"]) == (session["session_id"], 3)
    assert (answer["active_participant_id"], answer["status"]) == (ids(session)[1], "running")
    state = await api.read(session["session_id"])
    assert {name: state[name] for name in answer} == answer
    first = answer["participants"][0]
    assert first["time_remaining_ms"] == first["budget_ms"] + 1_000 - first["time_used_ms"]
    assert (first["cycle_count"], first["is_active"]) == (1, False)


async def test_any_participant_with_time_left_may_be_next(api: Api) -> None:
    session = await api.running(seats=4)
    for place in (2, 2, 0, 3):
        answer = await api.done(session["session_id"], "switch", {"next_participant_id": ids(session)[place]})
        assert answer["active_participant_id"] == ids(session)[place]
    assert (await api.done(session["session_id"], "switch"))["active_participant_id"] == ids(session)[0]


async def test_a_stranger_can_be_neither_first_nor_next_nor_expected(api: Api) -> None:
    session, stranger = await api.create(), str(uuid4())
    session_id = session["session_id"]
    assert fields_of(await api.command(session_id, "start", {"participant_id": stranger})) == {
        "participant_id"
    }
    session = await api.done(session_id, "start")
    next_one = await api.command(session_id, "switch", {"next_participant_id": stranger})
    assert fields_of(next_one) == {"next_participant_id"}
    expected = await api.command(session_id, "switch", {"expected_participant_id": stranger})
    assert expected.status in (400, 409)
    assert await api.read(session_id) == session


async def test_a_lap_tells_its_time(api: Api) -> None:
    session = await api.running("count_up", seats=0)
    await asyncio.sleep(0.03)
    lap = await api.done(session["session_id"], "switch")
    assert lap["lap_ms"] >= 20
    assert lap["active_participant_id"] is None
    again = await api.done(session["session_id"], "switch")
    state, events = await api.read(session["session_id"]), await api.events(session["session_id"])
    assert [event["lap_ms"] for event in events[2:]] == [lap["lap_ms"], again["lap_ms"]]
    assert (state["lap_count"], state["clock"]["elapsed_ms"]) == (2, lap["lap_ms"] + again["lap_ms"])


async def test_without_participants_a_global_session_has_nothing_to_switch(api: Api) -> None:
    session = await api.running("global", seats=0)
    error_of(await api.command(session["session_id"], "switch"), 400, "VALIDATION_ERROR")
    assert await api.read(session["session_id"]) == session


async def test_adjust_gives_and_takes_what_its_mode_has(api: Api) -> None:
    session = await api.create()
    first, second = ids(session)
    adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": 5_000, "target": second.upper()})
    assert [each["time_remaining_ms"] for each in adjusted["participants"]] == [60_000, 65_000]
    adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": DAY_MS, "target": first})
    assert adjusted["participants"][0]["time_remaining_ms"] == DAY_MS
    assert fields_of(await api.command(session["session_id"], "adjust", {"delta_ms": 1})) == {"target"}
    unknown = {"delta_ms": 1, "target": str(uuid4())}
    assert fields_of(await api.command(session["session_id"], "adjust", unknown)) == {"target"}

    grouped = await api.create("per_group")
    for target in ("red", ids(grouped)[1]):
        adjusted = await api.done(grouped["session_id"], "adjust", {"delta_ms": -1_000, "target": target})
    assert [each["time_remaining_ms"] for each in adjusted["participants"]] == [58_000, 58_000]

    for mode in ("global", "per_cycle"):
        session = await api.create(mode)
        adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": 1_000})
        assert adjusted["clock"]["remaining_ms"] == session["clock"]["remaining_ms"] + 1_000
        refused = await api.command(
            session["session_id"], "adjust", {"delta_ms": 1, "target": ids(session)[0]}
        )
        assert fields_of(refused) == {"target"}

    session = await api.create("count_up")
    error_of(await api.command(session["session_id"], "adjust", {"delta_ms": 1}), 400, "VALIDATION_ERROR")


async def test_fifty_switches_at_once_are_fifty_versions(api: Api) -> None:
    session = await api.running(seats=3)
    session_id = session["session_id"]
    answers = await asyncio.gather(*(api.command(session_id, "switch") for _ in range(50)))
    assert [answer.status for answer in answers] == [200] * 50
    assert sorted(answer.data["version"] for answer in answers) == list(range(3, 53))
    after = await api.read(session_id)
    assert after["version"] == 52
    assert sum(each["cycle_count"] for each in after["participants"]) == 50
    events = await api.events(session_id)
    assert [event["version"] for event in events] == list(range(1, 53))
    for answer in answers:
        changes = events[answer.data["version"] - 1]["changes"]
        assert changes["active_participant_id"] == answer.data["active_participant_id"]


# --- what the sender expects ---------------------------------------------------------------------


async def test_a_double_click_switches_once(api: Api) -> None:
    session = await api.running(seats=3)
    body = {"expected_participant_id": session["active_participant_id"]}
    answers = await asyncio.gather(*(api.command(session["session_id"], "switch", body) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
    state = await api.read(session["session_id"])
    assert (state["version"], state["active_participant_id"]) == (3, ids(session)[1])
    for answer in answers:
        if answer.status == 409:
            assert error_of(answer, 409, "CONFLICT")["details"] == {"state": state}


@pytest.mark.parametrize("name", ["pause", "switch", "complete", "adjust"])
async def test_an_expected_version_must_hold(api: Api, name: str) -> None:
    session = await api.running("global")
    session_id = session["session_id"]
    delta = {"delta_ms": 1_000} if name == "adjust" else {}
    for version in (1, 3):
        refused = await api.command(session_id, name, {"expected_version": version} | delta)
        assert error_of(refused, 409, "CONFLICT")["details"] == {"state": session}
    assert (await api.done(session_id, name, {"expected_version": 2} | delta))["version"] == 3


async def test_an_expected_version_of_a_pending_or_paused_session_must_hold(api: Api) -> None:
    session_id = (await api.create())["session_id"]
    error_of(await api.command(session_id, "start", {"expected_version": 2}), 409, "CONFLICT")
    error_of(await api.command(session_id, "cancel", {"expected_version": 2}), 409, "CONFLICT")
    await api.done(session_id, "start", {"expected_version": 1})
    await api.done(session_id, "pause")
    error_of(await api.command(session_id, "resume", {"expected_version": 2}), 409, "CONFLICT")
    await api.done(session_id, "resume", {"expected_version": 3})


async def test_if_match_must_hold(api: Api) -> None:
    session = await api.running("global")
    session_id = session["session_id"]
    epoch = session["epoch"]
    for stale in (
        f'"{epoch}-1"',
        '"0000000000000-2"',
        f"{epoch}-2",
        f'W/"{epoch}-2"',
        '"',
        f'"{epoch}-1", "x"',
        f'"{epoch}-2-00000000"',
        f'"{epoch}-2-"',
        f'"{epoch}-1-{session["commit"]}"',
        tag(session)[1:-1],
        f"W/{tag(session)}",
    ):
        refused = await api.command(session_id, "pause", If_Match=stale)
        assert error_of(refused, 412, "CONFLICT")["details"] == {"state": session}
    assert (await api.done(session_id, "pause", If_Match=f'"{epoch}-1", {tag(session)}'))["version"] == 3
    assert (await api.done(session_id, "resume", If_Match="*"))["version"] == 4
    assert (await api.done(session_id, "adjust", {"delta_ms": 5}, If_Match=f'"{epoch}-4"'))["version"] == 5


async def test_if_match_does_not_hold_for_another_epoch(api: Api) -> None:
    first = await api.create()
    assert (await api("DELETE", f"/v1/sessions/{first['session_id']}")).status == 204
    second = await api.create(session_id=first["session_id"])
    refused = await api.command(first["session_id"], "start", If_Match=tag(first))
    assert error_of(refused, 412, "CONFLICT")["details"] == {"state": second}
    await api.done(first["session_id"], "start", If_Match=tag(second))


async def test_a_participant_whose_clock_has_expired_cannot_be_next(api: Api) -> None:
    session = await api.running(seats=3)
    session_id, (first, second, _) = session["session_id"], ids(session)
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    await api.done(session_id, "switch")
    refused = await api.command(session_id, "switch", {"next_participant_id": first})
    current = await api.read(session_id)
    assert error_of(refused, 409, "CONFLICT")["details"] == {"state": current}
    assert current["active_participant_id"] == second


# --- deadlines -----------------------------------------------------------------------------------


async def test_a_deadline_is_settled_by_whoever_reads_next(api: Api) -> None:
    session = await api.running()
    session_id, first = session["session_id"], ids(session)[0]
    adjusted = await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    deadline_ms = adjusted["deadline_ms"]
    assert adjusted["version"] == 3
    assert deadline_ms == instant_ms(adjusted["cycle_started_at"])
    read = await api.read(session_id)
    assert (read["version"], read["status"], read["deadline_ms"]) == (4, "running", None)
    assert (read["participants"][0]["has_expired"], read["participants"][0]["is_active"]) == (True, True)
    flagged = (await api.events(session_id))[-1]
    assert (flagged["type"], flagged["version"], instant_ms(flagged["at"])) == ("flagged", 4, deadline_ms)
    assert await api.read(session_id) == read


async def test_an_expiry_is_dated_at_its_deadline_however_late_it_is_noticed(api: Api) -> None:
    session = await api.running("global")
    session_id = session["session_id"]
    deadline_ms = (await api.done(session_id, "adjust", {"delta_ms": -59_900}))["deadline_ms"]
    async with asyncio.timeout(10):
        while (state := await api.read(session_id))["status"] == "running":
            assert state["version"] == 3
            await asyncio.sleep(0.02)
    assert (state["status"], state["version"]) == ("expired", 4)
    assert instant_ms(state["session_completed_at"]) == deadline_ms
    refused = await api.command(session_id, "switch")
    error = error_of(refused, 400, "INVALID_STATE_TRANSITION")
    assert error["message"] == f"Session {session_id} not running (current status: expired)"


async def test_a_switch_tells_whose_clock_had_run_out(api: Api) -> None:
    session = await api.running()
    session_id, (first, second) = session["session_id"], ids(session)
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    switched = await api.done(session_id, "switch")
    # The flag came first, with a version of its own.
    assert (switched["expired_participant_id"], switched["version"]) == (first, 5)
    assert (switched["active_participant_id"], switched["status"]) == (second, "running")
    again = await api.done(session_id, "switch")
    assert again["active_participant_id"] == second
    assert "expired_participant_id" not in again


async def test_a_switch_that_finds_nobody_with_time_left_ends_the_session_with_200(api: Api) -> None:
    session = await api.running()
    session_id, (first, second) = session["session_id"], ids(session)
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    await api.done(session_id, "switch")
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": second})
    over = await api.done(session_id, "switch")
    assert (over["status"], over["active_participant_id"]) == ("expired", None)
    assert over["expired_participant_id"] == second


async def test_what_fell_due_is_kept_though_the_command_is_refused(api: Api) -> None:
    session = await api.running(on_timeout="expire")
    session_id, first = session["session_id"], ids(session)[0]
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    refused = await api.command(session_id, "switch")
    assert "(current status: expired)" in error_of(refused, 400, "INVALID_STATE_TRANSITION")["message"]
    state = await api.read(session_id)
    assert (state["status"], state["version"]) == ("expired", 4)


async def test_the_next_turn_begins_at_the_deadline(api: Api) -> None:
    session = await api.running("per_cycle")
    session_id = session["session_id"]
    adjusted = await api.done(session_id, "adjust", {"delta_ms": -DAY_MS})
    read = await api.read(session_id)
    assert (read["version"], read["active_participant_id"]) == (4, ids(session)[1])
    assert instant_ms(read["cycle_started_at"]) == adjusted["deadline_ms"]
    assert read["deadline_ms"] == adjusted["deadline_ms"] + 10_000
    stale = await api.command(session_id, "switch", {"expected_participant_id": ids(session)[0]})
    assert error_of(stale, 409, "CONFLICT")["details"] == {"state": read}


# --- the list ------------------------------------------------------------------------------------


async def test_the_list_goes_on_by_its_cursor() -> None:
    async with serving() as api:
        assert (await api("GET", "/v1/sessions")).data == {"sessions": [], "next_cursor": None}
        sessions = [await api.create() for _ in range(5)] + [await api.running() for _ in range(4)]
        states = {session["session_id"]: session for session in sessions}
        for status, expected in (
            (None, states),
            ("running", {key: state for key, state in states.items() if state["status"] == "running"}),
            ("paused", {}),
        ):
            for limit in (1, 2, 100, None):
                found: list[dict[str, Any]] = []
                cursor = None
                while True:
                    given = {"status": status, "limit": limit, "cursor": cursor}
                    query = "&".join(f"{name}={value}" for name, value in given.items() if value is not None)
                    page = (await api("GET", f"/v1/sessions?{query}")).data
                    found += page["sessions"]
                    assert len(page["sessions"]) <= (limit or 100)
                    cursor = page["next_cursor"]
                    if cursor is None:
                        break
                assert len(found) == len(expected)
                assert {session["session_id"]: session for session in found} == expected


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", {"limit"}),
        ("limit=-1", {"limit"}),
        ("limit=1.5", {"limit"}),
        ("limit=x&status=gone&cursor=x", {"limit", "status", "cursor"}),
        ("status=Running", {"status"}),
        ("page=2", {"page"}),
        ("limit=1&limit=2", {"limit"}),
        ("cursor=%ff", {"cursor"}),
    ],
)
async def test_a_list_that_cannot_be_given_is_refused(api: Api, query: str, fields: set[str]) -> None:
    assert fields_of(await api("GET", f"/v1/sessions?{query}")) == fields


# --- events --------------------------------------------------------------------------------------


async def test_events_tell_each_version_since(api: Api) -> None:
    session = await api.create()
    session_id, epoch = session["session_id"], session["epoch"]
    await api.done(session_id, "start", X_Request_ID="req-2")
    await api.done(session_id, "switch")
    answer = await api("GET", f"/v1/sessions/{session_id}/events")
    assert set(answer.data) == {"epoch", "next_since", "events"}
    assert (answer.data["epoch"], answer.data["next_since"]) == (epoch, None)
    created, started, switched = answer.data["events"]
    assert [event["type"] for event in (created, started, switched)] == ["created", "started", "switched"]
    assert started["request_id"] == "req-2"
    for event in answer.data["events"]:
        assert {"version", "type", "at", "changes"} <= set(event)
        assert INSTANT.fullmatch(event["at"])
    for query, versions in (
        ("?since=0", [1, 2, 3]),
        (f"?since=1&epoch={epoch}", [2, 3]),
        ("?since=3", []),
        (f"?epoch={epoch}", [1, 2, 3]),
    ):
        assert [event["version"] for event in await api.events(session_id, query)] == versions


async def test_changes_are_of_the_fields_that_moved(api: Api) -> None:
    session = await api.running(seats=3)
    first, second, _ = ids(session)
    await api.done(session["session_id"], "switch", {"next_participant_id": second})
    changes = (await api.events(session["session_id"]))[-1]["changes"]
    moved = {each["participant_id"]: each for each in changes["participants"]}
    assert set(moved) == {first, second}
    assert moved[second] == {"participant_id": second, "is_active": True}
    assert (moved[first]["is_active"], moved[first]["cycle_count"]) == (False, 1)
    assert changes["active_participant_id"] == second
    assert not {"session_id", "epoch", "sync_mode", "status", "metadata", "created_at"} & set(changes)


async def test_events_of_another_epoch_or_older_than_kept_are_gone() -> None:
    async with serving() as api:
        session = await api.running("count_up", seats=0)
        session_id = session["session_id"]
        error_of(
            await api("GET", f"/v1/sessions/{session_id}/events?epoch=0000000000000"), 410, "EVENTS_GONE"
        )
        for _ in range(1_000):
            await api.server.sessions.apply(session_id, engine.switch)
        error_of(await api("GET", f"/v1/sessions/{session_id}/events?since=1"), 410, "EVENTS_GONE")
        assert len(await api.events(session_id, "?since=2")) == 1_000
        assert [event["version"] for event in await api.events(session_id)] == list(range(3, 1_003))


async def test_events_of_a_thousand_participants_come_in_pages_and_the_largest_alone(api: Api) -> None:
    crowd = [
        {"participant_id": str(uuid4()), "total_time_ms": 60_000, "group_id": "♫" * 100} for _ in range(1000)
    ]
    session = await api.create("per_group", participants=crowd)
    session_id = session["session_id"]
    await api.done(session_id, "start")
    for _ in range(9):
        await api.done(session_id, "switch")
    pages = []
    since: int | None = 0
    while since is not None:
        answer = await api("GET", f"/v1/sessions/{session_id}/events?since={since}")
        pages.append([event["version"] for event in answer.data["events"]])
        since = answer.data["next_since"]
        assert since == (pages[-1][-1] if pages[-1][-1] < 11 else None)
        assert len(answer.raw) <= 262_144 or len(pages[-1]) == 1
    assert pages[0] == [1]
    assert len(pages) > 2
    assert [version for page in pages for version in page] == list(range(1, 12))


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("since=abc", {"since"}),
        ("since=-1", {"since"}),
        ("since=1.0", {"since"}),
        ("since=" + "9" * 400, {"since"}),
        ("epoch=x", {"epoch"}),
        ("since=x&epoch=X&until=3", {"since", "epoch", "until"}),
    ],
)
async def test_events_that_cannot_be_told_are_refused(api: Api, query: str, fields: set[str]) -> None:
    session = await api.create()
    answer = await api("GET", f"/v1/sessions/{session['session_id']}/events?{query}")
    assert fields_of(answer) == fields


# --- messages ------------------------------------------------------------------------------------


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


# --- delete --------------------------------------------------------------------------------------


async def test_delete_answers_204_whether_there_was_one_or_not(api: Api) -> None:
    session_id = (await api.running())["session_id"]
    for _ in range(2):
        answer = await api("DELETE", f"/v1/sessions/{session_id}")
        assert (answer.status, answer.raw) == (204, b"")
        assert "content-type" not in answer.headers
        assert answer.headers.get("content-length", "0") == "0"
    error_of(await api("GET", f"/v1/sessions/{session_id}"), 404, "SESSION_NOT_FOUND")


async def test_a_deleted_id_may_be_created_again_with_a_greater_epoch(api: Api) -> None:
    first = await api.running()
    await api("DELETE", f"/v1/sessions/{first['session_id']}")
    second = await api.create(session_id=first["session_id"])
    assert second["epoch"] > first["epoch"]
    assert second["version"] == 1
    assert len(await api.events(first["session_id"])) == 1


# --- time ----------------------------------------------------------------------------------------


async def test_time_is_the_brokers_and_never_goes_back(api: Api) -> None:
    last_ms = 0
    for turn in range(60):
        answer = await api("GET", "/v1/time")
        assert set(answer.body) == {"timestamp_ms", "server_version", "drift_tolerance_ms"}
        assert answer.body["timestamp_ms"] >= last_ms
        last_ms = answer.body["timestamp_ms"]
        if turn % 20 == 0:
            created_ms = instant_ms((await api.create())["created_at"])
            assert last_ms <= created_ms
            last_ms = created_ms
    assert (answer.body["drift_tolerance_ms"], type(answer.body["timestamp_ms"])) == (50, int)
    assert abs(last_ms - time.time() * 1000) < 60_000


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", "A.b_c-1", "0" * 128])
async def test_a_request_id_that_can_be_logged_is_taken_over(api: Api, given: str) -> None:
    for method, path in (("GET", "/health"), ("GET", "/nowhere"), ("DELETE", f"/v1/sessions/{uuid4()}")):
        assert (await api(method, path, X_Request_ID=given)).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "0" * 129, "a b", "a/b", "a;b", '"a"', "\xe9", "a,b"])
async def test_any_other_request_id_is_replaced(api: Api, given: str | None) -> None:
    seen = set()
    for _ in range(3):
        answer = await api("GET", "/health", **({} if given is None else {"X_Request_ID": given}))
        made = answer.headers["x-request-id"]
        assert re.fullmatch("[A-Za-z0-9._-]{1,128}", made)
        assert made != given
        seen.add(made)
    assert len(seen) == 3


async def test_the_request_id_is_in_the_log_and_the_body_is_not(api: Api, process: ServerProcess) -> None:
    for secret, status in (("hush-1", 201), ("hush-2", 400)):
        body = body_of(metadata={"k": secret}, **({} if status == 201 else {"extra": secret}))
        answer = await api("POST", f"/v1/sessions?token={secret}", body, X_Request_ID=f"id-of-{secret}")
        assert answer.status == status
        async with asyncio.timeout(10):
            while not (
                lines := [line for line in process.log() if line.get("request_id") == f"id-of-{secret}"]
            ):
                await asyncio.sleep(0.01)
        assert {line.get("path", "/v1/sessions") for line in lines} == {"/v1/sessions"}
    assert "hush" not in re.sub("id-of-hush", "", "\n".join(process.log_lines))


async def test_etag_and_if_none_match(api: Api) -> None:
    session = await api.running()
    path = f"/v1/sessions/{session['session_id']}"
    assert (await api("GET", path)).headers["etag"] == tag(session)
    for known in (tag(session), f"W/{tag(session)}", f'"x", {tag(session)}', "*"):
        answer = await api("GET", path, If_None_Match=known)
        assert (answer.status, answer.raw, answer.headers["etag"]) == (304, b"", tag(session))
    # The tags of before named epoch and version, which two states can share where data were lost.
    for other in ('"x"', tag(session)[1:-1], f'"{session["epoch"]}-1"', f'"{session["epoch"]}-2"'):
        assert (await api("GET", path, If_None_Match=other)).status == 200
    paused = await api.done(session["session_id"], "pause")
    answer = await api("GET", path, If_None_Match=tag(session))
    assert (answer.status, answer.headers["etag"]) == (200, tag(paused))


async def test_an_etag_is_of_the_settled_state(api: Api) -> None:
    session = await api.running("global")
    adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": -DAY_MS})
    path = f"/v1/sessions/{session['session_id']}"
    answer = await api("GET", path, If_None_Match=tag(adjusted))
    assert answer.data["version"] == 4
    assert (answer.status, answer.headers["etag"]) == (200, tag(answer.data))


ROUTES = {
    "/v1/sessions": {"GET", "POST"},
    f"/v1/sessions/{SOME_ID}": {"GET", "DELETE"},
    **{f"/v1/sessions/{SOME_ID}/{name}": {"POST"} for name in [*COMMANDS, "messages"]},
    f"/v1/sessions/{SOME_ID}/events": {"GET"},
    "/v1/time": {"GET"},
    "/health": {"GET"},
    "/ready": {"GET"},
    "/": {"GET"},
    "/ws": {"GET"},
}


@pytest.mark.parametrize("path", ROUTES, ids=lambda path: re.sub("[0-9a-f-]{36}", "ID", path))
async def test_another_method_is_not_allowed_and_told_which_are(api: Api, path: str) -> None:
    for method in sorted({"GET", "POST", "PUT", "PATCH", "DELETE", "BREW"} - ROUTES[path]):
        answer = await api(method, path)
        error_of(answer, 405, "METHOD_NOT_ALLOWED")
        allowed = {name.strip() for name in answer.headers["allow"].split(",")}
        assert allowed - {"OPTIONS", "HEAD"} == ROUTES[path]


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v1/",
        "/v1/sessions/",
        f"/v1/sessions/{SOME_ID}/",
        f"/v1/sessions/{SOME_ID}/dance",
        f"/v1/sessions/{SOME_ID}/switch/now",
        "/V1/sessions",
        "/health/",
        "/healthy",
        "/server.py",
        "/page/index.html",
        "/../setup.cfg",
        "/%2e%2e/setup.cfg",
        "/nowhere?x=%ff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_route_is_not_found(api: Api, method: str, path: str) -> None:
    error_of(await api(method, path), 404, "NOT_FOUND")


# --- CORS ----------------------------------------------------------------------------------------


HERE, THERE = "https://here.example", "http://there.example:8080"


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
        *[await api("GET", path, **headers) for path in ("/", "/page.js", "/lockstep.js", "/ws")],
        *[await api("PUT", path, **headers) for path in ("/", "/ws")],
        *[await api("OPTIONS", path, **headers) for path in ("/", "/ws", "/health", "/v1/sessions")],
    ]


async def test_no_answer_leaves_anything_to_the_collector() -> None:
    """A body of a megabyte would stay until its next full round, and it comes rarely."""
    async with serving() as api:
        gc.collect()
        gc.disable()
        try:
            await each_kind_of_answer(api)

            async def kept() -> str:
                kinds = ApiHandler, RequestHandler, IOStream
                left = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))
                return str(left) if left else ""

            await eventually(kept, 5, "something is kept")
        finally:
            gc.enable()


def cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


async def test_without_origins_no_answer_admits_another_site() -> None:
    async with serving() as api:
        for answer in await each_kind_of_answer(api, may_change=False, Origin=HERE):
            assert cors(answer) == {}
        preflight = await api("OPTIONS", "/v1/sessions", Origin=HERE, Access_Control_Request_Method="POST")
        assert (preflight.status, preflight.raw, cors(preflight)) == (204, b"", {})


@pytest.mark.parametrize("headers", [{}, {"Origin": HERE}, {"Origin": "null"}])
async def test_with_a_star_every_answer_admits_every_site(headers: dict[str, str]) -> None:
    async with serving(origins="*") as api:
        answers = await each_kind_of_answer(api, **headers)
        assert {answer.status for answer in answers} == {
            200,
            201,
            204,
            304,
            400,
            404,
            405,
            409,
            410,
            412,
            413,
            415,
            426,
        }
        for answer in answers:
            assert cors(answer)["access-control-allow-origin"] == "*"
            assert cors(answer)["access-control-allow-credentials"] == "true"
            exposed = {name.strip() for name in cors(answer)["access-control-expose-headers"].split(",")}
            rate_limit = {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}
            assert {"ETag", "Retry-After", "X-Request-ID", *rate_limit} <= exposed


async def test_a_listed_origin_is_echoed() -> None:
    async with serving(origins=f"{HERE},{THERE}") as api:
        for origin in (HERE, THERE):
            for answer in await each_kind_of_answer(api, Origin=origin):
                assert cors(answer)["access-control-allow-origin"] == origin
                assert cors(answer)["access-control-allow-credentials"] == "true"
                assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://here.example"},
        {"Origin": f"{HERE}:8443"},
        {"Origin": f"{HERE}.evil.example"},
        {"Origin": "null"},
        {"Origin": "*"},
        {"Origin": ""},
    ],
    ids=str,
)
async def test_an_origin_that_is_not_listed_is_not_admitted(headers: dict[str, str]) -> None:
    async with serving(origins=f"{HERE},{THERE}") as api:
        for answer in await each_kind_of_answer(api, may_change=not headers, **headers):
            assert "access-control-allow-origin" not in answer.headers
            # A cache must not give this answer to a site that is admitted.
            assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("origins", ["*", HERE])
async def test_a_preflight_is_answered_with_204(origins: str) -> None:
    async with serving(origins=origins) as api:
        for path, methods in ROUTES.items():
            if path in ("/", "/ws"):
                continue
            for method in methods:
                answer = await api(
                    "OPTIONS",
                    path,
                    Origin=HERE,
                    Access_Control_Request_Method=method,
                    Access_Control_Request_Headers="content-type, if-match, x-request-id",
                )
                assert (answer.status, answer.raw) == (204, b"")
                assert "content-type" not in answer.headers
                assert cors(answer)["access-control-allow-origin"] == origins
                allowed = cors(answer)["access-control-allow-methods"]
                assert method in {name.strip() for name in allowed.split(",")}
                headers = {
                    name.strip().lower() for name in cors(answer)["access-control-allow-headers"].split(",")
                }
                needed = {"content-type", "authorization", "if-match", "if-none-match", "x-request-id"}
                assert needed | {"idempotency-key"} <= headers


async def test_a_preflight_of_a_site_that_is_not_listed_admits_nothing() -> None:
    async with serving(origins=HERE) as api:
        answer = await api("OPTIONS", "/v1/sessions", Origin=THERE, Access_Control_Request_Method="POST")
        assert (answer.status, cors(answer)) == (204, {})


# --- when the broker fails -----------------------------------------------------------------------


class Failing(MemoryBroker):
    """Does what it is told to at each commit, and is fine before that."""

    failure: Exception | Outcome | None = None
    reasons: list[str] = []

    async def commit(self, commit: Commit) -> Outcome:
        await asyncio.sleep(0.001)
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure or await super().commit(commit)

    def not_ready(self) -> list[str]:
        return self.reasons


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    broker = Failing()
    monkeypatch.setattr("server.open_broker", lambda *_: broker)
    return broker


@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
async def test_a_broker_that_is_away_is_503_and_says_what_became_of_it(
    failing: Failing, outcome: str
) -> None:
    async with serving() as api:
        session = await api.running()
        failing.failure = BrokerUnavailable(outcome)
        for answer in (
            await api.command(session["session_id"], "switch"),
            await api("POST", "/v1/sessions", body_of()),
        ):
            error = error_of(answer, 503, "BROKER_UNAVAILABLE")
            assert error["details"] == {"outcome": outcome}
            assert int(answer.headers["retry-after"]) == error["retry_after_seconds"] >= 1
        assert (await api("GET", "/health")).status == 200


async def test_a_session_that_others_keep_changing_is_busy(failing: Failing) -> None:
    async with serving() as api:
        session = await api.running()
        failing.failure = Outcome.CONFLICT
        answer = await api.command(session["session_id"], "switch")
        error = error_of(answer, 503, "SESSION_BUSY")
        assert int(answer.headers["retry-after"]) == error["retry_after_seconds"] >= 1
        failing.failure = None
        assert await api.read(session["session_id"]) == session


async def test_a_bug_is_logged_once_and_shown_as_an_internal_error(
    failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        session = await api.running()
        failing.failure = RuntimeError("the cause")
        answer = await api.command(session["session_id"], "switch", X_Request_ID="the-request")
        assert "the cause" not in answer.raw.decode()
        assert set(error_of(answer, 500, "INTERNAL_ERROR")) == {"code", "message"}
        failing.failure = None
        assert await api.read(session["session_id"]) == session
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert record.exc_info is not None
    assert vars(record)["request_id"] == "the-request"


async def test_a_stored_state_that_cannot_be_read_is_told(failing: Failing) -> None:
    async with serving() as api:
        session_id = (await api.running())["session_id"]
        failing.load = lambda ids: asyncio.sleep(0, [b"garbage" for _ in ids])  # type: ignore[method-assign]
        error_of(await api("GET", f"/v1/sessions/{session_id}"), 500, "STATE_CORRUPT")
        error_of(await api.command(session_id, "switch"), 500, "STATE_CORRUPT")


async def test_a_process_that_is_not_ready_says_why(failing: Failing) -> None:
    async with serving() as api:
        assert (await api("GET", "/ready")).body == {"status": "ready"}
        failing.reasons = ["the store is away"]
        answer = await api("GET", "/ready")
        assert answer.status == 503
        assert answer.body == {"status": "not_ready", "reasons": ["the store is away"]}
        assert (await api("GET", "/health")).body == {"status": "ok"}
