"""The schemas of /openapi.json: what is asked and answered, with the limits of what reads and writes it."""

from lockstep.commands import COMMANDS
from lockstep.requests.bodies import ADVANCE, ALLOWED_ON_TIMEOUT, CREATE, DISCONNECT, NEEDED, PARTICIPANT
from lockstep.requests.json_schema import (
    STRING,
    Schema,
    list_of,
    object_of,
    record_of,
    ref_to,
    schema_of,
    schema_of_struct,
)
from lockstep.rules.history import Event
from lockstep.rules.seating import MIN_PARTICIPANTS, NEEDED_OF_EACH
from lockstep.rules.state import Mode
from lockstep.rules.state_json import ClockJson, ParticipantJson, StateJson
from lockstep.wire.answers import SwitchedJson
from lockstep.wire.payloads import MAX_RELAYED_BYTES
from lockstep.wire.protocol_v1 import SERVER_TYPES
from lockstep.wire.protocol_v2 import PresenceList, Present


def schemas() -> dict[str, Schema]:
    creations = {f"Create_{mode.value}": _creation(mode) for mode in Mode}
    return {
        **state_schemas(),
        **presence_schemas(),
        "Switched": schema_of_struct(SwitchedJson),
        "Event": schema_of_struct(Event),
        "Create": {"oneOf": [ref_to("schemas", name) for name in creations]},
        **creations,
        **command_schemas(),
        "Message": application_message(),
        "Disconnect": schema_of(DISCONNECT),
        "Advance": schema_of(ADVANCE),
        "Violation": object_of({"field": STRING, "message": STRING, "code": STRING}),
    }


def state_schemas() -> dict[str, Schema]:
    state = schema_of_struct(StateJson)
    state["required"].remove("presence")  # left out of most; it has no default, as what follows has none
    return {
        "Participant": schema_of_struct(ParticipantJson),
        "Clock": schema_of_struct(ClockJson),
        "State": state,
    }


def presence_schemas() -> dict[str, Schema]:
    listing = schema_of_struct(PresenceList)
    listing["properties"]["present"] = list_of("Present")
    return {"Present": schema_of_struct(Present), "PresenceList": listing}


def command_schemas() -> dict[str, Schema]:
    return {f"Command_{name}": schema_of(command.body) for name, command in COMMANDS.items()}


def _creation(mode: Mode) -> Schema:
    """A request to create a session of this mode."""
    properties = {name: schema_of(kind) for name, kind in CREATE.fields.items()}
    properties["sync_mode"] = {"type": "string", "enum": [mode.value]}
    properties["on_timeout"] |= {
        "enum": [each.value for each in ALLOWED_ON_TIMEOUT[mode]],
        "default": ALLOWED_ON_TIMEOUT[mode][0].value,
    }
    participant = {name: schema_of(kind) for name, kind in PARTICIPANT.fields.items()}
    participants = properties["participants"]
    participants["items"] = record_of(participant, [*PARTICIPANT.required, *NEEDED_OF_EACH.get(mode, ())])
    if mode is Mode.PER_GROUP:
        participants["description"] += "; total_time_ms is the same within a group"
    required = [*CREATE.required, *NEEDED.get(mode, ())]
    if MIN_PARTICIPANTS[mode]:
        participants["minItems"] = MIN_PARTICIPANTS[mode]
        required.append("participants")
    return record_of(properties, required)


def application_message() -> Schema:
    own_type = {"type": "string", "minLength": 1, "not": {"enum": sorted(SERVER_TYPES)}}
    return {
        "type": "object",
        "properties": {"type": own_type},
        "required": ["type"],
        "description": f"At most {MAX_RELAYED_BYTES} bytes; clients get them as they are",
    }
