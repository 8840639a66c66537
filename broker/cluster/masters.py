"""All masters of the cluster: who has which partition now, found anew wherever that may have changed."""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from broker.clock import RedisClock
from broker.cluster.master import Master
from broker.cluster.partition import Finder, Partition
from broker.cluster.topology import View, ask, ask_anew
from broker.endpoint import Endpoint
from broker.keys import PARTITIONS
from broker.link import COMPLAIN_EVERY_S, Refused
from broker.resp import LinkDown
from broker.sentinel import Address
from lockstep.tasks import Tasks

log = logging.getLogger(__name__)

# The map is read so often, more often while a master is away, and so long after there was a reason to.
LOOK_EVERY_S = 1.0
LOOK_EVERY_WHILE_DOWN_S = 0.2
LOOK_PAUSE_S = 0.1
# A view that is older than the newest one known is believed when no newer one has been seen for this long.
EPOCH_KEPT_S = 5.0
# A master without a partition is left so long after it was needed: what it was asked can be answered.
LEFT_AFTER_S = 5.0


class Masters(Finder):
    """Finds the masters by any of the nodes, and keeps a connection to each.

    A node that says MOVED is believed at once. The map is read from the masters in turn; where they differ,
    that of the highest epoch counts: a master that is cut off from the others does not know of its failover.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        make_master: Callable[[Address], Master],
        on_moved: Callable[[Partition, Master], None],
    ) -> None:
        """`on_moved` is called with a partition and the master that it is found at, the first time too."""
        self._endpoint = endpoint
        self._make_master = make_master
        self._on_moved = on_moved
        self._partitions: list[Partition] = []
        # Who has each partition until the first map is read. It is never connected to, so that what is asked
        # of it fails as where Redis is away.
        self._nobody = make_master(endpoint.nodes[0])
        self._of_partition = [self._nobody] * PARTITIONS
        self._all: dict[Address, Master] = {}
        # Nodes of the last view, to be asked where no master answers.
        self._nodes: frozenset[Address] = frozenset(endpoint.nodes)
        self._epoch = 0
        self._epoch_seen_at_s = 0.0
        self._has_started = False
        self._has_reason = asyncio.Event()
        self._complained_at_s = float("-inf")
        self._tasks = Tasks()

    async def start(self, partitions: list[Partition]) -> None:
        """Return when there is a connection to each partition's master. Raises Refused."""
        self._partitions = partitions
        while (view := await self._ask_nodes(is_first=True)) is None:
            await asyncio.sleep(LOOK_EVERY_WHILE_DOWN_S)
        self._adopt(view)
        self._tasks.spawn(self._watch())
        while missing := [each for each in self.with_partitions() if not each.link.is_up]:
            for each in missing:
                if each.link.refusal is not None:
                    raise Refused(each.link.refusal)
            await asyncio.sleep(LOOK_PAUSE_S)
        self._has_started = True

    async def close(self) -> None:
        await self._tasks.close()
        await asyncio.gather(*(each.close() for each in self._all.values()))

    # --- who has what ----------------------------------------------------------------------------

    def master_of(self, partition: int) -> Master:
        return self._of_partition[partition]

    def clock_of(self, partition: int) -> RedisClock | None:
        """That of its master; None as long as none is known."""
        master = self._of_partition[partition]
        return None if master is self._nobody else master.clock

    def clocks(self) -> dict[Address, RedisClock]:
        """Those of all masters that have partitions."""
        return {each.address: each.clock for each in self.with_partitions()}

    def with_partitions(self) -> list[Master]:
        """The masters that have any."""
        return [each for each in self._all.values() if each.partitions]

    def at(self, address: Address) -> Master:
        master = self._at(address)
        master.left_at_s = None  # where a slot is on its way to it, it has no partition yet and is needed
        return master

    def moved(self, partition: int, address: Address) -> None:
        self._move(partition, address)
        self.look_soon()

    def look_soon(self) -> None:
        self._has_reason.set()

    def _at(self, address: Address) -> Master:
        master = self._all.get(address)
        if master is None:
            master = self._all[address] = self._make_master(address)
            master.open(is_start=lambda: not self._has_started)
        return master

    def _move(self, number: int, address: Address) -> None:
        master, partition = self._at(address), self._partitions[number]
        before = self._of_partition[number]
        if before is master:
            return
        if before is not self._nobody:
            del before.partitions[number]
            log.info("partition %d is at %s:%d now", number, *address)
        master.partitions[number] = partition
        self._of_partition[number] = master
        self._on_moved(partition, master)

    # --- the map ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            is_up = all(each.link.is_up for each in self.with_partitions())
            pause_s = LOOK_EVERY_S * random.uniform(0.8, 1.0) if is_up else LOOK_EVERY_WHILE_DOWN_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._has_reason.wait()
                await asyncio.sleep(LOOK_PAUSE_S)
            except TimeoutError:
                pass
            self._has_reason.clear()
            try:
                view = await self._ask_a_master() or await self._ask_nodes()
                if view is not None and self._is_current(view):
                    self._adopt(view)
                self._leave_others()
            except Exception:
                # This is a bug, but a map that is never read again would be worse.
                log.exception("the map of the cluster could not be read; this is tried again")

    async def _ask_a_master(self) -> View | None:
        """Of a master that has a connection; None where none has, or it does not answer."""
        up = [each for each in self.with_partitions() if each.link.connection is not None]
        if not up:
            return None
        master = random.choice(up)
        connection = master.link.connection
        assert connection is not None
        try:
            return await ask(connection, master.address)
        except (OSError, LinkDown, Refused) as error:
            log.debug("%s:%d did not say who has what: %s", *master.address, error)
            return None

    async def _ask_nodes(self, is_first: bool = False) -> View | None:
        """The newest view of all nodes that are known. The first time it raises Refused where that lasts."""
        nodes = sorted(self._nodes | set(self._endpoint.nodes))
        answers = await asyncio.gather(
            *(ask_anew(self._endpoint, node) for node in nodes), return_exceptions=True
        )
        views = [each for each in answers if isinstance(each, View)]
        refusals = [each for each in answers if isinstance(each, Refused)]
        if is_first and refusals and not views:
            raise refusals[0]
        view = max(views, key=lambda each: (each.epoch, each.masters.count(None) == 0), default=None)
        if view is None:
            others = [str(each) or "timed out" for each in answers if isinstance(each, Exception)]
            self._complain(others[0])
        elif is_first and None in view.masters:
            lacking = f"{view.masters.count(None)} of the {len(view.masters)} partitions"
            self._complain(f"nobody has the slots of {lacking}: redis-cli --cluster fix HOST:PORT")
            return None
        return view

    def _complain(self, why: str) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_at_s >= COMPLAIN_EVERY_S:
            self._complained_at_s = now_s
            log.warning("waiting for the Redis Cluster at %s: %s", self._endpoint.shown, why)

    def _is_current(self, view: View) -> bool:
        now_s = time.monotonic()
        if view.epoch < self._epoch and now_s - self._epoch_seen_at_s < EPOCH_KEPT_S:
            return False
        self._epoch, self._epoch_seen_at_s = view.epoch, now_s
        return True

    def _adopt(self, view: View) -> None:
        self._nodes = view.nodes
        for number, address in enumerate(view.masters):
            if address is not None:  # else it stays with whom it was: nobody else would answer either
                self._move(number, address)

    def _leave_others(self) -> None:
        now_s = time.monotonic()
        for address, master in list(self._all.items()):
            if master.partitions:
                master.left_at_s = None
            elif master.left_at_s is None:
                master.left_at_s = now_s
            elif now_s - master.left_at_s > LEFT_AFTER_S:
                del self._all[address]
                self._tasks.spawn(master.close())
