"""What the middle asks of its edges: a broker on one side, peers on the other."""

import abc
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Protocol

from msgspec import Struct


class Kind(Enum):
    """What may become of a frame that a client has not taken yet."""

    MESSAGE = "message"
    """It is kept."""
    STATE = "state"
    """A newer one takes its place."""
    SYNC = "sync"
    """A state that answers or repairs: in place of an unsent one, but itself not to be replaced."""


class AlreadyDone(Exception):
    """A request was done before: nothing was changed. `record` is what was kept of it then."""

    def __init__(self, record: bytes) -> None:
        super().__init__("the request was done before")
        self.record = record


class EpochTooLow(Exception):
    """A creation's epoch is not above the last one (the store's clock was set back): nothing is stored."""

    def __init__(self, last: str) -> None:
        super().__init__(f"the last epoch is {last}")
        self.last = last


class Once(Struct, frozen=True):
    """A request that shall be done once: under `key` its `record`, a JSON object, is kept for `kept_ms`.

    A store that processes of another version share keeps it under `former_key`, too, for them to find.
    """

    key: str
    record: bytes
    kept_ms: int
    former_key: str | None = None

    def of_epoch(self, epoch: str) -> bytes:
        """The record, with the epoch of the session that the request was done to."""
        return b'{"epoch":"' + epoch.encode() + b'",' + self.record[1:]


class Charge(Struct, frozen=True):
    """One more in a window of `window_ms` that allows `limit`."""

    key: str
    limit: int
    window_ms: int


class Batch:
    """What one turn of the loop brought for a room: its frames in order, and all of them in one piece."""

    __slots__ = ("data", "frames", "size")

    def __init__(self, frames: list[tuple[Kind, bytes]]) -> None:
        self.frames = frames
        self.data = frames[0][1] if len(frames) == 1 else b"".join([frame for _, frame in frames])
        self.size = len(self.data)


class Peer(Protocol):
    """One client's connection. Nothing here ever waits for the client."""

    @property
    def is_over(self) -> bool:
        """True when nothing can be sent any more, and its end has been told."""

    def send_batch(self, batch: Batch) -> None:
        """Send its frames as if one by one, each by its kind, but where that goes at once."""

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        """Send a frame after everything sent before it."""

    def close(self, code: int, reason: str) -> None:
        """Close after what has been sent. May be called again, then does nothing."""


class Listener(Protocol):
    """Who hears what the broker brings: the hub. Nothing here waits, and nothing here raises."""

    def on_published(self, payload: bytes) -> None:
        """A payload of `session-updates`, as it was published."""

    def on_relayed(self, session_id: str, payload: bytes) -> None:
        """A payload of `ws:<session_id>`, as it was published."""

    def on_gap(self) -> None:
        """Payloads may have been lost; from now on they are heard again."""


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
    With `once` its record is stored together with the change, and a change whose key is known is not made.
    With `charge` the change is counted in that window together with its being stored, and only then;
    `on_counted` is told the count, this change included, and the ms until the window's end, also where
    that is one too many.
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
    once: Once | None = None
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


