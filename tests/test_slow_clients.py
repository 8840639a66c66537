"""A client that does not read, or reads slowly: it gets what it is owed, and nobody else notices."""

import asyncio
import contextlib
import json
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from tornado.netutil import bind_sockets

from handlers import connection as connection_module
from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from handlers.read_scheduler import SLICE_S, ReadScheduler
from lockstep.config import Settings
from lockstep.errors import GOING_AWAY, SESSION_DELETED
from lockstep.live.peers import Kind
from lockstep.metrics import Metrics
from lockstep.wire.encodings import JSON
from lockstep.wire.frames import encode_frame
from server import Server
from tests.support.loop_time import LoopTime
from tests.support.processes import ServerProcess, wait_until
from tests.support.ws_client import PING, PONG, TEXT, Closed, WsClient, encode

MIB = 1_048_576
SEATS = 1000

# --- at a real server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient_server() -> Iterator[ServerProcess]:
    """One that does not take a client which does not read for dead within a test."""
    server = ServerProcess("--ping-interval-s=60", "--ping-timeout-s=50")
    yield server
    server.stop()


class Meeting:
    """A running session whose states are big, and what happens in it."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.session_id = str(uuid.uuid4())
        self.version = 0

    async def begin(self) -> None:
        seats = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 3_600_000} for _ in range(SEATS)]
        body = {"session_id": self.session_id, "sync_mode": "per_participant", "participants": seats}
        self.version = (await self.server.call("POST", "/v1/sessions", body)).data["version"]
        await self.command("start")

    async def command(self, name: str) -> None:
        answer = await self.server.call("POST", f"/v1/sessions/{self.session_id}/{name}")
        self.version = answer.data["version"]

    async def change(self) -> None:
        await self.command("pause" if self.version % 2 == 0 else "resume")

    async def say(self, message: Any) -> None:
        answer = await self.server.call("POST", f"/v1/sessions/{self.session_id}/messages", message)
        assert answer.status == 202

    async def client(self, **how: Any) -> WsClient:
        client = await WsClient.connect(f"{self.server.ws_url}/ws?sessionId={self.session_id}", **how)
        assert (await client.recv())["type"] == "CONNECTED"
        return client

    async def sluggard(self) -> WsClient:
        """A client that takes next to nothing as long as nobody calls `recv`."""
        return await self.client(rcvbuf=4096, limit=4096)

    def left_with(self, code: int) -> Any:
        """Wait until the server has logged that a client of this session has gone, with this code."""
        return wait_until(
            lambda: [
                line
                for line in self.server.log()
                if (line.get("session_id"), line.get("close_code")) == (self.session_id, code)
            ],
            what=f"a log line of a close with {code}",
        )


# The kernel alone takes some 4 MB for a client before the server notices anything: this many states
# of a quarter of a MB are more than that.
CHANGES = 40


async def test_a_client_that_does_not_read_does_not_delay_the_others(patient_server: ServerProcess) -> None:
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with await meeting.client() as reader, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(await meeting.sluggard())
        for _ in range(CHANGES):
            await meeting.change()
            assert (await reader.recv())["state"]["version"] == meeting.version
        await reader.fence()


async def test_a_client_that_does_not_read_does_not_grow_the_process(patient_server: ServerProcess) -> None:
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(await meeting.sluggard())
        for _ in range(CHANGES):
            await meeting.change()
        before = patient_server.rss_bytes()
        for _ in range(2 * CHANGES):
            await meeting.change()
        # All that was sent is some 80 MB by now; one state for each client is little.
        assert patient_server.rss_bytes() - before < 16 * MIB


async def test_a_client_that_reads_again_gets_whole_states_in_order_and_the_latest_last(
    patient_server: ServerProcess,
) -> None:
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with await meeting.sluggard() as client:
        for _ in range(CHANGES):
            await meeting.change()
        versions = []
        while not versions or versions[-1] < meeting.version:
            message = await client.recv()
            assert len(message["state"]["participants"]) == SEATS
            versions.append(message["state"]["version"])
        assert versions == sorted(set(versions))
        assert len(versions) < CHANGES, "it had fallen behind, or this shows nothing"
        await client.fence()
        # It is a client like any other again.
        await meeting.change()
        assert (await client.recv())["state"]["version"] == meeting.version


async def test_messages_never_overtake_the_states_before_them(patient_server: ServerProcess) -> None:
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with await meeting.sluggard() as client:
        said = []
        for _ in range(CHANGES):
            await meeting.change()
            await meeting.say({"type": "NOTE", "version": meeting.version})
            said.append(meeting.version)
        heard: list[int] = []
        seen: list[int] = []
        while len(heard) < len(said):
            message = await client.recv()
            if message["type"] == "NOTE":
                heard.append(message["version"])
                assert seen[-1] >= message["version"]
            else:
                seen.append(message["state"]["version"])
        assert heard == said
        assert seen == sorted(set(seen))
        assert len(seen) < CHANGES, "it had fallen behind, or this shows nothing"
        assert seen[-1] == meeting.version


async def test_a_reconnect_of_a_client_that_is_behind_is_answered_all_the_same(
    patient_server: ServerProcess,
) -> None:
    """Newer states may take the place of the answer's, but an answer it remains."""
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with await meeting.sluggard() as client:
        for _ in range(CHANGES // 2):
            await meeting.change()
        await client.send({"type": "RECONNECT"})
        for _ in range(CHANGES // 2):
            await meeting.change()
        types = set()
        version = 0
        while version < meeting.version:
            message = await client.recv()
            types.add(message["type"])
            version = message["state"]["version"]
        await client.send({"type": "PING"})
        while (message := await client.recv())["type"] != "PONG":
            types.add(message["type"])
        assert types == {"STATE_UPDATE", "STATE_SYNC"}


async def test_a_client_that_leaves_too_much_unread_is_closed_and_gone_and_the_others_are_served(
    patient_server: ServerProcess,
) -> None:
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with await meeting.sluggard(), await meeting.client() as reader:
        before = patient_server.rss_bytes()
        for number in range(120):
            await meeting.say({"type": "NOTE", "number": number, "text": "x" * 60_000})
            assert (await reader.recv())["number"] == number
        await asyncio.to_thread(meeting.left_with, 4001)
        assert patient_server.rss_bytes() - before < 16 * MIB
        await reader.fence()


async def test_a_client_that_asks_without_reading_the_answers_is_closed(
    patient_server: ServerProcess,
) -> None:
    meeting = Meeting(patient_server)
    await meeting.begin()
    async with await meeting.sluggard() as client, await meeting.client() as reader:
        before = patient_server.rss_bytes()
        pings = encode(TEXT, json.dumps({"type": "PING", "id": "x" * 10_000}).encode()) * 10

        async def ask_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send_raw(pings)

        asking = asyncio.create_task(ask_on())
        await asyncio.to_thread(meeting.left_with, 4001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert patient_server.rss_bytes() - before < 16 * MIB
        await reader.fence()


# --- one connection, by itself -------------------------------------------------------------------


class FakeService:
    """Keeps what a connection tells it."""

    encoding = JSON

    def __init__(self) -> None:
        self.heartbeat = Heartbeat(5.0, 4.0)
        self.read_scheduler = ReadScheduler()
        self.max_message_bytes = 16_384
        self.metrics = Metrics()
        self.message_rate = 0
        self.messages: list[bytes] = []
        self.ended: asyncio.Future[int | None] = asyncio.Future()

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        self.messages.append(payload)

    def on_end(self, connection: Connection) -> None:
        self.ended.set_result(connection.close_code)


class Line:
    """A connection, and the socket at the other end of its line."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.service = FakeService()
        self.connection = Connection(ours, self.service, self.service, None)
        self.connection.start(b"")

    def send(self, *messages: Any) -> None:
        """Integers as states of that version, others as messages."""
        for message in messages:
            frame = encode_frame(TEXT, json.dumps(message).encode())
            self.connection.send(frame, Kind.STATE if isinstance(message, int) else Kind.MESSAGE)

    def clog(self) -> None:
        """From here on everything waits for the frame in progress."""
        self.send(["clog", "x" * MIB])

    async def client(self, is_clogged: bool = True) -> WsClient:
        """Begin to read; what clogs the line is taken off."""
        reader, writer = await asyncio.open_connection(sock=self.theirs)
        client = WsClient(reader, writer, answers_pings=True)
        if is_clogged:
            assert (await client.recv())[0] == "clog"
        return client

    async def heard(self, client: WsClient) -> list[Any]:
        """Everything up to here."""
        self.send("fence")
        got = []
        while (message := await client.recv()) != "fence":
            got.append(message)
            assert not isinstance(message, Closed), got
        return got


@asynccontextmanager
async def a_line() -> AsyncIterator[Line]:
    line = Line()
    try:
        yield line
    finally:
        line.connection.abort()
        await asyncio.wait_for(line.service.ended, 10)
        line.theirs.close()


def note(number: int, size: int = 0) -> list[Any]:
    return ["note", number, "x" * size]


async def test_a_newer_state_takes_the_place_of_the_unsent_one() -> None:
    async with a_line() as line:
        line.clog()
        line.send(1, note(1), 2, note(2), note(3), 3)
        async with await line.client() as client:
            assert await line.heard(client) == [3, note(1), note(2), note(3)]


async def test_a_message_waits_for_the_state_before_it() -> None:
    async with a_line() as line:
        line.clog()
        line.send(note(1), 1, note(2))
        async with await line.client() as client:
            assert await line.heard(client) == [note(1), 1, note(2)]
            line.send(note(3), 2, note(4), 3)
            assert await line.heard(client) == [note(3), 2, note(4), 3]


async def test_a_client_that_reads_gets_every_state() -> None:
    async with a_line() as line, await line.client(is_clogged=False) as client:
        for version in range(500):
            line.send(version)
            assert await client.recv() == version


@pytest.mark.parametrize("over", [0, 1], ids=["kept", "too much"])
async def test_a_mebibyte_of_messages_is_kept_and_a_byte_more_is_too_much(over: int) -> None:
    def frame_of(size: int) -> bytes:
        header = 10 if size > 65_539 else 4
        frame = encode_frame(TEXT, b'"' + b"x" * (size - header - 2) + b'"')
        assert len(frame) == size
        return frame

    async with a_line() as line:
        line.clog()
        for _ in range(16):
            line.connection.send(frame_of(60_000))
        line.connection.send(frame_of(MIB - 16 * 60_000 + over))
        async with await line.client() as client:
            if over:
                assert await client.recv() == Closed(4001, "Too slow")
            else:
                got = [await client.recv() for _ in range(17)]
                assert not any(isinstance(each, Closed) for each in got)
                assert await line.heard(client) == []


async def test_of_one_that_is_too_slow_the_frame_in_progress_is_finished_and_the_rest_discarded() -> None:
    async with a_line() as line:
        line.clog()
        line.send(1, *(note(number, 60_000) for number in range(20)))
        line.send(2, note(99))  # too late for anything
        async with await line.client() as client:  # which takes off the frame in progress
            assert await client.recv() == Closed(4001, "Too slow")
        assert await asyncio.wait_for(line.service.ended, 10) == 4001


async def test_one_that_is_too_slow_and_does_not_read_is_gone_after_a_second() -> None:
    async with a_line() as line:
        line.clog()
        loop_time = LoopTime()
        line.send(*(note(number, 60_000) for number in range(20)))
        await loop_time.pass_s(0.9)
        assert not line.service.ended.done()
        await loop_time.pass_s(0.1)
        assert await asyncio.wait_for(line.service.ended, 10) == 4001


async def test_what_was_sent_counts_no_more_against_a_client() -> None:
    async with a_line() as line, await line.client(is_clogged=False) as client:
        for _ in range(4):
            line.clog()
            line.send(*(note(number, 60_000) for number in range(16)))
            assert (await client.recv())[0] == "clog"
            assert len(await line.heard(client)) == 16


async def test_states_count_nothing_however_big() -> None:
    async with a_line() as line:
        line.clog()
        for _ in range(10):
            line.connection.send(encode_frame(TEXT, b'"' + b"s" * MIB + b'"'), Kind.STATE)
        line.send(note(1))
        async with await line.client() as client:
            assert await line.heard(client) == ["s" * MIB, note(1)]


async def test_a_close_comes_after_what_was_sent_before_it() -> None:
    async with a_line() as line:
        line.clog()
        line.send(1, note(1), 2)
        line.connection.close(GOING_AWAY)
        line.connection.close(SESSION_DELETED)  # again does nothing
        line.send(3, note(2))
        async with await line.client() as client:
            assert [await client.recv() for _ in range(3)] == [
                2,
                note(1),
                Closed(1001, "Server shutting down"),
            ]
        assert await asyncio.wait_for(line.service.ended, 10) == 1001


async def test_who_does_not_answer_a_close_is_gone_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_TIMEOUT_S", 0.1)
    async with a_line() as line:
        line.connection.close(GOING_AWAY)
        assert await asyncio.wait_for(line.service.ended, 10) == 1001


async def test_a_sync_takes_the_place_of_the_unsent_state_and_keeps_it() -> None:
    async with a_line() as line:
        line.clog()
        line.send(1, note(1))
        line.connection.send(encode_frame(TEXT, b'"sync of 2"'), Kind.SYNC)
        line.send(3, note(2), 4)
        async with await line.client() as client:
            assert await line.heard(client) == ["sync of 2", note(1), 4, note(2)]


async def test_what_comes_after_a_close_does_not_cost_the_close_frame() -> None:
    """Also an answer that was still being read when the close was decided."""
    async with a_line() as line:
        line.clog()
        notes = [note(number, 60_000) for number in range(17)]
        line.send(1, *notes)
        line.connection.close(GOING_AWAY)
        line.send(2, note(99, 60_000))
        line.connection.send(encode_frame(TEXT, b'"' + b"s" * 100_000 + b'"'), Kind.SYNC)
        async with await line.client() as client:
            assert [await client.recv() for _ in range(18)] == [1, *notes]
            assert await client.recv() == Closed(1001, "Server shutting down")


async def test_a_ping_goes_behind_the_frame_in_progress_and_before_those_that_wait() -> None:
    """A client that is slow but alive shall not look dead."""
    async with a_line() as line:
        line.clog()
        line.send(1, note(1))
        line.connection.ping()
        async with await line.client(is_clogged=False) as client:
            frames = [await asyncio.wait_for(client.recv_frame(), 10) for _ in range(4)]
        assert [opcode for opcode, _ in frames] == [TEXT, PING, TEXT, TEXT]
        assert [json.loads(payload) for _, payload in frames[2:]] == [1, note(1)]


async def test_nothing_overtakes_pings_that_are_still_on_their_way() -> None:
    """So many that they are not gone with the frame that they stand behind."""
    async with a_line() as line:
        line.clog()
        for _ in range(20_000):
            line.connection.ping()
        line.send(1, note(1))
        async with await line.client() as client:
            assert await line.heard(client) == [1, note(1)]
            assert client.pings == 20_000


async def test_a_pong_in_time_keeps_the_connection_and_none_ends_it() -> None:
    async with a_line() as line, await line.client(is_clogged=False) as client:
        line.connection.ping()
        assert await asyncio.wait_for(client.recv_frame(), 10) == (PING, b"")
        await client.send_raw(encode(PONG, b"") + encode(TEXT, b"read"))
        while not line.service.messages:
            await asyncio.sleep(0)
        line.connection.expect_pong()
        assert await line.heard(client) == []
        line.connection.ping()
        line.connection.expect_pong()
        assert await asyncio.wait_for(line.service.ended, 10) == 1006
        assert await asyncio.wait_for(client.recv_frame(), 10) == (PING, b"")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):  # no close frame
            await asyncio.wait_for(client.recv_frame(), 10)


@pytest.mark.parametrize("is_clogged", [False, True])
async def test_sending_to_who_has_gone_does_no_harm(is_clogged: bool) -> None:
    async with a_line() as line:
        if is_clogged:
            line.clog()
        line.theirs.close()
        for number in range(10):
            line.send(number, note(number))
            await asyncio.sleep(0)
        line.connection.close(SESSION_DELETED)
        await asyncio.wait_for(line.service.ended, 10)
        line.send(1, note(1))
        line.connection.close(SESSION_DELETED)


@pytest.mark.parametrize("is_clogged", [False, True])
@pytest.mark.parametrize("act", ["send", "ping", "close", "expect_pong"])
async def test_a_stream_that_has_just_broken_does_no_harm(act: str, is_clogged: bool) -> None:
    """Between the stream's end and the reader's hearing of it the hub and the heartbeat may come by.

    What is raised here would keep the state from the other peers, or end the heartbeat of all.
    """
    async with a_line() as line:
        if is_clogged:
            line.clog()
        await asyncio.sleep(0)
        line.theirs.close()  # with data unread: a reset, of which the next call is told
        arguments = {"send": (b"\x81\x011",), "close": (SESSION_DELETED,)}
        getattr(line.connection, act)(*arguments.get(act, ()))
        await asyncio.wait_for(line.service.ended, 10)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_messages_are_complete_and_states_are_in_order(seed: int) -> None:
    """Sends of all kinds, pings, and a client that reads now and then, at random."""
    chance = random.Random(seed)
    async with a_line() as line:
        client = await line.client(is_clogged=False)
        sent: list[Any] = []
        got: list[Any] = []
        version = 0
        for number in range(200):
            kind = chance.random()
            size = chance.choice([0, 10, 1000, 3000])
            if kind < 0.5:
                version += 1
                sent.append(version)
                line.connection.send(encode_frame(TEXT, f"{version}{' ' * size}".encode()), Kind.STATE)
            elif kind < 0.9:
                sent.append(note(number, size))
                line.send(sent[-1])
            elif kind < 0.95:
                line.connection.ping()
            else:
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                for _ in range(chance.randrange(10)):
                    if len(got) < len(sent) and not (got and got[-1] == sent[-1]):
                        got.append(await client.recv())
        got += await line.heard(client)
        client.abort()
        is_note = [isinstance(each, list) for each in got]
        assert [each for each in got if isinstance(each, list)] == [
            each for each in sent if isinstance(each, list)
        ]
        versions = [each for each, is_message in zip(got, is_note, strict=True) if not is_message]
        assert versions == sorted(set(versions))
        assert versions[-1] == version
        for each in [each for each in got if isinstance(each, list)]:
            before = [state for state in sent[: sent.index(each)] if isinstance(state, int)]
            seen = [state for state in got[: got.index(each)] if isinstance(state, int)]
            assert max(seen, default=0) >= max(before, default=0), "a message overtook a state"


# --- at one server, on the very loop of the test -------------------------------------------------


@asynccontextmanager
async def hub_of_a_server() -> AsyncIterator[tuple[Server, WsClient, str]]:
    """A server on this very loop, and a client of it."""
    server = Server(Settings(port=0, log_level="warning"))
    sockets = bind_sockets(0, "127.0.0.1")
    await server.start(sockets)
    session_id = str(uuid.uuid4())
    url = f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/ws?sessionId={session_id}"
    try:
        async with await WsClient.connect(url, rcvbuf=65_536) as client:
            assert (await client.recv())["type"] == "CONNECTED"
            yield server, client, session_id
    finally:
        await server.stop()


def an_update(session_id: str, version: int, size: int) -> bytes:
    state = {"epoch": "0lqtw8xc0bbbb", "version": version, "filling": "x" * size}
    return json.dumps({"sessionId": session_id, "state": state}).encode()


async def test_a_client_that_reads_gets_every_state_of_one_turn_of_the_loop() -> None:
    async with hub_of_a_server() as (server, client, session_id):
        for version in range(1, 21):
            server.hub.on_published(an_update(session_id, version, 300))
        assert [(await client.recv())["state"]["version"] for _ in range(20)] == list(range(1, 21))


async def test_a_client_that_fell_behind_gets_everything_in_order() -> None:
    async with hub_of_a_server() as (server, client, session_id):
        for version in range(1, 201):
            server.hub.on_published(an_update(session_id, version, 100_000))
            server.hub.on_relayed(session_id, json.dumps({"type": "NOTE", "version": version}).encode())
            if version % 20 == 0:
                await asyncio.sleep(0)
        seen, heard = [0], []
        while len(heard) < 200:
            message = await client.recv()
            if message["type"] == "NOTE":
                heard.append(message["version"])
                assert seen[-1] >= heard[-1]
            else:
                seen.append(message["state"]["version"])
                assert len(message["state"]["filling"]) == 100_000
        assert heard == list(range(1, 201))
        assert seen == sorted(set(seen))
        assert seen[-1] == 200
        await client.fence()


async def test_what_came_together_with_a_question_is_answered_after_it() -> None:
    async with hub_of_a_server() as (_, client, _):
        pings = [encode(TEXT, json.dumps({"type": "PING", "id": number}).encode()) for number in range(300)]
        await client.send_raw(encode(TEXT, b'{"type":"RECONNECT"}') + b"".join(pings))
        assert (await client.recv())["type"] == "ERROR"  # there is no such session
        assert [(await client.recv())["id"] for _ in range(300)] == list(range(300))


# --- whose turn it is to be read -----------------------------------------------------------------


class Talker:
    """Says so much that reading it takes a while."""

    def __init__(self, number: int, read: list[int], takes_s: float) -> None:
        self._number = number
        self._read = read
        self._takes_s = takes_s

    def read_on(self) -> None:
        self._read.append(self._number)
        end_s = time.monotonic() + self._takes_s
        while time.monotonic() < end_s:
            pass


async def test_what_a_turn_has_no_time_for_is_read_in_the_next_ones_in_order() -> None:
    scheduler, read, loop = ReadScheduler(), list[int](), asyncio.get_running_loop()
    talkers = [Talker(number, read, SLICE_S / 3) for number in range(30)]
    read_by_turn: list[int] = []

    def others_turn() -> None:
        read_by_turn.append(len(read))
        if len(read) < len(talkers):
            loop.call_soon(others_turn)

    for talker in talkers:
        if scheduler.admit_or_queue(talker):
            talker.read_on()
    loop.call_soon(others_turn)
    while len(read) < len(talkers):
        await asyncio.sleep(0)
    assert read == list(range(30))
    in_each = [after - before for before, after in pairwise([0, *read_by_turn])]
    assert max(in_each) <= 8, "the loop gets to do something else in between"


async def test_who_comes_while_others_wait_is_read_after_them() -> None:
    scheduler, read = ReadScheduler(), list[int]()
    first, second, third = (Talker(number, read, 2 * SLICE_S) for number in range(3))
    assert scheduler.admit_or_queue(first)
    first.read_on()
    assert not scheduler.admit_or_queue(second)
    await asyncio.sleep(0)
    assert read == [0, 1]
    assert not scheduler.admit_or_queue(third), "the turn has been used up"
    while len(read) < 3:
        await asyncio.sleep(0)
    assert read == [0, 1, 2]
    await asyncio.sleep(0)
    assert scheduler.admit_or_queue(first), "nobody is in line any more"
