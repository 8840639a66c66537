"""The loop that sends to rooms what is put for their clients."""

import asyncio
import logging
import time
from collections import deque

from lockstep.contract import Clock
from lockstep.live.room import Room
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

# For so long rooms are served before the loop gets to do something else.
SERVE_SLICE_S = 0.004


class Serving:
    """Serves rooms in turn, each when this iteration of the loop has brought all that it brings."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        # Rooms with something to send; a large one comes up several times.
        self._scheduled: deque[Room] = deque()
        self._handle: asyncio.Handle | None = None

    @property
    def is_idle(self) -> bool:
        """True if everything has been sent."""
        return self._handle is None

    def schedule(self, room: Room) -> None:
        if not room.is_scheduled:
            room.is_scheduled = True
            self._scheduled.append(room)
            if self._handle is None:
                self._handle = asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        monotonic = time.monotonic
        until_s = monotonic() + SERVE_SLICE_S

        def time_is_up() -> bool:
            return monotonic() >= until_s

        scheduled = self._scheduled
        while scheduled:
            room = scheduled.popleft()
            try:
                is_done = room.serve(time_is_up)
                if is_done and room.committed_ms:
                    now_ms = self._clock.now_ms(room.sent.session_id if room.sent is not None else None)
                    for committed_ms in room.committed_ms:
                        self._metrics.broadcast.observe(max(0, now_ms - committed_ms) / 1000)
                    room.committed_ms = ()
            except Exception:
                log.exception("a client could not be sent its messages")
                is_done = False
            room.is_scheduled = not is_done
            if not is_done:
                scheduled.append(room)
            if monotonic() >= until_s:
                break
        loop = asyncio.get_running_loop()
        self._handle = loop.call_soon(self._serve) if self._scheduled else None
