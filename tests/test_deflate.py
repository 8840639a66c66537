"""permessage-deflate (RFC 7692) beneath every protocol: what is agreed upon, and what travels then."""

import json
import os
import random
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.wire import frames
from lockstep.wire.deflate import BrokenData, deflate, inflate
from lockstep.wire.encodings import JSON
from lockstep.wire.extensions import granted
from lockstep.wire.frames import CONTINUATION, MIN_DEFLATED_BYTES
from tests.support.api import SOME_ID, serving
from tests.support.followers import Follower
from tests.support.fuzzing import examples
from tests.support.processes import ServerProcess, running
from tests.support.sockets import command, create, watch_url, watching
from tests.support.ws_client import (
    CLOSE,
    DEFLATE,
    DEFLATED,
    PING,
    PONG,
    TEXT,
    Closed,
    WsClient,
    compressed,
    encode,
    inflated,
)

LIMIT = 16_384
GRANTED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

# --- what is agreed upon -------------------------------------------------------------------------

D = "permessage-deflate"
OFFERS = {
    # Understood.
    D: GRANTED,
    f"{D}; client_max_window_bits": GRANTED,
    **{f"{D}; client_max_window_bits={bits}": GRANTED for bits in range(8, 16)},
    f"{D}; server_no_context_takeover": GRANTED,
    f"{D}; client_no_context_takeover": GRANTED,
    f"{D}; server_max_window_bits=15": f"{GRANTED}; server_max_window_bits=15",
    f"{D}; client_max_window_bits; server_max_window_bits=15; server_no_context_takeover; "
    "client_no_context_takeover": f"{GRANTED}; server_max_window_bits=15",
    # White space and empty items.
    f"  {D}\t;client_max_window_bits = 10  ": GRANTED,
    f",, {D} ,": GRANTED,
    # Demanded, and more than a frame for all can do.
    **{f"{D}; server_max_window_bits={bits}": None for bits in range(8, 15)},
    # Values where none may be, and none where one must be.
    f"{D}; server_no_context_takeover=1": None,
    f"{D}; client_no_context_takeover=true": None,
    f'{D}; client_no_context_takeover=""': None,
    f"{D}; server_max_window_bits": None,
    # Bad values.
    **{
        f"{D}; client_max_window_bits={bits}": None
        for bits in ("7", "16", "0", "-1", "08", "015", "1e1", "+9", "9.0", "x", "150", "9_")
    },
    **{f"{D}; server_max_window_bits={bits}": None for bits in ("16", "015", "0xf", "1_5", "x", "+15")},
    # Quoted ones.
    f'{D}; client_max_window_bits="10"': None,
    f'{D}; server_max_window_bits="15"': None,
    # Parameters that nobody knows, or that come twice.
    f"{D}; x": None,
    f"{D}; server_max_window_bit=15": None,
    f"{D}; Client_Max_Window_Bits": None,
    f"{D}; client_max_window_bits; client_max_window_bits": None,
    f"{D}; client_max_window_bits=9; client_max_window_bits=10": None,
    f"{D}; server_no_context_takeover; server_no_context_takeover": None,
    f"{D}; server_max_window_bits=15; server_max_window_bits=15": None,
    # Other extensions.
    "": None,
    "x-webkit-deflate-frame": None,
    "permessage-bzip2": None,
    f"{D}2": None,
    f"x-{D}": None,
    "Permessage-Deflate": None,
    # The first that can be granted.
    f"{D}; server_max_window_bits=10, {D}; server_max_window_bits=15, {D}": (
        f"{GRANTED}; server_max_window_bits=15"
    ),
    f"{D}; server_max_window_bits=10; client_max_window_bits, {D}; client_max_window_bits": GRANTED,
    f"permessage-bzip2; {D}, {D}": GRANTED,
    f'mux; max-channels="4, {D}"; flow, {D}; client_max_window_bits': GRANTED,
    f'{D}; x="a\\", {D}; y=\\"", {D}': GRANTED,
    # Not inside of a quoted string, which only looks like an offer.
    f'x; y="a, {D}"': None,
    f'x; y="a\\", {D}"': None,
    f'x; y=";{D}"': None,
    # What breaks the grammar: nobody knows where an offer begins.
    f'x; y="a, {D}': None,
    f"{D} x, {D}": None,
    f"{D};": None,
    f"{D}; , {D}": None,
    f"; {D}": None,
    f"= , {D}": None,
    f"{D}; client_max_window_bits=, {D}": None,
    f"{D}; client_max_window_bits=9 9, {D}": None,
    f'x; y="a"b, {D}': None,
    f'x; y="a\x00", {D}': None,
    f"({D})": None,
    f"{D}/1": None,
    f"{D}, x@y": None,
    f"{D}\x0b": None,
    "permessage\xaddeflate": None,
}


