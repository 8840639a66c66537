"""The wire format: what is built, what is sliced, and what is believed of strangers."""

import json
import math
from typing import Any

import pytest
import ujson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lockstep.errors import MalformedJson
from lockstep.rules.state import Session
from lockstep.rules.state_json import dumps, to_dict, to_json
from lockstep.wire import heads, payloads, protocol_v1, strict_json
from lockstep.wire.heads import Head
from lockstep.wire.payloads import Deletion, Update
from tests.support import settled_rules as engine
from tests.support.sessions_under_test import EPOCH, SESSION, T0, pending

OTHER = "00000000-0000-4000-8000-0000000000ff"
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.text('ab"\\/\x00\n\x7fé\u2028大😀', max_size=20)
numbers = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def chess() -> Session:
    """Running, at version 2, with a commit as the service would have given it."""
    return replace(engine.start(pending(60_000, 60_000), T0).session, commit="AbC_-012")


# --- what the server says ------------------------------------------------------------------------


def test_connected_says_where_and_when() -> None:
    assert json.loads(protocol_v1.connected(SESSION, T0)) == {
        "type": "CONNECTED",
        "sessionId": SESSION,
        "timestamp": T0,
    }


@pytest.mark.parametrize(
    ("build", "type_"), [(protocol_v1.state_update, "STATE_UPDATE"), (protocol_v1.state_sync, "STATE_SYNC")]
)
def test_a_state_is_carried_as_it_is(build: Any, type_: str) -> None:
    state = to_json(chess())
    message = build(SESSION, T0 + 5, state)
    assert state in message
    assert json.loads(message) == {
        "type": type_,
        "sessionId": SESSION,
        "timestamp": T0 + 5,
        "state": to_dict(chess()),
    }


def test_an_update_is_its_prefix_the_state_and_a_brace() -> None:
    state = to_json(chess())
    assert protocol_v1.update_prefix(SESSION, T0) + state + b"}" == protocol_v1.state_update(
        SESSION, T0, state
    )


def test_a_deletion_names_the_epoch_that_ended() -> None:
    assert json.loads(protocol_v1.session_deleted(SESSION, T0, EPOCH)) == {
        "type": "SESSION_DELETED",
        "sessionId": SESSION,
        "timestamp": T0,
        "epoch": EPOCH,
        "deleted": True,
    }


def test_an_error_has_a_code_and_a_message() -> None:
    assert json.loads(protocol_v1.error("SESSION_NOT_FOUND", 'no "x"')) == {
        "type": "ERROR",
        "code": "SESSION_NOT_FOUND",
        "message": 'no "x"',
    }


@relaxed
@given(values)
def test_a_pong_echoes_any_id_that_can_be_read(mark: Any) -> None:
    ping = strict_json.loads(json.dumps({"type": "PING", "id": mark, "more": 1}).encode())
    pong = json.loads(protocol_v1.pong(T0, ping))
    assert pong == {"type": "PONG", "timestamp": T0, "id": mark}
    assert json.dumps(pong["id"]) == json.dumps(mark)  # 1 is not 1.0, nor true


def test_a_pong_has_an_id_only_if_the_ping_had_one() -> None:
    assert json.loads(protocol_v1.pong(T0, {"type": "PING"})) == {"type": "PONG", "timestamp": T0}
    assert json.loads(protocol_v1.pong(T0, {"type": "PING", "id": None}))["id"] is None


@pytest.mark.parametrize(
    "type_", ["CONNECTED", "STATE_UPDATE", "STATE_SYNC", "SESSION_DELETED", "PONG", "ERROR"]
)
def test_what_the_server_sends_nobody_else_may(type_: str) -> None:
    assert type_ in protocol_v1.SERVER_TYPES


# --- beginnings ----------------------------------------------------------------------------------


def test_the_head_of_a_state_is_read_from_its_first_bytes() -> None:
    session = chess()
    state = to_json(session)
    head = Head(SESSION, (EPOCH, 2), "AbC_-012", T0 + 60_000)
    assert heads.read_head(state) == head
    assert heads.read_head(state[: heads.BEGINNING_BYTES]) == head
    assert head.tag == session.tag == f'"{EPOCH}-2-{session.commit}"'


