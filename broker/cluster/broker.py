"""The broker of a Redis Cluster: each session in its partition, all partitions as one."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Sequence
from functools import partial

from broker import rights
from broker.checks import require_usable
from broker.cluster import merged
from broker.cluster.clock import ClusterClock
from broker.cluster.hearing import Hearing
from broker.cluster.master import Master
from broker.cluster.masters import Masters
from broker.cluster.partition import Partition
from broker.counters import OCCUPANCY_KEPT_S
from broker.endpoint import parse
from broker.keys import PARTITIONS, Keys, partition_of, partition_of_charge
from broker.link import Refused
from broker.marks import Agreement, Changes
from broker.presence import KEPT_S as PRESENCE_KEPT_S
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from broker.subscriber import Subscriber
from lockstep.contract import (
    Attendance,
    Broker,
    Charge,
    Commit,
    History,
    IdempotencyRecord,
    Listener,
    Outcome,
)
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks, all_ended

log = logging.getLogger(__name__)

# Between two attempts to start.
WAIT_S = 0.5


class ClusterBroker(Broker):
    """Asks for each session in its partition, and puts together what concerns all of them."""

    agenda_turns = 4

    def __init__(self, url: str, prefix: str, routing: str, allow_eviction: bool, metrics: Metrics) -> None:
        self._endpoint = parse(url)
        self._allow_eviction = allow_eviction
        self._metrics = metrics
        self._process = process = str(uuid.uuid4())
        self._listener: Listener | None = None
        if "{" in prefix:
            raise ValueError("broker: Redis Cluster gives { a meaning in names: --prefix must have none")
        self._hearing = Hearing(routing, prefix, process)
        self._masters = Masters(self._endpoint, self._make_master, self._on_moved)
        self._prefix = prefix
        self._routing = routing
        self._has_rights: set[Address] = set()
        self._partitions = [
            Partition(
                number,
                self._masters,
                prefix,
                routing,
                process,
                self._on_gap,
                self._agreements if number == 0 else lambda keys, changes: [],
            )
            for number in range(PARTITIONS)
        ]
        self._clock = ClusterClock(self._masters.clock_of, self._masters.clocks, metrics)
        self._tasks = Tasks()
        self._is_started = False
        metrics.watch(metrics.probe_age, self._probe_age_s)
        metrics.watch(metrics.unserved_partitions, lambda: sum(len(each.partitions) for each in self._away()))

    def _agreements(self, keys: Keys, changes: Changes) -> list[Agreement]:
        routing = "other processes route %s: --routing must be the same"
        partitions = f"sessions there are in %s partitions, not in {PARTITIONS}: choose another --prefix"
        return [
            Agreement(keys.routing, self._routing, changes, routing),
            Agreement(keys.partitions, str(PARTITIONS), changes, partitions),
        ]

    def _of(self, session_id: str) -> Partition:
        return self._partitions[partition_of(session_id)]

    def _make_master(self, address: Address) -> Master:
        return Master(
            self._endpoint,
            address,
            partial(self._check, address),
            self._hearing.on_gap,
            lambda: self._masters.look_soon(),
            self._metrics,
        )

    async def _check(self, address: Address, connection: RespConnection) -> None:
        """Raises Refused where this node cannot be used. Each has users and rights of its own."""
        await require_usable(connection, self._allow_eviction, is_cluster=True)
        if address not in self._has_rights:
            user = self._endpoint.username or "default"
            what = connection.call, user, self._prefix, self._routing
            if (complaint := await rights.missing(*what, is_cluster=True)) is not None:
                raise Refused(complaint)
            self._has_rights.add(address)

    async def _until_there_is_room(self) -> None:
        """Return when it is known that nothing is in the way. Raises Refused where something is."""
        while True:
            try:
                await self._partitions[0].agree()
                await self._require_room()
                return
            except LinkDown as down:
                log.warning("waiting for the Redis Cluster: %s", down)
                await asyncio.sleep(WAIT_S)

    async def _require_room(self) -> None:
        """Raises Refused where another program's keys are in the way, and LinkDown."""
        found = await asyncio.gather(
            *(rights.in_the_way(each.link.call, each.keys) for each in self._partitions)
        )
        if complaint := next((each for each in found if each is not None), None):
            raise Refused(complaint)

    def _on_moved(self, partition: Partition, master: Master) -> None:
        """The partition is to be looked for there: bring that master up to date, if its link is up."""
        # One that is being connected to may have prepared its others already: the next look does it then.
        partition.is_prepared = False
        if (connection := master.link.connection) is not None:
            self._tasks.spawn(partition.prepare_later(connection))
        self._hearing.on_moved(partition.number, master.subscriber)

    def _on_gap(self, partition: int) -> None:
        if self._listener is not None:
            self._listener.on_gap(lambda session_id: partition_of(session_id) == partition)

    # --- bus -------------------------------------------------------------------------------------

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._hearing.begin(listener)
        try:
            await self._masters.start(self._partitions)
            await self._until_there_is_room()
            await self._hearing.until_heard(self._subscribers)
        except Refused as error:
            raise ValueError(f"broker: {error}") from None
        self._is_started = True
        self._tasks.on_beats(self._look, "the look at the cluster")
        self._tasks.repeat(self._keep_counts, lambda: OCCUPANCY_KEPT_S / 4, "counting WebSockets in Redis")
        self._tasks.repeat(self._keep_presence, lambda: PRESENCE_KEPT_S / 4, "keeping who is present")

    async def close(self) -> None:
        await self._tasks.close()
        await asyncio.gather(*(each.close() for each in self._partitions))
        self._hearing.close()
        await self._masters.close()

    def _subscribers(self) -> list[Subscriber]:
        return [each.subscriber for each in self._masters.with_partitions()]

    def _probe_age_s(self) -> float:
        return max((each.probe.age_s for each in self._masters.with_partitions()), default=0.0)

    async def _look(self) -> None:
        self._hearing.look(self._subscribers())
        self._clock.look()
        await all_ended(each.look() for each in self._masters.with_partitions())

    async def _keep_counts(self) -> None:
        for each in self._partitions:
            await each.counters.keep()

    async def _keep_presence(self) -> None:
        for each in self._partitions:
            await each.presence.keep()

    def not_ready(self) -> list[str]:
        if not (masters := self._masters.with_partitions()):
            return ["the masters of the Redis Cluster are not known yet"]
        up = [each for each in masters if each.link.is_up] if self._is_started else []
        return [why for each in up or masters for why in each.probe.not_ready()]

    def not_served(self) -> list[str]:
        return [
            f"partitions {', '.join(map(str, sorted(each.partitions)))}: {'; '.join(each.probe.not_ready())}"
            for each in self._away()
        ]

    def _away(self) -> list[Master]:
        return [each for each in self._masters.with_partitions() if not each.link.is_up]

    async def hear(self, session_id: str) -> bool:
        return await self._hearing.hear(session_id)

    def unhear(self, session_id: str) -> None:
        self._hearing.unhear(session_id)

    async def publish(
        self,
        session_id: str,
        message: bytes,
        record: IdempotencyRecord | None = None,
        *,
        is_notice: bool = False,
    ) -> bool:
        return await self._of(session_id).store.publish(session_id, message, record, is_notice=is_notice)

    def keeps_together(self, session_id: str, key: str) -> bool:
        return partition_of(session_id) == partition_of(key)

    # --- store -----------------------------------------------------------------------------------

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        if len(session_ids) == 1:
            return await self._of(session_ids[0]).store.load(session_ids, at_most_bytes)
        return await merged.load(self._of, session_ids, at_most_bytes)

    async def recent(
        self, session_id: str, max_events: int, max_bytes: int
    ) -> tuple[bytes | None, list[bytes]]:
        return await self._of(session_id).store.recent(session_id, max_events, max_bytes)

    async def recall(self, session_id: str, *keys: str) -> list[bytes | None]:
        return await self._of(session_id).store.recall(session_id, *keys)

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        found = await asyncio.gather(*(self._of(each).store.beginnings([each]) for each in session_ids))
        return [beginning for (beginning,) in found]

    async def commit(self, commit: Commit) -> Outcome:
        return await self._of(commit.session_id).store.commit(commit)

    async def delete(
        self, session_id: str, expected: bytes | None = None, record: IdempotencyRecord | None = None
    ) -> bool:
        return await self._of(session_id).store.delete(session_id, expected, record)

    async def history(self, session_id: str, since: int, max_bytes: int) -> History | None:
        return await self._of(session_id).store.history(session_id, since, max_bytes)

    # --- agenda ----------------------------------------------------------------------------------

    async def page(self, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        return await merged.page(self._partitions, after, limit)

    async def due(self, ahead_ms: int, limit: int, turn: int | None = None) -> list[tuple[int, str]]:
        asked = [each.store.due(ahead_ms, limit) for each in self._partitions_of(turn)]
        found = await merged.of_those_that_answer(asked)
        return sorted(entry for entries in found for entry in entries)[:limit]

    def _partitions_of(self, turn: int | None) -> list[Partition]:
        return self._partitions if turn is None else self._partitions[turn :: self.agenda_turns]

    async def forget_deadline(self, session_id: str) -> None:
        await self._of(session_id).store.forget_deadline(session_id)

    async def lapse(self, limit: int, turn: int | None = None) -> int:
        partitions = self._partitions_of(turn)
        found = await merged.of_those_that_answer([_lapsed(each, limit) for each in partitions])
        ended, left = [], limit
        for partition, members in found:
            if some := members[:left]:
                ended.append(partition.store.end_lapsed(some))
                left -= len(some)
        return sum(await merged.of_those_that_answer(ended))

    # --- counters --------------------------------------------------------------------------------

    def spend(self, charges: Sequence[Charge]) -> Awaitable[list[tuple[int, int]]]:
        numbers = {partition_of_charge(charge) for charge in charges}
        if len(numbers) == 1:
            return self._partitions[numbers.pop()].counters.spend(charges)
        return self._spend_one_by_one(charges)

    async def _spend_one_by_one(self, charges: Sequence[Charge]) -> list[tuple[int, int]]:
        counts: list[tuple[int, int]] = []
        for charge in charges:
            counts += await self._partitions[partition_of_charge(charge)].counters.spend([charge])
            if counts[-1][0] > charge.limit:
                break
        return counts

    async def enter(self, key: str, limit: int) -> bool:
        return await self._partitions[partition_of(key)].counters.enter(key, limit)

    def leave(self, key: str, limit: int) -> None:
        self._partitions[partition_of(key)].counters.leave(key, limit)

    # --- presence --------------------------------------------------------------------------------

    def attend(self, session_id: str, subject: str, attendance: Attendance | None) -> None:
        self._of(session_id).presence.attend(session_id, subject, attendance)

    def forget_session(self, session_id: str) -> None:
        self._of(session_id).presence.forget_session(session_id)

    async def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        return await self._of(session_id).presence.present(session_id)

    # --- clock -----------------------------------------------------------------------------------

    def now_ms(self, session_id: str | None = None) -> int:
        return self._clock.now_ms(session_id)

    def shown_us(self) -> int:
        return self._clock.shown_us()

    def error_ms(self) -> float:
        return self._clock.error_ms()


async def _lapsed(partition: Partition, limit: int) -> tuple[Partition, list[bytes]]:
    return partition, await partition.store.lapsed(limit)
