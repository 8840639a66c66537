"""HTTP as probes, proxies and libraries speak it: HEAD, absolute targets, odd lengths, unasked upgrades."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.support.processes import Answer, ServerProcess, read_answer, request
from tests.support.ws_client import WsClient

SCRIPTS = ["page", "api", "commands", "dom", "laps", "panels", "presets", "wording", "lockstep"]
PAGE = ["/", "/page.css", "/session.css", "/favicon.svg", *(f"/{name}.js" for name in SCRIPTS)]
VARYING = {"date", "x-request-id"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess("--log-level=info")
    yield server
    server.stop()


def chess() -> dict[str, Any]:
    seats = [{"participant_id": str(uuid4()), "total_time_ms": 60_000} for _ in range(2)]
    return {"session_id": str(uuid4()), "sync_mode": "per_participant", "participants": seats}


async def said(server: ServerProcess, *requests: str | bytes) -> list[Answer]:
    """Requests on one connection, each sent when the one before is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answers = []
    try:
        async with asyncio.timeout(10):
            for each in requests:
                raw = each if isinstance(each, bytes) else each.encode()
                writer.write(raw)
                answers.append(await read_answer(reader, raw.split()[0].decode()))
    finally:
        writer.transport.abort()
    return answers


def head_of(method: str, target: str, **headers: str) -> str:
    lines = {"Host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"


def steady(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in VARYING}


async def running(server: ServerProcess) -> str:
    session_id: str = (await server.call("POST", "/v1/sessions", chess())).data["session_id"]
    await server.call("POST", f"/v1/sessions/{session_id}/start")
    return session_id


# --- HEAD ----------------------------------------------------------------------------------------


async def test_head_is_answered_as_get_is_without_the_body(server: ServerProcess) -> None:
    path = f"/v1/sessions/{await running(server)}"
    for target in [
        *(
            "/health",
            "/ready",
            "/v1/time",
            "/openapi.json",
            "/asyncapi.json",
            "/v1/sessions",
            path,
            f"{path}/events",
            *PAGE,
        ),
        *("/nowhere", f"/v1/sessions/{uuid4()}", "/v1/sessions/x", "/v1/sessions?limit=x", "/ws"),
    ]:
        got, *heads = await said(
            server, head_of("GET", target), head_of("HEAD", target), head_of("HEAD", target)
        )
        for head in heads:
            assert (head.status, steady(head)) == (got.status, steady(got)), target
        assert int(got.headers["content-length"]) == len(got.raw) > 0


async def test_head_of_the_metrics_has_no_body_either(server: ServerProcess) -> None:
    head, alive = await said(server, head_of("HEAD", "/metrics"), head_of("GET", "/health"))
    assert (head.status, alive.body) == (200, {"status": "ok"})
    assert int(head.headers["content-length"]) > 0


async def test_head_with_a_known_tag_is_not_modified(server: ServerProcess) -> None:
    path = f"/v1/sessions/{await running(server)}"
    (head,) = await said(server, head_of("HEAD", path))
    same, alive = await said(
        server, head_of("HEAD", path, If_None_Match=head.headers["etag"]), head_of("GET", "/health")
    )
    assert (same.status, alive.status) == (304, 200)


async def test_what_can_be_got_can_be_headed_and_says_so(server: ServerProcess) -> None:
    path = f"/v1/sessions/{uuid4()}"
    allowed = {
        "/health": {"GET"},
        "/v1/time": {"GET"},
        "/v1/sessions": {"GET", "POST"},
        path: {"GET", "DELETE"},
        f"{path}/events": {"GET"},
        f"{path}/switch": {"POST"},
        "/": {"GET"},
        "/page.js": {"GET"},
        "/ws": {"GET"},
    }
    for target, methods in allowed.items():
        expected = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
        options, refused = await said(server, head_of("OPTIONS", target), head_of("PATCH", target))
        assert (options.status, options.raw, refused.status) == (204, b"", 405)
        for answer in (options, refused):
            assert {each.strip() for each in answer.headers["allow"].split(",")} == expected, target
    (refused,) = await said(server, head_of("HEAD", f"{path}/switch"))
    assert refused.status == 405


# --- targets, lengths, expectations --------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:{port}", "LOCALHOST"])
async def test_an_absolute_target_is_served_as_its_path_is(server: ServerProcess, host: str) -> None:
    place = f"http://{host.format(port=server.port)}"
    body = json.dumps(chess())
    post = head_of(
        "POST", f"{place}/v1/sessions", Content_Length=str(len(body)), Content_Type="application/json"
    )
    (created,) = await said(server, post + body)
    path = f"/v1/sessions/{created.data['session_id']}"
    for target in (
        path,
        f"{path}/events?since=0",
        "/",
        "/page.js",
        "/ws",
        "/nowhere",
        "/v1/sessions?limit=1",
    ):
        plain, absolute = await said(server, head_of("GET", target), head_of("GET", place + target))
        assert (absolute.status, absolute.raw) == (plain.status, plain.raw), target
    (page,) = await said(server, head_of("GET", place))
    assert page.headers["content-type"].startswith("text/html")
    async with await WsClient.connect(f"{server.ws_url}/ws?sessionId={uuid4()}", target=place) as client:
        assert (await client.recv())["type"] == "CONNECTED"


async def test_the_host_of_an_absolute_target_is_the_one_that_counts(server: ServerProcess) -> None:
    (refused,) = await said(server, head_of("GET", "http://evil.example/v1/time"))
    assert refused.body["error"]["details"]["reason"] == "host"
    (served,) = await said(server, head_of("GET", "http://localhost/v1/time", Host="evil.example"))
    assert served.status == 200
    (without,) = await said(server, "GET http://localhost/v1/time HTTP/1.1\r\n\r\n")
    assert without.status == 400


@pytest.mark.parametrize("digits", [8, 18, 19, 20, 25, 400, 5_000])
@pytest.mark.parametrize("path", ["/v1/sessions", "/nowhere", "/v1/time"])
async def test_a_body_of_an_absurd_length_is_refused_at_once_and_once(
    server: ServerProcess, path: str, digits: int
) -> None:
    before = len(server.log_lines)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        writer.write(
            head_of("POST", path, Content_Length="9" * digits, Content_Type="application/json").encode()
        )
        answer = await read_answer(reader)
        assert (answer.status, answer.body["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
        assert answer.headers["connection"] == "close"
        assert await reader.read(-1) == b"", "nothing is said behind it"
    writer.transport.abort()
    assert (await server.call("GET", "/health")).status == 200
    assert not [line for line in server.log_lines[before:] if "traceback" in line.lower()]


async def test_a_client_that_waits_to_be_told_to_continue_is_told_so(server: ServerProcess) -> None:
    body = json.dumps(chess()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = head_of(
        "POST",
        "/v1/sessions",
        Content_Length=str(len(body)),
        Content_Type="application/json",
        Expect="100-continue",
    )
    async with asyncio.timeout(10):
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(body)
        assert (await read_answer(reader)).status == 201
    writer.transport.abort()


async def test_an_upgrade_to_http_2_is_passed_over(server: ServerProcess) -> None:
    settings = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAEAAEAAAAIAAAAB",
    }
    body = json.dumps(chess())
    lines = "".join(f"{name}: {value}\r\n" for name, value in settings.items())
    head = head_of("POST", "/v1/sessions", Content_Length=str(len(body)), Content_Type="application/json")
    created, alive = await said(
        server, head.removesuffix("\r\n") + lines + "\r\n" + body, head_of("GET", "/health")
    )
    assert (created.status, alive.status) == (201, 200)


# --- the socket's door ---------------------------------------------------------------------------


async def test_a_socket_may_be_asked_for_with_a_slash_at_the_end(server: ServerProcess) -> None:
    async with await WsClient.connect(f"{server.ws_url}/ws/?sessionId={uuid4()}") as client:
        assert (await client.recv())["type"] == "CONNECTED"


async def test_protocols_may_be_offered_in_two_headers(server: ServerProcess) -> None:
    offers = "lockstep.v1.json\r\nSec-WebSocket-Protocol: bearer.abc"
    url = f"{server.ws_url}/ws?sessionId={uuid4()}"
    async with await WsClient.connect(url, headers={"Sec-WebSocket-Protocol": offers}) as client:
        assert re.search(r"(?im)^sec-websocket-protocol: lockstep\.v1\.json\r$", client.response)
        assert (await client.recv())["type"] == "CONNECTED"


# --- where it listens ----------------------------------------------------------------------------


async def answers_at(host: str, port: int, path: str) -> bool:
    """Others on this machine may have the same port at another address: they do not know this path."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        async with asyncio.timeout(10):
            writer.write(head_of("GET", path).encode())
            return (await reader.read(12)) == b"HTTP/1.1 200"
    except OSError:
        return False
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("address", "shown", "hosts"),
    [
        ("127.0.0.1", ["127.0.0.1"], {"127.0.0.1": True, "127.0.0.2": False, "::1": False}),
        ("127.0.0.2, ::1", ["127.0.0.2", "[::1]"], {"127.0.0.1": False, "127.0.0.2": True, "::1": True}),
        ("::1", ["[::1]"], {"127.0.0.1": False, "::1": True}),
        ("0.0.0.0", ["0.0.0.0"], {"127.0.0.1": True, "127.0.0.2": True, "::1": False}),
        ("::", ["0.0.0.0", "[::]"], {"127.0.0.1": True, "127.0.0.2": True, "::1": True}),
        ("127.0.0.1,::,0.0.0.0", ["0.0.0.0", "[::]"], {"127.0.0.1": True, "::1": True}),
    ],
)
async def test_it_listens_at_each_address_it_was_given_and_says_where(
    address: str, shown: list[str], hosts: dict[str, bool]
) -> None:
    server = ServerProcess(f"--address={address}", "--insecure=yes", "--log-level=warning")
    try:
        urls = re.findall(r"http://\S+", server.start_line)
        created = await request(f"{urls[0]}/v1/sessions", "POST", chess())
        path = f"/v1/sessions/{created.data['session_id']}"
        for host, is_answered in hosts.items():
            assert await answers_at(host, server.port, path) is is_answered, host
        assert sorted(urls) == sorted(f"http://{host}:{server.port}" for host in shown)
    finally:
        server.stop()


def test_an_address_that_cannot_be_had_is_named_and_nothing_is_listened_to() -> None:
    server = ServerProcess("--address=127.0.0.1,192.0.2.1", "--insecure=yes", wait=False)
    out, err = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    assert out == b""
    assert b"cannot listen on 192.0.2.1:" in err
    assert err.count(b"\n") == 1