@pytest.mark.parametrize(("offered", "answer"), OFFERS.items(), ids=range(len(OFFERS)))
def test_an_offer_is_granted_or_declined_and_never_misread(offered: str, answer: str | None) -> None:
    assert granted(offered) == answer


token = st.sampled_from([D, "x", "client_max_window_bits", "server_max_window_bits", "a-b", "9", "15"])
quoted = st.text(f'{D},;= \\"', max_size=20).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
space = st.sampled_from(["", "", " ", "\t "])


@examples(100)
@given(
    st.lists(
        st.tuples(token, st.lists(st.tuples(token, st.none() | token | quoted), max_size=3)), max_size=4
    ),
    st.data(),
)
def test_what_is_not_the_extension_is_passed_over_whatever_it_says(
    offers: list[tuple[str, list[tuple[str, str | None]]]], data: st.DataObject
) -> None:
    """Behind other extensions, however they are written, the one that can be granted is found."""
    written = []
    for name, parameters in offers:
        parts = [f"x-{name}"] + [
            key if value is None else f"{key}{data.draw(space)}={data.draw(space)}{value}"
            for key, value in parameters
        ]
        written.append(f"{data.draw(space)};{data.draw(space)}".join(parts))
    others = f"{data.draw(space)},{data.draw(space)}".join(written)
    assert granted(others) is None
    assert granted(f"{others}, {D}") == GRANTED


def test_a_header_of_any_length_is_read_in_a_time_that_its_length_bounds() -> None:
    """By steps of a regular expression that goes back, these would take minutes."""
    for part in (" ", "\t;", "a", "a;", "a=", '"', "\\", f"{D} ", 'a="', "a=a ;", ","):
        assert granted(f"x; y={part * 60_000}") in (None, GRANTED)
        assert granted(part * 60_000) in (None, GRANTED)


async def test_what_is_granted_stands_in_the_answer_and_else_nothing(server_process: ServerProcess) -> None:
    for offered, answer in (
        (DEFLATE["Sec-WebSocket-Extensions"], GRANTED),
        (f"{D}; server_max_window_bits=9", None),
        (f'{D}; x="', None),
        ("=;=,@", None),
    ):
        headers = {"Sec-WebSocket-Extensions": offered}
        async with watching(server_process, SOME_ID, headers=headers) as [client]:
            assert client.extensions == answer
            await client.fence()
    async with watching(server_process, SOME_ID) as [client]:
        assert client.extensions is None


async def test_offers_in_several_header_lines_are_one_list(server_process: ServerProcess) -> None:
    lines = (
        f"{D}; server_max_window_bits=9\r\nSec-WebSocket-Extensions: x; y=1\r\nsec-websocket-extensions: {D}"
    )
    async with watching(server_process, SOME_ID, headers={"Sec-WebSocket-Extensions": lines}) as [client]:
        assert client.extensions == GRANTED


@pytest.mark.parametrize("subprotocol", ["lockstep.v1.json", "lockstep.v2.json", "lockstep.v2.msgpack"])
async def test_each_protocol_can_be_compressed(server_process: ServerProcess, subprotocol: str) -> None:
    headers = DEFLATE | {"Sec-WebSocket-Protocol": subprotocol}
    async with await WsClient.connect(watch_url(server_process, SOME_ID), headers=headers) as client:
        assert client.extensions == GRANTED


REFUSED = {
    "no key": ({"Sec-WebSocket-Key": ""}, 400),
    "no version": ({"Sec-WebSocket-Version": "8"}, 426),
    "no upgrade": ({"Upgrade": "h2c"}, 426),
    "no connection": ({"Connection": "close"}, 400),
    "another origin": ({"Origin": "https://elsewhere.example"}, 403),
    "another protocol": ({"Sec-WebSocket-Protocol": "lockstep.v9.json"}, 400),
}


