"""The look at Redis: does what is published come back, does it take changes, and has it lost anything?"""

import asyncio
import logging
import time
from typing import Any

from broker.clock import RedisClock
from broker.keys import Keys
from broker.link import Link, Refused
from broker.marks import Agreement, Changes, LifeSign
from broker.probe import Probe
from broker.resp import LinkDown, RespConnection
from lockstep.contract import Listener

log = logging.getLogger(__name__)


class Health:
    """Knows whether this process can be served, and has the listener look for what may have been lost."""

    def __init__(
        self,
        link: Link,
        probe: Probe,
        clock: RedisClock,
        keys: Keys,
        routing: str,
        process: str,
    ) -> None:
        self.listener: Listener | None = None
        self._link = link
        self._probe = probe
        self._clock = clock
        changes = Changes(link.look_for_master)
        self._routing = Agreement(
            keys.routing, routing, changes, "other processes route %s: --routing must be the same"
        )
        self._life_sign = LifeSign(keys.life_sign(process), changes, self.on_gap)

    async def prepare(self, connection: RespConnection) -> None:
        """Leave this process's marks over a new connection. Raises Refused where others route otherwise."""
        await self._routing.record(connection.call)
        for _ in range(5):
            sent_at_s = time.monotonic()
            self._clock.measure(sent_at_s, await connection.checked_call("TIME"))
        # Before any client can be sent a state, so that no loss goes unnoticed.
        await self._life_sign.prepare(connection.call)

    def on_gap_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self.on_gap)

    def on_gap(self) -> None:
        if self.listener is not None:
            self.listener.on_gap()

    async def look(self) -> None:
        """Publish to ourselves, measure the clock, and renew the sign of life; to be repeated."""
        connection = self._link.connection
        renewal = None
        if connection is not None:
            renewal = connection.call(*self._life_sign.renewal)
        await self._probe.look()
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
            self.on_gap()
