"""Who does not go on with his request, or begins none: for a while he is waited for, then he is cut off.

Tornado has one time for a connection that is idle and one that sends a header byte by byte; it costs every
request a timer, and its time for a body a task. So one timer looks at all that are unfinished.
"""

import asyncio
from typing import Protocol

from tornado.http1connection import HTTP1Connection

# A proxy that keeps connections must let go of them first: nginx does after 60 s.
IDLE_TIMEOUT_S = 75.0
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
LOOKS_PER_TIMEOUT = 4


class Incoming(Protocol):
    connection: HTTP1Connection
    has_head: bool
    is_whole: bool
    """Nothing of this request is still to come."""


class Patience:
    """The latest request of each connection, and since when it has been waited for. Never waits itself."""

    def __init__(self) -> None:
        self._latest: dict[object, Incoming] = {}
        self._awaited: dict[Incoming, tuple[float, float]] = {}  # for how long at most, and since when
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
        period_s = min(HEAD_TIMEOUT_S, BODY_TIMEOUT_S) / LOOKS_PER_TIMEOUT
        self._timer = asyncio.get_running_loop().call_later(period_s, self._look)

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        awaited: dict[Incoming, tuple[float, float]] = {}
        for incoming in self._latest.values():
            if incoming.is_whole:
                continue
            timeout_s = _timeout_s(incoming)
            before_s, since_s = self._awaited.get(incoming, (timeout_s, now_s))
            if timeout_s != before_s:
                since_s = now_s
            awaited[incoming] = timeout_s, since_s
            if now_s - since_s >= timeout_s:
                incoming.connection.stream.close()
        self._awaited = awaited
        # Where nobody is connected there is nothing to look for.
        self._timer = None
        if self._latest:
            self._look_again()


def _timeout_s(incoming: Incoming) -> float:
    if incoming.has_head:
        return BODY_TIMEOUT_S
    # Tornado tells of a request only when its head is whole.
    has_begun = incoming.connection.stream._read_buffer_size > 0
    return HEAD_TIMEOUT_S if has_begun else IDLE_TIMEOUT_S
