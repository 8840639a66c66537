"""The event stream as a client meets it: what it is told, who may, how much, and how it ends."""

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

import server as server_module
from handlers import event_streams
from handlers.event_streams import EventStream
from lockstep import limits as limits_module
from lockstep.errors import GOING_AWAY
from lockstep.live.timeline import Timeline
from tests.support.api import SOME_ID, Api, body_of, error_of, serving
from tests.support.event_source import Event, EventParser, EventSource, Refused, StreamView, stream_url
from tests.support.fake_time import FakeTime
from tests.support.followers import Follower
from tests.support.metrics import figures
from tests.support.processes import ServerProcess, running
from tests.support.redis_server import RedisServer
from tests.support.tokens import SECRET, token

SEATS = 200  # so that a state has some 50 KB, and an UPDATE a hundredth of that


@pytest.fixture(params=["memory", "redis"])
def broker(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    redis: RedisServer = request.getfixturevalue("redis_server")
    return redis.url


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return str(path)


class Viewer:
    """A client that shows a session, and comes back with what it has when it is told to."""

    def __init__(self, url: str, session_id: str) -> None:
        self.url = stream_url(url, session_id)
        self.shown = StreamView(session_id)
        self.source: EventSource | None = None

    @property
    def view(self) -> Any:
        return self.shown.view

    async def connect(self, **how: Any) -> None:
        self.source = await EventSource.connect(self.url, last_id=self.shown.last_id, **how)

    async def hear(self, count: int = 1) -> None:
        assert self.source is not None
        for _ in range(count):
            event = await self.source.next()
            assert event is not None, "the stream has ended"
            self.shown.take(event)

    async def hear_until(self, holds: Any) -> None:
        while not holds():
            await self.hear()

    def leave(self) -> None:
        if self.source is not None:
            self.source.abort()


@asynccontextmanager
async def viewing(url: str, session_id: str, **how: Any) -> AsyncIterator[Viewer]:
    viewer = Viewer(url, session_id)
    await viewer.connect(**how)
    try:
        yield viewer
    finally:
        viewer.leave()


def only_stream(api: Api) -> EventStream:
    (stream,) = api.server.streams.connections
    return stream


async def nothing_is_open(api: Api) -> None:
    async with asyncio.timeout(10):
        while api.server.streams.connections:
            await asyncio.sleep(0.005)


# --- what is told --------------------------------------------------------------------------------


async def test_a_stream_tells_of_a_session_from_before_its_creation_to_its_second_life(broker: str) -> None:
    session_id = str(uuid4())
    async with serving(broker=broker) as api, viewing(api.url, session_id) as viewer:
        await viewer.hear()
        assert (viewer.view.state, viewer.shown.last_id, viewer.view.told) == (None, "", ["state"])
        created = await api.create(session_id=session_id)
        await viewer.hear()
        assert viewer.view.state == created
        started = await api.done(session_id, "start")
        await viewer.hear()
        assert viewer.view.state == started
        path = f"/v1/sessions/{session_id}"
        assert (await api("POST", f"{path}/messages", {"type": "CHEER"})).status == 202
        await viewer.hear()
        assert viewer.shown.others[0]["message"] == {"type": "CHEER"}
        last_id = viewer.shown.last_id
        assert (await api("DELETE", path)).status == 204
        await viewer.hear()
        assert (viewer.view.state, viewer.shown.last_id) == (None, last_id)
        again = await api.create(session_id=session_id)
        await viewer.hear()
        assert (viewer.view.state, viewer.shown.last_id != last_id) == (again, True)
        assert viewer.view.told == ["state", "created", "UPDATE", "DELETED", "created"]


async def test_a_stream_begins_with_the_state_that_there_is(broker: str) -> None:
    async with serving(broker=broker) as api:
        running_ = await api.running()
        async with viewing(api.url, running_["session_id"].upper()) as viewer:
            viewer.view.session_id = running_["session_id"]
            await viewer.hear()
            assert viewer.view.state == running_
            assert viewer.view.told == ["requested"]


async def test_a_client_that_comes_back_hears_each_change_that_it_missed_once(broker: str) -> None:
    async with serving(broker=broker) as api:
        session_id = (await api.running())["session_id"]
        viewer = Viewer(api.url, session_id)
        await viewer.connect()
        await viewer.hear()
        for missed in (0, 1, 7):
            viewer.leave()
            await nothing_is_open(api)
            for _ in range(missed):
                await api.done(session_id, "switch")
            await viewer.connect()
            await api.done(session_id, "switch")
            await viewer.hear(missed + 1)
            assert viewer.view.state == await api.read(session_id)
        assert viewer.view.told == ["requested"] + ["UPDATE"] * 11
        viewer.leave()


async def test_the_position_may_come_in_the_query_and_the_header_counts_more() -> None:
    async with serving() as api:
        session_id = (await api.running())["session_id"]
        positions = []
        async with viewing(api.url, session_id) as viewer:
            await viewer.hear()
            positions.append(viewer.shown.last_id)
            for _ in range(3):
                await api.done(session_id, "switch")
                await viewer.hear()
                positions.append(viewer.shown.last_id)
        url = stream_url(api.url, session_id, f"?lastEventId={positions[1]}&cache=1")
        for last_id, first in (("", 2), (positions[2], 3), (positions[0], 1)):
            async with await EventSource.connect(url, last_id=last_id) as source:
                event = await source.next()
                assert event is not None
                assert (event.name, event.last_id) == ("update", positions[first])


JUNK = [
    "x",
    "0",
    "-1",
    "null",
    '"',
    "0lquvc000k3f9-2-b1Xk2LrT",
    "0lquvc000k3f9-999999999999999999999-b1Xk2LrT",
    "--",
    "\u00e9\u00ff",
    "a" * 5000,
    "; id: x",
    "%0A%0Adata: injected%0A%0A",
    "\tx\t",
]


@pytest.mark.parametrize("junk", JUNK)
async def test_junk_for_a_position_gets_the_state_and_is_never_repeated(junk: str) -> None:
    async with serving() as api:
        state = await api.running()
        url = stream_url(api.url, state["session_id"])
        injecting = f"{quote(junk)}%0d%0a%0adata:%20x%0a%0a"
        for query, last_id in (
            ("", junk),
            (f"?lastEventId={quote(junk)}", ""),
            (f"?lastEventId={injecting}&lastEventId=", ""),
        ):
            async with await EventSource.connect(url + query, last_id=last_id) as source:
                event = await source.next()
                assert event is not None
                assert (event.name, event.json["state"]) == ("snapshot", state)
                assert len(junk) < 5 or junk.encode() not in source.received
                state = await api.done(state["session_id"], "annotate", {"metadata": {}})
                event = await source.next()
                assert event is not None
                assert event.name == "update"


async def test_a_position_of_another_life_or_too_long_ago_gets_the_state() -> None:
    async with serving() as api:
        session_id = (await api.running())["session_id"]
        viewer = Viewer(api.url, session_id)
        await viewer.connect()
        await viewer.hear()
        viewer.leave()
        async with Follower(api.url.replace("http", "ws")) as busy:
            for n in range(120):
                await busy.command(session_id, "annotate", {"metadata": {"n": n}})
        await viewer.connect()
        await viewer.hear()
        viewer.leave()
        assert viewer.view.state == await api.read(session_id)
        assert (await api("DELETE", f"/v1/sessions/{session_id}")).status == 204
        again = await api.create(session_id=session_id)
        await viewer.connect()
        await viewer.hear()
        viewer.leave()
        assert viewer.view.state == again
        assert viewer.view.told == ["requested"] * 3


async def test_what_is_relayed_with_line_breaks_is_one_line() -> None:
    async with serving() as api:
        session_id = (await api.create())["session_id"]
        async with viewing(api.url, session_id) as viewer:
            await viewer.hear()
            said = b'{\r\n  "type": "NOTE",\n\n\r"text": "a\\nb\\u2028c \xe2\x80\xa8"\n}'
            answer = await api("POST", f"/v1/sessions/{session_id}/messages", said)
            assert answer.status == 202
            await viewer.hear()
            assert viewer.shown.others[0]["message"] == json.loads(said)


async def test_streams_and_sockets_of_a_session_show_the_same_states(broker: str) -> None:
    async with serving(broker=broker) as api, AsyncExitStack() as stack:
        session_id = (await api.running())["session_id"]
        follower = await stack.enter_async_context(Follower(api.url.replace("http", "ws")))
        follow = await follower.follow(session_id)
        viewers = [await stack.enter_async_context(viewing(api.url, session_id)) for _ in range(3)]
        for n in range(20):
            await follower.command(session_id, "annotate", {"metadata": {"n": n}})
        last = (await api.read(session_id))["version"]
        for viewer in viewers:
            await viewer.hear(21)
            assert viewer.view.state["version"] == last
            assert viewer.view.states == follow.states


# --- the response --------------------------------------------------------------------------------


async def test_the_head_says_what_follows_and_that_nobody_may_keep_it() -> None:
    async with serving(origins="https://overlay.example") as api:
        url = stream_url(api.url, SOME_ID)
        headers = {"Origin": "https://overlay.example", "X-Request-ID": "mine"}
        async with await EventSource.connect(url, headers=headers) as source:
            head = source.headers
            assert head["content-type"] == "text/event-stream; charset=utf-8"
            assert head["cache-control"] == "no-cache, no-transform"
            assert (head["x-accel-buffering"], head["connection"]) == ("no", "close")
            assert not {"content-length", "transfer-encoding"} & set(head)
            assert (head["x-request-id"], "date" in head) == ("mine", True)
            assert head["access-control-allow-origin"] == "https://overlay.example"
            await source.next()
            assert source.received.startswith(b"retry: ")
            assert source.parser.retry_ms is not None
            assert 1000 <= source.parser.retry_ms <= 3000
        async with await EventSource.connect(url, headers={"Origin": "https://else.example"}) as source:
            assert "access-control-allow-origin" not in source.headers


async def test_a_preflight_grants_what_polyfills_send() -> None:
    async with serving(origins="*") as api:
        answer = await api("OPTIONS", f"/v1/sessions/{SOME_ID}/stream", Origin="https://x.example")
        assert answer.status == 204
        assert "Last-Event-ID" in answer.headers["access-control-allow-headers"]
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_head_request_is_answered_without_a_stream() -> None:
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        for more in ("", "Connection: close\r\n"):
            path = f"/v1/sessions/{SOME_ID}/stream"
            writer.write(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 200 ")
            assert "text/event-stream" in head
            assert "content-length" not in head.lower()
        assert await reader.read() == b""
        writer.close()
        assert not api.server.streams.connections


async def test_http_1_0_is_answered_by_a_stream_too() -> None:
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        writer.write(f"GET /v1/sessions/{SOME_ID}/stream HTTP/1.0\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert (await reader.readline()).startswith(b"retry: ")
        writer.close()


async def test_what_is_no_session_id_or_no_get_is_refused_as_elsewhere() -> None:
    async with serving() as api:
        for bad in ("nonsense", SOME_ID[:-1], SOME_ID + "0", "%0a", "x%20" + SOME_ID):
            answer = await api("GET", f"/v1/sessions/{bad}/stream")
            assert error_of(answer, 400, "VALIDATION_ERROR")["details"][0]["field"] == "id"
        answer = await api("POST", f"/v1/sessions/{SOME_ID}/stream")
        error_of(answer, 405, "METHOD_NOT_ALLOWED")


# --- rights --------------------------------------------------------------------------------------


async def test_exactly_who_may_view_gets_a_stream(secret: str) -> None:
    mine, other = SOME_ID, str(uuid4())
    async with serving(jwt_secret_file=secret) as api:
        url = stream_url(api.url, mine)
        for scope in ("view", "play", "control", "admin"):
            bearer = {"Authorization": f"Bearer {token(scope, mine)}"}
            async with await EventSource.connect(url, headers=bearer) as source:
                assert await source.next()
            async with await EventSource.connect(f"{url}?token={token(scope, mine)}") as source:
                assert await source.next()
        for query, status, code in (
            ("", 401, "UNAUTHORIZED"),
            ("?token=x", 401, "UNAUTHORIZED"),
            (f"?token={token('view', mine, ttl_s=-60)}", 401, "UNAUTHORIZED"),
            (f"?token={token('view', other)}", 403, "FORBIDDEN"),
        ):
            with pytest.raises(Refused) as refused:
                await EventSource.connect(url + query)
            assert (refused.value.status, refused.value.code) == (status, code)


async def test_where_anonymous_callers_may_view_a_stream_needs_no_token(secret: str) -> None:
    async with serving(jwt_secret_file=secret, anonymous="view") as api:
        async with await EventSource.connect(stream_url(api.url, SOME_ID)) as source:
            assert await source.next()
            assert only_stream(api).subject is None
        await nothing_is_open(api)
        with_token = stream_url(api.url, SOME_ID, f"?token={token('view', SOME_ID, sub='anna')}")
        async with await EventSource.connect(with_token) as source:
            assert await source.next()
            assert only_stream(api).subject == "anna"


async def test_a_stream_ends_with_its_token_and_says_so(secret: str) -> None:
    async with serving(jwt_secret_file=secret) as api:
        url = stream_url(api.url, SOME_ID, f"?token={token('view', SOME_ID, ttl_s=2)}")
        async with await EventSource.connect(url) as source:
            assert (await source.next()).name == "snapshot"  # type: ignore[union-attr]
            last = await source.next()
            assert last is not None
            assert (last.name, last.last_id) == ("unsubscribed", "")
            assert last.json == {
                "type": "UNSUBSCRIBED",
                "sessionId": SOME_ID,
                "code": "UNAUTHORIZED",
                "message": "This token has expired",
            }
            await source.ended()


async def test_streams_of_a_subject_that_is_sent_away_are_told_and_end_and_others_do_not(
    secret: str, broker: str
) -> None:
    async with serving(jwt_secret_file=secret, broker=broker) as api, AsyncExitStack() as stack:
        admin = {"Authorization": f"Bearer {token()}"}
        session_id = (await api("POST", "/v1/sessions", body_of(), **admin)).data["session_id"]

        async def open_stream(subject: str) -> EventSource:
            url = stream_url(api.url, session_id, f"?token={token('view', session_id, sub=subject)}")
            source = await stack.enter_async_context(await EventSource.connect(url))
            assert await source.next()
            return source

        anna, too, ben = [await open_stream(subject) for subject in ("anna", "anna", "ben")]
        for _ in range(2):
            path = f"/v1/sessions/{session_id}/disconnect"
            assert (await api("POST", path, {"subject": "anna"}, **admin)).status == 202
        for source in (anna, too):
            event = await source.next()
            assert event is not None
            assert event.name == "unsubscribed"
            assert event.json == {
                "type": "UNSUBSCRIBED",
                "sessionId": session_id,
                "code": "DISCONNECTED",
                "message": "Disconnected",
            }
            await source.ended()
        assert (await api("POST", f"/v1/sessions/{session_id}/start", **admin)).status == 200
        assert (await ben.next()).name == "update"  # type: ignore[union-attr]
        assert only_stream(api).subject == "ben"


async def test_streams_count_in_presence_and_tell_of_it(secret: str, broker: str) -> None:
    async with serving(jwt_secret_file=secret, broker=broker) as api, AsyncExitStack() as stack:
        admin = {"Authorization": f"Bearer {token()}"}
        session_id = str(uuid4())

        async def open_stream(subject: str) -> Viewer:
            viewer = Viewer(api.url, session_id)
            viewer.url += f"?token={token('view', session_id, sub=subject)}"
            await viewer.connect()
            stack.callback(viewer.leave)
            await viewer.hear()
            return viewer

        anna = await open_stream("anna")
        body = body_of(session_id=session_id, presence=True)
        assert (await api("POST", "/v1/sessions", body, **admin)).status == 201
        await anna.hear(2)
        assert anna.view.presence.subjects == {"anna"}
        ben = await open_stream("ben")
        await ben.hear()
        assert ben.view.presence.subjects == {"anna", "ben"}
        await anna.hear_until(lambda: anna.view.presence.subjects == {"anna", "ben"})
        present = (await api("GET", f"/v1/sessions/{session_id}/presence", **admin)).data
        assert [each["subject"] for each in present["present"]] == ["anna", "ben"]
        ben.leave()
        await anna.hear_until(lambda: anna.view.presence.subjects == {"anna"})
        # Who comes back with a position has missed nothing, and is told who is there.
        anna.leave()
        anna.shown.begin()
        await anna.connect()
        await anna.hear()
        assert anna.view.presence.subjects == {"anna"}
        assert anna.view.told == ["state", "created"]


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "status", "code"),
    [
        ("max_connections", 503, "SERVER_FULL"),
        ("max_connections_per_ip", 429, "ADDRESS_FULL"),
        ("max_connections_per_session", 429, "SESSION_FULL"),
    ],
)
async def test_the_one_too_many_is_refused_before_it_begins(
    setting: str, status: int, code: str, broker: str
) -> None:
    async with serving(**{setting: 3, "broker": broker}) as api, AsyncExitStack() as stack:
        session_id = str(uuid4())
        url = stream_url(api.url, session_id)
        # A socket counts as a stream does.
        follower = await stack.enter_async_context(Follower(api.url.replace("http", "ws")))
        await follower.follow(session_id)
        streams = [await stack.enter_async_context(await EventSource.connect(url)) for _ in range(2)]
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                await EventSource.connect(url, headers={"Origin": "https://x.example"})
            assert (refused.value.status, refused.value.code) == (status, code)
            assert int(refused.value.headers["retry-after"]) >= 1
        streams[0].abort()
        async with asyncio.timeout(10):
            while True:
                try:
                    await stack.enter_async_context(await EventSource.connect(url))
                    break
                except Refused:
                    await asyncio.sleep(0.01)


async def test_one_caller_takes_a_share_of_a_session_by_streams_too(secret: str) -> None:
    async with (
        serving(jwt_secret_file=secret, max_connections_per_session=4) as api,
        AsyncExitStack() as stack,
    ):
        share = api.server.settings.max_connections_per_caller
        assert 0 < share < 4
        url = stream_url(api.url, SOME_ID, f"?token={token('view', SOME_ID, sub='anna')}")
        for _ in range(share):
            await stack.enter_async_context(await EventSource.connect(url))
        with pytest.raises(Refused) as refused:
            await EventSource.connect(url)
        assert (refused.value.status, refused.value.code) == (429, "SESSION_FULL")
        bea = stream_url(api.url, SOME_ID, f"?token={token('view', SOME_ID, sub='bea')}")
        await stack.enter_async_context(await EventSource.connect(bea))


async def test_more_new_streams_a_second_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    time = FakeTime()
    monkeypatch.setattr(limits_module, "time", time)
    async with serving(connection_rate=5) as api, AsyncExitStack() as stack:
        url = stream_url(api.url, SOME_ID)

        async def attempt() -> str:
            try:
                await stack.enter_async_context(await EventSource.connect(url))
            except Refused as refused:
                return refused.code
            return ""

        for _ in range(2):
            outcomes = await asyncio.gather(*(attempt() for _ in range(15)))
            assert sorted(outcomes) == [""] * 5 + ["SERVER_FULL"] * 10
            time.passed_s += 1


async def test_the_requests_of_streams_count_in_the_rate_limit(secret: str) -> None:
    async with serving(jwt_secret_file=secret, rate_limit_general="2/60") as api:
        url = stream_url(api.url, SOME_ID, f"?token={token('view', SOME_ID, sub='anna')}")
        for left in (1, 0):
            async with await EventSource.connect(url) as source:
                assert source.headers["ratelimit-remaining"] == str(left)
        with pytest.raises(Refused) as refused:
            await EventSource.connect(url)
        assert (refused.value.status, refused.value.code) == (429, "RATE_LIMIT_EXCEEDED")


# --- clients that say something, or are not there any more ------------------------------------------


async def test_what_a_client_sends_behind_its_request_is_ignored_up_to_a_bound() -> None:
    pipelined = b"GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving() as api:
        session_id = (await api.create())["session_id"]
        url = stream_url(api.url, session_id)
        async with await EventSource.connect(url, behind=pipelined) as source:
            assert (await source.next()).name == "snapshot"  # type: ignore[union-attr]
            for _ in range(4):
                source.writer.write(b"x" * 1000)
            await api.done(session_id, "start")
            assert (await source.next()).name == "update"  # type: ignore[union-attr]
            assert b"timestamp_ms" not in source.received
            source.writer.write(b"x" * 1000)
            await nothing_is_open(api)


async def test_nothing_is_left_of_streams_that_came_and_went(broker: str) -> None:
    rng = Random(1)
    async with serving(broker=broker) as api, AsyncExitStack() as stack:
        session_ids = [(await api.running())["session_id"] for _ in range(20)]
        for _ in range(4):
            sources = await asyncio.gather(
                *(EventSource.connect(stream_url(api.url, rng.choice(session_ids))) for _ in range(50))
            )
            for source in sources[:25]:
                await source.next()
            for source in sources:
                source.abort()
        kept = await stack.enter_async_context(viewing(api.url, session_ids[0]))
        await kept.hear()
        async with asyncio.timeout(10):
            while len(api.server.streams.connections) > 1 or len(api.server.hub.rooms) > 1:
                await asyncio.sleep(0.01)
        assert set(api.server.hub.rooms) == {session_ids[0]}
        assert not api.server.transport.in_flight
        assert api.server.streams.limits._open == 1
        assert sum(map(len, api.server.streams.heartbeat._slots)) == 1
        kept.leave()
        await nothing_is_open(api)
        gc.collect()
        left = [type(each).__name__ for each in gc.get_objects() if isinstance(each, EventStream | Timeline)]
        assert left == []
        now = await figures(api.url)
        assert now["lockstep_streams"] == now["lockstep_connections"] == 0
        assert now["lockstep_connections_opened_total"] == 201


async def test_a_client_that_goes_while_it_is_let_in_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as api:
        entering, go_on = asyncio.Event(), asyncio.Event()
        limits = api.server.streams.limits
        enter = limits.enter

        async def slowly(*args: Any) -> str | None:
            entering.set()
            await go_on.wait()
            return await enter(*args)

        monkeypatch.setattr(limits, "enter", slowly)
        for is_aborted in (True, False):
            entering.clear()
            go_on.clear()
            _, writer = await asyncio.open_connection(*api.address)
            writer.write(f"GET /v1/sessions/{SOME_ID}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await entering.wait()
            if is_aborted:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
                writer.transport.abort()
            else:
                writer.close()
            await asyncio.sleep(0.05)
            go_on.set()
            async with asyncio.timeout(10):
                while api.server.streams.limits._open or api.server.transport.in_flight:
                    await asyncio.sleep(0.005)
            await nothing_is_open(api)
            assert not api.server.hub.rooms


async def test_comments_keep_a_stream_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "COMMENT_INTERVAL_S", 0.3)
    async with serving() as api, await EventSource.connect(stream_url(api.url, SOME_ID)) as source:
        await source.next()
        await source.until(lambda: len(source.parser.comments) >= 3)
        assert source.parser.comments[:3] == ["", "", ""]


async def test_a_client_that_takes_nothing_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "TAKES_NOTHING_TIMEOUT_S", 1.0)
    async with serving() as api:
        session_id = (await api.running(seats=SEATS))["session_id"]
        slow = await slow_source(api, session_id)
        stream = only_slow(api, slow)
        async with viewing(api.url, session_id) as reader:
            busy = await Busy.at(api)
            # It may be given up as soon as something waits for it.
            while stream.outgoing.is_empty and not stream.is_over:
                await busy.change(session_id, 10)
            async with asyncio.timeout(30):
                while len(api.server.streams.connections) > 1:
                    await asyncio.sleep(0.05)
            # Who takes what comes is not.
            last = (await api.read(session_id))["version"]
            await reader.hear_until(lambda: reader.view.state and reader.view.state["version"] == last)
            await busy.leave()
        slow.abort()


