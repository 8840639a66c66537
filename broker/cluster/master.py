"""One master of the cluster: the connections to it, its clock, and the partitions that it has."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import hiredis

from broker.clock import RedisClock
from broker.cluster.partition import Partition
from broker.endpoint import Endpoint
from broker.link import Link
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

# Signs of life are renewed, and partitions where nothing is present are looked at, once in so many looks.
LOOKS_IN_ROUND = 4


class Master:
    """Keeps a connection for commands, and measures the clock by it."""

    def __init__(
        self,
        endpoint: Endpoint,
        address: Address,
        check: Callable[[RespConnection], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        """`check` raises Refused for a Redis that cannot be used."""
        self.address = address
        self.clock = RedisClock(metrics)
        self.link = Link(endpoint.at(address), "commands", self._prepare, metrics)
        self.partitions: dict[int, Partition] = {}
        self._check = check
        self._looks = 0
        # Since when it has no partition.
        self.left_at_s: float | None = None

    def open(self) -> None:
        self.link.open()

    async def close(self) -> None:
        await self.link.close()

    async def _prepare(self, connection: RespConnection) -> None:
        await self._check(connection)
        for _ in range(5):
            sent_at_s = time.monotonic()
            self.clock.measure(sent_at_s, await connection.checked_call("TIME"))
        await asyncio.gather(*(each.prepare(connection) for each in self.partitions.values()))

    async def look(self) -> None:
        """Measure the clock, and see to the partitions; to be repeated each second."""
        connection = self.link.connection
        if connection is None:
            return
        self._looks += 1
        partitions = list(self.partitions.values())
        turn = [each for each in partitions if (each.number + self._looks) % LOOKS_IN_ROUND == 0]
        for each in partitions:
            each.counters.send_changes()
        busy = {each for each in partitions if not each.presence.is_idle}
        # All of it goes out in one write.
        await asyncio.gather(
            self._measure(connection),
            *(each.look() for each in turn),
            *(each.presence.look() for each in busy.union(turn)),
        )

    async def _measure(self, connection: RespConnection) -> None:
        sent_at_s = time.monotonic()
        try:
            instant = await connection.call("TIME")
        except LinkDown:
            return
        if not isinstance(instant, hiredis.ReplyError):
            self.clock.measure(sent_at_s, instant)
