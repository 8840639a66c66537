"""The peers of a room that speak one encoding, and the frames that they are still to be sent."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from lockstep.errors import Close
from lockstep.live.peers import Batch, Kind, Peer
from lockstep.wire.encodings import Encoding

# So many peers are served between two looks at the clock.
PEERS_PER_LOOK = 32


Deliver = Callable[[Sequence[Any], Batch], None]
"""Sends a batch to several peers, in their order."""


def one_by_one(peers: Sequence[Peer], batch: Batch) -> None:
    for peer in peers:
        peer.send_batch(batch)


class Audience:
    """Puts together what one iteration of the loop brings, and sends it to every peer as one batch.

    A large audience is served in slices: `serve` stops when its time is over, and continues there when it
    is called again. Frames that come meanwhile wait for the next round, so each peer gets everything once
    and in order.
    """

    __slots__ = ("_ahead", "_batch", "_pending", "_unserved", "encoding", "peers")

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.peers: dict[Peer, None] = {}
        # The next round, the one in progress, and who is still to have the latter.
        self._pending: list[tuple[Kind, bytes]] = []
        self._batch: Batch | None = None
        self._unserved: dict[Peer, None] = {}
        # Peers that have had the first so many of the pending frames, or came after them.
        self._ahead: dict[Peer, int] = {}

    def enter(self, peer: Peer) -> None:
        """From now on the peer gets what the others get."""
        self.peers[peer] = None
        if self._pending:
            self._ahead[peer] = len(self._pending)

    def leave(self, peer: Peer) -> None:
        del self.peers[peer]
        self._unserved.pop(peer, None)
        self._ahead.pop(peer, None)

    def put(self, frame: bytes, kind: Kind, left_out: Iterable[Peer] = ()) -> None:
        """Send the frame to every peer when the audience is served next.

        Those that are left out have been sent what came before it (`catch_up`).
        """
        self._pending.append((kind, frame))
        for peer in left_out:
            if peer in self.peers:
                self._ahead[peer] = len(self._pending)

    def catch_up(self, peer: Peer) -> None:
        """Send the peer now what the others get later, so that nothing sent to it alone overtakes that."""
        if peer in self._unserved and self._batch is not None:
            del self._unserved[peer]
            peer.send_batch(self._batch)
        missing = self._pending[self._ahead.get(peer, 0) :]
        if missing:
            self._ahead[peer] = len(self._pending)
            peer.send_batch(Batch(missing))

    def serve(self, deliver: Deliver, time_is_up: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        while self._unserved or self._pending:
            if not self._unserved:
                self._begin_round()
            batch = self._batch
            assert batch is not None
            while self._unserved:
                peers = [self._unserved.popitem()[0] for _ in range(min(PEERS_PER_LOOK, len(self._unserved)))]
                deliver(peers, batch)
                if time_is_up() and self._unserved:
                    return False
        self._batch = None
        return True

    def close(self, how: Close, time_is_up: Callable[[], bool]) -> bool:
        """Close all peers; True when that is done, False when the time was over first."""
        closed = 0
        while self.peers:
            self.peers.popitem()[0].close(how)
            closed += 1
            if closed % PEERS_PER_LOOK == 0 and time_is_up():
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


class Audiences:
    """All peers that are told the same, in one audience for each encoding."""

    __slots__ = ("_by_encoding",)

    def __init__(self) -> None:
        # Of most there is one or none.
        self._by_encoding: tuple[Audience, ...] = ()

    def __iter__(self) -> Iterator[Peer]:
        for audience in self._by_encoding:
            yield from audience.peers

    def __len__(self) -> int:
        count = 0
        for audience in self._by_encoding:
            count += len(audience.peers)
        return count

    def __contains__(self, peer: Peer) -> bool:
        return any(peer in audience.peers for audience in self._by_encoding)

    def enter(self, peer: Peer) -> None:
        """From now on the peer gets what the others get, in its own encoding."""
        self._of(peer).enter(peer)

    def leave(self, peer: Peer) -> None:
        self._of(peer).leave(peer)

    def catch_up(self, peer: Peer) -> None:
        """Send the peer now what the others get later, so that nothing sent to it alone overtakes that."""
        self._of(peer).catch_up(peer)

    def put(self, message: bytes, kind: Kind, left_out: Collection[Peer] = ()) -> None:
        """Send the message to everybody when they are served next. It is encoded once for all.

        Those that are left out have been sent what came before it (`catch_up`).
        """
        for audience in self._by_encoding:
            if audience.peers:
                audience.put(audience.encoding.encode(message), kind, left_out)

    def serve(self, deliver: Deliver, time_is_up: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        return all(audience.serve(deliver, time_is_up) for audience in self._by_encoding)

    def close(self, how: Close, time_is_up: Callable[[], bool]) -> bool:
        """Close everybody; True when that is done, False when the time was over first."""
        return all(audience.close(how, time_is_up) for audience in self._by_encoding)

    def _of(self, peer: Peer) -> Audience:
        for audience in self._by_encoding:
            if audience.encoding is peer.encoding:
                return audience
        audience = Audience(peer.encoding)
        self._by_encoding += (audience,)
        return audience
