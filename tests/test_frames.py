"""RFC 6455 framing without a socket: whatever the bytes, and however they are cut."""

import os
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.wire.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameError,
    FrameReader,
    decode_close,
    encode_close,
    encode_frame,
)
from tests.support.ws_client import DEFLATED, compressed, encode

LIMIT = 1000
LONGEST_HEADER = 14

Message = tuple[int, bytes]
texts = st.text("a\x00é大😀", max_size=60)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def held_bytes(reader: FrameReader) -> int:
    """How much a reader keeps; so that a change of its parts does not make the question pass in vain."""
    parts = [getattr(reader, name) for name in FrameReader.__slots__]
    return sum(len(part) for part in parts if isinstance(part, bytes | bytearray))


def read_all(
    data: bytes, cuts: list[int] | None = None, limit: int = LIMIT, *, inflates: bool = False
) -> tuple[list[Message], int | None]:
    """The messages in `data`, cut at these places, and the close code if it breaks the protocol."""
    reader = FrameReader(limit, inflates=inflates)
    messages: list[Message] = []
    places = sorted(min(cut, len(data)) for cut in cuts or [])
    try:
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            for message in reader.feed(data[start:end]):
                messages.append(message)
            # Between two fragments a control frame may wait for its last byte.
            assert held_bytes(reader) <= limit + LONGEST_HEADER + 125
    except FrameError as breach:
        return messages, breach.close.code
    return messages, None


# --- laws ----------------------------------------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn, deflates: bool = False) -> tuple[bytes, list[Message]]:
    """A valid stream of a client, and what it says: fragments, with control frames in between.

    With `deflates` some of its messages are compressed.
    """
    data = b""
    messages: list[Message] = []

    def maybe_control() -> bytes:
        if not draw(st.booleans()):
            return b""
        control = draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125))
        messages.append(control)
        return encode(*control)

    for _ in range(draw(st.integers(0, 5))):
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        if opcode == TEXT:
            payload = draw(texts).encode()
        else:
            # Lengths around where the header grows, too.
            payload = os.urandom(draw(st.sampled_from([0, 1, 125, 126, 127, 999, LIMIT])))
        sent, rsv = payload, 0
        if deflates and len(payload) < 999 and draw(st.booleans()):
            level = draw(st.sampled_from([0, 1, 9]))
            sent, rsv = compressed(payload, level, draw(st.sampled_from([9, 15]))), DEFLATED
        cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=4)))
        pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        for place, piece in enumerate(pieces):
            is_last, is_first = place == len(pieces) - 1, place == 0
            data += maybe_control()
            data += encode(
                opcode if is_first else CONTINUATION, piece, fin=is_last, rsv=rsv if is_first else 0
            )
        messages.append((opcode, payload))
    return data + maybe_control(), messages


@relaxed
@given(streams(), st.lists(st.integers(0, 3000), max_size=20))
def test_a_valid_stream_gives_the_same_messages_however_it_is_cut(
    stream: tuple[bytes, list[Message]], cuts: list[int]
) -> None:
    data, messages = stream
    assert read_all(data) == (messages, None)
    assert read_all(data, cuts) == (messages, None)


@relaxed
@given(streams())
def test_a_valid_stream_may_come_byte_by_byte(stream: tuple[bytes, list[Message]]) -> None:
    data, messages = stream
    assert read_all(data, list(range(len(data)))) == (messages, None)


@relaxed
@given(streams(deflates=True), st.lists(st.integers(0, 3000), max_size=20))
def test_compressed_messages_are_read_like_others_however_they_are_cut(
    stream: tuple[bytes, list[Message]], cuts: list[int]
) -> None:
    data, messages = stream
    assert read_all(data, inflates=True) == (messages, None)
    assert read_all(data, cuts, inflates=True) == (messages, None)
    assert read_all(data, list(range(len(data))), inflates=True) == (messages, None)


def test_a_compressed_message_may_be_cut_at_any_two_places() -> None:
    message = "grüße ".encode() * 10
    payload = compressed(message)
    data = encode(TEXT, payload[:7], rsv=DEFLATED, fin=False) + encode(CONTINUATION, payload[7:])
    for first in range(len(data)):
        for second in range(first, len(data)):
            assert read_all(data, [first, second], inflates=True) == ([(TEXT, message)], None)


