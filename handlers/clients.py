"""What clients say over their WebSockets, and what they are answered."""

import asyncio
import logging
from collections import deque

from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from handlers.read_scheduler import ReadScheduler
from lockstep.contract import Clock
from lockstep.errors import CLOSE_BY_LIMIT, INTERNAL_ERROR, TOO_MANY_INVALID, LockstepError, MalformedJson
from lockstep.limits import ConnectionLimits
from lockstep.live.hub import Hub
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks
from lockstep.wire import strict_json

log = logging.getLogger(__name__)

MAX_INVALID = 10
INVALID_WITHIN_S = 10.0


class Clients:
    """All clients of a process: the `Service` of their connections.

    It lets them into their rooms and answers their messages. They learn of changes from the hub, never
    from here.
    """

    def __init__(
        self,
        hub: Hub,
        clock: Clock,
        heartbeat: Heartbeat,
        limits: ConnectionLimits,
        max_message_bytes: int,
        message_rate: int,
        metrics: Metrics,
    ) -> None:
        self.heartbeat = heartbeat
        self.read_scheduler = ReadScheduler()
        self.max_message_bytes = max_message_bytes
        self.message_rate = message_rate
        self.metrics = metrics
        self._hub = hub
        self._clock = clock
        self._limits = limits
        self._tasks = Tasks()

    async def welcome(self, connection: Connection) -> None:
        """Let a client into its room, unless that would exceed a limit."""
        assert connection.session_id is not None
        try:
            refusal = self._limits.count_and_check() or await self._limits.enter(
                connection.session_id, connection.caller, connection.address
            )
            if refusal is not None:
                connection.close(CLOSE_BY_LIMIT[refusal])
                return
            connection.is_counted = True
            if connection.is_over:  # it ended while it was waiting
                self._uncount(connection)
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
            connection.send(connection.encoding.pong(self._clock.shown_ms(), message))
        elif message["type"] == "RECONNECT":
            # What the client says next waits, so that answers come in the order of the questions.
            connection.pause()
            self._tasks.spawn(self._sync(connection))
        else:
            self._refuse(connection, "UNKNOWN_TYPE", f"Unknown message type {message['type'][:50]!r}")

    def on_end(self, connection: Connection) -> None:
        self.metrics.count_closed(connection.close_code)
        self._uncount(connection)
        if connection.session_id is not None:
            self._hub.leave(connection.session_id, connection)
        extra = {"session_id": connection.session_id, "close_code": connection.close_code}
        log.info("socket closed", extra=extra)

    def _uncount(self, connection: Connection) -> None:
        """Make room for another client under the limits."""
        if connection.is_counted:
            connection.is_counted = False
            assert connection.session_id is not None
            self._limits.leave(connection.session_id, connection.caller, connection.address)

    async def _sync(self, connection: Connection) -> None:
        assert connection.session_id is not None
        try:
            await self._hub.sync(connection.session_id, connection)
        except LockstepError as error:
            self.metrics.count_sent("ERROR")
            connection.send(connection.encoding.error(error.code, error.message))
        except Exception:
            log.exception("a RECONNECT could not be answered", extra={"session_id": connection.session_id})
            connection.close(INTERNAL_ERROR)
        connection.resume()

    def _refuse(self, connection: Connection, code: str, message: str) -> None:
        """Answer an invalid message, and close the connection of a client that goes on sending such."""
        self.metrics.count_sent("ERROR")
        connection.send(connection.encoding.error(code, message))
        now_s = asyncio.get_running_loop().time()
        if connection.invalid_at_s is None:
            connection.invalid_at_s = deque(maxlen=MAX_INVALID)
        invalid_at_s = connection.invalid_at_s
        invalid_at_s.append(now_s)
        if len(invalid_at_s) == MAX_INVALID and now_s - invalid_at_s[0] <= INVALID_WITHIN_S:
            connection.close(TOO_MANY_INVALID)
