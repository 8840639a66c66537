"""The contract for machines: an OpenAPI 3.1 document, whose limits are those of validation itself."""

from collections.abc import Iterable
from typing import Any

from lockstep import __version__, errors
from lockstep.access import Scope
from lockstep.commands import COMMANDS
from lockstep.errors import LockstepError
from lockstep.requests import kinds, parameters
from lockstep.requests.json_schema import (
    ANSWERED_UUID,
    COUNT,
    INTEGER,
    STRING,
    UUID_PATTERN,
    Schema,
    anchored,
    list_of,
    object_of,
    ref_to,
    schema_of,
)
from lockstep.requests.kinds import Choice
from lockstep.requests.parameters import MIN_KEPT_S
from lockstep.requests.schemas import schemas
from lockstep.rules.state import Status
from lockstep.wire.answers import SWITCHED

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
            "schemas": schemas(),
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


def _parameters() -> dict[str, Schema]:
    whole = {"type": "integer", "minimum": 0, "maximum": kinds.MAX_INT}
    tags = {"type": "string", "examples": ['"0lquvc000k3f9-3-Zk8w_q1B"']}
    return {
        "Id": _parameter(
            "path", "id", {"type": "string", "pattern": UUID_PATTERN}, "The session", required=True
        ),
        "Status": _parameter("query", "status", schema_of(Choice(Status)), "Only sessions of this status"),
        "Limit": _parameter(
            "query",
            "limit",
            {
                "type": "integer",
                "minimum": 1,
                "maximum": parameters.MAX_PAGE,
                "default": parameters.DEFAULT_PAGE,
            },
            "So many at most",
        ),
        "Cursor": _parameter(
            "query",
            "cursor",
            {"type": "string", "pattern": anchored(parameters.CURSOR.pattern)},
            "The next_cursor of the page before",
        ),
        "Since": _parameter("query", "since", whole, "Only what came after this version"),
        "Epoch": _parameter(
            "query",
            "epoch",
            {"type": "string", "pattern": anchored(parameters.EPOCH.pattern)},
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
                "maxLength": parameters.MAX_KEY_LENGTH,
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
                "maximum": parameters.MAX_KEPT_S,
                "default": parameters.MAX_KEPT_S,
            },
            f"For so many seconds, and {MIN_KEPT_S} at least, if it has a key",
        ),
    }


def _parameter(where: str, name: str, schema: Schema, says: str, *, required: bool = False) -> Schema:
    parameter = {"name": name, "in": where, "description": says, "schema": schema}
    return parameter | {"required": True} if required else parameter


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
    named = {"X-Request-ID": ref_to("headers", "RequestId")}
    named |= {name.replace("_", "-"): ref_to("headers", ref) for name, ref in headers.items()}
    answer: Schema = {"description": says, "headers": named}
    return answer if schema is None else answer | {"content": {"application/json": {"schema": schema}}}


def _data(schema: Schema) -> Schema:
    return object_of({"data": schema})


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
        details = {"anyOf": [details, list_of("Violation")]}
    for kind in (errors.Unauthorized, errors.Forbidden):
        if codes == {kind.code}:
            # The least scope that will do is told where that is the reason.
            details = object_of({"reason": {"enum": list(kind.reasons)}, "scope": SCOPE}, ["scope"])
    error = {
        "code": {"type": "string", "enum": sorted(codes)},
        "message": STRING,
        "details": details,
        "retry_after_seconds": COUNT,
    }
    return object_of({"error": object_of(error, ["details", "retry_after_seconds"])})


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
        operation["parameters"] = [ref_to("parameters", each) for each in parameters]
    if body is not None:
        content = {"application/json": {"schema": ref_to("schemas", body)}}
        operation["requestBody"] = {"required": needs_body, "content": content}
    return operation


def _paths() -> dict[str, Schema]:
    state = _data(ref_to("schemas", "State"))
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
                            object_of(
                                {"sessions": list_of("State"), "next_cursor": {"type": ["string", "null"]}}
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
    for command in COMMANDS.values():
        answer = _data(ref_to("schemas", "Switched")) if command.answer is SWITCHED else state
        paths[f"/v1/sessions/{{id}}/{command.name}"] = {
            "post": _operation(
                command.name,
                command.summary,
                {"200": _answer("Done", answer, ETag="ETag", Idempotent_Replayed="Replayed")},
                OF_A_COMMAND,
                scope=command.scope,
                parameters=["Id", "IfMatch", *DONE_ONCE],
                body=f"Command_{command.name}",
                needs_body=bool(command.body.required),
            )
        }
    paths["/v1/sessions/{id}/messages"] = {
        "post": _operation(
            "tell",
            "Send a message to every client of the session",
            {
                "202": _answer(
                    "It is under way",
                    _data(object_of({"session_id": ANSWERED_UUID})),
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
                        object_of(
                            {
                                "epoch": STRING,
                                "next_since": {"type": ["integer", "null"]},
                                "events": list_of("Event"),
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
    paths["/v1/time"] = {
        "get": _operation("time", "What time it is", {"200": _answer("Now", object_of(time))})
    }
    return paths | _operators_paths()


def _operators_paths() -> dict[str, Schema]:
    """What is never limited."""

    def status(*values: str) -> Schema:
        return {"type": "string", "enum": list(values)}

    not_ready = object_of({"status": status("not_ready"), "reasons": {"type": "array", "items": STRING}})
    text = {"text/plain": {"schema": STRING}}
    upgrade = (errors.UpgradeRequired, errors.Forbidden, errors.ShuttingDown, errors.MalformedJson)
    session = _parameter("query", "sessionId", {"type": "string", "pattern": UUID_PATTERN}, "The session")
    return {
        "/health": {
            "get": _operation(
                "health",
                "Is it alive",
                {"200": _answer("Yes", object_of({"status": status("ok")}))},
                is_limited=False,
            )
        },
        "/ready": {
            "get": _operation(
                "ready",
                "May it have traffic",
                {
                    "200": _answer("Yes", object_of({"status": status("ready")})),
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
