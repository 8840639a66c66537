"""The contract for machines: an OpenAPI 3.1 document, whose limits are those of validation itself."""

from collections.abc import Iterable
from typing import Any

from lockstep import __version__, errors, validation
from lockstep.access import COMMAND_SCOPES, Scope
from lockstep.errors import LockstepError
from lockstep.idempotency import MIN_KEPT_S
from lockstep.messages import MAX_RELAYED_BYTES, SERVER_TYPES
from lockstep.state import CLOCK_KINDS, Mode, OnTimeout, Status
from lockstep.validation import (
    ALLOWED_ON_TIMEOUT,
    COMMANDS,
    CREATE,
    MIN_PARTICIPANTS,
    NEEDED,
    NEEDED_OF_EACH,
    PARTICIPANT,
    Choice,
    Integer,
    Kind,
    List,
    Metadata,
    Record,
    Text,
    Uuid,
)

Schema = dict[str, Any]

UUID = "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$"
SCOPE: Schema = {"enum": [scope.name.lower() for scope in Scope]}
DONE_ONCE = ("IdempotencyKey", "IdempotencyTtl")

# What any answer of a route that reaches the broker may be instead.
ANYWHERE: tuple[type[LockstepError], ...] = (errors.PayloadTooLarge, errors.HeadTooLarge, LockstepError)
OF_THE_STORE = (
    *ANYWHERE,
    errors.Unauthorized,
    errors.Forbidden,
    errors.BrokerUnavailable,
    errors.StateCorrupt,
)
# What a change may be refused with for its Idempotency-Key's sake.
OF_A_KEY = (errors.IdempotencyKeyReused, errors.ReceivedTooLongAgo)
OF_A_COMMAND = (
    *OF_THE_STORE,
    *OF_A_KEY,
    errors.ValidationError,
    errors.MalformedJson,
    errors.InvalidStateTransition,
    errors.SessionNotFound,
    errors.Conflict,
    errors.PreconditionFailed,
    errors.UnsupportedMediaType,
    errors.SessionBusy,
)

SUMMARIES = {
    "start": "Begin the first turn",
    "switch": "End the turn and begin the next",
    "pause": "Stop the clock",
    "resume": "Let it run on",
    "adjust": "Give or take time",
    "complete": "End the session",
    "cancel": "End a session that was not started",
}


def document() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lockstep",
            "version": __version__,
            "description": "Shared session clocks and session state, identical on every screen. A client"
            " follows a session by the WebSocket /ws; what is said there is described in docs/protocol.md."
            " In a body, null means absent. Every route answers OPTIONS.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "headers": _headers(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Where the server has keys; without them nobody is asked. An operation"
                    " names the least `scope` that will do: view, play, control or admin; each includes those"
                    " before it.",
                }
            },
        },
    }


# --- what is asked -------------------------------------------------------------------------------


def schema_of(kind: Kind) -> Schema:
    """What `kind` takes, as JSON Schema; what that cannot say stands in the description."""
    match kind:
        case Integer(minimum, maximum, zero):
            schema: Schema = {"type": "integer", "minimum": minimum, "maximum": maximum}
            return schema if zero else schema | {"not": {"const": 0}}
        case Uuid():
            return {"type": "string", "pattern": UUID}
        case Text(max_length):
            return {"type": "string", "minLength": 1, "maxLength": max_length}
        case Choice(of):
            return {"type": "string", "enum": [each.value for each in of]}
        case Metadata():
            most = f"At most {validation.MAX_METADATA_BYTES} bytes as JSON"
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


def _parameters() -> dict[str, Schema]:
    whole = {"type": "integer", "minimum": 0, "maximum": validation.MAX_INT}
    tags = {"type": "string", "examples": ['"0lquvc000k3f9-3-Zk8w_q1B"']}
    return {
        "Id": _parameter("path", "id", {"type": "string", "pattern": UUID}, "The session", required=True),
        "Status": _parameter("query", "status", schema_of(Choice(Status)), "Only sessions of this status"),
        "Limit": _parameter(
            "query",
            "limit",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": validation.MAX_PAGE,
                "default": validation.DEFAULT_PAGE,
            },
            "So many at most",
        ),
        "Cursor": _parameter(
            "query",
            "cursor",
            {"type": "string", "pattern": _anchored(validation.CURSOR.pattern)},
            "The next_cursor of the page before",
        ),
        "Since": _parameter("query", "since", whole, "Only what came after this version"),
        "Epoch": _parameter(
            "query",
            "epoch",
            {"type": "string", "pattern": _anchored(validation.EPOCH.pattern)},
            "Which creation of the session is meant",
        ),
        "IfMatch": _parameter(
            "header",
            "If-Match",
            tags,
            "Only if the state still is one of these; a tag may end after the version",
        ),
        "IfNoneMatch": _parameter("header", "If-None-Match", tags, "Only if the state is none of these"),
        "IdempotencyKey": _parameter(
            "header",
            "Idempotency-Key",
            {
                "type": "string",
                "minLength": 1,
                "maxLength": validation.MAX_KEY_LENGTH,
                "pattern": "^[!-~]([ -~]*[!-~])?$",
            },
            "The request is done once, however often it is sent with this key",
        ),
        "IdempotencyTtl": _parameter(
            "header",
            "Idempotency-TTL",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": validation.MAX_KEPT_S,
                "default": validation.MAX_KEPT_S,
            },
            f"For so many seconds, and {MIN_KEPT_S} at least, if it has a key",
        ),
    }


