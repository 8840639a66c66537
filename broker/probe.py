"""What is seen of one Redis from outside: does what is published come back, and what time is it there?"""

import asyncio
import time

import hiredis

from broker.calls import checked, execute, retried
from broker.clock import RedisClock
from broker.link import Link
from broker.subscriber import Subscriber
from broker.topic import Topic

PROBE_TOO_OLD_S = 5.0


class Probe:
    """Publishes to this process by way of one Redis, and knows for how long nothing has come back."""

    def __init__(self, link: Link, subscriber: Subscriber, clock: RedisClock, where: str = "") -> None:
        """`where` follows in what an operator is told, if there are several: ` at host:port`."""
        self._link = link
        self._subscriber = subscriber
        self._clock = clock
        self._where = where

    @property
    def age_s(self) -> float:
        """Since a probe came back."""
        return self._subscriber.probe_age_s

    def not_ready(self) -> list[str]:
        """Why this process should get no traffic now; empty when it should."""
        reasons = []
        if not self._link.is_up:
            reasons.append(f"Redis{self._where} does not answer")
        if not self._subscriber.is_up:
            reasons.append(f"the subscription{self._where} is down")
        elif self.age_s > PROBE_TOO_OLD_S:
            reasons.append(f"no publication has come back{self._where} for {self.age_s:.0f} s")
        elif self._subscriber.unheard:
            reasons.append(f"the subscription{self._where} is not complete")
        return reasons

    async def look(self) -> None:
        """Publish to ourselves, and measure the clock; to be repeated. Raises BrokerUnavailable."""
        if self._subscriber.is_up and self.age_s > PROBE_TOO_OLD_S:
            self._subscriber.reset("what this process publishes does not come back")
        sent_at_s = time.monotonic()
        _, instant = await asyncio.gather(self._publish(), execute(self._link, "TIME"))
        self._clock.measure(sent_at_s, instant)

    async def _publish(self) -> None:
        """On the channel of which the longest time nothing has come back: each has its turn."""
        heard = [each for each in self._subscriber.topics if each.probe is not None and each.is_heard]
        if not heard:
            return
        topic = min(heard, key=lambda each: each.probe_received_at_s)
        if topic.probe_sent_at_s is None:
            topic.probe_sent_at_s = time.monotonic()
        has_been_sent = False
        try:
            has_been_sent = await self._send(topic)
        finally:
            if not has_been_sent:
                topic.probe_sent_at_s = None

    async def _send(self, topic: Topic) -> bool:
        """False where another Redis has the channel by now, as the subscriber will hear."""
        command = topic.publish_probe
        reply = await retried(lambda: self._link.call(*command))
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("MOVED "):
            return False
        checked(reply)
        return True