@relaxed
@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=10), st.booleans())
def test_any_bytes_give_the_same_messages_and_the_same_error_however_they_are_cut(
    data: bytes, cuts: list[int], inflates: bool
) -> None:
    """Raises nothing but FrameError, and never keeps more than the limit and a header."""
    whole = read_all(data, inflates=inflates)
    assert read_all(data, cuts, inflates=inflates) == whole
    assert whole[1] in (None, 1002, 1007, 1009)


@relaxed
@given(
    st.lists(
        st.builds(
            encode,
            st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 3, 0xB]),
            st.one_of(
                st.binary(max_size=40),
                texts.map(str.encode),
                texts.map(lambda text: compressed(text.encode())),
                st.sampled_from([bytes(LIMIT // 2), compressed(bytes(2 * LIMIT)), compressed(b"\xff")]),
            ),
            fin=st.booleans(),
            rsv=st.sampled_from([0, 0, 0, 0, 0x40, 0x40]),
            masked=st.sampled_from([True, True, True, False]),
        ),
        max_size=8,
    ),
    st.lists(st.integers(0, 3000), max_size=10),
    st.booleans(),
)
def test_any_frames_give_the_same_messages_and_the_same_error_however_they_are_cut(
    frames: list[bytes], cuts: list[int], inflates: bool
) -> None:
    """As above, with bytes that get further than random ones do."""
    data = b"".join(frames)
    whole = read_all(data, inflates=inflates)
    assert read_all(data, cuts, inflates=inflates) == whole
    for opcode, payload in whole[0]:
        assert len(payload) <= LIMIT
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        if opcode == TEXT:
            payload.decode()  # what is no UTF-8 does not get here


# --- cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_an_encoded_frame_has_the_shortest_header_and_the_payload(size: int) -> None:
    payload = os.urandom(size)
    frame = encode_frame(BINARY, payload)
    header = 2 if size < 126 else 4 if size < 65_536 else 10
    assert len(frame) == header + size
    # Unmasked as a server's must be; otherwise just what the tests' client would write.
    assert frame == encode(BINARY, payload, masked=False)


def test_a_text_frame_carries_the_message_as_it_is() -> None:
    assert encode_frame(TEXT, "grüße".encode()) == bytes([0x81, 7]) + "grüße".encode()


@pytest.mark.parametrize("code", [1000, 1001, 4001])
def test_a_close_is_read_as_it_was_written(code: int) -> None:
    frame = encode_close(code, "wörter")
    assert decode_close(frame[2:]) == (code, "wörter")


def test_a_close_without_a_code_has_no_payload() -> None:
    assert encode_close(None) == bytes([0x88, 0])
    assert decode_close(b"") == (None, "")


def test_a_long_reason_is_cut_to_what_a_control_frame_holds() -> None:
    frame = encode_close(1008, "x" * 500)
    assert (frame[1], len(frame)) == (125, 127)


def test_a_long_reason_is_not_cut_within_a_character() -> None:
    """The client would have to answer invalid UTF-8 with 1007."""
    assert decode_close(encode_close(1008, "ü" * 200)[2:])[1].startswith("üüü")


LEGAL = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def test_only_the_codes_that_may_be_sent_are_taken() -> None:
    for code in range(65_536):
        payload = code.to_bytes(2, "big")
        if code in LEGAL:
            assert decode_close(payload) == (code, "")
        else:
            with pytest.raises(FrameError):
                decode_close(payload)


@pytest.mark.parametrize(
    ("payload", "code"), [(b"\x03", 1002), (b"\x03\xe8\xff", 1007), (b"\x03\xe8\xc3", 1007)]
)
def test_a_broken_close_is_answered_with_what_is_wrong(payload: bytes, code: int) -> None:
    with pytest.raises(FrameError) as caught:
        decode_close(payload)
    assert caught.value.close.code == code


def test_a_message_of_the_limit_is_read_and_one_byte_more_is_not() -> None:
    assert read_all(encode(TEXT, b"x" * LIMIT)) == ([(TEXT, b"x" * LIMIT)], None)
    assert read_all(encode(TEXT, b"x" * (LIMIT + 1))) == ([], 1009)


def test_fragments_count_together() -> None:
    first = encode(TEXT, b"x" * (LIMIT - 1), fin=False)
    assert read_all(first + encode(CONTINUATION, b"y"))[1] is None
    assert read_all(first + encode(CONTINUATION, b"yy"))[1] == 1009


def test_what_is_unfinished_is_kept_and_then_let_go() -> None:
    reader = FrameReader(LIMIT)
    first, second = encode(TEXT, b"x" * 400, fin=False), encode(CONTINUATION, b"x" * 400)
    assert list(reader.feed(first + second[:300])) == []
    assert held_bytes(reader) == 400 + 300 - LONGEST_HEADER + 10  # of the header, only the mask
    assert list(reader.feed(second[300:])) == [(TEXT, b"x" * 800)]
    assert held_bytes(reader) == 0


def test_each_message_has_the_whole_limit() -> None:
    message = encode(TEXT, b"x" * 600, fin=False) + encode(CONTINUATION, b"x" * 400)
    messages, code = read_all(message * 3 + encode(BINARY, bytes(LIMIT)))
    assert ([len(payload) for _, payload in messages], code) == ([LIMIT] * 4, None)


def test_a_message_that_is_announced_too_long_is_refused_before_it_comes() -> None:
    assert read_all(bytes([0x82, 0xFF]) + (2**63 - 1).to_bytes(8, "big"))[1] == 1009


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize(("form", "length"), [(126, 0), (126, 125), (127, 0), (127, 126), (127, 65_535)])
def test_a_length_that_is_not_written_as_short_as_can_be_is_a_breach(
    opcode: int, form: int, length: int
) -> None:
    header = bytes([0x80 | opcode, 0x80 | form]) + length.to_bytes(2 if form == 126 else 8, "big")
    assert read_all(header + bytes(4 + length), limit=100_000) == ([], 1002)


def test_a_length_whose_top_bit_is_set_is_a_breach() -> None:
    assert read_all(bytes([0x82, 0xFF]) + (2**63).to_bytes(8, "big")) == ([], 1002)


def test_a_control_frame_counts_for_nothing_in_a_message_at_the_limit() -> None:
    data = encode(TEXT, b"x" * LIMIT, fin=False) + encode(PING, bytes(125)) + encode(CONTINUATION, b"")
    assert read_all(data) == ([(PING, bytes(125)), (TEXT, b"x" * LIMIT)], None)


@pytest.mark.parametrize(
    "beginning",
    [b"\xff", b"\xc0", b"\xf5", b"\xf4\x90", b"\xe0\x80", b"\xed\xa0\x80", b"fine \xfe"],
)
def test_a_fragment_that_cannot_become_utf8_is_refused_before_the_rest_comes(beginning: bytes) -> None:
    assert read_all(encode(TEXT, beginning, fin=False)) == ([], 1007)


@pytest.mark.parametrize(
    "beginning", [b"\xff", b"\xc0", b"\xf4\x90", b"\xe0\x80", b"\xed\xa0", "grüße".encode() + b"\xfe"]
)
@pytest.mark.parametrize("bytes_before", [0, 1, 300])
def test_text_that_cannot_become_utf8_is_refused_in_the_midst_of_a_frame(
    beginning: bytes, bytes_before: int
) -> None:
    frame = encode(TEXT, b"x" * bytes_before + beginning + b"x" * 600)
    header = 8
    assert read_all(frame[: header + bytes_before + len(beginning) - 1])[1] is None
    assert read_all(frame[: header + bytes_before + len(beginning)]) == ([], 1007)


def test_a_message_that_comes_byte_by_byte_is_not_copied_for_each_of_them() -> None:
    """Copied, it would be a thousand times its size: the limit is a setting, and a big one no weapon."""
    size = 200_000
    reader = FrameReader(size)
    for byte in encode(BINARY, bytes(size))[:-1]:
        assert not list(reader.feed(bytes([byte])))
        assert len(reader._buffer) <= LONGEST_HEADER
    assert held_bytes(reader) <= size + LONGEST_HEADER


def test_one_broken_message_does_not_spoil_the_decoding_of_binary_ones() -> None:
    data = encode(BINARY, b"\xff", fin=False) + encode(CONTINUATION, b"\xfe") + encode(TEXT, b"ok")
    assert read_all(data) == ([(BINARY, b"\xff\xfe"), (TEXT, b"ok")], None)


@pytest.mark.parametrize("rsv", [0x40, 0x20, 0x10])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_a_reserved_bit_is_a_breach_in_any_frame(opcode: int, rsv: int) -> None:
    assert read_all(encode(opcode, b"", rsv=rsv)) == ([], 1002)


def test_what_came_before_a_breach_has_been_given() -> None:
    data = encode(TEXT, b"1") + encode(PING, b"2") + encode(TEXT, b"3", rsv=0x40) + encode(TEXT, b"4")
    assert read_all(data) == ([(TEXT, b"1"), (PING, b"2")], 1002)


# --- compressed messages -------------------------------------------------------------------------


def read_compressed(data: bytes) -> tuple[list[Message], int | None]:
    return read_all(data, inflates=True)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("rsv", [0x20, 0x10, 0x60, 0x50, 0x70])
def test_other_reserved_bits_stay_a_breach(opcode: int, rsv: int) -> None:
    assert read_compressed(encode(opcode, compressed(b""), rsv=rsv)) == ([], 1002)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG, 3, 0xB])
