"""A Redis that loses its last commits and goes on with others: what versions alone get wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest

from tests.support.api import Api, serving
from tests.support.followers import BY_ENCODING, Follower, View
from tests.support.load import Watcher, chess, eventually, identity
from tests.support.redis_server import RedisServer, Sentinels
from tests.support.variants import first_of

# Far less than the minute after which every room is compared with the store anyway.
CONVERGES_WITHIN_S = 20.0


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def snapshot(redis: RedisServer) -> bytes:
    with redis.client as client:
        client.save()
    return (redis.folder / "dump.rdb").read_bytes()


async def roll_back(redis: RedisServer, to: bytes) -> None:
    await asyncio.to_thread(redis.kill)
    (redis.folder / "dump.rdb").write_bytes(to)
    await asyncio.to_thread(redis.start)


class Crowd:
    """Clients of both protocols at two processes, and what they must end at."""

    def __init__(self, stack: AsyncExitStack, apis: list[Api]) -> None:
        self.apis = apis
        self.session_id: str = chess()["session_id"]
        self.views: list[View] = []
        self.followers: dict[str, list[Follower]] = {}
        self.watchers: list[Watcher] = []
        self._stack = stack
        self._turns = 0

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.session_id}"

    async def come(self, name: str) -> None:
        """A follower at each process, which has not been here."""
        self.followers[name] = []
        for api, headers in zip(self.apis, BY_ENCODING.values(), strict=True):
            follower = Follower(api.url.replace("http", "ws"), headers)
            self.followers[name].append(follower)
            self.views.append(follower.views.setdefault(self.session_id, View(self.session_id)))
        await self.come_back(name)

    async def come_back(self, name: str) -> list[str]:
        """With what it had; how each was told what it had missed."""
        for follower in self.followers[name]:
            await self._stack.enter_async_context(follower)
            await self._subscribe(follower)
        return [follower.views[self.session_id].told[-1] for follower in self.followers[name]]

    async def _subscribe(self, follower: Follower) -> None:
        had = follower.views[self.session_id].position
        position = {} if had is None else {"position": had}
        while True:
            answer = await follower.ask("SUBSCRIBE", self.session_id, **position)
            if answer["type"] == "SUBSCRIBED":
                return
            assert answer["code"] == "BROKER_UNAVAILABLE", answer
            await asyncio.sleep(min(0.05, answer["retryAfterMs"] / 1000))

    async def go(self, name: str) -> None:
        for follower in self.followers[name]:
            await follower.leave()

    async def watch(self) -> None:
        """Clients of protocol v1, which stay."""
        for api in self.apis:
            watcher = Watcher(api.url.replace("http", "ws"), self.session_id)
            self.watchers.append(watcher)
            task = asyncio.create_task(watcher.run())
            self._stack.callback(task.cancel)
            await asyncio.wait_for(watcher.connected.wait(), 20)

    async def rest(self, method: str, path: str = "", body: Any = None) -> Any:
        """At the processes in turn; asked again where Redis is away."""
        for _ in range(200):
            self._turns += 1
            api = self.apis[self._turns % len(self.apis)]
            answer = await api(method, path or self.path, body)
            if answer.status != 503:
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError(answer.raw)

    async def create(self) -> None:
        answer = await self.rest("POST", "/v1/sessions", chess(self.session_id))
        assert answer.status == 201, answer.raw

    async def annotate(self, times: int) -> None:
        for _ in range(times):
            answer = await self.rest("POST", f"{self.path}/annotate", {"metadata": {"turn": self._turns}})
            assert answer.status == 200, answer.raw

    async def change(self, times: int) -> None:
        """Create the session where there is none; a change whose outcome is unknown is another's to judge."""
        for _ in range(times):
            answer = await self.rest("POST", f"{self.path}/annotate", {"metadata": {"turn": self._turns}})
            if answer.status == 404:
                answer = await self.rest("POST", "/v1/sessions", chess(self.session_id))
                assert answer.status in (201, 409), answer.raw
            else:
                assert answer.status == 200, answer.raw

    async def seen(self) -> None:
        """Everybody that is here has what is stored."""

        async def complaint() -> str:
            answer = await self.rest("GET")
            stored = None if answer.status == 404 else answer.data
            here = [each for crowd in self.followers.values() for each in crowd if each.is_here]
            for follower in here:
                follower.check()
                view = follower.views[self.session_id]
                if json.dumps(view.state) != json.dumps(stored):
                    return (
                        f"a follower has {view.position}, {view.told[-9:]}; stored is {identity_of(stored)}"
                    )
            for watcher in self.watchers:
                if watcher.identity != identity_of(stored) and not (stored is None and watcher.is_gone):
                    return f"a watcher has {watcher.identity}; stored is {identity_of(stored)}"
            return ""

        await eventually(complaint, CONVERGES_WITHIN_S, "not everybody has what is stored")


def identity_of(state: Any) -> Any:
    return None if state is None else identity(state)


@asynccontextmanager
async def crowd(url: str, routing: str) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(serving(broker=url, routing=routing)) for _ in range(2)]
        yield Crowd(stack, apis)


