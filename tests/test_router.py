"""Which route answers a method of a path, and what follows from the list of routes."""

import pytest

from handlers import ROUTES
from handlers.reply import Reply
from handlers.request import Request
from handlers.router import Limiting, Route, Router
from handlers.services import Services
from lockstep.access import Access


async def answer(request: Request, services: Services) -> Reply:
    return Reply(200)


def needs_a_token(access: Access, session_id: str) -> None:
    pass


THINGS = Route("GET", "/things", answer)
ONE = Route("GET", "/v1/sessions/{id}", answer, needs_a_token)
REMOVE = Route("DELETE", "/v1/sessions/{id}", answer, needs_a_token)
SPIN = Route("POST", "/v1/sessions/{id}/spin", answer, needs_a_token, Limiting.BY_HANDLER)
ROUTER = Router([THINGS, ONE, REMOVE, SPIN])


@pytest.mark.parametrize(
    ("method", "path", "route", "session_id"),
    [
        ("GET", "/things", THINGS, ""),
        ("HEAD", "/things", THINGS, ""),
        ("GET", "/v1/sessions/7", ONE, "7"),
        ("DELETE", "/v1/sessions/7", REMOVE, "7"),
        ("POST", "/v1/sessions/7/spin", SPIN, "7"),
        ("POST", "/v1/sessions/%37%2F/spin", SPIN, "7/"),
        ("GET", "/v1/sessions/{id}", ONE, "{id}"),
    ],
)
def test_a_route_is_found_with_the_id_in_its_path(
    method: str, path: str, route: Route, session_id: str
) -> None:
    assert ROUTER.find(method, path) == (route, session_id)


@pytest.mark.parametrize(
    "path",
    ["/", "/things/", "/v1/sessions/", "/v1/sessions//spin", "/v1/sessions/7/", "/v1/sessions/7/spin/x"],
)
def test_any_other_path_is_unknown(path: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "BREW"):
        route, session_id = ROUTER.find(method, path)
        assert (route.label, session_id) == ("unknown", "")


def test_a_method_that_a_path_does_not_know_needs_what_the_path_needs() -> None:
    for path, its_route in (("/things", THINGS), ("/v1/sessions/7/spin", SPIN)):
        route, _ = ROUTER.find("BREW", path)
        assert route.handler is not its_route.handler
        assert (route.needs is None, route.limiting) == (its_route.needs is None, its_route.limiting)


def test_a_preflight_needs_no_token_and_is_not_counted() -> None:
    for path in ("/things", "/v1/sessions/7", "/v1/sessions/7/spin", "/nowhere"):
        route, _ = ROUTER.find("OPTIONS", path)
        assert (route.needs, route.limiting) == (None, Limiting.NOT)


def test_the_label_of_a_route_never_has_an_id_in_it() -> None:
    labels = {Router(ROUTES).find(route.method, route.path.replace("{id}", "7"))[0].label for route in ROUTES}
    assert labels == {route.path.replace("{id}", "ID") for route in ROUTES}
