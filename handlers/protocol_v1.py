"""Protocol v1: one session for each connection, whole states, no commands."""

import logging
from collections.abc import Collection
from typing import cast

from handlers.client_protocol import ClientProtocol, count_invalid, count_out, let_in
from handlers.connection import Connection
from lockstep.access import Access
from lockstep.contract import Clock
from lockstep.errors import INTERNAL_ERROR, Close, LockstepError, MalformedJson
from lockstep.limits import ConnectionLimits
from lockstep.live.hub import Hub
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks
from lockstep.wire import encodings, protocol_v1

log = logging.getLogger(__name__)


class ProtocolV1(ClientProtocol):
    """Lets clients into their rooms and answers their messages; of changes they learn from the hub."""

    subprotocol = protocol_v1.SUBPROTOCOL
    encoding = encodings.JSON
    needs_session = True

    def __init__(self, hub: Hub, clock: Clock, limits: ConnectionLimits, metrics: Metrics) -> None:
        self._hub = hub
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._tasks = Tasks()

    @property
    def connections(self) -> Collection[Connection]:
        return cast(list[Connection], self._hub.peers)

    async def welcome(self, connection: Connection, access: Access, position: str | None) -> None:
        assert connection.session_id is not None
        try:
            if await let_in(connection, self._limits, connection.session_id):
                await self._hub.join(connection.session_id, connection)
        except Exception:
            log.exception("a WebSocket could not be set up", extra={"session_id": connection.session_id})
            connection.close(INTERNAL_ERROR)

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        try:
            message = self.encoding.decode(payload, is_binary=is_binary)
            if not isinstance(message, dict) or not isinstance(message.get("type"), str):
                raise MalformedJson("A message is a JSON object with a type")
        except MalformedJson as error:
            self._metrics.count_received(None)
            self._refuse(connection, "INVALID_MESSAGE", error.message)
            return
        self._metrics.count_received(message["type"])
        if message["type"] == "PING":
            self._metrics.count_sent("PONG")
            self._send(connection, protocol_v1.pong(self._clock.shown_ms(), message))
        elif message["type"] == "RECONNECT":
            # What the client says next waits, so that answers come in the order of the questions.
            connection.pause()
            self._tasks.spawn(self._sync(connection))
        else:
            self._refuse(connection, "UNKNOWN_TYPE", f"Unknown message type {message['type'][:50]!r}")

    def on_end(self, connection: Connection) -> None:
        count_out(connection, self._limits, connection.session_id)
        if connection.session_id is not None:
            self._hub.leave(connection.session_id, connection)

    def send_away(self, connection: Connection, how: Close, come_back_after_ms: int) -> None:
        connection.close(how)

    async def _sync(self, connection: Connection) -> None:
        assert connection.session_id is not None
        try:
            await self._hub.sync(connection.session_id, connection)
        except LockstepError as error:
            self._metrics.count_sent("ERROR")
            self._send(connection, protocol_v1.error(error.code, error.message))
        except Exception:
            log.exception("a RECONNECT could not be answered", extra={"session_id": connection.session_id})
            connection.close(INTERNAL_ERROR)
        connection.resume()

    def _refuse(self, connection: Connection, code: str, message: str) -> None:
        self._metrics.count_sent("ERROR")
        self._send(connection, protocol_v1.error(code, message))
        count_invalid(connection)

    def _send(self, connection: Connection, message: bytes) -> None:
        connection.send(connection.encoding.encode(message))
