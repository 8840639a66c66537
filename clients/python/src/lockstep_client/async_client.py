"""The asynchronous client."""

from types import TracebackType
from typing import Self

from lockstep_client.async_rest import AsyncRest
from lockstep_client.tokens import AsyncTokenSource


class AsyncLockstep(AsyncRest):
    """The sessions of a Lockstep server, for asyncio: each method that `Lockstep` has, to be awaited.

    async with AsyncLockstep("https://clocks.example.org", token=token) as lockstep:
        state = await lockstep.create_session({"sync_mode": "global", "total_time_ms": 600_000})
    """

    def __init__(self, url: str, token: AsyncTokenSource | None = None, timeout_s: float = 10) -> None:
        """`url` is the server's address; `/v1/...` and `/ws` are below it. Raises ValueError on what is none.

        `token` is needed where the server has keys. A function, which may be a coroutine function, is
        called for the first token, again shortly before that has run out, and where the server refuses it;
        what it raises is raised.
        """
        super().__init__(url, token, timeout_s)

    async def close(self) -> None:
        """Close the connections. No other method may be called afterwards (CLOSED)."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
