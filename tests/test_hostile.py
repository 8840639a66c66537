"""What no honest client does, at the real server, beside honest ones who must not notice."""

import asyncio
import gc
import os
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tornado.http1connection import HTTP1ServerConnection
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets

from handlers import handshake, request_timeouts
from handlers.connection import Connection
from handlers.handshake import EARLY_BYTES, Opening
from handlers.listening import RESERVED_DESCRIPTORS
from handlers.newcomers import Newcomer
from handlers.read_scheduler import READS_PER_SLICE
from lockstep.config import Settings
from server import Server
from tests.support import hostiles, load
from tests.support.api import SOME_ID, serving
from tests.support.echo_server import Echo
from tests.support.fake_time import FakeLoopTime, FakeTime
from tests.support.load import eventually
from tests.support.processes import ROOT, ServerProcess, parse_answer, running
from tests.support.redis_server import RedisServer
from tests.support.sockets import command, create, watching
from tests.support.ws_client import BINARY, CLOSE, PING, PONG, TEXT, Closed, WsClient, encode

CONTINUATION = 0x0
SOCKET = f"GET /ws?sessionId={SOME_ID} HTTP/1.1\r\nHost: localhost\r\n"


@asynccontextmanager
async def an_honest_client(server: ServerProcess) -> AsyncIterator[None]:
    """Who is pushed a change, and answered, before and after what others do."""
    session_id = (await create(server, sync_mode="count_up", participants=[]))["session_id"]
    await command(server, session_id, "start")
    async with watching(server, session_id) as [client]:
        for _ in range(2):
            version = (await command(server, session_id, "switch"))["version"]
            assert (await client.recv_type("STATE_UPDATE"))["state"]["version"] == version
            await client.fence()
            if version == 3:
                yield
    assert [line for line in server.log() if line["level"] == "error"] == []


HOSTILE = {
    "reserved bit": (encode(TEXT, b"{}", rsv=0x40), 1002),
    "reserved bit of a pong": (encode(PONG, b"", rsv=0x10), 1002),
    "opcode 3": (encode(3, b""), 1002),
    "opcode 15": (encode(15, b"x"), 1002),
    "unmasked": (encode(TEXT, b'{"type":"PING"}', masked=False), 1002),
    "oversized ping": (encode(PING, bytes(126)), 1002),
    "oversized close": (encode(CLOSE, bytes(70_000)), 1002),
    "ping in fragments": (encode(PING, b"", fin=False), 1002),
    "fragment of nothing": (encode(CONTINUATION, b"x"), 1002),
    "message in a message": (encode(TEXT, b"{", fin=False) + encode(TEXT, b"}"), 1002),
    "length too long a form": (bytes([0x81, 0xFE, 0, 5]) + bytes(9), 1002),
    "length of all bits": (bytes([0x82, 0xFF]) + b"\xff" * 8, 1002),
    "petabytes": (bytes([0x82, 0xFF]) + struct.pack("!Q", 2**50) + bytes(100), 1009),
    "petabytes, later": (
        encode(BINARY, b"x", fin=False) + bytes([0x80, 0xFF]) + struct.pack("!Q", 2**50),
        1009,
    ),
    "one-byte close": (encode(CLOSE, b"\x03"), 1002),
    "close 1005": (encode(CLOSE, struct.pack("!H", 1005)), 1002),
    "broken text, never finished": (encode(TEXT, b"\xff" + bytes(9000))[:20], 1007),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1002),
    "tls": (bytes.fromhex("16030100a5010000a10303"), 1002),
}


@pytest.mark.parametrize(("data", "code"), HOSTILE.values(), ids=HOSTILE)
async def test_a_breach_ends_the_connection_and_harms_nobody(
    server_process: ServerProcess, data: bytes, code: int
) -> None:
    async with an_honest_client(server_process), watching(server_process, SOME_ID) as [client]:
        await client.send_raw(data)
        opcode, payload = await asyncio.wait_for(client.recv_frame(), 10)
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", code))
        # Half-closed at once, whatever we do.
        async with asyncio.timeout(4):
            assert await client.reader.read() == b""


