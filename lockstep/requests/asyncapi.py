"""The contract of WebSockets and event streams for machines: an AsyncAPI 3.0 document.

It is made of what writes and reads messages.
"""

from typing import Any

from msgspec import Struct

from lockstep import __version__
from lockstep.requests.asyncapi_messages import STREAMED, message, schemas, streamed, tag_of
from lockstep.requests.json_schema import STRING, UUID_PATTERN, Schema, ref_to
from lockstep.requests.schemas import application_message
from lockstep.wire import protocol_v1, protocol_v2

Messages = tuple[type[Struct], ...]

ANSWERS_V1: dict[type[Struct], Messages] = {
    protocol_v1.Ping: (protocol_v1.Pong,),
    protocol_v1.Reconnect: (protocol_v1.StateSync, protocol_v1.Error),
}
ANSWERS_V2: dict[type[Struct], Messages] = {
    protocol_v2.Subscribe: (protocol_v2.Subscribed, protocol_v2.Error),
    protocol_v2.Unsubscribe: (protocol_v2.Unsubscribed, protocol_v2.Error),
    protocol_v2.Sync: (protocol_v2.Snapshot, protocol_v2.Error),
    protocol_v2.Command: (protocol_v2.Result, protocol_v2.Error),
    protocol_v2.Reauth: (protocol_v2.Reauthenticated, protocol_v2.Error),
    protocol_v2.Ping: (protocol_v2.Pong, protocol_v2.Error),
}
"""What a client says, and what it may be answered: one of these, once."""
ONLY_ANSWERS = {
    protocol_v1.Pong,
    protocol_v2.Result,
    protocol_v2.Reauthenticated,
    protocol_v2.Pong,
}
"""These never come unasked."""
# What clients of v1 get as it was published.
_APPLICATION = "APPLICATION"


def document() -> dict[str, Any]:
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Lockstep",
            "version": __version__,
            "description": "How clients follow shared session clocks over a WebSocket, and change them, or"
            " follow them by an event stream. For people it is described in docs/protocol-v2.md and"
            " docs/protocol.md; what REST takes is in /openapi.json. Ignore fields and types of messages"
            " that you do not know: more may come.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "v1": _channel_v1(),
            "v2": _channel_v2(
                "v2",
                "Protocol v2: many sessions, changes instead of states, commands with answers",
                protocol_v2.SUBPROTOCOL,
            ),
            "v2msgpack": _channel_v2(
                "v2msgpack",
                "Protocol v2 in MessagePack: the same objects, one in each binary frame",
                protocol_v2.MSGPACK_SUBPROTOCOL,
            ),
            "stream": _channel_stream(),
        },
        "operations": {
            **_operations("v1", ANSWERS_V1, protocol_v1.SERVER_MESSAGES, _APPLICATION),
            **_operations("v2", ANSWERS_V2, protocol_v2.SERVER_MESSAGES),
            **_operations("v2msgpack", ANSWERS_V2, protocol_v2.SERVER_MESSAGES),
            **_follow_stream(),
        },
        "components": {
            "messages": {
                **_messages("v1", (*protocol_v1.SERVER_MESSAGES, *ANSWERS_V1)),
                f"v1.{_APPLICATION}": {
                    "summary": "What the application has published, as it was sent.",
                    "payload": application_message(),
                },
                **(v2 := _messages("v2", (*protocol_v2.SERVER_MESSAGES, *ANSWERS_V2))),
                **_in_msgpack(v2),
                **{f"stream.{tag_of(each)}": streamed(each) for each in STREAMED},
            },
            "schemas": schemas(),
        },
    }


# --- channels ------------------------------------------------------------------------------------------

_TOKEN = STRING | {"description": "A JWT, where the server has keys; or Authorization: Bearer"}


def _channel_v1() -> Schema:
    return _channel(
        "v1",
        "Protocol v1: one session, whole states. Spoken also where no subprotocol is offered",
        [*_tags((*protocol_v1.SERVER_MESSAGES, *ANSWERS_V1)), _APPLICATION],
        protocol_v1.SUBPROTOCOL,
        {
            "type": "object",
            "properties": {"sessionId": _session_id("The session"), "token": _TOKEN},
            "required": ["sessionId"],
        },
    )


