"""TCP links between the nodes of a cluster, of which those to and from some can be made silent."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from tests.support.listening import listening


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
        self._listeners = contextlib.AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def lead_to(self, port: int, place: int, address: str) -> int:
        """A port of ours that leads to that one, of the node at `place`, which connects from `address`."""
        self._places[address] = place

        async def listen() -> int:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._serve(port, place, reader, writer)

            server = await self._listeners.enter_async_context(listening(serve))
            return int(server.sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(listen(), self._loop).result()

    def cut(self, places: set[int]) -> None:
        """Hold what goes to or comes from these nodes, and nothing else."""

        def change() -> None:
            self.cut_places = places
            self._passes.set()
            self._passes = asyncio.Event()

        self._loop.call_soon_threadsafe(change)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listeners.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(
        self, port: int, place: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = writer.get_extra_info("peername")[0]
        ends = {place, self._places.get(source, place)}
        await self._until_open(ends)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [
            asyncio.create_task(self._pump(reader, up_writer, ends, lambda data: data)),
            asyncio.create_task(self._pump(up_reader, writer, ends, lambda data: self.on_reply(data))),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
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
