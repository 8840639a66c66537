"""The routes, for /openapi.json: what each takes and answers, and which errors it can have."""

from collections.abc import Iterable

from lockstep import errors
from lockstep.access import Scope
from lockstep.commands import COMMANDS
from lockstep.errors import LockstepError
from lockstep.requests.json_schema import (
    ANSWERED_UUID,
    INTEGER,
    STRING,
    UUID_PATTERN,
    Schema,
    list_of,
    object_of,
    ref_to,
)
from lockstep.requests.openapi_answers import (
    COMMAND_ERRORS,
    ERRORS_OF_ANY_ROUTE,
    IDEMPOTENCY_ERRORS,
    STORE_ERRORS,
    answer,
    data,
    refusals,
)
from lockstep.requests.openapi_parameters import parameter
from lockstep.wire import events
from lockstep.wire.answers import SWITCHED

DONE_ONCE = ("IdempotencyKey", "IdempotencyTtl")
STATE = data(ref_to("schemas", "State"))


def _operation(
    name: str,
    summary: str,
    answers: dict[str, Schema],
    error_types: Iterable[type[LockstepError]] = ERRORS_OF_ANY_ROUTE,
    *,
    parameters: Iterable[str] = (),
    body: str | None = None,
    needs_body: bool = False,
    is_limited: bool = True,
    scope: Scope | None = None,
) -> Schema:
    """`scope` is the least that a token needs, where the server has keys; None: no token is needed."""
    described: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": answers | refusals(error_types, is_limited=is_limited),
    }
    if scope is not None:
        described["security"] = [{}, {"token": [scope.name.lower()]}]
    if parameters:
        described["parameters"] = [ref_to("parameters", each) for each in parameters]
    if body is not None:
        content = {"application/json": {"schema": ref_to("schemas", body)}}
        described["requestBody"] = {"required": needs_body, "content": content}
    return described


def paths() -> dict[str, Schema]:
    return (
        _sessions()
        | _commands()
        | _messages_and_history()
        | _presence()
        | _stream()
        | _time()
        | _never_limited()
    )


def _sessions() -> dict[str, Schema]:
    page = object_of({"sessions": list_of("State"), "next_cursor": {"type": ["string", "null"]}})
    created = answer("The state", STATE, ["ETag", "Location", "Idempotent-Replayed"])
    create = _operation(
        "create",
        "Create a session",
        {"201": created},
        (
            *STORE_ERRORS,
            *IDEMPOTENCY_ERRORS,
            errors.ValidationError,
            errors.MalformedJson,
            errors.SessionExists,
            # Done before, and since then the session is gone, or was created again.
            errors.SessionNotFound,
            errors.Conflict,
            errors.UnsupportedMediaType,
        ),
        scope=Scope.ADMIN,
        parameters=DONE_ONCE,
        body="Create",
        needs_body=True,
    )
    list_ = _operation(
        "list",
        "List sessions, as they are stored",
        {"200": answer("A page", data(page))},
        (*STORE_ERRORS, errors.ValidationError, errors.MalformedJson),
        scope=Scope.ADMIN,
        parameters=["Status", "Limit", "Cursor"],
    )
    read = _operation(
        "read",
        "The state as of now",
        {
            "200": answer("The state", STATE, ["ETag"]),
            "304": answer("It is the one of If-None-Match", headers=["ETag"]),
        },
        (*STORE_ERRORS, errors.ValidationError, errors.SessionNotFound, errors.SessionBusy),
        scope=Scope.VIEW,
        parameters=["Id", "IfNoneMatch"],
    )
    delete = _operation(
        "delete",
        "Delete the session, if there is one",
        {"204": answer("There is none", headers=["Idempotent-Replayed"])},
        (
            *STORE_ERRORS,
            *IDEMPOTENCY_ERRORS,
            errors.ValidationError,
            errors.PreconditionFailed,
            errors.SessionBusy,
        ),
        scope=Scope.ADMIN,
        parameters=["Id", "IfMatch", *DONE_ONCE],
    )
    return {
        "/v1/sessions": {"post": create, "get": list_},
        "/v1/sessions/{id}": {"get": read, "delete": delete},
    }


def _commands() -> dict[str, Schema]:
    switched = data(ref_to("schemas", "Switched"))
    return {
        f"/v1/sessions/{{id}}/{command.name}": {
            "post": _operation(
                command.name,
                command.summary,
                {
                    "200": answer(
                        "Done",
                        switched if command.answer is SWITCHED else STATE,
                        ["ETag", "Idempotent-Replayed"],
                    )
                },
                COMMAND_ERRORS,
                scope=command.scope,
                parameters=["Id", "IfMatch", *DONE_ONCE],
                body=f"Command_{command.name}",
                needs_body=bool(command.body.required),
            )
        }
        for command in COMMANDS.values()
    }


