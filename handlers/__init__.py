"""The edge to clients, and its table of contents: every route, and what it needs."""

import re
from functools import partial

from tornado.web import Application

from handlers import ops, page, sessions, stream
from handlers.clients import Clients
from handlers.handshake import SOCKET_PATHS, Handshakes
from handlers.json_errors import log_request
from handlers.router import Limiting, Need, Route, Router
from handlers.services import Services
from handlers.transport import Transport
from lockstep.access import Access, Scope
from lockstep.commands import COMMANDS, Command
from lockstep.wire.payloads import MAX_RELAYED_BYTES


def _for_session(scope: Scope) -> Need:
    """Whether or not the session in the path exists: callers without the scope are not told."""
    return lambda access, session_id: access.require(scope, session_id)


def _for_command(command: Command) -> Need:
    return lambda access, session_id: access.require_command(command.scope, session_id)


def _for_all_sessions(access: Access, session_id: str) -> None:
    access.require_of_all(Scope.ADMIN)


def _for_some_session(access: Access, session_id: str) -> None:
    access.require_scope(Scope.ADMIN)  # the body says for which session


ROUTES = [
    Route("POST", "/v1/sessions", sessions.create_session, _for_some_session),
    Route("GET", "/v1/sessions", sessions.list_sessions, _for_all_sessions),
    Route("GET", "/v1/sessions/{id}", sessions.read_session, _for_session(Scope.VIEW)),
    Route("DELETE", "/v1/sessions/{id}", sessions.delete_session, _for_session(Scope.ADMIN)),
    *(
        Route(
            "POST",
            f"/v1/sessions/{{id}}/{command.name}",
            partial(sessions.post_command, command),
            _for_command(command),
            Limiting.BY_HANDLER,
        )
        for command in COMMANDS.values()
    ),
    Route(
        "POST",
        "/v1/sessions/{id}/messages",
        sessions.post_message,
        _for_session(Scope.CONTROL),
        max_body_bytes=MAX_RELAYED_BYTES,
    ),
    Route("POST", "/v1/sessions/{id}/disconnect", sessions.disconnect, _for_session(Scope.ADMIN)),
    Route("GET", "/v1/sessions/{id}/events", sessions.read_events, _for_session(Scope.VIEW)),
    Route("GET", "/v1/sessions/{id}/presence", sessions.read_presence, _for_session(Scope.VIEW)),
    Route("GET", "/v1/sessions/{id}/stream", stream.follow_session, _for_session(Scope.VIEW)),
    Route("GET", "/v1/time", ops.time),
    Route("GET", "/health", ops.health, limiting=Limiting.NOT),
    Route("GET", "/ready", ops.ready, limiting=Limiting.NOT),
    Route("GET", "/metrics", ops.figures, limiting=Limiting.NOT),
    Route("GET", "/openapi.json", ops.openapi_document, limiting=Limiting.NOT),
    Route("GET", "/asyncapi.json", ops.asyncapi_document, limiting=Limiting.NOT),
]
VIRTUAL_TIME_ROUTES = [Route("POST", "/v1/time/advance", ops.advance_time, _for_all_sessions)]
"""Where time stands still."""


def build_transport(services: Services, clients: Clients, keep_alive_s: float) -> Transport:
    """What serves all routes: those of REST and of the WebSocket, and the page, which Tornado serves."""
    application = Application(
        [
            (f"({re.escape(path)})", page.PageHandler, {"services": services, "file": file})
            for path, file in page.FILES.items()
        ],
        log_function=log_request,
    )
    handshakes = Handshakes(services, clients)
    routes = [
        *ROUTES,
        *(VIRTUAL_TIME_ROUTES if services.virtual_time is not None else ()),
        *(Route("GET", path, handshakes.answer, limiting=Limiting.NOT) for path in SOCKET_PATHS),
    ]
    return Transport(services, Router(routes), application, frozenset(page.FILES), handshakes, keep_alive_s)
