"""The subscriptions that one connection carries: asked for, kept right, and given up."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator

from lockstep_client.backoff import backoff_ms
from lockstep_client.errors import LockstepError
from lockstep_client.messages import Change, Deleted, Snapshot, Subscribed, Unsubscribed
from lockstep_client.subscription import Subscription
from lockstep_client.types import JsonObject

log = logging.getLogger(__name__)

MAX_UNDER_WAY = 9
"""Of more than 16 requests the server leaves the rest unread, our PINGs, too. The others: commands."""

FOR_GOOD = ("FORBIDDEN", "UNAUTHORIZED", "INVALID_MESSAGE", "VALIDATION_ERROR")


class CarriedSubscriptions:
    """Those of one connection, and of those that come after it.

    `send` sends a request, `new_id` names it. `overflow` is told of a subscription that the server lets this
    connection have no more; `ended` of one that has ended for good.
    """

    def __init__(
        self,
        send: Callable[[JsonObject], None],
        new_id: Callable[[], int],
        now_ms: Callable[[], float],
        overflow: Callable[[Subscription], None],
        ended: Callable[[Subscription], None],
    ) -> None:
        self._send = send
        self._new_id = new_id
        self._now_ms = now_ms
        self._overflow = overflow
        self._ended = ended
        self._by_session: dict[str, Subscription] = {}
        self._is_open = False
        self._due: deque[str] = deque()
        """Sessions of which something is to be asked or given up, as soon as fewer requests are under way."""
        self._under_way: dict[int, Subscription | None] = {}
        """By id of the request; None where it gives up."""
        self._told: set[str] = set()
        """Sessions that the present connection has asked for, and not given up."""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._by_session)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(tuple(self._by_session.values()))

    def add(self, subscription: Subscription) -> None:
        self._by_session[subscription.session_id] = subscription
        self._ask(subscription.session_id)

    def drop(self, subscription: Subscription) -> None:
        """It is followed no more, or elsewhere."""
        session_id = subscription.session_id
        if self._by_session.get(session_id) is not subscription:
            return
        del self._by_session[session_id]
        self._stop_timer(session_id)
        subscription.lose()
        if session_id in self._told:
            self._ask(session_id)

    def open(self) -> None:
        """There is a connection: ask for everything."""
        self._is_open = True
        self._due.extend(self._by_session)
        self._send_due()

    def lose(self, *, is_doubtful: bool) -> None:
        """The connection has ended. If it is doubtful what it said, the states are asked for in full."""
        self._is_open = False
        self._due.clear()
        self._under_way.clear()
        self._told.clear()
        for session_id in tuple(self._timers):
            self._stop_timer(session_id)
        for subscription in self._by_session.values():
            subscription.lose()
            if is_doubtful:
                subscription.position = None

    # --- what the server says --------------------------------------------------------------------------

    def subscribed(self, message: Subscribed) -> None:
        subscription = self._answered(message.id)
        if subscription is not None and subscription.subscribed(message):
            self._ask(subscription.session_id)
        self._send_due()

    def change(self, message: Change) -> None:
        subscription = self._by_session.get(message.session_id)
        if subscription is not None and subscription.change(message):
            self._ask(subscription.session_id)

    def snapshot(self, message: Snapshot) -> None:
        if message.id is not None:
            self._answered(message.id, is_done=False)
        subscription = self._by_session.get(message.session_id)
        if subscription is not None:
            subscription.snapshot(message)
        self._send_due()

    def deleted(self, message: Deleted) -> None:
        subscription = self._by_session.get(message.session_id)
        if subscription is not None:
            subscription.deleted(message)

    def unsubscribed(self, message: Unsubscribed) -> None:
        if message.error is not None:
            self._told.discard(message.session_id)
            subscription = self._by_session.get(message.session_id)
            if subscription is not None:
                self._end(subscription, message.error)
        else:
            self._answered(message.id)
        self._send_due()

    def refuse(self, id_: object, error: LockstepError) -> bool:
        """False where it is nothing of this that is refused."""
        if not isinstance(id_, int) or id_ not in self._under_way:
            return False
        subscription = self._answered(id_)
        if subscription is not None:
            self._refused(subscription, error)
        self._send_due()
        return True

    def _refused(self, subscription: Subscription, error: LockstepError) -> None:
        session_id = subscription.session_id
        if not subscription.is_subscribed or error.code == "NOT_SUBSCRIBED":
            subscription.is_subscribed = False
            self._told.discard(session_id)
        if error.code == "SESSION_NOT_FOUND":
            subscription.missing(self._now_ms())
        elif error.code == "TOO_MANY_SUBSCRIPTIONS" and len(self) > 1:
            self.drop(subscription)
            self._overflow(subscription)
        elif error.code in FOR_GOOD:
            self._end(subscription, error)
        else:
            wait_ms = (error.retry_after_ms or 0) + backoff_ms(subscription.refusals)
            subscription.refusals += 1
            log.warning("session %s: %s; asking again in %.1f s", session_id, error, wait_ms / 1000)
            loop = asyncio.get_running_loop()
            self._timers[session_id] = loop.call_later(wait_ms / 1000, self._ask_again, session_id)

    def _end(self, subscription: Subscription, error: LockstepError) -> None:
        self.drop(subscription)
        subscription.end(error)
        self._ended(subscription)

    # --- what is asked -----------------------------------------------------------------------------------

    def _answered(self, id_: object, *, is_done: bool = True) -> Subscription | None:
        """The subscription whose request has its answer, unless it has been given up since."""
        subscription = self._under_way.pop(id_, None) if isinstance(id_, int) else None
        if subscription is None or subscription.asked_id != id_:
            return None
        if is_done:
            subscription.asked_id = None
        return subscription

    def _ask(self, session_id: str) -> None:
        if self._is_open:
            self._due.append(session_id)
            self._send_due()

    def _ask_again(self, session_id: str) -> None:
        del self._timers[session_id]
        self._ask(session_id)

    def _stop_timer(self, session_id: str) -> None:
        timer = self._timers.pop(session_id, None)
        if timer is not None:
            timer.cancel()

    def _send_due(self) -> None:
        while self._is_open and self._due and len(self._under_way) < MAX_UNDER_WAY:
            session_id = self._due.popleft()
            subscription = self._by_session.get(session_id)
            if subscription is None:
                self._give_up(session_id)
            elif subscription.asked_id is None and session_id not in self._timers:
                self._request(subscription)

    def _give_up(self, session_id: str) -> None:
        if session_id in self._told:
            self._told.discard(session_id)
            id_ = self._new_id()
            self._under_way[id_] = None
            self._send({"type": "UNSUBSCRIBE", "id": id_, "sessionId": session_id})

    def _request(self, subscription: Subscription) -> None:
        """SYNC, where the connection has it; else SUBSCRIBE, from the position that there is."""
        session_id, id_ = subscription.session_id, self._new_id()
        subscription.asked_id = id_
        self._under_way[id_] = subscription
        self._told.add(session_id)
        if subscription.is_subscribed:
            self._send({"type": "SYNC", "id": id_, "sessionId": session_id})
        else:
            position = {} if subscription.position is None else {"position": subscription.position}
            self._send({"type": "SUBSCRIBE", "id": id_, "sessionId": session_id, **position})
