"""Followers that do not read, and followers of very many sessions: what is kept for them, and what not."""

import asyncio
import gc
import json
import socket
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest

from handlers.connection import Connection
from handlers.outgoing_queue import MAX_UNSENT_BYTES
from handlers.subscription import Subscription
from lockstep import sessions
from lockstep.contract import Attendance
from lockstep.live import presence_tracker
from lockstep.live.ring import Ring
from lockstep.live.timeline import Timeline
from tests.support.api import Api, serving
from tests.support.followers import BY_ENCODING, V2, Follower, View
from tests.support.variants import first_of
from tests.support.ws_client import DEFLATE, Closed, WsClient

SEATS = 200  # so that a state has some 50 KB, and an UPDATE a hundredth of that

# Who does not read does not answer pings either, and is not to be taken for dead within a test.
PATIENT: dict[str, Any] = {"ping_interval_s": 300, "ping_timeout_s": 200}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fifty commands at once the last is not given up because the machine is slow."""
    monkeypatch.setattr(sessions, "GIVE_UP_S", 60.0)


SLOW = BY_ENCODING | {"compressed": V2 | DEFLATE}


@pytest.fixture(params=first_of([*SLOW]))
def headers(request: pytest.FixtureRequest) -> dict[str, str]:
    """They name the encoding of those that are slow; others speak JSON."""
    return SLOW[request.param]


def connections(api: Api) -> set[Connection]:
    protocols = [each for name, each in api.server.clients.protocols.items() if ".v2." in name]
    return {connection for protocol in protocols for connection in protocol.connections}


class Sluggard:
    """Follows sessions, and takes next to nothing until it is told to read."""

    def __init__(self, client: WsClient, connection: Connection) -> None:
        self.client = client
        self.connection = connection
        self.views: dict[str, View] = {}
        self.others: list[Any] = []

    @classmethod
    async def at(cls, api: Api, headers: dict[str, str]) -> "Sluggard":
        before = connections(api)
        url = f"{api.url.replace('http', 'ws')}/ws"
        client = await WsClient.connect(url, headers=headers, rcvbuf=4096, limit=4096)
        assert (await client.recv())["type"] == "WELCOME"
        (connection,) = connections(api) - before
        connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return cls(client, connection)

    async def follow(self, session_id: str) -> None:
        view = self.views[session_id] = View(session_id)
        await self.client.send({"type": "SUBSCRIBE", "id": session_id, "sessionId": session_id})
        await self.read_until(lambda: view.is_subscribed)

    async def read_until(self, condition: Any) -> None:
        while not condition():
            message = await self.client.recv(20)
            assert not isinstance(message, Closed), message
            if not self.views[message["sessionId"]].take(message):
                self.others.append(message)

    @property
    def is_behind(self) -> bool:
        return not self.connection.outgoing.is_empty

    def waiting(self) -> list[int]:
        """How many bytes wait for it: of the frame in progress, and of each behind that."""
        unsent = self.connection.outgoing._unsent
        if unsent is None:
            return []
        return [len(unsent._rest), *(len(frame or b"") for _, frame, _ in unsent._waiting)]


class Busy:
    """Changes sessions as fast as one connection can, and remembers where each is."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.positions: dict[str, str] = {}

    async def change(self, session_id: str, times: int) -> None:
        results = await asyncio.gather(
            *(self.follower.command(session_id, "annotate", {"metadata": {"n": n}}) for n in range(times))
        )
        assert {result["type"] for result in results} == {"RESULT"}
        self.positions[session_id] = results[-1]["position"]


async def test_a_slow_follower_costs_one_state_and_has_the_latest_when_it_reads_again(
    headers: dict[str, str],
) -> None:
    async with serving(**PATIENT) as api, AsyncExitStack() as stack:
        url = api.url.replace("http", "ws")
        session_id = (await api.running("count_up", seats=SEATS))["session_id"]
        state_bytes = len(json.dumps(await api.read(session_id)))
        reader = await stack.enter_async_context(Follower(url))
        busy = Busy(await stack.enter_async_context(Follower(url)))
        slow = await Sluggard.at(api, headers)
        await slow.follow(session_id)
        view = await reader.follow(session_id)
        most_bytes = 0
        for _ in range(30):
            await busy.change(session_id, 50)
            waiting = slow.waiting()
            assert len(waiting) <= 2, "the frame in progress and one change, or what stands for them all"
            most_bytes = max(most_bytes, sum(waiting))
        assert slow.is_behind
        assert most_bytes < 2 * state_bytes
        # Who reads has had every version, and nothing but changes.
        await reader.until(lambda: view.position == busy.positions[session_id])
        assert (set(view.told[1:]), len(view.events)) == ({"UPDATE"}, 1_500)
        slow_view = slow.views[session_id]
        await slow.read_until(lambda: slow_view.position == view.position)
        assert slow_view.state == view.state
        assert set(slow_view.told[1:]) == {"UPDATE", "skipped"}
        assert len(slow_view.events) < 1_500
        # It is a client like any other again.
        await busy.change(session_id, 5)
        await slow.read_until(lambda: slow_view.position == busy.positions[session_id])
        assert slow_view.told[-5:] == ["UPDATE"] * 5
        slow.client.abort()


