"""One partition: a Redis of its own to those above, wherever in the cluster it is."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from broker.clock import RedisClock, TimedByRedis
from broker.cluster.topology import redirection_of
from broker.counters import RedisCounters
from broker.keys import Channels, Keys
from broker.link import CommandLink, Link, Refused, passing_error
from broker.marks import Agreement, Changes, LifeSign
from broker.presence import RedisPresence
from broker.resp import Argument, LinkDown, RespConnection
from broker.sentinel import Address
from broker.store import RedisStore

log = logging.getLogger(__name__)

# What a cluster refuses while a slot is on its way, or a master is replaced, is tried again for this long.
RETRIED_FOR_S = 2.0
RETRY_MIN_S = 0.02
RETRY_MAX_S = 0.1
UNSETTLED = ("TRYAGAIN", "CLUSTERDOWN")
# What says that a partition is not, or not wholly, where it was looked for.
ELSEWHERE = ("MOVED ", "ASK ", *UNSETTLED)


class Master(Protocol):
    """Who has a partition."""

    @property
    def address(self) -> Address: ...

    @property
    def link(self) -> Link: ...

    @property
    def clock(self) -> RedisClock: ...


class Finder(Protocol):
    """Knows who has which partition."""

    def master_of(self, partition: int) -> Master: ...

    def moved(self, partition: int, address: Address) -> None:
        """Somebody was told that it is at this address."""

    def at(self, address: Address) -> Master:
        """Who is at this address, whatever it has: it is about to be asked."""

    def look_soon(self) -> None:
        """What is known of who has what may be out of date."""


class PartitionLink(CommandLink):
    """Leads to whoever has the partition: what a Link is to one Redis.

    A command that the cluster refuses did nothing, so that it can be sent again, to another node too.
    """

    def __init__(self, partition: int, finder: Finder) -> None:
        self._partition = partition
        self._finder = finder
        # Something was done where the slot is on its way to, and what that published is heard nowhere yet.
        self.has_asked_elsewhere = False
        # Whose reply was the last one: not always who has the partition.
        self._answered_by: Master | None = None

    @property
    def answered_by(self) -> Master:
        """Who gave the reply that a call has just returned; to be asked before anything else is awaited."""
        return self._answered_by or self.master

    @property
    def master(self) -> Master:
        return self._finder.master_of(self._partition)

    @property
    def is_up(self) -> bool:
        return self.master.link.is_up

    @property
    def connection(self) -> RespConnection | None:
        return self.master.link.connection

    def call(self, *arguments: Argument) -> Coroutine[Any, Any, Any]:
        master = self.master
        return self._reply(arguments, master, master.link.call(*arguments))

    async def _reply(
        self, arguments: tuple[Argument, ...], master: Master, called: Coroutine[Any, Any, Any]
    ) -> Any:
        until_s, pause_s = 0.0, RETRY_MIN_S
        while True:
            try:
                reply = await called
                redirection = redirection_of(reply, master.address)
                if redirection is None:
                    self._answered_by = master
                    return reply
                if redirection.is_once:
                    there = self._finder.at(redirection.address)
                    reply = await self._ask(there.link, arguments)
                    if redirection_of(reply, redirection.address) is None:
                        self._answered_by = there
                        return reply
                elif self.master is master:  # else it is known to be elsewhere since, perhaps not there
                    self._finder.moved(self._partition, redirection.address)
                why = str(reply)
            except LinkDown as down:
                self._finder.look_soon()
                why = str(down)
                if down.sent or (not why.startswith(UNSETTLED) and self.master is master):
                    raise
            now_s, is_first = time.monotonic(), not until_s
            until_s = until_s or now_s + RETRIED_FOR_S
            if now_s > until_s:
                raise LinkDown(sent=False, why=why)
            # Also where it was sent on before: for a moment two nodes may lead to each other.
            if self.master is master or not is_first:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            master = self.master
            called = master.link.call(*arguments)

    async def _ask(self, link: Link, arguments: tuple[Argument, ...]) -> Any:
        connection = await link.connected()
        self.has_asked_elsewhere = True
        # Both go out in one piece, with nothing in between.
        connection.call("ASKING")
        reply = await connection.call(*arguments)
        if why := passing_error(reply):
            raise LinkDown(sent=False, why=why)
        return reply


class PartitionClock(TimedByRedis):
    """The clock of whoever has the partition."""

    def __init__(self, link: PartitionLink) -> None:
        self._link = link

    def now_ms(self, session_id: str | None = None) -> int:
        return self._link.master.clock.now_ms()

    def measure(self, sent_at_s: float, reply: Any) -> None:
        # While the slot is on its way another one may have answered, whose clock is another.
        self._link.answered_by.clock.measure(sent_at_s, reply)


class Partition:
    """What is kept in one partition, and what this process says there of itself."""

    def __init__(
        self,
        number: int,
        finder: Finder,
        prefix: str,
        routing: str,
        process: str,
        on_gap: Callable[[int], None],
        agreements: Callable[[Keys, Changes], list[Agreement]] = lambda keys, changes: [],
    ) -> None:
        """`on_gap` is called with the number where what clients have may not be what is stored.

        `agreements` gives what is recorded here for all processes.
        """
        self.number = number
        self.link = PartitionLink(number, finder)
        self.keys = Keys(prefix, number)
        self.channels = Channels(routing, prefix, number)
        self.store = RedisStore(self.link, self.keys, self.channels, PartitionClock(self.link))
        self.counters = RedisCounters(self.link, self.keys, process)
        self.presence = RedisPresence(self.link, self.keys, self.channels, process)
        self._finder = finder
        self._on_gap = on_gap
        changes = Changes(finder.look_soon)
        self._life_sign = LifeSign(self.keys.life_sign(process), changes, self._tell_gap)
        self._agreements = agreements(self.keys, changes)
        self.is_prepared = False

    def _tell_gap(self) -> None:
        self._on_gap(self.number)

    async def prepare(self, connection: RespConnection) -> None:
        """Bring a new connection to its master up to date with this process; also one that it has moved to.

        Raises LinkDown where the connection is lost, and Refused where something else was agreed on. While
        the slot is on its way the next look does it.
        """
        self.is_prepared = False
        master = self.link.master
        try:
            for agreement in self._agreements:
                await agreement.record(connection.call)
            self._note(
                await self._life_sign.note(connection.call, await connection.call(*self._life_sign.renewal))
            )
            await self._life_sign.prepare(connection.call)
            await self.counters.send_all(connection)
        except LinkDown as down:
            self._finder.look_soon()
            if not str(down).startswith(ELSEWHERE):
                raise
            log.debug("partition %d is made ready later: %s", self.number, down)
            return
        self.presence.on_connection()
        self.is_prepared = self.link.master is master  # and has not moved on meanwhile

    def look_at_move(self) -> None:
        """While the slot is on its way, look for what is done at its new place; to be repeated each second.

        That it is looked for leads there again, as long as there is something of it.
        """
        if self.link.has_asked_elsewhere:
            self.link.has_asked_elsewhere = False
            self._tell_gap()

    async def agree(self) -> None:
        """See to it that what all agree on is recorded. Raises Refused or LinkDown."""
        for agreement in self._agreements:
            if not agreement.is_recorded:
                await agreement.record(self.link.call)

    async def prepare_later(self, connection: RespConnection) -> None:
        """The same where nobody waits for it: what hinders it is met at the next look."""
        try:
            await self.prepare(connection)
        except LinkDown as down:
            log.debug("partition %d is made ready later: %s", self.number, down)
        except Refused as refused:
            self.link.master.link.reset(str(refused))

    async def look(self) -> None:
        """Renew the sign of life, and see whether it was lost; to be repeated every few seconds."""
        connection = self.link.connection
        if connection is None:
            return
        if not self.is_prepared:
            await self.prepare_later(connection)
            if self.is_prepared:
                return
            # The slot may stay on its way for long, and who gives no sign of life is taken for dead.
        try:
            await self.agree()
            # By the link: where the slot is on its way, it is asked for there.
            why = await self._life_sign.note(self.link.call, await self.link.call(*self._life_sign.renewal))
        except LinkDown as down:
            log.debug("the sign of life in partition %d is put off: %s", self.number, down)
        except Refused as refused:
            self.link.master.link.reset(str(refused))
        else:
            if why:
                self._note(why)
                await self.prepare_later(connection)

    def _note(self, why: str) -> None:
        if why:
            log.warning("partition %d: %s", self.number, why)
            asyncio.get_running_loop().call_soon(self._tell_gap)

    async def close(self) -> None:
        await self.presence.close()
