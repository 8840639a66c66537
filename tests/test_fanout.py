"""Audiences of real sockets, in C and in Python: whole, in order, whatever becomes of a client meanwhile."""

import asyncio
import gc
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from handlers import _native, native
from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from handlers.subscription import Subscription
from lockstep.errors import SESSION_DELETED
from lockstep.live import audience as audience_module
from lockstep.live.audience import Audience
from lockstep.live.peers import Frames, Kind
from lockstep.live.recipients import MakeRecipients, PeerByPeer
from lockstep.metrics import Metrics
from lockstep.wire.encodings import JSON
from lockstep.wire.frames import TEXT, encode_frame

# Of each both: their parts are of the same kind in C and in Python where the twin is asked for.
WAYS: dict[str, MakeRecipients] = {"chosen": native.Recipients, "in Python": PeerByPeer}


class Service:
    heartbeat = Heartbeat(5.0, 4.0)
    max_message_bytes = 1024
    message_rate = 0
    encoding = JSON

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ended: list[Connection] = []
        self.audience: Audience | None = None

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        raise AssertionError("nobody says anything here")

    def on_end(self, connection: Connection) -> None:
        self.ended.append(connection)
        if self.audience is not None and connection in self.audience.recipients:
            self.audience.leave(connection)

    def skipped(self, subscription: Subscription, kind: Kind) -> bytes:
        return b""

    def disconnect(self, subscription: Subscription) -> None:
        raise AssertionError("nobody is sent away")


class Lines:
    """Connections of one audience, and the other ends of their lines."""

    def __init__(self, audience: Audience) -> None:
        self.service = Service()
        self.audience = self.service.audience = audience
        self.theirs: list[socket.socket] = []
        self.connections: list[Connection] = []

    def open(self) -> Connection:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        theirs.setblocking(False)
        connection = Connection(ours, self.service, self.service, None)
        self.connections.append(connection)
        self.theirs.append(theirs)
        connection.start(b"")
        self.audience.enter(connection)
        return connection

    def put(self, *frames: bytes, kind: Kind = Kind.MESSAGE) -> None:
        for frame in frames:
            self.audience.put(frame, kind)

    def send(self, *frames: bytes) -> None:
        self.put(*frames)
        assert self.audience.serve(lambda: False)

    async def read(self, place: int, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            while len(data) < size:
                data += await asyncio.get_running_loop().sock_recv(self.theirs[place], size - len(data))
        return data

    def unread(self, place: int) -> bytes:
        try:
            return self.theirs[place].recv(1_000_000)
        except BlockingIOError:
            return b""


@asynccontextmanager
async def lines(way: str, count: int) -> AsyncIterator[Lines]:
    made = Lines(Audience(JSON, WAYS[way]()))
    for _ in range(count):
        made.open()
    try:
        yield made
    finally:
        for connection, theirs in zip(made.connections, made.theirs, strict=True):
            connection.abort()
            theirs.close()


def text(payload: bytes) -> bytes:
    return encode_frame(TEXT, payload)


def test_the_module_in_c_is_in_use_where_it_was_built() -> None:
    in_c = os.environ.get("LOCKSTEP_TWIN") != "1"
    assert (native.Recipients is _native.Recipients) == in_c
    assert issubclass(Connection, _native.Recipient) == in_c


@pytest.mark.parametrize("way", WAYS)
async def test_everybody_gets_every_batch_whole_and_in_order(way: str) -> None:
    frames = [text(b"%d" % number + b"x" * 300) for number in range(40)]
    async with lines(way, 50) as made:
        for first in range(0, 40, 2):
            made.send(frames[first], frames[first + 1])
            await asyncio.sleep(0)
        expected = b"".join(frames)
        for place in range(50):
            assert await made.read(place, len(expected)) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_socket_does_not_take_follows_and_the_others_do_not_wait(way: str) -> None:
    large, small = text(b"a" * 1_000_000), [text(b"b"), text(b"c" * 100)]
    async with lines(way, 3) as made:
        made.send(large)
        made.send(*small)
        expected = large + b"".join(small)
        for place in (2, 0):  # the one between does not read
            assert await made.read(place, len(expected)) == expected
        assert await made.read(1, len(expected)) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_is_gone_does_no_harm(way: str) -> None:
    async with lines(way, 4) as made:
        made.theirs[1].close()
        made.connections[2].close(SESSION_DELETED)
        frames = [text(b"%d" % number) for number in range(3)]
        for frame in frames:
            made.send(frame)
        expected = b"".join(frames)
        for place in (0, 3):
            assert await made.read(place, len(expected)) == expected
        assert made.service.ended == [made.connections[1]]
        assert (await made.read(2, 4))[:1] == b"\x88", "nothing came behind the close frame"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(10))
