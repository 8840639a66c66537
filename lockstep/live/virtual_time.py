"""Time that only a test moves: what falls due on the way happens in order, each at its own instant."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

from lockstep.contract import Agenda, Clock
from lockstep.live.deadlines import Deadlines
from lockstep.live.hub import Hub

# Seconds in this fraction are exact as floats, also in sums with whole seconds; ms are not.
TICKS_PER_S = 2**20
AT_ONCE = 100
"""So many that are due at the same instant are asked for at a time."""


class VirtualClock:
    """The two clocks of a machine, as `broker.clock.TimeSource` has them, that only `move` moves.

    They show the first tick that is not before the ms they stand at: floored to ms, it is that one.
    """

    def __init__(self) -> None:
        self._began_s = int(time.time())
        self._moved_ms = 0

    def time(self) -> float:
        return self._began_s + self.monotonic()

    def monotonic(self) -> float:
        return -(-self._moved_ms * TICKS_PER_S // 1000) / TICKS_PER_S

    def move(self, ms: int) -> None:
        self._moved_ms += ms


class VirtualTimeBroker(Agenda, Clock, Protocol):
    """What virtual time asks of a broker."""


class VirtualTime:
    """Moves a process's time, which the broker takes from `clock`.

    Pings, timeouts of sockets and requests, and tokens go by the machine's own clocks all the same.
    """

    def __init__(
        self,
        clock: VirtualClock,
        broker: VirtualTimeBroker,
        deadlines: Deadlines,
        hub: Hub,
        tell_clients: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._tell_clients = tell_clients
        self._broker = broker
        self._deadlines = deadlines
        self._hub = hub
        self._lock = asyncio.Lock()

    async def advance(self, ms: int) -> int:
        """Let so many ms pass; the broker's time then.

        Each instant at which something falls due has its turn: the clock stands at it until all of that has
        happened and this process's clients have been sent it. Requests are answered in between. Two
        advances follow one upon the other.
        """
        async with self._lock:
            left_ms = ms
            while (at_ms := await self._next_ms(left_ms)) is not None:
                passed_ms = at_ms - self._broker.now_ms()
                left_ms -= passed_ms
                self._move(passed_ms)
                await self._happen()
            self._move(left_ms)
            await self._hub.flush()
            self._tell_clients()
            return self._broker.now_ms()

    async def _next_ms(self, within_ms: int) -> int | None:
        """The instant at which something falls due next, or did; None where nothing will within that time."""
        now_ms = self._broker.now_ms()
        due = await self._broker.due(within_ms, 1)
        lapsing = await self._broker.page((0, ""), 1)
        instants = [at_ms for at_ms, _ in (*due, *lapsing)]
        in_s = self._hub.presence.next_due_in_s
        if in_s is not None:
            instants.append(now_ms + math.ceil(in_s * 1000))
        next_ms = max(now_ms, min(instants, default=now_ms + within_ms + 1))
        return next_ms if next_ms <= now_ms + within_ms else None

    async def _happen(self) -> None:
        """Let happen what is due, and clients hear of it."""
        for _, session_id in await self._broker.due(0, AT_ONCE):
            await self._deadlines.fire(session_id)
        await self._broker.lapse(AT_ONCE)
        await self._hub.flush()

    def _move(self, ms: int) -> None:
        self._clock.move(ms)
        self._hub.presence.advance(ms / 1000)