@pytest.mark.parametrize(("headers", "status"), REFUSED.values(), ids=REFUSED)
async def test_a_handshake_that_is_refused_agrees_upon_nothing(
    server_process: ServerProcess, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(ConnectionRefusedError, match=str(status)) as refused:
        await WsClient.connect(watch_url(server_process, SOME_ID), headers=DEFLATE | headers)
    assert "sec-websocket-extensions" not in refused.value.args[1].lower()


async def test_nobody_is_granted_it_where_it_is_switched_off() -> None:
    with running(ServerProcess("--compression=no")) as server:
        async with watching(server, SOME_ID, headers=DEFLATE) as [client]:
            assert client.extensions is None
            await client.send_raw(encode(TEXT, compressed(b'{"type":"PING"}'), rsv=DEFLATED))
            assert await client.recv() == Closed(1002, "Reserved bits set")


# --- what is sent --------------------------------------------------------------------------------


def payload_of(frame: bytes) -> bytes:
    return frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 :]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 1023, 1024, 1025, 65_535, 65_536, 70_000, 300_000])
def test_what_is_long_is_compressed_and_the_rest_stays_as_it_is(size: int) -> None:
    message = json.dumps({"x": "grüße " * size})[:size].encode()
    plain, frame = JSON.encode(message), JSON.deflated.encode(message)
    if size < MIN_DEFLATED_BYTES:
        assert frame == plain
        return
    assert frame[0] == 0x80 | DEFLATED | TEXT
    assert len(frame) < len(plain)
    assert inflated(payload_of(frame)) == message
    assert not payload_of(frame).endswith(b"\x00\x00\xff\xff")


@pytest.mark.parametrize("size", [1024, 5000, 65_535, 65_536])
def test_what_compression_does_not_make_smaller_stays_as_it_is(size: int) -> None:
    noise = random.Random(size).randbytes(size)
    assert JSON.deflated.encode(noise) == JSON.encode(noise)


def test_an_encoding_has_one_compressed_twin() -> None:
    """Rooms have an audience for each object, and encode once for each."""
    assert JSON.deflated is JSON.deflated
    assert (JSON.is_deflated, JSON.deflated.is_deflated) == (False, True)


async def test_a_change_is_compressed_once_for_all_of_a_room_and_only_where_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(data: bytes | memoryview) -> bytes:
        calls.append(len(data))
        return deflate(data)

    monkeypatch.setattr(frames, "deflate", counted)
    async with serving() as api, AsyncExitStack() as stack:
        session_id = (await api.create(seats=50))["session_id"]
        url = f"{api.url.replace('http', 'ws')}/ws?sessionId={session_id}"

        async def client(headers: dict[str, str]) -> WsClient:
            client = await stack.enter_async_context(await WsClient.connect(url, headers=headers))
            assert (await client.recv())["type"] == "CONNECTED"
            return client

        plain = [await client({}) for _ in range(3)]
        await api.done(session_id, "start")
        heard = [await each.recv() for each in plain]
        assert calls == []
        deflated = [await client(DEFLATE) for _ in range(3)]
        await api.done(session_id, "switch")
        heard = [await each.recv() for each in plain + deflated]
        assert heard == heard[:1] * 6
        assert len(calls) == 1
        assert [each.deflated for each in plain + deflated] == [0] * 3 + [1] * 3


async def test_clients_with_and_without_it_hear_the_same(server_process: ServerProcess) -> None:
    state = await create(server_process, seats=50)
    session_id = state["session_id"]
    async with (
        watching(server_process, session_id, headers=DEFLATE) as [deflated],
        watching(server_process, session_id) as [plain],
        Follower(server_process.ws_url, DEFLATE) as follower,
    ):
        view = await follower.follow(session_id)
        assert follower.client.deflated == 1, "the state, which is long"
        for name in ("start", "switch", "switch", "pause", "resume"):
            state = await command(server_process, session_id, name)
            assert await deflated.recv() == await plain.recv()
        assert (deflated.deflated, plain.deflated) == (5, 0)
        await follower.until(lambda: view.state is not None and view.state["version"] == state["version"])
        # Changes are short.
        assert (view.told, follower.client.deflated) == (["state", *["UPDATE"] * 5], 1)
        for client in (deflated, plain):
            await client.send({"type": "RECONNECT"})
        answers = [await client.recv() for client in (deflated, plain)]
        assert answers[0]["state"] == answers[1]["state"] == view.state
        await deflated.fence()


