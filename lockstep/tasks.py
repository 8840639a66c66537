"""Background work that belongs to somebody: it ends with its owner, and its failures are logged."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from lockstep.errors import BrokerUnavailable

log = logging.getLogger(__name__)


class Tasks:
    """Keeps its tasks from being collected; a bug in one is logged once with its traceback."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def repeat(self, turn: Callable[[], Awaitable[None]], pause_s: Callable[[], float], what: str) -> None:
        """Take a turn after each pause, for ever; one that fails is logged as `what` and does not end it."""
        self.spawn(self._repeat(turn, pause_s, what))

    async def close(self) -> None:
        tasks = tuple(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(
        self, turn: Callable[[], Awaitable[None]], pause_s: Callable[[], float], what: str
    ) -> None:
        while True:
            await asyncio.sleep(pause_s())
            try:
                await turn()
            except BrokerUnavailable as error:
                log.warning("%s is put off: %s", what, error.message)
            except Exception:
                log.exception("%s failed", what)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error)
