"""A new connection's first request: a handshake is answered alike whether it comes in one piece or not."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock

import pytest

from handlers.handshake import Opening
from handlers.newcomers import Newcomers, spelled
from handlers.read_scheduler import READS_PER_SLICE, ReadScheduler
from tests.support.api import SOME_ID, Api, serving
from tests.support.ws_client import PING, PONG, Closed, WsClient, encode

LISTED = "https://a.example"
BEARER = "bearer.e30.e30.e30"
DEFLATE = "permessage-deflate; client_max_window_bits"
UUID = "5e000000-0000-4000-8000-00000000000f"
ABSENT = None

# What a request is made of: first what is usual, then what is odd in one way or another.
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "get", "PATCH"]
VERSIONS = ["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 "]
TARGETS = [
    f"/ws?sessionId={UUID}",
    "/ws",
    "/ws/",
    f"/ws/?sessionId={UUID.upper()}",
    f"/ws?sessionId={UUID}&sessionId={SOME_ID}",
    f"/ws?sessionId=%35{UUID[1:]}",
    f"/ws?sessionId={UUID}&token=x&position=1-2",
    f"/ws?x=+&sessionId={UUID}&&y",
    "/ws?sessionId=",
    "/ws?sessionId=%FF",
    "/ws?" + "&" * 150,
    f"http://127.0.0.1/ws?sessionId={UUID}",
    "/ws?sessionId=\xe9",
    "/wsx",
]
HEADERS: dict[str, list[str | None]] = {
    "Host": ["127.0.0.1", "localhost", "evil.example", "a b", "a,b", "a/b", "", ABSENT],
    "Upgrade": ["websocket", "WebSocket", "h2c", "websocket, h2c", ABSENT],
    "Connection": ["Upgrade", "keep-alive, upgrade", "close", "close, Upgrade", ABSENT],
    "Sec-WebSocket-Key": ["dGhlIHNhbXBsZSBub25jZQ==", "x", "", ABSENT],
    "Sec-WebSocket-Version": ["13", "8", "13, 8", "", ABSENT],
    "Origin": [ABSENT, "http://127.0.0.1", LISTED, "https://elsewhere.example", "null", ""],
    "Sec-Fetch-Site": [ABSENT, "same-origin", "none", "same-site", "cross-site"],
    "Sec-WebSocket-Protocol": [
        ABSENT,
        "lockstep.v1.json",
        f"{BEARER}, lockstep.v2.json",
        "lockstep.v9.json",
        "lockstep.v9.json, lockstep.v2.msgpack",
        "chat",
        "",
    ],
    "Sec-WebSocket-Extensions": [ABSENT, DEFLATE, f"{DEFLATE}; x", '="'],
    "Authorization": [ABSENT, "Bearer x"],
    "X-Request-ID": [ABSENT, "mine", "not mine"],
    "X-Forwarded-For": [ABSENT, "10.0.0.1"],
    "Content-Length": [ABSENT, "0", "3", "x", "5000", "3, 3"],
    "Transfer-Encoding": [ABSENT, "chunked", "gzip"],
}
ODD_LINES = ["X : y", "X: \x01", "X: \xe9", "X:\ty\t", "no colon", " folded", ": x", "X: a\r\nX: b", "X:"]


class Requests:
    """Some of all the requests that could be made of these parts, the same for each seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self) -> bytes:
        lines = [f"{self._one_of(METHODS, 20)} {self._one_of(TARGETS, 2)} {self._one_of(VERSIONS, 20)}"]
        for name, values in HEADERS.items():
            value = self._one_of(values, 12)
            if value is not ABSENT:
                lines.append(f"{self._spelled(name)}: {value}")
        if self._random.random() < 0.1:
            lines.insert(self._random.randint(1, len(lines)), self._random.choice(ODD_LINES))
        if self._random.random() < 0.05:
            lines.append(self._random.choice(lines[1:]))
        end = self._one_of(["\r\n", "\n"], 40)
        head = end.join(lines)
        body = (
            "0\r\n\r\n"
            if ": chunked" in head
            else "abc"
            if ": 3" in head
            else "x" * 5000 * (": 5000" in head)
        )
        return (head + end * 2 + body).encode("latin1")

    def _one_of(self, values: list[Any], usual_in: int) -> Any:
        """The first, but for one time in so many."""
        return values[0] if self._random.randrange(usual_in) else self._random.choice(values)

    def _spelled(self, name: str) -> str:
        return self._random.choice([name, name, name, name.lower(), name.upper()])


async def in_one_piece(api: Api, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*api.address)
    writer.write(request)
    return reader, writer


