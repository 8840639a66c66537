"""The clients connected to this process, by session."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from lockstep.contract import Affected, Attendance, Bus, Clock, Presence, Store
from lockstep.errors import LockstepError, SessionNotFound
from lockstep.live.deadlines import Deadlines
from lockstep.live.peers import Kind, Peer
from lockstep.live.presence_tracker import PresenceTracker
from lockstep.live.recipients import MakeRecipients, PeerByPeer
from lockstep.live.repair import Difference, Gone, Learned, Missed, Repair
from lockstep.live.ring import Rings
from lockstep.live.room import Room
from lockstep.live.serving import Serving
from lockstep.live.shared_reads import SharedReads
from lockstep.live.timeline import Timeline
from lockstep.metrics import Metrics
from lockstep.sessions import Sessions
from lockstep.wire import heads, payloads, protocol_v1
from lockstep.wire.heads import Head
from lockstep.wire.payloads import Deletion, Disconnect, Update

log = logging.getLogger(__name__)


class HubBroker(Bus, Store, Presence, Clock, Protocol):
    """What a hub asks of a broker."""


class Hub:
    """A register of rooms, in which what the broker brings is put for their clients.

    It never talks to another process itself: the broker calls it, and it calls peers. It never
    waits for a peer.
    """

    def __init__(
        self,
        broker: HubBroker,
        sessions: Sessions,
        deadlines: Deadlines,
        metrics: Metrics,
        make_recipients: MakeRecipients = PeerByPeer,
    ) -> None:
        self._broker = broker
        self._deadlines = deadlines
        self._metrics = metrics
        self.rooms: dict[str, Room] = {}
        self.rings = Rings()
        # Who is about to enter the room of each session, whose channel is not left meanwhile.
        self._joining: dict[str, set[Peer]] = {}
        self.make_recipients = make_recipients
        self._serving = Serving(broker, metrics)
        self.presence = PresenceTracker(broker, self.rooms, self.schedule, sessions.read, metrics)
        self._reads = SharedReads(sessions.read)
        self.repair = Repair(broker, self.rooms, self._apply)
        self.junk = 0
        self._junk_logged_at = 0.0
        metrics.watch(metrics.rooms, lambda: len(self.rooms))

    def start(self) -> None:
        self.repair.start()
        self.presence.start()

    async def close(self) -> None:
        await self.repair.close()
        await self.presence.close()

    @property
    def peers(self) -> list[Peer]:
        """Those of protocol v1."""
        return [peer for room in self.rooms.values() for peer in room.audiences]

    # --- clients come and go ---------------------------------------------------------------------

    async def join(self, session_id: str, peer: Peer) -> None:
        """Register the peer and greet it: what is committed from the greeting on reaches it.

        A peer whose end has begun by then is not registered.
        """
        async with self.hearing(session_id, peer) as is_heard:
            if peer.can_send:
                room = self.room_of(session_id)
                room.audiences.enter(peer)
                room.owes_sync |= not is_heard
                if room.presence is not None:
                    self.presence.arrive(room.presence, peer)
                self._metrics.count_sent("CONNECTED")
                connected = protocol_v1.connected(session_id, self._broker.shown_ms())
                peer.send(peer.encoding.encode(connected))

    @asynccontextmanager
    async def hearing(self, session_id: str, peer: Peer) -> AsyncIterator[bool]:
        """Around the peer's entrance: the session's channel is heard; False while the store is away.

        Meanwhile the channel is not left, and the session's room stays.
        """
        joining = self._joining.setdefault(session_id, set())
        joining.add(peer)
        try:
            yield await self._broker.hear(session_id)
        finally:
            joining.discard(peer)
            if not joining:
                del self._joining[session_id]
                if session_id in self.rooms:
                    self.drop_if_empty(session_id)
                else:
                    self._broker.unhear(session_id)

    def room_of(self, session_id: str, *, is_read: bool = False) -> Room:
        """The session's room, which is made if there is none. `is_read`: who asks reads what is stored."""
        room = self.rooms.get(session_id)
        if room is None:
            room = self.rooms[session_id] = Room(self.make_recipients)
            if not is_read:
                self.repair.learn(session_id)
        return room

    def leave(self, session_id: str, peer: Peer) -> None:
        room = self.rooms.get(session_id)
        if room is not None and peer in room.audiences:
            room.audiences.leave(peer)
            if room.presence is not None:
                self.presence.depart(room.presence, peer)
            self.drop_if_empty(session_id)

    async def sync(self, session_id: str, peer: Peer) -> None:
        """Send the peer the session's state, never an older one than its room has been sent.

        Raises SessionNotFound; other errors only where the room cannot answer either. A peer that has
        left meanwhile is not answered, nor is one that was told meanwhile that the session is gone.
        """
        room = self.rooms.get(session_id)
        try:
            state = await self._reads.read(session_id)
        except SessionNotFound:
            raise
        except LockstepError:
            if room is None or room.sent_state is None:
                raise
            state = room.sent_state
        if room is not None:
            if room.is_ended or peer not in room.audiences:
                return
            if room.sent is not None and room.sent_state is not None:
                head = heads.read_head(state)
                if head is None or head.order < room.sent.order:
                    state = room.sent_state
            room.audiences.catch_up(peer)
        answer = protocol_v1.state_sync(session_id, self._broker.shown_ms(), state)
        peer.send(peer.encoding.encode(answer), Kind.SYNC)
        self._metrics.count_sent("STATE_SYNC")

    def drop_if_empty(self, session_id: str) -> None:
        """Somebody has left. Nobody's room is kept, but for who is about to enter."""
        if session_id in self._joining:
            return
        room = self.rooms[session_id]
        if not room.peer_count:
            self._drop_room(session_id)
        elif room.timeline is not None and not room.timeline.audiences:
            self.rings.forget(room.timeline.ring)
            room.timeline = None

    def _drop_room(self, session_id: str) -> None:
        room = self.rooms.pop(session_id)
        if room.timeline is not None:
            self.rings.forget(room.timeline.ring)
        if room.presence is not None:
            self.presence.release(room.presence)
        self.repair.forget(session_id)
        self._deadlines.arm(session_id, None)
        if session_id not in self._joining:
            self._broker.unhear(session_id)

    def schedule(self, room: Room) -> None:
        """Serve the room when this iteration of the loop has brought all that it brings."""
        self._serving.schedule(room)

    async def flush(self) -> None:
        """Return when clients have been sent what an embedded broker has published until now."""
        await asyncio.sleep(0)  # it is heard by then
        while not self._serving.is_idle:
            await asyncio.sleep(0)

    # --- what the broker brings ------------------------------------------------------------------

    def on_published(self, payload: bytes) -> None:
        session_id = payloads.update_id(payload)
        if session_id is not None and session_id not in self.rooms:
            return
        published = payloads.read_published(payload, self._broker.now_ms())
        if published is None:
            self._discard("session-updates", payload)
            return
        room = self.rooms.get(published.session_id)
        if isinstance(published, Disconnect):
            self._disconnect(room, published)
        elif room is None:
            return
        elif isinstance(published, Update):
            self._deliver(room, published)
        else:
            self._delete(room, published)

    def on_relayed(self, session_id: str, payload: bytes) -> None:
        room = self.rooms.get(session_id)
        if room is None:
            return
        message = payloads.read_relayed(payload)
        if message is None:
            self._discard(f"ws:{session_id}", payload)
            return
        self._serving.schedule(room)
        self._metrics.count_sent("RELAYED", room.put_relayed(message, self._broker))

    def on_presence(
        self, session_id: str, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None:
        room = self.rooms.get(session_id)
        if room is not None and room.presence is not None:
            self.presence.hear(room.presence, process, attendances)

    def on_gap(self, affected: Affected | None = None) -> None:
        self._metrics.gaps.inc()
        rooms = self.rooms
        if affected is not None:
            rooms = {session_id: room for session_id, room in rooms.items() if affected(session_id)}
        for room in rooms.values():
            if room.timeline is not None:
                room.timeline.note_gap()
        self.repair.repair(rooms)
        self.presence.on_gap(affected)

    def _deliver(self, room: Room, update: Update) -> None:
        if room.timeline is not None:
            self._deliver_changes(room, room.timeline, update)
        if update.head is not None:
            if room.sent is not None and update.head.order <= room.sent.order:
                # It is late and dropped, since time must not run backwards; or else the store has lost what
                # this room knows.
                if not update.head.is_same_state_as(room.sent):
                    self.repair.repair([update.session_id])
                return
            self._deadlines.arm(update.session_id, update.head.deadline_ms)
            if update.head.order[0] > room.presence_epoch and not update.is_foreign:
                self.presence.see_state(room, update.head, update.state)
        self.schedule(room)
        self._metrics.count_sent("STATE_UPDATE", room.put_update(update))

    def _deliver_changes(self, room: Room, timeline: Timeline, update: Update) -> None:
        """The same to those who follow changes: they may know of a later state by a read."""
        self.schedule(room)
        if timeline.put_update(update, self._broker.shown_ms()):
            self._metrics.count_sent("UPDATE", len(timeline.audiences))
        else:
            self.repair.repair([update.session_id])

    def _delete(self, room: Room, deletion: Deletion) -> None:
        newest = room.known.order[0] if room.known else ""
        if deletion.epoch is None or deletion.epoch >= newest:
            epoch = deletion.epoch or newest
            self._end_room(room, Deletion(deletion.session_id, deletion.message, epoch))

    def _end_room(self, room: Room, deletion: Deletion) -> None:
        session_id, timeline = deletion.session_id, room.timeline
        if room.presence is not None:
            self.presence.end(room.presence)
            room.presence = None
        if timeline is not None and (timeline.audiences or session_id in self._joining):
            # Who follows changes stays, in a room that knows nothing any more.
            room.timeline = None
            self.rooms[session_id] = successor = Room(self.make_recipients, timeline)
            successor.presence_epoch = max(room.presence_epoch, deletion.epoch or "")
            successor.update_count = room.update_count + 1  # for a read that is under way: it may be older
            self._deadlines.arm(session_id, None)
            self.schedule(successor)
            timeline.end(deletion, self._broker.shown_ms())
            self._metrics.count_sent("DELETED", len(timeline.audiences))
        else:
            self._drop_room(session_id)
        self.schedule(room)
        self._metrics.count_sent("SESSION_DELETED", room.end(deletion, self._broker.now_ms(session_id)))

    def _disconnect(self, room: Room | None, of: Disconnect) -> None:
        """Send the subject's clients away, also those who are about to enter."""
        if room is not None:
            room.disconnect(of.subject)
        for peer in [each for each in self._joining.get(of.session_id, ()) if each.subject == of.subject]:
            peer.disconnect()

    def _discard(self, channel: str, payload: bytes) -> None:
        self.junk += 1
        self._metrics.junk.inc()
        now_s = asyncio.get_running_loop().time()
        if now_s - self._junk_logged_at >= 1:
            self._junk_logged_at = now_s
            log.warning(
                "junk on Redis channel %s dropped: %d bytes, no message of ours, %d such so far",
                channel,
                len(payload),
                self.junk,
            )

    def learned(self, timeline: Timeline, head: Head | None, state: bytes | None) -> None:
        """A timeline has read what is stored, and may have something to tell its followers."""
        room = self.rooms.get(timeline.session_id)
        if room is None or room.timeline is not timeline:
            return
        if head is not None and state is not None and head.order[0] != timeline.ended_epoch:
            self._see(room, head, state)
            if room.known is None or head.order > room.known.order:
                room.known = head
                self._deadlines.arm(timeline.session_id, head.deadline_ms)
        self.schedule(room)

    # --- what was not heard ----------------------------------------------------------------------

    def _apply(self, difference: Difference) -> None:
        """Make the room what the store says it should be."""
        room = difference.room
        match difference:
            case Learned(session_id=session_id, head=head, beginning=beginning):
                room.known = head
                self._see(room, head, beginning)
                self._deadlines.arm(session_id, head.deadline_ms)
            case Missed(session_id=session_id, head=head, state=state):
                self._deadlines.arm(session_id, head.deadline_ms)
                self._see(room, head, state)
                self.schedule(room)
                count = room.put_sync(session_id, head, state, self._broker.shown_ms())
                self._metrics.resyncs.inc()
                self._metrics.count_sent("STATE_SYNC", count)
            case Gone(session_id=session_id):
                epoch = room.known.order[0] if room.known else ""
                self._end_room(room, Deletion(session_id, None, epoch))

    def _see(self, room: Room, head: Head, state: bytes) -> None:
        """This state, or its beginning, is stored. For a whole epoch a session has presence or has none."""
        if head.order[0] != room.presence_epoch:
            self.presence.see_state(room, head, state)
