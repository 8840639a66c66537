"""Presence of all sessions that have it, at this process: other processes and followers are told in time."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from lockstep.contract import Affected, Attendance, Clock, Presence
from lockstep.errors import BrokerUnavailable, Conflict
from lockstep.live.attendees import ANONYMOUS, Report
from lockstep.live.audience import Audiences
from lockstep.live.peers import Kind, Peer
from lockstep.live.presence import RoomPresence
from lockstep.live.room import Room
from lockstep.live.timeline import Timeline
from lockstep.live.worklist import Worklist
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks
from lockstep.wire import heads
from lockstep.wire.encodings import Encoding
from lockstep.wire.heads import Head

log = logging.getLogger(__name__)

TELL_INTERVAL_S = 0.25
"""Followers are told no more often."""
CHECK_INTERVAL_S = 60.0


class PresenceBroker(Presence, Clock, Protocol):
    """What presence asks of a broker."""


class PresenceTracker:
    """Has a RoomPresence for each session that has clients here or had them just now, and a timer for it.

    Rooms come and go; what is to be said of a client that has left is said without its room.
    """

    def __init__(
        self,
        broker: PresenceBroker,
        rooms: Mapping[str, Room],
        schedule: Callable[[Room], None],
        read_state: Callable[[str], Awaitable[bytes]],
        metrics: Metrics,
    ) -> None:
        self._broker = broker
        self._rooms = rooms
        self._schedule = schedule
        self._read_state = read_state
        self._metrics = metrics
        self._presences: dict[str, RoomPresence] = {}
        self._is_draining = False
        # Its clock is that of the loop, which a test may move on.
        self._ahead_s = 0.0
        self._tasks = Tasks()
        # Sessions with clients here of which something may have been missed.
        self._suspects = Worklist(self._tasks, self._read_again, self._complain)
        metrics.watch(metrics.presence_subjects, self._count_subjects)

    def start(self) -> None:
        self._tasks.repeat(
            self._check, lambda: CHECK_INTERVAL_S * random.uniform(0.9, 1.1), "reading who is present"
        )

    async def close(self) -> None:
        for presence in self._presences.values():
            self._cancel_timer(presence)
        await self._tasks.close()

    def drain(self) -> None:
        """This process stops: its clients are about to come back to others, and are not said to leave."""
        self._is_draining = True

    # --- sessions begin and end --------------------------------------------------------------------

    def see_state(self, room: Room, head: Head, state: bytes) -> None:
        """The room learns of another epoch of its session, which has presence or not."""
        session_id, epoch = head.session_id, head.order[0]
        room.presence_epoch = epoch
        presence = self._presences.get(session_id)
        has_presence = heads.has_presence(state)
        is_tracked = presence is not None and room.presence is presence
        if presence is not None and (not has_presence or (not is_tracked and presence.epoch != epoch)):
            self.end(presence)
            presence = None
        if not has_presence:
            room.presence = None
        elif presence is not None and is_tracked:
            # Its end was missed: clients are those that they were, and the store knows none of them.
            presence.epoch, presence.must_read = epoch, True
            self._broker.forget_session(session_id)
            self._say(presence, presence.own.items())
            self._suspects.add([session_id])
        else:
            if presence is None:
                presence = self._presences[session_id] = RoomPresence(session_id, epoch)
            # The session was not heard, also while it was read, if it is.
            presence.is_known, presence.must_read = False, True
            room.presence = presence
            for peer in room.peers:
                self.arrive(presence, peer)
            if self._followers(presence) is not None:
                self._suspects.add([session_id])

    def end(self, presence: RoomPresence) -> None:
        """The session is gone."""
        self._drop(presence)
        self._broker.forget_session(presence.session_id)

    def release(self, presence: RoomPresence) -> None:
        """The session has no client here any more. Who has left just now is still to be reported."""
        if not presence.own:
            self._drop(presence)

    def _drop(self, presence: RoomPresence) -> None:
        self._cancel_timer(presence)
        if self._presences.get(presence.session_id) is presence:
            del self._presences[presence.session_id]

    # --- clients and other processes ---------------------------------------------------------------

    def arrive(self, presence: RoomPresence, peer: Peer) -> None:
        """The peer has entered the session's room."""
        self._say(
            presence, presence.arrive(peer.subject or ANONYMOUS, self._broker.shown_ms(), self._now_s())
        )
        self._set_timer(presence)

    def depart(self, presence: RoomPresence, peer: Peer) -> None:
        """The peer has left it."""
        presence.part(peer)
        if not self._is_draining:
            self._say(presence, presence.depart(peer.subject or ANONYMOUS, self._now_s()))
        self._set_timer(presence)

    def hear(
        self, presence: RoomPresence, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None:
        self._say(presence, presence.hear(process, attendances, self._now_s()))
        self._set_timer(presence)

    def on_gap(self, affected: Affected | None = None) -> None:
        """Something may have been missed of these sessions, and the store may have lost something."""
        for presence in self._presences.values():
            if affected is None or affected(presence.session_id):
                presence.trust()
                presence.must_read = True
        self._read_known(affected)

    def skipped(self, presence: RoomPresence, timeline: Timeline, peer: Peer) -> bytes:
        """What a slow peer is sent for all that it was not told."""
        timeline.audiences.catch_up(peer)
        messages = presence.catch_up(peer, self._broker.shown_ms())
        self._metrics.count_sent("PRESENCE", len(messages))
        self._set_timer(presence)
        return b"".join([peer.encoding.encode(each) for each in messages])

    def _say(self, presence: RoomPresence, reports: Iterable[Report]) -> None:
        for subject, attendance in reports:
            self._broker.attend(presence.session_id, subject, attendance)

    # --- reading -----------------------------------------------------------------------------------

    async def read(self, presence: RoomPresence) -> None:
        """Read what other processes say; however many wait for it, once. Raises BrokerUnavailable."""
        if presence.reading is None:
            presence.reading = asyncio.create_task(self._read(presence))
        await asyncio.shield(presence.reading)

    async def _read(self, presence: RoomPresence) -> None:
        try:
            presence.must_read = True
            while presence.must_read and self._is_tracked(presence):
                presence.must_read = False
                presence.begin_read()
                found = await self._broker.present(presence.session_id)
                if self._is_tracked(presence):
                    self._say(presence, presence.end_read(found, self._now_s()))
        except BaseException:
            presence.must_read = True
            presence.fail_read()
            raise
        finally:
            presence.reading = None
        self._set_timer(presence)

    async def _read_again(self, session_ids: list[str]) -> None:
        presences = [self._presences[each] for each in session_ids if each in self._presences]
        await asyncio.gather(*[self.read(each) for each in presences if self._is_tracked(each)])

    def _complain(self, error: BrokerUnavailable) -> None:
        # Only that, since the broker's connection complains itself.
        log.debug("who is present is read later: %s", error.message)

    async def _check(self) -> None:
        """A publication may have been lost without a gap."""
        self._read_known()

    def _read_known(self, affected: Affected | None = None) -> None:
        """Read again what was read of these sessions; nobody has asked for the rest."""
        known = [each.session_id for each in self._presences.values() if each.is_known]
        self._suspects.add(known if affected is None else filter(affected, known))

    async def listing(self, session_id: str) -> bytes:
        """Who is present, whole, in JSON. Raises SessionNotFound, Conflict where the session has no presence.

        And BrokerUnavailable, where it is not known here.
        """
        room = self._rooms.get(session_id)
        presence = None if room is None else room.presence
        if presence is not None and presence.is_known and not presence.must_read:
            return presence.listing(is_whole=True)
        try:
            state = await self._read_state(session_id)
            if not heads.has_presence(state):
                raise Conflict(f"Session {session_id} was created without presence")
            found = await self._broker.present(session_id)
        except BrokerUnavailable:
            if presence is None or not presence.is_known:
                raise
            return presence.listing(is_whole=True)
        own = self._presences.get(session_id) or RoomPresence(session_id, "")
        return own.whole_listing(found)

    # --- in time -----------------------------------------------------------------------------------

    @property
    def next_due_in_s(self) -> float | None:
        """In how many seconds something is to be done next, if anything is."""
        dues_s = [each.due_s for each in self._presences.values() if each.timer is not None]
        return min(dues_s) - self._now_s() if dues_s else None

    def advance(self, by_s: float) -> None:
        """So much time has passed at once: do what is due by now."""
        self._ahead_s += by_s
        for presence in [each for each in self._presences.values() if each.timer is not None]:
            self._cancel_timer(presence)
            if presence.due_s <= self._now_s():
                self._on_timer(presence)
            else:
                self._set_timer(presence)

    def _set_timer(self, presence: RoomPresence) -> None:
        """Come back when the next thing is to be done for it."""
        if not self._can_tell(presence):
            presence.skip_telling()
        due_s = self._next_due_s(presence)
        if due_s is None or (presence.timer is not None and presence.due_s <= due_s):
            return
        self._cancel_timer(presence)
        # It is not asked of the timer: that of uvloop cannot tell where it is due at once.
        presence.due_s = due_s
        presence.timer = asyncio.get_running_loop().call_at(due_s - self._ahead_s, self._on_timer, presence)

    def _next_due_s(self, presence: RoomPresence) -> float | None:
        if self._presences.get(presence.session_id) is not presence:
            return None
        dues_s = [presence.next_fall_s] if presence.next_fall_s is not None else []
        if not self._is_draining and presence.next_report_s is not None:
            dues_s.append(presence.next_report_s)
        if presence.has_news and self._can_tell(presence):
            dues_s.append(presence.told_at_s + TELL_INTERVAL_S)
        if presence.next_doubt_s is not None and presence.session_id not in self._suspects.session_ids:
            dues_s.append(presence.next_doubt_s)
        return min(dues_s, default=None)

    def _on_timer(self, presence: RoomPresence) -> None:
        presence.timer = None
        now_s = self._now_s()
        if not self._is_draining:
            self._say(presence, presence.report(now_s))
        presence.settle(now_s)
        if presence.next_doubt_s is not None and presence.next_doubt_s <= now_s:
            self._suspects.add([presence.session_id])
        followers = self._followers(presence)
        if followers is not None and presence.is_known and now_s >= presence.told_at_s + TELL_INTERVAL_S:
            self._tell(presence, followers, now_s)
        if not self._is_tracked(presence):
            self.release(presence)
        self._set_timer(presence)

    def _cancel_timer(self, presence: RoomPresence) -> None:
        if presence.timer is not None:
            presence.timer.cancel()
            presence.timer = None

    def _tell(self, presence: RoomPresence, followers: Audiences, now_s: float) -> None:
        telling = presence.tell(self._broker.shown_ms())
        frames: dict[tuple[bytes, Encoding], bytes] = {}
        count = 0
        for peer, message in telling.others.items():
            followers.catch_up(peer)
            if message is not None:
                made_of = (message, peer.encoding)
                if made_of not in frames:
                    frames[made_of] = peer.encoding.encode(message)
                peer.send(frames[made_of], Kind.PRESENCE)
                count += 1
        if telling.message is not None:
            self._schedule(self._rooms[presence.session_id])
            followers.put(telling.message, Kind.PRESENCE, telling.others)
            count += len(followers) - len(telling.others)
        if count:
            presence.told_at_s = now_s
            self._metrics.count_sent("PRESENCE", count)

    def _followers(self, presence: RoomPresence) -> Audiences | None:
        """Those who are told; None where there is none."""
        room = self._rooms.get(presence.session_id)
        if room is None or room.presence is not presence or room.timeline is None:
            return None
        return room.timeline.audiences or None

    def _can_tell(self, presence: RoomPresence) -> bool:
        return presence.is_known and self._followers(presence) is not None

    def _is_tracked(self, presence: RoomPresence) -> bool:
        """True while a room has it."""
        room = self._rooms.get(presence.session_id)
        return room is not None and room.presence is presence

    def _count_subjects(self) -> int:
        return sum(len(each.own.keys() - {ANONYMOUS}) for each in self._presences.values())

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() + self._ahead_s
