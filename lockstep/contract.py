"""What the middle asks of a broker: six narrow promises, Store, Bus, Counters, Agenda, Presence and Clock.

Presence is in attendance.py, who hears a Bus in listener.py. What the middle asks of clients' connections is
in live/peers.py.
"""

import abc
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Protocol

from msgspec import Struct

from lockstep.attendance import Attendance as Attendance
from lockstep.attendance import Presence as Presence
from lockstep.listener import Affected as Affected
from lockstep.listener import Listener as Listener

# What every broker agrees on.
KEPT_EVENTS = 1000
"""A session's history has so many events; older ones are gone."""
MAX_AHEAD_MS = 20
"""A commit may be dated so far ahead of the broker's clock, as processes measure it a little differently."""
MAX_BEHIND_MS = 2000
"""A commit may be dated so far behind it: what takes longer is decided again."""


class AlreadyDone(Exception):
    """A request was done before: nothing was changed. `content` is that of the record that was kept then."""

    def __init__(self, content: bytes) -> None:
        super().__init__("the request was done before")
        self.content = content


class EpochTooLow(Exception):
    """A creation's epoch is not above the last one (the store's clock was set back): nothing is stored."""

    def __init__(self, last: str) -> None:
        super().__init__(f"the last epoch is {last}")
        self.last = last


class IdempotencyRecord(Struct, frozen=True):
    """Kept of a request that shall be done once: under `key`, for `kept_ms`, its `content`, a JSON object.

    A store that processes of another version share keeps it under `former_key`, too, for them to find.
    """

    key: str
    content: bytes
    kept_ms: int
    former_key: str | None = None

    def with_epoch(self, epoch: str) -> bytes:
        """The content, with the epoch of the session that the request was done to."""
        return b'{"epoch":"' + epoch.encode() + b'",' + self.content[1:]


class Charge(Struct, frozen=True):
    """One more in a window of `window_ms` that allows `limit`."""

    key: str
    limit: int
    window_ms: int


class Outcome(Enum):
    APPLIED = "applied"
    CONFLICT = "conflict"
    """Something else is stored than the commit was decided on."""
    WRONG_TIME = "wrong_time"
    """The commit's instant is not the broker's time, or an expiry in it is not due yet."""
    LIMITED = "limited"
    """It would be one too many in the window that it is counted in."""


class Commit(Struct, frozen=True):
    """One decided change, encoded. A broker stores and publishes these bytes as they are.

    `expected` is the beginning of the state that the change was decided on, up to and with its
    `commit`; empty for a creation, which an existing session refuses. `not_before_ms` is that state's own
    last instant: where the store's clock was set back, a change is dated at it, ahead of that clock.
    `due_ms` is the deadline of the last expiry in the change, if any. The session lapses at `lapses_at_ms`,
    or, unless the commit `prolongs`, when it would have lapsed without it, if that is earlier.
    A `record` is stored together with the change, and a change is not made whose record's key is known.
    `update` is the UPDATE of protocol v2 that leads to the state, which is published behind it (see
    ``payloads.published``); empty for a creation.
    With `charge` the change is counted in that window together with its being stored, and only then;
    `on_counted` is called with the count, this change included, and the ms until the window's end, also
    where that is one too many.
    """

    session_id: str
    expected: bytes
    state: bytes
    beginning: bytes
    first_version: int
    events: tuple[bytes, ...]
    now_ms: int
    deadline_ms: int | None
    due_ms: int | None
    lapses_at_ms: int
    prolongs: bool
    not_before_ms: int = 0
    update: bytes = b""
    record: IdempotencyRecord | None = None
    charge: Charge | None = None
    on_counted: Callable[[int, int], None] | None = None


class History(Struct, frozen=True):
    """Some of a session's events, one for each version: `events[0]` is of version `first_version`.

    Where there are none, `first_version` is that of the next one to come. `version` is the session's.
    """

    epoch: str
    version: int
    first_version: int
    events: list[bytes]

    @property
    def next_since(self) -> int | None:
        """The version behind which more of them follow; None where these are the last."""
        last_version = self.first_version + len(self.events) - 1
        return last_version if last_version < self.version else None