def test_the_bit_of_compression_is_a_breach_but_in_the_first_frame_of_a_message(opcode: int) -> None:
    payload = compressed(b"x" * 50)
    assert read_compressed(encode(opcode, payload, rsv=DEFLATED)) == ([], 1002)
    for rsv in (0, DEFLATED):
        began = encode(BINARY, payload[:2], fin=False, rsv=rsv)
        assert read_compressed(began + encode(CONTINUATION, payload[2:], rsv=DEFLATED)) == ([], 1002)


def test_the_limit_holds_before_and_after_a_message_is_inflated() -> None:
    for size, result in ((LIMIT, ([(BINARY, bytes(LIMIT))], None)), (LIMIT + 1, ([], 1009))):
        assert read_compressed(encode(BINARY, compressed(bytes(size)), rsv=DEFLATED)) == result
    noise = os.urandom(LIMIT)
    assert len(compressed(noise)) > LIMIT
    assert read_compressed(encode(BINARY, compressed(noise), rsv=DEFLATED)) == ([], 1009)
    payload = compressed(noise, level=0)
    fragments = encode(BINARY, payload[:600], fin=False, rsv=DEFLATED) + encode(CONTINUATION, payload[600:])
    assert read_compressed(fragments) == ([], 1009)


@pytest.mark.parametrize("text", [b"\xff", b"fine \xed\xa0\x80", "grüße".encode()[:-1] + b"\xc3"])
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_inflated_must_be_utf8_where_it_is_text(text: bytes, size: int) -> None:
    payload = compressed(text)
    for data in (
        encode(TEXT, payload, rsv=DEFLATED),
        encode(TEXT, payload[:2], rsv=DEFLATED, fin=False) + encode(CONTINUATION, payload[2:]),
    ):
        assert read_all(data, list(range(0, len(data), size)), inflates=True) == ([], 1007)
    assert read_compressed(encode(BINARY, payload, rsv=DEFLATED)) == ([(BINARY, text)], None)


