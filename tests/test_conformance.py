"""RFC 6455 against an echo on the server's own connections; what needs no Autobahn of `make conformance`."""

import asyncio
import os
import struct

import pytest

from tests.support.echo_server import echoing
from tests.support.ws_client import BINARY, CLOSE, PING, PONG, TEXT, WsClient, encode

CONTINUATION = 0x0
MIB = 1_048_576
NOISE = os.urandom(1000)

Frame = tuple[int, bytes]


def close(code: int, reason: bytes = b"") -> bytes:
    return encode(CLOSE, struct.pack("!H", code) + reason)


async def told(sent: bytes, pieces: int = 1) -> list[Frame]:
    """All that the echo says to these bytes until the connection ends; a close is put behind them."""
    data = sent + close(1000)
    size = -(-len(data) // pieces)
    async with echoing() as url, await WsClient.connect(url, limit=2**22) as client, asyncio.timeout(10):

        async def send() -> None:
            for start in range(0, len(data), size):
                await client.send_raw(data[start : start + size])
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        frames = []
        try:
            while True:
                frames.append(await client.recv_frame())
        except asyncio.IncompleteReadError:
            # Half-closed; the rest is taken, and the line ends as soon as we do.
            client.writer.write_eof()
            await asyncio.gather(sending, return_exceptions=True)
        return frames


def closed(code: int | None) -> Frame:
    return CLOSE, b"" if code is None else struct.pack("!H", code)


def codes(frames: list[Frame]) -> list[Frame]:
    """Without the reasons of closes, which nobody prescribes."""
    return [(opcode, payload[:2] if opcode == CLOSE else payload) for opcode, payload in frames]


async def says(sent: bytes, *expected: Frame, pieces: int = 1) -> None:
    frames = codes(await told(sent, pieces))
    assert [(opcode, len(payload)) for opcode, payload in frames] == [(o, len(p)) for o, p in expected]
    assert frames == list(expected)


# --- 1, 9: messages of all lengths ---------------------------------------------------------------

LENGTHS = [0, 1, 125, 126, 127, 128, 65_535, 65_536, 2 * MIB]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", LENGTHS)
async def test_a_message_of_any_length_is_read(opcode: int, length: int) -> None:
    payload = b"*" * length if opcode == TEXT else os.urandom(length)
    await says(encode(opcode, payload), (opcode, payload), closed(1000))


@pytest.mark.parametrize("pieces", [2, 7, 66])
async def test_a_message_may_come_in_any_pieces(pieces: int) -> None:
    payload = os.urandom(70_000)
    await says(encode(BINARY, payload), (BINARY, payload), closed(1000), pieces=pieces)


@pytest.mark.parametrize("size", [64, 1000, 65_536])
async def test_a_big_message_may_come_in_fragments_of_any_size(size: int) -> None:
    payload = os.urandom(100_000)
    starts = range(0, len(payload), size)
    data = b"".join(
        encode(0 if at else BINARY, payload[at : at + size], fin=at == starts[-1]) for at in starts
    )
    await says(data, (BINARY, payload), closed(1000))


# --- 2: pings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"hello", b"\x00\xff\xfe\xfd", bytes(125)], ids=len)
async def test_a_ping_is_answered(payload: bytes) -> None:
    await says(encode(PING, payload), (PONG, payload), closed(1000))
    await says(encode(PING, payload), (PONG, payload), closed(1000), pieces=200)


async def test_a_ping_over_125_bytes_is_a_breach() -> None:
    await says(encode(PING, bytes(126)), closed(1002))


async def test_pongs_that_nobody_asked_for_are_ignored() -> None:
    await says(encode(PONG, b"") + encode(PONG, b"x") + encode(PING, b"y"), (PONG, b"y"), closed(1000))


async def test_pings_are_answered_in_their_order() -> None:
    pings = [str(number).encode() for number in range(10)]
    data = b"".join(encode(PING, each) for each in pings)
    await says(data, *((PONG, each) for each in pings), closed(1000))
    await says(data, *((PONG, each) for each in pings), closed(1000), pieces=len(data))


# --- 3, 4: reserved bits and opcodes -------------------------------------------------------------


@pytest.mark.parametrize("rsv", [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
async def test_a_reserved_bit_fails_the_connection(rsv: int, opcode: int) -> None:
    await says(
        encode(TEXT, b"1") + encode(opcode, b"", rsv=rsv) + encode(PING, b""), (TEXT, b"1"), closed(1002)
    )


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("payload", [b"", b"payload"])
async def test_a_reserved_opcode_fails_the_connection(opcode: int, payload: bytes) -> None:
    await says(encode(TEXT, b"1") + encode(opcode, payload) + encode(PING, b""), (TEXT, b"1"), closed(1002))


async def test_an_unmasked_frame_fails_the_connection() -> None:
    await says(encode(TEXT, b"1", masked=False), closed(1002))


@pytest.mark.parametrize(
    "header", [b"\x82\xfe\x00\x05", b"\x82\xff" + bytes(7) + b"\x05", b"\x82\xff\x80" + bytes(7)]
)
async def test_a_length_in_a_wrong_form_fails_the_connection(header: bytes) -> None:
    await says(header + bytes(4) + b"short", closed(1002))


# --- 5: fragments --------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
async def test_a_fragmented_control_frame_is_a_breach(opcode: int) -> None:
    await says(encode(opcode, b"", fin=False) + encode(CONTINUATION, b""), closed(1002))


FIRST, MIDDLE, LAST = encode(TEXT, b"a", fin=False), encode(0, b"b", fin=False), encode(0, b"c")


@pytest.mark.parametrize("pieces", [1, 1000])
async def test_fragments_are_one_message(pieces: int) -> None:
    await says(FIRST + LAST, (TEXT, b"ac"), closed(1000), pieces=pieces)
    await says(
        FIRST + MIDDLE * 3 + LAST + FIRST + LAST, (TEXT, b"abbbc"), (TEXT, b"ac"), closed(1000), pieces=pieces
    )
    empty = encode(BINARY, b"", fin=False) + encode(0, b"", fin=False) + encode(0, b"")
    await says(empty, (BINARY, b""), closed(1000), pieces=pieces)


@pytest.mark.parametrize("pieces", [1, 1000])
async def test_control_frames_may_stand_between_fragments(pieces: int) -> None:
    data = FIRST + encode(PING, b"1") + MIDDLE + encode(PONG, b"!") + encode(PING, b"2") + LAST
    await says(data, (PONG, b"1"), (PONG, b"2"), (TEXT, b"abc"), closed(1000), pieces=pieces)


async def test_a_close_may_stand_between_fragments() -> None:
    await says(FIRST + close(1001) + LAST, closed(1001))


@pytest.mark.parametrize(
    "data",
    [
        MIDDLE,
        LAST,
        LAST + encode(TEXT, b"1"),
        FIRST + FIRST,
        FIRST + encode(TEXT, b"1"),
        FIRST + encode(BINARY, b""),
    ],
    ids=["middle", "last", "last, then one", "first twice", "whole in between", "binary in between"],
)
async def test_fragments_out_of_order_are_a_breach(data: bytes) -> None:
    await says(data, closed(1002))


# --- 6: UTF-8 ------------------------------------------------------------------------------------

VALID = [
    "κόσμε",
    "\x00",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
    "\ufdd0\ufffe\U0001fffe",
    "Hello-µ@ßöäüàá-UTF-8!!",
]
INVALID = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",  # a surrogate
    b"\xf4\x90\x80\x80",  # above U+10FFFF
    b"\xf8\x88\x80\x80\x80",  # five bytes
    b"\xfc\x84\x80\x80\x80\x80",  # six
    b"\xf7\xbf\xbf\xbf",
    b"\x80",  # a continuation alone
    b"\xbf\x80\xbf",
    b"\xc0 ",
    b"\xe0 ",
    b"\xf0 ",
    b"\xc0",
    b"\xe0\x80",
    b"\xf0\x80\x80",
    b"\xdf",  # what ends too early
    b"\xef\xbf",
    b"\xfe",
    b"\xff",
    b"\xc0\xaf",  # longer than need be
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xed\xaf\xbf\xed\xbf\xbf",  # a pair of surrogates
]


@pytest.mark.parametrize("text", VALID, ids=ascii)
async def test_text_is_taken_however_it_is_cut(text: str) -> None:
    payload = text.encode()
    single = b"".join(
        encode(0 if at else TEXT, payload[at : at + 1], fin=False) for at in range(len(payload))
    )
    data = encode(TEXT, payload) + single + encode(0, b"")
    await says(data, (TEXT, payload), (TEXT, payload), closed(1000))
    await says(data, (TEXT, payload), (TEXT, payload), closed(1000), pieces=len(data))


@pytest.mark.parametrize("payload", INVALID, ids=bytes.hex)
async def test_text_that_is_no_utf8_fails_the_connection(payload: bytes) -> None:
    await says(encode(TEXT, payload), closed(1007))
    await says(encode(TEXT, b"", fin=False) + encode(0, payload), closed(1007))


async def test_broken_text_fails_the_connection_before_the_rest_has_come() -> None:
    """6.4: in the midst of a message, and in the midst of a frame."""
    broken = "κόσμε".encode() + b"\xf4\x90"
    for data in (encode(TEXT, broken, fin=False), encode(TEXT, broken + bytes(100))[: 2 + 4 + len(broken)]):
        async with echoing() as url, await WsClient.connect(url) as client, asyncio.timeout(10):
            await client.send_raw(data)
            assert codes([await client.recv_frame()]) == [closed(1007)]


# --- 7: closing ----------------------------------------------------------------------------------

LEGAL = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
ILLEGAL = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]


@pytest.mark.parametrize("code", LEGAL)
async def test_a_legal_code_comes_back(code: int) -> None:
    await says(close(code) + encode(PING, b""), closed(code))
    await says(close(code, b"*" * 123), closed(code))


@pytest.mark.parametrize("code", ILLEGAL)
async def test_an_illegal_code_is_a_breach(code: int) -> None:
    await says(close(code), closed(1002))
    await says(close(code, b"reason"), closed(1002))


async def test_a_close_without_a_code_comes_back_as_it_is() -> None:
    await says(encode(CLOSE, b""), closed(None))


async def test_a_close_of_one_byte_is_a_breach() -> None:
    await says(encode(CLOSE, b"\x03"), closed(1002))


async def test_a_close_of_126_bytes_is_a_breach() -> None:
    await says(encode(CLOSE, struct.pack("!H", 1000) + b"*" * 124), closed(1002))


async def test_a_reason_that_is_no_utf8_is_a_breach() -> None:
    await says(close(1000, b"\xce\xba\xed\xa0\x80"), closed(1007))


@pytest.mark.parametrize(
    "after",
    [encode(PING, b""), encode(TEXT, b"x"), close(1001), encode(BINARY, NOISE * 300)],
    ids=["ping", "text", "close", "a lot"],
)
async def test_what_follows_a_close_is_ignored(after: bytes) -> None:
    await says(encode(TEXT, b"before") + close(1000) + after, (TEXT, b"before"), closed(1000))


# --- 10, and limits ------------------------------------------------------------------------------


async def test_text_of_64_kib_may_come_in_odd_fragments() -> None:
    payload = b"*" * 65_536
    starts = range(0, len(payload), 1300)
    data = b"".join(encode(0 if at else TEXT, payload[at : at + 1300], fin=at == starts[-1]) for at in starts)
    await says(data, (TEXT, payload), closed(1000))


async def test_a_message_over_the_limit_fails_the_connection() -> None:
    async with (
        echoing(max_message_bytes=100) as url,
        await WsClient.connect(url) as client,
        asyncio.timeout(10),
    ):
        await client.send_raw(encode(TEXT, b"*" * 100) + encode(TEXT, b"*" * 101))
        assert await client.recv_frame() == (TEXT, b"*" * 100)
        assert codes([await client.recv_frame()]) == [closed(1009)]
        assert await client.reader.read() == b""
