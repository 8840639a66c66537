"""For operators and clients alike: is it alive, may it have traffic, what time is it."""

from functools import cache

from handlers.reply import Reply
from handlers.request import Request
from handlers.services import Services
from lockstep import __version__, metrics
from lockstep.requests import asyncapi, openapi
from lockstep.rules.state_json import dumps

DRIFT_TOLERANCE_MS = 50


async def health(request: Request, services: Services) -> Reply:
    """The loop runs."""
    return Reply(200, dumps({"status": "ok"}))


async def ready(request: Request, services: Services) -> Reply:
    """Whether a proxy may send traffic here."""
    reasons = services.not_ready()
    if reasons:
        return Reply(503, dumps({"status": "not_ready", "reasons": reasons}))
    return Reply(200, dumps({"status": "ready"}))


async def figures(request: Request, services: Services) -> Reply:
    """For Prometheus."""
    return Reply(200, services.metrics.text(), content_type=metrics.CONTENT_TYPE)


async def time(request: Request, services: Services) -> Reply:
    """The clock that all others follow."""
    answer = {
        "timestamp_ms": services.shown_ms(),
        "server_version": __version__,
        "drift_tolerance_ms": DRIFT_TOLERANCE_MS,
    }
    return Reply(200, dumps(answer))


async def openapi_document(request: Request, services: Services) -> Reply:
    """The contract of REST, for machines."""
    return Reply(200, _openapi())


async def asyncapi_document(request: Request, services: Services) -> Reply:
    """The contract of the WebSocket, for machines."""
    return Reply(200, _asyncapi())


@cache
def _openapi() -> bytes:
    return dumps(openapi.document())


@cache
def _asyncapi() -> bytes:
    return dumps(asyncapi.document())
