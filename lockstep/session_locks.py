"""A lock per session: commands of one session queue in their process, so that only processes compete."""

import asyncio
from collections import deque


class SessionLocks:
    """Which sessions are locked, and who waits for each. A lock object for each would cost ten times more."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def acquire(self, session_id: str, timeout_s: float) -> None:
        """Wait for the lock, first come, first served. Raises TimeoutError."""
        waiting = self._waiting.get(session_id)
        if waiting is None:
            self._waiting[session_id] = deque()
            return
        lock: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(lock)
        try:
            async with asyncio.timeout(timeout_s):
                await lock
        except (TimeoutError, asyncio.CancelledError):
            if lock.done() and not lock.cancelled():
                self.release(session_id)  # it came too late
            elif lock in waiting:
                waiting.remove(lock)
            raise

    def release(self, session_id: str) -> None:
        """Hand the lock to the next in line."""
        waiting = self._waiting[session_id]
        while waiting:
            lock = waiting.popleft()
            if not lock.done():
                lock.set_result(None)
                return
        del self._waiting[session_id]