async def in_two_pieces(api: Api, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The second when Tornado has the connection."""
    served = len(api.server.http._connections)
    reader, writer = await asyncio.open_connection(*api.address)
    writer.write(request[:1])
    while len(api.server.http._connections) == served:
        await asyncio.sleep(0)
    writer.write(request[1:])
    return reader, writer


Send = Callable[[Api, bytes], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def answer_to(api: Api, request: bytes, send: Send) -> Any:
    """What is answered, but for what is never the same: the head, and the body or the first message."""
    reader, writer = await send(api, request)
    try:
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
            first, *lines = head.split("\r\n")[:-2]
            headers = dict(sorted(line.lower().split(": ", 1) for line in lines))
            headers.pop("date", "")
            if headers.get("x-request-id") != "mine":
                headers.pop("x-request-id", "")
            if " 101 " in first:
                client = WsClient(reader, writer, answers_pings=False)
                client.response, client.is_msgpack = head, ".msgpack" in head
                message = await client.recv()
                return first, headers, message if isinstance(message, Closed) else message["type"]
            has_body = b"HEAD" not in request[:4]
            length = int(headers.get("content-length", "0")) if has_body else 0
            return first, headers, await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return "nothing"
    finally:
        writer.transport.abort()


async def compare(seed: int, count: int) -> Counter[str]:
    """How often which status was answered, by both doors alike."""
    requests, statuses = Requests(seed), Counter[str]()
    async with serving(origins=LISTED, log_level="error") as api:
        for _ in range(count):
            request = requests.one()
            at_once = await answer_to(api, request, in_one_piece)
            assert at_once == await answer_to(api, request, in_two_pieces), request
            statuses[at_once[0][9:12] if at_once != "nothing" else at_once] += 1
    return statuses


async def test_a_handshake_is_answered_alike_in_one_piece_and_in_two() -> None:
    statuses = await compare(seed=1, count=200)
    assert statuses["101"] > 20, "hardly any is granted"
    assert {"101", "400", "403", "426"} <= statuses.keys()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
async def test_thousands_of_handshakes_are_answered_alike_in_one_piece_and_in_two(seed: int) -> None:
    assert (await compare(seed, count=1000))["101"] > 100


HANDSHAKE = (
    f"GET /ws?sessionId={UUID} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> WsClient:
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 101 ")
    client = WsClient(reader, writer, answers_pings=False)
    assert (await client.recv())["type"] == "CONNECTED"
    return client


async def test_a_handshake_in_one_piece_is_none_of_tornados(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as api:

        def served(*_: Any) -> None:
            raise AssertionError("Tornado has it")

        monkeypatch.setattr(api.server.http, "handle_stream", served)
        for _ in range(3):
            async with await connected(*await in_one_piece(api, HANDSHAKE)) as client:
                await client.fence()


async def test_a_handshake_may_come_long_after_its_connection_and_behind_a_request() -> None:
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        async with await WsClient.connect(f"ws://{api.url[7:]}/ws?sessionId={UUID}") as other:
            # By then the server has found nothing to read of the first one.
            assert (await other.recv())["type"] == "CONNECTED"
        writer.write(HANDSHAKE)
        async with await connected(reader, writer) as late:
            await late.fence()
        health = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        reader, writer = await in_one_piece(api, health + HANDSHAKE)
        assert (await asyncio.wait_for(reader.readuntil(b"}"), 10)).startswith(b"HTTP/1.1 200 ")
        async with await connected(reader, writer) as second:
            await second.fence()


async def test_who_is_gone_before_the_answer_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = []

    async def admit(*_: Any) -> None:
        admitted.append(True)

    monkeypatch.setattr(Opening, "_admit", admit)
    ours, theirs = socket.socketpair()
    theirs.close()
    async with serving() as api:
        assert api.server.transport.newcomers.open(ours, ("127.0.0.1", 1), HANDSHAKE)
        async with asyncio.timeout(10):
            while ours.fileno() >= 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert b'lockstep_connections_closed_total{code="none"} 1.0' in api.server.metrics.text()
    assert not admitted, "it would be kept until its token runs out"


@pytest.mark.parametrize("send", [in_one_piece, in_two_pieces])
async def test_what_a_client_says_at_once_is_heard_behind_its_greeting(send: Send) -> None:
    said = HANDSHAKE + encode(PING, b"early")
    async with serving() as api, await connected(*await send(api, said)) as client:
        assert await client.recv_frame() == (PONG, b"early")


async def test_of_a_crowd_of_handshakes_a_turn_of_the_loop_answers_only_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, opened_in, turn = asyncio.get_running_loop(), Counter[int](), 0
    open_ = Opening.open

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    async def counted(opening: Opening, *arguments: Any) -> None:
        opened_in[turn] += 1
        await open_(opening, *arguments)

    monkeypatch.setattr(Opening, "open", counted)
    async with serving() as api:
        crowd = [await asyncio.open_connection(*api.address) for _ in range(200)]
        for _, writer in crowd:
            writer.write(HANDSHAKE)
        next_turn()
        for client in await asyncio.gather(*(connected(*each) for each in crowd)):
            client.abort()
        # Those that come while a turn is served, and those that have waited.
        assert max(opened_in.values()) <= 2 * READS_PER_SLICE


def test_what_takes_long_to_tell_from_a_handshake_takes_no_time() -> None:
    """By steps of a regular expression that goes back, these would take seconds."""
    for odd in (b" ", b"\t", b":", b"a", b"a:", b"&", b"=", b"a: b\r\n"):
        head = HANDSHAKE[:-2] + b"X: " + odd * (3500 // len(odd)) + b"\x01\r\n\r\n"
        assert (
            Newcomers(Mock(), Mock(), ReadScheduler(), Mock()).open(Mock(), ("127.0.0.1", 1), head) is False
        )


def test_a_header_is_found_however_its_name_is_spelled() -> None:
    for name in ("Host", "Sec-WebSocket-Key", "Sec-Fetch-Site", "X-Forwarded-For", "X-Request-ID", "Origin"):
        assert {spelled(name), spelled(name.lower()), spelled(name.upper())} == {name}
