"""The instants at which a process looks after everything that it looks after again and again.

Each look wakes the process, and may wake Redis. Were each to come at its own time, a process without clients
would hardly sleep: together they wake it once.
"""

import asyncio
import random
import weakref

# Below a second, with all jitter: that is what those who look allow for.
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.85, 0.95


class _Beats:
    """Those of one event loop. Where nobody waits for the next one, there is none."""

    def __init__(self) -> None:
        self._next: asyncio.Future[float] | None = None

    def next(self) -> "asyncio.Future[float]":
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            # Jitter, so that processes started together do not look together.
            due_s = loop.time() + random.uniform(MIN_INTERVAL_S, MAX_INTERVAL_S)
            loop.call_at(due_s, self._beat, self._next, due_s)
        return self._next

    def _beat(self, future: "asyncio.Future[float]", due_s: float) -> None:
        self._next = None
        future.set_result(max(0.0, asyncio.get_running_loop().time() - due_s))


_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Beats] = weakref.WeakKeyDictionary()


def next_beat() -> "asyncio.Future[float]":
    """Done at the next beat of the running loop, with how late that came, in s.

    All who wait share it, so it must not be cancelled: wait for it by `asyncio.wait`, or by `beat`.
    """
    loop = asyncio.get_running_loop()
    beats = _of_loops.get(loop)
    if beats is None:
        beats = _of_loops[loop] = _Beats()
    return beats.next()


async def beat() -> float:
    """Return at the next beat; how late that came, in s."""
    coming = next_beat()
    await asyncio.wait((coming,))
    return coming.result()
