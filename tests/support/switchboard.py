"""TCP links between the nodes of a cluster, of which those to and from some can be made silent."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable


class Switchboard:
    """Listeners that each lead to a port of a node, on a thread of its own: nodes need them all the time.

    A connection is held where the node that it leads to is cut off, or the one that it comes from, which its
    source address tells. What is held is neither closed nor lost, as where a network lets nothing through.
    """

    def __init__(self) -> None:
        self.cut_places: set[int] = set()
        # Called with each piece of a reply; what it returns goes on.
        self.on_reply: Callable[[bytes], bytes] = lambda data: data
        self._places: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def lead_to(self, port: int, place: int, address: str) -> int:
        """A port of ours that leads to that one, of the node at `place`, which connects from `address`."""
        self._places[address] = place

        async def listen() -> int:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._serve(port, place, reader, writer)

            self._servers.append(
                await asyncio.start_server(serve, sock=socket.create_server(("127.0.0.1", 0)))
            )
            return int(self._servers[-1].sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(listen(), self._loop).result()

    def cut(self, places: set[int]) -> None:
        """Hold what goes to or comes from these nodes, and nothing else."""

        def change() -> None:
            self.cut_places = places
            self._passes.set()
            self._passes = asyncio.Event()

        self._loop.call_soon_threadsafe(change)

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(
        self, port: int, place: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = writer.get_extra_info("peername")[0]
        ends = {place, self._places.get(source, place)}
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._until_open(ends)
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, asyncio.CancelledError):
            self._tasks.discard(task)
            writer.transport.abort()
            return
        try:
            there = asyncio.create_task(self._pump(reader, up_writer, ends, lambda data: data))
            back = asyncio.create_task(self._pump(up_reader, writer, ends, lambda data: self.on_reply(data)))
            _, rest = await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            for each in rest:
                each.cancel()
        except asyncio.CancelledError:
            there.cancel()
            back.cancel()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            up_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: set[int],
        change: Callable[[bytes], bytes],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._until_open(ends)
                writer.write(change(data))
                await writer.drain()

    async def _until_open(self, ends: set[int]) -> None:
        while ends & self.cut_places:
            await self._passes.wait()
