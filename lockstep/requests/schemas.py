"""JSON Schema of what is asked and answered, with the limits of what reads it."""

from collections.abc import Iterable
from typing import Any

from lockstep.access import Scope
from lockstep.commands import COMMANDS
from lockstep.requests import kinds, parameters
from lockstep.requests.bodies import (
    ALLOWED_ON_TIMEOUT,
    CREATE,
    MIN_PARTICIPANTS,
    NEEDED,
    NEEDED_OF_EACH,
    PARTICIPANT,
)
from lockstep.requests.kinds import Choice, Integer, Kind, List, Metadata, Record, Text, Uuid
from lockstep.rules.state import CLOCK_KINDS, Mode, OnTimeout, Status
from lockstep.wire.answers import SWITCHED_FIELDS
from lockstep.wire.payloads import MAX_RELAYED_BYTES
from lockstep.wire.protocol_v1 import SERVER_TYPES

Schema = dict[str, Any]
UUID_PATTERN = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"
SCOPE: Schema = {"enum": [scope.name.lower() for scope in Scope]}


def schema_of(kind: Kind) -> Schema:
    """What `kind` takes, as JSON Schema; what that cannot say stands in the description."""
    match kind:
        case Integer(minimum, maximum, zero):
            schema: Schema = {"type": "integer", "minimum": minimum, "maximum": maximum}
            return schema if zero else schema | {"not": {"const": 0}}
        case Uuid():
            return {"type": "string", "pattern": UUID_PATTERN}
        case Text(max_length):
            return {"type": "string", "minLength": 1, "maxLength": max_length}
        case Choice(of):
            return {"type": "string", "enum": [each.value for each in of]}
        case Metadata():
            most = f"At most {kinds.MAX_METADATA_BYTES} bytes as JSON"
            return {"type": "object", "description": most}
        case List(of, max_length):
            return {"type": "array", "items": schema_of(of), "maxItems": max_length}
        case Record(fields, required):
            return _record({name: schema_of(each) for name, each in fields.items()}, required)
    raise TypeError(f"no schema for {kind}")


def _record(properties: dict[str, Schema], required: Iterable[str]) -> Schema:
    """An object without other fields, where null stands for an absent one."""
    required = list(required)
    read = {name: each if name in required else _or_null(each) for name, each in properties.items()}
    schema = {"type": "object", "properties": read, "additionalProperties": False}
    return schema | {"required": required} if required else schema


def _or_null(schema: Schema) -> Schema:
    if "enum" in schema:
        schema = schema | {"enum": [*schema["enum"], None]}
    return (
        schema | {"type": [schema["type"], "null"]}
        if "type" in schema
        else {"anyOf": [schema, {"type": "null"}]}
    )


def _creation(mode: Mode) -> Schema:
    """A request to create a session of this mode."""
    properties = {name: schema_of(kind) for name, kind in CREATE.fields.items()}
    properties["sync_mode"] = {"type": "string", "enum": [mode.value]}
    properties["on_timeout"] |= {
        "enum": [each.value for each in ALLOWED_ON_TIMEOUT[mode]],
        "default": ALLOWED_ON_TIMEOUT[mode][0].value,
    }
    seat = {name: schema_of(kind) for name, kind in PARTICIPANT.fields.items()}
    seats = properties["participants"]
    seats["items"] = _record(seat, [*PARTICIPANT.required, *NEEDED_OF_EACH.get(mode, ())])
    seats["description"] = "No participant_id twice" + (
        "; total_time_ms is the same within a group" if mode is Mode.PER_GROUP else ""
    )
    required = [*CREATE.required, *NEEDED.get(mode, ())]
    if MIN_PARTICIPANTS[mode]:
        seats["minItems"] = MIN_PARTICIPANTS[mode]
        required.append("participants")
    return _record(properties, required)


def anchored(pattern: str) -> str:
    return f"^{pattern}$"


