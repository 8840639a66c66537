"""Any payload on the channels between processes: clients get valid text or nothing; never an exception."""

import asyncio
import json
import struct
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import astuple, replace

from lockstep.attendance import Attendance
from lockstep.rules.state_json import dumps, to_json
from lockstep.wire import attendances, protocol_v1, protocol_v2
from lockstep.wire.encodings import MSGPACK
from lockstep.wire.events import EVENTS
from lockstep.wire.payloads import (
    MAX_PUBLISHED_BYTES,
    MAX_RELAYED_BYTES,
    Deletion,
    Disconnect,
    Update,
    read_published,
    read_relayed,
    update_id,
)
from tests.support.event_source import EventParser
from tests.support.followers import cut_frames
from tests.support.fuzzing import examples, json_values
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.sessions_under_test import SESSION, T0, running
from tests.support.sockets import watching
from tests.support.ws_client import CLOSE, PING, TEXT

STATE = to_json(replace(running(60_000, 60_000), commit="q7Rw_x0A"))
UPDATE = protocol_v1.state_update(SESSION, T0, STATE)
DELETED = protocol_v1.session_deleted(SESSION, T0, "0lqtw8xc0abcd")
PRESENCE = attendances.message_of(
    SESSION, "7b1d0a52-43f7-4c0f-9d55-0242ac120002", {"Zoë": Attendance(2, T0), "": None}
)
DISCONNECT = dumps(Disconnect(session_id=SESSION, subject="Zoë"))
FOREIGN = [
    b'{"sessionId":"%s","state":%s}' % (SESSION.encode(), STATE),
    json.dumps({"sessionId": SESSION, "state": STATE.decode()}).encode(),
    json.dumps({"sessionId": SESSION, "deleted": True, "epoch": "0lqtw8xc0abcd"}).encode(),
    json.dumps({"sessionId": SESSION, "state": None}).encode(),
    json.dumps({"sessionId": SESSION, "message": {"type": "NOTE", "text": "ü"}}).encode(),
    b'{"type":"NOTE","n":1}',
]


@st.composite
def mutated(draw: st.DrawFn, *payloads: bytes) -> bytes:
    """A good payload with some bytes changed, cut out or put in."""
    payload = draw(st.sampled_from(payloads or [UPDATE, DELETED, DISCONNECT, PRESENCE, *FOREIGN]))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(payload)))
        gone = draw(st.sampled_from([0, 1, 2, 30]))
        put = draw(
            st.sampled_from(
                [b"", b"\xff", b'"', b"}", b"0", b"\x00", b"\n", b"\\ud800", b"[[", b",", b"NaN", b"1e999"]
            )
            | st.binary(max_size=3)
        )
        payload = payload[:at] + put + payload[at + gone :]
    return payload


@st.composite
def odd_objects(draw: st.DrawFn) -> bytes:
    """The fields that mean something, with values that do not."""
    odd = json_values | st.sampled_from(
        [SESSION, SESSION.upper(), STATE.decode(), {"epoch": "z", "version": 10**30}]
    )
    names = ["sessionId", "state", "deleted", "epoch", "type", "message", "timestamp"]
    given = draw(st.dictionaries(st.sampled_from(names), odd, max_size=6))
    if draw(st.booleans()):
        given["sessionId"] = SESSION
    if draw(st.booleans()):
        inner = ["epoch", "version", "commit", "deadline_ms", "session_id"]
        given["state"] = draw(st.dictionaries(st.sampled_from(inner), odd, max_size=5))
    return json.dumps(given).encode()


payloads = st.one_of(mutated(), mutated(), odd_objects(), st.binary(max_size=300))


def test_what_is_mutated_here_is_what_lockstep_publishes() -> None:
    update, deletion = read_published(UPDATE, T0), read_published(DELETED, T0)
    assert isinstance(update, Update)
    assert update.message is UPDATE
    assert isinstance(deletion, Deletion)
    assert deletion.message is DELETED
    said = attendances.read_message(PRESENCE)
    assert said is not None
    assert said.attendances == {"Zoë": Attendance(2, T0), "": None}


