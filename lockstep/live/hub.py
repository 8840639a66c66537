"""This process's clients, by session: delivery, and repair after a gap."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from lockstep.contract import Bus, Clock, Kind, Peer, Store
from lockstep.errors import BrokerUnavailable, LockstepError, SessionNotFound
from lockstep.live.deadlines import Deadlines
from lockstep.live.room import Deliver, Room, one_by_one
from lockstep.metrics import Metrics
from lockstep.sessions import Sessions
from lockstep.tasks import Tasks
from lockstep.wire import heads, payloads, protocol_v1
from lockstep.wire.frames import encode_text_frame
from lockstep.wire.payloads import Deletion, Update

log = logging.getLogger(__name__)

REPAIR_SLICE = 100
# As much is read in one go: over 100 Mbit/s what others ask meanwhile waits 20 ms for it.
REPAIR_BYTES = 262_144
CHECK_INTERVAL_S = 60.0
RETRY_S = 0.1
# So long rooms are served before the loop gets to do something else.
TURN_S = 0.004


class HubBroker(Bus, Store, Clock, Protocol):
    """What a hub asks of a broker."""


class Hub:
    """The clients connected to this process, by session.

    It never talks to another process itself: the broker calls it, and it calls peers. It never
    waits for a peer.
    """

    def __init__(
        self,
        broker: HubBroker,
        sessions: Sessions,
        deadlines: Deadlines,
        metrics: Metrics,
        deliver: Deliver = one_by_one,
    ) -> None:
        self._deliver_to = deliver
        self._metrics = metrics
        metrics.watch(metrics.rooms, lambda: len(self._rooms))
        metrics.watch(metrics.connections, lambda: sum(len(room.peers) for room in self._rooms.values()))
        self._broker = broker
        self._sessions = sessions
        self._deadlines = deadlines
        self._rooms: dict[str, Room] = {}
        # How many of each session wait until its channel is heard: it is not left meanwhile.
        self._joining: dict[str, int] = {}
        # Rooms with something to be sent, in turn; a large one comes up several times.
        self._waiting: deque[Room] = deque()
        self._serving: asyncio.Handle | None = None
        self._reads: dict[str, asyncio.Task[bytes]] = {}
        self._next_reads: dict[str, asyncio.Task[bytes]] = {}
        self._unread: set[str] = set()
        self._unchecked: list[str] = []
        self._suspects: set[str] = set()
        self._tasks = Tasks()
        self._reader: asyncio.Task[None] | None = None
        self._repairer: asyncio.Task[None] | None = None
        self.junk = 0
        self._junk_logged_at = 0.0

    def start(self) -> None:
        self._tasks.repeat(
            self._check, self._check_pause_s, "comparing what clients have with what is stored"
        )

    async def close(self) -> None:
        await self._tasks.close()

    @property
    def peers(self) -> list[Peer]:
        return [peer for room in self._rooms.values() for peer in room.peers]

    # --- clients come and go ---------------------------------------------------------------------

    async def join(self, session_id: str, peer: Peer) -> None:
        """Register the peer and greet it: what is committed from the greeting on reaches it.

        A peer that is over by then is not registered.
        """
        self._joining[session_id] = self._joining.get(session_id, 0) + 1
        try:
            heard = await self._broker.hear(session_id)
            if not peer.is_over:
                self._enter(session_id, peer, heard)
        finally:
            self._joining[session_id] -= 1
            if not self._joining[session_id]:
                del self._joining[session_id]
                if session_id not in self._rooms:
                    self._broker.unhear(session_id)

    def _enter(self, session_id: str, peer: Peer, heard: bool) -> None:
        room = self._rooms.get(session_id)
        if room is None:
            room = self._rooms[session_id] = Room(self._deliver_to)
            # Its deadline, and whether it exists at all, are not known before something happens.
            self._unread.add(session_id)
            if self._reader is None:
                self._reader = self._tasks.spawn(self._read_new_rooms())
        room.enter(peer)
        self._metrics.count_sent("CONNECTED")
        room.owes_sync |= not heard
        peer.send(encode_text_frame(protocol_v1.connected(session_id, self._broker.shown_ms())))

    def leave(self, session_id: str, peer: Peer) -> None:
        room = self._rooms.get(session_id)
        if room is not None and peer in room.peers:
            room.leave(peer)
            if not room.peers:
                self._drop_room(session_id)

    async def sync(self, session_id: str, peer: Peer) -> None:
        """Send the peer the session's state, never an older one than its room has been sent.

        Raises SessionNotFound; other errors only where the room cannot answer either. A peer that has
        left meanwhile is not answered, nor is one that was told meanwhile that the session is gone.
        """
        room = self._rooms.get(session_id)
        try:
            state = await self._read(session_id)
        except SessionNotFound:
            raise
        except LockstepError:
            if room is None or room.sent_state is None:
                raise
            state = room.sent_state
        if room is not None and (peer not in room.peers or room.is_ended):
            return
        head = heads.read_head(state)
        if room is not None and room.sent is not None and room.sent_state is not None:
            is_older = head is None or head.position < room.sent.position
            state = room.sent_state if is_older else state
        if room is not None:
            room.catch_up(peer)
        sync = protocol_v1.state_sync(session_id, self._broker.shown_ms(), state)
        peer.send(encode_text_frame(sync), Kind.SYNC)
        self._metrics.count_sent("STATE_SYNC")

    async def _read(self, session_id: str) -> bytes:
        """The state; however many ask, one read of a session is under way.

        Who asks meanwhile may know of a later change: he shares the next with all who do.
        """
        reading = self._next_reads.get(session_id)
        if reading is None:
            reading = self._next_reads[session_id] = asyncio.create_task(self._read_next(session_id))
        return await asyncio.shield(reading)

    async def _read_next(self, session_id: str) -> bytes:
        under_way = self._reads.get(session_id)
        if under_way is not None:
            await asyncio.wait((under_way,))
        reading = self._reads[session_id] = self._next_reads.pop(session_id)
        try:
            return await self._sessions.read(session_id)
        finally:
            if self._reads[session_id] is reading and session_id not in self._next_reads:
                del self._reads[session_id]

    # --- serving rooms ---------------------------------------------------------------------------

    def _attend(self, room: Room) -> None:
        """Serve the room when this turn of the loop has brought all that it brings."""
        if not room.is_waiting:
            self._waiting.append(room)
            if self._serving is None:
                self._serving = asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        until_s = time.monotonic() + TURN_S

        def is_over() -> bool:
            return time.monotonic() >= until_s

        while self._waiting:
            room = self._waiting.popleft()
            try:
                is_done = room.serve(is_over)
                if is_done and room.committed_ms:
                    now_ms = self._broker.now_ms()
                    for committed_ms in room.committed_ms:
                        self._metrics.broadcast.observe(max(0, now_ms - committed_ms) / 1000)
                    room.committed_ms = []
            except Exception:
                log.exception("a client could not be sent its messages")
                is_done = False
            if not is_done:
                self._waiting.append(room)
            if is_over():
                break
        loop = asyncio.get_running_loop()
        self._serving = loop.call_soon(self._serve) if self._waiting else None

    # --- what the broker brings ------------------------------------------------------------------

    def on_published(self, payload: bytes) -> None:
        session_id = payloads.update_id(payload)
        if session_id is not None and session_id not in self._rooms:
            return
        published = payloads.read_published(payload, self._broker.now_ms())
        if published is None:
            self._discard("session-updates", payload)
        elif isinstance(published, Update):
            self._deliver(published)
        else:
            self._delete(published)

    def on_relayed(self, session_id: str, payload: bytes) -> None:
        room = self._rooms.get(session_id)
        if room is None:
            return
        message = payloads.read_relayed(payload)
        if message is None:
            self._discard(f"ws:{session_id}", payload)
            return
        self._attend(room)
        room.put(message)
        self._metrics.count_sent("RELAYED", len(room.peers))

    def on_gap(self) -> None:
        self._metrics.gaps.inc()
        self._suspect(self._rooms)

    def _deliver(self, update: Update) -> None:
        room = self._rooms.get(update.session_id)
        if room is None:
            return
        if update.head is not None:
            if room.sent is not None and update.head.position <= room.sent.position:
                # Late, and dropped: time must not run backwards. Or the store has lost what we know.
                if not update.head.is_of(room.sent):
                    self._suspect([update.session_id])
                return
            room.moved += 1
            self._deadlines.arm(update.session_id, update.head.deadline_ms)
        self._attend(room)
        room.put_state(update.message, Kind.STATE, update.head, update.state)
        room.committed_ms.append(update.timestamp_ms)
        self._metrics.count_sent("STATE_UPDATE", len(room.peers))

    def _delete(self, deletion: Deletion) -> None:
        room = self._rooms.get(deletion.session_id)
        if room is None:
            return
        newest = room.known.position[0] if room.known else ""
        if deletion.epoch is not None and deletion.epoch < newest:
            return
        self._end_room(deletion.session_id, room, deletion.message, deletion.epoch or newest)

    def _end_room(self, session_id: str, room: Room, message: bytes | None, epoch: str) -> None:
        self._drop_room(session_id)
        self._attend(room)
        self._metrics.count_sent("SESSION_DELETED", len(room.peers))
        room.end(message or protocol_v1.session_deleted(session_id, self._broker.now_ms(), epoch))

    def _drop_room(self, session_id: str) -> None:
        del self._rooms[session_id]
        self._unread.discard(session_id)
        self._deadlines.arm(session_id, None)
        if session_id not in self._joining:
            self._broker.unhear(session_id)

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

    # --- reading what was not heard --------------------------------------------------------------

    async def _read_new_rooms(self) -> None:
        """Learn the deadlines of sessions that got their first client here."""
        try:
            while self._unread:
                session_ids = [self._unread.pop() for _ in range(min(REPAIR_SLICE, len(self._unread)))]
                try:
                    beginnings = await self._broker.beginnings(session_ids)
                except BrokerUnavailable:
                    self._unread.update(session_ids)
                    log.warning(
                        "Redis is away: %d sessions with new clients here are read later", len(self._unread)
                    )
                    await asyncio.sleep(RETRY_S)
                    continue
                for session_id, raw in zip(session_ids, beginnings, strict=True):
                    room = self._rooms.get(session_id)
                    head = raw and heads.read_head(raw)
                    if room is not None and room.known is None and head:
                        room.known = head
                        self._deadlines.arm(session_id, head.deadline_ms)
        finally:
            self._reader = None

    def _suspect(self, session_ids: Iterable[str]) -> None:
        """Compare these rooms with the store, as soon as may be."""
        self._suspects.update(session_ids)
        if self._suspects and self._repairer is None:
            self._repairer = self._tasks.spawn(self._repair_suspects())

    async def _repair_suspects(self) -> None:
        try:
            while self._suspects:
                session_ids = [self._suspects.pop() for _ in range(min(REPAIR_SLICE, len(self._suspects)))]
                try:
                    await self._repair(session_ids)
                except BrokerUnavailable as error:
                    # No more than that: the connection complains.
                    log.debug("clients are brought up to date later: %s", error.message)
                    self._suspects.update(session_ids)
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(0)
        finally:
            self._repairer = None

    async def _repair(self, session_ids: list[str]) -> None:
        """Every room gets what is stored, where that is not what it has.

        Only what differs is read whole, and little at a time: what others ask meanwhile does not wait long.
        """
        moved = {sid: room.moved for sid in session_ids if (room := self._rooms.get(sid))}
        differing = []
        for session_id, raw in zip(moved, await self._broker.beginnings(list(moved)), strict=True):
            room = self._to_repair(session_id, moved[session_id])
            if room is None:
                continue
            head = heads.read_head(raw) if raw is not None else None
            if head is None:
                self._replace(session_id, room, raw)
            elif room.owes_sync or not head.is_of(room.sent):
                differing.append(session_id)
        while differing:
            moved = {sid: room.moved for sid in differing if (room := self._rooms.get(sid))}
            differing = list(moved)
            stored = await self._broker.load_some(differing, REPAIR_BYTES) if differing else []
            for session_id, state in zip(differing, stored, strict=False):
                room = self._to_repair(session_id, moved[session_id])
                if room is not None:
                    self._replace(session_id, room, state)
            del differing[: len(stored)]
            await asyncio.sleep(0)

    def _to_repair(self, session_id: str, moved: int) -> Room | None:
        """The room, if what was read for it says anything; `moved` is how far it was before."""
        room = self._rooms.get(session_id)
        if room is not None and room.moved != moved:
            room.owes_sync = False
            return None  # what was heard while we read is at least as new as what we read
        return room

    def _replace(self, session_id: str, room: Room, state: bytes | None) -> None:
        """Give the room what is stored, if that is not what it has."""
        owed, room.owes_sync = room.owes_sync, False
        head = heads.read_head(state) if state is not None else None
        if state is None:
            if room.known is not None:
                self._end_room(session_id, room, None, room.known.position[0])
        elif head is None:
            log.error(
                "what is stored of this session cannot be read, its clients keep what they have",
                extra={"session_id": session_id},
            )
        elif owed or not head.is_of(room.sent):
            self._deadlines.arm(session_id, head.deadline_ms)
            self._attend(room)
            sync = protocol_v1.state_sync(session_id, self._broker.shown_ms(), state)
            room.put_state(sync, Kind.SYNC, head, state)
            self._metrics.resyncs.inc()
            self._metrics.count_sent("STATE_SYNC", len(room.peers))

    def _check_pause_s(self) -> float:
        slices = max(1, -(-len(self._rooms) // REPAIR_SLICE))
        return CHECK_INTERVAL_S / slices * random.uniform(0.9, 1.1)

    async def _check(self) -> None:
        """For losses without a gap: each room is compared with what is stored once a minute."""
        self._unchecked = self._unchecked or list(self._rooms)
        session_ids = self._unchecked[:REPAIR_SLICE]
        del self._unchecked[:REPAIR_SLICE]
        moved = {sid: room.moved for sid in session_ids if (room := self._rooms.get(sid))}
        for session_id, raw in zip(moved, await self._broker.beginnings(list(moved)), strict=True):
            room = self._rooms.get(session_id)
            if room is None or room.moved != moved[session_id]:
                continue
            head = heads.read_head(raw) if raw else None
            is_same = room.known is None if head is None else head.is_of(room.known)
            if not is_same:
                log.warning(
                    "clients had missed a change and are sent the current state",
                    extra={"session_id": session_id},
                )
                self._suspect([session_id])
