"""One timer that pings all WebSocket connections of a process, spread over the interval."""

import asyncio
from itertools import cycle
from typing import Protocol

TICK_S = 0.1


class Pinged(Protocol):
    heartbeat_slot: int
    """Set by the heartbeat: the tick that the connection belongs to; -1 for none."""

    def ping(self) -> None: ...

    def expect_pong(self) -> None:
        """The answer to the last ping is due: a connection that has none ends at once."""


class Heartbeat:
    """Pings each connection every `interval_s` and looks for its answer `timeout_s` later.

    A connection belongs to one tick of the interval. Connections that open together are dealt to
    successive ticks, so that they are not pinged together.
    """

    def __init__(self, interval_s: float, timeout_s: float) -> None:
        ticks = max(2, round(interval_s / TICK_S))
        self._tick_s = interval_s / ticks
        self._timeout_ticks = max(1, min(ticks - 1, round(timeout_s / self._tick_s)))
        self._slots: list[dict[Pinged, None]] = [{} for _ in range(ticks)]
        self._dealer = cycle(range(ticks))
        self._now = 0
        self._next_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._next_at_s = loop.time() + self._tick_s
        self._timer = loop.call_at(self._next_at_s, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def add(self, connection: Pinged) -> None:
        connection.heartbeat_slot = next(self._dealer)
        self._slots[connection.heartbeat_slot][connection] = None

    def drop(self, connection: Pinged) -> None:
        if connection.heartbeat_slot >= 0:
            del self._slots[connection.heartbeat_slot][connection]
            connection.heartbeat_slot = -1

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._now = self._now, (self._now + 1) % len(self._slots)
        # The timer is set first, so that an error of one connection does not end the heartbeat of all.
        # Ticks missed in a stall are not made up for in a burst.
        self._next_at_s = max(self._next_at_s + self._tick_s, loop.time())
        self._timer = loop.call_at(self._next_at_s, self._tick)
        for connection in tuple(self._slots[now - self._timeout_ticks]):
            connection.expect_pong()
        for connection in tuple(self._slots[now]):
            connection.ping()