ROUTINGS = ["all", "targeted"]


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(
    ("lost", "others"), first_of([(5, 5), (5, 0), (5, 2), (5, 4), (5, 8), (1, 1), (1, 0), (1, 3), (40, 3)])
)
async def test_after_a_lost_tail_everybody_ends_at_what_is_stored(
    redis: RedisServer, routing: str, lost: int, others: int
) -> None:
    async with crowd(redis.url, routing) as play:
        await play.create()
        await play.watch()
        for name in (
            "one that stays",
            "one from before",
            "one at the fork",
            "one of the lost tail",
            "a late one",
        ):
            await play.come(name)
        await play.annotate(3)
        await play.seen()
        await play.go("one from before")
        await play.annotate(2)
        await play.seen()
        await play.go("one at the fork")
        saved = snapshot(redis)
        await play.annotate(lost)
        await play.seen()
        await play.go("one of the lost tail")
        await play.go("a late one")
        await roll_back(redis, saved)
        back = asyncio.create_task(play.come_back("one of the lost tail"))
        await play.annotate(others)
        await back
        await play.seen()
        assert await play.come_back("a late one") == ["state", "state"]
        # A room that has read what they missed tells them that, one that was only repaired the state.
        await play.come_back("one at the fork")
        await play.come_back("one from before")
        await play.come("a new one")
        await play.seen()
        await play.annotate(2)
        await play.seen()
        for view in play.views:
            assert view.told[-2:] == ["UPDATE", "UPDATE"]


@pytest.mark.parametrize("routing", ROUTINGS)
async def test_a_lost_deletion_brings_the_session_back_for_everybody(
    redis: RedisServer, routing: str
) -> None:
    async with crowd(redis.url, routing) as play:
        await play.create()
        await play.come("one that stays")
        await play.come("a late one")
        await play.annotate(2)
        await play.seen()
        saved = snapshot(redis)
        assert (await play.rest("DELETE")).status == 204
        await play.seen()
        await play.go("a late one")
        await roll_back(redis, saved)
        await play.seen()
        await play.come_back("a late one")
        await play.come("a new one")
        await play.seen()
        await play.annotate(3)
        await play.seen()


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("comes_again", [False, True], ids=["for good", "and made again"])
async def test_a_lost_creation_takes_the_session_from_everybody(
    redis: RedisServer, routing: str, comes_again: bool
) -> None:
    async with crowd(redis.url, routing) as play:
        await play.come("one that stays")
        saved = snapshot(redis)
        await play.create()
        await play.come("a late one")
        await play.annotate(2)
        await play.seen()
        await play.go("a late one")
        await roll_back(redis, saved)
        if comes_again:
            await play.create()
        await play.seen()
        await play.come_back("a late one")
        await play.come("a new one")
        await play.seen()
        if not comes_again:
            await play.create()
        await play.annotate(2)
        await play.seen()


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("others", [0, 1, 4])
async def test_a_lost_second_life_brings_the_first_one_back_for_everybody(
    redis: RedisServer, routing: str, others: int
) -> None:
    async with crowd(redis.url, routing) as play:
        await play.create()
        await play.come("one that stays")
        await play.come("one of the first life")
        await play.annotate(2)
        await play.seen()
        await play.go("one of the first life")
        saved = snapshot(redis)
        assert (await play.rest("DELETE")).status == 204
        await play.create()
        await play.come("one of the second life")
        await play.annotate(3)
        await play.seen()
        await play.go("one of the second life")
        await roll_back(redis, saved)
        await play.annotate(others)
        await play.seen()
        assert await play.come_back("one of the second life") == ["state", "state"]
        assert await play.come_back("one of the first life") == ["recovered", "recovered"]
        await play.annotate(2)
        await play.seen()


@pytest.mark.long
@pytest.mark.parametrize("routing", first_of(ROUTINGS))
async def test_after_a_failover_with_a_lost_tail_everybody_ends_at_what_is_stored(routing: str) -> None:
    sentinels = await asyncio.to_thread(Sentinels)
    try:
        async with crowd(sentinels.url, routing) as play:
            await play.create()
            await play.watch()
            for name in ("one that stays", "one from before", "one of the lost tail"):
                await play.come(name)
            await play.annotate(2)
            await play.seen()
            await play.go("one from before")
            with sentinels.master.client as old, sentinels.replica.client as new:
                assert old.wait(1, 5000) == 1
                new.replicaof("127.0.0.1", "1")  # it hears no more
            await play.annotate(5)
            await play.seen()
            await play.go("one of the lost tail")
            await asyncio.to_thread(sentinels.depose)

            async def stranded() -> str:
                with sentinels.master.client as old:
                    names = [each["name"] for each in old.client_list()]
                return "they are still there" if "lockstep" in names else ""

            await eventually(stranded, 20, "the old master was not left")
            await play.annotate(5)
            await play.seen()
            assert await play.come_back("one of the lost tail") == ["state", "state"]
            assert await play.come_back("one from before") == ["recovered", "recovered"]
            await play.annotate(2)
            await play.seen()
    finally:
        await asyncio.to_thread(sentinels.close)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("seed", first_of(range(12)))
async def test_whatever_is_lost_and_whoever_is_away_everybody_ends_at_what_is_stored(
    redis: RedisServer, routing: str, seed: int
) -> None:
    rng = Random(seed)
    async with crowd(redis.url, routing) as play:
        await play.create()
        await play.watch()
        away: set[str] = set()
        for name in "abcd":
            await play.come(name)
        saved = snapshot(redis)
        for _ in range(20):
            what = rng.choice(["annotate"] * 5 + ["move"] * 5 + ["save", "roll back", "roll back", "delete"])
            if what == "annotate":
                await play.change(rng.randint(1, 6))
            elif what == "move":
                name = rng.choice("abcd")
                if name in away:
                    await play.come_back(name)
                else:
                    await play.go(name)
                away ^= {name}
            elif what == "save":
                saved = snapshot(redis)
            elif what == "delete":
                await play.rest("DELETE")
            else:
                changing = asyncio.create_task(play.change(rng.randint(0, 6)))
                await roll_back(redis, saved)
                await changing
            if rng.random() < 0.5:
                await play.seen()
        for name in away:
            await play.come_back(name)
        await play.seen()
        await play.change(2)
        await play.seen()
