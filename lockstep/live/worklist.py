"""Sessions of which something has to be read, some at a time, and again where the store is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from lockstep.errors import BrokerUnavailable
from lockstep.tasks import Tasks

SESSIONS_PER_READ = 100
RETRY_S = 0.1
# Mostly a part that is away is known to be, and asked in vain at once.
ONE_BY_ONE_S = 1.0


class Worklist:
    """Session ids and a task that goes through them, a slice at a time, and again where the store is away."""

    def __init__(
        self,
        tasks: Tasks,
        work: Callable[[list[str]], Awaitable[None]],
        complain: Callable[[BrokerUnavailable], None],
    ) -> None:
        self.session_ids: set[str] = set()
        self._tasks = tasks
        self._work = work
        self._complain = complain
        self._task: asyncio.Task[None] | None = None

    def add(self, session_ids: Iterable[str]) -> None:
        self.session_ids.update(session_ids)
        if self.session_ids and self._task is None:
            self._task = self._tasks.spawn(self._run())

    async def _run(self) -> None:
        try:
            while self.session_ids:
                count = min(SESSIONS_PER_READ, len(self.session_ids))
                session_ids = [self.session_ids.pop() for _ in range(count)]
                try:
                    await self._work(session_ids)
                except BrokerUnavailable as error:
                    self.session_ids.update(await self._one_by_one(session_ids))
                    self._complain(error)
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(0)
        finally:
            self._task = None

    async def _one_by_one(self, session_ids: list[str]) -> list[str]:
        """Where a part of the store is away the others do not wait for it. Returns those that are left."""
        left, until_s = list[str](), time.monotonic() + ONE_BY_ONE_S
        for place, session_id in enumerate(session_ids):
            try:
                await self._work([session_id])
            except BrokerUnavailable:
                left.append(session_id)
                if time.monotonic() > until_s:
                    return left + session_ids[place + 1 :]
        return left
