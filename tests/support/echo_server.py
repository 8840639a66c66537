"""A server that sends back what it is told, on the connections of the real one: for conformance tests.

python -m tests.support.echo_server PORT serves the Autobahn test suite; nothing of Lockstep is in it but the
framing.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from unittest.mock import Mock

from tornado.netutil import bind_sockets
from tornado.web import Application

from handlers.clients import Clients
from handlers.connection import CLOSE_TIMEOUT_S, Connection
from handlers.handshake import SOCKET_PATHS, Handshakes
from handlers.heartbeat import Heartbeat
from handlers.listening import ClientServer
from handlers.read_scheduler import ReadScheduler
from handlers.router import Limiting, Route, Router
from handlers.transport import Transport
from lockstep.access import OPEN, Access
from lockstep.wire.encodings import JSON
from lockstep.wire.frames import BINARY, TEXT, deflate_frame, encode_frame

# Autobahn's largest is 16 MiB.
MAX_MESSAGE_BYTES = 16 * 1_048_576
KEEP_ALIVE_S = 600.0


class Echo:
    """What all connections share; it answers each message with the same."""

    encoding = JSON
    needs_session = False
    compression = True

    def __init__(self, max_message_bytes: int) -> None:
        self.heartbeat = Heartbeat(interval_s=600.0, timeout_s=500.0)  # longer than a test lasts
        self.read_scheduler = ReadScheduler()
        self.max_message_bytes = max_message_bytes
        self.metrics = Mock()  # nobody counts here
        self.protocols: dict[str, Echo] = {}
        self.default_protocol = self
        self.message_rate = 0
        self.open = 0
        self.is_empty = asyncio.Event()

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        frame = encode_frame(BINARY if is_binary else TEXT, payload)
        connection.send(deflate_frame(frame) if connection.encoding.is_deflated else frame)

    async def welcome(self, connection: Connection, access: Access, position: str | None) -> None:
        self.open += 1
        self.is_empty.clear()

    def begin(self, connection: Connection, early: bytes) -> None:
        """The same without a handshake."""
        self.open += 1
        self.is_empty.clear()
        connection.start(early)

    def on_end(self, connection: Connection) -> None:
        self.open -= 1
        if not self.open:
            self.is_empty.set()


@asynccontextmanager
async def echoing(port: int = 0, max_message_bytes: int = MAX_MESSAGE_BYTES) -> AsyncIterator[str]:
    """The URL of an echo in this process. That its clients have gone it must notice at once."""
    echo = Echo(max_message_bytes)
    echo.heartbeat.start()
    services: Any = Mock(hosts=None, is_draining=lambda: False)
    services.tokens.access.return_value = OPEN
    services.addresses.client_of.return_value = ""
    services.origins.headers.return_value = {}
    handshakes = Handshakes(services, cast(Clients, echo))
    router = Router(
        [Route("GET", path, handshakes.answer, limiting=Limiting.NOT) for path in ("/", *SOCKET_PATHS)]
    )
    http = ClientServer(Transport(services, router, Application(), frozenset(), handshakes, KEEP_ALIVE_S))
    sockets = bind_sockets(port, "127.0.0.1")
    http.add_sockets(sockets)
    try:
        yield f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/"
        if echo.open:
            # Sooner than any timeout of the server.
            await asyncio.wait_for(echo.is_empty.wait(), CLOSE_TIMEOUT_S / 2)
    finally:
        http.stop()
        echo.heartbeat.close()


async def main() -> None:
    async with echoing(int(sys.argv[1])) as url:
        print(f"echo at {url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