async def test_what_is_announced_costs_nothing(server_process: ServerProcess) -> None:
    """A message of the limit announced by each of a hundred clients, and never sent."""
    async with an_honest_client(server_process), watching(server_process, *[SOME_ID] * 100) as clients:
        before = server_process.rss_bytes()
        for client in clients:
            await client.send_raw(bytes([0x82, 0xFE]) + struct.pack("!H", 16_384) + bytes(4))
        async with watching(server_process, SOME_ID) as [another]:
            await another.fence()
        assert server_process.rss_bytes() - before < 100 * 16_384


async def test_a_message_one_byte_per_packet_is_read_like_any_other(server_process: ServerProcess) -> None:
    message = b'{"type":"PING","id":"' + b"x" * 4000 + b'"}'
    async with an_honest_client(server_process), watching(server_process, SOME_ID) as [client]:
        for byte in encode(TEXT, message):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.recv())["id"] == "x" * 4000


async def test_a_flood_of_pings_is_answered_and_delays_nobody(server_process: ServerProcess) -> None:
    flood = encode(PING, b"flood") * 500
    async with watching(server_process, SOME_ID, limit=2**22) as [client]:
        pongs = 0

        async def pong() -> None:
            nonlocal pongs
            while True:
                opcode, payload = await client.recv_frame()
                if (opcode, payload) == (PONG, b"flood"):
                    pongs += 1

        async def ping() -> None:
            while True:
                await client.send_raw(flood)

        flooding = [asyncio.create_task(work()) for work in (ping, pong)]
        async with an_honest_client(server_process):
            while not pongs:
                await asyncio.sleep(0.01)
        for task in flooding:
            assert not task.done(), "nothing is wrong with pings"
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)


async def test_who_pings_and_takes_no_answers_has_the_server_keep_one() -> None:
    """A pong may take the place of an unsent one (RFC 6455 5.5.3); half a million would be 50 MB."""
    echo = Echo(1000)
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pinged = 20_000
    echo.begin(Connection(ours, echo, echo, None), b"")
    reader, writer = await asyncio.open_connection(sock=theirs, limit=64)
    writer.transport.pause_reading()
    # The last one is answered only when all before it have been read.
    for _ in range(pinged // 100):
        writer.write(encode(PING, bytes(20)) * 100)
        await writer.drain()
    writer.write(encode(PING, b"last"))
    await writer.drain()
    writer.transport.resume_reading()
    pongs = 0
    async with asyncio.timeout(10):
        client = WsClient(reader, writer, answers_pings=False)
        while await client.recv_frame() != (PONG, b"last"):
            pongs += 1
    assert pongs < pinged / 10
    client.abort()
    await asyncio.wait_for(echo.is_empty.wait(), 10)


class Crowded:
    """A line in which nobody is read at once."""

    def __init__(self) -> None:
        self.line: list[Connection] = []

    def admit_or_queue(self, reader: Connection) -> bool:
        self.line.append(reader)
        return False


async def test_who_waits_to_be_read_waits_once_and_is_not_looked_at() -> None:
    """A thousand sockets that can be read would otherwise be found again in every turn of the loop."""
    echo = Echo(1000)
    echo.read_scheduler = crowded = Crowded()  # type: ignore[assignment]
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    echo.begin(Connection(ours, echo, echo, None), b"")
    client = WsClient(*await asyncio.open_connection(sock=theirs), answers_pings=False)
    for text in (b"first", b"second"):
        await client.send_raw(encode(TEXT, text))
        while not crowded.line:
            await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_reader(ours), "it is looked at"
        [waiting] = crowded.line
        crowded.line.clear()
        waiting.read_on()
        assert await client.recv_frame() == (TEXT, text)
    client.abort()
    while not crowded.line:
        await asyncio.sleep(0)
    crowded.line[0].read_on()
    assert not echo.open


async def test_a_hundred_bad_messages_at_once_are_ten_errors_and_a_close(
    server_process: ServerProcess,
) -> None:
    async with an_honest_client(server_process), watching(server_process, SOME_ID) as [client]:
        await client.send_raw(encode(TEXT, b"nonsense") * 100)
        answers = [await client.recv()]
        while not isinstance(answers[-1], Closed):
            answers.append(await client.recv())
        assert [answer["type"] for answer in answers[:-1]] == ["ERROR"] * 10
        assert answers[-1].code == 1008


# --- requests that never end ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "beginning",
    [
        "G",
        SOCKET,
        SOCKET + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Ver",
        "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/ti",
        "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx",
        # Refused at once; the rest is still read, but not for ever.
        "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\nx",
    ],
    ids=["a letter", "handshake", "headers", "second request", "body", "chunks", "page", "huge"],
)
async def test_who_does_not_finish_his_request_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    monkeypatch.setattr(request_timeouts, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(request_timeouts, "BODY_TIMEOUT_S", 0.3)
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        writer.write(beginning.encode())

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"x")  # that something comes now and then does not help

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                await reader.read()
        dripping.cancel()
        writer.transport.abort()
        assert not api.server.transport.in_flight


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """What the timeouts of requests go by."""
    fake = FakeTime()
    monkeypatch.setattr(request_timeouts, "asyncio", FakeLoopTime(fake))
    return fake