def is_text_frame(message: bytes) -> bool:
    """What a client can read: an object with a type, in UTF-8."""
    return is_message(json.loads(message.decode()))


def is_message(parsed: Any) -> bool:
    return isinstance(parsed, dict) and isinstance(parsed["type"], str)


def is_event(message: bytes) -> bool:
    """What a stream tells of it arrives as it was sent."""
    relayed = protocol_v2.Relayed(session_id=SESSION, timestamp=T0, message=Raw(message))
    (event,) = EventParser().feed(EVENTS.encode(dumps(relayed)))
    return event.name == "message" and bool(event.json["message"] == json.loads(message))


def is_message_in_msgpack(message: bytes) -> bool:
    messages, rest = cut_frames(MSGPACK.encode(message))
    return rest == b"" and [is_message(each) for each in messages] == [True]


@examples(200)
@given(payload=payloads)
def test_what_is_published_as_an_update_is_read_as_one_or_is_junk(payload: bytes) -> None:
    update_id(payload)
    read = read_published(payload, T0)
    if read is None:
        return
    assert len(read.session_id) == 36  # of what is no UUID nobody is a client
    if isinstance(read, Disconnect):
        assert read.subject
    elif isinstance(read, Update):
        assert len(payload) <= MAX_PUBLISHED_BYTES
        assert is_text_frame(read.message)
        assert is_message_in_msgpack(read.message)
    else:
        assert isinstance(read, Deletion)
        assert read.message is None or is_text_frame(read.message)


@examples(200)
@given(payload=payloads | mutated(PRESENCE))
def test_what_is_read_of_who_is_present_is_what_was_said(payload: bytes) -> None:
    read = attendances.read_message(payload)
    if read is None:
        return
    assert attendances.read_message(attendances.message_of(*astuple(read))) == read
    for each in (read.attendances or {}).values():
        assert each is None or (type(each.connections), type(each.since_ms)) == (int, int)
        assert each is None or each.connections >= 0


@examples(200)
@given(payload=payloads)
def test_what_is_published_as_a_message_is_relayed_whole_or_is_junk(payload: bytes) -> None:
    read = read_relayed(payload)
    if read is not None:
        assert len(read) <= MAX_RELAYED_BYTES
        assert is_text_frame(read)
        assert is_message_in_msgpack(read)
        assert is_event(read)


# --- through Redis, to a client ------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(redis_server: RedisServer) -> Iterator[ServerProcess]:
    process = ServerProcess(f"--broker={redis_server.url}", "--prefix=fuzz:", "--log-level=warning")
    yield process
    assert process.stop() == 0
    assert [line for line in process.log_lines if '"error"' in line or "Traceback" in line] == []


def addressed(payload: bytes, session_id: str) -> bytes:
    return payload.replace(SESSION.encode(), session_id.encode())


@examples(60)
@given(published=st.lists(payloads, max_size=8), relayed=st.lists(payloads, max_size=8))
def test_whatever_is_published_clients_get_valid_text_or_nothing(
    redis_server: RedisServer, server: ServerProcess, published: list[bytes], relayed: list[bytes]
) -> None:
    session_id = str(uuid4())  # no example shall meet what another left

    async def watch() -> None:
        async with watching(server, session_id) as [client]:
            with redis_server.client as bus:
                for payload in published:
                    bus.publish("fuzz:session-updates", addressed(payload, session_id))
                for payload in relayed:
                    bus.publish(f"fuzz:ws:{session_id}", addressed(payload, session_id))
                bus.publish(f"fuzz:ws:{session_id}", b'{"type":"THE END"}')
            last = b""
            while last != b'{"type":"THE END"}':
                opcode, last = await asyncio.wait_for(client.recv_frame(), 10)
                if opcode == CLOSE:  # one of them was a deletion
                    assert last[:2] == struct.pack("!H", 1000)
                    return
                if opcode == PING:
                    continue
                assert opcode == TEXT
                assert is_text_frame(last)
        assert server.process.poll() is None

    asyncio.run(watch())
