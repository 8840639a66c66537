"""/asyncapi.json is an AsyncAPI 3.0 document, and says of each message what the server writes and reads."""

import json
import re
from typing import Any

import pytest
from msgspec.structs import replace

from lockstep import errors
from lockstep.commands import COMMANDS
from lockstep.requests.asyncapi import ANSWERS_V1, ANSWERS_V2
from lockstep.requests.asyncapi_messages import ERRORS_V2
from lockstep.rules.state_json import to_json
from lockstep.wire import protocol_v1, protocol_v2
from lockstep.wire.protocol_v2 import BadMessage, read_message
from tests.support.api import LEAST_BODIES, SOME_ID, serving
from tests.support.asyncapi import DOCUMENT, complaints, faults
from tests.support.processes import ServerProcess
from tests.support.sessions_under_test import T0, pending
from tests.support.sockets import command, create, new_id, watching
from tests.support.ws_client import Closed, WsClient

STATE = to_json(replace(pending(60_000, 60_000), commit="q7Rw_x0A"))


async def test_the_document_is_served_bare_as_it_was_built() -> None:
    async with serving() as api:
        answer = await api("GET", "/asyncapi.json")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.body == DOCUMENT


def test_the_document_is_what_asyncapi_demands() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert complaints(DOCUMENT) == []


@pytest.mark.parametrize(
    "broken",
    [
        DOCUMENT | {"asyncapi": "2.6.0"},
        DOCUMENT | {"unknown": 1},
        DOCUMENT | {"channels": {"v1": {"messages": [1]}}},
        DOCUMENT | {"operations": {"v1.tell": {"action": "shout", "channel": {"$ref": "#/channels/v1"}}}},
        {name: value for name, value in DOCUMENT.items() if name != "info"},
    ],
)
def test_a_document_that_is_none_would_be_noticed(broken: Any) -> None:
    assert complaints(broken)


def test_every_reference_leads_somewhere() -> None:
    found = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT))
    assert len(found) > 100
    for each in found:
        at = DOCUMENT
        for part in each.split("/"):
            at = at[part]


def test_every_schema_is_used() -> None:
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)))
    assert used == DOCUMENT["components"]["schemas"].keys()


def tags(structs: Any) -> set[str]:
    return {str(each.__struct_config__.tag) for each in structs}


def test_every_message_is_in_its_channel() -> None:
    channels = DOCUMENT["channels"]
    assert set(channels["v1"]["messages"]) == protocol_v1.SERVER_TYPES | tags(protocol_v1.CLIENT_MESSAGES) | {
        "APPLICATION"
    }
    for channel in ("v2", "v2msgpack"):
        assert set(channels[channel]["messages"]) == tags(protocol_v2.SERVER_MESSAGES) | set(
            protocol_v2.CLIENT_MESSAGES
        )


def test_a_stream_has_the_messages_that_are_told_unasked() -> None:
    unasked = {"SNAPSHOT", "UPDATE", "MESSAGE", "DELETED", "PRESENCE", "UNSUBSCRIBED"}
    assert set(DOCUMENT["channels"]["stream"]["messages"]) == unasked
    for tag in unasked - {"SNAPSHOT"}:
        described = DOCUMENT["components"]["messages"][f"stream.{tag}"]
        assert described["name"] == tag.lower()
        assert "id" not in described["payload"]["properties"]


@pytest.mark.parametrize(
    ("position", "reason", "state", "is_good"),
    [
        (None, "requested", None, True),
        ("p", "requested", json.loads(STATE), True),
        (None, "foreign", {"any": "thing"}, True),
        (None, "created", None, False),
        ("p", "requested", None, False),
        (None, "requested", json.loads(STATE), False),
    ],
)
def test_a_snapshot_of_a_stream_may_say_that_there_is_no_session(
    position: str | None, reason: str, state: Any, is_good: bool
) -> None:
    told = {"type": "SNAPSHOT", "sessionId": SOME_ID, "timestamp": T0}
    told |= {"position": position, "reason": reason, "state": state}
    assert (faults("stream", told) == []) is is_good