def test_the_longest_beginning_fits_into_what_is_read_of_it() -> None:
    most = 10**15 - 1
    state = to_json(replace(chess(), version=most))
    state = state.replace(f'"deadline_ms":{T0 + 60_000},'.encode(), f'"deadline_ms":{most},'.encode())
    head = heads.read_head(state[: heads.BEGINNING_BYTES])
    assert head == Head(SESSION, (EPOCH, most), "AbC_-012", most)


def test_a_state_without_a_deadline_has_a_head_without_one() -> None:
    session = engine.pause(chess(), T0 + 10).session
    head = heads.read_head(to_json(replace(session, commit="AbC_-012")))
    assert head is not None
    assert head.deadline_ms is None


def test_a_commit_compares_the_state_up_to_and_with_its_commit() -> None:
    session = chess()
    beginning = heads.beginning(session)
    assert to_json(session).startswith(beginning)
    assert beginning.endswith(b'"commit":"AbC_-012"')
    for other in (
        replace(session, commit="AbC_-013"),
        replace(session, version=3),
        replace(session, version=21),
        replace(session, epoch="0lqtw8xc0abce"),
    ):
        assert not to_json(other).startswith(beginning)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"junk", b'{"session_id":"x","epoch":"y"}', to_json(chess())[:90]]
)
def test_what_does_not_begin_like_a_state_has_no_head(raw: bytes) -> None:
    assert heads.read_head(raw) is None


def test_two_states_are_the_same_only_if_epoch_version_and_commit_are() -> None:
    head = Head(SESSION, (EPOCH, 2), "AbC_-012", None)
    assert head.is_same_state_as(replace(head, deadline_ms=5))
    assert not head.is_same_state_as(replace(head, commit="AbC_-013"))
    assert not head.is_same_state_as(replace(head, order=(EPOCH, 3)))
    assert not head.is_same_state_as(replace(head, order=("0lqtw8xc0abce", 2)))
    assert not head.is_same_state_as(None)


def test_a_later_creation_is_later_whatever_its_version() -> None:
    assert (EPOCH, 9) < (EPOCH, 10) < ("0lqtw8xc1aaaa", 1) < ("0lqtw8xd0aaaa", 1)


# --- what the store publishes --------------------------------------------------------------------


def test_our_own_update_is_routed_and_ordered_by_its_beginning() -> None:
    state = to_json(chess())
    payload = protocol_v1.state_update(SESSION, T0, state)
    assert payloads.update_id(payload) == SESSION
    update = payloads.read_published(payload, T0 + 99)
    assert isinstance(update, Update)
    assert (update.session_id, update.message, update.state) == (SESSION, payload, state)
    assert update.head == heads.read_head(state)
    # The rest is checked, and nothing built of it: what no client could read is junk.
    for broken in (payload[:-200] + b"\xff" * 200, payload[:-1], payload + b"}"):
        assert payloads.read_published(broken, T0) is None


def test_our_own_deletion_is_relayed_as_it_is() -> None:
    payload = protocol_v1.session_deleted(SESSION, T0, EPOCH)
    assert payloads.update_id(payload) is None
    assert payloads.read_published(payload, T0 + 99) == Deletion(SESSION, payload, EPOCH)


def foreign(**fields: Any) -> bytes:
    return json.dumps({"sessionId": SESSION} | fields).encode()


@pytest.mark.parametrize(
    "state",
    [
        {"status": "odd", "n": [1, 2.5, None]},
        {},
        {"epoch": 7, "version": 1},
        {"epoch": EPOCH, "version": True},
    ],
)
@pytest.mark.parametrize("is_string", [False, True])
def test_a_foreign_state_becomes_an_update_without_an_order(state: dict[str, Any], is_string: bool) -> None:
    payload = foreign(state=json.dumps(state) if is_string else state, more="ignored")
    assert payloads.update_id(payload) is None
    update = payloads.read_published(payload, T0)
    assert isinstance(update, Update)
    assert (update.session_id, update.head) == (SESSION, None)
    assert json.loads(update.state) == state
    assert json.loads(update.message) == {
        "type": "STATE_UPDATE",
        "sessionId": SESSION,
        "timestamp": T0,
        "state": state,
    }


def test_a_foreign_state_is_ordered_if_it_carries_epoch_and_version() -> None:
    update = payloads.read_published(foreign(state={"version": 8, "epoch": EPOCH, "deadline_ms": T0}), 5)
    assert isinstance(update, Update)
    assert update.head is not None
    assert (update.head.order, update.head.deadline_ms) == ((EPOCH, 8), T0)


