"""The embedded broker: one process, and its state dies with it."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from broker.clock import ROUNDING_MS, SlewedOffset, TimeSource
from broker.sorted_set import SortedSet
from lockstep.contract import (
    KEPT_EVENTS,
    MAX_AHEAD_MS,
    MAX_BEHIND_MS,
    AlreadyDone,
    Attendance,
    Broker,
    Charge,
    Commit,
    EpochTooLow,
    History,
    IdempotencyRecord,
    Listener,
    Outcome,
)
from lockstep.limits import FixedWindows
from lockstep.occupancy import Occupancy
from lockstep.wire import heads, payloads, protocol_v1

log = logging.getLogger(__name__)

# When the wall clock is corrected, sessions follow it by 1 ms a second.
SLEW_RATE = 1 / 1000
FAR_OFF_MS = 600_000


@dataclass(slots=True)
class _StoredSession:
    state: bytes
    lapses_at_ms: int
    last_version: int
    events: deque[bytes]


class MemoryBroker(Broker):
    """Keeps the promise by having no `await` between the check and the write.

    All its time comes from `source`: the machine's clocks, or those of a test that moves them.
    """

    def __init__(self, source: TimeSource = time) -> None:
        self._source = source
        self._sessions: dict[str, _StoredSession] = {}
        self._records: dict[str, bytes] = {}
        self._record_expiries = SortedSet()
        self._windows = FixedWindows()
        self._occupancy = Occupancy()
        self._lapses = SortedSet()
        self._deadlines = SortedSet()
        self._listener: Listener | None = None
        self._last_epoch = ""
        # Setting the machine's clock moves no session: it is followed slowly.
        self._clock = SlewedOffset(source.monotonic() * 1000, self._wall_offset_ms(), SLEW_RATE)
        self._has_warned = False

    async def start(self, listener: Listener) -> None:
        self._listener = listener

    async def close(self) -> None:
        self._listener = None

    def now_ms(self, session_id: str | None = None) -> int:
        return self.shown_us() // 1000

    def shown_us(self) -> int:
        wall_offset_ms = self._wall_offset_ms()
        monotonic_ms = self._source.monotonic() * 1000
        now_us = int((monotonic_ms + self._clock.follow(monotonic_ms, wall_offset_ms)) * 1000)
        apart_ms = wall_offset_ms - self._clock.offset_ms
        if abs(apart_ms) > FAR_OFF_MS and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the clock of this machine was set, or it slept: the time of sessions is %+.0f s off and "
                "comes nearer by 1 ms a second; a restart sets it right, and ends them",
                -apart_ms / 1000,
            )
        return now_us

    def error_ms(self) -> float:
        return ROUNDING_MS

    def _wall_offset_ms(self) -> float:
        return (self._source.time() - self._source.monotonic()) * 1000

    def not_ready(self) -> list[str]:
        return []

    async def hear(self, session_id: str) -> bool:
        return True

    def unhear(self, session_id: str) -> None:
        pass

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        states: list[bytes | None] = []
        size = 0
        for session_id in session_ids:
            stored = self._alive(session_id)
            size += len(stored.state) if stored else 0
            if at_most_bytes is not None and states and size > at_most_bytes:
                break
            states.append(stored.state if stored else None)
        return states

    async def recent(
        self, session_id: str, max_events: int, max_bytes: int
    ) -> tuple[bytes | None, list[bytes]]:
        stored = self._alive(session_id)
        if stored is None:
            return None, []
        if heads.read_head(stored.state) is None:
            return stored.state, []
        events: list[bytes] = []
        for event in islice(reversed(stored.events), max_events):
            max_bytes -= len(event)
            if max_bytes < 0:
                break
            events.append(event)
        return stored.state, events[::-1]

    async def recall(self, session_id: str, *keys: str) -> list[bytes | None]:
        (state,) = await self.load([session_id])
        self._forget_old_records()
        return [state, *map(self._records.get, keys)]

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        return [state and state[: heads.BEGINNING_BYTES] for state in await self.load(session_ids)]

    async def commit(self, commit: Commit) -> Outcome:
        stored = self._alive(commit.session_id)
        state = stored.state if stored else b""
        if state.startswith(commit.beginning):
            return Outcome.APPLIED
        if self._check_record(commit.record):
            return Outcome.APPLIED
        if not state.startswith(commit.expected) if commit.expected else state:
            return Outcome.CONFLICT
        now_ms = self.now_ms()
        if not now_ms - MAX_BEHIND_MS <= commit.now_ms <= max(now_ms + MAX_AHEAD_MS, commit.not_before_ms):
            return Outcome.WRONG_TIME
        if commit.due_ms is not None and commit.due_ms > max(now_ms, commit.not_before_ms):
            return Outcome.WRONG_TIME
        if not commit.expected:
            self._take_epoch(heads.epoch_of(commit.session_id, commit.beginning))
        if commit.charge is not None and not self._count_if_allowed(commit, commit.charge):
            return Outcome.LIMITED
        lapses_at_ms = commit.lapses_at_ms
        if stored and not commit.prolongs:
            lapses_at_ms = min(lapses_at_ms, stored.lapses_at_ms)
        events = stored.events if stored else deque(maxlen=KEPT_EVENTS)
        events.extend(commit.events)
        last_version = commit.first_version + len(commit.events) - 1
        self._sessions[commit.session_id] = _StoredSession(commit.state, lapses_at_ms, last_version, events)
        self._lapses.put(commit.session_id, lapses_at_ms)
        if commit.deadline_ms is None:
            self._deadlines.drop(commit.session_id)
        else:
            self._deadlines.put(commit.session_id, commit.deadline_ms)
        self._keep_record(commit.record)
        self._publish_soon(payloads.published(commit.session_id, commit.now_ms, commit.state, commit.update))
        return Outcome.APPLIED

    def _count_if_allowed(self, commit: Commit, charge: Charge) -> bool:
        """Count a change that is about to be made; False where it is one too many, and not counted."""
        now_s = self._source.monotonic()
        count, left_ms = self._windows.look(charge, now_s)
        if count < charge.limit:
            count, left_ms = self._windows.spend(charge, now_s)
            is_allowed = True
        else:
            count, is_allowed = count + 1, False
        if commit.on_counted is not None:
            commit.on_counted(count, left_ms)
        return is_allowed

    async def delete(
        self, session_id: str, expected: bytes | None = None, record: IdempotencyRecord | None = None
    ) -> bool:
        if self._check_record(record):
            return False
        stored = self._alive(session_id)
        epoch = heads.epoch_of(session_id, stored.state) if stored else ""
        if expected is None:
            expected = heads.beginning_of(session_id)
        is_it = stored is not None and expected != b"" and stored.state.startswith(expected)
        if epoch and not is_it and epoch == heads.epoch_of(session_id, expected):
            return False  # it has moved
        self._keep_record(record)
        if stored and (is_it or not epoch):  # what is no state is removed, and nothing is published
            self._remove(session_id, stored)
        return is_it and epoch != ""

    async def publish(
        self,
        session_id: str,
        message: bytes,
        record: IdempotencyRecord | None = None,
        *,
        is_notice: bool = False,
    ) -> bool:
        self._check_record(record)
        stored = self._alive(session_id)
        if stored is None:
            return False
        self._keep_record(record, heads.epoch_of(session_id, stored.state))
        if is_notice:
            self._publish_soon(message)
        elif self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.on_relayed, session_id, message)
        return True

    async def spend(self, charges: Sequence[Charge]) -> list[tuple[int, int]]:
        counts = []
        for charge in charges:
            counts.append(self._windows.spend(charge, self._source.monotonic()))
            if counts[-1][0] > charge.limit:
                break
        return counts

    async def enter(self, key: str, limit: int) -> bool:
        return self._occupancy.enter(key, limit)

    def leave(self, key: str, limit: int) -> None:
        self._occupancy.leave(key, limit)

    # There is no other process that could be told of anybody, or could tell.

    def attend(self, session_id: str, subject: str, attendance: Attendance | None) -> None:
        pass

    def forget_session(self, session_id: str) -> None:
        pass

    async def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        return {}

    async def history(self, session_id: str, since: int, max_bytes: int) -> History | None:
        stored = self._alive(session_id)
        head = heads.read_head(stored.state) if stored else None
        if stored is None or head is None:
            return None
        oldest = stored.last_version - len(stored.events) + 1
        skipped = min(max(0, since + 1 - oldest), len(stored.events))
        events: list[bytes] = []
        for event in islice(stored.events, skipped, None):
            max_bytes -= len(event) + 1
            if events and max_bytes < 0:
                break
            events.append(event)
        epoch, version = head.order
        return History(epoch, version, oldest + skipped, events)

    async def page(self, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        return self._lapses.after(after, limit)

    async def due(self, ahead_ms: int, limit: int, turn: int | None = None) -> list[tuple[int, str]]:
        until_ms = self.now_ms() + ahead_ms
        while True:
            found = self._deadlines.until(until_ms, limit)
            if not sum(self._put_right(*entry) for entry in found):
                return found

    def _put_right(self, deadline_ms: int, session_id: str) -> bool:
        """Make the entry what its state says, or remove it; False where it was right."""
        head = heads.read_head(self._sessions[session_id].state)
        if head is not None and head.deadline_ms == deadline_ms:
            return False
        if head is None or head.deadline_ms is None:
            self._deadlines.drop(session_id)
        else:
            self._deadlines.put(session_id, head.deadline_ms)
        return True

    async def forget_deadline(self, session_id: str) -> None:
        self._deadlines.drop(session_id)

    async def lapse(self, limit: int, turn: int | None = None) -> int:
        lapsed = self._lapses.until(self.now_ms(), limit)
        for _, session_id in lapsed:
            self._remove(session_id, self._sessions[session_id])
        return len(lapsed)

    def _take_epoch(self, epoch: str) -> None:
        if epoch <= self._last_epoch:
            raise EpochTooLow(self._last_epoch)
        self._last_epoch = epoch

    def _check_record(self, record: IdempotencyRecord | None) -> bool:
        """True where this very record is kept already. Raises AlreadyDone where another one of its key is."""
        self._forget_old_records()
        kept = None if record is None else self._records.get(record.key)
        if record is None or kept is None:
            return False
        if kept != record.content:
            raise AlreadyDone(kept)
        return True

    def _keep_record(self, record: IdempotencyRecord | None, epoch: str | None = None) -> None:
        if record is not None:
            self._records[record.key] = record.content if epoch is None else record.with_epoch(epoch)
            self._record_expiries.put(record.key, self.now_ms() + record.kept_ms)

    def _forget_old_records(self) -> None:
        for _, key in self._record_expiries.until(self.now_ms(), 10):
            self._record_expiries.drop(key)
            del self._records[key]

    def _alive(self, session_id: str) -> _StoredSession | None:
        stored = self._sessions.get(session_id)
        if stored is not None and stored.lapses_at_ms <= self.now_ms():
            self._remove(session_id, stored)
            return None
        return stored

    def _remove(self, session_id: str, stored: _StoredSession) -> None:
        del self._sessions[session_id]
        self._lapses.drop(session_id)
        self._deadlines.drop(session_id)
        if epoch := heads.epoch_of(session_id, stored.state):
            self._publish_soon(protocol_v1.session_deleted(session_id, self.now_ms(), epoch))

    def _publish_soon(self, payload: bytes) -> None:
        # Never inside commit: no client may see a change while its commit could still fail.
        if self._listener is not None:
            asyncio.get_running_loop().call_soon(self._listener.on_published, payload)
