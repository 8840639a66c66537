"""MessagePack: what is sent is what JSON says; what is read is what JSON could say, and nothing else."""

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.errors import MalformedJson
from lockstep.rules.state import MAX_METADATA_BYTES
from lockstep.wire import strict_json
from lockstep.wire.encodings import JSON, MSGPACK
from lockstep.wire.strict_msgpack import MAX_VALUES, loads
from tests.support.followers import cut_frames
from tests.support.fuzzing import examples, json_values
from tests.support.ws_client import BINARY


def sent(text: str) -> Any:
    """What a client reads where another is sent this JSON."""
    frame = MSGPACK.encode(text.encode())
    assert frame[0] == 0x80 | BINARY
    (message,), rest = cut_frames(frame)
    assert rest == b""
    return message


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def refused(payload: bytes) -> str:
    with pytest.raises(MalformedJson) as refusal:
        loads(payload)
    assert "JSON" not in refusal.value.message
    found = refusal.value.message.removeprefix("Not valid MessagePack: ")
    assert found != refusal.value.message
    return found.rpartition(", at byte ")[0]


# --- what is sent --------------------------------------------------------------------------------


@examples(300)
@given(value=json_values)
def test_what_is_sent_is_what_json_says(value: Any) -> None:
    text = json.dumps(value)
    if not has_long_integers(value):
        assert json.dumps(sent(text)) == text


def has_long_integers(value: Any) -> bool:
    return any(not -(2**63) <= each < 2**64 for each in values_in(value) if isinstance(each, int))


def values_in(value: Any) -> list[Any]:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(each for item in within for each in values_in(item))]


def test_keys_keep_their_order() -> None:
    text = '{"z":1,"a":{"y":[{"c":1,"b":2}],"x":null},"m":""}'
    assert json.dumps(sent(text), separators=(",", ":")) == text


@pytest.mark.parametrize("text", ["1.0", "-0.0", "0.1", "1e2", "1e-999", "5e-324", "1.7976931348623157e308"])
def test_a_float_stays_a_float(text: str) -> None:
    assert repr(sent(text)) == repr(float(text))


@pytest.mark.parametrize("number", [0, -1, 2**53 + 1, 2**63, 2**64 - 1, -(2**63)])
def test_an_integer_of_64_bits_stays_what_it_is(number: int) -> None:
    assert repr(sent(f"{number}")) == repr(number)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30, -(10**300)])
def test_an_integer_beyond_64_bits_becomes_a_double(number: int) -> None:
    found = sent(f'{{"a":{number},"b":[{number},7,1.0,"{number}"]}}')
    assert repr(found) == repr({"a": float(number), "b": [float(number), 7, 1.0, str(number)]})


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e999", "inf"), ("-1e999", "-inf"), ("1" * 400, "inf"), ("-" + "1" * 5000, "-inf"), ("0", "0")],
)
def test_a_number_beyond_a_double_is_sent_as_javascript_reads_it(text: str, number: str) -> None:
    """Of what an application publishes itself only the grammar is checked."""
    assert [str(each) for each in sent(f"[{text},1]")] == [number, "1"]


@pytest.mark.parametrize("depth", [1, 100, 900, 990])
@pytest.mark.parametrize("more", ["", "1e999", "36893488147419103232"])
def test_what_is_nested_deeply_is_sent_as_it_is(depth: int, more: str) -> None:
    """From deeper in the stack than it was checked, too."""

    def encode(frames: int) -> bytes:
        return (
            MSGPACK.encode(b"[" * depth + more.encode() + b"]" * depth) if frames == 0 else encode(frames - 1)
        )

    frame = encode(60)
    assert frame.count(b"\x91") >= depth - 1
    assert frame == MSGPACK.encode(b"[" * depth + more.encode() + b"]" * depth)


@pytest.mark.parametrize("text", ["", "{", '{"type":"SNAPSHOT","state":{"a":"}', '{"a":1}}', "[" * 100_000])
def test_what_is_no_json_is_sent_as_text(text: str) -> None:
    """A state that was damaged in the store is no message to anybody, and nobody else suffers from it."""
    assert sent(text) == text


