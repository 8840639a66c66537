"""What clients of protocol v2 ask for: subscriptions, states, commands, and to go on with another token."""

import sys
from collections.abc import Iterator

from msgspec import UNSET, Struct

from handlers.client_protocol import expire_with
from handlers.connection import Connection
from handlers.request import new_request_id
from handlers.subscription import Following, Subscription
from handlers.tokens import Tokens
from lockstep.access import Scope
from lockstep.commands import COMMANDS
from lockstep.contract import Clock
from lockstep.errors import (
    CLOSE_BY_LIMIT,
    DISCONNECTED,
    Forbidden,
    LockstepError,
    NotSubscribed,
    SessionFull,
    TooManySubscriptions,
    Unauthorized,
    ValidationError,
    Violation,
)
from lockstep.limits import Admission, ConnectionLimits, RateLimits
from lockstep.live.followers import Followers
from lockstep.live.peers import Kind
from lockstep.metrics import Metrics
from lockstep.perform import Change, Performer
from lockstep.rules.state_json import dumps
from lockstep.wire.protocol_v2 import (
    Command,
    Reauth,
    Reauthenticated,
    Result,
    SessionRequest,
    Subscribe,
    Sync,
    Unsubscribe,
    Unsubscribed,
)


class Requests:
    """Does what is asked. What it is answered is returned, unless the session's timeline has sent it."""

    def __init__(
        self,
        followers: Followers,
        performer: Performer,
        clock: Clock,
        tokens: Tokens,
        limits: ConnectionLimits,
        rates: RateLimits | None,
        max_subscriptions: int,
        metrics: Metrics,
    ) -> None:
        self._followers = followers
        self._performer = performer
        self._clock = clock
        self._tokens = tokens
        self._limits = limits
        self._rates = rates
        self._max_subscriptions = max_subscriptions
        self._metrics = metrics

    async def answer(self, connection: Connection, request: SessionRequest) -> Struct | None:
        """Raises LockstepError, which is the answer then."""
        following: Following = connection.following
        if isinstance(request, Command):
            return await self._command(connection, following, request)
        if isinstance(request, Subscribe):
            await self._subscribe(connection, following, request)
        elif isinstance(request, Sync):
            await self._sync(following, request)
        else:
            return self._unsubscribe(following, request)
        return None

    # --- following ---------------------------------------------------------------------------------

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
            except Exception:
                self.drop(following, subscription)
                raise
        if subscription.is_ended:
            # Another token has come meanwhile, and perhaps one more, which would allow it again; or its
            # subject was sent away.
            following.access.require(Scope.VIEW, session_id)
            raise NotSubscribed(session_id)

    async def _new_subscription(
        self, connection: Connection, following: Following, session_id: str
    ) -> Subscription | None:
        """None where the connection has ended. Raises TooManySubscriptions, SessionFull and Forbidden."""
        self._require_place(following)
        refusal = await self._limits.enter(session_id, connection.caller, None)
        if refusal is not None:
            raise SessionFull(CLOSE_BY_LIMIT[refusal].reason)
        try:
            # Meanwhile other subscriptions may have been made, and another token may have come.
            self._require_place(following)
            following.access.require(Scope.VIEW, session_id)
        except LockstepError:
            self._limits.leave(session_id, connection.caller, None)
            raise
        if connection.is_over:
            self._limits.leave(session_id, connection.caller, None)
            return None
        session_id = sys.intern(session_id)  # all who follow it share the text
        subscription = Subscription(connection, session_id, self)
        following.subscriptions[session_id] = subscription
        return subscription

    def _require_place(self, following: Following) -> None:
        """Raises TooManySubscriptions where the connection has as many as it may."""
        if len(following.subscriptions) >= self._max_subscriptions:
            raise TooManySubscriptions(self._max_subscriptions)

    async def _sync(self, following: Following, request: Sync) -> None:
        subscription = _subscription(following, request.session_id)
        await self._followers.sync(request.session_id, subscription, request.id)
        if subscription.is_ended:
            raise NotSubscribed(request.session_id)

    def _unsubscribe(self, following: Following, request: Unsubscribe) -> Unsubscribed:
        self.drop(following, _subscription(following, request.session_id))
        return Unsubscribed(id=request.id, session_id=request.session_id)

    def drop(self, following: Following, subscription: Subscription) -> None:
        """Nothing of its session is sent to the client any more."""
        if subscription.is_ended:
            return
        subscription.is_ended = True
        del following.subscriptions[subscription.session_id]
        subscription.outgoing.forget(subscription)
        self._followers.unsubscribe(subscription.session_id, subscription)
        self._limits.leave(subscription.session_id, subscription.connection.caller, None)

    def skipped(self, subscription: Subscription, kind: Kind) -> bytes:
        return self._followers.skipped(subscription.session_id, subscription, kind)

    def disconnect(self, subscription: Subscription) -> None:
        if not subscription.can_send:
            return
        connection = subscription.connection
        self.drop(connection.following, subscription)
        told = Unsubscribed(
            session_id=subscription.session_id, code="DISCONNECTED", message=DISCONNECTED.reason
        )
        self._metrics.count_sent("UNSUBSCRIBED")
        connection.send(connection.encoding.encode(dumps(told)))

    # --- commands ----------------------------------------------------------------------------------

    async def _command(self, connection: Connection, following: Following, request: Command) -> Result:
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
                needs_answer=False,
                admission=admission.admit,
                rates=rates,
            )
            applied = await self._performer.command(command, session_id, change)
        finally:
            # Whatever came of it, it was counted, and may have been one too many.
            await admission.admit()
        return Result(
            id=request.id,
            session_id=session_id,
            timestamp=self._clock.shown_ms(),
            position=applied.tag.strip('"'),
            replayed=applied.is_replayed or UNSET,
            **applied.extras,
        )

    # --- another token -----------------------------------------------------------------------------

    def reauthenticate(self, connection: Connection, request: Reauth) -> Iterator[Struct]:
        """The answers: what the token does not allow any more, then that it is taken. Raises Unauthorized."""
        following: Following = connection.following
        access = self._tokens.access({}, request.token)
        if access.subject != following.access.subject:
            raise Unauthorized("This token is another subject's (sub)", "claim")
        following.access = access
        expire_with(connection, access)
        for subscription in tuple(following.subscriptions.values()):
            try:
                access.require(Scope.VIEW, subscription.session_id)
            except Forbidden as error:
                self.drop(following, subscription)
                yield Unsubscribed(session_id=subscription.session_id, code=error.code, message=error.message)
        scope = access.scope.name.lower()
        yield Reauthenticated(id=request.id, subject=access.subject or UNSET, scope=scope)


def _subscription(following: Following, session_id: str) -> Subscription:
    subscription = following.subscriptions.get(session_id)
    if subscription is None:
        raise NotSubscribed(session_id)
    return subscription
