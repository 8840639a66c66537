"""The peers of a room that speak one encoding, and the frames that they are still to be sent."""

from collections.abc import Callable, Collection, Iterator

from lockstep.errors import Close
from lockstep.live.peers import Frames, Kind, Peer
from lockstep.live.recipients import MakeRecipients, Recipients
from lockstep.wire.encodings import Encoding

# So many peers are served between two looks at the clock.
PEERS_PER_LOOK = 32

# One for all that have nothing to send, who are many: it stays empty.
NOTHING: Frames = []


class Audience:
    """Puts together what one iteration of the loop brings, and sends it to every peer as one batch.

    A large audience is served in slices: `serve` stops when its time is over, and continues there when it
    is called again. Frames that come meanwhile wait for the next round, so each peer gets everything once
    and in order.
    """

    __slots__ = ("_ahead", "_pending", "encoding", "recipients")

    def __init__(self, encoding: Encoding, recipients: Recipients) -> None:
        self.encoding = encoding
        self.recipients = recipients
        # What the next round is to bring.
        self._pending = NOTHING
        # Peers that have had the first so many of the pending frames, or came after them; None: none.
        self._ahead: dict[Peer, int] | None = None

    def enter(self, peer: Peer) -> None:
        """From now on the peer gets what the others get."""
        self.recipients.add(peer)
        if self._pending:
            self._set_ahead(peer)

    def leave(self, peer: Peer) -> None:
        self.recipients.remove(peer)
        if self._ahead is not None:
            self._ahead.pop(peer, None)

    def put(self, frame: bytes, kind: Kind, left_out: Collection[Peer] = ()) -> None:
        """Send the frame to every peer when the audience is served next.

        Those that are left out have been sent what came before it (`catch_up`).
        """
        if self._pending:
            self._pending.append((kind, frame))
        else:
            self._pending = [(kind, frame)]
        for peer in left_out:
            if peer in self.recipients:
                self._set_ahead(peer)

    def catch_up(self, peer: Peer) -> None:
        """Send the peer now what the others get later, so that nothing sent to it alone overtakes that."""
        missed = self.recipients.skip(peer)
        if missed is not None:
            peer.send_batch(missed)
        had = 0 if self._ahead is None else self._ahead.get(peer, 0)
        missing = self._pending[had:]
        if missing:
            self._set_ahead(peer)
            peer.send_batch(missing)

    def serve(self, time_is_up: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        recipients = self.recipients
        unserved = recipients.unserved
        while unserved or self._pending:
            if not unserved:
                frames, self._pending = self._pending, NOTHING
                recipients.begin(frames)
                if self._ahead is not None:
                    self._leave_out_ahead(frames)
            unserved = recipients.serve(PEERS_PER_LOOK)
            if unserved and time_is_up():
                return False
        return True

    def close(self, how: Close, time_is_up: Callable[[], bool]) -> bool:
        """Close all peers; True when that is done, False when the time was over first."""
        closed = 0
        while self.recipients:
            self.recipients.pop().close(how)
            closed += 1
            if closed % PEERS_PER_LOOK == 0 and time_is_up():
                return False
        return True

    def _leave_out_ahead(self, frames: Frames) -> None:
        """Those that have had some of the frames of the round that begins are sent the others only."""
        ahead, self._ahead = self._ahead, None
        for peer, count in (ahead or {}).items():
            # It may be gone since, with one of these sends.
            if self.recipients.skip(peer) is not None and count < len(frames):
                peer.send_batch(frames[count:])

    def _set_ahead(self, peer: Peer) -> None:
        if self._ahead is None:
            self._ahead = {}
        self._ahead[peer] = len(self._pending)


class Audiences:
    """All peers that are told the same, in one audience for each encoding."""

    __slots__ = ("_by_encoding", "_make_recipients")

    def __init__(self, make_recipients: MakeRecipients) -> None:
        self._make_recipients = make_recipients
        # Of most there is one or none.
        self._by_encoding: tuple[Audience, ...] = ()

    def __iter__(self) -> Iterator[Peer]:
        for audience in self._by_encoding:
            yield from audience.recipients

    def __len__(self) -> int:
        count = 0
        for audience in self._by_encoding:
            count += len(audience.recipients)
        return count

    def __contains__(self, peer: Peer) -> bool:
        return any(peer in audience.recipients for audience in self._by_encoding)

    def enter(self, peer: Peer) -> None:
        """From now on the peer gets what the others get, in its own encoding."""
        self._of(peer).enter(peer)

    def leave(self, peer: Peer) -> None:
        self._of(peer).leave(peer)

    def catch_up(self, peer: Peer) -> None:
        """Send the peer now what the others get later, so that nothing sent to it alone overtakes that."""
        self._of(peer).catch_up(peer)

    def put(self, message: bytes, kind: Kind, left_out: Collection[Peer] = ()) -> int:
        """Send the message to everybody when they are served next: how many they are.

        It is encoded once for all. Those that are left out have been sent what came before it (`catch_up`).
        """
        count = 0
        for audience in self._by_encoding:
            size = len(audience.recipients)
            if size:
                audience.put(audience.encoding.encode(message), kind, left_out)
                count += size
        return count

    def serve(self, time_is_up: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        # Each room has it called: a generator would cost more than all that it does there.
        for audience in self._by_encoding:  # noqa: SIM110
            if not audience.serve(time_is_up):
                return False
        return True

    def close(self, how: Close, time_is_up: Callable[[], bool]) -> bool:
        """Close everybody; True when that is done, False when the time was over first."""
        return all(audience.close(how, time_is_up) for audience in self._by_encoding)

    def _of(self, peer: Peer) -> Audience:
        for audience in self._by_encoding:
            if audience.encoding is peer.encoding:
                return audience
        audience = Audience(peer.encoding, self._make_recipients())
        self._by_encoding += (audience,)
        return audience