def test_a_message_in_msgpack_is_that_of_json_in_another_content_type() -> None:
    messages = DOCUMENT["components"]["messages"]
    for tag in DOCUMENT["channels"]["v2"]["messages"]:
        described = messages[f"v2msgpack.{tag}"]
        assert described["contentType"] == "application/msgpack"
        assert described["payload"] == {"$ref": f"#/components/messages/v2.{tag}/payload"}
        said = {"type": tag, "id": 1, "sessionId": SOME_ID, "token": "x", "command": "start"}
        assert bool(faults("v2msgpack", said)) == bool(faults("v2", said))


def test_a_channel_is_that_of_its_subprotocol() -> None:
    offered = {
        name: channel["bindings"]["ws"]["headers"]["properties"]["Sec-WebSocket-Protocol"]["examples"][0]
        for name, channel in DOCUMENT["channels"].items()
        if name != "stream"
    }
    assert offered == {
        "v1": protocol_v1.SUBPROTOCOL,
        "v2": protocol_v2.SUBPROTOCOL,
        "v2msgpack": protocol_v2.MSGPACK_SUBPROTOCOL,
    }


def test_every_message_of_a_client_has_its_answers() -> None:
    assert set(ANSWERS_V1) == set(protocol_v1.CLIENT_MESSAGES)
    assert set(ANSWERS_V2) == set(protocol_v2.CLIENT_MESSAGES.values())
    for version, answers in (("v1", ANSWERS_V1), ("v2", ANSWERS_V2), ("v2msgpack", ANSWERS_V2)):
        for asked in tags(answers):
            assert DOCUMENT["operations"][f"{version}.{asked}"]["action"] == "receive"


def test_every_error_of_a_command_can_be_told() -> None:
    """What concerns a request's own bytes and headers apart."""
    said = set(DOCUMENT["components"]["schemas"])
    assert {f"Command_{name}" for name in COMMANDS} <= said
    known = {each.code for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "code")}
    assert set(ERRORS_V2) - known == set(protocol_v2.BAD_MESSAGES)


# --- what is written -----------------------------------------------------------------------------


def test_what_v1_writes_is_what_the_document_says() -> None:
    written = [
        protocol_v1.connected(SOME_ID, T0),
        protocol_v1.state_update(SOME_ID, T0, STATE),
        protocol_v1.state_sync(SOME_ID, T0, STATE),
        protocol_v1.session_deleted(SOME_ID, T0, "0lqtw8xc0abcd"),
        protocol_v1.pong(T0, {}),
        protocol_v1.pong(T0, {"id": [None]}),
        protocol_v1.error("UNKNOWN_TYPE", "what?"),
    ]
    assert {json.loads(each)["type"] for each in written} == protocol_v1.SERVER_TYPES
    for each in written:
        assert faults("v1", json.loads(each)) == []


async def test_what_is_said_in_every_mode_is_what_the_document_says(server_process: ServerProcess) -> None:
    modes: list[dict[str, Any]] = [
        {},
        {"sync_mode": "per_cycle", "time_per_cycle_ms": 60_000},
        {"sync_mode": "global", "total_time_ms": 60_000},
        {"sync_mode": "count_up", "max_time_ms": 60_000},
    ]
    for fields in modes:
        session_id = new_id()
        heard: set[str] = set()

        async def hear(channel: str, client: WsClient, heard: set[str] = heard) -> None:
            message = await client.recv()
            assert not isinstance(message, Closed)
            assert faults(channel, message) == []
            heard.add(message["type"])

        v2 = await WsClient.connect(
            f"{server_process.ws_url}/ws?sessionId={session_id}",
            headers={"Sec-WebSocket-Protocol": protocol_v2.SUBPROTOCOL},
        )
        async with v2, watching(server_process, session_id) as [v1]:
            await hear("v2", v2)
            await hear("v2", v2)
            await create(server_process, session_id, **fields)
            for name in ("start", "switch", "pause", "resume"):
                await command(server_process, session_id, name, data={"by": "test"})
            newcomer = {"participant_id": new_id(), "total_time_ms": 60_000}
            await command(server_process, session_id, "seat", participants=[newcomer])
            await command(server_process, session_id, "unseat", participant_id=newcomer["participant_id"])
            for _ in range(7):
                await hear("v1", v1)
                await hear("v2", v2)
            for message in (
                {"type": "SYNC", "id": 1, "sessionId": session_id},
                {"type": "SUBSCRIBE", "id": 2, "sessionId": session_id},
                {"type": "COMMAND", "id": 3, "sessionId": session_id, "command": "fly"},
                {"type": "PING"},
                {"type": "UNSUBSCRIBE", "id": 5, "sessionId": session_id},
            ):
                assert faults("v2", message) == []
                await v2.send(message)
                await hear("v2", v2)
        assert heard == {
            *("WELCOME", "SUBSCRIBED", "SNAPSHOT", "UPDATE", "ERROR", "PONG", "UNSUBSCRIBED"),
            "STATE_UPDATE",
        }


