"""Which handler answers a request: the routes of REST by path and method."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from urllib.parse import unquote_to_bytes

from handlers.reply import Reply
from handlers.request import MAX_BODY_BYTES, Request
from handlers.services import Services
from lockstep.access import Access
from lockstep.errors import MethodNotAllowed, RouteNotFound

METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
# Stands for each method that a path does not know.
OTHER = ""
ID = "{id}"
SESSIONS = "/v1/sessions/"

Handler = Callable[[Request, Services], Awaitable[Reply]]
Need = Callable[[Access, str], None]
"""Raises Forbidden where this access does not allow a request for the session that its path names."""


class Limiting(Enum):
    """How a route counts towards its caller's limit."""

    NOT = "not at all"
    FIRST = "before its handler is called"
    BY_HANDLER = "by its handler, which calls `Request.admit`: together with what it asks of the store"


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method of a path. `path` may have a session's id in it: /v1/sessions/{id}/events.

    HEAD is answered as GET is, without the body. `needs` is None where no token is needed.
    """

    method: str
    path: str
    handler: Handler
    needs: Need | None = None
    limiting: Limiting = Limiting.FIRST
    max_body_bytes: int = MAX_BODY_BYTES

    @property
    def label(self) -> str:
        """For figures: never what a path itself says."""
        return self.path.replace(ID, "ID")


class Router:
    """The routes, by path and method."""

    def __init__(self, routes: Iterable[Route]) -> None:
        by_path: dict[str, list[Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, []).append(route)
        methods = {path: _all_methods(each) for path, each in by_path.items()}
        self._fixed = {path: each for path, each in methods.items() if ID not in path}
        self._with_id = {path: each for path, each in methods.items() if ID in path}
        assert all(path.startswith(SESSIONS + ID) for path in self._with_id)

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """The route of a request, and what stands for the session's id in its path."""
        session_id = ""
        methods = self._fixed.get(path)
        if methods is None and path.startswith(SESSIONS):
            session_id, slash, rest = path[len(SESSIONS) :].partition("/")
            if session_id:
                methods = self._with_id.get(SESSIONS + ID + slash + rest)
        if methods is None:
            return unknown_route(method), ""
        return methods.get(method) or methods[OTHER], _unquoted(session_id)


def unknown_route(method: str) -> Route:
    return UNKNOWN_PREFLIGHT if method == "OPTIONS" else UNKNOWN


def _all_methods(routes: list[Route]) -> dict[str, Route]:
    """The routes of a path by method, with those that follow from them: HEAD, OPTIONS, and no other."""
    methods = {route.method: route for route in routes}
    if "GET" in methods:
        methods["HEAD"] = methods["GET"]
    allowed = ", ".join(method for method in METHODS if method in methods or method == "OPTIONS")
    first = routes[0]
    # A preflight cannot say whose it is: counted by address it would stand in the way of all behind that.
    methods["OPTIONS"] = replace(
        first,
        method="OPTIONS",
        handler=partial(_answer_options, allowed),
        needs=None,
        limiting=Limiting.NOT,
    )
    methods[OTHER] = replace(
        first,
        method=OTHER,
        handler=partial(_refuse_method, allowed),
        needs=None if first.needs is None else _nothing_but_a_token,
    )
    return methods


def _nothing_but_a_token(access: Access, session_id: str) -> None:
    pass


async def _answer_options(allowed: str, request: Request, services: Services) -> Reply:
    return Reply(204, headers={"Allow": allowed} | services.origins.preflight(request.headers, allowed))


async def _refuse_method(allowed: str, request: Request, services: Services) -> Reply:
    raise MethodNotAllowed(f"{request.method} is not allowed here", allowed)


async def _refuse_path(request: Request, services: Services) -> Reply:
    raise RouteNotFound(f"No such route: {request.path[:200]}")


UNKNOWN = Route(OTHER, "unknown", _refuse_path)
UNKNOWN_PREFLIGHT = replace(UNKNOWN, limiting=Limiting.NOT)
# Where a page of another site asks: it is refused before any handler could be called.
REFUSED = Route(OTHER, "refused", _refuse_path, limiting=Limiting.NOT)


def _unquoted(text: str) -> str:
    # What is not UTF-8 is no UUID either, and refused as such.
    return unquote_to_bytes(text).decode("utf-8", "replace") if "%" in text else text