# --- slow readers --------------------------------------------------------------------------------


class Busy(Follower):
    """Changes sessions as fast as one connection can."""

    @classmethod
    async def at(cls, api: Api) -> "Busy":
        busy = cls(api.url.replace("http", "ws"))
        await busy.connect()
        return busy

    async def change(self, session_id: str, times: int) -> str:
        """The position that it is at then."""
        results = await asyncio.gather(
            *(self.command(session_id, "annotate", {"metadata": {"n": n}}) for n in range(times))
        )
        assert {result["type"] for result in results} == {"RESULT"}
        return str(results[-1]["position"])


async def slow_source(api: Api, session_id: str) -> EventSource:
    """A stream of which little fits between here and there."""
    before = set(api.server.streams.connections)
    source = await EventSource.connect(stream_url(api.url, session_id), rcvbuf=4096)
    source.writer.transport.pause_reading()  # type: ignore[attr-defined]
    (stream,) = api.server.streams.connections - before
    stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return source


def only_slow(api: Api, source: EventSource) -> EventStream:
    port = source.writer.get_extra_info("sockname")[1]
    (stream,) = [each for each in api.server.streams.connections if each._socket.getpeername()[1] == port]
    return stream


def waiting(stream: EventStream) -> list[int]:
    """How many bytes wait for it: of the frame in progress, and of each behind that."""
    unsent = stream.outgoing._unsent
    if unsent is None:
        return []
    return [len(unsent._rest), *(len(each[1] or b"") for each in unsent._waiting)]


