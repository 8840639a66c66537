"""Finds out where the rooms of this process differ from what is stored."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping

from msgspec import Struct

from lockstep.contract import Store
from lockstep.errors import BrokerUnavailable
from lockstep.live.room import Room
from lockstep.live.worklist import SESSIONS_PER_READ, Worklist
from lockstep.tasks import Tasks, all_ended
from lockstep.wire import heads
from lockstep.wire.heads import Head

log = logging.getLogger(__name__)

# So much is read at once: over 100 Mbit/s a request of somebody else waits 20 ms for it.
REPAIR_BYTES = 262_144
CHECK_INTERVAL_S = 60.0


class Learned(Struct, frozen=True):
    """What is stored of a session, found for a room that knew nothing of it yet."""

    session_id: str
    room: Room
    head: Head
    beginning: bytes


class Missed(Struct, frozen=True):
    """A stored state that the room's clients have not been sent, or that one of them was promised."""

    session_id: str
    room: Room
    head: Head
    state: bytes


class Gone(Struct, frozen=True):
    """A session that the room knew of, and that is not stored any more."""

    session_id: str
    room: Room


Difference = Learned | Missed | Gone


class _Stored(Struct, frozen=True):
    """What was read for a session, and its room when that had come; None if there is no room any more."""

    session_id: str
    room: Room | None
    state: bytes | None
    """The whole state or its beginning; None if there is none."""
    head: Head | None
    """None also where the state cannot be read."""
    has_moved: bool
    """The room got an update during the read, which is at least as new as what was read."""

    @property
    def is_missed(self) -> bool:
        """True if the room's clients are to be sent this state."""
        if self.room is None or self.head is None or self.has_moved:
            return False
        return self.room.has_missed(self.head)


class Repair:
    """Compares rooms with the store: new ones, those that may have missed something, and all once a minute.

    It reads, and hands the differences to the hub, which applies them. Of a room it changes nothing but
    `owes_sync`.
    """

    def __init__(self, store: Store, rooms: Mapping[str, Room], apply: Callable[[Difference], None]) -> None:
        self._store = store
        self._rooms = rooms
        self._apply = apply
        self._tasks = Tasks()
        self._new = Worklist(self._tasks, self._read_new, self._complain_of_new)
        self._suspects = Worklist(self._tasks, self._repair, self._complain_of_suspects)
        self._unchecked: list[str] = []

    def start(self) -> None:
        self._tasks.repeat(
            self._check, self._check_pause_s, "comparing what clients have with what is stored"
        )

    async def close(self) -> None:
        await self._tasks.close()

    def learn(self, session_id: str) -> None:
        """Read what is stored for a new room: its deadline is not known before something happens."""
        self._new.add([session_id])

    def forget(self, session_id: str) -> None:
        self._new.session_ids.discard(session_id)

    def repair(self, session_ids: Iterable[str]) -> None:
        """Compare these rooms with the store as soon as possible: they may have missed something."""
        self._suspects.add(session_ids)

    async def _read(
        self, session_ids: Iterable[str], read: Callable[[list[str]], Awaitable[list[bytes | None]]]
    ) -> list[_Stored]:
        """What `read` finds for those of the sessions that have a room, or for the first of them."""
        counts = {sid: self._rooms[sid].update_count for sid in session_ids if sid in self._rooms}
        found = await read(list(counts))
        stored = []
        for (session_id, count), state in zip(counts.items(), found, strict=False):
            room = self._rooms.get(session_id)
            has_moved = room is not None and room.update_count != count
            head = heads.read_head(state) if state is not None else None
            stored.append(_Stored(session_id, room, state, head, has_moved))
        return stored

    # --- new rooms -------------------------------------------------------------------------------

    async def _read_new(self, session_ids: list[str]) -> None:
        for stored in await self._read(session_ids, self._store.beginnings):
            if stored.room is None or stored.head is None or stored.state is None:
                continue
            if stored.room.known is None:
                self._apply(Learned(stored.session_id, stored.room, stored.head, stored.state))

    def _complain_of_new(self, error: BrokerUnavailable) -> None:
        log.warning(
            "Redis is away: %d sessions with new clients here are read later", len(self._new.session_ids)
        )

    # --- rooms that may have missed something ----------------------------------------------------

    async def _repair(self, session_ids: list[str]) -> None:
        """Read whole only what differs, and little at a time, so that other requests do not wait long."""
        differing = []
        for stored in await self._read(session_ids, self._store.beginnings):
            if stored.is_missed:
                differing.append(stored.session_id)
            else:
                self._compare(stored)
        while differing:
            differing = [sid for sid in differing if sid in self._rooms]
            loaded = await self._read(differing, self._load_some)
            for stored in loaded:
                self._compare(stored)
            del differing[: len(loaded)]
            await asyncio.sleep(0)

    def _compare(self, stored: _Stored) -> None:
        """Hand over the difference if there is one; either way the room owes nobody a sync then."""
        room, head = stored.room, stored.head
        if room is None:
            return
        is_missed = stored.is_missed
        room.owes_sync = False
        if stored.has_moved:
            return
        if stored.state is None:
            if room.known is not None:
                self._apply(Gone(stored.session_id, room))
        elif head is None:
            log.error(
                "what is stored of this session cannot be read, its clients keep what they have",
                extra={"session_id": stored.session_id},
            )
        elif is_missed:
            self._apply(Missed(stored.session_id, room, head, stored.state))

    async def _load_some(self, session_ids: list[str]) -> list[bytes | None]:
        return await self._store.load(session_ids, REPAIR_BYTES)

    def _complain_of_suspects(self, error: BrokerUnavailable) -> None:
        # Only that, since the broker's connection complains itself.
        log.debug("clients are brought up to date later: %s", error.message)

    # --- losses that nobody noticed --------------------------------------------------------------

    def _check_pause_s(self) -> float:
        slices = max(1, -(-len(self._rooms) // SESSIONS_PER_READ))
        return CHECK_INTERVAL_S / slices * random.uniform(0.9, 1.1)

    async def _check(self) -> None:
        """Compare the next rooms with the store, so that each is compared once a minute.

        Those of a part of the store that is away have to wait for the next minute, the others for nothing.
        """
        self._unchecked = self._unchecked or list(self._rooms)
        session_ids = self._unchecked[:SESSIONS_PER_READ]
        del self._unchecked[:SESSIONS_PER_READ]
        try:
            await self._check_some(session_ids)
        except BrokerUnavailable:
            await all_ended(self._check_some([each]) for each in session_ids)

    async def _check_some(self, session_ids: list[str]) -> None:
        for stored in await self._read(session_ids, self._store.beginnings):
            if stored.room is None or stored.has_moved:
                continue
            head, known = stored.head, stored.room.known
            is_same = known is None if head is None else head.is_same_state_as(known)
            if not is_same:
                log.warning(
                    "clients had missed a change and are sent the current state",
                    extra={"session_id": stored.session_id},
                )
                self.repair([stored.session_id])
