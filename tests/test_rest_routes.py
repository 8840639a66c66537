"""REST's paths and methods, and what every answer has: a request id, an error's form."""

import asyncio
import gc
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.platform.asyncio import AsyncIOLoop
from tornado.web import RequestHandler

from handlers.exchange import Exchange
from handlers.request import Request
from handlers.transport import Transport
from lockstep.config import Settings
from server import Server
from tests.support.api import (
    ROUTES,
    SOME_ID,
    Api,
    body_of,
    each_kind_of_answer,
    error_of,
    instant_ms,
    serving,
)
from tests.support.load import eventually
from tests.support.processes import ServerProcess


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """The plugin's own sets its loop in a way that Tornado calls deprecated."""
    loop = AsyncIOLoop(make_current=False)
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


@pytest.fixture
def app() -> Transport:
    return Server(Settings(origins="*")).transport


@pytest.mark.gen_test
async def test_health_is_ok_and_bare(http_client: Any, base_url: str) -> None:
    answer = await http_client.fetch(f"{base_url}/health")
    assert json.loads(answer.body) == {"status": "ok"}
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.gen_test
async def test_ready_is_ready_and_bare(http_client: Any, base_url: str) -> None:
    answer = await http_client.fetch(f"{base_url}/ready")
    assert (answer.code, json.loads(answer.body)) == (200, {"status": "ready"})


@pytest.mark.gen_test
async def test_an_unknown_route_is_not_found_in_json(http_client: Any, base_url: str) -> None:
    answer = await http_client.fetch(f"{base_url}/nowhere", raise_error=False)
    assert (answer.code, json.loads(answer.body)["error"]["code"]) == (404, "NOT_FOUND")
    assert answer.headers["Content-Type"].startswith("application/json")


@pytest.mark.gen_test
async def test_a_session_can_be_created_and_read(http_client: Any, base_url: str) -> None:
    url = f"{base_url}/v1/sessions"
    as_json = {"Content-Type": "application/json"}
    created = await http_client.fetch(url, method="POST", headers=as_json, body=json.dumps(body_of()))
    session = json.loads(created.body)["data"]
    read = await http_client.fetch(f"{url}/{session['session_id']}")
    assert (created.code, json.loads(read.body)) == (201, {"data": session})


@pytest.mark.parametrize("given", ["a", "A.b_c-1", "0" * 128])
async def test_a_request_id_that_can_be_logged_is_taken_over(api: Api, given: str) -> None:
    for method, path in (("GET", "/health"), ("GET", "/nowhere"), ("DELETE", f"/v1/sessions/{uuid4()}")):
        assert (await api(method, path, X_Request_ID=given)).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "0" * 129, "a b", "a/b", "a;b", '"a"', "\xe9", "a,b"])
async def test_any_other_request_id_is_replaced(api: Api, given: str | None) -> None:
    seen = set()
    for _ in range(3):
        answer = await api("GET", "/health", **({} if given is None else {"X_Request_ID": given}))
        made = answer.headers["x-request-id"]
        assert re.fullmatch("[A-Za-z0-9._-]{1,128}", made)
        assert made != given
        seen.add(made)
    assert len(seen) == 3


async def test_the_request_id_is_in_the_log_and_the_body_is_not(
    api: Api, rest_process: ServerProcess
) -> None:
    for secret, status in (("hush-1", 201), ("hush-2", 400)):
        body = body_of(metadata={"k": secret}, **({} if status == 201 else {"extra": secret}))
        answer = await api("POST", f"/v1/sessions?token={secret}", body, X_Request_ID=f"id-of-{secret}")
        assert answer.status == status
        async with asyncio.timeout(10):
            while not (
                lines := [line for line in rest_process.log() if line.get("request_id") == f"id-of-{secret}"]
            ):
                await asyncio.sleep(0.01)
        assert {line.get("path", "/v1/sessions") for line in lines} == {"/v1/sessions"}
    assert "hush" not in re.sub("id-of-hush", "", "\n".join(rest_process.log_lines))


@pytest.mark.parametrize("path", ROUTES, ids=lambda path: re.sub("[0-9a-f-]{36}", "ID", path))
async def test_another_method_is_not_allowed_and_told_which_are(api: Api, path: str) -> None:
    for method in sorted({"GET", "POST", "PUT", "PATCH", "DELETE", "BREW"} - ROUTES[path]):
        answer = await api(method, path)
        error_of(answer, 405, "METHOD_NOT_ALLOWED")
        allowed = {name.strip() for name in answer.headers["allow"].split(",")}
        assert allowed - {"OPTIONS", "HEAD"} == ROUTES[path]


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1",
        "/v1/",
        "/v1/sessions/",
        f"/v1/sessions/{SOME_ID}/",
        f"/v1/sessions/{SOME_ID}/dance",
        f"/v1/sessions/{SOME_ID}/switch/now",
        "/V1/sessions",
        "/health/",
        "/healthy",
        "/server.py",
        "/page/index.html",
        "/../setup.cfg",
        "/%2e%2e/setup.cfg",
        "/nowhere?x=%ff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_route_is_not_found(api: Api, method: str, path: str) -> None:
    error_of(await api(method, path), 404, "NOT_FOUND")


async def test_no_answer_leaves_anything_to_the_collector() -> None:
    """A body of a megabyte would stay until its next full round, and it comes rarely."""
    async with serving() as api:
        gc.collect()
        gc.disable()
        try:
            await each_kind_of_answer(api)

            async def kept() -> str:
                kinds = Exchange, Request, RequestHandler, IOStream
                left = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))
                return str(left) if left else ""

            await eventually(kept, 5, "something is kept")
        finally:
            gc.enable()


async def test_time_is_the_brokers_and_never_goes_back(api: Api) -> None:
    last_ms = 0
    for turn in range(60):
        answer = await api("GET", "/v1/time")
        assert set(answer.body) == {"timestamp_ms", "server_version", "drift_tolerance_ms"}
        assert answer.body["timestamp_ms"] >= last_ms
        last_ms = answer.body["timestamp_ms"]
        if turn % 20 == 0:
            created_ms = instant_ms((await api.create())["created_at"])
            assert last_ms <= created_ms
            last_ms = created_ms
    assert (answer.body["drift_tolerance_ms"], type(answer.body["timestamp_ms"])) == (50, int)
    assert abs(last_ms - time.time() * 1000) < 60_000