async def test_a_message_of_the_application_is_compressed_too(server_process: ServerProcess) -> None:
    session_id = (await create(server_process))["session_id"]
    said = {"type": "NOTE", "text": "x" * 50_000}
    async with (
        watching(server_process, session_id, headers=DEFLATE) as [client],
        Follower(server_process.ws_url, DEFLATE) as follower,
    ):
        await follower.follow(session_id)
        assert (await server_process.call("POST", f"/v1/sessions/{session_id}/messages", said)).status == 202
        assert await client.recv() == said
        await follower.until(lambda: follower.others)
        assert follower.others[-1]["message"] == said
        # The follower has had a state before.
        assert (client.deflated, follower.client.deflated) == (1, 2)


async def test_a_slow_client_gets_whole_compressed_states_in_order_and_the_latest_last() -> None:
    async with serving(ping_interval_s=300, ping_timeout_s=200) as api:
        session_id = (await api.running(seats=200))["session_id"]
        url = f"{api.url.replace('http', 'ws')}/ws?sessionId={session_id}"
        async with await WsClient.connect(url, headers=DEFLATE, rcvbuf=4096, limit=4096) as client:
            assert (await client.recv())["type"] == "CONNECTED"
            (connection,) = api.server.clients.protocols["lockstep.v1.json"].connections
            connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for number in range(40):
                state = await api.done(session_id, "annotate", {"metadata": {"number": number}})
            assert not connection.outgoing.is_empty
            seen: list[int] = []
            while not seen or seen[-1] < state["version"]:
                message = await client.recv()
                assert len(message["state"]["participants"]) == 200
                seen.append(message["state"]["version"])
            assert seen == sorted(set(seen))
            assert client.deflated == len(seen) < 40
            await client.fence()


async def test_pongs_and_closes_are_never_compressed(server_process: ServerProcess) -> None:
    async with watching(server_process, SOME_ID, headers=DEFLATE) as [client]:
        await client.send_raw(encode(PING, b"x" * 125) + encode(CLOSE, b"\x03\xe8" + b"x" * 123))
        assert await client.recv_frame() == (PONG, b"x" * 125)
        assert (await client.recv_frame())[0] == CLOSE
        assert client.deflated == 0


# --- what is received ----------------------------------------------------------------------------


@examples(50)
@given(st.binary(max_size=300) | st.binary(max_size=30).map(lambda data: data * 300))
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("window_bits", [9, 15])
def test_whatever_is_deflated_is_inflated(level: int, window_bits: int, data: bytes) -> None:
    assert inflate(compressed(data, level, window_bits), LIMIT) == data
    assert inflate(deflate(data), LIMIT) == data
    assert inflated(deflate(data)) == data


