"""Protocol v2: many sessions on one connection, changes instead of states, commands with answers."""

import logging
import secrets
from collections import deque
from collections.abc import Collection
from itertools import count
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from handlers.client_protocol import ClientProtocol, count_invalid, count_out, let_in
from handlers.connection import Connection
from handlers.requests_v2 import Requests
from handlers.subscription import Following
from lockstep import __version__
from lockstep.access import OPEN, Access
from lockstep.contract import Clock
from lockstep.errors import INTERNAL_ERROR, Close, Conflict, LockstepError, MalformedJson
from lockstep.limits import ConnectionLimits
from lockstep.metrics import Metrics
from lockstep.rules.state_json import dumps
from lockstep.tasks import Tasks
from lockstep.wire import protocol_v2
from lockstep.wire.encodings import Encoding
from lockstep.wire.protocol_v2 import (
    BadMessage,
    Error,
    GoingAway,
    Ping,
    Pong,
    Reauth,
    RequestId,
    SessionRequest,
    Subscribe,
    Welcome,
)

log = logging.getLogger(__name__)

MAX_UNDER_WAY = 16
"""A client may have so many requests under way; what it says behind them stays unread."""


class ProtocolV2(ClientProtocol):
    """Requests of one connection are answered in their order for each session, and each exactly once."""

    needs_session = False

    def __init__(
        self,
        subprotocol: str,
        encoding: Encoding,
        requests: Requests,
        clock: Clock,
        limits: ConnectionLimits,
        metrics: Metrics,
        ping_interval_s: float,
        *,
        stands_still: bool = False,
    ) -> None:
        """With `stands_still` time passes only when a test moves it, which clients are told."""
        self.subprotocol = subprotocol
        self.encoding = encoding
        self._requests = requests
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._ping_interval_ms = round(ping_interval_s * 1000)
        self._stands_still: Literal[True] | UnsetType = True if stands_still else UNSET
        self._tasks = Tasks()
        self._ids = (f"{secrets.token_hex(4)}-{number}" for number in count(1))
        self._connections: set[Connection] = set()

    @property
    def connections(self) -> Collection[Connection]:
        return self._connections

    # --- coming and going --------------------------------------------------------------------------

    async def welcome(self, connection: Connection, access: Access, position: str | None) -> None:
        connection.following = following = Following(access)
        try:
            is_let_in = await let_in(connection, self._limits, None)
        except Exception:
            log.exception("a WebSocket could not be set up")
            connection.close(INTERNAL_ERROR)
            return
        if not is_let_in:
            return
        self._connections.add(connection)
        self._send(
            connection,
            Welcome(
                protocol=self.subprotocol,
                connection_id=next(self._ids),
                timestamp=self._clock.shown_ms(),
                error_ms=self._clock.error_ms() + 1,  # the timestamp is floored
                server=f"lockstep/{__version__}",
                ping_interval_ms=self._ping_interval_ms,
                subject=access.subject or UNSET,
                scope=UNSET if access is OPEN else access.scope.name.lower(),
            ),
        )
        if connection.session_id is not None:
            request = Subscribe(id=UNSET, session_id=connection.session_id, position=position)
            self._begin(connection, following, request)

    def on_end(self, connection: Connection) -> None:
        self._connections.discard(connection)
        following = connection.following
        if following is not None:
            for subscription in tuple(following.subscriptions.values()):
                self._requests.drop(following, subscription)
        count_out(connection, self._limits, None)

    def send_away(self, connection: Connection, how: Close, come_back_after_ms: int) -> None:
        if connection.can_send:
            self._send(connection, GoingAway(reconnect_after_ms=come_back_after_ms))
            connection.close(how)

    def tell_time(self) -> None:
        """Time was moved: tell all clients, behind what has come until now."""
        for connection in self._connections:
            if connection.can_send:
                self._send_time(connection, self._clock.shown_us())

    # --- what clients say --------------------------------------------------------------------------

    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        received_us = self._clock.shown_us()
        try:
            message = protocol_v2.read_message(self.encoding.decode(payload, is_binary=is_binary))
        except MalformedJson as error:
            self._metrics.count_received(None)
            self._refuse(connection, BadMessage("INVALID_MESSAGE", error.message, UNSET))
            return
        except BadMessage as error:
            self._metrics.count_received(None if error.code == "INVALID_MESSAGE" else "unknown")
            self._refuse(connection, error)
            return
        self._metrics.count_received(str(message.__struct_config__.tag))
        if isinstance(message, Ping):
            self._send_time(connection, received_us, message.id)
        elif isinstance(message, Reauth):
            self._reauthenticate(connection, message)
        else:
            self._begin(connection, connection.following, message)

    def _begin(self, connection: Connection, following: Following, request: SessionRequest) -> None:
        """Answer the request behind those before it that are about the same session."""
        following.under_way += 1
        if following.under_way == MAX_UNDER_WAY:
            connection.pause()
        if following.queues is None:
            following.queues = {}
        queue = following.queues.get(request.session_id)
        if queue is None:
            following.queues[request.session_id] = queue = deque((request,))
            self._tasks.spawn(self._answer_all(connection, following, queue))
        else:
            queue.append(request)

    async def _answer_all(
        self, connection: Connection, following: Following, queue: deque[SessionRequest]
    ) -> None:
        queues = following.queues
        assert queues is not None
        while True:
            request = queue[0]
            await self._answer(connection, request)
            queue.popleft()
            if not queue:
                del queues[request.session_id]
                if not queues:
                    following.queues = None  # an idle client keeps no empty table
            following.under_way -= 1
            if following.under_way == MAX_UNDER_WAY - 1:
                connection.resume()
            if not queue:
                return

    async def _answer(self, connection: Connection, request: SessionRequest) -> None:
        try:
            answer = await self._requests.answer(connection, request)
            if answer is not None:
                self._send(connection, answer)
        except LockstepError as error:
            self._send_error(connection, error, request.id, request.session_id)
        except Exception:
            log.exception("a request could not be answered", extra={"session_id": request.session_id})
            bug = LockstepError("Internal server error")
            self._send_error(connection, bug, request.id, request.session_id)

    def _reauthenticate(self, connection: Connection, request: Reauth) -> None:
        try:
            for answer in self._requests.reauthenticate(connection, request):
                self._send(connection, answer)
        except LockstepError as error:
            self._send_error(connection, error, request.id)

    # --- answers -----------------------------------------------------------------------------------

    def _send_time(
        self, connection: Connection, received_us: int, id_: RequestId | UnsetType = UNSET
    ) -> None:
        self._send(
            connection,
            Pong(
                id=id_,
                received_at=received_us / 1000,
                timestamp=self._clock.shown_us() / 1000,
                error_ms=self._clock.error_ms(),
                stands_still=self._stands_still,
            ),
        )

    def _refuse(self, connection: Connection, error: BadMessage) -> None:
        self._send(connection, Error(id=error.id, code=error.code, message=error.message))
        count_invalid(connection)

    def _send_error(
        self,
        connection: Connection,
        error: LockstepError,
        id_: RequestId | UnsetType,
        session_id: str | UnsetType = UNSET,
    ) -> None:
        details = UNSET if error.details is None else error.details
        if isinstance(error, Conflict) and error.details is not None:
            # The state comes as UPDATE; the position tells which one it is.
            details = {"position": error.position}
        self._send(
            connection,
            Error(
                id=id_,
                session_id=session_id,
                code=error.code,
                message=error.message,
                details=details,
                retry_after_ms=UNSET if error.retry_after_s is None else round(error.retry_after_s * 1000),
            ),
        )

    def _send(self, connection: Connection, message: Struct) -> None:
        self._metrics.count_sent(str(message.__struct_config__.tag))
        connection.send(connection.encoding.encode(dumps(message)))
