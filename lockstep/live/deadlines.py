"""Expires clocks when they run out: by a timer for sessions with clients here, by sweeps for all others."""

import asyncio
import contextlib
import heapq
import logging
import random
from typing import Protocol

from lockstep.beats import MAX_INTERVAL_S
from lockstep.contract import Agenda, Clock
from lockstep.errors import BrokerUnavailable, LockstepError, SessionNotFound, StateCorrupt
from lockstep.sessions import Sessions
from lockstep.tasks import Tasks

log = logging.getLogger(__name__)

# Clocks are set to a second or more, so a sweep at each beat that looks further ahead than to the next one
# finds nearly all of them before they run out. A clock that was adjusted to less, or resumed with less, is at
# most one beat late; where the store is asked in turns, at most two.
SWEEP_AHEAD_MS = 1250
BEATS_OF_ALL_TURNS = 2
SWEEP_LIMIT = 2000
# Where one sweep is not enough the next ones do not wait for the beat.
SWEEP_AGAIN_S = 0.25
# A sweep waits up to this long, so that the process whose clients are watching comes first.
SWEEP_GRACE_MS = 50
# The heap is not rebuilt for fewer replaced deadlines than this.
MIN_REPLACED = 64


class DeadlineBroker(Agenda, Clock, Protocol):
    """What deadlines ask of a broker."""


class Deadlines:
    """One timer for all sessions with clients at this process, and this process's sweeps.

    It only prompts `Sessions` to settle a session, which decides whether something is due as for every
    change. So any number of processes may prompt for the same expiry, and one of them commits it. A prompt
    that fails is not repeated: the session stays due, and the next sweep of any process finds it.
    """

    def __init__(self, broker: DeadlineBroker, sessions: Sessions) -> None:
        self._broker = broker
        self._sessions = sessions
        self._armed: dict[str, int] = {}
        # (the instant by the first store's clock, the deadline by the session's own, the session's id)
        self._heap: list[tuple[int, int, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.on_beats(self._sweep_all, "looking for clocks that ran out")

    async def close(self) -> None:
        """Stop. The sweeps of other processes find what is armed here."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
        await self._tasks.close()

    def arm(self, session_id: str, deadline_ms: int | None) -> None:
        """Prompt at `deadline_ms`, and no longer when this session was to be prompted before; None: never."""
        if deadline_ms is None:
            self._armed.pop(session_id, None)
        elif self._armed.get(session_id) != deadline_ms:
            self._armed[session_id] = deadline_ms
            entry = self._entry(session_id, deadline_ms)
            heapq.heappush(self._heap, entry)
            if len(self._heap) > 2 * len(self._armed) + MIN_REPLACED:
                self._remove_replaced()
            if self._heap[0] == entry:
                self._set_timer()

    def _entry(self, session_id: str, deadline_ms: int) -> tuple[int, int, str]:
        ahead_ms = self._broker.now_ms(session_id) - self._broker.now_ms()
        return deadline_ms - ahead_ms, deadline_ms, session_id

    def _remove_replaced(self) -> None:
        """Rebuild the heap: replaced deadlines stay in it, but should not outnumber the others."""
        self._heap = [self._entry(session_id, deadline_ms) for session_id, deadline_ms in self._armed.items()]
        heapq.heapify(self._heap)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._heap:
            delay_s = max(0, self._heap[0][0] - self._broker.now_ms()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        now_ms = self._broker.now_ms()
        early = []
        while self._heap and self._heap[0][0] <= now_ms:
            _, deadline_ms, session_id = heapq.heappop(self._heap)
            if self._armed.get(session_id) != deadline_ms:
                continue
            if self._broker.now_ms(session_id) < deadline_ms:
                early.append((session_id, deadline_ms))  # its clock goes otherwise than when it was armed
                continue
            del self._armed[session_id]
            self._tasks.spawn(self.fire(session_id))
        for session_id, deadline_ms in early:
            heapq.heappush(self._heap, self._entry(session_id, deadline_ms))
        self._set_timer()

    async def fire(self, session_id: str) -> None:
        """Settle a session whose clock has run out, if it has."""
        try:
            await self._sessions.settle(session_id)
        except SessionNotFound:
            pass  # deleted since it was armed
        except StateCorrupt:  # Sessions has logged it
            await self._forget_deadline(session_id)
        except LockstepError as error:
            log.warning(
                "a clock has run out, and storing that is tried again: %s",
                error.message,
                extra={"session_id": session_id},
            )

    async def _forget_deadline(self, session_id: str) -> None:
        """Keep a session that cannot be settled from taking the place of others in the next sweeps."""
        with contextlib.suppress(BrokerUnavailable):  # the next sweep then finds it again
            await self._broker.forget_deadline(session_id)

    async def _sweep_all(self) -> None:
        turns = self._broker.agenda_turns
        left = -(-turns // BEATS_OF_ALL_TURNS)
        while left:
            left -= 1
            if await self._sweep(turns):
                left = turns
                await asyncio.sleep(SWEEP_AGAIN_S)

    async def _sweep(self, turns: int) -> bool:
        """True where there may be more than it has found."""
        # The broker's clock may have been changed since the timer was set.
        self._set_timer()
        # Both at once, and what hinders one of them does not hinder the other.
        self._turn = (self._turn + 1) % turns
        # Far enough to the next time that it is the same turn.
        beats = min(turns, BEATS_OF_ALL_TURNS)
        ahead_ms = SWEEP_AHEAD_MS + int((beats - 1) * MAX_INTERVAL_S * 1000)
        due, lapsed = await asyncio.gather(
            self._broker.due(ahead_ms, SWEEP_LIMIT, self._turn),
            self._broker.lapse(SWEEP_LIMIT, self._turn),
            return_exceptions=True,
        )
        if not isinstance(due, BaseException):
            self._prompt_for(due)
        for outcome in (due, lapsed):
            if isinstance(outcome, BaseException):
                raise outcome
        assert not isinstance(due, BaseException)
        return len(due) >= SWEEP_LIMIT or lapsed == SWEEP_LIMIT

    def _prompt_for(self, due: list[tuple[int, str]]) -> None:
        for deadline_ms, session_id in due:
            # Mostly sooner than later: where nobody watches, the first of the processes should not be late.
            prompt_at_ms = deadline_ms + min(random.randrange(SWEEP_GRACE_MS) for _ in range(3))
            # A process that watches the session has armed an earlier instant. One that has armed a later
            # instant has armed it for a state that is not stored any more; one whose instant is over for
            # longer than it would wait has armed it by a clock that was set since.
            armed_ms = self._armed.get(session_id)
            overdue_ms = self._broker.now_ms(session_id) - SWEEP_GRACE_MS
            if armed_ms is None or armed_ms > prompt_at_ms or armed_ms < overdue_ms:
                self.arm(session_id, prompt_at_ms)
