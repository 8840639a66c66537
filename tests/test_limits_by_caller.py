"""Limits where callers have tokens: whose requests count together, and what a refused one costs others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tornado.netutil import bind_sockets

from lockstep import sessions
from lockstep.config import Settings
from server import Server
from tests.support.load import eventually
from tests.support.processes import Answer, request
from tests.support.redis_server import RedisServer
from tests.support.tokens import ANNA, BERT, SECRET, token
from tests.support.ws_client import Closed, WsClient, abort_all


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of switches that come at once none is given up because the machine is slow."""
    monkeypatch.setattr(sessions, "GIVE_UP_S", 60.0)


@asynccontextmanager
async def served(tmp_path: Path, count: int = 1, **settings: Any) -> AsyncIterator[list[str]]:
    """Servers in this process that want tokens; their URLs."""
    (tmp_path / "secret").write_text(SECRET)
    servers, urls = [], []
    try:
        for _ in range(count):
            server = Server(
                Settings(
                    port=0, jwt_secret_file=str(tmp_path / "secret"), trusted_proxies="127.0.0.1", **settings
                )
            )
            sockets = bind_sockets(0, "127.0.0.1")
            await server.start(sockets)
            servers.append(server)
            urls.append(f"http://127.0.0.1:{sockets[0].getsockname()[1]}")
        yield urls
    finally:
        abort_all()
        for server in servers:
            await server.stop()


@pytest.fixture(params=["memory", "redis"])
def broker(request: pytest.FixtureRequest) -> Any:
    """The URL of a broker and how many processes it serves."""
    if request.param == "memory":
        yield "memory://", 1
        return
    redis = RedisServer()
    yield redis.url, 2
    redis.close()


async def ask(
    url: str, method: str, path: str, with_token: str | None, body: Any = None, **headers: str
) -> Answer:
    if with_token:
        headers["Authorization"] = f"Bearer {with_token}"
    return await request(
        url + path, method, body, {name.replace("_", "-"): headers[name] for name in headers}
    )


async def running(url: str) -> str:
    """Anna's turn."""
    seats = [{"participant_id": each, "total_time_ms": 60_000} for each in (ANNA, BERT)]
    body = {"sync_mode": "per_participant", "participants": seats}
    session_id: str = (await ask(url, "POST", "/v1/sessions", token(), body)).data["session_id"]
    assert (await ask(url, "POST", f"/v1/sessions/{session_id}/start", token())).status == 200
    return session_id


# --- what a refused switch costs -----------------------------------------------------------------

