"""Clients that do not go on with a request, begin none or do not take an answer: waited for, then cut off.

Tornado has one time for a connection that is idle and one that sends a header byte by byte; it costs every
request a timer, and its time for a body a task; for an answer it has none. So one timer looks at all that are
unfinished.
"""

import asyncio
import fcntl
import struct
import termios
from contextlib import suppress
from typing import Protocol

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
# An answer of which the client takes nothing for so long is given up. Who takes little at a time is served.
STALLED_TIMEOUT_S = 30.0
LOOKS_PER_TIMEOUT = 4


Awaited = tuple[float, int]
"""For how many seconds at most, and how far the client has come: while that moves, it is waited for anew."""


class Incoming(Protocol):
    connection: HTTP1Connection
    has_head: bool
    is_whole: bool
    """Nothing of this request is still to come."""


class Patience:
    """The latest request of each connection, and since when it has been waited for. Never waits itself."""

    def __init__(self, keep_alive_s: float) -> None:
        """`keep_alive_s`: so long a connection is kept that asks nothing."""
        self._keep_alive_s = keep_alive_s
        self._latest: dict[object, Incoming] = {}
        self._awaited: dict[Incoming, tuple[Awaited, float]] = {}  # what, and since when
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: object, incoming: Incoming) -> None:
        self._latest[connection] = incoming
        if self._timer is None:
            self._look_again()

    def knows(self, connection: object) -> bool:
        """Has it had a request before?"""
        return connection in self._latest

    def end(self, connection: object) -> None:
        self._latest.pop(connection, None)

    def _look_again(self) -> None:
        shortest_s = min(HEAD_TIMEOUT_S, BODY_TIMEOUT_S, STALLED_TIMEOUT_S, self._keep_alive_s)
        period_s = shortest_s / LOOKS_PER_TIMEOUT
        self._timer = asyncio.get_running_loop().call_later(period_s, self._look)

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        awaited: dict[Incoming, tuple[Awaited, float]] = {}
        for incoming in self._latest.values():
            waits_for = self._awaits(incoming)
            if waits_for is None:
                continue
            before, since_s = self._awaited.get(incoming, (waits_for, now_s))
            if waits_for != before:
                since_s = now_s
            awaited[incoming] = waits_for, since_s
            if now_s - since_s >= waits_for[0]:
                incoming.connection.stream.close()
        self._awaited = awaited
        # Where nobody is connected there is nothing to look for.
        self._timer = None
        if self._latest:
            self._look_again()

    def _awaits(self, incoming: Incoming) -> Awaited | None:
        """What the client is waited for; None while it waits for us."""
        stream = incoming.connection.stream
        if incoming.is_whole:
            is_behind = stream is not None and stream.writing()
            return (STALLED_TIMEOUT_S, _taken_bytes(stream)) if is_behind else None
        if incoming.has_head:
            return BODY_TIMEOUT_S, 0
        # Tornado tells of a request only when its head is whole.
        has_begun = stream._read_buffer_size > 0
        return (HEAD_TIMEOUT_S if has_begun else self._keep_alive_s), 0


def _taken_bytes(stream: IOStream) -> int:
    """How much the client itself has taken: of what the kernel was given, megabytes may still lie there."""
    unsent = struct.pack("i", 0)
    with suppress(OSError):  # it is about to be closed
        unsent = fcntl.ioctl(stream.socket, termios.TIOCOUTQ, unsent)
    return int(stream._total_write_done_index) - int(struct.unpack("i", unsent)[0])
