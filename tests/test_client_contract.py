"""What both clients owe, whatever happens to the line and to the server: the same scenarios for each."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.contract_clients import PROGRAMS, ContractClient, contract_client
from tests.support.processes import ServerProcess
from tests.support.redis_server import Proxy, RedisServer

pytestmark = pytest.mark.parametrize("language", PROGRAMS)

SESSIONS = 3
HEALED_WITHIN_S = 20.0
"""After it hears that the network is back, as a browser does by itself: 2 s, and more where it is busy."""
SOON_S = 20.0
"""What needs no more than a round trip, where the machine is busy."""


class World:
    """A server, the line to it, and a client that follows some of its sessions over that."""

    proxy: Proxy
    client: ContractClient

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.sessions: list[str] = []

    async def create(self, session_id: str) -> None:
        participants = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(2)]
        body = {"session_id": session_id, "sync_mode": "per_participant", "participants": participants}
        assert (await self.server.call("POST", "/v1/sessions", body)).status == 201
        assert (await self.change(session_id, "start")) == 200

    async def change(self, session_id: str, name: str = "switch") -> int:
        """Directly, not over the line."""
        return (await self.server.call("POST", f"/v1/sessions/{session_id}/{name}", {})).status

    async def change_all(self, times: int) -> None:
        for _ in range(times):
            assert [await self.change(each) for each in self.sessions] == [200] * len(self.sessions)

    async def open(self) -> None:
        self.sessions = [str(uuid.uuid4()) for _ in range(SESSIONS)]
        for each in self.sessions:
            await self.create(each)
        await self.client.do("open", url=f"http://127.0.0.1:{self.proxy.port}", sessions=self.sessions)
        await self.is_right(within_s=SOON_S)

    async def stored(self, session_id: str) -> tuple[str | None, Any]:
        answer = await self.server.call("GET", f"/v1/sessions/{session_id}")
        if answer.status == 404:
            return None, None
        return answer.headers["etag"].strip('"'), answer.data

    async def is_right(self, within_s: float, *, is_told: bool = False) -> None:
        """The client says that it is current, and shows what REST does, after so long at the latest.

        With `is_told` it hears again and again that the network is back: it may not have noticed a loss.
        """
        stored = {each: await self.stored(each) for each in self.sessions}
        until_s = time.monotonic() + within_s
        while True:
            shown = await self.client.do("look")
            wrong = [
                each
                for each in self.sessions
                if each not in shown
                or not shown[each]["isCurrent"]
                or (shown[each]["position"], shown[each]["state"]) != stored[each]
            ]
            if not wrong:
                return
            assert time.monotonic() < until_s, (wrong, shown, stored)
            if is_told:
                await self.client.do("probe")
            await asyncio.sleep(0.02)

    async def heal(self, within_s: float = HEALED_WITHIN_S) -> None:
        await self.is_right(within_s, is_told=True)


@asynccontextmanager
async def world(language: str, *settings: str) -> AsyncIterator[World]:
    """What is left of the client when it was closed has to be nothing."""
    made = World(ServerProcess("--log-level=warning", *settings))
    try:
        async with Proxy(made.server.port) as made.proxy, contract_client(language) as made.client:
            await made.open()
            yield made
            await made.client.do("close")
            async with asyncio.timeout(SOON_S):  # the socket says good-bye
                while await made.client.do("left") != {"timers": 0, "sockets": 0}:
                    await asyncio.sleep(0.02)
    finally:
        made.server.stop()


async def cut(world: World) -> None:
    """Reset, again and again, while things change."""
    for _ in range(3):
        world.proxy.cut()
        await world.change_all(2)


async def refused_for_a_while(world: World) -> None:
    world.proxy.refuses = True
    world.proxy.cut()
    await world.change_all(5)
    world.proxy.refuses = False


async def held_up(world: World) -> None:
    """Nothing gets through, and nothing is lost on the way."""
    world.proxy.holds = True
    await world.change_all(5)
    world.proxy.holds = False


async def far_away(world: World) -> None:
    world.proxy.delay_s = 0.15
    await world.change_all(5)
    world.proxy.cut()
    await world.change_all(5)


async def more_than_the_server_remembers(world: World) -> None:
    """It has to be the state, for no list of changes reaches back so far."""
    world.proxy.refuses = True
    world.proxy.cut()
    await world.change_all(120)
    world.proxy.refuses = False


async def deleted_meanwhile(world: World) -> None:
    gone, anew, _ = world.sessions
    world.proxy.refuses = True
    world.proxy.cut()
    for each in (gone, anew):
        assert (await world.server.call("DELETE", f"/v1/sessions/{each}")).status == 204
    await world.create(anew)
    world.proxy.refuses = False


FAULTS: list[Callable[[World], Any]] = [
    cut,
    refused_for_a_while,
    held_up,
    far_away,
    more_than_the_server_remembers,
    deleted_meanwhile,
]


async def test_a_client_is_right_again_whatever_happened_to_its_line(language: str) -> None:
    async with world(language) as made:
        for fault in FAULTS:
            await fault(made)
            await made.heal(HEALED_WITHIN_S + 10 * made.proxy.delay_s)
            made.proxy.delay_s = 0
            # It hears what happens from then on.
            made.sessions = [each for each in made.sessions if (await made.stored(each))[0] is not None]
            await made.change_all(1)
            await made.is_right(within_s=SOON_S)


async def test_a_line_that_is_dead_is_noticed_though_nothing_closes_it(language: str) -> None:
    async with world(language) as made:
        made.proxy.swallows_replies = True
        await made.change_all(2)
        await made.client.do("probe")
        async with asyncio.timeout(60):
            # What it knows to be so it says, and what it does not it does not.
            while any(each["isCurrent"] for each in (await made.client.do("look")).values()):
                await asyncio.sleep(0.05)
        made.proxy.cut()
        made.proxy.swallows_replies = False
        await made.heal()


async def test_a_command_is_applied_once_whatever_becomes_of_its_answer(language: str) -> None:
    async with world(language) as made:
        session = made.sessions[0]
        before = (await made.stored(session))[1]["version"]
        for number in range(3):
            made.proxy.swallows_replies = True
            key = f"key {number}"
            asked = asyncio.create_task(
                made.client.do("command", session=session, name="switch", body={}, key=key)
            )
            async with asyncio.timeout(SOON_S):
                while (await made.stored(session))[1]["version"] == before + number:
                    await asyncio.sleep(0.01)
            made.proxy.cut()
            made.proxy.swallows_replies = False
            await made.client.do("probe")
            assert (await asked)["replayed"]
        await made.is_right(within_s=SOON_S)
        assert (await made.stored(session))[1]["version"] == before + 3


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_restart_of_the_server_loses_nothing(
    language: str, how: str, redis_server: RedisServer
) -> None:
    settings = (f"--broker={redis_server.url}", f"--prefix={uuid.uuid4()}:")
    async with world(language, *settings) as made:
        await asyncio.to_thread(made.server.stop if how == "stopped" else made.server.kill)
        made.server = ServerProcess("--log-level=warning", *settings)
        made.proxy.target_port = made.server.port
        await made.change_all(2)
        await made.heal()


async def reconnect(language: str, times: int) -> None:
    async with world(language) as made:

        async def rested() -> dict[str, Any]:
            """What is open when nothing happens any more: it looks alike for a while."""
            looks: list[dict[str, Any]] = []
            async with asyncio.timeout(SOON_S):
                while not looks or looks[-1]["sockets"] != 1 or looks[-10:] != [looks[-1]] * 10:
                    await asyncio.sleep(0.02)
                    looks.append(await made.client.do("left"))
            return looks[-1]

        made.proxy.cut()
        await made.heal()
        first = await rested()
        for number in range(times):
            made.proxy.cut()
            await made.change(made.sessions[number % SESSIONS])
            await made.heal()
        async with asyncio.timeout(SOON_S):
            while await rested() != first:
                pass


async def test_reconnects_leave_no_timer_behind(language: str) -> None:
    await reconnect(language, 10)


@pytest.mark.long
async def test_a_thousand_reconnects_leave_no_timer_behind(language: str) -> None:
    await reconnect(language, 1_000)
