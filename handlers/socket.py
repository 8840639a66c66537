"""The WebSocket: /ws?sessionId=UUID."""

import asyncio
import logging
import socket
import time
from collections import deque

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketHandler

from handlers.base import JsonErrors
from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from handlers.origins import refused_origin
from handlers.read_scheduler import ReadScheduler
from handlers.request_timeouts import STALLED_TIMEOUT_S
from handlers.tokens import SUBPROTOCOL, Tokens
from handlers.tornado_private import Handshake, release_socket
from lockstep.access import Scope
from lockstep.addresses import Addresses
from lockstep.contract import Clock
from lockstep.errors import (
    CLOSE_BY_LIMIT,
    INTERNAL_ERROR,
    INVALID_SESSION_ID,
    MISSING_SESSION_ID,
    TOKEN_EXPIRED,
    TOKEN_FORBIDDEN,
    TOKEN_REFUSED,
    TOO_MANY_INVALID,
    TOO_MUCH_TOO_EARLY,
    Close,
    Forbidden,
    LockstepError,
    MalformedJson,
    ShuttingDown,
    Unauthorized,
    UpgradeRequired,
)
from lockstep.limits import ConnectionLimits
from lockstep.live.hub import Hub
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks
from lockstep.wire import heads, protocol_v1, strict_json
from lockstep.wire.frames import encode_text_frame

log = logging.getLogger(__name__)

MAX_REFUSED = 10
REFUSED_WITHIN_S = 10.0
EARLY_BYTES = 4096


class Clients:
    """What clients say, and what they are answered: one for all of a process.

    They hear of changes through the hub, never from here.
    """

    def __init__(
        self,
        hub: Hub,
        broker: Clock,
        heartbeat: Heartbeat,
        places: ConnectionLimits,
        max_message_bytes: int,
        message_rate: int,
        metrics: Metrics,
    ) -> None:
        self.metrics = metrics
        self.message_rate = message_rate
        self._places = places
        self.heartbeat = heartbeat
        self.read_scheduler = ReadScheduler()
        self.max_message_bytes = max_message_bytes
        self._hub = hub
        self._broker = broker
        self._tasks = Tasks()

    async def welcome(self, connection: Connection) -> None:
        """Let a client into its room, if there is a place for it."""
        assert connection.session_id is not None
        try:
            refusal = self._places.count_and_check() or await self._places.enter(
                connection.session_id, connection.caller, connection.address
            )
            if refusal is not None:
                connection.close(CLOSE_BY_LIMIT[refusal])
                return
            connection.has_place = True
            if connection.is_over:
                self.on_left(connection)  # while it was waiting
                return
            await self._hub.join(connection.session_id, connection)
        except Exception:
            log.exception("a WebSocket could not be set up", extra={"session_id": connection.session_id})
            connection.close(INTERNAL_ERROR)

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        try:
            if is_binary:
                raise MalformedJson("Binary messages are not understood")
            message = strict_json.loads(payload)
            if not isinstance(message, dict) or not isinstance(message.get("type"), str):
                raise MalformedJson("A message is a JSON object with a type")
        except MalformedJson as error:
            self.metrics.count_received(None)
            self._refuse(connection, "INVALID_MESSAGE", error.message)
            return
        self.metrics.count_received(message["type"])
        if message["type"] == "PING":
            self.metrics.count_sent("PONG")
            connection.send(encode_text_frame(protocol_v1.pong(self._broker.shown_ms(), message)))
        elif message["type"] == "RECONNECT":
            # What the client says next waits, so that answers come in the order of the questions.
            connection.pause()
            self._tasks.spawn(self._sync(connection))
        else:
            self._refuse(connection, "UNKNOWN_TYPE", f"Unknown message type {message['type'][:50]!r}")

    def on_end(self, connection: Connection) -> None:
        self.metrics.count_closed(connection.close_code)
        self.on_left(connection)
        if connection.session_id is not None:
            self._hub.leave(connection.session_id, connection)
        extra = {"session_id": connection.session_id, "close_code": connection.close_code}
        log.info("socket closed", extra=extra)

    def on_left(self, connection: Connection) -> None:
        """Give its place back."""
        if connection.has_place:
            connection.has_place = False
            assert connection.session_id is not None
            self._places.leave(connection.session_id, connection.caller, connection.address)

    async def _sync(self, connection: Connection) -> None:
        assert connection.session_id is not None
        try:
            await self._hub.sync(connection.session_id, connection)
        except LockstepError as error:
            self.metrics.count_sent("ERROR")
            connection.send(encode_text_frame(protocol_v1.error(error.code, error.message)))
        except Exception:
            log.exception("a RECONNECT could not be answered", extra={"session_id": connection.session_id})
            connection.close(INTERNAL_ERROR)
        connection.resume()

    def _refuse(self, connection: Connection, code: str, message: str) -> None:
        """Say so, and close on a client that goes on like this."""
        self.metrics.count_sent("ERROR")
        connection.send(encode_text_frame(protocol_v1.error(code, message)))
        now_s = asyncio.get_running_loop().time()
        if connection.refused_at_s is None:
            connection.refused_at_s = deque(maxlen=MAX_REFUSED)
        refused_at_s = connection.refused_at_s
        refused_at_s.append(now_s)
        if len(refused_at_s) == MAX_REFUSED and now_s - refused_at_s[0] <= REFUSED_WITHIN_S:
            connection.close(TOO_MANY_INVALID)


