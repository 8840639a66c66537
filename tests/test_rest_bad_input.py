"""What nobody should send: a clear refusal, nothing changed, the process as before."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import COMMANDS, LEAST_BODIES, SOME_ID, Api, body_of, error_of, fields_of, ids
from tests.support.processes import ROOT, Answer, ServerProcess, parse_answer

MIB = 1_048_576


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    server = ServerProcess("--log-level=warning")
    yield server
    server.stop()
    bugs = [line for line in server.log_lines if "traceback" in line.lower() or '"error"' in line]
    assert bugs == []


@pytest.fixture
def api(process: ServerProcess) -> Api:
    return Api(process.url)


async def everything(api: Api) -> dict[str, Any]:
    """All sessions, by id."""
    found: dict[str, Any] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = (await api("GET", f"/v1/sessions?limit=100&cursor={cursor}")).data
        found |= {session["session_id"]: session for session in page["sessions"]}
        cursor = page["next_cursor"]
    return found


@asynccontextmanager
async def nothing_changes(api: Api) -> AsyncIterator[dict[str, Any]]:
    """A running session; afterwards it and all others must be as they were, and the process well."""
    session = await api.running()
    before = await everything(api)
    yield session
    assert (await api("GET", "/health")).body == {"status": "ok"}
    assert await everything(api) == before
    assert len(await api.events(session["session_id"])) == 2
    await api("DELETE", f"/v1/sessions/{session['session_id']}")


async def exchange(api: Api, head: str, body: Iterable[bytes] = (), *, timeout_s: float = 30.0) -> bytes:
    """What comes back for these bytes, until the answer is whole or the connection ends.

    It reads while it writes, so that an answer before the end of the request is not missed.
    """
    loop = asyncio.get_running_loop()
    with socket.create_connection(api.address) as sock:
        sock.setblocking(False)

        async def send() -> None:
            with suppress(OSError):
                await loop.sock_sendall(sock, head.encode())
                for piece in body:
                    await loop.sock_sendall(sock, piece)

        sending = asyncio.create_task(send())
        received = b""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_whole(received) and (data := await loop.sock_recv(sock, 65_536)):
                    received += data
        except ConnectionError:
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return received


def is_whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or b"content-length:" not in head.lower():
        return False
    return len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


def head_of(method: str, path: str, **headers: str) -> str:
    lines = {"Host": "localhost", "Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    yield b"0\r\n\r\n"


# --- not JSON ------------------------------------------------------------------------------------


NOT_JSON = [
    b"{",
    b"}",
    b"[1,",
    b'{"a":1,}',
    b"[1,]",
    b"{'a':1}",
    b"{a:1}",
    b'{"a" 1}',
    b"{} {}",
    b"{}x",
    b"   ",
    b"\x00",
    b"tru",
    b"None",
    b"undefined",
    b'"unended',
    b'"a\x01b"',
    b'"a\nb"',
    b'"\\x41"',
    b'"\\u12"',
    b"01",
    b"+1",
    b".5",
    b"1.",
    b"1e",
    b"0x10",
    b"1_000",
    b"-",
    b"// comment\n{}",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"nan",
    b"1e400",
    b"-1e400",
    b"1" * 400,
    b"1" * 5_000,
    b'"\\ud800"',
    b'"\\udc00"',
    b'"\\udc00\\ud800"',
    b'"\\ud800x"',
    b'{"\\ud800":1}',
    b'[[[{"k":["\\udfff"]}]]]',
    b'{"k":1,"k":1}',
    b'{"k":1,"\\u006b":2}',
    b'[[{"a":{"b":1,"b":null}}]]',
    b"\xff",
    b'"\xc3"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    '{"sync_mode":"count_up"}'.encode("utf-16"),
    b"[" * 500 + b"]" * 500,
    b"[" * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
]


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda text: f"{text[:24]!r}{len(text)}")
async def test_what_is_not_json_is_malformed_wherever_it_stands(api: Api, text: bytes) -> None:
    valid = json.dumps(body_of("count_up")).encode()
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}"
        for body in (text, valid[:-1] + b',"metadata":{"k":' + text + b"}}"):
            error_of(await api("POST", "/v1/sessions", body), 400, "MALFORMED_JSON")
        for route in ("/switch", "/pause", "/complete"):
            error_of(await api("POST", path + route, text), 400, "MALFORMED_JSON")
        error_of(await api("POST", path + "/adjust", b'{"delta_ms":' + text + b"}"), 400, "MALFORMED_JSON")
        for body in (text, b'{"type":"X","k":' + text + b"}"):
            refused = await api("POST", path + "/messages", body)
            if len(body) > 65_536:
                error_of(refused, 413, "PAYLOAD_TOO_LARGE")
            else:
                error_of(refused, 400, "MALFORMED_JSON")


async def test_a_key_given_twice_is_malformed_and_not_the_last_one(api: Api) -> None:
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}/adjust"
        first, second = ids(session)
        body = f'{{"delta_ms":1000,"target":"{first}","target":"{second}"}}'.encode()
        error_of(await api("POST", path, body), 400, "MALFORMED_JSON")


# --- not what was asked for ----------------------------------------------------------------------


@pytest.mark.parametrize("body", [[], [1], "text", 5, -1.5, True, False], ids=repr)
async def test_a_body_that_is_no_object_is_refused(api: Api, body: Any) -> None:
    raw = json.dumps(body).encode()
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}"
        for route in ("/v1/sessions", *(f"{path}/{name}" for name in COMMANDS), f"{path}/messages"):
            assert fields_of(await api("POST", route, raw)) == {"body"}


async def test_null_is_no_session(api: Api) -> None:
    async with nothing_changes(api):
        assert fields_of(await api("POST", "/v1/sessions", b"null")) == {"body"}
        error_of(await api("POST", "/v1/sessions"), 400, "VALIDATION_ERROR")


WRONG = [None, True, False, 0, -1, 1.5, 60_000.0, "60000", "", [], {}, [60_000], 10**30, -(10**200)]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
async def test_a_wrong_type_is_refused_by_its_field(api: Api, value: Any) -> None:
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}"
        seats = body_of()["participants"]
        seats[0] |= {"total_time_ms": value}
        assert fields_of(await api("POST", "/v1/sessions", body_of(participants=seats))) == {
            "participants.0.total_time_ms"
        }
        bad_mode = await api("POST", "/v1/sessions", body_of() | {"sync_mode": value})
        assert fields_of(bad_mode) == {"sync_mode"}
        if value != -1:
            bad_delta = await api("POST", f"{path}/adjust", {"delta_ms": value})
            assert fields_of(bad_delta) == {"delta_ms"}
        if value is not None:
            for name in ("switch", "pause"):
                bad_version = await api("POST", f"{path}/{name}", {"expected_version": value})
                assert fields_of(bad_version) == {"expected_version"}
            bad_next = await api("POST", f"{path}/switch", {"next_participant_id": value, "x": 1})
            assert fields_of(bad_next) == {"next_participant_id", "x"}


SEAT: dict[str, Any] = {"participant_id": SOME_ID, "total_time_ms": 60_000}
NEWCOMERS_REFUSED: list[tuple[Any, str]] = [
    (None, "participants"),
    ([], "participants"),
    ({}, "participants"),
    ("x", "participants"),
    ([{}] * 1001, "participants"),
    ([5], "participants.0"),
    ([[]], "participants.0"),
    ([SEAT, None], "participants.1"),
    ([SEAT | {"participant_id": "x"}], "participants.0.participant_id"),
    ([SEAT | {"participant_index": -1}], "participants.0.participant_index"),
    ([SEAT | {"participant_index": 2**53}], "participants.0.participant_index"),
    ([SEAT | {"total_time_ms": 999}], "participants.0.total_time_ms"),
    ([SEAT | {"total_time_ms": None}], "participants.0.total_time_ms"),
    ([SEAT | {"group_id": ""}], "participants.0.group_id"),
    ([SEAT | {"group_id": "x" * 129}], "participants.0.group_id"),
    ([SEAT | {"name": "Anna"}], "participants.0.name"),
    ([SEAT, SEAT | {"participant_id": SOME_ID.upper()}], "participants.1.participant_id"),
]


@pytest.mark.parametrize(("participants", "field"), NEWCOMERS_REFUSED, ids=lambda value: repr(value)[:60])
async def test_newcomers_that_make_no_sense_are_refused_by_the_field(
    api: Api, participants: Any, field: str
) -> None:
    async with nothing_changes(api) as session:
        refused = await api.command(session["session_id"], "seat", {"participants": participants})
        named = fields_of(refused)
        assert field in named
        assert all(each.startswith(field) for each in named), named


async def test_who_is_seated_already_or_has_the_turn_is_a_conflict_and_told_the_state(api: Api) -> None:
    async with nothing_changes(api) as session:
        newcomers = [SEAT, SEAT | {"participant_id": ids(session)[1].upper()}]
        for name, body in (
            ("seat", {"participants": newcomers}),
            ("seat", {"participants": [{"total_time_ms": 60_000}] * 999}),
            ("unseat", {"participant_id": ids(session)[0]}),
        ):
            error = error_of(await api.command(session["session_id"], name, body), 409, "CONFLICT")
            assert error["details"] == {"state": session}


@pytest.mark.parametrize("participant_id", [None, "x", 5, SOME_ID])
async def test_who_is_none_of_the_participants_is_refused_by_the_field(api: Api, participant_id: Any) -> None:
    async with nothing_changes(api) as session:
        refused = await api.command(session["session_id"], "unseat", {"participant_id": participant_id})
        assert fields_of(refused) == {"participant_id"}


async def test_more_participants_than_allowed_are_refused(api: Api) -> None:
    async with nothing_changes(api):
        assert fields_of(await api("POST", "/v1/sessions", body_of(seats=1_001))) == {"participants"}
        # Of two thousand violations the first hundred are told.
        seats = [{"participant_id": n, "total_time_ms": -1} for n in range(1_000)]
        fields = fields_of(await api("POST", "/v1/sessions", body_of(participants=seats)))
        assert fields == {
            f"participants.{n}.{name}" for n in range(50) for name in ("participant_id", "total_time_ms")
        }


async def test_a_participant_given_twice_is_refused(api: Api) -> None:
    async with nothing_changes(api):
        seats = body_of(seats=3)["participants"]
        seats[2]["participant_id"] = seats[0]["participant_id"].upper()
        refused = await api("POST", "/v1/sessions", body_of(participants=seats))
        assert fields_of(refused) == {"participants.2.participant_id"}


@pytest.mark.parametrize("name", ["__proto__", "constructor", "é", "a.b", "x" * 10_000, "version", "status"])
async def test_an_unknown_field_is_refused_by_name(api: Api, name: str) -> None:
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}"
        assert fields_of(await api("POST", "/v1/sessions", body_of(**{name: 1}))) == {name[:200]}
        for command in ("switch", "pause", "complete"):
            assert fields_of(await api("POST", f"{path}/{command}", {name: 1})) == {name[:200]}


# --- bodies too big, or of another kind ----------------------------------------------------------


def padded(size: int) -> bytes:
    """A request to create a session, of so many bytes."""
    raw = json.dumps(body_of()).encode()
    return raw + b" " * (size - len(raw))


async def test_a_body_of_one_mib_is_taken_and_one_byte_more_is_not(api: Api) -> None:
    assert (await api("POST", "/v1/sessions", padded(MIB))).status == 201
    async with nothing_changes(api):
        error_of(await api("POST", "/v1/sessions", padded(MIB + 1)), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("mib", [1, 2, 15, 20, 64])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_a_body_over_one_mib_is_too_large(api: Api, framing: str, mib: int) -> None:
    pieces = [padded(MIB), *[b" " * MIB] * (mib - 1), b" "]
    if framing == "chunked":
        head, body = head_of("POST", "/v1/sessions", Transfer_Encoding="chunked"), chunked(pieces)
    else:
        head, body = head_of("POST", "/v1/sessions", Content_Length=str(mib * MIB + 1)), iter(pieces)
    async with nothing_changes(api):
        error_of(parse_answer(await exchange(api, head, body)), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("size", [17 * MIB, 10 * 1024 * MIB, 2**63, 10**40])
@pytest.mark.parametrize(
    "route", ["POST /v1/sessions", "POST /v1/sessions/{}/switch", "POST /v1/sessions/{}/messages"]
)
async def test_a_body_that_is_declared_to_be_huge_is_refused_at_once(api: Api, route: str, size: int) -> None:
    async with nothing_changes(api) as session:
        method, path = route.format(session["session_id"]).split()
        answer = await exchange(api, head_of(method, path, Content_Length=str(size)), [b'{"k":'])
        error_of(parse_answer(answer), 413, "PAYLOAD_TOO_LARGE")


async def test_a_huge_body_where_there_is_no_route_is_refused(api: Api) -> None:
    async with nothing_changes(api):
        for method, path in (("POST", "/nowhere"), ("PUT", "/health"), ("GET", "/health")):
            head = head_of(method, path, Content_Length=str(10 * 1024 * MIB))
            assert parse_answer(await exchange(api, head)).status in (404, 405, 413)


async def test_a_big_body_does_not_grow_the_process(api: Api, process: ServerProcess) -> None:
    async with nothing_changes(api):
        head = head_of("POST", "/v1/sessions", Content_Length=str(15 * MIB))
        before = process.rss_bytes()
        for _ in range(4):
            await exchange(api, head, [b"[" * MIB] * 15)
        assert process.rss_bytes() < before + 12 * MIB


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/json",
        "text/html",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonp",
        "application/json-patch+json",
        "application/octet-stream",
        "json",
        "*/*",
    ],
)
async def test_a_body_of_another_content_type_is_unsupported(api: Api, kind: str) -> None:
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}"
        create = await api("POST", "/v1/sessions", body_of(), Content_Type=kind)
        error_of(create, 415, "UNSUPPORTED_MEDIA_TYPE")
        for name in ("switch", "pause"):
            refused = await api("POST", f"{path}/{name}", {}, Content_Type=kind)
            error_of(refused, 415, "UNSUPPORTED_MEDIA_TYPE")
        refused = await api("POST", f"{path}/messages", {"type": "X"}, Content_Type=kind)
        error_of(refused, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y"]
)
async def test_json_by_its_other_spellings_is_taken(api: Api, kind: str) -> None:
    assert (await api("POST", "/v1/sessions", body_of(), Content_Type=kind)).status == 201


# --- paths and queries ---------------------------------------------------------------------------


BAD_IDS = [
    "x",
    "0" * 36,
    f"{SOME_ID}0",
    SOME_ID[:-1],
    SOME_ID.replace("-", ""),
    "%20",
    "..%2f..",
    "%00",
    "null",
    "%C3%A9",
]


def routes_of(session_id: str) -> list[tuple[str, str, Any]]:
    path = f"/v1/sessions/{session_id}"
    return [
        ("GET", path, None),
        ("DELETE", path, None),
        *(("POST", f"{path}/{name}", LEAST_BODIES.get(name)) for name in COMMANDS),
        ("POST", f"{path}/messages", {"type": "X"}),
        ("GET", f"{path}/events", None),
    ]


@pytest.mark.parametrize("bad", [*BAD_IDS, "%ff", "%ed%a0%80"])
async def test_a_bad_uuid_in_the_path_is_field_id(api: Api, bad: str) -> None:
    async with nothing_changes(api):
        for method, path, body in routes_of(bad):
            assert fields_of(await api(method, path, body)) == {"id"}, (method, path)


async def test_what_is_wrong_with_path_body_and_query_is_told_at_once(api: Api) -> None:
    async with nothing_changes(api):
        adjust = await api("POST", "/v1/sessions/x/adjust", {"delta_ms": 0, "expected_version": "1", "y": 1})
        assert fields_of(adjust) == {"id", "delta_ms", "expected_version", "y"}
        events = await api("GET", "/v1/sessions/x/events?since=abc&epoch=!")
        assert fields_of(events) == {"id", "since", "epoch"}
        message = await api("POST", "/v1/sessions/x/messages", {"type": "PONG"})
        assert fields_of(message) == {"id", "type"}


@pytest.mark.parametrize("since", ["abc", "-1", "1.5", "0x1", "1e3", "%20", "%ff", "null", "9" * 1_000])
async def test_since_is_a_version(api: Api, since: str) -> None:
    async with nothing_changes(api) as session:
        answer = await api("GET", f"/v1/sessions/{session['session_id']}/events?since={since}")
        assert fields_of(answer) == {"since"}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "BREW"])
async def test_unknown_routes_and_methods_are_told_in_json(api: Api, method: str) -> None:
    async with nothing_changes(api) as session:
        path = f"/v1/sessions/{session['session_id']}"
        for unknown in ("/nowhere", f"{path}/switch/now", f"{path}/explode", "/v1/sessions//switch"):
            answer = await api(method, unknown, {} if method in ("POST", "PUT", "PATCH") else None)
            if method == "BREW":
                assert answer.status in (404, 405)
                assert error_of(answer, answer.status, answer.body["error"]["code"])
            else:
                error_of(answer, 404, "NOT_FOUND")
        if method not in ("POST",):
            error_of(await api(method, f"{path}/switch"), 405, "METHOD_NOT_ALLOWED")
        if method not in ("GET", "DELETE"):
            error_of(await api(method, path), 405, "METHOD_NOT_ALLOWED")


async def test_a_socket_route_asked_without_an_upgrade_is_told_in_json(api: Api) -> None:
    async with nothing_changes(api) as session:
        answer = await api("GET", f"/ws?sessionId={session['session_id']}")
        assert 400 <= answer.status < 500
        error_of(answer, answer.status, answer.body["error"]["code"])


# --- not even HTTP -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        "garbage\r\n\r\n",
        "GET\r\n\r\n",
        "GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost x\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nA: " + "x" * 100_000 + "\r\n\r\n",
        "GET /" + "x" * 100_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        head_of("POST", "/v1/sessions", Content_Length="abc") + "{}",
        head_of("POST", "/v1/sessions", Content_Length="-5") + "{}",
        head_of("POST", "/v1/sessions", Content_Length="2, 3") + "{}",
        head_of("POST", "/v1/sessions", Content_Length="2", Transfer_Encoding="chunked") + "{}",
        head_of("POST", "/v1/sessions", Transfer_Encoding="chunked") + "zz\r\n",
        head_of("POST", "/v1/sessions", Transfer_Encoding="gzip") + "{}",
        "\x16\x03\x01\x02\x00\x01\x00",
        "\x00" * 100_000,
    ],
    ids=lambda raw: raw[:40],
)
async def test_what_is_no_http_is_cut_off_and_harms_nobody(api: Api, raw: str) -> None:
    async with nothing_changes(api):
        # What breaks off here may be waited for by the server: it is the end that must not hurt.
        with suppress(TimeoutError):
            received = await exchange(api, raw, timeout_s=0.5)
            assert not received or received.startswith(b"HTTP/1.1 4")


async def test_a_request_that_breaks_off_changes_nothing(api: Api) -> None:
    async with nothing_changes(api):
        raw = json.dumps(body_of()).encode()
        head = head_of("POST", "/v1/sessions", Content_Length=str(len(raw)))
        for sent in (head.encode(), head.encode() + raw[:-1], head.encode()[:-2]):
            _, writer = await asyncio.open_connection(*api.address)
            writer.write(sent)
            await writer.drain()
            writer.transport.abort()


# --- the process ---------------------------------------------------------------------------------


async def broken_off(server: ServerProcess) -> None:
    """A request of which half has come, and then no client any more."""
    head = head_of("POST", "/v1/sessions", Content_Length="100")
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + b'{"sync_mode":')
    await writer.drain()
    # Whatever comes after it is answered: the server has seen the first half.
    assert (await Api(server.url)("GET", "/health")).status == 200
    writer.transport.abort()


async def test_a_request_that_broke_off_does_not_hold_up_the_stop() -> None:
    server = ServerProcess("--log-level=warning", "--drain-s=60")
    try:
        for _ in range(3):
            await broken_off(server)
        assert (await Api(server.url)("GET", "/health")).status == 200
        server.terminate()
        assert server.wait(10) == 0
    finally:
        server.kill()


async def test_a_request_that_never_ends_holds_up_the_stop_no_longer_than_the_drain_time() -> None:
    server = ServerProcess("--log-level=error", "--drain-s=0.2")
    try:
        head = head_of("POST", "/v1/sessions", Content_Length="100")
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + b'{"sync_mode":')
        await writer.drain()
        assert (await Api(server.url)("GET", "/health")).status == 200
        server.terminate()
        assert server.wait(20) == 0
        writer.transport.abort()
    finally:
        server.kill()


def refused(*args: str, **environ: str) -> str:
    """The one line with which a start is refused."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    ended = subprocess.run(
        [sys.executable, "server.py", *args],
        cwd=ROOT,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode not in (0, -signal.SIGKILL)
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "Traceback" not in line
    return line