def _parameter(where: str, name: str, schema: Schema, says: str, *, required: bool = False) -> Schema:
    parameter = {"name": name, "in": where, "description": says, "schema": schema}
    return parameter | {"required": True} if required else parameter


def _anchored(pattern: str) -> str:
    return f"^{pattern}$"


# --- what is answered ----------------------------------------------------------------------------

INTEGER: Schema = {"type": "integer"}
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
ANSWERED_UUID: Schema = {"type": "string", "format": "uuid"}
UUID_OR_NULL: Schema = {"type": ["string", "null"], "format": "uuid"}
INSTANT: Schema = {"type": "string", "format": "date-time"}
INSTANT_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}


def _object(properties: dict[str, Schema], optional: Iterable[str] = ()) -> Schema:
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required}


def _schemas() -> dict[str, Schema]:
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
        "epoch": {"type": "string", "pattern": _anchored(validation.EPOCH.pattern)},
        "version": {"type": "integer", "minimum": 1},
        "commit": {"type": "string", "minLength": 8, "maxLength": 8},
        "deadline_ms": COUNT_OR_NULL,
        "sync_mode": schema_of(Choice(Mode)),
        "status": schema_of(Choice(Status)),
        "participants": _list_of("Participant"),
        "active_participant_id": UUID_OR_NULL,
        "total_time_ms": COUNT_OR_NULL,
        "time_per_cycle_ms": COUNT_OR_NULL,
        "increment_ms": COUNT,
        "clock": {"anyOf": [_ref("schemas", "Clock"), {"type": "null"}]},
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
    switched = {
        name: state[name]
        for name in (
            "session_id",
            "active_participant_id",
            "cycle_started_at",
            "participants",
            "status",
            "version",
        )
    }
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
        "Participant": _object(seat, ["group_id"]),
        "Clock": _object(clock, ["remaining_ms", "elapsed_ms"]),
        "State": _object(state, ["max_time_ms", "lap_count", "lap_elapsed_ms", "is_flagged"]),
        "Switched": _object(
            switched | {"expired_participant_id": ANSWERED_UUID, "lap_ms": COUNT},
            ["expired_participant_id", "lap_ms"],
        ),
        "Event": _object(event, ["actor", "request_id", "lap_ms"]),
        "Create": {"oneOf": [_ref("schemas", name) for name in creations]},
        **creations,
        **{f"Command_{name}": schema_of(record) for name, record in COMMANDS.items()},
        "Message": {
            "type": "object",
            "properties": {"type": own},
            "required": ["type"],
            "description": f"At most {MAX_RELAYED_BYTES} bytes; clients get them as they are",
        },
        "Violation": _object({"field": STRING, "message": STRING, "code": STRING}),
    }


def _headers() -> dict[str, Schema]:
    return {
        "RequestId": {"description": "The request's own X-Request-ID, or one made for it", "schema": STRING},
        "ETag": {"description": '"<epoch>-<version>-<commit>"', "schema": STRING},
        "Location": {"description": "The session's path", "schema": STRING},
        "RetryAfter": {"description": "Seconds", "schema": COUNT},
        "Replayed": {
            "description": "true where the request was done before",
            "schema": {"type": "string", "enum": ["true"]},
        },
        "RateLimitLimit": {"description": "Requests in a window", "schema": COUNT},
        "RateLimitRemaining": {"description": "Requests left in this window", "schema": COUNT},
        "RateLimitReset": {"description": "Seconds until the next window", "schema": COUNT},
    }


