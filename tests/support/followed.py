"""What a test takes from the Python client's `follow`, one update after another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from lockstep_client import AsyncLockstep
from lockstep_client.updates import Update


class Followed:
    """All updates that have come so far."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.error: Exception | None = None
        self.has_ended = False
        self._changed = asyncio.Event()

    @property
    def last(self) -> Update:
        return self.updates[-1]

    async def until(self, holds: Callable[["Followed"], bool], timeout_s: float = 20.0) -> "Followed":
        try:
            async with asyncio.timeout(timeout_s):
                while not holds(self):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"it did not come to that: {self.updates[-3:]} {self.error!r}") from None
        return self

    async def until_version(self, version: int) -> Update:
        def is_there(self: "Followed") -> bool:
            state = self.updates[-1].state if self.updates else None
            return state is not None and state["version"] >= version

        return (await self.until(is_there)).last

    async def count(self, number: int) -> Update:
        return (await self.until(lambda each: len(each.updates) >= number)).last

    async def fails(self) -> Exception:
        await self.until(lambda each: each.error is not None)
        assert self.error is not None
        return self.error

    async def take_all(self, lockstep: AsyncLockstep, session_id: str) -> None:
        try:
            async for update in lockstep.follow(session_id):
                self.updates.append(update)
                self._changed.set()
        except Exception as error:
            self.error = error
        finally:
            self.has_ended = True
            self._changed.set()


@asynccontextmanager
async def following(lockstep: AsyncLockstep, session_id: str) -> AsyncIterator[Followed]:
    """Left at the end by cancelling who takes the updates."""
    followed = Followed()
    task = asyncio.create_task(followed.take_all(lockstep, session_id))
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
