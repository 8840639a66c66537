"""Limits how much of each iteration of the event loop is spent on reading, so that nothing else waits long.

However many clients and new requests talk at once, reading them takes no more of an iteration than one
slice. Readers that come too late for it are read in the next iterations, in order.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

SLICE_S = 0.003
# A request costs most after its head has been read, so a limit of time alone would admit too many.
READS_PER_SLICE = 12


class Reader(Protocol):
    def read_on(self) -> None:
        """A reader that was queued may read now."""


class ReadScheduler:
    """First come, first served. As long as the slice suffices, the queue is empty and nobody waits."""

    def __init__(self) -> None:
        self._queue: deque[Reader] = deque()
        self._ends_s = 0.0
        self._reads_left = 0
        self._is_in_slice = False

    def admit_or_queue(self, reader: Reader) -> bool:
        """True if the reader may read at once; if not it is queued, and its `read_on` is called later."""
        if not self._is_in_slice:
            self._begin_slice()
        elif self._queue or self._is_used_up():
            self._queue.append(reader)
            return False
        self._reads_left -= 1
        return True

    def _is_used_up(self) -> bool:
        return not self._reads_left or time.monotonic() >= self._ends_s

    def _begin_slice(self) -> None:
        self._is_in_slice = True
        self._ends_s = time.monotonic() + SLICE_S
        self._reads_left = READS_PER_SLICE
        asyncio.get_running_loop().call_soon(self._end_slice)

    def _end_slice(self) -> None:
        """The loop has done everything else that was due; the next slice begins if anybody is queued."""
        self._is_in_slice = False
        if self._queue:
            self._begin_slice()
        while self._queue and not self._is_used_up():
            self._reads_left -= 1
            self._queue.popleft().read_on()