# --- what is read --------------------------------------------------------------------------------


@examples(300)
@given(value=json_values)
def test_what_a_client_says_is_read_as_it_is(value: Any) -> None:
    if not has_long_integers(value):
        assert repr(loads(packed(value))) == repr(value)


FORMS: list[tuple[bytes, Any]] = [
    *((bytes([n]), n) for n in (0, 1, 0x7F)),
    *((bytes([n]), n - 0x100) for n in (0xE0, 0xFF)),
    *((b"\xc0", None), (b"\xc2", False), (b"\xc3", True)),
    *((b"\xcc\x07", 7), (b"\xcd\x00\x07", 7), (b"\xce\x00\x00\x00\x07", 7), (b"\xcf" + b"\0" * 7 + b"\7", 7)),
    *((b"\xd0\xff", -1), (b"\xd1\xff\xff", -1), (b"\xd2" + b"\xff" * 4, -1), (b"\xd3" + b"\xff" * 8, -1)),
    *((b"\xcf" + b"\xff" * 8, 2**64 - 1), (b"\xd3\x80" + b"\0" * 7, -(2**63))),
    *((b"\xca" + struct.pack(">f", 1.5), 1.5), (b"\xcb" + struct.pack(">d", 1.0), 1.0)),
    *((b"\xa0", ""), (b"\xa2\xc3\xa9", "é"), (b"\xd9\x01x", "x"), (b"\xda\x00\x01x", "x")),
    *(
        (b"\xdb\x00\x00\x00\x01x", "x"),
        (b"\xbf" + b"x" * 31, "x" * 31),
        (b"\xd9\xff" + b"x" * 255, "x" * 255),
    ),
    *((b"\x90", []), (b"\x9f" + b"\1" * 15, [1] * 15), (b"\xdc\x00\x01\x07", [7])),
    *((b"\xdd\x00\x00\x00\x01\x07", [7]), (b"\x80", {}), (b"\x81\xa1x\x07", {"x": 7})),
    *((b"\xde\x00\x01\xd9\x01x\x07", {"x": 7}), (b"\xdf\x00\x00\x00\x01\xa1x\x80", {"x": {}})),
]
"""Each form that a value may have, the longer ones of short values, too."""


@pytest.mark.parametrize(("payload", "value"), FORMS, ids=lambda each: str(each)[:20])
def test_every_form_of_a_value_is_read(payload: bytes, value: Any) -> None:
    assert repr(loads(payload)) == repr(value)
    assert repr(loads(b"\x92" + payload * 2)) == repr([value, value])


@pytest.mark.parametrize(("payload", "value"), FORMS, ids=lambda each: str(each)[:20])
def test_a_value_that_ends_too_early_is_refused_wherever_that_is(payload: bytes, value: Any) -> None:
    whole = b"\x92" + payload * 2
    for length in range(len(whole)):
        assert refused(whole[:length]) == "it ends too early"


@pytest.mark.parametrize(("payload", "value"), FORMS, ids=lambda each: str(each)[:20])
def test_what_comes_behind_a_value_is_refused(payload: bytes, value: Any) -> None:
    assert refused(payload + b"\xc0") == "something comes behind the value"