def last_block(data: bytes) -> bytes:
    """Data whose only block says that it is the last."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def flushed(*parts: bytes) -> bytes:
    """Each part in a block of its own, which refers to those before it."""
    compressor = zlib.compressobj(wbits=-15)
    data = b"".join(compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) for part in parts)
    return data.removesuffix(b"\x00\x00\xff\xff")


HELLO = b"Hello, hello, hello!"
VALID = {
    # The examples of RFC 7692 7.2.3.
    "one block": (bytes.fromhex("f248cdc9c90700"), b"Hello"),
    "without compression": (bytes.fromhex("000500faff48656c6c6f00"), b"Hello"),
    "a last block": (bytes.fromhex("f348cdc9c9070000"), b"Hello"),
    "two blocks": (bytes.fromhex("f248050000 00ffffcac9c90700"), b"Hello"),
    "empty": (b"\x00", b""),
    "empty, by fixed codes": (b"\x02\x00", b""),
    "a last block, and nothing behind it": (last_block(HELLO), HELLO),
    "last blocks": (last_block(HELLO) * 5 + b"\x00", HELLO * 5),
    "a last block, then others": (last_block(HELLO) + compressed(HELLO), HELLO * 2),
    "blocks": (flushed(HELLO, HELLO, b"", HELLO), HELLO * 3),
    "an empty last block": (compressed(HELLO) + b"\x00\x00\xff\xff\x01", HELLO),
    "the limit": (compressed(bytes(LIMIT)), bytes(LIMIT)),
    "the limit, in two last blocks": (last_block(bytes(LIMIT // 2)) * 2, bytes(LIMIT)),
}


@pytest.mark.parametrize(("payload", "data"), VALID.values(), ids=VALID)
def test_data_may_be_any_blocks(payload: bytes, data: bytes) -> None:
    assert inflate(payload, LIMIT) == data


def test_a_block_may_refer_to_what_was_before_a_last_one() -> None:
    compressor = zlib.compressobj(wbits=-15, zdict=HELLO)
    referring = compressor.compress(HELLO) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert inflate(last_block(HELLO) + referring[:-4], LIMIT) == HELLO * 2


BROKEN = {
    "nothing at all": b"",
    "cut": compressed(HELLO * 20)[:-2],
    "cut in a block without compression": compressed(os.urandom(100), level=0)[:-50],
    "a kind of block that there is not": b"\x07",
    "a reference to before the beginning": bytes.fromhex("0223"),
    "noise": b"\xff" * 100,
    "with its tail": compressed(HELLO) + b"\x00\x00",
    "zlib's header": zlib.compress(HELLO),
    "gzip's header": zlib.compressobj(wbits=31).flush(),
    "last blocks without end": b"\x03\x00" * 8000,
    "noise behind a last block": last_block(HELLO) + b"\xff\xff",
}


@pytest.mark.parametrize("payload", BROKEN.values(), ids=BROKEN)
def test_broken_data_is_refused(payload: bytes) -> None:
    with pytest.raises(BrokenData):
        inflate(payload, LIMIT)


@pytest.mark.parametrize("size", range(1, len(compressed(HELLO * 20)) + 1))
def test_data_that_is_cut_gives_no_message_that_was_not_sent(size: int) -> None:
    """Only where a cut is the end of a block does it give something, and then the beginning."""
    message = HELLO * 20
    with suppress(BrokenData):
        assert message.startswith(inflate(compressed(message)[:size], LIMIT))


@pytest.mark.parametrize("limit", [LIMIT, 1_000_000])
@pytest.mark.parametrize(
    "bomb", [compressed(bytes(30_000_000), 9), last_block(bytes(3_000_000)) * 10], ids=["one", "last blocks"]
)
def test_a_bomb_costs_the_bytes_of_the_limit(limit: int, bomb: bytes) -> None:
    assert len(bomb) < 35_000
    tracemalloc.start()
    try:
        data = inflate(bomb, limit)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) == limit + 1
    # For a moment its blocks and what they are joined to.
    assert peak_bytes < 2 * limit + len(bomb) + 200_000


async def says(server: ServerProcess, data: bytes) -> Any:
    async with watching(server, SOME_ID, headers=DEFLATE) as [client]:
        await client.send_raw(data)
        return await client.recv()


LONG_PING = json.dumps({"type": "PING", "id": "x" * 3000}).encode()


async def test_a_compressed_message_is_answered_like_any_other(server_process: ServerProcess) -> None:
    short = b'{"type":"PING","id":7}'
    payload = compressed(LONG_PING)
    for data, id_ in (
        (encode(TEXT, compressed(short), rsv=DEFLATED), 7),
        (encode(TEXT, short), 7),
        (encode(TEXT, payload, rsv=DEFLATED), "x" * 3000),
        (
            encode(TEXT, payload[:5], fin=False, rsv=DEFLATED)
            + encode(PING, b"")
            + encode(CONTINUATION, b"", fin=False)
            + encode(CONTINUATION, payload[5:]),
            "x" * 3000,
        ),
    ):
        async with watching(server_process, SOME_ID, headers=DEFLATE) as [client]:
            await client.send_raw(data)
            while (frame := await client.recv_frame())[0] != TEXT:
                pass
            assert json.loads(frame[1])["id"] == id_


BREAKING = {
    "over the limit": (encode(TEXT, compressed(bytes(LIMIT + 1)), rsv=DEFLATED), 1009),
    "a bomb": (encode(TEXT, compressed(bytes(16_000_000), 9), rsv=DEFLATED), 1009),
    "noise over the limit": (encode(TEXT, os.urandom(LIMIT + 1), rsv=DEFLATED), 1009),
    "no UTF-8": (encode(TEXT, compressed(b"\xff"), rsv=DEFLATED), 1007),
    "cut": (encode(TEXT, compressed(LONG_PING)[:-3], rsv=DEFLATED), 1007),
    "nothing": (encode(TEXT, b"", rsv=DEFLATED), 1007),
    "begun in the second frame": (
        encode(TEXT, b"{", fin=False) + encode(CONTINUATION, compressed(b"}"), rsv=DEFLATED),
        1002,
    ),
    "said of both frames": (
        encode(TEXT, LONG_PING[:5], fin=False, rsv=DEFLATED)
        + encode(CONTINUATION, LONG_PING[5:], rsv=DEFLATED),
        1002,
    ),
    "a ping": (encode(PING, b"", rsv=DEFLATED), 1002),
    "a pong": (encode(PONG, b"", rsv=DEFLATED), 1002),
    "a close": (encode(CLOSE, b"", rsv=DEFLATED), 1002),
    "RSV2, too": (encode(TEXT, compressed(LONG_PING), rsv=DEFLATED | 0x20), 1002),
    "RSV3, too": (encode(TEXT, compressed(LONG_PING), rsv=DEFLATED | 0x10), 1002),
}


@pytest.mark.parametrize(("data", "code"), BREAKING.values(), ids=BREAKING)
async def test_what_breaks_the_extension_ends_the_connection(
    server_process: ServerProcess, data: bytes, code: int
) -> None:
    closed = await says(server_process, data)
    assert isinstance(closed, Closed)
    assert closed.code == code


@examples(300)
@given(
    st.sampled_from([HELLO * 20, LONG_PING, b'{"type":"PING"}', os.urandom(50)]),
    st.sampled_from([0, 1, 9]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3),
    st.integers(0, 400),
)
def test_data_that_is_spoilt_is_refused_or_gives_some_message_within_the_limit(
    data: bytes, level: int, spoilt: list[tuple[int, int]], size: int
) -> None:
    payload = bytearray(compressed(data, level))
    for place, byte in spoilt:
        payload[place % len(payload)] = byte
    with suppress(BrokenData):
        assert len(inflate(bytes(payload[:size]), LIMIT)) <= LIMIT + 1


async def test_bombs_of_many_clients_leave_nothing_behind(server_process: ServerProcess) -> None:
    bomb = compressed(bytes(15_000_000), 9)
    assert len(bomb) < LIMIT
    session_id = (await create(server_process))["session_id"]
    async with watching(server_process, session_id) as [bystander]:
        before = server_process.rss_bytes()
        async with watching(server_process, *[SOME_ID] * 200, headers=DEFLATE) as clients:
            for client in clients:
                await client.send_raw(encode(TEXT, bomb, rsv=DEFLATED))
            for client in clients:
                assert await client.recv() == Closed(1009, f"Message over {LIMIT} bytes")
            # Whatever one of them were inflated to would be 15 MB.
            assert server_process.rss_bytes() - before < 10_000_000
        await bystander.fence()


# --- what it costs -------------------------------------------------------------------------------

CROWD = 1000


@asynccontextmanager
async def crowd(server: ServerProcess, session_id: str, **how: Any) -> AsyncIterator[list[WsClient]]:
    async with watching(server, *[session_id] * CROWD, **how) as clients:
        yield clients


@pytest.fixture
def roomy_server() -> Iterator[ServerProcess]:
    with running(ServerProcess("--max-connections-per-session=0")) as server:
        yield server


async def bytes_of_crowd(server: ServerProcess, headers: dict[str, str]) -> int:
    """What a thousand clients cost that have all been sent a big state, and have all said something."""
    session_id = (await create(server, seats=100))["session_id"]
    async with watching(server, session_id, headers=headers) as [client]:
        await command(server, session_id, "start")
        await client.recv()
    before = server.rss_bytes()
    async with crowd(server, session_id, headers=headers) as clients:
        await command(server, session_id, "pause")
        for client in clients:
            assert (await client.recv())["type"] == "STATE_UPDATE"
            if client.is_deflated:
                assert client.deflated == 1
                await client.send_raw(encode(TEXT, compressed(LONG_PING), rsv=DEFLATED))
            else:
                await client.send_raw(encode(TEXT, LONG_PING))
            assert (await client.recv())["type"] == "PONG"
        return server.rss_bytes() - before


@pytest.mark.long
async def test_a_thousand_clients_with_compression_cost_no_memory_for_windows(
    roomy_server: ServerProcess,
) -> None:
    """A window and a compressor are 300 KB each, or 40 KB for who only inflates."""
    with_it = await bytes_of_crowd(roomy_server, DEFLATE)
    with running(ServerProcess("--max-connections-per-session=0")) as another:
        without = await bytes_of_crowd(another, {})
    print(
        f"1,000 clients: {with_it / CROWD:,.0f} bytes each with compression, {without / CROWD:,.0f} without"
    )
    assert with_it < without + CROWD * 500