@pytest.mark.parametrize(
    "said", ["", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["nothing", "enough"]
)
async def test_a_connection_without_requests_is_closed_some_time(fake: FakeTime, said: str) -> None:
    async with serving(keep_alive_s=30.0) as api:
        reader, writer = await asyncio.open_connection(*api.address)
        writer.write(said.encode())
        async with asyncio.timeout(10):
            if said:
                assert b"200 OK" in await reader.readuntil(b"}")
            closed = asyncio.create_task(reader.read())
            began_s = fake.passed_s
            while not closed.done():
                fake.passed_s += 1
                await asyncio.sleep(0.01)
            assert await closed == b""
        assert fake.passed_s - began_s >= 30
        writer.transport.abort()


async def test_the_impatient_server_waits_for_who_is_idle_and_who_is_answered_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a connection kept between requests nor a WebSocket has begun something unfinished."""
    monkeypatch.setattr(request_timeouts, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(request_timeouts, "BODY_TIMEOUT_S", 0.05)
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        url = api.url.replace("http", "ws") + f"/ws?sessionId={SOME_ID}"
        async with await WsClient.connect(url) as client:
            assert (await client.recv())["type"] == "CONNECTED"
            for _ in range(3):
                await asyncio.sleep(0.2)  # several times what it is patient for
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"}"), 10)
                await client.fence()
        writer.transport.abort()


async def test_twenty_thousand_reconnects_are_all_answered_and_hardly_read_for() -> None:
    redis = RedisServer()
    server = await asyncio.to_thread(ServerProcess, f"--broker={redis.url}")
    try:
        async with an_honest_client(server):
            session_id = (await create(server))["session_id"]
            async with watching(server, *[session_id] * 20) as clients:
                before = reads(redis)

                async def ask(client: WsClient) -> None:
                    question = encode(TEXT, b'{"type":"RECONNECT"}')
                    for _ in range(10):
                        client.writer.write(question * 100)
                        for _ in range(100):
                            assert (await client.recv())["type"] == "STATE_SYNC"

                await asyncio.gather(*(ask(client) for client in clients))
                assert reads(redis) - before < 5_000
    finally:
        await asyncio.to_thread(server.stop)
        redis.close()


def reads(redis: RedisServer) -> int:
    stats = redis.client.info("commandstats")
    return int(stats.get("cmdstat_mget", {"calls": 0})["calls"])


# --- what is sent without end -------------------------------------------------------------------------


HANDSHAKE = SOCKET + hostiles.UPGRADE


async def test_of_what_follows_a_handshake_at_once_only_a_little_is_taken_before_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of it is read in the end, but as what everybody else sends."""
    early_bytes: list[int] = []
    start = Connection.start

    def noted(connection: Connection, early: bytes) -> None:
        early_bytes.append(len(early))
        start(connection, early)

    monkeypatch.setattr(Connection, "start", noted)
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        writer.write(HANDSHAKE.encode() + b"\r\n" + encode(PING, bytes(100)) * 5000 + encode(PING, b"last"))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        client = WsClient(reader, writer, answers_pings=False)
        async with asyncio.timeout(20):
            while await client.recv_frame() != (PONG, b"last"):
                pass
        assert 0 < early_bytes[0] <= EARLY_BYTES
        client.abort()


async def test_who_does_not_wait_for_the_handshake_and_sends_much_is_closed() -> None:
    async with serving() as api:
        reader, writer = await asyncio.open_connection(*api.address)
        head = HANDSHAKE + "X-Long: " + "x" * 8500 + "\r\n\r\n"
        writer.write(head.encode() + encode(PING, bytes(100)) * 60)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        client = WsClient(reader, writer, answers_pings=False)
        opcode, payload = await asyncio.wait_for(client.recv_frame(), 10)
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1008))
        client.abort()


