"""The messages of WebSockets and event streams, for /asyncapi.json: the schemas of what they are made of."""

from inspect import getdoc
from typing import Any

from msgspec import Struct

from lockstep import errors
from lockstep.commands import COMMANDS
from lockstep.errors import LockstepError
from lockstep.requests.json_schema import (
    STRING,
    Schema,
    list_of,
    object_of,
    or_null,
    ref_to,
    schema_of_struct,
)
from lockstep.requests.openapi_answers import COMMAND_ERRORS
from lockstep.requests.schemas import command_schemas, presence_schemas, state_schemas
from lockstep.wire import protocol_v1, protocol_v2

# These are about a request's own bytes and headers.
_OF_HTTP: set[type[LockstepError]] = {
    errors.PayloadTooLarge,
    errors.HeadTooLarge,
    errors.MalformedJson,
    errors.UnsupportedMediaType,
    errors.ReceivedTooLongAgo,
}
_OF_SOCKET: set[type[LockstepError]] = {
    errors.RateLimited,
    errors.NotSubscribed,
    errors.TooManySubscriptions,
    errors.SessionFull,
}
ERRORS_V2 = sorted(
    {each.code for each in {*COMMAND_ERRORS} - _OF_HTTP | _OF_SOCKET} | {*protocol_v2.BAD_MESSAGES}
)
_STATE = ref_to("schemas", "State")
# What somebody else has published as a state.
_ANY_STATE: Schema = {"anyOf": [_STATE, {"type": "object"}]}
# What the classes carry as JSON that is made already.
_CARRIED: dict[type[Struct], dict[str, Schema]] = {
    protocol_v1.StateUpdate: {"state": _ANY_STATE},
    protocol_v1.StateSync: {"state": _STATE},
    protocol_v2.Update: {"changes": ref_to("schemas", "Changes")},
    protocol_v2.Subscribed: {
        "updates": list_of("Update"),
        "state": or_null(_STATE),
        "presence": ref_to("schemas", "PresenceList"),
    },
    protocol_v2.Presence: {"joined": list_of("Present")},
    protocol_v2.Snapshot: {"state": _ANY_STATE},
    protocol_v2.Error: {"code": STRING | {"enum": ERRORS_V2}},
}
STREAMED: tuple[type[Struct], ...] = (
    protocol_v2.Snapshot,
    protocol_v2.Update,
    protocol_v2.Relayed,
    protocol_v2.Deleted,
    protocol_v2.Presence,
    protocol_v2.Unsubscribed,
)
"""What is told by an event stream."""
# What the fields together must be.
_TOGETHER: dict[type[Struct], Schema] = {
    protocol_v2.Subscribed: {"oneOf": [{"required": ["updates"]}, {"required": ["position", "state"]}]},
    protocol_v2.Presence: {"dependentRequired": {"joined": ["left"], "left": ["joined"]}},
    protocol_v2.Snapshot: {
        "if": {"properties": {"reason": {"const": "foreign"}}},
        "then": {"properties": {"position": {"type": "null"}}},
        "else": {"properties": {"position": STRING, "state": _STATE}},
    },
    protocol_v2.Command: {
        "allOf": [
            {
                "if": {"properties": {"command": {"const": command.name}}},
                "then": {
                    "properties": {"body": ref_to("schemas", f"Command_{command.name}")},
                    "required": ["body"],
                }
                if command.body.required
                else {"properties": {"body": or_null(ref_to("schemas", f"Command_{command.name}"))}},
            }
            for command in COMMANDS.values()
        ]
    },
}


def tag_of(struct: type[Struct]) -> str:
    """Its `type`."""
    return str(struct.__struct_config__.tag)


def message(struct: type[Struct]) -> Schema:
    described: Schema = {"name": tag_of(struct), "payload": _payload(struct)}
    doc = getdoc(struct)
    if struct.__doc__ and doc:
        described["summary"] = " ".join(doc.split())
    if "id" in struct.__struct_fields__:
        described["correlationId"] = {"location": "$message.payload#/id"}
    return described


def streamed(struct: type[Struct]) -> Schema:
    """The same as an event: no answer to anything, and a snapshot may say that there is no session."""
    described = message(struct)
    described.pop("correlationId", None)
    described["name"] = tag_of(struct).lower()
    payload = described["payload"]
    payload["properties"].pop("id", None)
    if struct is protocol_v2.Snapshot:
        nothing = {"position": {"type": "null"}, "reason": {"const": "requested"}, "state": {"type": "null"}}
        there_is_none = payload | {"properties": payload["properties"] | nothing}
        for each in ("if", "then", "else"):
            del there_is_none[each]
        described["payload"] = {"anyOf": [payload, there_is_none]}
    return described


def schemas() -> dict[str, Schema]:
    states = state_schemas()
    return {
        **states,
        "Changes": _changes(states["State"]),
        "ParticipantChanges": _participant_changes(states["Participant"]),
        "CommitEvent": schema_of_struct(protocol_v2.CommitEvent),
        "Update": _payload(protocol_v2.Update),
        **presence_schemas(),
        "Left": schema_of_struct(protocol_v2.Left),
        **command_schemas(),
    }


def _payload(struct: type[Struct]) -> Schema:
    schema = schema_of_struct(struct)
    schema["properties"] |= _CARRIED.get(struct, {})
    return schema | _TOGETHER.get(struct, {})


def _changes(state: Schema) -> Schema:
    """The fields of a state that moved: each new version has another commit, at another instant."""
    properties: dict[str, Any] = state["properties"] | {"participants": list_of("ParticipantChanges")}
    always = ("version", "commit")
    return object_of(properties, [name for name in properties if name not in always])


def _participant_changes(participant: Schema) -> Schema:
    """The fields of a participant that moved; all of one who is new, and `removed` of one who left."""
    properties = participant["properties"] | {"removed": {"const": True}}
    return object_of(properties, [name for name in properties if name != "participant_id"])