def test_a_taken_port_is_one_line_that_names_it(process: ServerProcess) -> None:
    assert str(process.port) in refused(f"--port={process.port}")


def test_an_address_that_is_not_ours_is_one_line_that_names_it() -> None:
    assert "192.0.2.1" in refused("--port=0", "--address=192.0.2.1")
    assert "no.such.host.invalid" in refused("--port=0", "--address=no.such.host.invalid")


def test_an_unknown_key_is_one_line_that_names_it(tmp_path: Path) -> None:
    assert "--colour" in refused("--port=0", "--colour=red")
    assert "LOCKSTEP_COLOUR" in refused("--port=0", LOCKSTEP_COLOUR="red")
    file = tmp_path / "settings.toml"
    file.write_text('colour = "red"')
    assert "colour" in refused("--port=0", f"--config={file}")


@pytest.mark.parametrize(
    "arg",
    [
        "--port=x",
        "--port=65536",
        "--broker=nonsense",
        "--broker=http://x",
        "--broker=redis://x:port/",
        "--routing=x",
    ],
)
def test_a_bad_value_is_one_line_that_names_its_key(arg: str) -> None:
    key = arg.partition("=")[0].lstrip("-")
    others = [] if key == "port" else ["--port=0"]
    assert key in refused(arg, *others)


