"""REST: CORS, which sites may read an answer."""

import pytest

from tests.support.api import ROUTES, each_kind_of_answer, serving
from tests.support.processes import Answer

HERE, THERE = "https://here.example", "http://there.example:8080"


def is_client(answer: Answer) -> bool:
    """The JavaScript client's modules are everybody's to load; what they connect to is not."""
    return b"@module lockstep-client" in answer.raw


def cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


async def test_without_origins_no_answer_admits_another_site() -> None:
    async with serving() as api:
        for answer in await each_kind_of_answer(api, may_change=False, Origin=HERE):
            assert cors(answer) == ({"access-control-allow-origin": "*"} if is_client(answer) else {})
        preflight = await api("OPTIONS", "/v1/sessions", Origin=HERE, Access_Control_Request_Method="POST")
        assert (preflight.status, preflight.raw, cors(preflight)) == (204, b"", {})


@pytest.mark.parametrize("headers", [{}, {"Origin": HERE}, {"Origin": "null"}])
async def test_with_a_star_every_answer_admits_every_site(headers: dict[str, str]) -> None:
    async with serving(origins="*") as api:
        answers = await each_kind_of_answer(api, **headers)
        assert {answer.status for answer in answers} == {
            200,
            201,
            204,
            304,
            400,
            404,
            405,
            409,
            410,
            412,
            413,
            415,
            426,
        }
        for answer in answers:
            assert cors(answer)["access-control-allow-origin"] == "*"
            assert cors(answer)["access-control-allow-credentials"] == "true"
            exposed = {name.strip() for name in cors(answer)["access-control-expose-headers"].split(",")}
            rate_limit = {"RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"}
            assert {"ETag", "Retry-After", "X-Request-ID", *rate_limit} <= exposed


async def test_a_listed_origin_is_echoed() -> None:
    async with serving(origins=f"{HERE},{THERE}") as api:
        for origin in (HERE, THERE):
            for answer in await each_kind_of_answer(api, Origin=origin):
                assert cors(answer)["access-control-allow-origin"] == origin
                assert cors(answer)["access-control-allow-credentials"] == "true"
                assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://here.example"},
        {"Origin": f"{HERE}:8443"},
        {"Origin": f"{HERE}.evil.example"},
        {"Origin": "null"},
        {"Origin": "*"},
        {"Origin": ""},
    ],
    ids=str,
)
async def test_an_origin_that_is_not_listed_is_not_admitted(headers: dict[str, str]) -> None:
    async with serving(origins=f"{HERE},{THERE}") as api:
        for answer in await each_kind_of_answer(api, may_change=not headers, **headers):
            admitted = {"access-control-allow-origin": "*"} if is_client(answer) else {}
            assert cors(answer) == admitted
            # A cache must not give this answer to a site that is admitted.
            assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize("origins", ["*", HERE])
async def test_a_preflight_is_answered_with_204(origins: str) -> None:
    async with serving(origins=origins) as api:
        for path, methods in ROUTES.items():
            if path in ("/", "/ws"):
                continue
            for method in methods:
                answer = await api(
                    "OPTIONS",
                    path,
                    Origin=HERE,
                    Access_Control_Request_Method=method,
                    Access_Control_Request_Headers="content-type, if-match, x-request-id",
                )
                assert (answer.status, answer.raw) == (204, b"")
                assert "content-type" not in answer.headers
                assert cors(answer)["access-control-allow-origin"] == origins
                allowed = cors(answer)["access-control-allow-methods"]
                assert method in {name.strip() for name in allowed.split(",")}
                headers = {
                    name.strip().lower() for name in cors(answer)["access-control-allow-headers"].split(",")
                }
                needed = {"content-type", "authorization", "if-match", "if-none-match", "x-request-id"}
                assert needed | {"idempotency-key"} <= headers


async def test_a_preflight_of_a_site_that_is_not_listed_admits_nothing() -> None:
    async with serving(origins=HERE) as api:
        answer = await api("OPTIONS", "/v1/sessions", Origin=THERE, Access_Control_Request_Method="POST")
        assert (answer.status, cors(answer)) == (204, {})
