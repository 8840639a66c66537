"""Background work that belongs to somebody: it ends with its owner, and its failures are logged."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

from lockstep.beats import beat
from lockstep.errors import BrokerUnavailable

log = logging.getLogger(__name__)


T = TypeVar("T")


async def all_ended(work: Iterable[Awaitable[T]]) -> list[T]:
    """Do all of it at once; what each came to. Raises the first failure, but not before all have ended."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


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

        async def pause() -> None:
            await asyncio.sleep(pause_s())

        self.spawn(self._repeat(turn, pause, what))

    def on_beats(self, turn: Callable[[], Awaitable[None]], what: str) -> None:
        """The same about once a second, together with all that this process looks after (`beats.py`)."""
        self.spawn(self._repeat(turn, beat, what))

    async def close(self) -> None:
        tasks = tuple(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(
        self, turn: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[object]], what: str
    ) -> None:
        while True:
            await pause()
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
