"""The edge to clients, and its table of contents."""

from collections.abc import Callable
from typing import Any

from tornado.web import Application

from handlers import page
from handlers.api import Front, Route
from handlers.base import log_request
from handlers.clients import Clients
from handlers.handshake import SocketHandler
from handlers.heartbeat import Heartbeat
from handlers.ops import (
    HealthHandler,
    MetricsHandler,
    OpenApiHandler,
    ReadyHandler,
    TimeHandler,
)
from handlers.origins import Hosts, Origins
from handlers.page import PageHandler
from handlers.sessions import (
    CollectionHandler,
    CommandHandler,
    EventsHandler,
    MessagesHandler,
    SessionHandler,
)
from handlers.tokens import Tokens
from lockstep.addresses import Addresses
from lockstep.commands import COMMANDS
from lockstep.contract import Broker
from lockstep.limits import ConnectionLimits, RateLimits
from lockstep.live.hub import Hub
from lockstep.metrics import Metrics
from lockstep.perform import Performer
from lockstep.requests import openapi
from lockstep.rules.state_json import dumps
from lockstep.session_list import SessionList
from lockstep.sessions import Sessions


def front(
    broker: Broker,
    sessions: Sessions,
    hub: Hub,
    heartbeat: Heartbeat,
    origins: Origins,
    hosts: Hosts | None,
    keep_alive_s: float,
    max_message_bytes: int,
    not_ready: Callable[[], list[str]],
    metrics: Metrics,
    addresses: Addresses,
    rates: RateLimits | None,
    places: ConnectionLimits,
    message_rate: int,
    tokens: Tokens,
    **settings: Any,
) -> Front:
    """Every route, and what its handler needs; `settings` are those of Tornado's application."""
    api = {"origins": origins}
    rest = {
        "origins": origins,
        "sessions": sessions,
        "session_list": SessionList(broker),
        "performer": Performer(sessions),
    }
    routes: list[Route] = [
        (r"/v1/sessions", CollectionHandler, rest),
        (r"/v1/sessions/([^/]+)", SessionHandler, rest),
        (rf"/v1/sessions/([^/]+)/({'|'.join(COMMANDS)})", CommandHandler, rest),
        (r"/v1/sessions/([^/]+)/messages", MessagesHandler, rest),
        (r"/v1/sessions/([^/]+)/events", EventsHandler, rest),
        (r"/v1/time", TimeHandler, api | {"shown_ms": broker.shown_ms}),
        (r"/health", HealthHandler, api),
        (r"/ready", ReadyHandler, api | {"not_ready": not_ready}),
        (r"/metrics", MetricsHandler, api | {"metrics": metrics}),
        (r"/openapi\.json", OpenApiHandler, api | {"document": dumps(openapi.document())}),
    ]
    clients = Clients(hub, broker, heartbeat, places, max_message_bytes, message_rate, metrics)
    application = Application(
        [
            (r"/ws/?", SocketHandler, {"clients": clients, "addresses": addresses, "tokens": tokens}),
            (r"/()", PageHandler, {"path": page.HERE, "default_filename": "index.html"}),
            (r"/(page\.css|page\.js|favicon\.svg)", PageHandler, {"path": page.HERE}),
            (r"/(lockstep\.js)", PageHandler, {"path": page.CLIENT}),
        ],
        log_function=log_request,
        metrics=metrics,
        origins=origins,
        **settings,
    )
    paths = {"/ws", "/ws/", "/", "/page.css", "/page.js", "/favicon.svg", "/lockstep.js"}
    return Front(
        routes, application, frozenset(paths), origins, hosts, keep_alive_s, addresses, rates, tokens, metrics
    )