def test_the_state_of_a_foreign_update_is_found_whatever_the_time_is() -> None:
    """Its place in the message is known by counting, and a clock may be young."""
    for now_ms in (0, 999_999_999_999, T0):
        update = payloads.read_published(foreign(state={"a": 1}), now_ms)
        assert isinstance(update, Update)
        assert json.loads(update.message)["state"] == {"a": 1}
    assert update.state == b'{"a":1}'


@pytest.mark.parametrize(
    ("fields", "epoch"),
    [
        ({"deleted": True}, None),
        ({"state": None}, None),
        ({"deleted": True, "epoch": EPOCH}, EPOCH),
        ({"deleted": True, "state": {"version": 1}}, None),
        ({"state": None, "epoch": 5}, None),
    ],
)
def test_a_foreign_deletion_is_understood(fields: dict[str, Any], epoch: str | None) -> None:
    assert payloads.read_published(foreign(**fields), T0) == Deletion(SESSION, None, epoch)


def test_a_foreign_id_may_be_in_capitals() -> None:
    payload = json.dumps({"sessionId": SESSION.upper(), "deleted": True}).encode()
    assert payloads.read_published(payload, T0) == Deletion(SESSION, None, None)


JUNK = [
    b"",
    b"junk",
    b"null",
    b"5",
    b'"x"',
    b"[]",
    b"{}",
    b"\xff\xfe",
    foreign(),
    foreign(state=[]),
    foreign(state=5),
    foreign(state="junk"),
    foreign(state="[]"),
    foreign(deleted=False),
    foreign(deleted=1),
    foreign(deleted="true"),
    json.dumps({"state": {}}).encode(),
    json.dumps({"sessionId": "7", "state": {}}).encode(),
    json.dumps({"sessionId": 7, "state": {}}).encode(),
    json.dumps({"sessionId": None, "deleted": True}).encode(),
    json.dumps({"sessionId": [SESSION], "deleted": True}).encode(),
    foreign(state={"n": math.nan}),
    foreign(state='{"n": "\\ud800"}'),
    b'{"sessionId":"' + SESSION.encode() + b'","state":{"t":"\xed\xa0\x80"}}',
    b'{"type":"STATE_UPDATE","sessionId":"' + SESSION.encode() + b'"',
    b'{"type":"STATE_UPDATE","sessionId":"\xff\xff',
]


@pytest.mark.parametrize("payload", JUNK, ids=lambda payload: repr(payload[:60]))
def test_junk_is_told_from_what_can_be_understood(payload: bytes) -> None:
    assert payloads.read_published(payload, T0) is None


@relaxed
@given(
    st.binary(max_size=100)
    | values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from(["sessionId", "state", "deleted", "epoch"]), values | st.just(SESSION)
    ).map(lambda value: json.dumps(value).encode())
    | st.dictionaries(texts, values).map(lambda state: foreign(state=state))
)
def test_whatever_is_published_is_an_update_a_deletion_or_junk(payload: bytes) -> None:
    payloads.update_id(payload)
    published = payloads.read_published(payload, T0)
    if isinstance(published, Update):
        assert json.loads(published.message)["state"] == json.loads(published.state)
    else:
        assert published is None or isinstance(published, Deletion)


# --- what others publish for the clients ---------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b'{"type":"NOTE"}',
        b' {"a" : 1.50, "type" : "NOTE"}\n',
        b'{"type":""}',
        '{"type":"NOTE","text":"größe"}'.encode(),
        b'{"type":"BIG","x":"' + b"x" * (65_536 - 21) + b'"}',
        b'{"sessionId":"x","message":{"type":"INNER"},"type":"OUTER"}',
    ],
    ids=lambda payload: repr(payload[:30]),
)
def test_an_object_with_a_type_is_relayed_as_it_is(payload: bytes) -> None:
    assert payloads.read_relayed(payload) == payload