def _channel_v2(name: str, summary: str, subprotocol: str) -> Schema:
    return _channel(
        name,
        summary,
        _tags((*protocol_v2.SERVER_MESSAGES, *ANSWERS_V2)),
        subprotocol,
        {
            "type": "object",
            "properties": {
                "sessionId": _session_id("SUBSCRIBE to it at once"),
                "position": STRING | {"description": "Where the client has got to in that session"},
                "token": _TOKEN,
            },
        },
    )


def _channel_stream() -> Schema:
    return {
        "address": "/v1/sessions/{sessionId}/stream",
        "summary": "The event stream: one session, the changes of protocol v2 as server-sent events",
        "description": "Each message is an event, named by the type of the message in lower case. The id of"
        " snapshot and update is the position, which Last-Event-ID brings back.",
        "parameters": {"sessionId": {"description": "The session"}},
        "messages": {tag: ref_to("messages", f"stream.{tag}") for tag in _tags(STREAMED)},
    }


def _channel(name: str, summary: str, tags: list[str], subprotocol: str, query: Schema) -> Schema:
    offered = STRING | {"examples": [subprotocol, f"{subprotocol}, bearer.TOKEN"]}
    headers = {"type": "object", "properties": {"Sec-WebSocket-Protocol": offered}}
    return {
        "address": "/ws",
        "summary": summary,
        "messages": {tag: ref_to("messages", f"{name}.{tag}") for tag in tags},
        "bindings": {"ws": {"method": "GET", "query": query, "headers": headers, "bindingVersion": "0.1.0"}},
    }


def _session_id(description: str) -> Schema:
    return {"type": "string", "pattern": UUID_PATTERN, "description": description}


# --- operations ----------------------------------------------------------------------------------------


def _operations(
    channel: str, answers: dict[type[Struct], Messages], server_messages: Messages, *more: str
) -> dict[str, Schema]:
    """One for each message of a client, and one for all that the server says unasked."""
    at = {"$ref": f"#/channels/{channel}"}

    def among(tags: list[str]) -> list[Schema]:
        return [{"$ref": f"#/channels/{channel}/messages/{tag}"} for tag in tags]

    asked = {
        f"{channel}.{tag_of(each)}": {
            "action": "receive",
            "channel": at,
            "messages": among([tag_of(each)]),
            "reply": {"channel": at, "messages": among(_tags(given))},
        }
        for each, given in answers.items()
    }
    unasked = _tags(tuple(each for each in server_messages if each not in ONLY_ANSWERS))
    told = {"action": "send", "channel": at, "messages": among([*unasked, *more])}
    return asked | {f"{channel}.tell": told}


def _follow_stream() -> dict[str, Schema]:
    """One request, and all that the server says on it."""
    query = {
        "type": "object",
        "properties": {
            "lastEventId": STRING | {"description": "As the header Last-Event-ID"},
            "token": _TOKEN,
        },
    }
    told = {
        "action": "send",
        "channel": {"$ref": "#/channels/stream"},
        "messages": [{"$ref": f"#/channels/stream/messages/{tag}"} for tag in _tags(STREAMED)],
        "bindings": {"http": {"method": "GET", "query": query, "bindingVersion": "0.3.0"}},
    }
    return {"stream.tell": told}


def _tags(said: Messages) -> list[str]:
    return [tag_of(each) for each in said]


def _messages(channel: str, said: Messages) -> dict[str, Schema]:
    return {f"{channel}.{tag_of(each)}": message(each) for each in said}


def _in_msgpack(messages: dict[str, Schema]) -> dict[str, Schema]:
    """The same messages of v2, with the payloads that those have."""
    return {
        name.replace("v2.", "v2msgpack.", 1): described
        | {"contentType": "application/msgpack", "payload": ref_to("messages", f"{name}/payload")}
        for name, described in messages.items()
    }