class SocketHandler(JsonErrors, WebSocketHandler):
    """The request that becomes a client's connection. It is gone when that has begun."""

    def initialize(self, clients: Clients, addresses: Addresses, tokens: Tokens) -> None:
        self._tokens = tokens
        self._addresses = addresses
        self._clients = clients

    def get_websocket_protocol(self) -> Handshake | None:
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        return Handshake(self)

    async def head(self) -> None:
        await self.get()

    async def get(self, *args: str, **kwargs: str) -> None:
        headers = self.request.headers
        if headers.get("Upgrade", "").lower() != "websocket" or self.request.method == "HEAD":
            self.set_header("Upgrade", "websocket")
            raise UpgradeRequired("This is a WebSocket: connect with an Upgrade")
        if self.settings["is_draining"]():
            # By a connection that was open before. A proxy asks another process then.
            raise ShuttingDown()
        await super().get(*args, **kwargs)

    def check_origin(self, origin: str) -> bool:
        if not self.settings["origins"].admits(origin, self.request.host):
            raise refused_origin(origin, self.request.host, self.request_id)
        return True

    async def open(self, *args: str, **kwargs: str) -> None:
        try:
            sock, early = await self._take_socket()
        except (StreamClosedError, TimeoutError):
            self.on_connection_close()
            return
        requested = self._requested_session()
        session_id = requested if isinstance(requested, str) else None
        address = self._addresses.client_of(
            self.request.remote_ip or "", self.request.headers.get("X-Forwarded-For")
        )
        connection = Connection(sock, self._clients, session_id, address)
        self._clients.metrics.opened.inc()
        if len(early) > EARLY_BYTES:
            early = b""
            connection.close(TOO_MUCH_TOO_EARLY)
        elif isinstance(requested, Close):
            connection.close(requested)
        else:
            await self._admit(connection, requested)
        connection.start(early)
        # The connection does not need the request any more; nor its reference cycles, which wait for this.
        self.on_connection_close()

    async def _admit(self, connection: Connection, session_id: str) -> None:
        try:
            in_query = self.get_query_argument("token", None)
            access = self._tokens.access(self.request.headers, in_query)
            access.require(Scope.VIEW, session_id)
        except Unauthorized as error:
            connection.close(TOKEN_REFUSED.because(error.message))
        except Forbidden as error:
            connection.close(TOKEN_FORBIDDEN.because(error.message))
        else:
            if access.expires_at_s is not None:
                connection.close_in(access.expires_at_s - time.time(), TOKEN_EXPIRED)
            if not access.is_trusted:
                connection.caller = access.client if access.subject else connection.address
            await self._clients.welcome(connection)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    async def _take_socket(self) -> tuple[socket.socket, bytes]:
        """Tornado's stream lets go of the socket, once its answer is written; and what it has read of it.

        That is more than EARLY_BYTES where the client has not waited for the answer. What is still in the
        kernel, however much, is read in its turn like all else. Raises StreamClosedError, and TimeoutError
        where the client does not take the answer.
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
        # What has come already is there at once, in one piece.
        reading = asyncio.ensure_future(stream.read_bytes(EARLY_BYTES + 1, partial=True))
        early = reading.result() if reading.done() else b""
        sock = release_socket(stream)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock, early

    def _requested_session(self) -> str | Close:
        """The session's id, or why there is none."""
        values = self.request.query_arguments.get("sessionId", [])
        if not any(values):
            return MISSING_SESSION_ID
        session_id = values[0].decode("utf-8", "replace").lower()
        if len(values) > 1 or not heads.UUID.fullmatch(session_id):
            return INVALID_SESSION_ID
        return session_id

    def on_message(self, message: str | bytes) -> None:
        raise NotImplementedError("messages arrive at Clients")
