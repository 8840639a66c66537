"""What a process leaves in Redis beside sessions: a sign of life, and what all processes agree on."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis

from broker.counters import LIFE_SIGN_S
from broker.link import Refused
from broker.resp import Argument, LinkDown

log = logging.getLogger(__name__)

# A Redis that is full, a replica, without replicas or without a disk: it takes no changes, but can be read.
NO_CHANGES = ("OOM ", "READONLY ", "NOREPLICAS ", "MISCONF ")


Call = Callable[..., Awaitable[Any]]
"""Sends a command to Redis; its reply, also where that is an error."""

# What `routing` says until all sessions of a move are there: no process starts beside a part of them.
MOVE_UNDER_WAY = b"migrating from "


def part_of_a_move(routing: bytes) -> str:
    """Why a process cannot start beside such a `routing`."""
    said = routing.decode("utf-8", "replace")
    return f"not all sessions are there, Redis is {said}: lockstep migrate, begun again, ends that"


class Changes:
    """Does this Redis take changes? It is logged when the answer becomes another."""

    def __init__(self, look_for_master: Callable[[], None]) -> None:
        self._look_for_master = look_for_master
        self._are_taken = True

    def are_taken(self, reply: Any) -> bool:
        """By the reply to one. Raises LinkDown for an error that has another reason."""
        if not isinstance(reply, hiredis.ReplyError):
            if not self._are_taken:
                self._are_taken = True
                log.warning("Redis takes changes again")
            return True
        if not str(reply).startswith(NO_CHANGES):
            raise LinkDown(sent=False, why=str(reply))
        if self._are_taken:
            self._are_taken = False
            log.warning("Redis takes no changes now, what it has can be read: %s", reply)
        if str(reply).startswith("READONLY"):
            self._look_for_master()
        return False

    async def write(self, call: Call, *arguments: Argument) -> bool:
        """False where this Redis takes no changes now."""
        return self.are_taken(await call(*arguments))


class Agreement:
    """A value that all processes have in common; the first one records it."""

    def __init__(self, key: str, value: str, changes: Changes, otherwise: str) -> None:
        """`otherwise` says what to do where another value is recorded, which is put in it by `%s`."""
        self._key = key
        self._value = value
        self._changes = changes
        self._otherwise = otherwise
        self.is_recorded = False

    async def record(self, call: Call) -> None:
        """Raises Refused where another value is recorded. Where nothing can be written: next time."""
        # It is asked first: a Redis that takes no changes can be read.
        recorded = await self._recorded(call)
        if recorded is None and await self._changes.write(call, "SET", self._key, self._value, "NX"):
            recorded = await self._recorded(call)
        if recorded is not None and recorded.startswith(MOVE_UNDER_WAY):
            raise Refused(part_of_a_move(recorded))
        if recorded is not None and recorded != self._value.encode():
            raise Refused(self._otherwise % recorded.decode("utf-8", "replace")[:40])
        self.is_recorded = recorded is not None

    async def _recorded(self, call: Call) -> bytes | None:
        reply: bytes | hiredis.ReplyError | None = await call("GET", self._key)
        if str(reply).startswith("WRONGTYPE"):
            raise Refused(f"the key {self._key} of Redis is not a string: choose another --prefix")
        if isinstance(reply, hiredis.ReplyError):
            raise LinkDown(sent=False, why=str(reply))
        return reply


class LifeSign:
    """Says that this process lives, and is gone before its time where Redis has lost data.

    A Redis that was flushed answers and publishes as if nothing had happened.
    """

    def __init__(self, key: str, changes: Changes, on_gap: Callable[[], None]) -> None:
        """`on_gap` is called where clients may have been sent states while no sign was there."""
        self._key = key
        self._changes = changes
        self._on_gap = on_gap
        self._is_left = False
        self._renewed_at_s = 0.0
        # Clients may have been sent states while there was no sign that would have gone with them.
        self._was_unwatched = False

    async def prepare(self, call: Call) -> None:
        """Leave it over a new connection, before any client can be sent a state."""
        if not self._is_left:
            await self._leave(call)

    @property
    def renewal(self) -> tuple[Argument, ...]:
        """The command that renews it; its reply is for `note`."""
        # Not by SET, so that a Redis without memory does not let it lapse.
        return "GETEX", self._key, "EX", LIFE_SIGN_S

    async def note(self, call: Call, reply: Any) -> str:
        """Take the reply to a renewal. Returns why what clients have may not be what is stored; else ""."""
        if not self._is_left:
            await self._leave(call)
            return ""
        if not self._changes.are_taken(reply):
            return ""
        now_s, before_s = time.monotonic(), self._renewed_at_s
        self._renewed_at_s = now_s
        if reply is not None:
            return ""
        self._is_left = False
        # It lapses by itself where it could not be renewed: then nobody knows whether data was lost.
        has_lapsed = now_s - before_s > LIFE_SIGN_S - 1
        return "what was lost is looked for" if has_lapsed else "Redis has lost data"

    async def _leave(self, call: Call) -> None:
        """Where nothing can be written now it is left later; what is lost until then is looked for then."""
        if await self._changes.write(call, "SET", self._key, 1, "EX", LIFE_SIGN_S):
            self._is_left = True
            self._renewed_at_s = time.monotonic()
            if self._was_unwatched:
                asyncio.get_running_loop().call_soon(self._on_gap)
            self._was_unwatched = False
        else:
            self._was_unwatched = True
