"""How a server process ends: everybody is told, nothing in flight is lost, and it does not take long."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime

import pytest

from server import BACK_WITHIN_S, CLOSES_PER_S, LINGER_S, come_back_after_ms
from tests.support.processes import Answer, ServerProcess, parse_answer, wait_until
from tests.support.ws_client import CLOSE, TEXT, Closed, WsClient, encode

TOLD = Closed(1001, "Server shutting down")
LONG_DRAIN_S, SHORT_DRAIN_S = 60, 1
# It is said where who is left was cut off by the drain time. A client that does not answer is aborted after
# 5 s anyhow: then nothing is said.
CUT_OFF = f"stopping took longer than drain_s={SHORT_DRAIN_S}: who is left is cut off"


in_a_hurry = pytest.mark.parametrize("server", [SHORT_DRAIN_S], indirect=True, ids=[""])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server of the test's own, with the drain time of its parameter."""
    server = ServerProcess(f"--drain-s={getattr(request, 'param', LONG_DRAIN_S)}")
    yield server
    if server.process.poll() is None:
        server.kill()
    else:
        server.stop()
    assert not [line for line in server.log() if line["level"] == "error" or "traceback" in line]


def watch_url(server: ServerProcess) -> str:
    return f"{server.ws_url}/ws?sessionId={uuid.uuid4()}"


async def exit_code(server: ServerProcess) -> int:
    """How it ends: long before the drain time is over, where that is a long one."""
    return await asyncio.to_thread(server.wait, LONG_DRAIN_S / 2)


async def has_cut_off(server: ServerProcess) -> None:
    def said() -> bool:
        return any(line["message"] == CUT_OFF for line in server.log())

    await asyncio.to_thread(wait_until, said, what="a line that says who was cut off")


async def is_refused(server: ServerProcess) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it stood in the queue when the listener was closed
    writer.transport.abort()
    return False


async def listener_closed(server: ServerProcess) -> None:
    """Wait until nobody can connect any more."""
    async with asyncio.timeout(10):
        while not await is_refused(server):
            await asyncio.sleep(0.01)


async def ignore_the_close(client: WsClient) -> None:
    """Hear it, and do not answer."""
    async with asyncio.timeout(10):
        while (await client.recv_frame())[0] != CLOSE:
            pass


