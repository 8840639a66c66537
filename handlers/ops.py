"""For operators and clients alike: is it alive, may it have traffic, what time is it."""

from functools import cache

from handlers.reply import Reply
from handlers.request import Request
from handlers.services import Services
from lockstep import __version__, metrics
from lockstep.requests import asyncapi, bodies, openapi
from lockstep.rules.state_json import dumps
from lockstep.wire.strict_json import loads

DRIFT_TOLERANCE_MS = 50


async def health(request: Request, services: Services) -> Reply:
    """The loop runs."""
    return Reply(200, dumps({"status": "ok"}))


async def ready(request: Request, services: Services) -> Reply:
    """Whether a proxy may send traffic here, and for which sessions that is of no use."""
    reasons = services.not_ready()
    if reasons:
        return Reply(503, dumps({"status": "not_ready", "reasons": reasons}))
    parts = services.not_served()
    return Reply(200, dumps({"status": "ready"} | ({"not_served": parts} if parts else {})))


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


async def advance_time(request: Request, services: Services) -> Reply:
    """Let time pass, where it does not by itself; what falls due has happened by the answer."""
    assert services.virtual_time is not None
    ms = bodies.advance(loads(request.read_body() or b"{}"))
    return Reply(200, dumps({"timestamp_ms": await services.virtual_time.advance(ms)}))


async def openapi_document(request: Request, services: Services) -> Reply:
    """The contract of REST, for machines."""
    return Reply(200, _openapi(has_virtual_time=services.virtual_time is not None))


async def asyncapi_document(request: Request, services: Services) -> Reply:
    """The contract of the WebSocket, for machines."""
    return Reply(200, _asyncapi())


@cache
def _openapi(*, has_virtual_time: bool) -> bytes:
    return dumps(openapi.document(has_virtual_time=has_virtual_time))


@cache
def _asyncapi() -> bytes:
    return dumps(asyncapi.document())