async def test_a_slow_stream_costs_one_state_and_has_the_latest_when_it_reads_again() -> None:
    async with serving() as api:
        session_id = (await api.running(seats=SEATS))["session_id"]
        state_bytes = len(json.dumps(await api.read(session_id)))
        slow = await slow_source(api, session_id)
        stream, busy = only_slow(api, slow), await Busy.at(api)
        most_bytes = 0
        for _ in range(20):
            position = await busy.change(session_id, 50)
            assert len(waiting(stream)) <= 2, "the frame in progress and one change, or what stands for all"
            most_bytes = max(most_bytes, sum(waiting(stream)))
        assert not stream.outgoing.is_empty
        assert most_bytes < 2 * state_bytes
        shown = StreamView(session_id)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]

        async def read_until(position: str) -> None:
            while shown.last_id != position:
                event = await slow.next()
                assert event is not None
                shown.take(event)

        await read_until(position)
        assert shown.view.state == await api.read(session_id)
        assert "skipped" in shown.view.told
        assert set(shown.view.told[1:]) <= {"UPDATE", "skipped"}
        # It is a client like any other again.
        await read_until(await busy.change(session_id, 5))
        assert shown.view.told[-5:] == ["UPDATE"] * 5
        slow.abort()
        await busy.leave()


async def test_a_slow_stream_keeps_a_mebibyte_of_messages_and_ends_at_more() -> None:
    async with serving() as api:
        session_id = (await api.create(seats=SEATS))["session_id"]
        slow = await slow_source(api, session_id)
        stream = only_slow(api, slow)
        path, said = f"/v1/sessions/{session_id}/messages", {"type": "NOTE", "text": "x" * 60_000}
        sent = 0
        while not stream.is_over:
            assert (await api("POST", path, said)).status == 202
            sent += 1
            assert sent <= 25
        assert sent >= 17
        await nothing_is_open(api)
        now = await figures(api.url)
        assert now["lockstep_slow_closes_total"] == 1
        assert now['lockstep_connections_closed_total{code="4001"}'] == 1
        slow.abort()