async def test_a_slow_follower_that_reads_now_and_then_is_never_led_astray(headers: dict[str, str]) -> None:
    rng = Random(5)
    async with serving(**PATIENT) as api, AsyncExitStack() as stack:
        url = api.url.replace("http", "ws")
        session_ids = [(await api.running("count_up", seats=SEATS))["session_id"] for _ in range(3)]
        busy = Busy(await stack.enter_async_context(Follower(url)))
        slow = await Sluggard.at(api, headers)
        for session_id in session_ids:
            await slow.follow(session_id)
        for turn in range(60):
            await busy.change(rng.choice(session_ids), rng.choice([1, 2, 5, 30]))
            if turn % 7 == 0:
                path = f"/v1/sessions/{session_ids[0]}/messages"
                assert (await api("POST", path, {"type": "NOTE", "turn": turn})).status == 202
            if turn % 11 == 0:
                await slow.client.send({"type": "SYNC", "id": turn, "sessionId": session_ids[1]})
            for _ in range(rng.choice([0, 0, 1, 3])):
                if not slow.is_behind:
                    break
                message = await slow.client.recv()
                if not slow.views[message["sessionId"]].take(message):
                    slow.others.append(message)
        for session_id, position in busy.positions.items():
            view = slow.views[session_id]
            await slow.read_until(lambda view=view, position=position: view.position == position)
            assert view.state == await api.read(session_id)
        await slow.client.send({"type": "PING", "id": "end"})
        while (message := await slow.client.recv())["type"] != "PONG":
            if not slow.views[message["sessionId"]].take(message):
                slow.others.append(message)
        assert [each["message"]["turn"] for each in slow.others] == list(range(0, 60, 7)), "kept, in order"
        told = [kind for view in slow.views.values() for kind in view.told]
        assert told.count("requested") == 6, "an answer each"
        assert "skipped" in told
        slow.client.abort()


async def test_a_slow_follower_of_many_sessions_costs_one_place_for_each(headers: dict[str, str]) -> None:
    async with serving(**PATIENT) as api, AsyncExitStack() as stack:
        url = api.url.replace("http", "ws")
        session_ids = [(await api.running("count_up", seats=50))["session_id"] for _ in range(20)]
        busy = Busy(await stack.enter_async_context(Follower(url)))
        slow = await Sluggard.at(api, headers)
        for session_id in session_ids:
            await slow.follow(session_id)
        for _ in range(10):
            for session_id in session_ids:
                await busy.change(session_id, 10)
            waiting = slow.waiting()
            assert len(waiting) <= 1 + len(session_ids)
            # What waits are single changes, or nothing: a state is made when its turn comes.
            assert sum(waiting[1:]) < len(session_ids) * 2_000
        assert slow.is_behind
        for session_id in session_ids[:10]:
            await slow.client.send({"type": "UNSUBSCRIBE", "id": 1, "sessionId": session_id})
        for session_id in session_ids[10:]:
            view, position = slow.views[session_id], busy.positions[session_id]
            await slow.read_until(lambda view=view, position=position: view.position == position)
            assert view.state == await api.read(session_id)
        slow.client.abort()


async def test_a_slow_follower_is_told_of_an_end_and_of_another_life(headers: dict[str, str]) -> None:
    async with serving(**PATIENT) as api, AsyncExitStack() as stack:
        url = api.url.replace("http", "ws")
        created = await api.running("count_up", seats=SEATS)
        session_id = created["session_id"]
        busy = Busy(await stack.enter_async_context(Follower(url)))
        slow = await Sluggard.at(api, headers)
        await slow.follow(session_id)
        while not slow.is_behind:
            await busy.change(session_id, 20)
        await busy.change(session_id, 20)
        assert (await api("DELETE", f"/v1/sessions/{session_id}")).status == 204
        again = await api.create(seats=SEATS, session_id=session_id)
        await busy.change(session_id, 20)
        view = slow.views[session_id]
        await slow.read_until(lambda: view.position == busy.positions[session_id])
        assert view.state == await api.read(session_id)
        assert view.told.count("DELETED") == 1
        assert view.state is not None
        assert view.state["created_at"] == again["created_at"]
        slow.client.abort()


