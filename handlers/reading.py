"""Whose turn it is to be read.

However many talk at once, clients and new requests, reading them takes no more of a turn of the loop
than this, so that what others wait for is never far away. Who comes too late in a turn is read in the next
ones, in order.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

TURN_S = 0.003
# What a request costs comes after its head is read; so time alone would let in too many.
READS_PER_TURN = 12


class Reader(Protocol):
    def read_on(self) -> None:
        """It is your turn now."""


class ReadingTurns:
    """First come, first served. In quiet there is nobody in line, and nobody waits."""

    def __init__(self) -> None:
        self._line: deque[Reader] = deque()
        self._ends_s = 0.0
        self._left = 0
        self._is_turn = False

    def is_now(self, reader: Reader) -> bool:
        """May it read at once? If not, its `read_on` is called when it may."""
        if not self._is_turn:
            self._begin()
        elif self._line or self._is_over():
            self._line.append(reader)
            return False
        self._left -= 1
        return True

    def _is_over(self) -> bool:
        return not self._left or time.monotonic() >= self._ends_s

    def _begin(self) -> None:
        self._is_turn = True
        self._ends_s = time.monotonic() + TURN_S
        self._left = READS_PER_TURN
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """The loop has been through all that it had to do."""
        self._is_turn = False
        if self._line:
            self._begin()
        while self._line and not self._is_over():
            self._left -= 1
            self._line.popleft().read_on()
