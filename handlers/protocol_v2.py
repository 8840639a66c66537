"""Protocol v2: many sessions on one connection, changes instead of states, commands with answers."""

import logging
import secrets
from collections import deque
from collections.abc import Collection
from itertools import count

from msgspec import UNSET, Struct, UnsetType
from tornado.httputil import HTTPHeaders

from handlers.client_protocol import ClientProtocol, count_invalid
from handlers.connection import Connection
from handlers.request import new_request_id
from handlers.subscription import Subscription
from handlers.tokens import Tokens
from lockstep import __version__
from lockstep.access import Access, Scope
from lockstep.commands import COMMANDS
from lockstep.contract import Clock
from lockstep.errors import (
    CLOSE_BY_LIMIT,
    INTERNAL_ERROR,
    Close,
    Conflict,
    Forbidden,
    LockstepError,
    MalformedJson,
    NotSubscribed,
    SessionFull,
    TooManySubscriptions,
    Unauthorized,
    ValidationError,
    Violation,
)
from lockstep.limits import Admission, ConnectionLimits, RateLimits
from lockstep.live.followers import Followers
from lockstep.metrics import Metrics
from lockstep.perform import Change, Performer
from lockstep.rules.state_json import dumps
from lockstep.tasks import Tasks
from lockstep.wire import encodings, protocol_v2
from lockstep.wire.protocol_v2 import (
    BadMessage,
    Command,
    Error,
    GoingAway,
    Ping,
    Pong,
    Reauth,
    Reauthenticated,
    RequestId,
    Result,
    SessionRequest,
    Subscribe,
    Sync,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)

log = logging.getLogger(__name__)

MAX_UNDER_WAY = 16
"""A client may have so many requests under way; what it says behind them stays unread."""


class Following:
    """What is kept of a client: who it is, what it follows, and what it has asked for."""

    __slots__ = ("access", "queues", "subscriptions", "under_way")

    def __init__(self, access: Access) -> None:
        self.access = access
        self.subscriptions: dict[str, Subscription] = {}
        # For each session of which a request is under way: those that wait for it.
        self.queues: dict[str, deque[SessionRequest]] | None = None
        self.under_way = 0


