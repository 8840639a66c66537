"""Reads of one session, shared by all who ask for it at about the same time."""

import asyncio
from collections.abc import Awaitable, Callable


class SharedReads:
    """However many ask, at most one read of a session is under way, and at most one is to follow it.

    Whoever asks during a read may know of a later change than it will find, so it gets the following one.
    """

    def __init__(self, read: Callable[[str], Awaitable[bytes]]) -> None:
        self._read = read
        self._under_way: dict[str, asyncio.Task[bytes]] = {}
        self._following: dict[str, asyncio.Task[bytes]] = {}

    async def read(self, session_id: str) -> bytes:
        """What is stored now or later. Raises what the read raises."""
        following = self._following.get(session_id)
        if following is None:
            following = asyncio.create_task(self._read_next(session_id))
            self._following[session_id] = following
        return await asyncio.shield(following)

    async def _read_next(self, session_id: str) -> bytes:
        before = self._under_way.get(session_id)
        if before is not None:
            await asyncio.wait((before,))
        this = self._under_way[session_id] = self._following.pop(session_id)
        try:
            return await self._read(session_id)
        finally:
            if self._under_way[session_id] is this and session_id not in self._following:
                del self._under_way[session_id]