@pytest.mark.parametrize("beginning", ["GET /health HTTP/1.1\r\n", "GET / HTTP/1.1\r\n", HANDSHAKE])
@pytest.mark.parametrize("more", [16_384, 40_000, 200_000])
async def test_a_head_over_the_limit_is_refused_in_words(
    server_process: ServerProcess, beginning: str, more: int
) -> None:
    async with an_honest_client(server_process):
        reader, writer = await asyncio.open_connection("127.0.0.1", server_process.port)
        writer.write(f"{beginning}Host: localhost\r\nX-Long: {'x' * more}".encode())
        async with asyncio.timeout(10):
            if more < 100_000:
                answer = parse_answer(await reader.read())
                assert answer.status == 431
                assert answer.body["error"]["code"] == "HEAD_TOO_LARGE"
            else:
                with suppress(ConnectionError):  # who does not stop may be cut off before it can read
                    await reader.read()
        writer.transport.abort()


async def test_a_head_of_the_limit_is_read(server_process: ServerProcess) -> None:
    answer = await server_process.call("GET", "/health", headers={"X-Long": "x" * 16_000})
    assert answer.status == 200


@pytest.mark.parametrize("declared", ["Content-Length: 4097", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    "asked",
    ["GET /", "POST /", "GET /page.js", "GET /ws", "GET /v1/time", "DELETE /v1/sessions/x", "POST /x"],
)
async def test_a_body_where_none_belongs_is_not_read(
    server_process: ServerProcess, asked: str, declared: str
) -> None:
    async with an_honest_client(server_process):
        reader, writer = await asyncio.open_connection("127.0.0.1", server_process.port)
        writer.write(f"{asked} HTTP/1.1\r\nHost: localhost\r\n{declared}\r\n\r\n".encode())
        # Nothing of it is waited for.
        answer = parse_answer(await asyncio.wait_for(reader.read(), 10))
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        writer.close()


async def test_a_little_body_where_none_belongs_does_no_harm(server_process: ServerProcess) -> None:
    for path in ("/", "/v1/time"):
        assert (await server_process.call("GET", path, b"x" * 4096)).status == 200


async def test_a_body_in_crumbs_is_read_and_one_without_end_is_not(server_process: ServerProcess) -> None:
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with an_honest_client(server_process):
        for crumbs, is_read in ((2000, True), (5000, False)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server_process.port)
            writer.write(head + b"1\r\n \r\n" * crumbs + b"2\r\n{}\r\n0\r\n\r\n")
            async with asyncio.timeout(10):
                if is_read:
                    assert b" 400 " in await reader.readuntil(b"\r\n")
                else:
                    with suppress(ConnectionError):
                        assert await reader.read() == b""
            writer.close()


@pytest.mark.long
async def test_unfinished_bodies_of_strangers_are_not_kept(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 40)
    with running(ServerProcess(f"--jwt-secret-file={secret}", "--log-level=warning")) as server:
        head = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        before = server.rss_bytes()
        crowd = []
        for declared in (60_000, 1_048_576):
            for _ in range(100):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(head % declared + b" " * (declared - 1000))
                crowd.append(writer)
        assert (await server.call("GET", "/health")).status == 200
        assert server.rss_bytes() - before < 20 * 2**20
        for writer in crowd:
            writer.transport.abort()


# --- who does not read --------------------------------------------------------------------------------


def not_reading(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address)
    sock.setblocking(False)
    return sock


@pytest.mark.parametrize("asked", ["GET /openapi.json", "GET /page.js", HANDSHAKE[:-2]])
async def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """A handshake's is small: it waits behind other answers."""
    for module in (request_timeouts, handshake):
        monkeypatch.setattr(module, "STALLED_TIMEOUT_S", 0.5)
    async with serving() as api:
        loop = asyncio.get_running_loop()
        big = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        head = asked if asked.startswith("GET /ws") else f"{asked} HTTP/1.1\r\nHost: localhost\r\n"
        with not_reading(api.address) as sock:
            asked_all = f"{head}\r\n" * 500 if "Upgrade" not in head else f"{big * 300}{head}\r\n"

            async def ask() -> None:
                with suppress(ConnectionError):
                    await loop.sock_sendall(sock, asked_all.encode())

            asking = asyncio.create_task(ask())

            async def given_up() -> str:
                return "it is still there" if api.server.http._connections else ""

            await eventually(given_up, 20, "who does not read is still waited for")
            asking.cancel()


async def test_who_takes_an_answer_slowly_has_all_of_it(fake: FakeTime) -> None:
    async with serving() as api:
        loop = asyncio.get_running_loop()
        whole = (await api("GET", "/openapi.json")).raw
        count = 60
        with not_reading(api.address) as sock:
            for place in range(count):
                last = "Connection: close\r\n" if place == count - 1 else ""
                head = f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n{last}\r\n"
                await loop.sock_sendall(sock, head.encode())
            received = bytearray()
            began_s = fake.passed_s
            while chunk := await loop.sock_recv(sock, 65_536):
                received += chunk
                if fake.passed_s - began_s < 20 * request_timeouts.STALLED_TIMEOUT_S:
                    fake.passed_s += 0.8 * request_timeouts.STALLED_TIMEOUT_S
                    await asyncio.sleep(0.02)  # some of its checks
            assert fake.passed_s - began_s > 10 * request_timeouts.STALLED_TIMEOUT_S
        assert received.count(whole) == count


# --- many at once -------------------------------------------------------------------------------------


# Hostile clients are in the same session as the honest ones.
ANY_NUMBER = ("--max-connections-per-session=0",)


async def hostile_crowd(server: ServerProcess, name: str, size: int, honest: int = 200) -> None:
    """Attack while clients follow a session that changes."""
    session_id = (await create(server, sync_mode="count_up", participants=[]))["session_id"]
    await command(server, session_id, "start")
    async with load.watching([server], [session_id], honest) as watchers:
        # Who has just been told the state misses nothing that is committed from here on.
        async with load.switching([server], [session_id], workers=1) as switcher:
            kind = hostiles.KINDS[name]
            count = hostiles.crowd(name, size)
            # From a process of its own: the load shall be the server's, not the honest clients'.
            attack = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.hostiles"),
                *(str(server.port), name, str(count), "0.5", session_id),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
            )
            told, _ = await attack.communicate()
            assert int(told) == (count if kind.is_sent_away else 0)

            async def goes_on() -> str:
                return "" if switcher.statuses[200] > 3 else "changes are not served"

            # Some are sent away so soon that hardly a change falls into the attack.
            await eventually(goes_on, 10, "after the attack")
        changes = switcher.statuses[200]
        assert switcher.statuses == {200: changes}
        versions = list(range(3, 3 + changes))

        async def followed() -> str:
            missing = sum(len(versions) - len(watcher.updates) for watcher in watchers)
            return f"{missing} updates are missing" if missing else ""

        await eventually(followed, 10, "not all were served")
        for watcher in watchers:
            assert [version for _, version in watcher.updates] == versions
            assert watcher.reconnects == 0


