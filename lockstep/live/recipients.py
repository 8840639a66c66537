"""Who is told the same, and who of them is still to be sent what comes now."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lockstep.live.peers import Frames, Peer


class Recipients(Protocol):
    """Peers, and the round in progress, in which each of them is sent the same frames once.

    Whoever comes during a round is not sent its frames, nor is one that has left by then.
    """

    @property
    def unserved(self) -> int:
        """How many are still to be sent the frames of the round."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...

    def __contains__(self, peer: object, /) -> bool: ...

    def add(self, peer: Any, /) -> None:
        """Raises ValueError if it is one of them already."""

    def remove(self, peer: Any, /) -> None:
        """Raises KeyError if it is none of them."""

    def pop(self) -> Any:
        """Remove some peer, and return it. Raises KeyError if there is none."""

    def begin(self, frames: Frames, /) -> None:
        """Begin a round, after the end of the last one. There is at least one frame."""

    def skip(self, peer: Any, /) -> Frames | None:
        """Leave the peer out of the round: the frames that it misses by that; None: it has been sent them."""

    def serve(self, most: int, /) -> int:
        """Send the frames to at most so many peers; how many are still to be sent them then.

        What a peer raises is passed on; it counts as served.
        """


MakeRecipients = Callable[[], Recipients]


class PeerByPeer(Recipients):
    """Each peer is handed what it is to be sent."""

    __slots__ = ("_frames", "_peers", "_unserved")

    def __init__(self) -> None:
        self._peers: dict[Peer, None] = {}
        self._unserved: dict[Peer, None] = {}
        self._frames: Frames = []

    @property
    def unserved(self) -> int:
        return len(self._unserved)

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._peers))

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: object, /) -> bool:
        return peer in self._peers

    def add(self, peer: Peer, /) -> None:
        if peer in self._peers:
            raise ValueError("it is among them already")
        self._peers[peer] = None

    def remove(self, peer: Peer, /) -> None:
        del self._peers[peer]
        self._unserved.pop(peer, None)

    def pop(self) -> Peer:
        peer, _ = self._peers.popitem()
        self._unserved.pop(peer, None)
        return peer

    def begin(self, frames: Frames, /) -> None:
        self._frames = frames
        self._unserved = self._peers.copy()

    def skip(self, peer: Peer, /) -> Frames | None:
        if peer not in self._unserved:
            return None
        del self._unserved[peer]
        return self._frames

    def serve(self, most: int, /) -> int:
        frames = self._frames
        while self._unserved and most > 0:
            self._unserved.popitem()[0].send_batch(frames)
            most -= 1
        if not self._unserved:
            self._frames = []
        return len(self._unserved)
