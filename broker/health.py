"""The look at Redis: does what is published come back, does it take changes, and has it lost anything?"""

import asyncio
import logging
import time
from typing import Any

from broker.calls import execute
from broker.clock import RedisClock
from broker.keys import Channels, Keys
from broker.link import Link, Refused
from broker.marks import Agreement, Changes, LifeSign
from broker.resp import LinkDown, RespConnection
from broker.subscriber import Subscriber
from lockstep.contract import Listener

log = logging.getLogger(__name__)

PROBE_TOO_OLD_S = 5.0


class Health:
    """Knows whether this process can be served, and has the listener look for what may have been lost."""

    def __init__(
        self,
        link: Link,
        subscriber: Subscriber,
        keys: Keys,
        channels: Channels,
        clock: RedisClock,
        process: str,
    ) -> None:
        self.listener: Listener | None = None
        self._link = link
        self._subscriber = subscriber
        self._channels = channels
        self._clock = clock
        self._probe_channel = channels.probe(process)
        changes = Changes(link.look_for_master)
        self._routing = Agreement(
            keys.routing, channels.mode, changes, "other processes route %s: --routing must be the same"
        )
        self._life_sign = LifeSign(keys.life_sign(process), changes, self._on_gap)

    def probe_age_s(self) -> float:
        return time.monotonic() - self._subscriber.probe_received_at_s

    def not_ready(self) -> list[str]:
        reasons = []
        if not self._link.is_up:
            reasons.append("Redis does not answer")
        if not self._subscriber.is_up:
            reasons.append("the subscription is down")
        elif self.probe_age_s() > PROBE_TOO_OLD_S:
            reasons.append(f"no publication has come back for {self.probe_age_s():.0f} s")
        return reasons

    async def prepare(self, connection: RespConnection) -> None:
        """Leave this process's marks over a new connection. Raises Refused where others route otherwise."""
        await self._routing.record(connection.call)
        for _ in range(5):
            sent_at_s = time.monotonic()
            self._clock.measure(sent_at_s, await connection.checked_call("TIME"))
        # Before any client can be sent a state, so that no loss goes unnoticed.
        await self._life_sign.prepare(connection.call)

    def on_gap_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._on_gap)

    def _on_gap(self) -> None:
        if self.listener is not None:
            self.listener.on_gap()

    async def look(self) -> None:
        """Publish to ourselves, measure the clock, and renew the sign of life; to be repeated."""
        if self._subscriber.is_up and self.probe_age_s() > PROBE_TOO_OLD_S:
            self._subscriber.reset("what this process publishes does not come back")
        sent_at_s, connection = time.monotonic(), self._link.connection
        renewal = None
        if connection is not None:
            renewal = connection.call(*self._life_sign.renewal)
        _, instant = await asyncio.gather(
            execute(self._link, "PUBLISH", self._probe_channel, ""), execute(self._link, "TIME")
        )
        self._clock.measure(sent_at_s, instant)
        if connection is not None and renewal is not None:
            try:
                await self._on_renewed(connection, await renewal)
            except LinkDown as down:
                log.warning("the sign of life of this process is put off: %s", down)

    async def _on_renewed(self, connection: RespConnection, reply: Any) -> None:
        try:
            if not self._routing.is_recorded:
                await self._routing.record(connection.call)
        except Refused as refused:
            self._link.reset(str(refused))
            return
        # Otherwise the link is looking for the master, and the sign is left there.
        if self._link.connection is not connection:
            return
        if why := await self._life_sign.note(connection.call, reply):
            self._link.reset(why)
            self._on_gap()