def _answer(says: str, schema: Schema | None = None, **headers: str) -> Schema:
    named = {"X-Request-ID": _ref("headers", "RequestId")}
    named |= {name.replace("_", "-"): _ref("headers", ref) for name, ref in headers.items()}
    answer: Schema = {"description": says, "headers": named}
    return answer if schema is None else answer | {"content": {"application/json": {"schema": schema}}}


def _data(schema: Schema) -> Schema:
    return _object({"data": schema})


def _refusals(kinds: Iterable[type[LockstepError]], *, is_limited: bool) -> dict[str, Schema]:
    """The answers of these errors by status, each with the codes it can have."""
    found: dict[str, set[str]] = {}
    retry: set[str] = set()
    for kind in kinds:
        found.setdefault(str(kind.status), set()).add(kind.code)
        if kind.retry_after_s is not None:
            retry.add(str(kind.status))
    if is_limited:
        found["429"] = {"RATE_LIMIT_EXCEEDED"}
        retry.add("429")
    answers = {}
    for status, codes in sorted(found.items()):
        headers = {"Retry_After": "RetryAfter"} if status in retry else {}
        if status == "429":
            headers |= {
                "RateLimit_Limit": "RateLimitLimit",
                "RateLimit_Remaining": "RateLimitRemaining",
                "RateLimit_Reset": "RateLimitReset",
            }
        answers[status] = _answer(", ".join(sorted(codes)), _error(codes), **headers)
    return answers


def _error(codes: set[str]) -> Schema:
    details: Schema = {"type": "object"}
    if errors.ValidationError.code in codes:
        details = {"anyOf": [details, _list_of("Violation")]}
    for kind in (errors.Unauthorized, errors.Forbidden):
        if codes == {kind.code}:
            # The least scope that will do is told where that is the reason.
            details = _object({"reason": {"enum": list(kind.reasons)}, "scope": SCOPE}, ["scope"])
    error = {
        "code": {"type": "string", "enum": sorted(codes)},
        "message": STRING,
        "details": details,
        "retry_after_seconds": COUNT,
    }
    return _object({"error": _object(error, ["details", "retry_after_seconds"])})


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": _ref("schemas", name)}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


# --- routes --------------------------------------------------------------------------------------


def _operation(
    name: str,
    says: str,
    answers: dict[str, Schema],
    kinds: Iterable[type[LockstepError]] = ANYWHERE,
    *,
    parameters: Iterable[str] = (),
    body: str | None = None,
    needs_body: bool = False,
    is_limited: bool = True,
    scope: Scope | None = None,
) -> Schema:
    """`scope` is the least that a token needs, where the server has keys; None: no token is needed."""
    operation: Schema = {
        "operationId": name,
        "summary": says,
        "responses": answers | _refusals(kinds, is_limited=is_limited),
    }
    if scope is not None:
        operation["security"] = [{}, {"token": [scope.name.lower()]}]
    if parameters:
        operation["parameters"] = [_ref("parameters", each) for each in parameters]
    if body is not None:
        content = {"application/json": {"schema": _ref("schemas", body)}}
        operation["requestBody"] = {"required": needs_body, "content": content}
    return operation


