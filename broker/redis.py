"""The Redis broker: any number of processes, one truth."""

import logging
import uuid
from collections.abc import Awaitable, Sequence

from broker import rights
from broker.checks import require_usable
from broker.clock import RedisClock
from broker.counters import OCCUPANCY_KEPT_S, RedisCounters
from broker.endpoint import parse
from broker.health import Health
from broker.keys import Channels, Keys
from broker.link import Link, Refused
from broker.presence import KEPT_S as PRESENCE_KEPT_S
from broker.presence import RedisPresence
from broker.probe import Probe
from broker.resp import RespConnection
from broker.sentinel import Address
from broker.store import RedisStore
from broker.subscriber import Subscriber
from broker.topic import Topic
from lockstep.contract import Attendance, Broker, Charge, Listener
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks, all_ended

log = logging.getLogger(__name__)


class RedisBroker(RedisStore, Broker):
    """A store in Redis that also hears, counts, and keeps an eye on Redis itself.

    It has two connections: one for commands, whose replies come in the order of the requests, and one
    that hears. It never waits for either longer than a timeout.
    """

    _link: Link
    _clock: RedisClock

    def __init__(self, url: str, prefix: str, routing: str, allow_eviction: bool, metrics: Metrics) -> None:
        self._endpoint = endpoint = parse(url)
        self._prefix = prefix
        self._allow_eviction = allow_eviction
        self._has_rights = False
        self._last_master: Address | None = None
        keys, channels, process = Keys(prefix), Channels(routing, prefix), str(uuid.uuid4())
        link = Link(endpoint, "commands", self._prepare, metrics)
        super().__init__(link, keys, channels, RedisClock(metrics))
        self._topic = Topic(channels, process)
        self._subscriber = Subscriber(endpoint, metrics, lambda topics: self._health.on_gap())
        self._probe = Probe(link, self._subscriber, self._clock)
        self._counters = RedisCounters(link, keys, process)
        self._presence = RedisPresence(link, keys, channels, process)
        self._health = Health(link, self._probe, self._clock, keys, routing, process)
        self._tasks = Tasks()
        metrics.watch(metrics.probe_age, lambda: self._probe.age_s)

    async def _prepare(self, connection: RespConnection) -> None:
        """Check a new connection's Redis, and bring it up to date with this process."""
        await require_usable(connection, self._allow_eviction)
        if not self._has_rights:
            await self._require_rights(connection)
        await self._health.prepare(connection)
        await self._counters.send_all(connection)
        self._presence.on_connection()
        if self._last_master not in (None, self._link.master):
            # What clients were sent came from another one.
            self._health.on_gap_soon()
        self._last_master = self._link.master

    async def _require_rights(self, connection: RespConnection) -> None:
        """Raises Refused where something could not be done later. What goes missing later is met then."""
        user = self._endpoint.username or "default"
        complaint = await rights.missing(connection.call, user, self._prefix, self._channels.mode)
        complaint = complaint or await rights.in_the_way(connection.call, self._keys)
        if complaint is not None:
            raise Refused(complaint)
        self._has_rights = True

    # --- bus -------------------------------------------------------------------------------------

    async def start(self, listener: Listener) -> None:
        self._health.listener = self._topic.listener = listener
        self._subscriber.add(self._topic)
        try:
            await self._link.start()
            await self._subscriber.start()
        except Refused as error:
            raise ValueError(f"broker: {error}") from None
        self._tasks.on_beats(self._look, "the look at Redis")
        if self._endpoint.sentinels:
            self._tasks.on_beats(self._follow, "asking Sentinel")
        self._tasks.repeat(self._counters.keep, lambda: OCCUPANCY_KEPT_S / 4, "counting WebSockets in Redis")
        self._tasks.repeat(self._presence.keep, lambda: PRESENCE_KEPT_S / 4, "keeping who is present")

    async def close(self) -> None:
        await self._tasks.close()
        await self._presence.close()
        self._topic.close()
        await self._subscriber.close()
        await self._link.close()

    async def _look(self) -> None:
        self._counters.send_changes()
        # In one round trip; what hinders one of them does not hinder the other.
        await all_ended((self._health.look(), self._presence.look()))

    async def _follow(self) -> None:
        """Go where Sentinel points: a master that was cut off from it may be master for itself alone."""
        try:
            master = await self._endpoint.master()
        except OSError as error:
            log.debug("Sentinel was asked in vain: %s", error)  # a link that cannot connect complains
            return
        self._link.follow(master)
        self._subscriber.follow(master)

    def not_ready(self) -> list[str]:
        return self._probe.not_ready()

    async def hear(self, session_id: str) -> bool:
        return await self._topic.hear(session_id)

    def unhear(self, session_id: str) -> None:
        self._topic.unhear(session_id)

    # --- counters --------------------------------------------------------------------------------

    def spend(self, charges: Sequence[Charge]) -> Awaitable[list[tuple[int, int]]]:
        return self._counters.spend(charges)

    async def enter(self, key: str, limit: int) -> bool:
        return await self._counters.enter(key, limit)

    def leave(self, key: str, limit: int) -> None:
        self._counters.leave(key, limit)

    # --- presence --------------------------------------------------------------------------------

    def attend(self, session_id: str, subject: str, attendance: Attendance | None) -> None:
        self._presence.attend(session_id, subject, attendance)

    def forget_session(self, session_id: str) -> None:
        self._presence.forget_session(session_id)

    async def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        return await self._presence.present(session_id)

    # --- clock -----------------------------------------------------------------------------------

    def now_ms(self, session_id: str | None = None) -> int:
        return self._clock.now_ms()

    def shown_us(self) -> int:
        return self._clock.shown_us()

    def error_ms(self) -> float:
        return self._clock.error_ms()
