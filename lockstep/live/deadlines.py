"""A clock that runs out is told promptly: by a timer where somebody watches, else by the sweep."""

import asyncio
import contextlib
import heapq
import logging
import random
from typing import Protocol

from lockstep.contract import Agenda, Clock
from lockstep.errors import BrokerUnavailable, LockstepError, SessionNotFound, StateCorrupt
from lockstep.sessions import Sessions
from lockstep.tasks import Tasks

log = logging.getLogger(__name__)

# Clocks are set to a second or more, so a look ahead of one second, twice a second, sees nearly all
# of them before they run out; what was adjusted or resumed with less is at most one interval late.
SWEEP_AHEAD_MS = 1000
SWEEP_INTERVAL_S = 0.5
SWEEP_LIMIT = 2000
# Time for the process whose clients are watching to be first.
SWEEP_GRACE_MS = 50
# So few replaced deadlines are not worth tidying up.
SPARE = 64


class DeadlineBroker(Agenda, Clock, Protocol):
    """What deadlines ask of a broker."""


class Deadlines:
    """The timers of this process's watched sessions, and its part in the sweep.

    It only prompts: whether something is due is decided where every change is, so that any number
    of processes may prompt for the same expiry and one of them fires it. A prompt that fails is
    not repeated: the session stays due, and the next sweep of any process finds it.
    """

    def __init__(self, broker: DeadlineBroker, sessions: Sessions) -> None:
        self._broker = broker
        self._sessions = sessions
        self._armed: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    def start(self) -> None:
        # Jitter, so that processes started together do not sweep together.
        self._tasks.repeat(
            self._sweep,
            lambda: SWEEP_INTERVAL_S * random.uniform(0.5, 1.0),
            "looking for clocks that ran out",
        )

    async def close(self) -> None:
        """Stop. What is armed here is found by the sweeps of the others."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()
        await self._tasks.close()

    def arm(self, session_id: str, deadline_ms: int | None) -> None:
        """Prompt at `deadline_ms`, and no more at what was armed for this session before."""
        if deadline_ms is None:
            self._armed.pop(session_id, None)
        elif self._armed.get(session_id) != deadline_ms:
            self._armed[session_id] = deadline_ms
            heapq.heappush(self._heap, (deadline_ms, session_id))
            if len(self._heap) > 2 * len(self._armed) + SPARE:
                self._tidy()
            if self._heap[0] == (deadline_ms, session_id):
                self._set_timer()

    def _tidy(self) -> None:
        """Replaced deadlines stay in the heap; there shall not be more of them than live ones."""
        self._heap = [(at_ms, session_id) for session_id, at_ms in self._armed.items()]
        heapq.heapify(self._heap)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._heap:
            delay_s = max(0, self._heap[0][0] - self._broker.now_ms()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        now_ms = self._broker.now_ms()
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, session_id = heapq.heappop(self._heap)
            if self._armed.get(session_id) == at_ms:
                del self._armed[session_id]
                self._tasks.spawn(self._settle(session_id))
        self._set_timer()

    async def _settle(self, session_id: str) -> None:
        try:
            await self._sessions.settle(session_id)
        except SessionNotFound:
            pass  # deleted since it was armed
        except StateCorrupt:  # told once, by the service
            await self._forget(session_id)
        except LockstepError as error:
            log.warning(
                "a clock has run out, and storing that is tried again: %s",
                error.message,
                extra={"session_id": session_id},
            )

    async def _forget(self, session_id: str) -> None:
        """Who cannot be settled shall not be in the way of those who can."""
        with contextlib.suppress(BrokerUnavailable):  # then the next sweep finds it again
            await self._broker.forget_deadline(session_id)

    async def _sweep(self) -> None:
        # The broker's clock may have been set since the timer was.
        self._set_timer()
        # Together, and yet each for itself: what hinders the one does not hinder the other.
        due, lapsed = await asyncio.gather(
            self._broker.due(SWEEP_AHEAD_MS, SWEEP_LIMIT),
            self._broker.lapse(SWEEP_LIMIT),
            return_exceptions=True,
        )
        if not isinstance(due, BaseException):
            self._prompt_for(due)
        for outcome in (due, lapsed):
            if isinstance(outcome, BaseException):
                raise outcome

    def _prompt_for(self, due: list[tuple[int, str]]) -> None:
        for deadline_ms, session_id in due:
            prompt_at_ms = deadline_ms + random.randrange(SWEEP_GRACE_MS)
            # Who watches it armed it earlier; if later, then for what is no more stored.
            if self._armed.get(session_id, prompt_at_ms + 1) > prompt_at_ms:
                self.arm(session_id, prompt_at_ms)
