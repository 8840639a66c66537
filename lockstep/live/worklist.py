"""Sessions of which something has to be read, some at a time, and again where the store is away."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from lockstep.errors import BrokerUnavailable
from lockstep.tasks import Tasks

SESSIONS_PER_READ = 100
RETRY_S = 0.1


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
                    self.session_ids.update(session_ids)
                    self._complain(error)
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(0)
        finally:
            self._task = None