class Clock(Protocol):
    """One clock for all processes, by which changes are dated: that of the store a session is kept in."""

    @abc.abstractmethod
    def now_ms(self, session_id: str | None = None) -> int:
        """The time of the session's store, in ms since 1970; without a session, that of the first store.

        It may go back: by a little when it is measured better, by more if the store's clock was set back.
        """

    @abc.abstractmethod
    def shown_us(self) -> int:
        """The first store's time in us, for clients to see: corrections of up to 2 s do not take it back."""

    def shown_ms(self) -> int:
        """What is shown, floored to the ms."""
        return self.shown_us() // 1000

    @abc.abstractmethod
    def error_ms(self) -> float:
        """At most so far is `shown_us` from each clock of the broker now; infinite before its first answer.

        `shown_ms` may be 1 ms further behind. Where the broker's clock is set this is noticed within a
        second; until then the bound is that of before.
        """


class Store(Protocol):
    """Where sessions are kept.

    ``commit`` is one atomic step: the new state, its events, its deadline, its record and one publication
    to every process happen together or not at all, so the updates of a session arrive in order. ``delete``
    is the same for a session's end.

    States are opaque bytes here, recognised by their beginning (see ``wire.heads``). Every method raises
    BrokerUnavailable when the store neither answers within two seconds nor is about to: an answer that is
    arriving is waited for. Its ``outcome`` is "unknown" where a change may have been applied all the same.
    """

    def keeps_together(self, session_id: str, key: str) -> bool:
        """Whether a record of this key is one and the same, wherever it is looked for with such a session.

        A store of many parts keeps a session's records with it, and those of other sessions may be elsewhere:
        a request that is to make a new session has to make it where its record is.
        """
        return True

    @abc.abstractmethod
    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        """The stored states, None where there is none, in the order asked for.

        With `at_most_bytes` only those of the first: one, and more as long as all have no more bytes.
        """

    @abc.abstractmethod
    async def recent(
        self, session_id: str, max_events: int, max_bytes: int
    ) -> tuple[bytes | None, list[bytes]]:
        """The stored state, None if there is none, and its last events, both of one instant.

        The events are those of the last versions up to the state's own, in their order, without a gap: at
        most `max_events`, and at most `max_bytes` of them. There are none where the newest is too large,
        where these bytes are no state, or where the event of its version is not its own.
        """

    @abc.abstractmethod
    async def recall(self, session_id: str, *keys: str) -> list[bytes | None]:
        """The stored state, and the content of the record kept under each key, None where there is none."""

    @abc.abstractmethod
    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        """As ``load``, but only the first bytes of each, enough for ``heads.read_head``."""

    @abc.abstractmethod
    async def commit(self, commit: Commit) -> Outcome:
        """Store and publish ``commit`` if what it expects is still what is stored; else change nothing.

        Applied once at most, however often the request reaches the store. Raises AlreadyDone where another
        record of the same key is kept, and EpochTooLow for a creation whose epoch is not above every
        earlier one where the session is kept (see `keeps_together`).
        """

    @abc.abstractmethod
    async def delete(
        self, session_id: str, expected: bytes | None = None, record: IdempotencyRecord | None = None
    ) -> bool:
        """Remove the session and publish that; False, and no publication, if there was none.

        With `expected` only a state that begins so is removed, and none if that is empty; where the stored
        one is of the same epoch and has moved, nothing is done. Otherwise `record` is kept, also if there
        was no session. Raises AlreadyDone where another record of the same key is kept.
        """

    @abc.abstractmethod
    async def history(self, session_id: str, since: int, max_bytes: int) -> History | None:
        """The events above version `since` of the last KEPT_EVENTS; None if there is no such session.

        They have up to `max_bytes`, a separator of one byte counted with each; the first comes in any case.
        """


