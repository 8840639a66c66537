"""The WebSocket's handshake: /ws?sessionId=UUID."""

import asyncio
import socket

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketHandler

from handlers.client_protocol import ClientProtocol, expire_with
from handlers.clients import Clients
from handlers.connection import Connection
from handlers.json_errors import JsonErrors
from handlers.origins import refused_origin
from handlers.request_timeouts import STALLED_TIMEOUT_S
from handlers.services import Services
from handlers.tornado_private import Handshake, peer_address, release_socket
from lockstep.access import Scope
from lockstep.errors import (
    INVALID_SESSION_ID,
    MISSING_SESSION_ID,
    TOKEN_FORBIDDEN,
    TOKEN_REFUSED,
    TOO_MUCH_TOO_EARLY,
    Close,
    Forbidden,
    ShuttingDown,
    Unauthorized,
    UnsupportedProtocol,
    UpgradeRequired,
)
from lockstep.wire import heads
from lockstep.wire.extensions import granted

EARLY_BYTES = 4096


class SocketHandler(JsonErrors, WebSocketHandler):
    """The request that becomes a client's connection, and is over when that has begun.

    Messages never arrive here but at `Clients`.
    """

    def initialize(self, services: Services, clients: Clients) -> None:
        self.services = services
        self._clients = clients

    def get_websocket_protocol(self) -> Handshake | None:
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        offered = self.request.headers.get("Sec-WebSocket-Extensions")
        return Handshake(self, granted(offered) if offered and self._clients.compression else None)

    async def head(self) -> None:
        await self.get()

    async def get(self, *args: str, **kwargs: str) -> None:
        headers = self.request.headers
        if headers.get("Upgrade", "").lower() != "websocket" or self.request.method == "HEAD":
            self.set_header("Upgrade", "websocket")
            raise UpgradeRequired("This is a WebSocket: connect with an Upgrade")
        if self.services.is_draining():
            # The request came by a connection that was open before; a proxy then asks another process.
            raise ShuttingDown()
        listed = [each.strip() for each in headers.get("Sec-WebSocket-Protocol", "").split(",")]
        ours = [each for each in listed if each.startswith("lockstep.")]
        if ours and not any(each in self._clients.protocols for each in ours):
            raise UnsupportedProtocol(sorted(self._clients.protocols))
        await super().get(*args, **kwargs)

    def check_origin(self, origin: str) -> bool:
        if not self.services.origins.admits(origin, self.request.host):
            raise refused_origin(origin, self.request.host, self.request_id)
        return True

    async def open(self, *args: str, **kwargs: str) -> None:
        try:
            sock, early = await self.take_socket()
        except (StreamClosedError, TimeoutError):
            self.on_connection_close()
            return
        protocol = self._clients.protocols.get(
            self.selected_subprotocol or "", self._clients.default_protocol
        )
        requested = self._requested_session(protocol)
        session_id = requested if isinstance(requested, str) else None
        address = self.services.addresses.client_of(
            peer_address(self.request.connection), self.request.headers.get("X-Forwarded-For")
        )
        connection = Connection(sock, self._clients, protocol, session_id, address)
        assert isinstance(self.ws_connection, Handshake)
        if self.ws_connection.extensions is not None:
            connection.encoding = protocol.encoding.deflated
        self._clients.metrics.opened.inc()
        if len(early) > EARLY_BYTES:
            early = b""
            connection.close(TOO_MUCH_TOO_EARLY)
        elif isinstance(requested, Close):
            connection.close(requested)
        else:
            await self._admit(protocol, connection)
        connection.start(early)
        # The connection does not need the request any more, and this breaks the request's reference cycles.
        self.on_connection_close()

    async def _admit(self, protocol: ClientProtocol, connection: Connection) -> None:
        try:
            in_query = self.get_query_argument("token", None)
            access = self.services.tokens.access(self.request.headers, in_query)
            if connection.session_id is None:
                access.require_scope(Scope.VIEW)
            else:
                access.require(Scope.VIEW, connection.session_id)
        except Unauthorized as error:
            connection.close(TOKEN_REFUSED.because(error.message))
        except Forbidden as error:
            connection.close(TOKEN_FORBIDDEN.because(error.message))
        else:
            connection.subject = access.subject or None
            expire_with(connection, access)
            if not access.is_trusted:
                connection.caller = access.client if access.subject else connection.address
            await protocol.welcome(connection, access, self.get_query_argument("position", None))

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """The first that is known: clients list them in their order of preference."""
        return next((each for each in subprotocols if each in self._clients.protocols), None)

    async def take_socket(self) -> tuple[socket.socket, bytes]:
        """Take the socket from Tornado's stream once its answer is written, and what the stream has read.

        That is more than EARLY_BYTES if the client sent so much before it had the answer. The connection
        reads what is still in the kernel, however much, as everything else. Raises StreamClosedError, and
        TimeoutError if the client does not take the answer.
        """
        assert isinstance(self.ws_connection, Handshake)
        stream = self.ws_connection.stream
        if stream.writing():
            try:
                async with asyncio.timeout(STALLED_TIMEOUT_S):
                    await stream.write(b"")
            except TimeoutError:
                stream.close()
                raise
        # This is done at once if something has come already, which is then in one piece.
        reading = asyncio.ensure_future(stream.read_bytes(EARLY_BYTES + 1, partial=True))
        early = reading.result() if reading.done() else b""
        sock = release_socket(stream)
        return sock, early

    def _requested_session(self, protocol: ClientProtocol) -> str | Close | None:
        """The session's id, None where none is asked for and none is needed, or why there is none."""
        values = self.request.query_arguments.get("sessionId", [])
        if not values and not protocol.needs_session:
            return None
        if not any(values) and protocol.needs_session:
            return MISSING_SESSION_ID
        session_id = values[0].decode("utf-8", "replace").lower()
        if len(values) > 1 or not heads.UUID.fullmatch(session_id):
            return INVALID_SESSION_ID
        return session_id
