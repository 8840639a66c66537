"""Moves all that has to survive from one Redis, or Cluster, to another, while no process uses either."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from broker.counters import LIFE_SIGN_S
from broker.marks import MOVE_UNDER_WAY
from broker.migration_side import FOREIGN, MigrationFailed, Name, Side
from lockstep.idempotency import record_of
from lockstep.wire import heads

T = TypeVar("T")
# Sessions that are under way at once, each with its state and one page of events.
AT_ONCE = 16
CREATED = 201
# What a page of events may have in bytes, unless one event has more.
PAGE_BYTES = 262_144
FIRST_PAGE_EVENTS = 8
PROGRESS_EVERY_S = 2.0
# Processes renew their signs of life every second.
LIFE_SIGN_LOOK_S = 0.25


class Migration:
    """One move. FROM is only read; what TO has of an earlier attempt stays where it is the same.

    Until all is there and compared, the `routing` of TO names no way to route: no process starts on a part.
    """

    def __init__(self, source: Side, target: Side, say: Callable[[str], None]) -> None:
        self._source = source
        self._target = target
        self._say = say
        self._said_at_s = time.monotonic()
        self._is_resumed = False
        self._greatest_epoch = ""
        self._sessions = self._there_before = self._records = self._left_behind = 0

    async def run(self) -> None:
        """Raises MigrationFailed; then it can be begun again, and goes on where it was."""
        routing = await self._begin()
        await self._target.set_epoch(self._greatest_epoch)
        async for names in self._source.names("session", "record"):
            await _each([each.name for each in names if each.kind == "session"], self._copy_session)
            await _each([each for each in names if each.kind == "record"], self._copy_record)
            self._say_progress(f"copied {self._sessions:,} sessions, {self._records:,} idempotency records")
        there = f" ({self._there_before:,} had been before)" if self._there_before else ""
        self._say(f"copied {self._sessions:,} sessions{there} and {self._records:,} idempotency records")
        if self._left_behind:
            self._say(f"left behind: {self._left_behind:,} keys that have names of ours and are none of ours")
        await self._target.set_epoch(self._greatest_epoch)
        verified, removed = await self._verify()
        await self._require_nobody("one came while the sessions were on their way: stop all, and begin again")
        await self._target.set_routing(routing)
        gone = f", {removed:,} removed at TO that FROM has no more" if removed else ""
        self._say(
            f"verified {verified:,} sessions{gone}: heads, histories, deadlines and lapses are the same"
        )
        self._say(
            "not carried: counts of rate limits and of open sockets, and who is present; they form anew"
        )

    # --- before ----------------------------------------------------------------------------------

    async def _begin(self) -> bytes:
        """Look whether it may be done, and mark TO. Returns how the processes of FROM route."""
        source, target = self._source, self._target
        routing, mark = await source.routing(), await target.routing()
        if routing.startswith(MOVE_UNDER_WAY):
            raise MigrationFailed(f"FROM has only a part of its sessions: it is {_text(routing)}")
        own_mark = MOVE_UNDER_WAY + source.shown.encode()
        self._is_resumed = mark == own_mark
        if mark.startswith(MOVE_UNDER_WAY) and not self._is_resumed:
            raise MigrationFailed(f"TO has a part of other sessions: it is {_text(mark)}")
        count, there = await source.count_sessions(), await target.count_sessions()
        if not count:
            raise MigrationFailed(f"FROM has no sessions (the prefix is {source.prefix!r})")
        if there and not self._is_resumed:
            raise MigrationFailed(f"TO has {there:,} sessions already (the prefix is {target.prefix!r})")
        await self._require_nobody("stop all first")
        self._say(f"{'going on with' if self._is_resumed else 'moving'} {count:,} sessions")
        ahead_ms = await target.clock_ms() - await source.clock_ms()
        if abs(ahead_ms) > 1000:
            self._say(
                f"the clock of TO is {ahead_ms / 1000:+.1f} s off that of FROM, which deadlines are dated by"
            )
        self._greatest_epoch = max(await source.greatest_epoch(), await target.greatest_epoch())
        await target.record_partitions()
        await target.set_routing(own_mark)
        return routing

    async def _require_nobody(self, what_to_do: str) -> None:
        """Raises MigrationFailed where a process lives. Its sign of life outlasts it, and is waited for."""
        for side in (self._source, self._target):
            lefts_ms = await side.life_signs()
            if lefts_ms:
                self._say(
                    f"waiting until no process is on {side.name}: {LIFE_SIGN_S} s at most after its end"
                )
            end_s = time.monotonic() + LIFE_SIGN_S + 1
            while lefts_ms:
                await asyncio.sleep(LIFE_SIGN_LOOK_S)
                before_ms, lefts_ms = lefts_ms, await side.life_signs()
                living = [name for name, left_ms in lefts_ms.items() if left_ms > before_ms.get(name, 0)]
                if living or time.monotonic() > end_s:
                    count = len({each.name for each in living or lefts_ms})
                    noun = "process" if count == 1 else "processes"
                    raise MigrationFailed(f"{side.name} is used by {count} {noun}: {what_to_do}")

    # --- copying ---------------------------------------------------------------------------------

    async def _copy_session(self, session_id: str) -> None:
        source, target = self._source, self._target
        theirs, ours = source.keys(session_id), target.keys(session_id)
        if self._is_resumed and await self._is_same(session_id):
            self._sessions += 1
            self._there_before += 1
            return
        state = await source.ask(session_id, "GET", theirs.state(session_id))
        if state is None or state is FOREIGN:
            self._left_behind += state is FOREIGN
            return
        self._greatest_epoch = max(self._greatest_epoch, heads.epoch_of(session_id, state))
        # The state comes last: a session that has one is whole.
        await target.remove(session_id)
        await self._copy_events(session_id)
        lapse, deadline = await source.entries(session_id)
        if lapse is not None:
            await target.ask(session_id, "ZADD", ours.sessions, lapse, session_id)
        if deadline is not None:
            await target.ask(session_id, "ZADD", ours.deadlines, deadline, session_id)
        left_ms = await source.ask(session_id, "PTTL", theirs.state(session_id))
        if left_ms == -2:
            await target.remove(session_id)  # it has lapsed since
            return
        if left_ms >= 0:
            await target.ask(session_id, "PEXPIRE", ours.events(session_id), max(left_ms, 1))
        await target.ask(session_id, "SET", ours.state(session_id), state, *_expiry(left_ms))
        self._sessions += 1

    async def _copy_events(self, session_id: str) -> None:
        """Page by page. What is no stream is none of ours."""
        theirs = self._source.keys(session_id).events(session_id)
        ours = self._target.keys(session_id).events(session_id)
        start, count = b"-", FIRST_PAGE_EVENTS
        while True:
            page = await self._source.ask(session_id, "XRANGE", theirs, start, "+", "COUNT", count)
            self._left_behind += page is FOREIGN
            if not isinstance(page, list) or not page:
                return
            await asyncio.gather(
                *(self._target.ask(session_id, "XADD", ours, name, *fields) for name, fields in page)
            )
            if len(page) < count:
                return
            start = b"(" + page[-1][0]
            largest_bytes = max(sum(map(len, fields)) for _, fields in page)
            count = max(1, min(2 * count, PAGE_BYTES // max(largest_bytes, 1)))

    async def _copy_record(self, at: Name) -> None:
        kept, left_ms = await self._source.record(at)
        if kept is None or left_ms == -2:
            return
        record = record_of(kept) if isinstance(kept, bytes) else None
        if record is None:
            self._left_behind += 1
            return
        # A creation that names no session is looked for where its own name leads: Store.keeps_together.
        owners = [record.session_id, at.name] if record.status == CREATED else [record.session_id]
        for owner in owners:
            key = self._target.keys(owner).record(at.name)
            await self._target.ask(owner, "SET", key, kept, *_expiry(left_ms))
        self._records += 1

    # --- after -----------------------------------------------------------------------------------

    async def _is_same(self, session_id: str) -> bool:
        theirs, ours = await asyncio.gather(
            self._source.fingerprint(session_id), self._target.fingerprint(session_id)
        )
        return theirs is not None and theirs == ours

    async def _verify(self) -> tuple[int, int]:
        """Compare both ends in both directions. Returns how many are the same, and how many were too many."""
        verified = removed = 0

        async def look_at_source(session_id: str) -> None:
            nonlocal verified
            if await self._is_same(session_id):
                verified += 1
            elif isinstance(await self._source.fingerprint(session_id), tuple):
                raise MigrationFailed(f"session {session_id} is not the same at both: begin again")

        async def look_at_target(session_id: str) -> None:
            nonlocal removed
            if await self._source.fingerprint(session_id) is None:
                await self._target.remove(session_id)
                removed += 1

        async for names in self._source.names("session"):
            await _each([each.name for each in names], look_at_source)
            self._say_progress(f"verified {verified:,} sessions")
        async for names in self._target.names("session"):
            await _each([each.name for each in names], look_at_target)
        return verified, removed

    def _say_progress(self, text: str) -> None:
        if time.monotonic() - self._said_at_s >= PROGRESS_EVERY_S:
            self._said_at_s = time.monotonic()
            self._say(text)


async def _each(items: Iterable[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Some at a time, so that what is under way has a bound."""
    rest = iter(items)
    while some := tuple(itertools.islice(rest, AT_ONCE)):
        await asyncio.gather(*map(do, some))


def _expiry(left_ms: int) -> tuple[str | int, ...]:
    return ("PX", max(left_ms, 1)) if left_ms >= 0 else ()


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace")
