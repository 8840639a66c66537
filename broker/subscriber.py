"""The supervised reader: hands what is published on Redis to the hub, and reports every gap."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from broker.endpoint import Endpoint
from broker.link import Link, Refused, never
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from broker.subscriptions import Subscriptions
from broker.topic import Topic
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks

log = logging.getLogger(__name__)

# What another Redis has by now is asked for again so soon: until it is known which one.
RETRY_S = 0.1


class Subscriber:
    """Hears topics over one connection, which it keeps up. It never asks Redis for anything else.

    A topic is heard by one subscriber at a time, but may be taken from it and given to another.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        metrics: Metrics,
        on_gap: Callable[[Collection[Topic]], None],
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_gap` is called soon after topics began to be heard, or again.

        `on_moved` is called where this Redis does not serve a topic (any more): another one has it.
        """
        self._link = Link(endpoint, "updates", self._on_up, metrics)
        self._on_gap = on_gap
        self._on_moved = on_moved
        self._topics: dict[Topic, None] = {}
        self._subscriptions: Subscriptions | None = None
        self._tasks = Tasks()
        self._subscribing = asyncio.Lock()
        self._is_catching_up = False

    @property
    def is_up(self) -> bool:
        return self._link.is_up

    @property
    def refusal(self) -> str | None:
        """Why there will never be a connection as Redis is set up; None once there has been one."""
        return self._link.refusal

    @property
    def topics(self) -> Collection[Topic]:
        return self._topics.keys()

    @property
    def unheard(self) -> list[Topic]:
        return [each for each in self._topics if not each.is_heard]

    @property
    def probe_age_s(self) -> float:
        """Since a probe came back last; since the oldest was sent that has not, where that is longer."""
        probed = [each for each in self._topics if each.probe is not None]
        if not probed:
            return 0.0
        now_s = time.monotonic()
        waiting_since_s = min(
            (each.probe_sent_at_s for each in probed if each.probe_sent_at_s), default=now_s
        )
        return now_s - min(waiting_since_s, max(each.probe_received_at_s for each in probed))

    async def start(self) -> None:
        """Return when the first connection is there. Raises Refused where that will never be."""
        await self._link.start()

    def open(self, is_start: Callable[[], bool] = never) -> None:
        """Begin to connect, as ``Link.open`` does."""
        self._link.open(is_start)

    async def close(self) -> None:
        await self._tasks.close()
        await self._link.close()

    def reset(self, why: str) -> None:
        self._link.reset(why)

    def follow(self, master: Address) -> None:
        self._link.follow(master)

    def add(self, topic: Topic) -> None:
        """Hear this, too: at once, or as soon as there is a connection."""
        self._topics[topic] = None
        self._catch_up_soon()

    def remove(self, topic: Topic) -> None:
        if topic in self._topics:
            del self._topics[topic]
            topic.leave()

    async def _on_up(self, connection: RespConnection) -> None:
        self._subscriptions = Subscriptions(connection, self._on_refused, self._on_withdrawn)
        await self._subscribe(self._subscriptions)
        self._catch_up_soon()

    async def _subscribe(self, subscriptions: Subscriptions) -> None:
        """Begin to hear what is not heard yet, as far as this Redis serves it. Raises Refused."""
        async with self._subscribing:
            topics = self.unheard
            outcomes = await asyncio.gather(
                *(each.subscribe(subscriptions) for each in topics), return_exceptions=True
            )
        for outcome in outcomes:
            if outcome is not None and not isinstance(outcome, LinkDown):
                raise outcome
        heard = [each for each in topics if each in self._topics and each.is_heard]
        if heard:
            asyncio.get_running_loop().call_soon(self._on_gap, heard)

    def _catch_up_soon(self) -> None:
        subscriptions = self._subscriptions
        if subscriptions is None or subscriptions.is_lost or self._is_catching_up or not self.unheard:
            return
        self._is_catching_up = True
        self._tasks.spawn(self._catch_up(subscriptions))

    async def _catch_up(self, subscriptions: Subscriptions) -> None:
        """Go on until all is heard, or there is another connection, which begins anew."""
        try:
            while self.unheard and not subscriptions.is_lost:
                await self._subscribe(subscriptions)
                if self.unheard:
                    self._on_moved()
                    await asyncio.sleep(RETRY_S)
        except Refused:
            pass  # the connection is reset for it, and complains
        finally:
            self._is_catching_up = False
        self._catch_up_soon()  # over the next connection, if there is one by now

    def _on_withdrawn(self, channel: str) -> None:
        """Redis serves it no longer: its slot has moved."""
        for topic in self._topics:
            if topic.has_channel(channel):
                topic.withdraw()
        self._on_moved()
        self._catch_up_soon()

    def _on_refused(self, why: str) -> None:
        log.warning("Redis refuses what clients are to hear (is SUBSCRIBE allowed by the ACL?): %s", why)
        if why.startswith("NOPERM") and not self.is_up and self._subscriptions is not None:
            self._subscriptions.fail(Refused(why))  # before a process starts, this ends it
        self.reset(why)
