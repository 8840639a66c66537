"""The clients of one session at this process, and what they are still to be sent."""

from collections.abc import Callable, Sequence
from typing import Any

from lockstep.contract import Batch, Kind, Peer
from lockstep.errors import SESSION_DELETED
from lockstep.wire.frames import encode_text_frame
from lockstep.wire.heads import Head

# So many peers are served between two looks at the clock.
PEERS_PER_LOOK = 32


Deliver = Callable[[Sequence[Any], Batch], None]
"""Sends a batch to several peers, in their order."""


def one_by_one(peers: Sequence[Peer], batch: Batch) -> None:
    for peer in peers:
        peer.send_batch(batch)


class Room:
    """Its peers in the order they came. What a turn of the loop brings is put together and sent as one.

    A large room is served in slices: `serve` stops when its time is over, and goes on where it was.
    What comes meanwhile waits for the next round, so each peer gets everything once and in order.
    """

    __slots__ = (
        "_ahead",
        "_batch",
        "_deliver",
        "_pending",
        "_unserved",
        "committed_ms",
        "is_ended",
        "known",
        "moved",
        "owes_sync",
        "peers",
        "sent",
        "sent_state",
    )

    def __init__(self, deliver: Deliver = one_by_one) -> None:
        self._deliver = deliver
        self.peers: dict[Peer, None] = {}
        # What the latest state here says of itself, and its JSON; None until one has come.
        self.sent: Head | None = None
        self.sent_state: bytes | None = None
        # What is stored as far as we know: newer than `sent` where it was read, not heard.
        self.known: Head | None = None
        # Counts what was heard, so that a read can tell whether something came in between.
        self.moved = 0
        # Somebody came while the store was away, and was promised the state for when it is back.
        self.owes_sync = False
        self.is_ended = False
        # When the changes were committed that not all peers have been sent yet.
        self.committed_ms: list[int] = []
        # The next round, the one in progress, and who is still to have it.
        self._pending: list[tuple[Kind, bytes]] = []
        self._batch: Batch | None = None
        self._unserved: dict[Peer, None] = {}
        # Who has had, or shall not have, so many of the pending.
        self._ahead: dict[Peer, int] = {}

    @property
    def is_waiting(self) -> bool:
        """True while something is still to be sent to somebody."""
        return bool(self._pending or self._unserved)

    def enter(self, peer: Peer) -> None:
        """From here on the peer gets what the others get."""
        self.peers[peer] = None
        if self._pending:
            self._ahead[peer] = len(self._pending)

    def leave(self, peer: Peer) -> None:
        del self.peers[peer]
        self._unserved.pop(peer, None)
        self._ahead.pop(peer, None)

    def put(self, message: bytes, kind: Kind = Kind.MESSAGE) -> None:
        """For every peer, when the room is served next."""
        self._pending.append((kind, encode_text_frame(message)))

    def put_state(self, message: bytes, kind: Kind, head: Head | None, state: bytes) -> None:
        if head is not None:
            self.sent = self.known = head
            self.sent_state = state
        self.put(message, kind)

    def catch_up(self, peer: Peer) -> None:
        """Send the peer now what the others get by and by: what it is sent alone shall not overtake."""
        if peer in self._unserved and self._batch is not None:
            del self._unserved[peer]
            peer.send_batch(self._batch)
        missing = self._pending[self._ahead.get(peer, 0) :]
        if missing:
            self._ahead[peer] = len(self._pending)
            peer.send_batch(Batch(missing))

    def end(self, message: bytes) -> None:
        """Tell everybody that the session is gone, and close."""
        self.put(message)
        self.is_ended = True

    def serve(self, is_over: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        while self._unserved or self._pending:
            if not self._unserved:
                self._begin_round()
            batch = self._batch
            assert batch is not None
            while self._unserved:
                peers = [self._unserved.popitem()[0] for _ in range(min(PEERS_PER_LOOK, len(self._unserved)))]
                self._deliver(peers, batch)
                if is_over() and self._unserved:
                    return False
        served = 0
        self._batch = None
        while self.is_ended and self.peers:
            self.peers.popitem()[0].close(SESSION_DELETED)
            served += 1
            if served % PEERS_PER_LOOK == 0 and is_over():
                return False
        return True

    def _begin_round(self) -> None:
        frames, self._pending = self._pending, []
        ahead, self._ahead = self._ahead, {}
        self._batch = Batch(frames)
        self._unserved = self.peers.copy()
        for peer, count in ahead.items():
            self._unserved.pop(peer, None)  # it may be gone since, with one of these sends
            if count < len(frames):
                peer.send_batch(Batch(frames[count:]))
