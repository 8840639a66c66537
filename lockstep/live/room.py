"""The clients of one session at this process, and what they have been sent of it."""

from collections.abc import Callable, Iterator

from lockstep.contract import Clock
from lockstep.errors import SESSION_DELETED
from lockstep.live.audience import Audiences
from lockstep.live.peers import Kind, Peer
from lockstep.live.presence import RoomPresence
from lockstep.live.recipients import MakeRecipients
from lockstep.live.timeline import Timeline
from lockstep.wire import protocol_v1
from lockstep.wire.heads import Head
from lockstep.wire.payloads import Deletion, Update

# To look up a member of an Enum takes longer than a call: not for each message.
MESSAGE = Kind.MESSAGE


class Room:
    """Knows what its clients know: those of protocol v1, and in its timeline those who follow changes."""

    __slots__ = (
        "audiences",
        "committed_ms",
        "is_ended",
        "is_scheduled",
        "known",
        "owes_sync",
        "presence",
        "presence_epoch",
        "sent",
        "sent_state",
        "timeline",
        "update_count",
    )

    def __init__(self, make_recipients: MakeRecipients, timeline: Timeline | None = None) -> None:
        self.audiences = Audiences(make_recipients)  # of protocol v1
        self.timeline = timeline  # None until somebody follows changes
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
        self.is_scheduled = False  # to be served
        # Who is present, where the session has presence, and the epoch of which it is known whether it has.
        self.presence: RoomPresence | None = None
        self.presence_epoch = ""
        # When the changes were committed that some peers have not been sent yet.
        self.committed_ms: tuple[int, ...] = ()

    @property
    def peers(self) -> Iterator[Peer]:
        yield from self.audiences
        if self.timeline is not None:
            yield from self.timeline.audiences

    @property
    def peer_count(self) -> int:
        followers = 0 if self.timeline is None else len(self.timeline.audiences)
        return len(self.audiences) + followers

    def has_missed(self, stored: Head) -> bool:
        """True if some of its clients have not been sent this state."""
        timeline = self.timeline
        if timeline is not None and timeline.audiences and not timeline.is_at(stored):
            return True
        if timeline is not None and not self.audiences:
            return False
        return self.owes_sync or not stored.is_same_state_as(self.sent)

    # --- what all peers are sent when the room is served next --------------------------------------

    # Each returns how many clients of protocol v1 that is for; put_relayed, how many of both protocols.

    def put_update(self, update: Update) -> int:
        if update.head is not None:
            self.update_count += 1
            self._remember(update.head, update.state)
        self.committed_ms += (update.timestamp_ms,)
        return self.audiences.put(update.message, Kind.STATE) if self.audiences else 0

    def put_sync(self, session_id: str, head: Head, state: bytes, now_ms: int) -> int:
        self._remember(head, state)
        count = self.audiences.put(protocol_v1.state_sync(session_id, now_ms, state), Kind.SYNC)
        if self.timeline is not None:
            self.timeline.put_state(head, state, now_ms)
        return count

    def put_relayed(self, message: bytes, clock: Clock) -> int:
        count = self.audiences.put(message, MESSAGE)
        if self.timeline is not None:
            count += self.timeline.put_relayed(message, clock.shown_ms())
        return count

    def end(self, deletion: Deletion, now_ms: int) -> int:
        """Tell everybody that the session is gone, and close."""
        message = deletion.message or protocol_v1.session_deleted(
            deletion.session_id, now_ms, deletion.epoch or ""
        )
        self.is_ended = True
        return self.audiences.put(message, Kind.MESSAGE)

    def _remember(self, head: Head, state: bytes) -> None:
        self.sent = self.known = head
        self.sent_state = state

    def disconnect(self, subject: str) -> None:
        """Send the subject's clients away, behind what has come until now."""
        followers = () if self.timeline is None else (self.timeline.audiences,)
        for audiences in (self.audiences, *followers):
            for peer in [each for each in audiences if each.subject == subject]:
                audiences.catch_up(peer)
                peer.disconnect()

    # --- serving ---------------------------------------------------------------------------------

    def serve(self, time_is_up: Callable[[], bool]) -> bool:
        """Send what is pending; True when all is done, False when the time was over first."""
        if not self.audiences.serve(time_is_up):
            return False
        if self.is_ended:
            return self.audiences.close(SESSION_DELETED, time_is_up)
        return self.timeline is None or self.timeline.audiences.serve(time_is_up)
