"""One session that is followed: what it was last, and who is told of it."""

from dataclasses import dataclass, field
from typing import cast

from lockstep_client.changes import apply_changes
from lockstep_client.errors import LockstepError
from lockstep_client.messages import Change, Deleted, Snapshot, Subscribed
from lockstep_client.types import Event, State
from lockstep_client.updates import Follower, Reason, Update


@dataclass(eq=False, slots=True)
class Subscription:
    """What all who follow one session share, whichever connection feeds it."""

    session_id: str
    followers: set[Follower] = field(default_factory=set)
    state: State | None = None
    position: str | None = None
    at_ms: float = 0
    is_current: bool = False
    """Whether `state` is what the server has: the present connection says so, and nothing against it."""
    asked_id: int | None = None
    """Of the SUBSCRIBE or SYNC that has no answer yet."""
    is_subscribed: bool = False
    """By the present connection."""
    refusals: int = 0
    """How often in a row the server could not answer what was asked."""

    def add(self, follower: Follower) -> None:
        self.followers.add(follower)
        if self.is_current:
            follower.give(self._beginning())

    def lose(self) -> None:
        """The connection has ended."""
        self.is_current = self.is_subscribed = False
        self.asked_id = None
        self.refusals = 0

    def end(self, error: LockstepError | None) -> None:
        self.is_current = False
        for follower in self.followers:
            follower.end(error)

    # --- what the server says; True is returned where the state has to be asked for ------------------------

    def subscribed(self, message: Subscribed) -> bool:
        self.asked_id = None
        self.is_subscribed = True
        self.refusals = 0
        if message.changes is not None:
            if self.state is None or any(self._apply(change) for change in message.changes):
                return True
            self._begin_all(message.timestamp_ms)
        elif message.state is None:
            self._set(None, None, message.timestamp_ms, "missing")
        else:
            is_foreign = message.position is None
            reason: Reason = "foreign" if is_foreign else "requested"
            self._set(message.state, message.position, message.timestamp_ms, reason)
        return False

    def change(self, change: Change) -> bool:
        return self.is_subscribed and self._apply(change)

    def snapshot(self, message: Snapshot) -> None:
        if not self.is_subscribed:
            return  # of a subscription that was ended
        if message.id is not None and message.id == self.asked_id:
            self.asked_id = None
            self.refusals = 0
        known = ("created", "requested", "skipped", "repair", "foreign")
        reason = cast(Reason, message.reason if message.reason in known else "repair")
        self._set(message.state, message.position, message.timestamp_ms, reason)

    def deleted(self, message: Deleted) -> None:
        if self.is_subscribed:
            self._set(None, None, message.timestamp_ms, "deleted")

    def missing(self, at_ms: float) -> None:
        """The answer to SYNC where there is no session."""
        self.asked_id = None
        self._set(None, None, at_ms, "missing")

    def _apply(self, change: Change) -> bool:
        if self.state is None or change.from_position != self.position:
            self.is_current = False
            return self.asked_id is None
        self.state = apply_changes(self.state, change.changes)
        self.position, self.at_ms = change.position, change.timestamp_ms
        update = self._update(change.events, False, None)
        for follower in self.followers:
            # Who came while the connection was away knows no state that the events could lead from.
            follower.give(update if follower.has_begun else self._beginning())
        return False

    def _set(self, state: State | None, position: str | None, at_ms: float, reason: Reason) -> None:
        """What there is, whatever there was. Who has begun is not told twice of the same."""
        is_known = position == self.position and (position is not None or (state is None is self.state))
        self.state, self.position, self.at_ms = state, position, at_ms
        if is_known and reason in ("requested", "missing"):
            self._begin_all(at_ms)
            return
        self.is_current = True
        update = self._update((), reason not in ("created", "deleted"), reason)
        for follower in self.followers:
            follower.give(update)

    def _begin_all(self, at_ms: float) -> None:
        """It is current: who waits for it is told."""
        self.is_current = True
        self.at_ms = at_ms
        for follower in self.followers:
            if not follower.has_begun:
                follower.give(self._beginning())

    def _beginning(self) -> Update:
        """What there is, for who begins to follow."""
        return self._update((), True, "requested" if self.state is not None else "missing")

    def _update(self, events: tuple[()] | list[Event], sync: bool, reason: Reason | None) -> Update:
        return Update(self.session_id, self.state, self.position, events, sync, reason, self.at_ms)