async def test_whatever_is_mixed_arrives_as_it_was_sent(way: str, seed: int) -> None:
    chance = random.Random(seed)
    async with lines(way, 5) as made:
        expected = [b""] * 5
        for _ in range(100):
            if chance.random() < 0.7:
                frames = [text(bytes(chance.randrange(5000))) for _ in range(chance.randrange(1, 4))]
                made.send(*frames)
                expected = [each + b"".join(frames) for each in expected]
            else:
                place = chance.randrange(5)
                frame = text(bytes(chance.randrange(100)))
                made.connections[place].send(frame)
                expected[place] += frame
            await asyncio.sleep(0)
        got = await asyncio.gather(*(made.read(place, len(expected[place])) for place in range(5)))
        assert got == expected


@pytest.mark.parametrize("way", WAYS)
async def test_a_descriptor_that_is_used_again_belongs_to_its_new_owner_alone(way: str) -> None:
    async with lines(way, 3) as made, lines(way, 0) as other:
        number = made.connections[1].outgoing.clear_descriptor
        made.put(text(b"to the three"))
        made.connections[1].abort()
        newcomer = other.open()
        assert newcomer.outgoing.clear_descriptor == number
        assert made.audience.serve(lambda: False)
        other.send(text(b"to the newcomer"))
        assert other.unread(0) == text(b"to the newcomer")
        assert [made.unread(place) for place in (0, 2)] == [text(b"to the three")] * 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_descriptor_that_is_used_again_within_a_round_is_not_served_in_it(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience_module, "PEERS_PER_LOOK", 1)
    async with lines(way, 3) as made:
        made.put(text(b"1"))
        assert not made.audience.serve(lambda: True)
        served = [place for place in range(3) if made.unread(place)]
        assert len(served) == 1
        unserved = next(place for place in range(3) if place not in served)
        number = made.connections[unserved].outgoing.clear_descriptor
        made.connections[unserved].abort()
        assert made.open().outgoing.clear_descriptor == number
        made.put(text(b"2"))
        assert made.audience.serve(lambda: False)
        assert made.unread(3) == text(b"2"), "who came in the middle of a round"
        assert made.unread(served[0]) == text(b"2")
        last = next(place for place in range(3) if place not in (*served, unserved))
        assert made.unread(last) == text(b"1") + text(b"2")