class Bus(Protocol):
    """How processes learn that a session has moved.

    Delivery is at most once, and in order for each session. Whenever publications may have been lost the
    listener is told (``on_gap``) once hearing has begun again, and asks for every session it has clients
    for and that is affected. The process that made a publication hears it like every other, and never
    inside the call.
    """

    @abc.abstractmethod
    async def start(self, listener: Listener) -> None:
        """Begin to hear publications, and hand them to the listener.

        Returns when the store has answered. Raises ValueError where it cannot be used as it is set up.
        """

    @abc.abstractmethod
    async def close(self) -> None: ...

    @abc.abstractmethod
    def not_ready(self) -> list[str]:
        """Why this process should get no traffic now; empty when it should."""

    def not_served(self) -> list[str]:
        """Which parts of the store are away, and why, where it is in parts and those of others are served."""
        return []

    @abc.abstractmethod
    async def hear(self, session_id: str) -> bool:
        """Hear the session's channel from now on. True once that is sure; False while the store is away."""

    @abc.abstractmethod
    def unhear(self, session_id: str) -> None:
        """The session has no client here any more."""

    @abc.abstractmethod
    async def publish(
        self,
        session_id: str,
        message: bytes,
        record: IdempotencyRecord | None = None,
        *,
        is_notice: bool = False,
    ) -> bool:
        """Send a message to every client of the session, on whichever process; False if there is no session.

        A notice is for these processes themselves: it comes among the session's updates (`on_published`).
        The `record` is kept with the session's epoch (``with_epoch``), in the same atomic step. Raises
        AlreadyDone where one of the same key is kept already, and BrokerUnavailable as ``Store`` does.
        """


class Counters(Protocol):
    """Counts that all processes share.

    Windows that are lost with the store begin at 0; what a process has let in it counts in anew.
    """

    @abc.abstractmethod
    def spend(self, charges: Sequence[Charge]) -> Awaitable[list[tuple[int, int]]]:
        """Count each in its window; (count, ms until the window's end) for each.

        None after the first that is over its limit is counted. It may be on its way when this returns,
        so that what is asked next goes along with it; it has to be awaited all the same. Raises
        BrokerUnavailable as ``Store`` does.
        """

    @abc.abstractmethod
    async def enter(self, key: str, limit: int) -> bool:
        """Count one more into ``key`` if all processes together have fewer than ``limit``; 0: no limit.

        What a process had that has died is forgotten. While the store is away only this process counts.
        """

    @abc.abstractmethod
    def leave(self, key: str, limit: int) -> None:
        """Count one out that was let in under the same ``limit``."""


class Agenda(Protocol):
    """When what is to happen to which session. Raises BrokerUnavailable as ``Store`` does.

    Each process asks, and several may get the same answer: to act on it twice does no harm.
    """

    agenda_turns: int = 1
    """A store of many parts may be asked for them in so many turns: `turn` names one, from 0."""

    @abc.abstractmethod
    async def page(self, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        """Sessions beyond ``after``, as (instant of lapse in ms, id), in that order."""

    @abc.abstractmethod
    async def due(self, ahead_ms: int, limit: int, turn: int | None = None) -> list[tuple[int, str]]:
        """Sessions that fall due within ``ahead_ms`` or are due, as (deadline in ms, id), in that order.

        An entry that is not the deadline of its state is put right, so that it is in nobody's way.
        """

    @abc.abstractmethod
    async def forget_deadline(self, session_id: str) -> None:
        """The session, whose state cannot be read, is no longer among those that fall due."""

    @abc.abstractmethod
    async def lapse(self, limit: int, turn: int | None = None) -> int:
        """Delete sessions that were kept long enough, publishing each end; how many there were."""


class Broker(Store, Bus, Counters, Agenda, Presence, Clock, Protocol):
    """All of these. They are protocols, so that a consumer can name those it needs as a type of its own."""
