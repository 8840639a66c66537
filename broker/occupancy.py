"""How many are inside what has a limit, over all processes."""

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import hiredis

from broker.link import Link, LinkDown, Wire
from broker.script import Script, checked
from lockstep.errors import BrokerUnavailable
from lockstep.occupancy import Occupancy as LocalOccupancy

# The counts of a process that nobody asks about again after its death are kept for so long.
KEPT_S = 86_400
SLICE = 500
# So long after its death a process counts as alive, and holds what its clients had of a limit.
LIFE_SIGN_S = 15


class Occupancy:
    """Keeps a hash in Redis for each limited thing: how many every process has let in.

    Redis decides who is let in, and counts him in the same step; who leaves is told once per turn of
    the loop, however many they are. So the count in Redis is exact as long as the connection lives.
    What one that is lost has carried nobody knows: the next is first told all counts as they are.
    """

    def __init__(self, link: Link, prefix: str, process: str) -> None:
        self._link = link
        self._prefix = prefix
        self._process = process
        self._enter = Script("enter")
        # Those who wait for an answer are inside already; Redis may or may not have counted them.
        self._inside = LocalOccupancy()
        self._waiting: Counter[str] = Counter()
        # By how much the count that Redis has is to be changed.
        self._changes: Counter[str] = Counter()

    async def enter(self, key: str, limit: int) -> bool:
        if not self._inside.enter(key, limit):
            return False
        if not limit:
            return True
        self._waiting[key] += 1
        try:
            signs_of_life = f"{self._prefix}process:"
            reply = await self._enter(
                self._link, [self._place(key)], self._process, limit, signs_of_life, LIFE_SIGN_S * 1000
            )
            has_room = bool(checked(reply))
        except (LinkDown, BrokerUnavailable):
            # What this process counts by itself has to do; the others are told when Redis is back.
            has_room = True
            self._change(key, +1)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        if not has_room:
            self._inside.leave(key, limit)
            self._change(key, 0)
        return has_room

    def leave(self, key: str, limit: int) -> None:
        self._inside.leave(key, limit)
        if limit:
            self._change(key, -1)

    def _change(self, key: str, by: int) -> None:
        if not self._changes:
            asyncio.get_running_loop().call_soon(self.tell)
        self._changes[key] += by

    def tell(self) -> None:
        """Tell Redis what has changed, if it can be told now; else that is for `tell_all` to do."""
        wire = self._link.wire
        if wire is None:
            return
        changes, self._changes = self._changes, Counter()
        for key, by in changes.items():
            if key not in self._inside.counts:
                told = wire.call("HDEL", self._place(key), self._process)
            elif by:
                told = wire.call("HINCRBY", self._place(key), self._process, by)
            else:
                continue
            told.add_done_callback(partial(self._on_told, key, by))

    def _on_told(self, key: str, by: int, told: asyncio.Future[Any]) -> None:
        if not told.cancelled() and (told.exception() or isinstance(told.result(), hiredis.ReplyError)):
            self._changes[key] += by  # for the next time

    async def tell_all(self, wire: Wire) -> None:
        """Tell a new connection how things are, before anybody else may use it."""
        counts = dict.fromkeys(self._changes, 0)  # also of those that nobody is in any more
        counts |= {key: count - self._waiting[key] for key, count in self._inside.counts.items()}
        self._changes.clear()
        try:
            await self._tell_counts(wire, list(counts.items()))
        except BaseException:
            self._changes.update(dict.fromkeys(counts, 0))  # the connection after this one begins anew
            raise

    async def _tell_counts(self, wire: Wire, counts: list[tuple[str, int]]) -> None:
        for start in range(0, len(counts), SLICE):
            calls, replies = counts[start : start + SLICE], []
            for key, count in calls:
                if count:
                    replies.append(wire.call("HSET", self._place(key), self._process, count))
                    wire.call("EXPIRE", self._place(key), KEPT_S)
                else:
                    replies.append(wire.call("HDEL", self._place(key), self._process))
            for (key, count), reply in zip(calls, await asyncio.gather(*replies), strict=True):
                if isinstance(reply, hiredis.ReplyError):  # no memory for a count, but for its removal
                    wire.call("HDEL", self._place(key), self._process)
                    self._changes[key] += count

    async def keep(self) -> None:
        """Keep what is still counted."""
        wire = self._link.wire
        if wire is not None:  # otherwise the next one will hear it all
            for key in self._inside.counts:
                wire.call("EXPIRE", self._place(key), KEPT_S)

    def _place(self, key: str) -> str:
        return f"{self._prefix}inside:{key}"
