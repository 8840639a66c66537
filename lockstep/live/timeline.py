"""What the followers of a session's changes at this process have been sent: a chain of positions."""

import asyncio

from msgspec import UNSET, Raw, UnsetType

from lockstep.live.audience import Audiences
from lockstep.live.peers import Kind, Peer
from lockstep.live.recipients import MakeRecipients
from lockstep.live.ring import Ring, Rings
from lockstep.rules.state_json import dumps
from lockstep.wire.encodings import Encoding
from lockstep.wire.heads import Head
from lockstep.wire.payloads import Deletion, Update
from lockstep.wire.protocol_v2 import Deleted, Reason, Relayed, RequestId, Snapshot, Subscribed


class Timeline:
    """Sends on a subscription only what applies to what was sent before on it.

    `tip` is the latest state that followers have been sent, or are sent when they are served next; None
    where there is no session. `position` is the one that they are left at: None also behind a state that
    somebody else has published.
    """

    __slots__ = (
        "_skipped",
        "audiences",
        "ended_epoch",
        "gap_count",
        "is_current",
        "position",
        "reading",
        "ring",
        "rings",
        "session_id",
        "state",
        "tip",
        "update_count",
    )

    def __init__(self, session_id: str, rings: Rings, make_recipients: MakeRecipients) -> None:
        self.session_id = session_id
        self.audiences = Audiences(make_recipients)
        self.ring = Ring()
        self.rings = rings
        self.tip: Head | None = None
        self.position: str | None = None
        self.state: bytes | None = None
        # It has read the state while being heard, and missed nothing since: it can answer by itself.
        self.is_current = False
        # Of the session that was here and is deleted: what still comes of it is late.
        self.ended_epoch: str | None = None
        # By these a read can tell what has come in between.
        self.update_count = self.gap_count = 0
        # A read that is under way, shared by all who wait for it.
        self.reading: asyncio.Task[None] | None = None
        # A state, and by encoding the SNAPSHOT of it that stands for skipped UPDATEs; made when needed.
        self._skipped: tuple[bytes, dict[Encoding, bytes]] | None = None

    def is_at(self, head: Head) -> bool:
        """True if this state is what followers are left at."""
        return self.position is not None and head.is_same_state_as(self.tip)

    # --- what all followers are sent when the room is served next ----------------------------------

    def put_update(self, update: Update, now_ms: int) -> bool:
        """False where the store has to be asked: it is late, or the store has lost what was sent."""
        head = update.head
        if head is not None:
            if not update.is_foreign and head.order[0] == self.ended_epoch:
                return False
            if self.tip is not None and head.order <= self.tip.order:
                return head.is_same_state_as(self.tip)
        self.update_count += 1
        if update.is_foreign or head is None:
            self._move(head or self.tip, None, update.state)
            self.is_current = False
            self._put_snapshot("foreign", now_ms)
        elif (
            update.changes is not None and update.came_from is not None and update.came_from == self.position
        ):
            self.tip, self.position, self.state = head, head.position, update.state
            self._extend_ring(update.came_from, update.changes)
            self.audiences.put(update.changes, Kind.CHANGE)
        else:
            is_creation = update.changes is None and head.order[1] == 1
            self._move(head, head.position, update.state)
            if update.changes is not None and update.came_from is not None:
                self.ring.begin(update.came_from)
                self._extend_ring(update.came_from, update.changes)
            self._put_snapshot("created" if is_creation else "repair", now_ms)
        return True

    def put_state(self, head: Head, state: bytes, now_ms: int) -> None:
        """What is stored, where that is not what was sent."""
        if self.is_at(head):
            return
        self.update_count += 1
        if head.order[0] == self.ended_epoch:
            self.ended_epoch = None  # the store has lost the deletion
        is_creation = self.tip is None and head.order[1] == 1
        self._move(head, head.position, state)
        self._put_snapshot("created" if is_creation else "repair", now_ms)

    def put_relayed(self, message: bytes, now_ms: int) -> int:
        """How many followers that is for."""
        relayed = Relayed(session_id=self.session_id, timestamp=now_ms, message=Raw(message))
        return self.audiences.put(dumps(relayed), Kind.MESSAGE)

    def end(self, deletion: Deletion, now_ms: int) -> None:
        """The session is gone; its followers stay, for it may be created anew."""
        epoch = deletion.epoch or None
        self.update_count += 1
        self.ended_epoch = epoch or (None if self.tip is None else self.tip.order[0])
        self._move(None, None, None)
        deleted = Deleted(session_id=self.session_id, timestamp=now_ms, epoch=epoch)
        self.audiences.put(dumps(deleted), Kind.SYNC)

    def _move(self, tip: Head | None, position: str | None, state: bytes | None) -> None:
        """To where no UPDATE leads."""
        self.tip, self.position, self.state = tip, position, state
        self.ring.begin(position)

    def _extend_ring(self, came_from: str, changes: bytes) -> None:
        assert self.position is not None
        self.ring.append(came_from, self.position, changes)
        self.rings.note_size(self.ring)

    def _put_snapshot(self, reason: Reason, now_ms: int) -> None:
        if self.audiences:
            self.audiences.put(self.snapshot(reason, now_ms), Kind.CHANGE)

    def note_gap(self) -> None:
        """Something may have been missed."""
        self.gap_count += 1
        self.is_current = False

    # --- what was read -----------------------------------------------------------------------------

    def learn(
        self, head: Head | None, state: bytes | None, events: list[bytes], now_ms: int, update_count: int
    ) -> None:
        """What is stored, and the events that led to it. What has come since `update_count` may be newer."""
        if head is None or state is None:
            return
        has_moved = update_count != self.update_count
        if has_moved and head.order[0] == self.ended_epoch:
            return
        # Where nothing came meanwhile this counts, though it be older: the store has lost what was sent.
        if not has_moved or self.tip is None or head.order > self.tip.order or self.position is None:
            self.put_state(head, state, now_ms)
        self.ring.put_before(head, events)
        self.rings.note_size(self.ring)

    # --- what one of them is answered ----------------------------------------------------------------

    def subscribed(
        self,
        id_: RequestId | UnsetType,
        position: str | None,
        now_ms: int,
        *,
        is_first: bool,
        presence: Raw | UnsetType = UNSET,
    ) -> bytes:
        """SUBSCRIBED for who comes with a position, or with none."""
        answer = Subscribed(id=id_, session_id=self.session_id, timestamp=now_ms, presence=presence)
        updates = None
        if is_first and position is not None and self.position is not None:
            updates = self.ring.since(self.session_id, position)
            self.rings.note_size(self.ring)
        if updates is not None:
            answer.updates = Raw(b"[" + b",".join(updates) + b"]")
        else:
            answer.position = self.position
            answer.state = None if self.state is None else Raw(self.state)
        return dumps(answer)

    def snapshot(self, reason: Reason, now_ms: int, id_: RequestId | UnsetType = UNSET) -> bytes:
        """The latest state that was sent. There is one."""
        assert self.state is not None
        return dumps(
            Snapshot(
                id=id_,
                session_id=self.session_id,
                timestamp=now_ms,
                position=self.position,
                reason=reason,
                state=Raw(self.state),
            )
        )

    def skipped(self, peer: Peer, now_ms: int) -> bytes:
        """The frame for a peer whose UPDATEs were dropped; empty where there is nothing to show."""
        self.audiences.catch_up(peer)
        if self.state is None:
            return b""
        if self._skipped is None or self._skipped[0] is not self.state:
            self._skipped = (self.state, {})
        # All who are behind share it: it is made once for each state and encoding.
        frames = self._skipped[1]
        frame = frames.get(peer.encoding)
        if frame is None:
            reason: Reason = "foreign" if self.position is None else "skipped"
            frame = frames[peer.encoding] = peer.encoding.encode(self.snapshot(reason, now_ms))
        return frame