def _messages_and_history() -> dict[str, Schema]:
    accepted = data(object_of({"session_id": ANSWERED_UUID}))
    under_way = {"202": answer("It is under way", accepted, ["Idempotent-Replayed"])}
    publication_errors = (
        *STORE_ERRORS,
        *IDEMPOTENCY_ERRORS,
        errors.ValidationError,
        errors.MalformedJson,
        errors.SessionNotFound,
        errors.Conflict,  # done before, and since then the session was created again
        errors.UnsupportedMediaType,
    )
    tell = _operation(
        "tell",
        "Send a message to every client of the session",
        under_way,
        publication_errors,
        scope=Scope.CONTROL,
        parameters=["Id", *DONE_ONCE],
        body="Message",
        needs_body=True,
    )
    disconnect = _operation(
        "disconnect",
        "End a subject's connections to the session",
        under_way,
        publication_errors,
        scope=Scope.ADMIN,
        parameters=["Id", *DONE_ONCE],
        body="Disconnect",
        needs_body=True,
    )
    page = {"epoch": STRING, "next_since": {"type": ["integer", "null"]}, "events": list_of("Event")}
    events = _operation(
        "events",
        "What each version changed",
        {"200": answer("A page of the history", data(object_of(page)))},
        (
            *STORE_ERRORS,
            errors.ValidationError,
            errors.MalformedJson,
            errors.SessionNotFound,
            errors.EventsGone,
        ),
        scope=Scope.VIEW,
        parameters=["Id", "Since", "Epoch"],
    )
    return {
        "/v1/sessions/{id}/messages": {"post": tell},
        "/v1/sessions/{id}/disconnect": {"post": disconnect},
        "/v1/sessions/{id}/events": {"get": events},
    }


def _stream() -> dict[str, Schema]:
    limits = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]
    stream = answer("Events until either side ends it; what they say is in /asyncapi.json", headers=limits)
    follow = _operation(
        "stream",
        "Follow the session by an event stream",
        {"200": stream | {"content": {events.CONTENT_TYPE.partition(";")[0]: {"schema": STRING}}}},
        (
            *ERRORS_OF_ANY_ROUTE,
            errors.ValidationError,
            errors.MalformedJson,
            errors.Unauthorized,
            errors.Forbidden,
            errors.SessionFull,
            errors.AddressFull,
            errors.ServerFull,
        ),
        scope=Scope.VIEW,
        parameters=["Id", "LastEventIdHeader", "LastEventId", "Token"],
    )
    return {"/v1/sessions/{id}/stream": {"get": follow}}


def _presence() -> dict[str, Schema]:
    present = _operation(
        "presence",
        "Who is connected to the session, where it was created with presence",
        {
            "200": answer(
                "All who are, in the order in which they came", data(ref_to("schemas", "PresenceList"))
            )
        },
        (
            *STORE_ERRORS,
            errors.ValidationError,
            errors.SessionNotFound,
            errors.Conflict,  # it has no presence
            errors.SessionBusy,
        ),
        scope=Scope.VIEW,
        parameters=["Id"],
    )
    return {"/v1/sessions/{id}/presence": {"get": present}}


def _time() -> dict[str, Schema]:
    now = object_of({"timestamp_ms": INTEGER, "server_version": STRING, "drift_tolerance_ms": INTEGER})
    return {"/v1/time": {"get": _operation("time", "What time it is", {"200": answer("Now", now)})}}


def virtual_time() -> dict[str, Schema]:
    """Where time passes only when it is told to."""
    advance = _operation(
        "advance",
        "Let time pass",
        {"200": answer("Now, when all that fell due has happened", object_of({"timestamp_ms": INTEGER}))},
        (
            *ERRORS_OF_ANY_ROUTE,
            errors.ValidationError,
            errors.MalformedJson,
            errors.UnsupportedMediaType,
            errors.Unauthorized,
            errors.Forbidden,
        ),
        scope=Scope.ADMIN,
        body="Advance",
        needs_body=True,
    )
    return {"/v1/time/advance": {"post": advance}}


def _never_limited() -> dict[str, Schema]:
    """The routes for whoever runs the servers, and the WebSocket, which has limits of its own."""

    def get(
        name: str,
        summary: str,
        answers: dict[str, Schema],
        error_types: Iterable[type[LockstepError]] = ERRORS_OF_ANY_ROUTE,
    ) -> dict[str, Schema]:
        return {"get": _operation(name, summary, answers, error_types, is_limited=False)}

    def status(value: str) -> dict[str, Schema]:
        return {"status": {"type": "string", "enum": [value]}}

    texts = {"type": "array", "items": STRING}
    not_ready = object_of(status("not_ready") | {"reasons": texts})
    is_ready = object_of(status("ready") | {"not_served": texts}, optional=("not_served",))
    ready = {"200": answer("Yes", is_ready), "503": answer("Not now", not_ready)}
    text = answer("Text") | {"content": {"text/plain": {"schema": STRING}}}
    upgrade_errors = (
        errors.UpgradeRequired,
        errors.UnsupportedProtocol,
        errors.Forbidden,
        errors.ShuttingDown,
        errors.MalformedJson,
        LockstepError,
    )
    follow = get(
        "follow",
        "Follow sessions by WebSocket: what is said there is in /asyncapi.json",
        {"101": answer("A WebSocket from here on")},
        upgrade_errors,
    )
    session_id = {"type": "string", "pattern": UUID_PATTERN}
    follow["get"]["parameters"] = [
        parameter("query", "sessionId", session_id, "The session; protocol v2 needs none here"),
        parameter("query", "position", STRING, "In protocol v2: where the client has got to in the session"),
        ref_to("parameters", "Token"),
    ]
    return {
        "/health": get("health", "Is it alive", {"200": answer("Yes", object_of(status("ok")))}),
        "/ready": get("ready", "May it have traffic", ready),
        "/metrics": get("metrics", "Figures for Prometheus", {"200": text}),
        "/openapi.json": get("openapi", "This document", {"200": answer("It", {"type": "object"})}),
        "/asyncapi.json": get(
            "asyncapi", "What is said over the WebSocket", {"200": answer("AsyncAPI 3.0", {"type": "object"})}
        ),
        "/ws": follow,
    }