class Wire:
    """A plain HTTP connection to the server, kept open between requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)

    async def answer(self) -> Answer:
        head = await self.head()
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return parse_answer(head + await asyncio.wait_for(self.reader.readexactly(length), 10))

    def ask(self, path: str) -> None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


class Upload(Wire):
    """A request whose body is on its way, and as long as that a request in flight."""

    session_id = ""
    body = b""

    async def begin(self) -> None:
        self.session_id = str(uuid.uuid4())
        self.body = json.dumps({"session_id": self.session_id, "sync_mode": "count_up"}).encode()
        self.writer.write(
            b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(self.body)
        )
        # The server has read the head, and asks for the rest: from now on it is in flight.
        assert b" 100 " in await self.head()
        self.writer.write(self.body[:10])

    async def finish(self) -> Answer:
        self.writer.write(self.body[10:])
        return await self.answer()


@asynccontextmanager
async def wired(server: ServerProcess) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def uploading(server: ServerProcess) -> AsyncIterator[Upload]:
    async with wired(server) as wire:
        upload = Upload(wire.reader, wire.writer)
        await upload.begin()
        yield upload


# --- who is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_every_client_is_told_and_the_exit_is_clean(
    server: ServerProcess, number: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        urls = [watch_url(server) for _ in range(5)] * 5
        clients = [await stack.enter_async_context(await WsClient.connect(url)) for url in urls]
        for client in clients:
            assert (await client.recv())["type"] == "CONNECTED"
        os.kill(server.pid, number)
        for client in clients:
            assert await client.recv() == TOLD
        # All have answered: nothing is waited for.
        assert await exit_code(server) == 0


async def test_a_terminal_that_closes_hurries_nobody(server: ServerProcess) -> None:
    """It may send SIGHUP more than once."""
    async with await WsClient.connect(watch_url(server)) as client:
        assert await client.recv_type("CONNECTED")
        for _ in range(3):
            os.kill(server.pid, signal.SIGHUP)
        assert await client.recv() == TOLD
    assert await exit_code(server) == 0


def test_a_process_that_was_told_to_ignore_its_terminal_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it, for what it starts
    try:
        server = ServerProcess("--log-level=warning")
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        os.kill(server.pid, signal.SIGHUP)
        assert asyncio.run(server.call("GET", "/ready")).status == 200
        assert server.process.poll() is None
    finally:
        assert server.stop() == 0


async def test_many_clients_are_not_sent_away_all_at_once(server: ServerProcess) -> None:
    """They come back to the other processes, which have work to do."""

    async def is_told(client: WsClient) -> None:
        assert await client.recv_type("CONNECTED")
        assert await client.recv() == TOLD

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await WsClient.connect(watch_url(server))) for _ in range(600)
        ]
        tasks = [asyncio.create_task(is_told(client)) for client in clients]
        server.terminate()
        await asyncio.gather(*tasks)
        assert await exit_code(server) == 0
    # By the server's own account: a client that was not awake hears of several at once.
    ended = [datetime.fromisoformat(str(line["at"])) for line in server.log() if "close_code" in line]
    assert len(ended) == 600
    assert (max(ended) - min(ended)).total_seconds() > 600 / 500 / 3


@pytest.mark.parametrize("drain_s", [0.1, 2.0, 10.0, 60.0])
@pytest.mark.parametrize("count", [1, 2, 499, 2_500, 5_000, 10_000, 60_000])
def test_those_who_are_asked_to_wait_come_back_evenly(count: int, drain_s: float) -> None:
    closing_s = min(count / CLOSES_PER_S, drain_s / 2)
    delays_ms = [come_back_after_ms(place, count, closing_s) for place in range(count)]
    assert all(1 <= each <= 9_999 for each in delays_ms)
    back_ms = [place / count * closing_s * 1000 + each for place, each in enumerate(delays_ms)]
    # As many in each second as come back in the mean, which are no more than need be.
    last_s = max(closing_s, min(count / CLOSES_PER_S, BACK_WITHIN_S))
    assert max(back_ms) <= last_s * 1000 + 1
    in_second = Counter(int(each / 1000) for each in back_ms)
    assert max(in_second.values()) <= count / max(last_s, 1) + count / 1000 + 2


def test_those_who_come_late_are_asked_to_wait_as_long_as_the_last() -> None:
    assert come_back_after_ms(10_000, 10_000, 5.0) == come_back_after_ms(10_007, 10_000, 5.0) == 4_999
    assert come_back_after_ms(3, 0, 0.0) == 1


@pytest.mark.parametrize("server", [1], indirect=True, ids=[""])
async def test_clients_of_v2_are_told_to_come_back_one_after_the_other(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        offer = {"Sec-WebSocket-Protocol": "lockstep.v2.json"}
        url = f"{server.ws_url}/ws"
        clients = [
            await stack.enter_async_context(await WsClient.connect(url, headers=offer)) for _ in range(300)
        ]
        for client in clients:
            assert (await client.recv())["type"] == "WELCOME"
        server.terminate()
        delays_ms = []
        for client in clients:
            told = await client.recv()
            assert told["type"] == "GOING_AWAY"
            delays_ms.append(told["reconnectAfterMs"])
            assert await client.recv() == TOLD
        # Closed within half of that, they are to come back within 300 / 500 s.
        assert sorted(delays_ms) == [come_back_after_ms(place, 300, 0.5) for place in range(300)]
        assert (min(delays_ms), max(delays_ms)) == (1, 100)
        assert await exit_code(server) == 0


async def test_without_clients_the_exit_is_clean_and_at_once(server: ServerProcess) -> None:
    server.terminate()
    assert await exit_code(server) == 0


async def fall_behind(server: ServerProcess, session_id: str) -> int:
    """More states than the kernel takes for a client that does not read; the version of the last."""
    seats = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 3_600_000} for _ in range(1000)]
    body = {"session_id": session_id, "sync_mode": "per_participant", "participants": seats}
    version = (await server.call("POST", "/v1/sessions", body)).data["version"]
    for command in ["start", *["pause", "resume"] * 15]:
        version = (await server.call("POST", f"/v1/sessions/{session_id}/{command}")).data["version"]
    return int(version)


async def test_a_client_that_is_behind_gets_what_it_is_owed_before_it_is_told(server: ServerProcess) -> None:
    url = watch_url(server)
    async with await WsClient.connect(url, rcvbuf=4096, limit=4096) as client:
        version = await fall_behind(server, url[-36:])
        server.terminate()
        latest = 0
        while not isinstance(message := await client.recv(), Closed):
            latest = message["state"]["version"] if "state" in message else latest
        assert (latest, message) == (version, TOLD)
        assert await exit_code(server) == 0


# --- what is in flight ---------------------------------------------------------------------------


async def test_a_request_in_flight_is_answered_and_nobody_else_gets_in(server: ServerProcess) -> None:
    async with await WsClient.connect(watch_url(server)) as client, uploading(server) as upload:
        server.terminate()
        await listener_closed(server)
        assert (await client.recv())["type"] == "CONNECTED"
        answer = await upload.finish()
        assert (answer.status, answer.data["session_id"]) == (201, upload.session_id)
        assert await client.recv() == TOLD
        assert await exit_code(server) == 0


async def test_readiness_is_denied_while_the_rest_is_finished(server: ServerProcess) -> None:
    async with uploading(server) as upload, wired(server) as wire, wired(server) as other:
        for each in (wire, other):
            each.ask("/ready")
            assert (await each.answer()).status == 200
        server.terminate()
        await listener_closed(server)
        wire.ask("/ready")
        ready = await wire.answer()
        assert ready.status == 503
        assert ready.body["status"] == "not_ready"
        assert "draining" in ready.body["reasons"]
        # A proxy keeps connections open: it is told to use this one no more.
        assert ready.headers["connection"] == "close"
        assert await wire.reader.read() == b""
        other.ask("/health")
        assert (await other.answer()).body == {"status": "ok"}
        assert (await upload.finish()).status == 201
        assert await exit_code(server) == 0


async def test_who_stood_in_the_queue_of_the_listener_is_answered(server: ServerProcess) -> None:
    """More than are taken in at a time: a listener that is closed resets whom nobody has taken in."""
    os.kill(server.pid, signal.SIGSTOP)
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(server)) for _ in range(900)]
        for wire in wires:
            wire.ask("/health")
        server.terminate()
        os.kill(server.pid, signal.SIGCONT)
        for wire in wires:
            assert (await wire.answer()).status == 200
    assert await exit_code(server) == 0


async def until_nothing_is_answered_any_more(server: ServerProcess) -> None:
    """Until two looks, some time apart, see as many answers of sessions."""

    async def answered() -> list[str]:
        metrics = (await server.call("GET", "/metrics")).raw.decode().splitlines()
        return [
            line for line in metrics if line.startswith("lockstep_request_seconds_count") and "/ID" in line
        ]

    before, now = [""], await answered()
    while before != now:
        await asyncio.sleep(0.3)
        before, now = now, await answered()


async def test_an_answer_on_its_way_arrives_whole(server: ServerProcess) -> None:
    """Its request is finished for the handler, but not for who reads it slowly."""
    seats = [{"group_id": "\u20ac" * 128} for _ in range(1000)]
    body = {"sync_mode": "global", "total_time_ms": 60_000, "participants": seats}
    session_id = (await server.call("POST", "/v1/sessions", body)).data["session_id"]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    try:
        # One after the other, until the kernel takes no more.
        asked = f"GET /v1/sessions/{session_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        writer.write(asked * 40)
        first = await reader.readuntil(b"\r\n\r\n")
        await until_nothing_is_answered_any_more(server)
        server.terminate()
        await listener_closed(server)
        await asyncio.sleep(3 * LINGER_S)
        assert server.process.poll() is None, "the kernel has taken all, and the test shows nothing"
        heads = [first]
        async with asyncio.timeout(20):
            while heads[-1]:
                length = int(heads[-1].lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                answer = parse_answer(heads[-1] + await reader.readexactly(length))
                assert len(answer.data["participants"]) == 1000
                is_last = answer.headers.get("connection") == "close"
                heads.append(b"" if is_last else await reader.readuntil(b"\r\n\r\n"))
        assert 1 < len(heads) < 40
    finally:
        writer.transport.abort()
    assert await exit_code(server) == 0


async def test_who_wants_to_stay_is_sent_on(server: ServerProcess) -> None:
    """A connection that was accepted before may ask for a WebSocket while the rest is finished."""
    async with await WsClient.connect(watch_url(server)) as stubborn, wired(server) as wire:
        wire.ask("/health")
        assert (await wire.answer()).status == 200
        server.terminate()
        assert (await stubborn.recv())["type"] == "CONNECTED"
        await ignore_the_close(stubborn)  # so that there is time
        wire.writer.write(
            b"GET /ws?sessionId=%b HTTP/1.1\r\nHost: [::1]\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            % str(uuid.uuid4()).encode()
        )
        answer = await wire.answer()
        assert (answer.status, answer.body["error"]["code"]) == (503, "SHUTTING_DOWN")
        assert answer.headers["retry-after"] == "1"
    assert await exit_code(server) == 0


# --- how long it takes ---------------------------------------------------------------------------


@in_a_hurry
async def test_a_client_that_never_answers_is_waited_for_no_longer_than_the_drain_time(
    server: ServerProcess,
) -> None:
    async with await WsClient.connect(watch_url(server)) as client:
        server.terminate()
        assert (await client.recv())["type"] == "CONNECTED"
        await ignore_the_close(client)
        assert await exit_code(server) == 0
        await has_cut_off(server)


@in_a_hurry
async def test_a_client_that_does_not_read_is_waited_for_no_longer_than_the_drain_time(
    server: ServerProcess,
) -> None:
    url = watch_url(server)
    async with await WsClient.connect(url, rcvbuf=4096, limit=4096):
        await fall_behind(server, url[-36:])
        server.terminate()
        assert await exit_code(server) == 0
        await has_cut_off(server)


@in_a_hurry
async def test_a_request_that_never_ends_is_waited_for_no_longer_than_the_drain_time(
    server: ServerProcess,
) -> None:
    async with uploading(server):
        server.terminate()
        assert await exit_code(server) == 0
        await has_cut_off(server)


@in_a_hurry
async def test_clients_are_told_though_a_request_never_ends(server: ServerProcess) -> None:
    """A drain time that one request uses up is no reason to leave the others without a word."""
    async with await WsClient.connect(watch_url(server)) as client, uploading(server):
        assert (await client.recv())["type"] == "CONNECTED"
        server.terminate()
        assert await client.recv() == TOLD
        assert await exit_code(server) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
async def test_a_second_signal_ends_it_at_once(
    server: ServerProcess, first: signal.Signals, second: signal.Signals
) -> None:
    async with uploading(server):
        os.kill(server.pid, first)
        await listener_closed(server)
        assert server.process.poll() is None, "it waits for the upload"
        os.kill(server.pid, second)
        assert await exit_code(server) != 0


@pytest.mark.long
async def test_clients_that_go_on_talking_do_not_hold_up_the_end(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await WsClient.connect(watch_url(server))) for _ in range(5)
        ]
        ping = encode(TEXT, b'{"type":"PING"}') * 100

        async def talk(client: WsClient) -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send_raw(ping)

        async def listen(client: WsClient) -> list[int]:
            opcodes = []
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    opcode, payload = await client.recv_frame()
                    opcodes.append(opcode)
                    if opcode == CLOSE:
                        await client.send_frame(CLOSE, payload)
            return opcodes

        talking = [asyncio.create_task(talk(client)) for client in clients]
        listening = [asyncio.create_task(listen(client)) for client in clients]
        server.terminate()
        assert await exit_code(server) == 0
        for opcodes in await asyncio.wait_for(asyncio.gather(*listening), 10):
            assert opcodes.count(CLOSE) == 1
            assert opcodes[-1] == CLOSE
        await asyncio.gather(*talking)
