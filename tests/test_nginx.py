"""What deploy/nginx.conf does with a request, told by processes that do what no process should."""

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from deploy.config import Stack, find_program
from deploy.nginx import SOCKET_TIMEOUT_MARGIN_S, nginx_conf, origin_map_lines
from handlers.event_streams import COMMENT_INTERVAL_S
from lockstep.addresses import Addresses
from lockstep.config import Settings, read_settings
from tests.support.event_source import EventSource, stream_url
from tests.support.processes import Answer, parse_answer, request
from tests.support.stack import free_ports
from tests.support.ws_client import DEFLATE, WsClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Reply = Callable[[int], bytes | Awaitable[bytes] | None]


class Front:
    """nginx before three processes of the test's own.

    `seen` is what they were sent, names in lower case; `asked` who of them was.
    """

    def __init__(self, stack: Stack) -> None:
        self.url = stack.url
        self.metrics_port = stack.metrics_port
        self.seen: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.reply: Reply = lambda _: OK

    async def serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while await self._answer(name, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # nginx, or the test, has had enough
        finally:
            writer.transport.abort()

    async def _answer(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        await reader.readexactly(int(headers.get("content-length", 0)))
        self.seen.append(headers | {"first line": first})
        self.asked.append(name)
        answer = self.reply(len(self.seen))
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer is not None:
            writer.write(answer)
        return answer is not None

    async def call(self, method: str = "POST", path: str = "/v1/sessions", **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(self.url + path, method, {} if method == "POST" else None, given)


@contextlib.asynccontextmanager
async def fronted(
    folder: Path,
    processes: int = 3,
    origins: str = "",
    edit: Callable[[str], str] = str,
    settings: Sequence[str] = (),
    hash_by_session: bool = False,
) -> AsyncIterator[Front]:
    base = free_ports(2)
    stack = Stack(
        str(folder),
        f"127.0.0.1:{base + 1}",
        processes=3,
        metrics_port=base,
        connections=100,
        hash_by_session=hash_by_session,
    )
    (folder / "nginx-temp").mkdir()
    told = read_settings([f"--origins={origins}", *settings], {})
    (folder / "nginx.conf").write_text(edit(nginx_conf(stack, told)))
    front = Front(stack)
    servers = [
        await asyncio.start_unix_server(functools.partial(front.serve, name), stack.socket_of(name))
        for name in stack.names[:processes]
    ]
    nginx = await asyncio.create_subprocess_exec(
        *(find_program("nginx"), "-p", stack.run, "-c", "nginx.conf", "-e", "nginx-error.log")
    )
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", base + 1)
                    writer.transport.abort()
                    break
                await asyncio.sleep(0.01)
        yield front
    finally:
        nginx.terminate()
        await nginx.wait()
        for server in servers:
            server.close()
        for task in front.tasks:
            task.cancel()
        await asyncio.gather(*front.tasks)


async def test_a_request_says_who_asks_and_for_what(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        assert (
            await front.call(X_Forwarded_For="203.0.113.7", X_Request_ID="mine", Idempotency_Key="k")
        ).status == 200
    (seen,) = front.seen
    assert seen["host"] == front.url.removeprefix("http://")
    assert seen["x-forwarded-for"] == "203.0.113.7, 127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert (seen["x-request-id"], seen["idempotency-key"]) == ("mine", "k")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.7", "203.0.113.1", "203.0.113.1"),
        ("127.0.0.7", "203.0.113.2:4711", "203.0.113.2"),
        ("127.0.0.7", "6.6.6.6, 203.0.113.3, 10.1.2.3", "203.0.113.3"),
        ("127.0.0.7", "6.6.6.6\r\nX-Forwarded-For: 203.0.113.4", "203.0.113.4"),
        ("127.0.0.7", "2001:db8::1", "2001:db8::/64"),
        ("127.0.0.8", "6.6.6.6", "127.0.0.8"),
    ],
    ids=["one", "port", "two proxies", "two lines", "IPv6", "stranger"],
)
async def test_a_caller_is_whom_trusted_proxies_before_nginx_name(
    tmp_path: Path, peer: str, forwarded: str, client: str
) -> None:
    proxies = "--trusted-proxies=127.0.0.7, 10.0.0.1/255.0.0.0"
    async with fronted(tmp_path, settings=[proxies]) as front:
        head = f"GET /v1/time HTTP/1.1\r\nX-Forwarded-For: {forwarded}\r\n"
        assert (await raw(front, head.encode() + HOST, source=peer)).status == 200
    # A process believes nginx, and nobody else.
    assert Addresses(["127.0.0.1"]).client_of("127.0.0.1", front.seen[0]["x-forwarded-for"]) == client


async def test_a_request_without_a_key_is_given_one(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        for _ in range(2):
            assert (await front.call()).status == 200
    first, second = (seen["idempotency-key"] for seen in front.seen)
    assert first != second
    assert len(first) == len(second) == 32


async def test_a_change_whose_process_dies_over_it_is_tried_elsewhere_by_the_same_key(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        front.reply = lambda count: None if count < 3 else OK
        assert (await front.call()).status == 200
    assert len(front.seen) == 3
    assert len({seen["idempotency-key"] for seen in front.seen}) == 1
    assert len({seen["x-request-id"] for seen in front.seen}) == 1


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_change_says_when_it_was_received_first_wherever_it_is_tried(
    tmp_path: Path, method: str
) -> None:
    async with fronted(tmp_path) as front:
        before_s = time.time()
        front.reply = lambda count: None if count < 3 else OK
        answer = await front.call(method, f"/v1/sessions/{uuid4()}", X_Request_Start="t=1.000")
        assert answer.status == 200
    assert len(front.seen) == 3
    (told,) = {seen["x-request-start"] for seen in front.seen}
    assert re.fullmatch(r"t=\d+\.\d{3}", told), "and not what its caller says"
    # nginx reads the clock once in a turn of its loop.
    assert before_s - 1 <= float(told[2:]) <= time.time()


async def test_a_read_does_not_say_when_it_was_received(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        assert (await front.call("GET", "/v1/time", X_Request_Start="t=1.000")).status == 200
    assert "x-request-start" not in front.seen[0]


async def test_a_change_whose_process_hangs_is_tried_elsewhere(tmp_path: Path) -> None:
    async def never() -> bytes:
        await asyncio.sleep(60)
        return b""

    async with fronted(tmp_path) as front:
        front.reply = lambda count: never() if count == 1 else OK
        assert (await front.call()).status == 200
    assert len(front.seen) == 2


async def test_a_refusal_is_an_answer_and_not_tried_again(tmp_path: Path) -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
    async with fronted(tmp_path) as front:
        front.reply = lambda _: away
        answer = await front.call()
    assert (answer.status, answer.headers["retry-after"], len(front.seen)) == (503, "1", 1)


async def test_a_socket_that_a_stopping_process_refuses_is_opened_at_another(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        front.reply = lambda count: (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n" if count == 1 else OK
        )
        assert (await front.call("GET", "/ws?sessionId=x", Upgrade="websocket")).status == 200
    assert [seen["upgrade"] for seen in front.seen] == ["websocket", "websocket"]
    assert [seen["connection"] for seen in front.seen] == ["upgrade", "upgrade"]


@pytest.mark.parametrize("processes", [0, 2])
async def test_without_any_process_the_answer_is_a_503_with_retry_after(
    tmp_path: Path, processes: int
) -> None:
    async with fronted(tmp_path, processes) as front:
        front.reply = lambda _: None
        answer = await front.call()
    assert (answer.status, answer.body["error"]["code"]) == (503, "UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"


# --- what nginx answers itself ---------------------------------------------------------------------

HOST = b"Host: x\r\nConnection: close\r\n"
EXTENSION = f"chrome-extension://{'abcdefghijklmnop' * 2}"
LONGEST = f"chrome-extension://{'.'.join(letter * 63 for letter in 'abcd')[:253]}:65535"
# What nginx does not pass on, or cannot, when no process answers; and the status and code of its answer.
REFUSED = {
    b"GET /v1/time HTTP/1.1\r\n" + HOST: (503, "UNAVAILABLE"),
    b"GET /metrics HTTP/1.1\r\n" + HOST: (404, "NOT_FOUND"),
    b"GET /.nginx/400 HTTP/1.1\r\n" + HOST: (404, "NOT_FOUND"),
    b"TRACE / HTTP/1.1\r\n" + HOST: (405, "METHOD_NOT_ALLOWED"),
    b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n" + HOST: (413, "PAYLOAD_TOO_LARGE"),
    b"POST / HTTP/1.1\r\nContent-Length: x\r\n" + HOST: (400, "MALFORMED_JSON"),
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n" + HOST: (501, "MALFORMED_JSON"),
}
# These it refuses before it has read who asks.
REFUSED_AT_ONCE = {
    b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n" + HOST: (400, "MALFORMED_JSON"),
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + HOST: (414, "MALFORMED_JSON"),
    b"GET / HTTP/3.0\r\n" + HOST: (505, "MALFORMED_JSON"),
    b"what is this\r\n": (400, "MALFORMED_JSON"),
}


async def raw(front: Front, head: bytes, origin: str = "", source: str = "") -> Answer:
    """The answer to these bytes, with an Origin behind them, and an empty line; from `source`, an address."""
    host, _, port = front.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), local_addr=(source, 0) if source else None
    )
    try:
        async with asyncio.timeout(20):
            writer.write(head + (f"Origin: {origin}\r\n" if origin else "").encode() + b"\r\n")
            # Not to the end: nginx stays for 5 s to see what else comes of a body that it refused.
            answer = await reader.readuntil(b"\r\n\r\n")
            told = re.search(rb"\r\ncontent-length: (\d+)", answer, re.IGNORECASE)
            return parse_answer(answer + await reader.readexactly(int(told[1]) if told else 0))
    finally:
        writer.transport.abort()


async def test_every_error_of_nginx_is_json_with_a_request_id(tmp_path: Path) -> None:
    async with fronted(tmp_path, processes=0) as front:
        for head, (status, code) in (REFUSED | REFUSED_AT_ONCE).items():
            answer = await raw(front, head)
            assert (answer.status, answer.body["error"]["code"]) == (status, code), head[:50]
            assert answer.headers["content-type"] == "application/json"
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert "vary" not in answer.headers
            assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
        mine = await raw(front, b"GET / HTTP/1.1\r\nX-Request-ID: mine\r\n" + HOST)
        assert mine.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("origins", "origin", "admitted"),
    [
        ("*", "https://a.example", "*"),
        ("*", "", "*"),
        ("https://a.example, http://localhost:5173", "https://a.example", "https://a.example"),
        ("https://a.example, http://localhost:5173", "http://localhost:5173", "http://localhost:5173"),
        ("https://a.example, http://localhost:5173", "http://localhost:51730", None),
        ("https://a.example", "https://a.example.evil.example", None),
        ("https://a.example", "https://a-example", None),
        ("https://a.example", "", None),
        (EXTENSION, EXTENSION, EXTENSION),
        (LONGEST, LONGEST, LONGEST),
    ],
)
async def test_pages_that_may_call_lockstep_can_read_what_nginx_answers(
    tmp_path: Path, origins: str, origin: str, admitted: str | None
) -> None:
    async with fronted(tmp_path, processes=0, origins=origins) as front:
        for head, (status, _) in REFUSED.items():
            answer = await raw(front, head, origin)
            assert answer.status == status
            assert answer.headers.get("access-control-allow-origin") == admitted, head[:50]
            assert answer.headers.get("access-control-allow-credentials") == (admitted and "true")
            assert answer.headers.get("access-control-expose-headers") == (
                admitted and "Retry-After, X-Request-ID"
            )
            assert answer.headers.get("vary") == (None if origins == "*" else "Origin")
        preflight = (
            b"OPTIONS /v1/sessions HTTP/1.1\r\nAccess-Control-Request-Headers: content-type\r\n" + HOST
        )
        granted = await raw(front, preflight, origin)
        assert granted.status == 204
        assert granted.headers.get("access-control-allow-origin") == admitted
        assert granted.headers["access-control-allow-headers"] == "content-type"


async def test_a_page_can_read_that_it_asked_too_often(tmp_path: Path) -> None:
    def one_a_minute(text: str) -> str:
        """Also for callers on this machine, whom nginx does not count."""
        assert (text.count("127.0.0.0/8 1;"), text.count("rate=200r/s"), text.count("burst=1000")) == (
            1,
            1,
            1,
        )
        text = text.replace("127.0.0.0/8 1;", "").replace("rate=200r/s", "rate=1r/m")
        return text.replace("burst=1000", "burst=1")

    origin = "https://a.example"
    async with fronted(tmp_path, origins=origin, edit=one_a_minute) as front:
        answers = [await front.call("GET", "/v1/time", Origin=origin) for _ in range(3)]
        preflight = await front.call("OPTIONS", "/v1/time", Origin=origin)
    refused = answers[-1]
    assert (refused.status, refused.body["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["access-control-allow-origin"] == origin
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, origin)


@pytest.mark.parametrize(
    ("origin", "is_admitted"),
    [
        ("https://x.example.org", True),
        ("https://y.x.example.org", True),
        ("https://example.org", False),
        ("https://x.example.org.evil", False),
        ("https://x/.example.org", False),
        ("https://xexample.org", False),
        ("http://x.example.org", False),
    ],
)
def test_a_wildcard_is_the_same_to_nginx_as_to_lockstep(origin: str, is_admitted: bool) -> None:
    _, line = origin_map_lines(["https://*.example.org"]).splitlines()
    found = re.fullmatch(r'\s*"~(.+)" \$http_origin;', line)
    assert found is not None
    assert bool(re.search(found[1], origin)) is is_admitted


async def test_only_websockets_are_upgraded(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        assert (await front.call("GET", "/v1/time", Upgrade="h2c")).status == 200
    assert "upgrade" not in front.seen[0]


async def test_what_is_agreed_upon_about_compression_passes_both_ways(tmp_path: Path) -> None:
    granted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    lines = "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"
    async with fronted(tmp_path) as front:
        front.reply = lambda _: "\r\n".join([*lines, f"Sec-WebSocket-Extensions: {granted}", "", ""]).encode()
        url = front.url.replace("http", "ws") + "/ws?sessionId=x"
        async with await WsClient.connect(url, headers=DEFLATE) as client:
            assert client.extensions == granted
    assert front.seen[0]["sec-websocket-extensions"] == DEFLATE["Sec-WebSocket-Extensions"]


@pytest.mark.parametrize("path", ["/ws", "/ws/"])
async def test_a_socket_that_falls_silent_is_ended_after_what_a_ping_may_take(
    tmp_path: Path, path: str
) -> None:
    """By the settings that the processes have: nobody has to say the same in two places."""
    loop = asyncio.get_running_loop()
    upgraded = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    silent_for_s = []
    async with fronted(tmp_path, settings=["--ping-interval-s=0.5", "--ping-timeout-s=0.2"]) as front:
        front.reply = lambda _: upgraded
        host, _, port = front.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".encode()
        )
        async with asyncio.timeout(20):
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            began_s = loop.time()
            assert await reader.read() == b""
            silent_for_s.append(loop.time() - began_s)
        writer.transport.abort()
    assert silent_for_s[0] >= 0.5 + 0.2 + SOCKET_TIMEOUT_MARGIN_S - 0.1


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


async def test_an_event_of_a_stream_is_passed_on_while_the_next_is_still_to_come(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        front.reply = lambda _: STREAM + b"data: first\n\n"
        url = stream_url(front.url, str(uuid4()))
        headers = {"Accept-Encoding": "gzip"}
        async with await EventSource.connect(url, headers=headers, last_id="a position") as source:
            event = await source.next()
            assert event is not None
            assert event.data == "first"
            assert "content-encoding" not in source.headers
        assert front.seen[0]["last-event-id"] == "a position"


async def test_a_stream_for_which_a_process_has_no_room_is_asked_of_another(tmp_path: Path) -> None:
    full = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
    async with fronted(tmp_path) as front:
        front.reply = lambda count: full if count == 1 else STREAM + b"data: first\n\n"
        async with await EventSource.connect(stream_url(front.url, str(uuid4()))) as source:
            assert await source.next()
        assert len(front.seen) == 2
        assert front.seen[0]["first line"] == front.seen[1]["first line"]


def test_a_stream_may_be_silent_for_longer_than_a_process_ever_is() -> None:
    text = nginx_conf(Stack("run"), Settings())
    (silent_s,) = re.findall(r"/stream\$ \{[^}]*proxy_read_timeout (\d+)s;", text)
    assert int(silent_s) >= 2 * COMMENT_INTERVAL_S


def test_nginx_lets_go_of_connections_before_the_processes_do() -> None:
    stack = Stack("run")
    for keep_alive_s in (0.5, 75, 600):
        text = nginx_conf(stack, Settings(keep_alive_s=keep_alive_s))
        (kept_ms,) = re.findall(r"keepalive_timeout (\d+)ms;", text)
        assert 0 < int(kept_ms) < 1000 * keep_alive_s


def test_the_number_of_processes_is_said_once(tmp_path: Path) -> None:
    text = nginx_conf(Stack(str(tmp_path), processes=5), Settings())
    found = [text.count(f'server "unix:{tmp_path}/lockstep-{n}.sock"') for n in range(7)]
    assert found == [0, 4, 4, 4, 4, 4, 0]
    assert not re.search(r"@\w+@", text)


# --- which process a session goes to ---------------------------------------------------------------


def asking_for(session_id: str) -> list[tuple[str, str, dict[str, str]]]:
    """Requests for a session: method, path, headers."""
    return [
        ("GET", f"/ws?position=x&sessionId={session_id}", {"Upgrade": "websocket"}),
        ("GET", f"/v1/sessions/{session_id}", {}),
        ("POST", f"/v1/sessions/{session_id}/switch?x=y", {}),
        ("GET", f"/v1/sessions/{session_id}/stream", {}),
    ]


async def test_with_hash_by_session_what_is_of_one_session_goes_to_one_process(tmp_path: Path) -> None:
    used = set()
    async with fronted(tmp_path, hash_by_session=True) as front:
        for number in range(40):
            for method, path, headers in asking_for(str(UUID(int=number))):
                assert (await front.call(method, path, **headers)).status == 200
            assert len(set(front.asked[-4:])) == 1
            used.add(front.asked[-1])
    assert len(used) == 3


async def test_with_hash_by_session_what_is_of_none_goes_to_all(tmp_path: Path) -> None:
    async with fronted(tmp_path, hash_by_session=True) as front:
        for call in (("POST", "/v1/sessions"), ("GET", "/v1/sessions"), ("GET", "/ws")):
            front.asked.clear()
            async with asyncio.timeout(20):
                while len(set(front.asked)) < 3:
                    assert (await front.call(*call)).status == 200


async def test_with_hash_by_session_another_process_takes_over_for_one_that_is_away(tmp_path: Path) -> None:
    async with fronted(tmp_path, processes=2, hash_by_session=True) as front:
        for number in range(40):
            answers = [
                (await front.call(method, path, **headers)).status
                for method, path, headers in asking_for(str(UUID(int=number)))
            ]
            assert answers == [200] * 4
            assert len(set(front.asked[-4:])) == 1
    assert set(front.asked) == {"lockstep-1", "lockstep-2"}


async def test_without_hash_by_session_a_session_goes_to_all_processes(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        async with asyncio.timeout(20):
            while len(set(front.asked)) < 3:
                assert (await front.call("GET", f"/v1/sessions/{UUID(int=1)}")).status == 200


# --- figures -----------------------------------------------------------------------------------------


async def test_prometheus_asks_each_process_through_nginx_and_for_nothing_else(tmp_path: Path) -> None:
    async with fronted(tmp_path, processes=2) as front:
        inner = f"http://127.0.0.1:{front.metrics_port}"
        for name in ("lockstep-1", "lockstep-2"):
            assert (await request(f"{inner}/{name}/metrics", "GET")).status == 200
        assert [seen["first line"] for seen in front.seen] == ["GET /metrics HTTP/1.1"] * 2
        assert front.asked == ["lockstep-1", "lockstep-2"]
        for path in ("/", "/metrics", "/lockstep-1/", "/lockstep-1/v1/time", "/lockstep/metrics"):
            assert (await request(inner + path, "GET")).status == 404
        assert (await request(f"{inner}/lockstep-3/metrics", "GET")).status == 502
        assert (await request(f"{inner}/lockstep-9/metrics", "GET")).status == 502
