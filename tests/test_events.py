"""Messages as events of a stream: what a client that reads by the standard is given of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct

from lockstep.errors import MalformedJson
from lockstep.rules.state_json import dumps
from lockstep.wire import events, protocol_v2
from lockstep.wire.events import EVENTS
from tests.support.api import SOME_ID
from tests.support.event_source import Event, EventParser

POSITION = "0lquvc000k3f9-3-Zk8w_q1B"
BEFORE = "0lquvc000k3f9-2-b1Xk2LrT"


def heard(*messages: bytes) -> list[Event]:
    parser = EventParser("before")
    return parser.feed(b"".join(EVENTS.encode(message) for message in messages))


def update(came_from: str, position: str, version: int) -> bytes:
    return dumps(
        protocol_v2.Update(
            session_id=SOME_ID,
            timestamp=1704110409000,
            from_=came_from,
            position=position,
            changes=Raw(b'{"version":%d}' % version),
            events=[],
        )
    )


def snapshot(position: str | None) -> bytes:
    return dumps(
        protocol_v2.Snapshot(
            session_id=SOME_ID,
            timestamp=1704110409000,
            position=position,
            reason="repair" if position else "foreign",
            state=Raw(b'{"version":3}'),
        )
    )


def subscribed(**fields: Any) -> bytes:
    return dumps(protocol_v2.Subscribed(session_id=SOME_ID, timestamp=1704110409000, **fields))


MESSAGES: list[tuple[str, Struct]] = [
    ("deleted", protocol_v2.Deleted(session_id=SOME_ID, timestamp=1704110409000, epoch=None)),
    (
        "message",
        protocol_v2.Relayed(session_id=SOME_ID, timestamp=1704110409000, message=Raw(b'{"position":"x"}')),
    ),
    ("unsubscribed", protocol_v2.Unsubscribed(session_id=SOME_ID, code="DISCONNECTED", message="x")),
]


@pytest.mark.parametrize(("name", "message"), MESSAGES)
def test_a_message_is_an_event_of_its_type_that_leaves_the_position(name: str, message: Struct) -> None:
    (event,) = heard(dumps(message))
    assert (event.name, event.data, event.last_id) == (name, dumps(message).decode(), "before")


def test_a_type_that_is_not_known_here_is_an_event_of_that_name() -> None:
    said = b'{"type":"PRESENCE","sessionId":"x","timestamp":1704110409000,"joined":[]}'
    assert heard(said) == [Event("presence", said.decode(), "before")]


def test_the_position_of_an_update_and_of_a_snapshot_is_the_id() -> None:
    first, second = update(BEFORE, POSITION, 3), snapshot(BEFORE)
    assert heard(first, second) == [
        Event("update", first.decode(), POSITION),
        Event("snapshot", second.decode(), BEFORE),
    ]


def test_what_has_no_position_makes_the_client_forget_the_one_before() -> None:
    assert [event.last_id for event in heard(snapshot(POSITION), snapshot(None))] == [POSITION, ""]


def test_a_follower_that_is_resumed_hears_each_update_by_itself() -> None:
    missed = [update("0lquvc000k3f9-1-q7Rw_x0A", BEFORE, 2), update(BEFORE, POSITION, 3)]
    told = heard(subscribed(updates=Raw(b"[%b]" % b",".join(missed))))
    assert told == [
        Event("update", missed[0].decode(), BEFORE),
        Event("update", missed[1].decode(), POSITION),
    ]


def test_a_follower_that_has_missed_nothing_hears_nothing() -> None:
    assert EVENTS.encode(subscribed(updates=Raw(b"[]"))) == b""


@pytest.mark.parametrize(
    ("position", "state", "reason"),
    [
        (POSITION, b'{"version":3}', "requested"),
        (None, b'{"version":3}', "foreign"),
        (None, b"null", "requested"),
        (None, None, "requested"),
    ],
)
def test_a_follower_that_is_not_resumed_hears_one_snapshot(
    position: str | None, state: bytes | None, reason: str
) -> None:
    (event,) = heard(subscribed(position=position, state=None if state is None else Raw(state)))
    assert (event.name, event.last_id) == ("snapshot", position or "")
    assert event.json == {
        "type": "SNAPSHOT",
        "sessionId": SOME_ID,
        "timestamp": 1704110409000,
        "position": position,
        "reason": reason,
        "state": json.loads(state or b"null"),
    }


@pytest.mark.parametrize("present", [b"[]", b'[{"subject":"anna","connections":1,"since":"x"}]', None])
def test_who_is_present_follows_as_an_event_of_its_own(present: bytes | None) -> None:
    listed = b"" if present is None else b'"present":%b,' % present
    presence = Raw(b'{%b"anonymous":2,"total":3}' % listed)
    for fields, names in (
        ({"position": POSITION, "state": Raw(b"{}")}, ["snapshot", "presence"]),
        ({"updates": Raw(b"[]")}, ["presence"]),
    ):
        told = heard(subscribed(presence=presence, **fields))
        assert [event.name for event in told] == names
        joined = {} if present is None else {"joined": json.loads(present), "left": []}
        assert told[-1].json == {
            "type": "PRESENCE",
            "sessionId": SOME_ID,
            "timestamp": 1704110409000,
            **joined,
            "anonymous": 2,
            "total": 3,
        }


@pytest.mark.parametrize("state", [b'{"a":"}', b'{"a":1}}', b"[" * 100_000, b'{"a":"\xff"}'])
def test_of_a_state_that_was_damaged_in_the_store_no_event_is_made_that_a_client_knows(state: bytes) -> None:
    told = EVENTS.encode(subscribed(position=None, state=Raw(b"{}")).replace(b"{}", state))
    assert told.startswith((b"event: subscribed\n", b"event: snapshot\n"))
    assert told.count(b"\n") <= 4
    assert told.endswith(b"\n\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON, st.sampled_from(["\n", "\r", "\r\n", "\n\r\n  "]), st.booleans())
def test_whatever_is_relayed_arrives_as_it_is_in_one_line(value: Any, gap: str, is_ascii: bool) -> None:
    told = json.dumps({"type": "NOTE", "value": value}, indent=1, ensure_ascii=is_ascii)
    told = told.replace("\n", gap)
    relayed = protocol_v2.Relayed(session_id=SOME_ID, timestamp=1704110409000, message=Raw(told.encode()))
    (event,) = heard(dumps(relayed))
    assert event.json["message"] == {"type": "NOTE", "value": value}
    assert "\n" not in event.data
    assert EVENTS.encode(dumps(relayed)).count(b"\n") == 3


def test_a_message_with_line_breaks_does_not_hide_the_position() -> None:
    state = json.dumps({"version": 3, "metadata": {"a": "\n"}}, indent=2).encode()
    (event,) = heard(subscribed(position=POSITION, state=Raw(state)))
    assert event.last_id == POSITION
    assert event.json["state"] == json.loads(state)


def test_what_is_for_people_or_about_coming_back_is_no_event() -> None:
    parser = EventParser()
    assert parser.feed(events.comment("BROKER_UNAVAILABLE: no") + events.COMMENT + events.retry(1234)) == []
    assert (parser.comments, parser.retry_ms) == (["BROKER_UNAVAILABLE: no", ""], 1234)


def test_a_stream_is_not_written_to() -> None:
    with pytest.raises(MalformedJson):
        EVENTS.decode(b"{}", is_binary=False)