REFUSED: dict[str, tuple[int, Callable[[str], str | None], Any, dict[str, str]]] = {
    "without a token": (401, lambda sid: None, None, {}),
    "with another's signature": (401, lambda sid: token("admin", sid, key=SECRET + "!"), None, {}),
    "without a token and no JSON": (401, lambda sid: None, b"x", {"Content_Type": "text/html"}),
    "that has run out": (401, lambda sid: token("play", sid, sub=ANNA, ttl_s=-60), None, {}),
    "of a spectator": (403, lambda sid: token("view", sid, sub=ANNA), None, {}),
    "of another session's host": (403, lambda sid: token("control", str(uuid4())), None, {}),
    "of a player out of turn": (403, lambda sid: token("play", sid, sub=BERT), None, {}),
    "of a stranger": (403, lambda sid: token("play", sid, sub=str(uuid4())), None, {}),
    "to oneself": (403, lambda sid: token("play", sid, sub=ANNA), {"next_participant_id": ANNA}, {}),
    "that cannot be read": (400, lambda sid: token("play", sid, sub=ANNA), b"{", {}),
    "to nobody known": (400, lambda sid: token("control", sid), {"next_participant_id": str(uuid4())}, {}),
    "of another version": (409, lambda sid: token("control", sid), {"expected_version": 77}, {}),
    "of another state": (412, lambda sid: token("control", sid), None, {"If_Match": '"x-1"'}),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
async def test_a_refused_switch_costs_the_session_nothing(
    tmp_path: Path, broker: tuple[str, int], refused: Any
) -> None:
    status, make, body, headers = refused
    url, count = broker
    async with served(tmp_path, count, broker=url, rate_limit_switch="3/60", rate_limit_general="0") as urls:
        session_id = await running(urls[0])
        path = f"/v1/sessions/{session_id}/switch"
        answers = await asyncio.gather(
            *(ask(urls[n % count], "POST", path, make(session_id), body, **headers) for n in range(20))
        )
        assert {answer.status for answer in answers} == {status}
        host, statuses = token("control", session_id), []
        for n, player in enumerate((ANNA, BERT, ANNA, BERT)):
            made = token("play", session_id, sub=player) if n % 2 else host
            statuses.append((await ask(urls[n % count], "POST", path, made)).status)
        assert statuses == [200, 200, 200, 429]


async def test_a_switch_that_is_replayed_is_not_counted_again(tmp_path: Path) -> None:
    async with served(tmp_path, rate_limit_switch="2/60", rate_limit_general="0") as (url,):
        session_id = await running(url)
        path, annas = f"/v1/sessions/{session_id}/switch", token("play", session_id, sub=ANNA)
        # The turn has passed; what was done then is told again all the same.
        for _ in range(5):
            answer = await ask(url, "POST", path, annas, Idempotency_Key="k")
            assert (answer.status, answer.data["version"]) == (200, 3)
        assert (await ask(url, "POST", path, token("play", session_id, sub=BERT))).status == 200
        assert (await ask(url, "POST", path, annas)).status == 429


async def test_what_fell_due_is_kept_when_a_limit_refuses(tmp_path: Path) -> None:
    async with served(tmp_path, rate_limit_switch="1/60", rate_limit_general="0") as (url,):
        body = {"sync_mode": "per_cycle", "time_per_cycle_ms": 1000, "on_timeout": "flag"}
        body |= {"participants": [{"participant_id": each} for each in (ANNA, BERT)]}
        session_id = (await ask(url, "POST", "/v1/sessions", token(), body)).data["session_id"]
        path, host = f"/v1/sessions/{session_id}", token("control", session_id)
        await ask(url, "POST", f"{path}/start", host)
        assert (await ask(url, "POST", f"{path}/switch", host)).status == 200

        async def is_refused() -> str:
            answer = await ask(url, "POST", f"{path}/switch", host)
            assert answer.status == 429
            state = (await ask(url, "GET", path, host)).data
            return "" if state["participants"][1]["has_expired"] else "the cycle has not run out"

        await eventually(is_refused, 10, "no flag")


# --- whose requests count together ---------------------------------------------------------------


async def statuses_of(url: str, tokens: list[str | None], path: str = "/v1/time") -> list[int]:
    return [(await ask(url, "GET", path, each)).status for each in tokens]


async def test_a_hall_behind_one_address_is_many_clients(tmp_path: Path) -> None:
    async with served(tmp_path, rate_limit_general="2/60") as (url,):
        session_id = str(uuid4())
        for path in ("/v1/time", f"/v1/sessions/{session_id}"):
            found = 200 if path == "/v1/time" else 404
            players = [token("play", session_id, sub=str(uuid4())) for _ in range(10)]
            assert await statuses_of(url, 3 * players, path) == [found] * 20 + [429] * 10
            # Without a subject each token is a client of its own.
            nameless = [token("view", session_id, jti=str(uuid4())) for _ in range(10)]
            assert await statuses_of(url, 3 * nameless, path) == [found] * 20 + [429] * 10
            assert await statuses_of(url, [token()] * 5, path) == [found] * 5, "an admin is not limited"


async def test_a_caller_is_one_client_by_whatever_token_and_address_it_comes(tmp_path: Path) -> None:
    async with served(tmp_path, rate_limit_general="3/60") as (url,):
        session_id, statuses = str(uuid4()), []
        for n in range(5):
            made = token("play", session_id, sub=ANNA, jti=n)
            path = f"/v1/sessions/{session_id}"
            statuses.append((await ask(url, "GET", path, made, X_Forwarded_For=f"203.0.113.{n}")).status)
        assert statuses == [404, 404, 404, 429, 429]


@pytest.mark.parametrize("anonymous", ["none", "view"])
async def test_who_has_no_good_token_is_its_address(tmp_path: Path, anonymous: str) -> None:
    async with served(tmp_path, rate_limit_general="3/60", anonymous=anonymous) as (url,):
        path = f"/v1/sessions/{uuid4()}"
        bad = [token(key=f"{SECRET}{n}") for n in range(3)]
        given = [None, *bad, None]
        first = 404 if anonymous == "view" else 401
        assert await statuses_of(url, given, path) == [first, 401, 401, 429, 429]
        answer = await ask(url, "GET", path, None, X_Forwarded_For="203.0.113.1")
        assert answer.status == first


# --- one caller's share of a session -------------------------------------------------------------


async def knock(url: str, session_id: str, made: str | None, address: str) -> tuple[WsClient, Any]:
    headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {made}"} if made else {})
    client = await WsClient.connect(f"{url.replace('http', 'ws')}/ws?sessionId={session_id}", headers=headers)
    return client, await client.recv()


FULL = Closed(4007, "Too many connections of yours to this session")


@pytest.mark.parametrize("is_named", [True, False], ids=["by subject", "by address"])
async def test_no_caller_takes_more_than_its_share_of_a_session(
    tmp_path: Path, broker: tuple[str, int], is_named: bool
) -> None:
    url, count = broker
    async with served(
        tmp_path, count, broker=url, max_connections_per_session=10, max_share_per_caller=0.3
    ) as urls:
        session_id = str(uuid4())
        annas = token("play", session_id, sub=ANNA) if is_named else token("view", session_id)
        address = "203.0.113.{}" if is_named else "203.0.113.1"
        knocks = await asyncio.gather(
            *(knock(urls[n % count], session_id, annas, address.format(n)) for n in range(12))
        )
        assert Counter(first == FULL for _, first in knocks) == {False: 3, True: 9}
        other = token("play", session_id, sub=BERT)
        _, first = await knock(urls[-1], session_id, other, "203.0.113.1")
        assert first["type"] == "CONNECTED"
        # In another session the caller has a share of its own.
        made = token("play", sub=ANNA) if is_named else token("view")
        _, first = await knock(urls[0], str(uuid4()), made, address.format(1))
        assert first["type"] == "CONNECTED"
        # What is given back may be taken again, and no more.
        inside = [client for client, first in knocks if first != FULL]
        await inside[0].close()

        async def has_room() -> str:
            _, first = await knock(urls[-1], session_id, annas, address.format(99))
            return "" if first != FULL else "still full"

        await eventually(has_room, 10, "who left is still counted")
        assert await has_room() == "still full"


async def test_an_admin_and_whoever_is_given_all_may_take_all_places(tmp_path: Path) -> None:
    session_id = str(uuid4())
    for share, made in ((0.25, token("admin")), (1.0, token("play", sub=ANNA))):
        async with served(tmp_path, max_connections_per_session=4, max_share_per_caller=share) as (url,):
            knocks = [await knock(url, session_id, made, "203.0.113.1") for _ in range(5)]
            assert [first["type"] for _, first in knocks[:4]] == ["CONNECTED"] * 4
            assert knocks[4][1].code == 4002


async def test_where_a_session_may_have_any_number_so_may_a_caller(tmp_path: Path) -> None:
    async with served(tmp_path, max_connections_per_session=0) as (url,):
        made = token("play", sub=ANNA)
        knocks = [await knock(url, str(uuid4()), made, "203.0.113.1") for _ in range(5)]
        assert [first["type"] for _, first in knocks] == ["CONNECTED"] * 5


def test_on_loopback_without_keys_nobody_has_a_share() -> None:
    assert Settings().max_connections_per_caller == 0
    assert Settings(jwt_secret_file="x").max_connections_per_caller == 250
    assert Settings(insecure=True).max_connections_per_caller == 250
    assert Settings(jwt_secret_file="x", max_connections_per_session=2).max_connections_per_caller == 1
