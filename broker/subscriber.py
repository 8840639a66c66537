"""The supervised reader: hands what is published on Redis to the hub, and reports every gap."""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any

import hiredis

from broker.endpoint import Endpoint
from broker.keys import Channels
from broker.link import Link, Refused
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from lockstep.contract import Listener
from lockstep.metrics import Metrics
from lockstep.wire import attendances

log = logging.getLogger(__name__)

# A session without clients is heard this long: they often come back.
LEAVE_AFTER_S = 30.0
# Channels in one SUBSCRIBE; more at once would keep Redis from other clients.
SUBSCRIBE_SLICE = 500


class Subscriber:
    """Hands on what this process receives, and never asks Redis for anything else."""

    def __init__(self, endpoint: Endpoint, channels: Channels, process: str, metrics: Metrics) -> None:
        self._channels = channels
        self._process = process
        self._updates = channels.updates.encode()  # what the names of all these channels begin with
        self._probe_channel = channels.probe(process)
        self._link = Link(endpoint, "updates", self._subscribe_all, metrics)
        self._listener: Listener | None = None
        self._confirmations: dict[str, asyncio.Future[None]] = {}
        # In targeted routing: the sessions that are subscribed to, or will be when Redis is back; with the
        # timer that ends it where a session has no clients any more.
        self._sessions: dict[str, asyncio.TimerHandle | None] = {}
        self.probe_received_at_s = time.monotonic()

    @property
    def is_up(self) -> bool:
        return self._link.is_up

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        await self._link.start()

    async def close(self) -> None:
        for timer in self._sessions.values():
            if timer is not None:
                timer.cancel()
        await self._link.close()

    def reset(self, why: str) -> None:
        self._link.reset(why)

    def follow(self, master: Address) -> None:
        self._link.follow(master)

    async def hear(self, session_id: str) -> bool:
        """True when the session is heard from now on; False while Redis is away (then it will be)."""
        if not self._channels.is_targeted:
            return self.is_up
        timer = self._sessions.get(session_id)
        if timer is not None:
            timer.cancel()
        is_new = session_id not in self._sessions
        self._sessions[session_id] = None
        connection = self._link.connection
        if connection is None or connection.lost.done():
            return False
        channels = self._channels.of_session(session_id)
        if is_new:
            for channel in channels:
                self._confirmations[channel] = asyncio.get_running_loop().create_future()
            connection.send("SUBSCRIBE", *channels)
        try:
            for channel in channels:
                if (confirmation := self._confirmations.get(channel)) is not None:
                    await asyncio.shield(confirmation)
        except LinkDown:
            return False
        return True

    def unhear(self, session_id: str) -> None:
        if self._channels.is_targeted and session_id in self._sessions:
            loop = asyncio.get_running_loop()
            self._sessions[session_id] = loop.call_later(LEAVE_AFTER_S, self._leave, session_id)

    def _leave(self, session_id: str) -> None:
        del self._sessions[session_id]
        if (connection := self._link.connection) is not None:
            connection.send("UNSUBSCRIBE", *self._channels.of_session(session_id))

    async def _subscribe_all(self, connection: RespConnection) -> None:
        connection.on_push = self._on_push
        connection.lost.add_done_callback(lambda _: self._fail_confirmations(LinkDown(sent=True)))
        if self._channels.pattern is not None:
            await self._subscribe(connection, "PSUBSCRIBE", [self._channels.pattern])
        subscribed: set[str] = set()
        while missing := self._wanted() - subscribed:
            # Sessions that are joined meanwhile come with the next round.
            channels = list(missing)
            for start in range(0, len(channels), SUBSCRIBE_SLICE):
                await self._subscribe(connection, "SUBSCRIBE", channels[start : start + SUBSCRIBE_SLICE])
            subscribed |= missing
        assert self._listener is not None
        self.probe_received_at_s = time.monotonic()
        asyncio.get_running_loop().call_soon(self._listener.on_gap)

    def _wanted(self) -> set[str]:
        channels = {self._channels.updates, self._probe_channel}
        for session_id in self._sessions:
            channels.update(self._channels.of_session(session_id))
        return channels

    async def _subscribe(self, connection: RespConnection, command: str, channels: Iterable[str]) -> None:
        names = list(channels)
        loop = asyncio.get_running_loop()
        for name in names:
            self._confirmations[name] = loop.create_future()
        waiting = [self._confirmations[name] for name in names]
        connection.send(command, *names)
        await asyncio.gather(*waiting)

    def _fail_confirmations(self, error: LinkDown | Refused) -> None:
        for confirmation in self._confirmations.values():
            if not confirmation.done():
                confirmation.set_exception(error)
                confirmation.exception()
        self._confirmations.clear()

    def _on_push(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            if str(reply).startswith("MISCONF"):
                return  # a Redis that cannot write to its disk answers a PING so: it lives
            log.warning(
                "Redis refuses what clients are to hear (is SUBSCRIBE allowed by the ACL?): %s", reply
            )
            if str(reply).startswith("NOPERM") and not self.is_up:
                self._fail_confirmations(Refused(str(reply)))  # before a process starts, this ends it
            self.reset(str(reply))
            return
        assert self._listener is not None
        kind = reply[0]
        if kind == b"message":
            channel, payload = reply[1], reply[2]
        elif kind == b"pmessage":
            channel, payload = reply[2], reply[3]
        else:
            if kind in (b"subscribe", b"psubscribe"):
                confirmation = self._confirmations.pop(reply[1].decode(), None)
                if confirmation is not None and not confirmation.done():
                    confirmation.set_result(None)
            return
        try:
            self._dispatch(channel, payload)
        except Exception:
            # One bad payload must not cost the others their delivery.
            log.exception("what was published on a Redis channel could not be handled")

    def _dispatch(self, name: bytes, payload: bytes) -> None:
        assert self._listener is not None
        if name.startswith(self._updates):
            said = attendances.read_message(payload) if payload.startswith(attendances.BEGINNING) else None
            if said is None:
                self._listener.on_published(payload)
            elif said.process != self._process:
                self._listener.on_presence(said.session_id, said.process, said.attendances)
            return
        channel = name.decode("utf-8", "replace")
        if channel == self._probe_channel:
            self.probe_received_at_s = time.monotonic()
        elif (session_id := self._channels.session_of(channel)) is not None:
            self._listener.on_relayed(session_id, payload)
