"""A server of protocol v2 that says what a test wants it to say: also what no server should."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

V2 = "lockstep.v2.json"
WELCOME = {
    "type": "WELCOME",
    "protocol": V2,
    "connectionId": "x-1",
    "timestamp": 1_704_110_400_000,
    "errorMs": 0.1,
    "server": "lockstep/0",
    "pingIntervalMs": 300_000,
}


class Peer:
    """A client's connection, the `number`th (from 1)."""

    def __init__(self, socket: ServerConnection, number: int) -> None:
        self.socket = socket
        self.number = number
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def say(self, *messages: dict[str, Any] | str | bytes) -> None:
        for message in messages:
            await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def request(self) -> dict[str, Any]:
        """The next request. PINGs are answered by the way."""
        return await self._requests.get()

    async def hear(self, type_: str) -> dict[str, Any]:
        """The next request, which is of this type."""
        request = await asyncio.wait_for(self.request(), 10)
        assert request["type"] == type_, request
        return request

    async def subscribed(self, state: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
        """Answer the next SUBSCRIBE."""
        request = await self.hear("SUBSCRIBE")
        answer = {
            "type": "SUBSCRIBED",
            "id": request["id"],
            "sessionId": request["sessionId"],
            "timestamp": 1,
        }
        position = None if state is None else position_of(state)
        await self.say(answer | {"position": position, "state": state} | fields)
        return request

    async def read(self) -> None:
        async for text in self.socket:
            message = json.loads(text)
            if message["type"] == "PING":
                pong = {
                    "type": "PONG",
                    "id": message["id"],
                    "receivedAt": 1.0,
                    "timestamp": 1.0,
                    "errorMs": 0.1,
                }
                await self.say(pong)
            else:
                self._requests.put_nowait(message)


def position_of(state: dict[str, Any]) -> str:
    return f"{state['epoch']}-{state['version']}-{state['commit']}"


class SocketScript:
    """What came to a scripted server: how many connections, and what went wrong in the script."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.open: set[ServerConnection] = set()
        self.offers: list[str] = []
        """The subprotocols and tokens that connections came with."""


@asynccontextmanager
async def scripted_socket(
    script: Callable[[Peer], Awaitable[None]], *, subprotocol: str | None = V2, **options: Any
) -> AsyncIterator[SocketScript]:
    """`script` is played to each connection behind its handshake; when it returns, that is closed with 1000.

    What it raises is raised at the end of the block.
    """
    told = SocketScript()
    errors: list[BaseException] = []

    async def handle(socket: ServerConnection) -> None:
        told.connections += 1
        told.open.add(socket)
        peer = Peer(socket, told.connections)
        reading = asyncio.create_task(peer.read())
        try:
            await script(peer)
        except ConnectionClosed:
            pass
        except Exception as error:
            errors.append(error)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            told.open.discard(socket)

    def select(socket: ServerConnection, offered: Any) -> Any:
        told.offers.append(socket.request.headers.get("Authorization", "") if socket.request else "")
        return subprotocol

    async with serve(
        handle, "127.0.0.1", 0, select_subprotocol=select, close_timeout=0.5, ping_interval=None, **options
    ) as server:
        told.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield told
    if errors:
        raise errors[0]