def lines_per_second(server: ServerProcess) -> Counter[tuple[object, object]]:
    """Of each kind of line but those that each request and each connection has, by second."""
    return Counter(
        (line["logger"], str(line["at"])[:19])
        for line in server.log()
        if line["message"] not in ("request", "socket closed")
    )


@pytest.fixture(scope="module")
def attacked() -> Iterator[ServerProcess]:
    with running(ServerProcess(*ANY_NUMBER)) as server:
        yield server


@pytest.mark.parametrize("name", hostiles.KINDS)
async def test_hostile_crowds_of_every_kind_are_no_trouble_to_others(
    attacked: ServerProcess, name: str
) -> None:
    await hostile_crowd(attacked, name, 30, honest=20)
    assert [line for line in attacked.log() if line["level"] == "error"] == []
    assert all(count == 1 for count in lines_per_second(attacked).values())


# What is taken once, pools and caches, is no leak: memory has to stay where it is at some time.
MAX_ROUNDS = 16
LEVEL_ROUNDS = 2
LEVEL_BYTES = 2**18
HOSTILE_BYTES = 128 * 2**20  # of a thousand at once


@pytest.mark.long
@pytest.mark.parametrize("name", hostiles.KINDS)
async def test_thousands_of_hostile_clients_leave_nothing_behind(name: str) -> None:
    with running(ServerProcess(*ANY_NUMBER)) as server:
        descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))

        async def closed() -> str:
            left = len(os.listdir(f"/proc/{server.process.pid}/fd")) - descriptors
            return f"{left} descriptors" if left > 0 else ""

        rss_bytes = [server.rss_bytes()]
        level_rounds = 0
        while level_rounds < LEVEL_ROUNDS:
            assert len(rss_bytes) <= MAX_ROUNDS, f"it grows and grows: {rss_bytes}"
            await hostile_crowd(server, name, 1000)
            await eventually(closed, 10, "something is open")
            level_bytes = rss_bytes[-1] + LEVEL_BYTES
            for _ in range(30):  # what was begun is finished
                if server.rss_bytes() < level_bytes:
                    break
                await asyncio.sleep(0.1)
            rss_bytes.append(server.rss_bytes())
            level_rounds = level_rounds + 1 if rss_bytes[-1] < level_bytes else 0
        assert rss_bytes[-1] < rss_bytes[0] + HOSTILE_BYTES, rss_bytes


