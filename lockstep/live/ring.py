"""The latest UPDATEs of a session, for followers that come back."""

from collections import OrderedDict

from lockstep.wire import updates
from lockstep.wire.heads import Head

MAX_RING_BYTES = 65_536
MAX_RING_EVENTS = 100
# By our own count. What the allocator leaves unused between entries of 1 to 2 KB makes 64 MiB of it.
MAX_RINGS_BYTES = 52 * 1_048_576
# What an entry takes besides its JSON: the tuple, the number, the head of the bytes, its place in the list.
ENTRY_BYTES = 130
_FROM_AT = len('{"type":"UPDATE","sessionId":"","timestamp":,"from":"') + 36 + 13


class Ring:
    """A chain: each UPDATE applies to the position that the one before it leads to.

    In front of it stand the events that were read from the store, if any. They become UPDATEs when somebody
    asks for what is behind one of their positions.
    """

    __slots__ = ("_events", "_updates", "position", "size_bytes")

    def __init__(self) -> None:
        # With the version that each applies to. A list: most are empty, and an empty deque takes 600 bytes.
        self._updates: list[tuple[int, bytes]] = []
        self._events: list[bytes] = []
        self.position: str | None = None
        """Where the chain leads to; None where there is none."""
        self.size_bytes = 0

    def begin(self, position: str | None) -> None:
        """Forget the chain; another begins here."""
        self._updates.clear()
        self._events = []
        self.size_bytes = 0
        self.position = position

    def append(self, came_from: str, position: str, update: bytes) -> None:
        """Add an UPDATE, which applies to where the chain leads."""
        self._updates.append((_version_of(came_from), update))
        self.size_bytes += len(update) + ENTRY_BYTES
        self.position = position
        self._cut()

    def put_before(self, head: Head, events: list[bytes]) -> None:
        """Put these events, which lead to the state of `head`, in front, if the chain passes that."""
        if self.since_in_chain(head.position) is None:
            return
        version = head.order[1]
        # What the chain has from before is among the events, too.
        while self._updates and self._updates[0][0] < version:
            self.size_bytes -= len(self._updates.pop(0)[1]) + ENTRY_BYTES
        self.size_bytes += sum(map(len, events)) - sum(map(len, self._events))
        self._events = events
        self._cut()

    def since(self, session_id: str, position: str) -> list[bytes] | None:
        """The UPDATEs behind this position; None where the chain does not pass it."""
        found = self.since_in_chain(position)
        if found is not None or not self._events:
            return found
        self._unfold(session_id)
        return self.since_in_chain(position)

    def since_in_chain(self, position: str) -> list[bytes] | None:
        if position == self.position:
            return []
        if '"' in position:
            return None  # it would match more than a position
        begins = position.encode() + b'"'
        found: list[bytes] = []
        for _, update in reversed(self._updates):
            found.append(update)
            if update.startswith(begins, _FROM_AT):
                return found[::-1]
        return None

    def _unfold(self, session_id: str) -> None:
        """Make UPDATEs of the events."""
        assert self.position is not None
        epoch = self.position.partition("-")[0]
        made = updates.updates_of(session_id, epoch, self._events)
        self.size_bytes -= sum(map(len, self._events))
        self._events = []
        for came_from, update in reversed(made):
            self._updates.insert(0, (_version_of(came_from), update))
            self.size_bytes += len(update) + ENTRY_BYTES
        self._cut()

    def _cut(self) -> None:
        """Let the oldest go that are too many."""
        too_many = 0
        while self.size_bytes > MAX_RING_BYTES and too_many < len(self._events):
            self.size_bytes -= len(self._events[too_many])
            too_many += 1
        del self._events[:too_many]
        assert self.position is not None
        version = _version_of(self.position)
        while self._updates and (
            self.size_bytes > MAX_RING_BYTES or version - self._updates[0][0] > MAX_RING_EVENTS
        ):
            self.size_bytes -= len(self._updates.pop(0)[1]) + ENTRY_BYTES


class Rings:
    """All rings of a process: where they take too much, those that nothing was added to for longest go."""

    def __init__(self, max_bytes: int = MAX_RINGS_BYTES) -> None:
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[Ring, int] = OrderedDict()
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def note_size(self, ring: Ring) -> None:
        """The ring was used, or has another size than before."""
        self._total_bytes += ring.size_bytes - self._sizes.pop(ring, 0)
        if ring.size_bytes:
            self._sizes[ring] = ring.size_bytes
        while self._total_bytes > self._max_bytes:
            oldest, size_bytes = self._sizes.popitem(last=False)
            self._total_bytes -= size_bytes
            oldest.begin(oldest.position)

    def forget(self, ring: Ring) -> None:
        self._total_bytes -= self._sizes.pop(ring, 0)


def _version_of(position: str) -> int:
    return int(position.split("-", 2)[1])