class Broker(abc.ABC):
    """Where sessions are kept, and how processes learn that one has moved.

    ``commit`` is one atomic step: the new state, its events, its deadline and one publication to
    every process happen together or not at all, so the updates of a session arrive in order.
    ``delete`` is the same for its end. Delivery is at most once; whenever some may have been lost
    the listener is told (``on_gap``), once hearing has begun again, and asks for every session it has
    clients for.
    A publication is heard by the process that made it as by every other, and never inside the call.

    States are opaque bytes here, recognised by their beginning (see ``messages.read_head``).
    Every method but ``now_ms`` raises BrokerUnavailable when the store does not answer within two
    seconds, nor is about to: an answer that is arriving is waited for. Its ``outcome`` is "unknown" where
    a change may have been applied all the same.
    """

    @abc.abstractmethod
    async def start(self, listener: Listener) -> None:
        """Begin to hear publications, and hand them to the listener."""

    @abc.abstractmethod
    async def close(self) -> None: ...

    @abc.abstractmethod
    def now_ms(self) -> int:
        """The broker's time, by which changes are dated: one clock for all processes.

        It may go back: by a little when it is measured better, by more if that clock was set back.
        """

    def shown_ms(self) -> int:
        """The same for clients to see: it takes corrections of up to 2 s by slewing, without going back."""
        return self.now_ms()

    @abc.abstractmethod
    def not_ready(self) -> list[str]:
        """Why this process should get no traffic now; empty when it should."""

    @abc.abstractmethod
    async def hear(self, session_id: str) -> bool:
        """Hear the session's channel from now on. True once that is sure; False while the store is away."""

    @abc.abstractmethod
    def unhear(self, session_id: str) -> None:
        """The session has no client here any more."""

    @abc.abstractmethod
    async def load(self, session_ids: list[str]) -> list[bytes | None]:
        """The stored states, None where there is none, in the order asked for."""

    @abc.abstractmethod
    async def load_some(self, session_ids: list[str], at_most_bytes: int) -> list[bytes | None]:
        """The same for the first of them: one, and more as long as all together have no more bytes."""

    @abc.abstractmethod
    async def recall(self, session_id: str, *keys: str) -> list[bytes | None]:
        """The stored state, and what is kept under each of these keys of a request that is done once."""

    @abc.abstractmethod
    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        """As ``load``, but only the first bytes of each, enough for ``messages.read_head``."""

    @abc.abstractmethod
    async def commit(self, commit: Commit) -> Outcome:
        """Store and publish ``commit`` if what it expects is still what is stored; else change nothing.

        Applied once at most, however often the request reaches the store. Raises AlreadyDone where
        another commit with the same ``once`` was applied before, and EpochTooLow for a creation whose
        epoch is not above every earlier one.
        """

    @abc.abstractmethod
    async def delete(self, session_id: str, expected: bytes | None = None, once: Once | None = None) -> bool:
        """Remove the session and publish that; False, and no publication, if there was none.

        With `expected` only a state that begins so is removed, and none if that is empty; where the stored
        one is of the same epoch and has moved, nothing is done. Else the record of `once` is kept, also if
        there was no session. Raises AlreadyDone where another one with the same ``once`` was done before.
        """

    @abc.abstractmethod
    async def publish(self, session_id: str, message: bytes, once: Once | None = None) -> bool:
        """Send a message to every client of the session, on whichever process; False if there is no session.

        Raises AlreadyDone where one with the same ``once`` was sent before. What is kept of it is its record
        with the session's epoch (``Once.of_epoch``).
        """

    @abc.abstractmethod
    def spend(self, charges: Sequence[Charge]) -> Awaitable[list[tuple[int, int]]]:
        """Count each in its window, shared by all processes; (count, ms until the window's end) for each.

        None after the first that is over its limit is counted. It may be on its way when this returns,
        so that what is asked next goes along with it; to be awaited all the same.
        """

    @abc.abstractmethod
    async def enter(self, key: str, limit: int) -> bool:
        """Count one more into ``key`` if all processes together have fewer than ``limit``; 0: no limit.

        What a process has that dies is forgotten. While the store is away only this process counts.
        """

    @abc.abstractmethod
    def leave(self, key: str, limit: int) -> None:
        """Count one out that was let in under the same ``limit``."""

    @abc.abstractmethod
    async def history(self, session_id: str, since: int, max_bytes: int) -> History | None:
        """Those of the last 1,000 events that are above version `since`; None if there is no such session.

        Up to `max_bytes` of them, a separator of one byte counted with each, but one where there is one.
        """

    @abc.abstractmethod
    async def page(self, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        """Sessions beyond ``after``, as (instant of lapse in ms, id), in that order."""

    @abc.abstractmethod
    async def due(self, ahead_ms: int, limit: int) -> list[tuple[int, str]]:
        """Sessions that fall due within ``ahead_ms`` or are due, as (deadline in ms, id), in that order.

        What is found to be another deadline than the state's own is put right: it stands in nobody's way.
        """

    @abc.abstractmethod
    async def forget_deadline(self, session_id: str) -> None:
        """The session, whose state cannot be read, is no longer among those that fall due."""

    @abc.abstractmethod
    async def lapse(self, limit: int) -> int:
        """Delete sessions kept long enough, publishing each end; how many there were."""