def test_a_password_is_not_shown_in_a_refusal() -> None:
    assert "hush" not in refused("--port=0", "--broker=redis://user:hush@x:port/")


def test_answers_are_of_the_type_they_say() -> None:
    """A look at the helper: an answer that is cut short is not taken for a whole one."""
    with pytest.raises(AssertionError):
        parse_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}")
    assert parse_answer(b"HTTP/1.1 204 No Content\r\n\r\n") == Answer(204, {}, b"")


# --- without number -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b",".join([b"[]"] * 340_000) + b"]}",
        b'{"a":[' + b",".join([b'{"":0}'] * 149_000) + b"]}",
        b'{"a":[' + b",".join([b"1e5"] * 260_000) + b"]}",
        ("{" + ",".join(f'"{n:x}":0' for n in range(100_000)) + "}").encode(),
    ],
    ids=["arrays", "objects", "numbers", "fields"],
)
async def test_json_with_more_values_than_anybody_needs_is_not_read(api: Api, body: bytes) -> None:
    async with nothing_changes(api) as session:
        for path in ("/v1/sessions", f"/v1/sessions/{session['session_id']}/switch"):
            assert (
                "too many values" in error_of(await api("POST", path, body), 400, "MALFORMED_JSON")["message"]
            )


async def test_of_complaints_without_number_a_hundred_are_told(api: Api) -> None:
    async with nothing_changes(api) as session:
        body = ("{" + ",".join(f'"{n:x}":0' for n in range(30_000)) + "}").encode()
        answer = await api("POST", f"/v1/sessions/{session['session_id']}/switch", body)
        assert fields_of(answer) == {f"{n:x}" for n in range(100)}


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/{id}/events"])
async def test_a_query_of_arguments_without_number_is_refused(api: Api, path: str) -> None:
    async with nothing_changes(api) as session:
        asked = path.format(id=session["session_id"]) + "?" + "&".join(f"{n:x}=1" for n in range(2_000))
        assert fields_of(await api("GET", asked)) == {"query"}