INTEGER: Schema = {"type": "integer"}
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
ANSWERED_UUID: Schema = {"type": "string", "format": "uuid"}
UUID_OR_NULL: Schema = {"type": ["string", "null"], "format": "uuid"}
INSTANT: Schema = {"type": "string", "format": "date-time"}
INSTANT_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}


def object_of(properties: dict[str, Schema], optional: Iterable[str] = ()) -> Schema:
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required}


def schemas() -> dict[str, Schema]:
    seat = {
        "participant_id": ANSWERED_UUID,
        "participant_index": COUNT,
        "budget_ms": COUNT_OR_NULL,
        "total_time_ms": COUNT_OR_NULL,
        "time_remaining_ms": COUNT_OR_NULL,
        "time_used_ms": COUNT,
        "cycle_count": COUNT,
        "is_active": BOOLEAN,
        "has_expired": BOOLEAN,
        "group_id": STRING,
    }
    clock = {
        "kind": {"type": "string", "enum": sorted(set(CLOCK_KINDS.values()))},
        "remaining_ms": COUNT,
        "elapsed_ms": COUNT,
    }
    state = {
        "session_id": ANSWERED_UUID,
        "epoch": {"type": "string", "pattern": anchored(parameters.EPOCH.pattern)},
        "version": {"type": "integer", "minimum": 1},
        "commit": {"type": "string", "minLength": 8, "maxLength": 8},
        "deadline_ms": COUNT_OR_NULL,
        "sync_mode": schema_of(Choice(Mode)),
        "status": schema_of(Choice(Status)),
        "participants": list_of("Participant"),
        "active_participant_id": UUID_OR_NULL,
        "total_time_ms": COUNT_OR_NULL,
        "time_per_cycle_ms": COUNT_OR_NULL,
        "increment_ms": COUNT,
        "clock": {"anyOf": [ref_to("schemas", "Clock"), {"type": "null"}]},
        "on_timeout": schema_of(Choice(OnTimeout)),
        "cycle_started_at": INSTANT_OR_NULL,
        "session_started_at": INSTANT_OR_NULL,
        "session_completed_at": INSTANT_OR_NULL,
        "created_at": INSTANT,
        "updated_at": INSTANT,
        "metadata": {"type": "object"},
        "max_time_ms": COUNT,
        "lap_count": COUNT,
        "lap_elapsed_ms": COUNT,
        "is_flagged": BOOLEAN,
    }
    switched = {name: state[name] for name in SWITCHED_FIELDS}
    event = {
        "version": {"type": "integer", "minimum": 1},
        "type": STRING,
        "at": INSTANT,
        "actor": STRING,
        "request_id": STRING,
        "lap_ms": COUNT,
        "changes": {"type": "object"},
    }
    own = {"type": "string", "minLength": 1, "not": {"enum": sorted(SERVER_TYPES)}}
    creations = {f"Create_{mode.value}": _creation(mode) for mode in Mode}
    return {
        "Participant": object_of(seat, ["group_id"]),
        "Clock": object_of(clock, ["remaining_ms", "elapsed_ms"]),
        "State": object_of(state, ["max_time_ms", "lap_count", "lap_elapsed_ms", "is_flagged"]),
        "Switched": object_of(
            switched | {"expired_participant_id": ANSWERED_UUID, "lap_ms": COUNT},
            ["expired_participant_id", "lap_ms"],
        ),
        "Event": object_of(event, ["actor", "request_id", "lap_ms"]),
        "Create": {"oneOf": [ref_to("schemas", name) for name in creations]},
        **creations,
        **{f"Command_{name}": schema_of(command.body) for name, command in COMMANDS.items()},
        "Message": {
            "type": "object",
            "properties": {"type": own},
            "required": ["type"],
            "description": f"At most {MAX_RELAYED_BYTES} bytes; clients get them as they are",
        },
        "Violation": object_of({"field": STRING, "message": STRING, "code": STRING}),
    }


def list_of(name: str) -> Schema:
    return {"type": "array", "items": ref_to("schemas", name)}


def ref_to(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}