class Upsetting(Connection):
    """What it keeps for later upsets its room in the middle of a round."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.upset: Callable[[], None] = lambda: None

    def send_batch(self, frames: Frames) -> None:
        upset, self.upset = self.upset, lambda: None
        upset()
        super().send_batch(frames)

    def took(self, frames: Frames, sent: int) -> None:
        upset, self.upset = self.upset, lambda: None
        upset()
        super().took(frames, sent)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["close all", "leave all", "enter", "leave itself", "catch up", "raise"])
async def test_a_room_that_changes_in_the_middle_of_a_round_goes_on(way: str, what: str) -> None:
    async with lines(way, 6) as made:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        upsetting = Upsetting(ours, made.service, made.service, None)
        made.audience.enter(upsetting)  # the last to come is the first to be served
        made.connections.append(upsetting)
        made.theirs.append(theirs)
        theirs.close()  # in C it is asked only if its socket does not take all

        def upset() -> None:
            match what:
                case "close all":
                    for connection in made.connections[:6]:
                        connection.abort()
                case "leave all":
                    for connection in made.connections[:6]:
                        made.audience.leave(connection)
                case "enter":
                    made.open()
                case "leave itself":
                    made.audience.leave(upsetting)
                case "catch up":
                    for connection in made.connections[:3]:
                        made.audience.catch_up(connection)
                case "raise":
                    raise RuntimeError("upset")

        upsetting.upset = upset
        made.put(text(b"1"))
        if what == "raise":
            with pytest.raises(RuntimeError):
                made.audience.serve(lambda: False)
        assert made.audience.serve(lambda: False)
        made.send(text(b"2"))
        both = text(b"1") + text(b"2")
        if what == "close all":
            assert not made.audience.recipients or list(made.audience.recipients) == [upsetting]
            assert made.service.ended[:6] == made.connections[:6]
        elif what == "leave all":
            assert [made.unread(place) for place in range(6)] == [b""] * 6
        else:
            assert [made.unread(place) for place in range(6)] == [both] * 6
        if what == "enter":
            assert made.unread(7) == text(b"2")


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_of_several_rooms_gets_the_frames_of_each_whole(way: str) -> None:
    async with lines(way, 1) as made:
        connection = made.connections[0]
        rooms = [Audience(JSON, WAYS[way]()) for _ in range(3)]
        for number, room in enumerate(rooms):
            room.enter(Subscription(connection, str(number), made.service))
        frames = [text(b"%d" % number * 100_000) for number in range(3)]
        for room, frame in zip(rooms, frames, strict=True):
            room.put(frame, Kind.MESSAGE)
            assert room.serve(lambda: False)
        expected = b"".join(frames)
        assert await made.read(0, len(expected)) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_recipients_refuse_what_is_none(way: str) -> None:
    async with lines(way, 2) as made:
        recipients = made.audience.recipients
        with pytest.raises(ValueError, match="already"):
            recipients.add(made.connections[0])
        assert object() not in recipients
        made.audience.leave(made.connections[0])
        with pytest.raises(KeyError):
            recipients.remove(made.connections[0])
        recipients.pop()
        with pytest.raises(KeyError):
            recipients.pop()


def test_recipients_may_leave_while_they_are_listed() -> None:
    """The collector may run whenever something is made, and with it whatever was to be done at an end."""
    recipients, line = _native.Recipients(), _native.Line()
    for _ in range(100):
        peer = _native.Recipient()
        peer.outgoing = line
        recipients.add(peer)

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            while len(recipients):
                recipients.pop()

    before = gc.get_threshold()
    gc.disable()
    try:
        Cycle()
        gc.set_threshold(1)
        gc.enable()
        listed = iter(recipients)
    finally:
        gc.set_threshold(*before)
        gc.enable()
    assert [type(each) for each in listed] in ([], [_native.Recipient] * 100)
    assert not len(recipients)


def test_of_a_round_that_the_last_of_another_begins_nothing_is_kept() -> None:
    class Peer(_native.Recipient):
        def took(self, frames: Frames, sent: int) -> None:
            if frames is first:
                recipients.begin(second)

    recipients, peer = _native.Recipients(), Peer()
    peer.outgoing = _native.Line()
    peer.outgoing.clear_descriptor = -1
    recipients.add(peer)
    first: Frames = [(Kind.MESSAGE, b"1")]
    second: Frames = [(Kind.MESSAGE, b"2")]
    kept = [sys.getrefcount(each) for each in (first, second)]
    recipients.begin(first)
    assert recipients.serve(1) == 1
    assert recipients.serve(1) == 0
    assert [sys.getrefcount(each) for each in (first, second)] == kept


def test_the_extension_takes_nothing_else() -> None:
    recipients = _native.Recipients()
    for wrong in (object(), None, _native.Recipient()):
        with pytest.raises(TypeError):
            recipients.add(wrong)
    for wrong_frames in ([], [b"x"], [(Kind.MESSAGE, "x")], ((Kind.MESSAGE, b"x"),)):
        with pytest.raises(TypeError):
            recipients.begin(wrong_frames)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _native.Recipient().outgoing = object()  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        _ = _native.Recipient().outgoing
