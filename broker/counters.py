"""What all processes count together in Redis: requests in windows of time, and connections at once."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import hiredis

from broker.calls import at_most_once, checked
from broker.keys import Keys
from broker.link import CommandLink
from broker.resp import LinkDown, RespConnection
from broker.script import Script
from lockstep.contract import Charge, Counters
from lockstep.errors import BrokerUnavailable
from lockstep.occupancy import Occupancy

# The counts of a process that has died, and of a key that nothing asks about again, are kept this long.
OCCUPANCY_KEPT_S = 86_400
# Keys in one round trip when counts are sent as they are.
SLICE = 500
# A process counts as alive this long after its death, and holds what its clients had of a limit.
LIFE_SIGN_S = 15


class RedisCounters(Counters):
    """Keeps a number in Redis for each window, and for each limited thing how many every process let in.

    Redis decides whether one more is let in, and counts it in the same step; what has left is sent once per
    turn of the loop, however many they are. So the count in Redis is exact as long as the connection lives.
    Nobody knows what a lost connection has carried: the next one is first sent all counts as they are. Where
    it is not known of one key what Redis has, it is sent the count as it is, too, never a change of it.
    """

    def __init__(self, link: CommandLink, keys: Keys, process: str) -> None:
        self._link = link
        self._keys = keys
        self._process = process
        self._spend = Script("spend")
        self._enter = Script("enter", LIFE_SIGN_MS=LIFE_SIGN_S * 1000, OCCUPANCY_KEPT_S=OCCUPANCY_KEPT_S)
        # Includes those that wait for an answer; Redis may or may not have counted these.
        self._occupancy = Occupancy()
        self._waiting: Counter[str] = Counter()
        # The others that have counts, dead ones perhaps among them: a script is told of all keys it looks at.
        self._others: set[bytes] = set()
        # By how much the count that Redis has is to be changed.
        self._changes: Counter[str] = Counter()
        # The keys of which nobody knows what count Redis has, or will have when what is on its way is done.
        # In the order of their turns: what Redis refuses comes up again after the others.
        self._unsure: dict[str, None] = {}

    def spend(self, charges: Sequence[Charge]) -> Awaitable[list[tuple[int, int]]]:
        keys = [self._keys.window(charge) for charge in charges]
        limits = [number for charge in charges for number in (charge.limit, charge.window_ms)]
        return self._counts(self._spend(self._link, keys, *limits))

    async def _counts(self, called: Awaitable[Any]) -> list[tuple[int, int]]:
        reply = await at_most_once(called)
        return list(zip(reply[::2], reply[1::2], strict=True))

    async def enter(self, key: str, limit: int) -> bool:
        if not self._occupancy.enter(key, limit):
            return False
        if not limit:
            return True
        self._waiting[key] += 1
        try:
            has_room = await self._has_room(key, limit)
        except (LinkDown, BrokerUnavailable):
            # What this process counts by itself has to do; the others learn of it when Redis is back.
            has_room = True
            self._change(key, +1)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                if key in self._unsure:
                    self._change(key, 0)
        if not has_room:
            self._occupancy.leave(key, limit)
            self._change(key, 0)
        return has_room

    async def _has_room(self, key: str, limit: int) -> bool:
        """Redis's decision. Raises LinkDown or BrokerUnavailable."""
        others = set(self._others)
        while True:
            named = sorted(others)
            signs = [self._keys.life_sign(process.decode("utf-8", "replace")) for process in named]
            keys = [self._keys.occupancy(key), *signs]
            answer, *processes = checked(await self._enter(self._link, keys, self._process, limit, *named))
            if answer >= 0:
                self._others.difference_update(processes)
                return bool(answer)
            others.update(processes)
            others.discard(self._process.encode())
            self._others |= others

    def leave(self, key: str, limit: int) -> None:
        self._occupancy.leave(key, limit)
        if limit:
            self._change(key, -1)

    def _change(self, key: str, by: int) -> None:
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._send_changes)
        self._changes[key] += by

    def send_changes(self) -> None:
        """Send Redis what it may lack, if it can be sent now; otherwise `send_all` will. To be repeated."""
        self._changes.update(dict.fromkeys(islice(self._unsure, SLICE), 0))
        self._send_changes()

    def _send_changes(self) -> None:
        connection = self._link.connection
        if connection is None:
            return
        changes, self._changes = self._changes, Counter()
        for key, by in changes.items():
            # Who waits for an answer may be counted by then, or not: that key's turn comes afterwards.
            if key in self._unsure and not self._waiting[key]:
                self._send_count(connection, key)
                continue
            if key not in self._occupancy.counts:
                sent = connection.call("HDEL", self._keys.occupancy(key), self._process)
            elif by:
                sent = connection.call("HINCRBY", self._keys.occupancy(key), self._process, by)
            else:
                continue
            sent.add_done_callback(partial(self._on_answered, key))

    def _send_count(self, connection: RespConnection, key: str) -> "asyncio.Future[Any]":
        """Send the count as it is, without those that wait for an answer. Its reply may be an error."""
        del self._changes[key]
        count = self._occupancy.counts.get(key, 0) - self._waiting[key]
        if not self._waiting[key]:
            self._unsure.pop(key, None)
        if count:
            sent = connection.call("HSET", self._keys.occupancy(key), self._process, count)
            connection.call("EXPIRE", self._keys.occupancy(key), OCCUPANCY_KEPT_S)
        else:
            sent = connection.call("HDEL", self._keys.occupancy(key), self._process)
        sent.add_done_callback(partial(self._on_answered, key))
        return sent

    def _on_answered(self, key: str, sent: asyncio.Future[Any]) -> None:
        if sent.cancelled() or sent.exception() or isinstance(sent.result(), hiredis.ReplyError):
            self._unsure[key] = None  # its count is sent again

    async def send_all(self, connection: RespConnection) -> None:
        """Send a connection all counts as they are. Others may use it already, or another one."""
        self._unsure.update(dict.fromkeys((*self._occupancy.counts, *self._changes)))
        keys = list(self._unsure)
        for start in range(0, len(keys), SLICE):
            some = keys[start : start + SLICE]
            replies = await asyncio.gather(*(self._send_count(connection, key) for key in some))
            for key, reply in zip(some, replies, strict=True):
                if isinstance(reply, hiredis.ReplyError):  # no memory for a count, but for its removal
                    connection.call("HDEL", self._keys.occupancy(key), self._process)
                    self._unsure[key] = None  # a count may have been sent meanwhile

    async def keep(self) -> None:
        """Let Redis keep what is still counted; to be repeated."""
        # Those that have counts are found again; who has ended is not asked about for ever.
        self._others.clear()
        connection = self._link.connection
        if connection is not None:  # otherwise the next one is sent it all
            for key in self._occupancy.counts:
                connection.call("EXPIRE", self._keys.occupancy(key), OCCUPANCY_KEPT_S)
