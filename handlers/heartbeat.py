"""One timer that pings all connections of a process, spread over the interval; none while there are none."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, Protocol

from handlers.native import Poller, send_all
from lockstep.live.peers import Frames, Kind
from lockstep.wire.frames import PING, encode_frame

TICK_S = 0.1
PING_FRAME = encode_frame(PING, b"")
_PING_FRAMES: Frames = [(Kind.MESSAGE, PING_FRAME)]


class Pinged(Protocol):
    heartbeat_slot: int
    """Set by the heartbeat: the tick that the connection belongs to; -1 for none."""

    def ping(self) -> None: ...

    def expect_pong(self) -> None:
        """The answer to the last ping is due: a connection that has none ends at once."""


class PingedSocket(Protocol):
    """One whose pings and pongs pass it by, as long as its socket takes them and has nothing else to read."""

    outgoing: Any
    """Its `clear_descriptor` is -1 where the next ping has to wait behind something."""

    def ping(self) -> None: ...

    def took(self, frames: Frames, sent: int) -> None:
        """The socket took so many bytes of the ping: not all."""

    def expect_pong(self) -> None: ...

    def on_readable(self) -> None:
        """There is something to read, and not just a pong."""


class Heartbeat:
    """Pings each connection every `interval_s` and looks for its answer `timeout_s` later.

    A connection belongs to one tick of the interval. Connections that open together are dealt to
    successive ticks, so that they are not pinged together.
    """

    def __init__(
        self, interval_s: float, timeout_s: float, on_tick: Callable[[float], None] = lambda late_s: None
    ) -> None:
        """`on_tick` is called with how late each tick comes, in s."""
        ticks = max(2, round(interval_s / TICK_S))
        self._tick_s = interval_s / ticks
        self._timeout_ticks = max(1, min(ticks - 1, round(timeout_s / self._tick_s)))
        self._on_tick = on_tick
        self._slots: list[dict[Pinged, None]] = [{} for _ in range(ticks)]
        self._slotted = 0
        self.sockets = Poller(ticks)
        # Each tick in turn, so that none has more than the others, however regularly connections open.
        self._dealer: Iterator[int] = cycle((*range(ticks // 2, ticks), *range(ticks // 2)))
        self._now = 0
        self._is_started = False
        self._next_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._is_started = True
        self._set_timer()

    def close(self) -> None:
        self._is_started = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, connection: Pinged) -> None:
        connection.heartbeat_slot = self._deal()
        self._slots[connection.heartbeat_slot][connection] = None
        self._slotted += 1
        self._set_timer()

    def drop(self, connection: Pinged) -> None:
        if connection.heartbeat_slot >= 0:
            del self._slots[connection.heartbeat_slot][connection]
            self._slotted -= 1
            connection.heartbeat_slot = -1

    def enter(self, descriptor: int, connection: PingedSocket, *, is_pinged: bool) -> None:
        """Watch a socket, and ping it if that is wanted.

        The rest, until it leaves, is done by `sockets`.
        """
        if not len(self.sockets):
            asyncio.get_running_loop().add_reader(self.sockets.fileno(), self._on_ready)
        self.sockets.enter(descriptor, connection)
        if is_pinged:
            self.sockets.place(descriptor, self._deal())
        self._set_timer()

    def _deal(self) -> int:
        """The tick of a new connection: where there are few, not one of those that come next."""
        ticks, slot = len(self._slots), next(self._dealer)
        half = ticks // 2
        if self._slotted + len(self.sockets) < half and (slot - self._now) % ticks < half:
            slot = (slot + half) % ticks
        return slot

    def leave(self, descriptor: int) -> None:
        """Forget a socket that is about to be closed. Again, or of one that is not here, it does nothing."""
        if not len(self.sockets):
            return
        self.sockets.leave(descriptor)
        if not len(self.sockets):
            asyncio.get_running_loop().remove_reader(self.sockets.fileno())

    def _on_ready(self) -> None:
        for connection in self.sockets.ready():
            try:
                connection.on_readable()
            except Exception as error:
                # The others may still be read.
                context = {"message": "what a client sent could not be read", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _set_timer(self) -> None:
        """The first connection starts the ticks, and the first tick without one is the last."""
        if self._timer is None and self._is_started and (self._slotted or len(self.sockets)):
            loop = asyncio.get_running_loop()
            self._next_at_s = loop.time() + self._tick_s
            self._timer = loop.call_at(self._next_at_s, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._slotted and not len(self.sockets):
            return
        now, self._now = self._now, (self._now + 1) % len(self._slots)
        now_s = loop.time()
        self._on_tick(max(0.0, now_s - self._next_at_s))
        # The timer is set first, so that an error of one connection does not end the heartbeat of all.
        # Ticks missed in a stall are not made up for in a burst.
        self._next_at_s = max(self._next_at_s + self._tick_s, now_s)
        self._timer = loop.call_at(self._next_at_s, self._tick)
        due = (now - self._timeout_ticks) % len(self._slots)
        for socket in self.sockets.silent(due):
            socket.expect_pong()
        for connection in tuple(self._slots[due]):
            connection.expect_pong()
        self._ping_sockets(now)
        for connection in tuple(self._slots[now]):
            connection.ping()

    def _ping_sockets(self, tick: int) -> None:
        connections: list[PingedSocket] = self.sockets.ask_all(tick)
        descriptors = [each.outgoing.clear_descriptor for each in connections]
        for index, sent in send_all(descriptors, PING_FRAME):
            if sent > 0:
                connections[index].took(_PING_FRAMES, sent)
            else:
                connections[index].ping()