async def test_a_slow_stream_that_ends_is_told_all_that_waits_and_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_streams, "END_TIMEOUT_S", 60.0)
    async with serving() as api:
        session_id = (await api.create(seats=SEATS))["session_id"]
        slow = await slow_source(api, session_id)
        stream = only_slow(api, slow)
        path = f"/v1/sessions/{session_id}/messages"
        for n in range(8):
            assert (await api("POST", path, {"type": "NOTE", "n": n, "text": "x" * 60_000})).status == 202
        assert not stream.outgoing.is_empty
        stream.disconnect()
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        names = []
        while (event := await slow.next()) is not None:
            names.append(event.name)
        assert names == ["snapshot"] + ["message"] * 8 + ["unsubscribed"]


# --- the process stops, or has no broker -------------------------------------------------------------


async def test_a_stream_ends_when_a_drain_begins_and_is_told_when_to_come_back() -> None:
    async with serving() as api:
        session_id = (await api.running())["session_id"]
        sources = [await EventSource.connect(stream_url(api.url, session_id)) for _ in range(40)]
        for source in sources:
            assert await source.next()
        stopping = asyncio.create_task(api.server.stop())
        for source in sources:
            await source.ended()
        await stopping
        delays_ms = [source.parser.retry_ms or 0 for source in sources]
        assert 1001 <= min(delays_ms) <= max(delays_ms) <= 10_999
        assert not api.server.streams.connections


