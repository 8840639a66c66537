"""One master of the cluster: the connections to it, its clock, and the partitions that it has."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from broker.clock import RedisClock
from broker.cluster.partition import Partition
from broker.endpoint import Endpoint
from broker.link import Link, never
from broker.probe import Probe
from broker.resp import RespConnection
from broker.sentinel import Address
from broker.subscriber import Subscriber
from broker.topic import Topic
from lockstep.errors import BrokerUnavailable
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

# Signs of life are renewed, and partitions where nothing is present are looked at, once in so many looks.
LOOKS_IN_ROUND = 4


class Master:
    """Keeps a connection for commands and one that hears, and sees by them how it is."""

    def __init__(
        self,
        endpoint: Endpoint,
        address: Address,
        check: Callable[[RespConnection], Awaitable[None]],
        on_gap: Callable[[Collection[Topic]], None],
        on_moved: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        """`check` raises Refused for a Redis that cannot be used; the others are a ``Subscriber``'s."""
        endpoint = endpoint.at(address)
        self.address = address
        self.clock = RedisClock(metrics)
        self.link = Link(endpoint, "commands", self._prepare, metrics)
        self.subscriber = Subscriber(endpoint, metrics, on_gap, on_moved)
        self.probe = Probe(self.link, self.subscriber, self.clock, f" at {endpoint.shown}")
        self.partitions: dict[int, Partition] = {}
        self._check = check
        self._is_heard = False
        self._is_start = never
        self._looks = 0
        # Since when it has no partition.
        self.left_at_s: float | None = None

    def open(self, is_start: Callable[[], bool] = never) -> None:
        """Begin to connect, as ``Link.open`` does; to be heard it is asked once it is known to be of use."""
        self._is_start = is_start
        self.link.open(is_start)

    async def close(self) -> None:
        await self.link.close()  # which would open the other one
        await self.subscriber.close()

    async def _prepare(self, connection: RespConnection) -> None:
        await self._check(connection)
        if not self._is_heard:
            self._is_heard = True
            self.subscriber.open(self._is_start)
        for _ in range(5):
            sent_at_s = time.monotonic()
            self.clock.measure(sent_at_s, await connection.checked_call("TIME"))
        await asyncio.gather(*(each.prepare(connection) for each in self.partitions.values()))

    async def look(self) -> None:
        """See how the master is, and to the partitions; to be repeated each second."""
        if self.link.connection is None:
            return
        self._looks += 1
        partitions = list(self.partitions.values())
        turn = [
            each
            for each in partitions
            if not each.is_prepared or (each.number + self._looks) % LOOKS_IN_ROUND == 0
        ]
        for each in partitions:
            each.counters.send_changes()
            each.look_at_move()
        busy = {each for each in partitions if not each.presence.is_idle}
        # All of it goes out in one write.
        await asyncio.gather(
            self._probe(),
            *(each.look() for each in turn),
            *(each.presence.look() for each in busy.union(turn)),
        )

    async def _probe(self) -> None:
        # Only that, since the connection complains itself.
        with contextlib.suppress(BrokerUnavailable):
            await self.probe.look()