REFUSED = {
    "a byte that means nothing": [b"\xc1"],
    "binary data": [
        b"\xc4\x01x",
        b"\xc5\x00\x01x",
        b"\xc6\x00\x00\x00\x01x",
        b"\xc4\x00",
        b"\x81\xc4\x01x\x01",
    ],
    "an extension type": [
        *(b"\xc7\x01\x05x", b"\xc8\x00\x01\x05x", b"\xc9\x00\x00\x00\x01\x05x"),
        *(bytes([0xD4 + n, 5]) + b"x" * 2**n for n in range(5)),
        # Timestamps
        *(b"\xd6\xff" + b"\0" * 4, b"\xd7\xff" + b"\0" * 8, b"\xc7\x0c\xff" + b"\0" * 12),
    ],
    "NaN or infinity": [
        *(b"\xcb" + struct.pack(">d", float(each)) for each in ("nan", "inf", "-inf")),
        *(b"\xca" + struct.pack(">f", float(each)) for each in ("nan", "inf", "-inf")),
    ],
    "a key that is not a string": [
        b"\x81" + key + b"\x01" for key in (b"\x07", b"\xc0", b"\xc3", b"\x90", b"\x80", b"\xcb" + b"\0" * 8)
    ],
    "duplicate key": [
        *(b"\x82\xa1x\x01\xa1x\x02", b"\x82\xa1x\x01\xd9\x01x\x02", b"\x91\x82\xa1x\x01\xda\x00\x01x\x01"),
    ],
    "invalid UTF-8": [
        # Halves of a surrogate pair; what UTF-8 never has; a character that is cut; one that is too long
        *(b"\xa3\xed\xa0\x80", b"\xa3\xed\xbf\xbf", b"\xa2\xff\xfe", b"\xa3ab\xc3", b"\xa2\xc0\x80"),
        *(b"\xa4\xf4\x90\x80\x80", b"\x81\xa1\xff\x01"),
    ],
    "it ends too early": [
        b"",
        *(bytes([first]) + b"\xff" * 4 + b"\x01" * 50 for first in (0xDB, 0xDD, 0xDF)),
        *(b"\xdd\x7f\xff\xff\xff" * 50, b"\xdf\x80\x00\x00\x00" * 50),
    ],
    "nested too deeply": [
        *(b"\x91" * 101 + b"\x01", b"\x81\xa0" * 101 + b"\x01", b"\x91" * 100 + b"\x90", b"\x91" * 16_384),
    ],
    "too many values": [
        b"\xdc\x20\x01" + b"\x01" * (MAX_VALUES + 1),
        b"\x92" + (b"\xdc\x10\x00" + b"\x01" * (MAX_VALUES // 2)) * 2,
        b"\xdc\x1f\xff" + b"\x90" * (MAX_VALUES - 2) + b"\x92\x01\x01",
    ],
}


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [(payload, complaint) for complaint, payloads in REFUSED.items() for payload in payloads],
    ids=lambda each: each if isinstance(each, str) else each[:6].hex(),
)
def test_what_json_could_not_say_is_refused(payload: bytes, complaint: str) -> None:
    assert refused(payload) == complaint
    if len(payload) < 1000:
        assert refused(b"\x82\xa4type\xa4PING\xa2id" + payload) == complaint


def test_nesting_is_allowed_as_deep_as_in_json() -> None:
    value = loads(b"\x91" * 99 + b"\x81\xa1a\x01")
    assert value == strict_json.loads(b"[" * 99 + b'{"a":1}' + b"]" * 99)


def test_as_many_values_are_read_as_metadata_can_have() -> None:
    value = [1] * (MAX_METADATA_BYTES // 2 - 2)
    assert len(value) < MAX_VALUES
    assert loads(packed(value)) == value


@examples(500)
@given(
    value=json_values,
    changes=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 255), st.booleans()), min_size=1, max_size=3
    ),
)
def test_a_message_that_was_changed_on_the_way_is_read_as_others_read_it_or_refused(
    value: Any, changes: list[tuple[int, int, bool]]
) -> None:
    if has_long_integers(value):
        return
    payload = bytearray(packed(value))
    for place, byte, is_inserted in changes:
        at = place % len(payload)
        payload[at : at if is_inserted else at + 1] = bytes([byte])
    try:
        found = loads(bytes(payload))
    except MalformedJson:
        return
    assert repr(found) == repr(msgspec.msgpack.decode(payload))
    assert strict_json.loads(json.dumps(found).encode()) == found, "JSON can say it"


def test_the_other_type_of_frame_is_not_understood() -> None:
    with pytest.raises(MalformedJson, match="Text messages are not understood"):
        MSGPACK.decode(b'{"type":"PING"}', is_binary=False)
    with pytest.raises(MalformedJson, match="Binary messages are not understood"):
        JSON.decode(packed({"type": "PING"}), is_binary=True)
    assert MSGPACK.decode(packed({"type": "PING"}), is_binary=True) == {"type": "PING"}
