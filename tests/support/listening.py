"""A server of a test's own that leaves no connection behind."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# From a connection that is accepted to the first step of its task.
TURNS_TO_BEGIN = 4


@contextlib.asynccontextmanager
async def listening(serve: Serve, sock: socket.socket | None = None) -> AsyncIterator[asyncio.Server]:
    """Each connection ends, by a reset if need be, when it has been served, and all of them at the end.

    On loopback, at any port or where the socket is. An OSError or a read at its end ends a connection, too.
    """
    serving: set[asyncio.Task[None]] = set()

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            serving.discard(task)

    server = await asyncio.start_server(each, sock=sock or socket.create_server(("127.0.0.1", 0)))
    try:
        yield server
    finally:
        server.close()
        for _ in range(TURNS_TO_BEGIN):
            await asyncio.sleep(0)
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # a reset is carried out in the next turn
