"""The clients of one session at this process, and what they have been sent of it."""

from collections.abc import Callable

from lockstep.errors import SESSION_DELETED
from lockstep.live.audience import Audience, Deliver
from lockstep.live.peers import Kind, Peer
from lockstep.wire.encodings import Encoding
from lockstep.wire.heads import Head
from lockstep.wire.payloads import Deletion, Update


class Room:
    """Knows what its clients know. A message is encoded once for each audience, whatever its size."""

    __slots__ = (
        "audiences",
        "committed_ms",
        "is_ended",
        "is_scheduled",
        "known",
        "owes_sync",
        "sent",
        "sent_state",
        "update_count",
    )

    def __init__(self) -> None:
        # One for each encoding that somebody here speaks; in most rooms that is one.
        self.audiences: tuple[Audience, ...] = ()
        # The head of the latest state that was sent here, and its JSON; None until one has come.
        self.sent: Head | None = None
        self.sent_state: bytes | None = None
        # The head of what is stored as far as this process knows: newer than `sent` if it was read.
        self.known: Head | None = None
        # A read of the store can tell by it whether an update came in between.
        self.update_count = 0
        # A client came while the store was away, and is owed the state when it is back.
        self.owes_sync = False
        self.is_ended = False
        self.is_scheduled = False  # by the hub, to be served
        # When the changes were committed that some peers have not been sent yet.
        self.committed_ms: list[int] = []

    @property
    def peer_count(self) -> int:
        count = 0
        for audience in self.audiences:
            count += len(audience.peers)
        return count

    def has(self, peer: Peer) -> bool:
        return any(peer in audience.peers for audience in self.audiences)

    def enter(self, peer: Peer) -> None:
        """From now on the peer gets what the others get, in its own encoding."""
        self._audience_of(peer).enter(peer)

    def leave(self, peer: Peer) -> None:
        self._audience_of(peer).leave(peer)

    def catch_up(self, peer: Peer) -> None:
        """Send the peer now what the others get later, so that nothing sent to it alone overtakes that."""
        self._audience_of(peer).catch_up(peer)

    def _audience_of(self, peer: Peer) -> Audience:
        for audience in self.audiences:
            if audience.encoding is peer.encoding:
                return audience
        audience = Audience(peer.encoding)
        self.audiences += (audience,)
        return audience

    # --- what all peers are sent when the room is served next --------------------------------------

    def put_update(self, update: Update) -> None:
        if update.head is not None:
            self.update_count += 1
            self._remember(update.head, update.state)
        self.committed_ms.append(update.timestamp_ms)
        self._put(lambda encoding: encoding.state_update(update), Kind.STATE)

    def put_sync(self, session_id: str, head: Head, state: bytes, now_ms: int) -> None:
        self._remember(head, state)
        self._put(lambda encoding: encoding.state_sync(session_id, now_ms, state), Kind.SYNC)

    def put_relayed(self, message: bytes) -> None:
        self._put(lambda encoding: encoding.relayed(message))

    def end(self, deletion: Deletion, now_ms: int) -> None:
        """Tell everybody that the session is gone, and close."""
        self._put(lambda encoding: encoding.session_deleted(deletion, now_ms))
        self.is_ended = True

    def _remember(self, head: Head, state: bytes) -> None:
        self.sent = self.known = head
        self.sent_state = state

    def _put(self, encode: Callable[[Encoding], bytes], kind: Kind = Kind.MESSAGE) -> None:
        for audience in self.audiences:
            if audience.peers:
                audience.put(encode(audience.encoding), kind)

    # --- serving ---------------------------------------------------------------------------------

    def serve(self, deliver: Deliver, time_is_up: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        for audience in self.audiences:
            if not audience.serve(deliver, time_is_up):
                return False
        if self.is_ended:
            for audience in self.audiences:
                if not audience.close(SESSION_DELETED, time_is_up):
                    return False
        return True