class ProtocolV2(ClientProtocol):
    """Requests of one connection are answered in their order for each session, and each exactly once."""

    subprotocol = protocol_v2.SUBPROTOCOL
    encoding = encodings.JSON
    needs_session = False

    def __init__(
        self,
        followers: Followers,
        performer: Performer,
        clock: Clock,
        tokens: Tokens,
        limits: ConnectionLimits,
        rates: RateLimits | None,
        metrics: Metrics,
        *,
        max_subscriptions: int,
        ping_interval_s: float,
    ) -> None:
        self._followers = followers
        self._performer = performer
        self._clock = clock
        self._tokens = tokens
        self._limits = limits
        self._rates = rates
        self._metrics = metrics
        self._max_subscriptions = max_subscriptions
        self._ping_interval_ms = round(ping_interval_s * 1000)
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
            refusal = self._limits.count_and_check() or await self._limits.enter(None, "", connection.address)
        except Exception:
            log.exception("a WebSocket could not be set up")
            connection.close(INTERNAL_ERROR)
            return
        if refusal is not None:
            connection.close(CLOSE_BY_LIMIT[refusal])
            return
        connection.is_counted = True
        if connection.is_over:  # it ended while it was waiting
            self.on_end(connection)
            return
        self._connections.add(connection)
        self._send(
            connection,
            Welcome(
                protocol=self.subprotocol,
                connection_id=next(self._ids),
                timestamp=self._clock.shown_ms(),
                error_ms=self._clock.error_ms(),
                server=f"lockstep/{__version__}",
                ping_interval_ms=self._ping_interval_ms,
                subject=access.subject or UNSET,
                scope=access.scope.name.lower() if access.is_by_token else UNSET,
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
                self._drop(following, subscription)
        if connection.is_counted:
            connection.is_counted = False
            self._limits.leave(None, "", connection.address)

    def send_away(self, connection: Connection, how: Close, come_back_after_ms: int) -> None:
        self._send(connection, GoingAway(reconnect_after_ms=come_back_after_ms))
        connection.close(how)

    def _drop(self, following: Following, subscription: Subscription) -> None:
        """Nothing of its session is sent to the client any more."""
        if subscription.is_ended:
            return
        subscription.is_ended = True
        del following.subscriptions[subscription.session_id]
        subscription.outgoing.forget(subscription)
        self._followers.unsubscribe(subscription.session_id, subscription)
        self._limits.leave(subscription.session_id, subscription.connection.caller, None)

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
            self._send(
                connection,
                Pong(
                    id=message.id,
                    received_at=received_us / 1000,
                    timestamp=self._clock.shown_us() / 1000,
                    error_ms=self._clock.error_ms(),
                ),
            )
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
        assert following.queues is not None
        while True:
            request = queue[0]
            await self._answer(connection, following, request)
            queue.popleft()
            if not queue:
                del following.queues[request.session_id]
            if following.under_way == MAX_UNDER_WAY:
                connection.resume()
            following.under_way -= 1
            if not queue:
                return

    async def _answer(self, connection: Connection, following: Following, request: SessionRequest) -> None:
        try:
            if isinstance(request, Subscribe):
                await self._subscribe(connection, following, request)
            elif isinstance(request, Unsubscribe):
                self._unsubscribe(connection, following, request)
            elif isinstance(request, Sync):
                await self._sync(following, request)
            else:
                await self._command(connection, following, request)
        except LockstepError as error:
            self._send_error(connection, error, request.id, request.session_id)
        except Exception:
            log.exception("a request could not be answered", extra={"session_id": request.session_id})
            bug = LockstepError("Internal server error")
            self._send_error(connection, bug, request.id, request.session_id)

    async def _subscribe(self, connection: Connection, following: Following, request: Subscribe) -> None:
        session_id = request.session_id
        following.access.require(Scope.VIEW, session_id)
        subscription = following.subscriptions.get(session_id)
        if subscription is not None:
            await self._followers.subscribe(session_id, subscription, request.id)
        else:
            subscription = await self._new_subscription(connection, following, session_id)
            if subscription is None:
                return
            try:
                await self._followers.subscribe(session_id, subscription, request.id, request.position)
            except LockstepError:
                self._drop(following, subscription)
                raise
        if subscription.is_ended:
            following.access.require(Scope.VIEW, session_id)  # another token has come meanwhile

    async def _new_subscription(
        self, connection: Connection, following: Following, session_id: str
    ) -> Subscription | None:
        """None where the connection has ended meanwhile. Raises TooManySubscriptions and SessionFull."""
        if len(following.subscriptions) >= self._max_subscriptions:
            raise TooManySubscriptions(self._max_subscriptions)
        refusal = await self._limits.enter(session_id, connection.caller, None)
        if refusal is not None:
            raise SessionFull(CLOSE_BY_LIMIT[refusal].reason)
        subscription = Subscription(connection, session_id, self._skipped)
        if connection.is_over:
            self._limits.leave(session_id, connection.caller, None)
            return None
        following.subscriptions[session_id] = subscription
        return subscription

    def _skipped(self, subscription: Subscription) -> bytes:
        return self._followers.skipped(subscription.session_id, subscription)

    def _unsubscribe(self, connection: Connection, following: Following, request: Unsubscribe) -> None:
        self._drop(following, self._subscription(following, request.session_id))
        self._send(connection, Unsubscribed(id=request.id, session_id=request.session_id))

    async def _sync(self, following: Following, request: Sync) -> None:
        subscription = self._subscription(following, request.session_id)
        await self._followers.sync(request.session_id, subscription, request.id)
        if subscription.is_ended:
            raise NotSubscribed(request.session_id)

    def _subscription(self, following: Following, session_id: str) -> Subscription:
        subscription = following.subscriptions.get(session_id)
        if subscription is None:
            raise NotSubscribed(session_id)
        return subscription

    async def _command(self, connection: Connection, following: Following, request: Command) -> None:
        access, session_id = following.access, request.session_id
        rates = None if access.is_trusted else self._rates
        admission = Admission(None if rates is None else rates.charge(access.client or connection.address))
        try:
            command = COMMANDS.get(request.command)
            if command is None:
                message = f"{request.command[:50]!r} is no command"
                raise ValidationError([Violation("command", message, "unknown_command")])
            access.require_command(command.scope, session_id)
            change = Change(
                access=access,
                request_id=new_request_id(),
                method="POST",
                path=f"/v1/sessions/{session_id}/{command.name}",
                body=b"" if request.body is None else dumps(request.body),
                idempotency_key=request.idempotency_key,
                admission=admission.admit,
                rates=rates,
            )
            applied = await self._performer.command(command, session_id, change)
        finally:
            # Whatever came of it, it was counted, and may have been one too many.
            await admission.admit()
        self._send(
            connection,
            Result(
                id=request.id,
                session_id=session_id,
                timestamp=self._clock.shown_ms(),
                position=applied.tag.strip('"'),
                replayed=applied.is_replayed or UNSET,
                **applied.extras,
            ),
        )

    def _reauthenticate(self, connection: Connection, request: Reauth) -> None:
        following = connection.following
        try:
            access = self._tokens.access(HTTPHeaders(), request.token)
            if access.subject != following.access.subject:
                raise Unauthorized("This token is another subject's (sub)", "claim")
        except LockstepError as error:
            self._send_error(connection, error, request.id)
            return
        following.access = access
        connection.expire_with(access)
        for subscription in tuple(following.subscriptions.values()):
            try:
                access.require(Scope.VIEW, subscription.session_id)
            except Forbidden as error:
                self._drop(following, subscription)
                self._send(
                    connection,
                    Unsubscribed(session_id=subscription.session_id, code=error.code, message=error.message),
                )
        scope = access.scope.name.lower()
        self._send(connection, Reauthenticated(id=request.id, subject=access.subject or UNSET, scope=scope))

    # --- answers -----------------------------------------------------------------------------------

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
        connection.send(self.encoding.encode(dumps(message)))