async def test_streams_that_are_sent_away_come_back_spread_as_sockets_do() -> None:
    said = []

    class Away:
        def end(self, last: bytes, how: Any) -> None:
            assert how is GOING_AWAY
            said.append(int(last.removeprefix(b"retry: ")))

    async with serving() as api:
        for place in range(10_000):
            after_ms = server_module.come_back_after_ms(place, 10_000, 5.0)
            api.server.streams.send_away(Away(), GOING_AWAY, after_ms)  # type: ignore[arg-type]
    assert said == sorted(said)
    assert (said[0], 5000 < said[-1] <= 10_999) == (1001, True)


async def test_who_asks_a_process_that_stops_is_told_to_come_back() -> None:
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        request = f"GET /v1/sessions/{SOME_ID}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        writer.write(request.replace(b"GET", b"HEAD"))
        await reader.readuntil(b"\r\n\r\n")
        # Its connection was open before.
        api.server._is_draining = True
        writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"text/event-stream" in head
        body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        assert body.startswith(b"retry: ")
        assert await reader.read() == b""
        writer.close()


async def test_without_a_broker_a_stream_says_so_ends_and_can_come_back() -> None:
    redis = RedisServer()
    try:
        async with serving(broker=redis.url) as api:
            redis.kill()
            async with await EventSource.connect(stream_url(api.url, SOME_ID)) as source:
                await source.ended(20)
                assert source.parser.comments == ["BROKER_UNAVAILABLE: The broker cannot be reached"]
                assert source.parser.retry_ms
            await nothing_is_open(api)
            redis.start()
            async with asyncio.timeout(30):
                while True:
                    async with await EventSource.connect(stream_url(api.url, SOME_ID)) as source:
                        if await source.next() is not None:
                            break
    finally:
        redis.close()


