"""Cuts off clients that do not go on with a request, send none for too long, or do not take an answer.

Tornado has one timeout for an idle connection and for one that sends its head byte by byte; it costs a timer
for every request, the timeout of a body costs a task, and there is none for an answer. Here a single timer
checks everything that is unfinished.
"""

import asyncio
import fcntl
import struct
import termios
from contextlib import suppress
from typing import Protocol

from tornado.iostream import IOStream

from handlers import tornado_private

HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
# An answer is given up when the client takes nothing of it for this long; a slow reader is served.
STALLED_TIMEOUT_S = 30.0
CHECKS_PER_TIMEOUT = 4

Wait = tuple[float, int]
"""The timeout in seconds, and how far the client has come: when that changes, the timeout starts anew."""


class Incoming(Protocol):
    """What the server waits for: a request, or a new connection's first bytes."""

    has_head: bool
    is_whole: bool
    """Nothing of this request is still to come."""

    @property
    def stream(self) -> IOStream | None:
        """None before Tornado has the connection, and after it."""

    def cut_off(self) -> None:
        """It has been waited for long enough."""


class RequestTimeouts:
    """The latest request of each connection, and since when the server waits for its client."""

    def __init__(self, keep_alive_s: float) -> None:
        """`keep_alive_s` is how long a connection is kept without a request."""
        self._keep_alive_s = keep_alive_s
        self._latest: dict[object, Incoming] = {}
        self._waits: dict[Incoming, tuple[Wait, float]] = {}  # each with the instant it began
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, server_conn: object, incoming: Incoming) -> None:
        self._latest[server_conn] = incoming
        if self._timer is None:
            self._schedule_check()

    def has_seen(self, server_conn: object) -> bool:
        """True if the connection has had a request before."""
        return server_conn in self._latest

    def forget(self, server_conn: object) -> None:
        self._latest.pop(server_conn, None)

    def _schedule_check(self) -> None:
        shortest_s = min(HEAD_TIMEOUT_S, BODY_TIMEOUT_S, STALLED_TIMEOUT_S, self._keep_alive_s)
        period_s = shortest_s / CHECKS_PER_TIMEOUT
        self._timer = asyncio.get_running_loop().call_later(period_s, self._check)

    def _check(self) -> None:
        now_s = asyncio.get_running_loop().time()
        waits: dict[Incoming, tuple[Wait, float]] = {}
        for incoming in tuple(self._latest.values()):
            wait = self._wait_for(incoming)
            if wait is None:
                continue
            before, since_s = self._waits.get(incoming, (wait, now_s))
            if wait != before:
                since_s = now_s
            waits[incoming] = wait, since_s
            if now_s - since_s >= wait[0]:
                incoming.cut_off()
        self._waits = waits
        # Without connections there is nothing to check, and no timer.
        self._timer = None
        if self._latest:
            self._schedule_check()

    def _wait_for(self, incoming: Incoming) -> Wait | None:
        """What the server waits for; None while the client waits for the server."""
        stream = incoming.stream
        if incoming.is_whole:
            if stream is None or not stream.writing():
                return None
            return STALLED_TIMEOUT_S, _taken_bytes(stream)
        if incoming.has_head:
            return BODY_TIMEOUT_S, 0
        # Tornado reports a request only once its head is complete.
        has_begun = stream is not None and tornado_private.unread_bytes(stream) > 0
        return (HEAD_TIMEOUT_S if has_begun else self._keep_alive_s), 0


def _taken_bytes(stream: IOStream) -> int:
    """How much the client itself has taken: megabytes that the kernel was given may still be unsent."""
    unsent = struct.pack("i", 0)
    with suppress(OSError):  # the socket is about to be closed
        unsent = fcntl.ioctl(stream.socket, termios.TIOCOUTQ, unsent)
    return tornado_private.written_bytes(stream) - int(struct.unpack("i", unsent)[0])