# --- what is read --------------------------------------------------------------------------------

GOOD: list[dict[str, Any]] = [
    {"type": "SUBSCRIBE", "id": 1, "sessionId": SOME_ID},
    {"type": "SUBSCRIBE", "id": "x", "sessionId": SOME_ID.upper(), "position": None, "more": 1},
    {"type": "SUBSCRIBE", "id": 1, "sessionId": SOME_ID, "position": "anything"},
    {"type": "UNSUBSCRIBE", "id": "", "sessionId": SOME_ID},
    {"type": "SYNC", "id": "x" * 64, "sessionId": SOME_ID},
    {"type": "REAUTH", "id": -1, "token": "abc"},
    {"type": "PING"},
    {"type": "PING", "id": 10**18},
    *(
        {
            "type": "COMMAND",
            "id": 1,
            "sessionId": SOME_ID,
            "command": name,
            "body": LEAST_BODIES.get(name, {}),
        }
        for name in COMMANDS
    ),
    {"type": "COMMAND", "id": 1, "sessionId": SOME_ID, "command": "start", "idempotencyKey": "k"},
    {"type": "COMMAND", "id": 1, "sessionId": SOME_ID, "command": "start", "body": None},
]
BAD: list[Any] = [
    {},
    {"type": "NOPE"},
    {"type": "SUBSCRIBE", "sessionId": SOME_ID},
    {"type": "SUBSCRIBE", "id": None, "sessionId": SOME_ID},
    {"type": "SUBSCRIBE", "id": 1.5, "sessionId": SOME_ID},
    {"type": "SUBSCRIBE", "id": True, "sessionId": SOME_ID},
    {"type": "SUBSCRIBE", "id": "x" * 65, "sessionId": SOME_ID},
    {"type": "SUBSCRIBE", "id": 1},
    *({"type": "SUBSCRIBE", "id": 1, "sessionId": bad} for bad in ("", SOME_ID[:-1], SOME_ID + "0", 7, [])),
    {"type": "SUBSCRIBE", "id": 1, "sessionId": SOME_ID, "position": 5},
    {"type": "SUBSCRIBE", "id": 1, "sessionId": SOME_ID, "position": "x" * 201},
    {"type": "REAUTH", "id": 1},
    {"type": "COMMAND", "id": 1, "sessionId": SOME_ID},
    {"type": "COMMAND", "id": 1, "sessionId": SOME_ID, "command": "start", "body": []},
    {"type": "COMMAND", "id": 1, "sessionId": SOME_ID, "command": "start", "idempotencyKey": 1},
]


def is_read(message: Any) -> bool:
    try:
        read_message(message)
    except BadMessage:
        return False
    return True


@pytest.mark.parametrize("message", GOOD, ids=str)
def test_what_is_good_by_the_document_is_read(message: Any) -> None:
    assert faults("v2", message) == []
    assert is_read(message)


@pytest.mark.parametrize("message", BAD, ids=str)
def test_what_is_bad_by_the_document_is_refused(message: Any) -> None:
    assert faults("v2", message)
    assert not is_read(message)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_body_that_rest_takes(name: str) -> None:
    asked = {"type": "COMMAND", "id": 1, "sessionId": SOME_ID, "command": name}
    good = LEAST_BODIES.get(name, {})
    assert bool(faults("v2", asked)) is bool(good)
    assert faults("v2", asked | {"body": good | {"data": {}, "expected_version": 1}}) == []
    assert faults("v2", asked | {"body": good | {"unknown": 1}})
    assert faults("v2", asked | {"body": good | {"expected_version": 0}})