async def test_without_descriptors_nobody_is_let_in_and_with_them_everybody_again() -> None:
    with running(ServerProcess()) as server:
        async with an_honest_client(server):
            pid = server.process.pid
            used = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + RESERVED_DESCRIPTORS + 20, 4096))
            crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]

            async def complains() -> str:
                said = [line for line in server.log() if "no more clients are let in" in str(line["message"])]
                return "" if said else "not a word"

            await eventually(complains, 5, "it is not said")
            for _, writer in crowd:
                writer.close()
        assert max(lines_per_second(server).values()) == 1


async def test_of_a_crowd_of_requests_a_turn_of_the_loop_begins_only_some() -> None:
    server = Server(Settings(port=0, log_level="error"))
    sockets = bind_sockets(0, "127.0.0.1")
    await server.start(sockets)
    loop, find_delegate = asyncio.get_running_loop(), server.transport.find_delegate
    turn, begun_in = 0, Counter[int]()

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    def counted(*arguments: Any) -> Any:
        begun_in[turn] += 1
        return find_delegate(*arguments)

    server.transport.find_delegate = counted  # type: ignore[method-assign]
    try:
        crowd = [await asyncio.open_connection(*sockets[0].getsockname()[:2]) for _ in range(200)]
        for _, writer in crowd:
            writer.write(b"GET /v1/time HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        next_turn()
        answers = await asyncio.gather(*(reader.read() for reader, _ in crowd))
        for _, writer in crowd:
            writer.close()
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        # Those that come while a turn is served, and those that have waited.
        assert max(begun_in.values()) <= 2 * READS_PER_SLICE
    finally:
        await server.stop()


async def test_of_requests_in_line_those_of_a_client_that_is_gone_are_not_begun() -> None:
    server = Server(Settings(port=0, log_level="error"))
    sockets = bind_sockets(0, "127.0.0.1")
    await server.start(sockets)
    transport, begun, ended = server.transport, 0, 0
    find_delegate, on_close = transport.find_delegate, transport.on_close

    def find_counted(*arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        return find_delegate(*arguments)

    def close_counted(server_conn: object) -> None:
        nonlocal ended
        ended += 1
        on_close(server_conn)

    async def all_have_ended() -> str:
        return "" if ended == 50 else f"{ended} of 50"

    transport.find_delegate, transport.on_close = find_counted, close_counted  # type: ignore[method-assign]
    try:
        crowd = [await asyncio.open_connection(*sockets[0].getsockname()[:2]) for _ in range(50)]
        for _, writer in crowd:
            writer.write(b"GET /v1/time HTTP/1.1\r\nHost: localhost\r\n\r\n" * 80)
        for reader, writer in crowd:
            await reader.readline()
            writer.transport.abort()
        await eventually(all_have_ended, 30, "connections are kept")
        assert begun < 50 * 80 / 4
    finally:
        await server.stop()


# --- what remains -------------------------------------------------------------------------------------


async def of_http_remains(*kinds: type, collected: bool = True) -> str:
    if collected:
        gc.collect()
    left = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))
    return str(dict(left)) if left else ""


