"""The look at Redis: does what is published come back, does it take changes, and has it lost anything?"""

import asyncio
import logging
import time
from typing import Any

import hiredis

from broker.calls import execute
from broker.clock import RedisClock
from broker.counters import LIFE_SIGN_S
from broker.keys import Channels, Keys
from broker.link import Link, Refused
from broker.resp import Argument, LinkDown, RespConnection
from broker.subscriber import Subscriber
from lockstep.contract import Listener

log = logging.getLogger(__name__)

PROBE_TOO_OLD_S = 5.0
# A Redis that is full, a replica, without replicas or without a disk: it takes no changes, but can be read.
NO_CHANGES = ("OOM ", "READONLY ", "NOREPLICAS ", "MISCONF ")


class Health:
    """Knows whether this process can be served, and has the listener look for what may have been lost.

    The process leaves a sign of life in the store. When that is gone before its time, so may be all else:
    a Redis that was flushed answers and publishes as if nothing had happened.
    """

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
        self._routing_key = keys.routing
        self._life_sign_key = keys.life_sign(process)
        self._has_recorded_routing = False
        self._has_life_sign = False
        self._renewed_at_s = 0.0
        # Clients may have been sent states while there was no sign that would have gone with them.
        self._was_unwatched = False
        self._takes_changes = True

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
        await self._record_routing(connection)
        for _ in range(5):
            sent_at_s = time.monotonic()
            self._clock.measure(sent_at_s, await connection.checked_call("TIME"))
        if not self._has_life_sign:
            # Before any client can be sent a state, so that no loss goes unnoticed.
            await self._leave_life_sign(connection)

    def on_gap_soon(self) -> None:
        if self.listener is not None:
            asyncio.get_running_loop().call_soon(self.listener.on_gap)

    async def look(self) -> None:
        """Publish to ourselves, measure the clock, and renew the sign of life; to be repeated."""
        if self._subscriber.is_up and self.probe_age_s() > PROBE_TOO_OLD_S:
            self._subscriber.reset("what this process publishes does not come back")
        sent_at_s, connection = time.monotonic(), self._link.connection
        renewal = None
        if connection is not None:
            # Not by SET, so that a Redis without memory does not let it lapse.
            renewal = connection.call("GETEX", self._life_sign_key, "EX", LIFE_SIGN_S)
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
        assert self.listener is not None
        try:
            if not self._has_recorded_routing:
                await self._record_routing(connection)
            if not self._has_life_sign:
                # Otherwise the link is looking for the master, and it is left there.
                if self._link.connection is connection:
                    await self._leave_life_sign(connection)
                return
        except Refused as refused:
            self._link.reset(str(refused))
            return
        if isinstance(reply, hiredis.ReplyError):
            self._on_refused(reply)
            return
        self._on_taken()
        now_s = time.monotonic()
        if reply is None:
            # It lapses by itself where it could not be renewed: then nobody knows whether data was lost.
            has_lapsed = now_s - self._renewed_at_s > LIFE_SIGN_S - 1
            self._has_life_sign = False
            self._link.reset("what was lost is looked for" if has_lapsed else "Redis has lost data")
            self.listener.on_gap()
        self._renewed_at_s = now_s

    async def _record_routing(self, connection: RespConnection) -> None:
        """Raises Refused where other processes route otherwise. Where nothing can be written: next time."""
        mode = self._channels.mode.encode()
        # It is asked first: a Redis that takes no changes can be read.
        recorded = await connection.checked_call("GET", self._routing_key)
        if recorded is None and await self._write(connection, "SET", self._routing_key, mode, "NX"):
            recorded = await connection.checked_call("GET", self._routing_key)
        if recorded is not None and recorded != mode:
            mode_of_others = recorded.decode("utf-8", "replace")
            raise Refused(f"other processes route {mode_of_others}: --routing must be the same")
        self._has_recorded_routing = recorded is not None

    async def _leave_life_sign(self, connection: RespConnection) -> None:
        """Where nothing can be written now it is left later; what is lost until then is looked for then."""
        if await self._write(connection, "SET", self._life_sign_key, 1, "EX", LIFE_SIGN_S):
            self._has_life_sign = True
            self._renewed_at_s = time.monotonic()
            if self._was_unwatched:
                self.on_gap_soon()
            self._was_unwatched = False
        else:
            self._was_unwatched = True

    async def _write(self, connection: RespConnection, *arguments: Argument) -> bool:
        """False where this Redis takes no changes now."""
        reply = await connection.call(*arguments)
        if isinstance(reply, hiredis.ReplyError):
            self._on_refused(reply)
            return False
        self._on_taken()
        return True

    def _on_refused(self, reply: hiredis.ReplyError) -> None:
        if not str(reply).startswith(NO_CHANGES):
            raise LinkDown(sent=False, why=str(reply))
        if self._takes_changes:
            self._takes_changes = False
            log.warning("Redis takes no changes now, what it has can be read: %s", reply)
        if str(reply).startswith("READONLY"):
            self._link.look_for_master()

    def _on_taken(self) -> None:
        if not self._takes_changes:
            self._takes_changes = True
            log.warning("Redis takes changes again")