def test_a_compressed_payload_itself_need_not_be_utf8() -> None:
    payload = compressed("grüße".encode())
    with pytest.raises(UnicodeDecodeError):
        payload.decode()
    for cuts in ([], list(range(20))):
        assert read_all(encode(TEXT, payload, rsv=DEFLATED), cuts, inflates=True)[1] is None


def test_a_message_is_inflated_without_what_came_before_it() -> None:
    compressor = zlib.compressobj(wbits=-15)
    first, second = (
        (compressor.compress(b"hello " * 20) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for _ in range(2)
    )
    data = encode(TEXT, first, rsv=DEFLATED) + encode(TEXT, second, rsv=DEFLATED)
    assert read_compressed(data) == ([(TEXT, b"hello " * 20)], 1007)


def test_plain_messages_may_come_between_compressed_ones() -> None:
    plain = encode(TEXT, b"x", fin=False) + encode(CONTINUATION, b"y")
    deflated = encode(TEXT, compressed(b"z"), rsv=DEFLATED)
    half = encode(TEXT, compressed(b"z")[:1], rsv=DEFLATED, fin=False)
    messages, code = read_compressed(deflated + plain + deflated + half)
    assert (messages, code) == ([(TEXT, b"z"), (TEXT, b"xy"), (TEXT, b"z")], None)