async def test_what_was_read_of_a_connection_that_is_reset_does_not_wait_for_the_collector() -> None:
    server = Server(Settings(port=0, log_level="error"))
    sockets = bind_sockets(0, "127.0.0.1")
    await server.start(sockets)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            _, writer = await asyncio.open_connection(*sockets[0].getsockname()[:2])
            writer.write(b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n{")
            while not server.transport.in_flight:
                await asyncio.sleep(0)
            ours = writer.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            while server.transport.in_flight:
                await asyncio.sleep(0)
        remains = partial(of_http_remains, HTTP1ServerConnection, IOStream, collected=False)
        await eventually(remains, 5, "something is kept")
    finally:
        gc.enable()
        await server.stop()


async def test_of_a_connection_that_is_gone_or_has_become_a_websocket_nothing_of_http_remains() -> None:
    server = Server(Settings(port=0, log_level="error"))
    sockets = bind_sockets(0, "127.0.0.1")
    await server.start(sockets)
    port = sockets[0].getsockname()[1]
    head = f"GET /v1/time HTTP/1.1\r\nHost: localhost:{port}\r\n".encode()
    try:
        for sent in (b"", head, head + b"\r\n", head + b"Connection: close\r\n\r\n"):
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                writer.write_eof()
                await reader.read()
                writer.close()
        clients = [await WsClient.connect(f"ws://127.0.0.1:{port}/ws?sessionId={SOME_ID}") for _ in range(10)]

        kinds = (HTTP1ServerConnection, Newcomer, Opening, IOStream)
        await eventually(partial(of_http_remains, *kinds), 5, "something is kept")
        for client in clients:
            await client.recv_type("CONNECTED")
            await client.fence()
            client.abort()
    finally:
        await server.stop()