def _paths() -> dict[str, Schema]:
    state = _data(_ref("schemas", "State"))
    paths: dict[str, Schema] = {
        "/v1/sessions": {
            "post": _operation(
                "create",
                "Create a session",
                {
                    "201": _answer(
                        "The state",
                        state,
                        ETag="ETag",
                        Location="Location",
                        Idempotent_Replayed="Replayed",
                    )
                },
                (
                    *OF_THE_STORE,
                    *OF_A_KEY,
                    errors.ValidationError,
                    errors.MalformedJson,
                    errors.SessionExists,
                    # Done before, and the session is gone, or anew, since.
                    errors.SessionNotFound,
                    errors.Conflict,
                    errors.UnsupportedMediaType,
                ),
                scope=Scope.ADMIN,
                parameters=DONE_ONCE,
                body="Create",
                needs_body=True,
            ),
            "get": _operation(
                "list",
                "List sessions, as they are stored",
                {
                    "200": _answer(
                        "A page",
                        _data(
                            _object(
                                {"sessions": _list_of("State"), "next_cursor": {"type": ["string", "null"]}}
                            )
                        ),
                    )
                },
                (*OF_THE_STORE, errors.ValidationError, errors.MalformedJson),
                scope=Scope.ADMIN,
                parameters=["Status", "Limit", "Cursor"],
            ),
        },
        "/v1/sessions/{id}": {
            "get": _operation(
                "read",
                "The state as of now",
                {
                    "200": _answer("The state", state, ETag="ETag"),
                    "304": _answer("It is the one of If-None-Match", ETag="ETag"),
                },
                (*OF_THE_STORE, errors.ValidationError, errors.SessionNotFound, errors.SessionBusy),
                scope=Scope.VIEW,
                parameters=["Id", "IfNoneMatch"],
            ),
            "delete": _operation(
                "delete",
                "Delete the session, if there is one",
                {"204": _answer("There is none", Idempotent_Replayed="Replayed")},
                (
                    *OF_THE_STORE,
                    *OF_A_KEY,
                    errors.ValidationError,
                    errors.PreconditionFailed,
                    errors.SessionBusy,
                ),
                scope=Scope.ADMIN,
                parameters=["Id", "IfMatch", *DONE_ONCE],
            ),
        },
    }
    for name in COMMANDS:
        answer = _data(_ref("schemas", "Switched")) if name == "switch" else state
        paths[f"/v1/sessions/{{id}}/{name}"] = {
            "post": _operation(
                name,
                SUMMARIES[name],
                {"200": _answer("Done", answer, ETag="ETag", Idempotent_Replayed="Replayed")},
                OF_A_COMMAND,
                scope=COMMAND_SCOPES[name],
                parameters=["Id", "IfMatch", *DONE_ONCE],
                body=f"Command_{name}",
                needs_body=bool(COMMANDS[name].required),
            )
        }
    paths["/v1/sessions/{id}/messages"] = {
        "post": _operation(
            "tell",
            "Send a message to every client of the session",
            {
                "202": _answer(
                    "It is under way",
                    _data(_object({"session_id": ANSWERED_UUID})),
                    Idempotent_Replayed="Replayed",
                )
            },
            (
                *OF_THE_STORE,
                *OF_A_KEY,
                errors.ValidationError,
                errors.MalformedJson,
                errors.SessionNotFound,
                errors.Conflict,  # done before, and the session is anew since
                errors.UnsupportedMediaType,
            ),
            scope=Scope.CONTROL,
            parameters=["Id", *DONE_ONCE],
            body="Message",
            needs_body=True,
        )
    }
    paths["/v1/sessions/{id}/events"] = {
        "get": _operation(
            "events",
            "What each version changed",
            {
                "200": _answer(
                    "A page of the history",
                    _data(
                        _object(
                            {
                                "epoch": STRING,
                                "next_since": {"type": ["integer", "null"]},
                                "events": _list_of("Event"),
                            }
                        )
                    ),
                )
            },
            (
                *OF_THE_STORE,
                errors.ValidationError,
                errors.MalformedJson,
                errors.SessionNotFound,
                errors.EventsGone,
            ),
            scope=Scope.VIEW,
            parameters=["Id", "Since", "Epoch"],
        )
    }
    time = {"timestamp_ms": INTEGER, "server_version": STRING, "drift_tolerance_ms": INTEGER}
    paths["/v1/time"] = {"get": _operation("time", "What time it is", {"200": _answer("Now", _object(time))})}
    return paths | _operators_paths()


def _operators_paths() -> dict[str, Schema]:
    """What is never limited."""

    def status(*values: str) -> Schema:
        return {"type": "string", "enum": list(values)}

    not_ready = _object({"status": status("not_ready"), "reasons": {"type": "array", "items": STRING}})
    text = {"text/plain": {"schema": STRING}}
    upgrade = (errors.UpgradeRequired, errors.Forbidden, errors.ShuttingDown, errors.MalformedJson)
    session = _parameter("query", "sessionId", {"type": "string", "pattern": UUID}, "The session")
    return {
        "/health": {
            "get": _operation(
                "health",
                "Is it alive",
                {"200": _answer("Yes", _object({"status": status("ok")}))},
                is_limited=False,
            )
        },
        "/ready": {
            "get": _operation(
                "ready",
                "May it have traffic",
                {
                    "200": _answer("Yes", _object({"status": status("ready")})),
                    "503": _answer("Not now", not_ready),
                },
                is_limited=False,
            )
        },
        "/metrics": {
            "get": _operation(
                "metrics",
                "Figures for Prometheus",
                {"200": _answer("Text") | {"content": text}},
                is_limited=False,
            )
        },
        "/openapi.json": {
            "get": _operation(
                "openapi", "This document", {"200": _answer("It", {"type": "object"})}, is_limited=False
            )
        },
        "/ws": {
            "get": _operation(
                "follow",
                "Follow a session by WebSocket",
                {"101": _answer("A WebSocket from here on")},
                (*upgrade, LockstepError),
                is_limited=False,
            )
            | {"parameters": [session]}
        },
    }