async def test_a_fault_of_the_server_ends_the_stream_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:

        async def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("oops")

        monkeypatch.setattr(api.server.streams.followers, "subscribe", fail)
        async with await EventSource.connect(stream_url(api.url, SOME_ID)) as source:
            await source.ended()
        await nothing_is_open(api)
        assert [record.message for record in caplog.records if record.exc_info] == [
            "a stream could not begin"
        ]


# --- other clients -------------------------------------------------------------------------------


async def test_curl_shows_a_stream_as_it_comes(server_process: ServerProcess) -> None:
    session_id = str(uuid4())
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sN", stream_url(server_process.url, session_id)), stdout=asyncio.subprocess.PIPE
    )
    assert curl.stdout is not None
    parser, events = EventParser(), []

    async def next_event() -> Event:
        assert curl.stdout is not None
        async with asyncio.timeout(10):
            while not events:
                events.extend(parser.feed(await curl.stdout.readline()))
        return events.pop(0)

    try:
        event = await next_event()
        assert (event.name, event.last_id, event.json["state"]) == ("snapshot", "", None)
        created = await Api(server_process.url).create(session_id=session_id)
        event = await next_event()
        assert (event.name, event.json["state"]) == ("snapshot", created)
        assert event.last_id.startswith(f"{created['epoch']}-1-")
    finally:
        curl.terminate()
        await curl.wait()


async def test_a_stream_is_in_the_figures_and_in_the_log() -> None:
    with running(ServerProcess("--log-level=info")) as process:
        async with await EventSource.connect(stream_url(process.url, SOME_ID)) as source:
            assert await source.next()
            now = await figures(process.url)
            assert (now["lockstep_streams"], now["lockstep_connections"]) == (1, 1)
            route = '{code="200",method="GET",route="/v1/sessions/ID/stream"}'
            assert now[f"lockstep_request_seconds_count{route}"] == 1
            assert now['lockstep_messages_total{direction="out",type="SUBSCRIBED"}'] == 1
        async with asyncio.timeout(10):
            while (await figures(process.url))["lockstep_streams"]:
                await asyncio.sleep(0.01)
        now = await figures(process.url)
        assert now['lockstep_connections_closed_total{code="none"}'] == 1
        process.stop()
        closed = [line["session_id"] for line in process.log() if line["message"] == "stream closed"]
        assert closed == [SOME_ID]