def test_of_a_wrapped_message_the_inner_object_is_relayed() -> None:
    payload = json.dumps(
        {"sessionId": SESSION, "message": {"type": "NOTE", "text": "größe", "n": 1.5}}
    ).encode()
    relayed = payloads.read_relayed(payload)
    assert relayed is not None
    assert json.loads(relayed) == {"type": "NOTE", "text": "größe", "n": 1.5}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"junk",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"type":5}',
        b'{"type":null}',
        b'{"message":{"type":"NOTE"}}',
        b'{"sessionId":"x","message":{"text":"no type"}}',
        b'{"sessionId":"x","message":"text"}',
        b'{"sessionId":"x","message":null}',
        b'{"type":"NOTE"} {}',
        b'{"type":"BIG","x":"' + b"x" * (65_536 - 20) + b'"}',
        # Not JSON either, though the library lets it pass: a browser's JSON.parse would throw,
        # and a frame that is not UTF-8 would cost every client its connection.
        b'{"type":"NOTE","t":"\xff"}',
        b'{"type":"NOTE","t":"\xed\xa0\x80"}',
        b'{"type":"NOTE","t":"\xc0\x80"}',
        b'{"type":"NOTE","n":NaN}',
        b'{"type":"NOTE","n":-Infinity}',
        b'{"type":"NOTE","n":01}',
        b'{"type":"NOTE","t":"\n"}',
        b'{"sessionId":"x","message":{"type":"NOTE","n":NaN}}',
        b'{"sessionId":"x","message":{"type":"NOTE","t":"\\ud800"}}',
        b'{"sessionId":"x","message":{"type":"NOTE","n":1e400}}',
    ],
    ids=lambda payload: repr(payload[:70]),
)
def test_whatever_else_comes_for_the_clients_is_junk(payload: bytes) -> None:
    assert payloads.read_relayed(payload) is None


hostile = st.sampled_from(["\ud800", "\n", "x"])


@relaxed
@given(
    st.binary(max_size=100)
    | st.dictionaries(st.sampled_from(["type", "message", "sessionId", "x"]), values | hostile).map(
        lambda value: json.dumps(value).encode()
    )
    | st.dictionaries(texts, values | hostile | st.just(math.nan)).map(
        lambda inner: json.dumps({"sessionId": "x", "message": inner | {"type": "NOTE"}}).encode()
    )
    | st.binary(max_size=20).map(lambda inner: b'{"type":"NOTE","x":"' + inner + b'"}')
)
def test_whatever_is_relayed_is_an_object_with_a_type_in_utf8(payload: bytes) -> None:
    relayed = payloads.read_relayed(payload)
    if relayed is not None:
        message = json.loads(relayed.decode())
        assert isinstance(message["type"], str)


# --- strict JSON ---------------------------------------------------------------------------------


@relaxed
@given(values)
def test_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    for raw in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False, indent=1).encode()):
        assert strict_json.loads(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{} x",
        b"'x'",
        b"[1,]",
        b'{"a":1,}',
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"-1e400",
        b"9" * 301,
        b"1" + b"0" * 5000,
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'["\\ud800x\\udc00"]',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\n"',
        b'"\\x41"',
        b'{"a":1,"a":1}',
        b'[{"b":{"a":1,"\\u0061":2}}]',
        b"\xef\xbb\xbf{}",
        b"[" * 5000 + b"]" * 5000,
        b"[" * 200_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "{}".encode("utf-16"),
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedJson, match=r"^Not valid JSON: ."):
        strict_json.loads(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b" null\n", None),
        (b"1e300", 1e300),
        (b"-0", 0),
        (b"1e-400", 0.0),
        (b"9" * 300, 10**300 - 1),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\u0000"', "\0"),
        (b'{"a":{"a":1}}', {"a": {"a": 1}}),
        (b"[[[[[[[[[[]]]]]]]]]]", [[[[[[[[[[]]]]]]]]]]),
        (b'"' + b"[" * 5000 + b'"', "[" * 5000),
        (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
    ],
    ids=lambda each: repr(each)[:30],
)
def test_what_is_odd_but_json_is_read(raw: bytes, value: Any) -> None:
    assert strict_json.loads(raw) == value


def test_a_hundred_levels_are_read_and_one_more_is_not() -> None:
    def nested(levels: int) -> bytes:
        return b"[" * levels + b"]" * levels

    assert strict_json.loads(nested(strict_json.MAX_DEPTH)) is not None
    with pytest.raises(MalformedJson):
        strict_json.loads(nested(strict_json.MAX_DEPTH + 1))
    # What is let in can be read back by the library that reads what is stored.
    assert ujson.loads(nested(strict_json.MAX_DEPTH)) is not None


@relaxed
@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_no_bytes_raise_anything_but_malformed_json(raw: bytes) -> None:
    try:
        value = strict_json.loads(raw)
    except MalformedJson:
        return
    assert strict_json.loads(dumps(value)) == value
