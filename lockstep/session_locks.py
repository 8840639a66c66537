"""Commands of one session take turns, so that only processes compete."""

import asyncio
from collections import deque


class Turns:
    """Who is at it, by session, and who waits. A lock for each would cost ten times as much."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, session_id: str, timeout_s: float) -> None:
        """Wait until it is our turn, first come, first served. Raises TimeoutError."""
        waiting = self._waiting.get(session_id)
        if waiting is None:
            self._waiting[session_id] = deque()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError):
            if turn.done() and not turn.cancelled():
                self.give(session_id)  # it came too late for us
            elif turn in waiting:
                waiting.remove(turn)
            raise

    def give(self, session_id: str) -> None:
        """The turn is over: the next one's begins."""
        waiting = self._waiting[session_id]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[session_id]
