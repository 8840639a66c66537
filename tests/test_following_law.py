"""Whoever applies changes has at each version what REST shows, however often its line was cut.

In JSON and in MessagePack, compressed or not, and by event streams.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from random import Random
from typing import Any

import pytest

from lockstep.live.deadlines import Deadlines
from tests.support.api import Api, serving, tag
from tests.support.client_model import apply_update
from tests.support.event_source import CutStream
from tests.support.followers import BY_ENCODING, CutFollower, Follower, View
from tests.support.processes import Answer, read_answer
from tests.support.random_histories import OVER, command, creation, uuid_of
from tests.support.redis_server import RedisServer
from tests.support.variants import first_of
from tests.support.ws_client import DEFLATE

BROKERS = ["memory", "redis all", "redis targeted"]
AT_ONCE = 6
EXTENSIONS: list[dict[str, str]] = [{}, DEFLATE]
FEW, MANY = 12, 100


class Rest:
    """One caller that keeps its connection."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> "Rest":
        self._reader, self._writer = await asyncio.open_connection(*self._api.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def __call__(self, method: str, path: str, body: Any = None) -> Answer:
        raw = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /v1/sessions{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n"
        async with self._one_at_a_time, asyncio.timeout(20):
            self._writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + raw)
            answer = await read_answer(self._reader)
        if answer.status == 503 and b'"SESSION_BUSY"' in answer.raw:
            return await self(method, path, body)  # the machine is, and nothing was applied
        assert answer.status < 500, answer.raw
        return answer


@asynccontextmanager
async def servers(broker: str, redis: RedisServer, **settings: Any) -> AsyncIterator[list[Api]]:
    """All in this process: one on the embedded broker, or two on a Redis."""
    async with AsyncExitStack() as stack:
        if broker == "memory":
            yield [await stack.enter_async_context(serving(**settings))]
            return
        routing = broker.split()[1]
        settings |= {"broker": redis.url, "prefix": f"law-{routing}-", "routing": routing}
        yield [await stack.enter_async_context(serving(**settings)) for _ in range(2)]


class History:
    """One session id and all that becomes of it: whoever follows it is compared with REST at each version."""

    def __init__(self, seed: int, rests: list[Rest], steady: Follower, asker: Follower, cut_url: str) -> None:
        self.rng = Random(seed)
        self.session_id = uuid_of(self.rng)
        self.rests = rests
        self.steady = steady
        self.asker = asker
        self.is_cut = True
        self.cut: list[CutFollower] = [
            CutFollower(
                cut_url, self.session_id, self._bytes_of_next_line, headers | self.rng.choice(EXTENSIONS)
            )
            for headers in BY_ENCODING.values()
        ]
        self.cut.append(CutStream(cut_url, self.session_id, self._bytes_of_next_line))
        self.positions: list[str] = []

    def _bytes_of_next_line(self) -> int | None:
        return self.rng.choice([400, 1_500, 4_000]) + self.rng.randrange(400) if self.is_cut else None

    async def rest(self, method: str, path: str = "", body: Any = None) -> Answer:
        return await self.rng.choice(self.rests)(method, f"/{self.session_id}{path}", body)

    async def play(self) -> None:
        view = await self.steady.follow(self.session_id)
        assert (view.state, view.position) == (None, None)
        async with AsyncExitStack() as stack:
            for follower in self.cut:
                await stack.enter_async_context(follower)
            for life in range(lives := self.rng.choice([1, 1, 1, 2, 3])):
                await self._live()
                if life < lives - 1 or self.rng.random() < 0.3:
                    assert (await self.rest("DELETE")).status == 204
                    await self.steady.until(lambda: view.position is None)
            await self._compare_in_the_end(view)
            await self.rest("DELETE")
        await self.steady.ask("UNSUBSCRIBE", self.session_id)
        del self.steady.views[self.session_id]

    async def _live(self) -> None:
        answer = await self.rng.choice(self.rests)("POST", "", creation(self.rng, self.session_id))
        assert answer.status == 201, answer.raw
        state = await self._compare()
        for _ in range(self.rng.randint(3, 16)):
            # Several at once, so that what falls due by one is settled together with another.
            commands = [command(self.rng, state) for _ in range(self.rng.choice([1, 1, 2, 3]))]
            await asyncio.gather(*(self._give(name, body) for name, body in commands))
            state = await self._compare()
            if self.rng.random() < 0.1:
                await self._ask_from_nowhere()
            await asyncio.sleep(self.rng.choice([0, 0, 0, 0.002]))

    async def _give(self, name: str, body: Any) -> None:
        if self.rng.random() < 0.5:
            await self.rng.choice(self.rests)("POST", f"/{self.session_id}/{name}", body)
            return
        result = await self.steady.command(self.session_id, name, body)
        assert result["type"] == "RESULT" or result["code"] != "INTERNAL_ERROR", result
        view = self.steady.views[self.session_id]
        if result["type"] == "RESULT":
            await self.steady.until(lambda: result["position"] in view.states)

    async def _compare(self) -> Any:
        """What REST shows, once the steady follower has been there, too."""
        answer = await self.rest("GET")
        state, position = answer.data, answer.headers["etag"].strip('"')
        view = self.steady.views[self.session_id]
        await self.steady.until(lambda: position in view.states)
        assert view.states[position] == json.dumps(state)
        self.positions.append(position)
        return state

    async def _compare_in_the_end(self, view: View) -> None:
        answer = await self.rest("GET")
        if answer.status == 200 and answer.data["status"] not in OVER:
            await self.rest("POST", "/complete")
            answer = await self.rest("GET")
        state, position = (
            (None, None) if answer.status == 404 else (answer.data, answer.headers["etag"][1:-1])
        )
        self.is_cut = False
        await self.steady.until(lambda: view.position == position)
        for follower in self.cut:
            await follower.until_at(position)
        cut_views = [follower.view for follower in self.cut]
        for each in (view, *cut_views):
            assert json.dumps(each.state) == json.dumps(state)
            for _, events in groupby(each.events, lambda event: event[0]):
                versions = [version for _, version in events]
                assert versions == list(range(versions[0], versions[0] + len(versions)))
        assert set(view.told) <= {"state", "created", "UPDATE", "DELETED"}, view.told
        for each in cut_views:
            assert each.states.items() <= view.states.items()

    async def _ask_from_nowhere(self) -> None:
        epoch, version, commit = self.rng.choice(self.positions).split("-", 2)
        other = commit[1:] + commit[0] if len(set(commit)) > 1 else "abcdefgh"
        asked = self.rng.choice(
            [
                f"{epoch}-{version}-{other}",  # a lost tail
                f"0{epoch[::-1][1:]}-{version}-{commit}",  # another epoch
                f"{epoch}-{int(version) + 7}-{commit}",  # the future
                f"{epoch}-{version}-{commit}\x00",
                f"{epoch}-0{version}-{commit}",
                f"{epoch}-{version}",
                f'{epoch}-{version}-{commit}","position":"',
                f"{epoch}-{'9' * 150}-{commit}",
                "",
                "-",
                "--",
                "x",
                "a-b-c",
                "\u2028𝄞",
                "null",
            ]
        )
        view = self.asker.views[self.session_id] = View(self.session_id)
        answer = await self.asker.ask("SUBSCRIBE", self.session_id, position=asked)
        assert "updates" not in answer, asked
        steady = self.steady.views[self.session_id]
        await self.steady.until(lambda: answer["position"] in steady.states)
        assert steady.states[answer["position"]] == json.dumps(answer["state"]), asked
        await self.asker.ask("UNSUBSCRIBE", self.session_id)
        del self.asker.views[self.session_id]
        assert view.is_subscribed


def prompt_some(deadlines: Deadlines) -> None:
    """Of every second session no expiry is prompted: the next command settles it, in its own commit."""
    arm = deadlines.arm

    def arm_some(session_id: str, deadline_ms: int | None) -> None:
        arm(session_id, deadline_ms if session_id[0] in "02468ace" else None)

    deadlines.arm = arm_some  # type: ignore[method-assign]


async def play_all(broker: str, redis: RedisServer, seeds: range) -> int:
    """How often lines were cut."""
    waiting = list(reversed(seeds))
    cuts = 0

    async def play_some(apis: list[Api], place: int) -> None:
        nonlocal cuts
        steady_url, cut_url = (apis[(place + n) % len(apis)].url.replace("http", "ws") for n in (0, 1))
        async with AsyncExitStack() as stack:
            rests = [await stack.enter_async_context(Rest(api)) for api in apis]
            kinds = [headers | more for headers in BY_ENCODING.values() for more in EXTENSIONS]
            steady = await stack.enter_async_context(Follower(steady_url, kinds[place % 4]))
            asker = await stack.enter_async_context(Follower(cut_url, kinds[(place + 1) % 4]))
            while waiting:
                history = History(seed := waiting.pop(), rests, steady, asker, cut_url)
                try:
                    await history.play()
                except BaseException as error:
                    error.add_note(f"seed {seed}")
                    raise
                cuts += min(follower.cuts for follower in history.cut)
            others = {each["type"] for each in steady.others}
            assert others <= {"RESULT", "ERROR", "UNSUBSCRIBED"}, others

    async with servers(broker, redis) as apis:
        for api in apis:
            prompt_some(api.server.deadlines)
        async with asyncio.TaskGroup() as group:
            for place in range(AT_ONCE):
                group.create_task(play_some(apis, place))
        for api in apis:
            hub = api.server.hub
            # Nothing is kept of what nobody follows.
            async with asyncio.timeout(10):
                while hub.rooms:
                    await asyncio.sleep(0.01)
            assert hub.rings.total_bytes == 0
    return cuts


@pytest.mark.parametrize("broker", first_of(BROKERS))
async def test_who_applies_changes_has_at_each_version_what_rest_shows(
    broker: str, redis_server: RedisServer
) -> None:
    assert await play_all(broker, redis_server, range(FEW)) > FEW


@pytest.mark.long
@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("part", range(34))
async def test_that_holds_for_ten_thousand_histories(
    broker: str, part: int, redis_server: RedisServer
) -> None:
    first = (len(BROKERS) * part + BROKERS.index(broker)) * MANY
    assert await play_all(broker, redis_server, range(first, first + MANY)) > MANY


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("has_ring", [True, False], ids=["from its ring", "from the history"])
async def test_who_was_away_for_a_hundred_events_has_missed_none_and_who_was_longer_gets_the_state(
    broker: str, has_ring: bool, redis_server: RedisServer
) -> None:
    async with servers(broker, redis_server) as apis, AsyncExitStack() as stack:
        session_id = (await apis[0].running())["session_id"]
        followers = [
            await stack.enter_async_context(Follower(api.url.replace("http", "ws"), headers))
            for api in apis
            for headers in BY_ENCODING.values()
        ]
        if has_ring:
            for follower in followers:
                await (await stack.enter_async_context(Follower(follower.ws_url))).follow(session_id)
        states = []
        for _ in range(130):
            await apis[0].done(session_id, "annotate", {"metadata": {}})  # small: not 64 KiB are the bound
            states.append(await apis[0].read(session_id))
        current = states[-1]
        for place, state in enumerate(states):
            asked, behind = tag(state).strip('"'), current["version"] - state["version"]
            follower = followers[place % len(followers)]
            answer = await follower.ask("SUBSCRIBE", session_id, position=asked)
            await follower.ask("UNSUBSCRIBE", session_id)
            assert ("updates" in answer) == (behind < 100) or behind == 100, behind
            if "updates" in answer:
                assert len(answer["updates"]) == behind
                for update in answer["updates"]:
                    state = apply_update(state, update)
                assert json.dumps(state) == json.dumps(current)
            else:
                assert answer["position"] == tag(current).strip('"')
                assert json.dumps(answer["state"]) == json.dumps(current)
