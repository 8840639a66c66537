"""Processes on one Redis, clients watching, changes going on: the scene of each fault."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.support.load import (
    Switcher,
    Watcher,
    chess,
    data,
    eventually,
    history,
    identity,
    rest,
    switching,
    watching,
)
from tests.support.processes import ServerProcess

CLIENTS = 200
SESSIONS = 20
# Of both the promise is 2 s on an idle machine, where bench/faults.py measures it; a busy one takes longer.
# What does not come by itself comes a minute after the start, when every room is compared with the store.
CONVERGES_WITHIN_S = 20.0
# Less than Redis is away for in those faults in which it does not answer.
REFUSED_WITHIN_S = 5.0


class Scene:
    """Processes on one Redis or one cluster, clients watching, changes going on."""

    def __init__(self, servers: list[ServerProcess], watchers: list[Watcher], switcher: Switcher) -> None:
        self.servers = servers
        self.watchers = watchers
        self.switcher = switcher

    async def served(self) -> None:
        """Wait until Redis answers through every process."""

        async def complaint() -> str:
            for server in self.servers:
                answer = await rest(f"{server.url}/v1/sessions?limit=1", method="GET")
                if answer.code != 200:
                    return f"{server.url}: {answer.code}"
            return ""

        await eventually(complaint, 20, "Redis is not answering again")

    async def converged(self) -> float:
        """Stop the changes; every client must hold what is stored, or have been told that it is gone."""
        self.switcher.stopped = True

        async def complaint() -> str:
            stored: dict[str, Any] = {}
            for session_id in {watcher.session_id for watcher in self.watchers}:
                answer = await rest(f"{self.servers[0].url}/v1/sessions/{session_id}", method="GET")
                stored[session_id] = identity(data(answer)) if answer.code == 200 else answer.code
            behind = [
                (watcher.identity, stored[watcher.session_id])
                for watcher in self.watchers
                if not (
                    watcher.is_gone
                    if stored[watcher.session_id] == 404
                    else watcher.identity == stored[watcher.session_id]
                )
            ]
            return f"{len(behind)} clients are behind, e.g. {behind[0]}" if behind else ""

        return await eventually(complaint, CONVERGES_WITHIN_S, "clients have not converged")

    async def assert_nothing_lost(self) -> None:
        for session_id, request_ids in self.switcher.acknowledged.items():
            events = await history(self.servers[-1].url, session_id)
            versions = [event["version"] for event in events]
            assert versions == list(range(versions[0], versions[0] + len(versions))), (
                "a version twice, or none"
            )
            kept = [event.get("request_id") for event in events]
            missing = set(request_ids) - set(kept)
            assert not missing, f"{len(missing)} acknowledged changes of {session_id} are gone"
            assert len(kept) == len(set(kept)), "a request was applied twice"

    def assert_refused_in_time(self) -> None:
        assert set(self.switcher.statuses) <= {200, 503}
        assert self.switcher.slowest_s < REFUSED_WITHIN_S, "a request waited for Redis for too long"

    def assert_updates_rise(self) -> None:
        for watcher in self.watchers:
            assert watcher.updates == sorted(set(watcher.updates)), "an update came twice, or late"


@contextlib.asynccontextmanager
async def scene(
    url: str, servers: int = 3, *options: str, sessions: int = SESSIONS, clients: int = CLIENTS
) -> AsyncIterator[Scene]:
    # In threads: the way to Redis may lead through a proxy on this very loop.
    start = (
        asyncio.to_thread(ServerProcess, f"--broker={url}", "--log-level=warning", *options)
        for _ in range(servers)
    )
    processes = await asyncio.gather(*start)
    try:
        specs = [chess() for _ in range(sessions)]
        for spec in specs:
            data(await rest(f"{processes[0].url}/v1/sessions", spec))
            data(await rest(f"{processes[0].url}/v1/sessions/{spec['session_id']}/start"))
        session_ids = [spec["session_id"] for spec in specs]
        async with (
            watching(processes, session_ids, clients) as watchers,
            switching(processes, session_ids) as switcher,
        ):
            await asyncio.sleep(0.5)  # the fault shall meet changes under way
            yield Scene(processes, watchers, switcher)
    finally:
        for process in processes:
            await asyncio.to_thread(process.stop)


class LoopLag:
    """How long a server's loop stood still, beside how long a bare loop did: both by the same clock."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.server_s = 0.0
        self.bare_s = 0.0

    async def __aenter__(self) -> "LoopLag":
        self._tasks = [asyncio.create_task(self._ask()), asyncio.create_task(self._sleep())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self) -> None:
        while True:
            began = time.monotonic()
            assert (await rest(f"{self._server.url}/health", method="GET")).code == 200
            self.server_s = max(self.server_s, time.monotonic() - began)
            await asyncio.sleep(0.02)

    async def _sleep(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            self.bare_s = max(self.bare_s, time.monotonic() - began - 0.01)

    def assert_turned(self) -> None:
        # A starving loop never turns again, and gives no answer. How long exactly it stood still is for
        # bench/faults.py to say, on a machine that has nothing else to do.
        assert not any(task.done() for task in self._tasks), "it gave no answer"
        print(f"loop stood still for {self.server_s:.3f} s, a bare one for {self.bare_s:.3f} s")
        assert self.server_s <= self.bare_s + 5.0, (self.server_s, self.bare_s)
