"""Many clients that come at once: what is stored of a session is read for all of them, not for each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from lockstep.errors import BrokerUnavailable
from tests.support.api import Api, serving
from tests.support.load import eventually
from tests.support.redis_server import RedisServer
from tests.support.ws_client import WsClient

V2 = {"Sec-WebSocket-Protocol": "lockstep.v2.json"}
# The embedded broker reads the beginning of a state by reading the state.
READS_OF_A_SESSION = 2


class CountedReads:
    """How often what is stored of each session is read from now on."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of = Counter[str]()
        self.slices: list[int] = []
        """How many sessions each read of beginnings was of."""
        broker = api.server.broker
        recent, load, beginnings = broker.recent, broker.load, broker.beginnings

        async def counted_recent(session_id: str, *limits: int) -> Any:
            self.of[session_id] += 1
            return await recent(session_id, *limits)

        def of_many(read: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def counted(session_ids: list[str], *limits: int) -> Any:
                self.of.update(session_ids)
                self.slices.append(len(session_ids))
                return await read(session_ids, *limits)

            return counted

        monkeypatch.setattr(broker, "recent", counted_recent)
        monkeypatch.setattr(broker, "load", of_many(load))
        monkeypatch.setattr(broker, "beginnings", of_many(beginnings))


@asynccontextmanager
async def storm(
    api: Api, count: int, session_of: Callable[[int], str], headers: dict[str, str], more: str = ""
) -> AsyncIterator[list[WsClient]]:
    """So many clients that come together, when all have been let in."""

    async def come(number: int) -> WsClient:
        url = f"ws://{api.url[7:]}/ws?sessionId={session_of(number)}{more}"
        return await WsClient.connect(url, headers=headers)

    clients = await asyncio.gather(*(come(number) for number in range(count)))
    try:
        wanted = "SUBSCRIBED" if headers else "CONNECTED"
        for client in clients:
            await client.recv_type(wanted)
        yield clients
    finally:
        for client in clients:
            client.abort()


@pytest.mark.parametrize("where", ["memory", "redis"])
@pytest.mark.parametrize("more", ["", "&position=0000000000000-1-aaaaaaaa"])
@pytest.mark.parametrize("headers", [{}, V2], ids=["v1", "v2"])
async def test_a_storm_upon_one_session_reads_it_twice_at_most(
    headers: dict[str, str], more: str, where: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"broker": redis_server.url, "prefix": f"{uuid4()}:"} if where == "redis" else {}
    async with serving(log_level="error", **settings) as api:
        session_id = (await api.running())["session_id"]
        reads = CountedReads(api, monkeypatch)
        async with storm(api, 200, lambda number: session_id, headers, more):
            assert 1 <= reads.of[session_id] <= READS_OF_A_SESSION
            async with storm(api, 50, lambda number: session_id, headers, more):
                assert reads.of[session_id] <= READS_OF_A_SESSION, "those who come later read anew"


@pytest.mark.parametrize("where", ["memory", "redis"])
async def test_a_storm_upon_many_sessions_reads_many_of_them_at_once(
    where: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"broker": redis_server.url, "prefix": f"{uuid4()}:"} if where == "redis" else {}
    async with serving(log_level="error", **settings) as api:
        sessions = [(await api.create())["session_id"] for _ in range(60)]
        reads = CountedReads(api, monkeypatch)

        async def all_are_known() -> str:
            unknown = [each for each in sessions if api.server.hub.rooms[each].known is None]
            return f"{len(unknown)} are not read" if unknown else ""

        async with storm(api, 240, lambda number: sessions[number % 60], {}):
            await eventually(all_are_known, 10, "rooms know nothing")
            assert reads.of.keys() == set(sessions)
            assert max(reads.of.values()) <= READS_OF_A_SESSION
            assert len(reads.slices) < len(sessions) / 2, "each is read by itself"


async def test_where_a_read_for_others_fails_it_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows changes reads for the room; whose clients do not has to know the deadline all the same."""
    async with serving(log_level="critical") as api:
        session_id = (await api.running())["session_id"]
        is_asked, may_fail = asyncio.Event(), asyncio.Event()

        async def failing(*_: Any) -> Any:
            is_asked.set()
            await may_fail.wait()
            raise BrokerUnavailable

        monkeypatch.setattr(api.server.broker, "recent", failing)
        url = f"ws://{api.url[7:]}/ws?sessionId={session_id}"
        async with await WsClient.connect(url, headers=V2) as follower:
            await asyncio.wait_for(is_asked.wait(), 10)
            async with await WsClient.connect(url) as client:
                await client.recv_type("CONNECTED")
                assert api.server.hub.rooms[session_id].known is None
                may_fail.set()
                assert (await follower.recv_type("ERROR"))["code"] == "BROKER_UNAVAILABLE"

                async def is_known() -> str:
                    return "" if api.server.hub.rooms[session_id].known else "nothing"

                await eventually(is_known, 10, "the room knows nothing")
