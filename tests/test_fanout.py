"""Batches to real sockets: in C and without, whole, in order, and whatever becomes of a client meanwhile."""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from handlers import _native, fanout, native
from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from lockstep.errors import SESSION_DELETED
from lockstep.live.audience import one_by_one
from lockstep.live.peers import Batch, Kind
from lockstep.metrics import Metrics
from lockstep.wire.encodings import JSON
from lockstep.wire.frames import TEXT, encode_frame

Deliver = Callable[[Sequence[Connection], Batch], None]
WAYS = {"in C": fanout.deliver, "one by one": one_by_one}


class Service:
    heartbeat = Heartbeat(5.0, 4.0)
    max_message_bytes = 1024
    message_rate = 0
    encoding = JSON

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ended: list[Connection] = []

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        raise AssertionError("nobody says anything here")

    def on_end(self, connection: Connection) -> None:
        self.ended.append(connection)


class Lines:
    """Connections, and the other ends of their lines."""

    def __init__(self, count: int) -> None:
        self.service = Service()
        self.theirs: list[socket.socket] = []
        self.connections: list[Connection] = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ours.setblocking(False)
            theirs.setblocking(False)
            self.connections.append(Connection(ours, self.service, self.service, None))
            self.theirs.append(theirs)
            self.connections[-1].start(b"")

    async def read(self, place: int, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            while len(data) < size:
                data += await asyncio.get_running_loop().sock_recv(self.theirs[place], size - len(data))
        return data


@asynccontextmanager
async def lines(count: int) -> AsyncIterator[Lines]:
    made = Lines(count)
    try:
        yield made
    finally:
        for connection, theirs in zip(made.connections, made.theirs, strict=True):
            connection.abort()
            theirs.close()


def batch_of(*payloads: bytes, kind: Kind = Kind.MESSAGE) -> Batch:
    return Batch([(kind, encode_frame(TEXT, payload)) for payload in payloads])


def test_the_module_in_c_is_in_use_where_it_was_built() -> None:
    assert (native.send_all is _native.send_all) == (os.environ.get("LOCKSTEP_TWIN") != "1")
    assert _native.send_all([-1], b"x") == [(0, -1)]


@pytest.mark.parametrize("way", WAYS)
async def test_everybody_gets_every_batch_whole_and_in_order(way: str) -> None:
    batches = [batch_of(b"%d" % number, b"x" * 300) for number in range(20)]
    async with lines(50) as made:
        for batch in batches:
            WAYS[way](made.connections, batch)
            await asyncio.sleep(0)
        expected = b"".join(batch.data for batch in batches)
        for place in range(50):
            assert await made.read(place, len(expected)) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_socket_does_not_take_follows_and_the_others_do_not_wait(way: str) -> None:
    large, small = batch_of(b"a" * 1_000_000), batch_of(b"b", b"c" * 100)
    async with lines(3) as made:
        WAYS[way](made.connections, large)
        WAYS[way](made.connections, small)
        expected = large.data + small.data
        for place in (2, 0):  # the one between does not read
            assert await made.read(place, len(expected)) == expected
        assert await made.read(1, len(expected)) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_is_gone_does_no_harm(way: str) -> None:
    async with lines(4) as made:
        made.theirs[1].close()
        made.connections[2].close(SESSION_DELETED)
        for number in range(3):
            WAYS[way](made.connections, batch_of(b"%d" % number))
        expected = b"".join(batch_of(b"%d" % number).data for number in range(3))
        for place in (0, 3):
            assert await made.read(place, len(expected)) == expected
        assert made.service.ended == [made.connections[1]]
        assert (await made.read(2, 4))[:1] == b"\x88", "nothing came behind the close frame"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(10))
async def test_whatever_is_mixed_arrives_as_it_was_sent(way: str, seed: int) -> None:
    chance = random.Random(seed)
    async with lines(5) as made:
        expected = [b""] * 5
        for _ in range(100):
            if chance.random() < 0.7:
                batch = batch_of(*(bytes(chance.randrange(5000)) for _ in range(chance.randrange(1, 4))))
                WAYS[way](made.connections, batch)
                expected = [each + batch.data for each in expected]
            else:
                place = chance.randrange(5)
                frame = encode_frame(TEXT, bytes(chance.randrange(100)))
                made.connections[place].send(frame)
                expected[place] += frame
            await asyncio.sleep(0)
        got = await asyncio.gather(*(made.read(place, len(expected[place])) for place in range(5)))
        assert got == expected