# --- very many subscriptions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sessions", "sockets", "each"),
    [(200, 50, 20), pytest.param(200, 50, 200, marks=pytest.mark.long)],
)
async def test_each_change_reaches_exactly_those_that_follow_and_nothing_is_kept_of_who_left(
    sessions: int, sockets: int, each: int
) -> None:
    rng = Random(sockets)
    async with serving(max_subscriptions=200, **PATIENT) as api, AsyncExitStack() as stack:
        url = api.url.replace("http", "ws")
        session_ids = [(await api.create())["session_id"] for _ in range(sessions)]
        busy = Busy(await stack.enter_async_context(Follower(url)))
        followers = [await stack.enter_async_context(Follower(url)) for _ in range(sockets)]
        for place, follower in enumerate(followers):
            for session_id in session_ids if place == 0 else rng.sample(session_ids, each):
                await follower.follow(session_id)
        version = 1
        for _ in range(3):
            version += 1
            await asyncio.gather(*(busy.change(session_id, 1) for session_id in session_ids))
            for follower in followers:
                # A loop that is busy serves a room in several turns; a PONG may come between them.
                await follower.until(lambda each=follower, last=version: shown(each) <= {last})
            for follower in followers[1:]:
                leaving = rng.sample(sorted(follower.views), len(follower.views) // 2)
                for session_id in leaving:
                    answer = await follower.ask("UNSUBSCRIBE", session_id)
                    assert answer["type"] == "UNSUBSCRIBED"
                    del follower.views[session_id]
            followed = {session_id for follower in followers for session_id in follower.views}
            assert set(api.server.hub.rooms) == followed
        for follower in followers:
            assert {other["type"] for other in follower.others} <= {"UNSUBSCRIBED"}
            for view in follower.views.values():
                assert view.told == ["state", "UPDATE", "UPDATE", "UPDATE"]
        # One goes through all its sessions, the others just go.
        for session_id in session_ids:
            await followers[0].ask("UNSUBSCRIBE", session_id)
        for follower in followers[1:]:
            await follower.leave()
        async with asyncio.timeout(20):
            while api.server.hub.rooms or len(connections(api)) > 2:
                await asyncio.sleep(0.01)
        assert api.server.hub.rings.total_bytes == 0
        gc.collect()
        left = [
            type(each).__name__
            for each in gc.get_objects()
            if isinstance(each, Timeline | Ring | Subscription)
        ]
        assert left == []


def shown(follower: Follower) -> set[int]:
    """The versions that its sessions are at."""
    return {view.state["version"] if view.state else 0 for view in follower.views.values()}


async def test_presence_closes_no_slow_follower_which_knows_everybody_when_it_reads_again(
    headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as much as may wait for it is told meanwhile."""
    monkeypatch.setattr(presence_tracker, "TELL_INTERVAL_S", 0)
    async with serving(**PATIENT) as api, AsyncExitStack() as stack:
        url = api.url.replace("http", "ws")
        session_id = (await api.create(presence=True))["session_id"]
        reader = await stack.enter_async_context(Follower(url))
        slow = await Sluggard.at(api, headers)
        await slow.follow(session_id)
        view = await reader.follow(session_id)
        hub, told_bytes, most_bytes = api.server.hub, 0, 0
        for round_ in range(60):
            crowd = {f"{round_ % 3} {number} {'x' * 500}": Attendance(1, 0) for number in range(40)}
            gone = {f"{(round_ - 1) % 3} {number} {'x' * 500}": None for number in range(40)}
            hub.on_presence(session_id, "another process", gone | crowd)
            await reader.until(lambda crowd=crowd: view.presence.subjects == set(crowd))
            told_bytes += 40 * 1000
            most_bytes = max(most_bytes, sum(slow.waiting()))
        assert (slow.is_behind, slow.connection.is_over) == (True, False)
        assert told_bytes > 2 * MAX_UNSENT_BYTES
        assert most_bytes < 200_000
        slow_view = slow.views[session_id]
        await slow.read_until(lambda: slow_view.presence.subjects == set(crowd))
        assert len(slow_view.presence.told) < 30
        assert slow_view.presence.anonymous == 2
        hub.on_presence(session_id, "another process", {"the last": Attendance(1, 0)})
        # By the difference, or, where it is still behind, again by everybody.
        await slow.read_until(lambda: slow_view.presence.subjects == {*crowd, "the last"})
