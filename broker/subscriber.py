"""The supervised reader: what is published on Redis, handed to the hub; and every gap told."""

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from typing import Any

import hiredis

from broker.endpoint import Endpoint
from broker.link import Link, LinkDown, Refused, Wire
from broker.sentinel import Address
from lockstep.contract import Listener
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

LEAVE_AFTER_S = 30.0
# Channels in one SUBSCRIBE; more at once would keep Redis from others.
SUBSCRIBE_SLICE = 500


def escaped(text: str) -> str:
    """A name as a part of a pattern of Redis's, in which it stands for itself alone."""
    return re.sub(r"([\\*?\[])", r"\\\1", text)


class Routing:
    """Which channels carry what. The one place that knows the two ways.

    `all`: every process hears every session; two subscriptions, whatever the number of sessions.
    `targeted`: a process hears the sessions that it has clients for, each on channels of its own.
    """

    MODES = ("all", "targeted")

    def __init__(self, mode: str, prefix: str) -> None:
        assert mode in self.MODES
        self.mode = mode
        self.is_targeted = mode == "targeted"
        self.updates = f"{prefix}session-updates"
        self._messages = f"{prefix}ws:"

    @property
    def pattern(self) -> str | None:
        return None if self.is_targeted else escaped(self._messages) + "*"

    def update_channel(self, session_id: str) -> str:
        return f"{self.updates}:{session_id}" if self.is_targeted else self.updates

    def message_channel(self, session_id: str) -> str:
        return self._messages + session_id

    def channels_of(self, session_id: str) -> tuple[str, str]:
        """What a process with clients of this session subscribes to, in targeted routing."""
        return self.update_channel(session_id), self.message_channel(session_id)

    def session_of(self, channel: str) -> str | None:
        """The session that a message channel belongs to; None for any other channel."""
        return channel[len(self._messages) :].lower() if channel.startswith(self._messages) else None


class Subscriber:
    """This process's ears. It hands on what it hears and never asks Redis for anything else."""

    def __init__(self, endpoint: Endpoint, routing: Routing, probe_channel: str, metrics: Metrics) -> None:
        self._routing = routing
        self._probe_channel = probe_channel
        self._link = Link(endpoint, "updates", self._subscribe_all, metrics)
        self._listener: Listener | None = None
        self._confirmations: dict[str, asyncio.Future[None]] = {}
        # Sessions whose channels we are on, or shall be: in targeted routing.
        self._heard: dict[str, asyncio.TimerHandle | None] = {}
        self.probe_heard_at_s = time.monotonic()

    @property
    def is_up(self) -> bool:
        return self._link.is_up

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        await self._link.start()

    async def close(self) -> None:
        for timer in self._heard.values():
            if timer is not None:
                timer.cancel()
        await self._link.close()

    def reset(self, why: str) -> None:
        self._link.reset(why)

    def follow(self, master: Address) -> None:
        self._link.follow(master)

    async def hear(self, session_id: str) -> bool:
        """True when the session is heard from now on; False while Redis is away (then it will be)."""
        if not self._routing.is_targeted:
            return self.is_up
        timer = self._heard.get(session_id)
        if timer is not None:
            timer.cancel()
        is_new = session_id not in self._heard
        self._heard[session_id] = None
        wire = self._link.wire
        if wire is None or wire.lost.done():
            return False
        channels = self._routing.channels_of(session_id)
        if is_new:
            for channel in channels:
                self._confirmations[channel] = asyncio.get_running_loop().create_future()
            wire.send("SUBSCRIBE", *channels)
        try:
            for channel in channels:
                if (confirmation := self._confirmations.get(channel)) is not None:
                    await asyncio.shield(confirmation)
        except LinkDown:
            return False
        return True

    def unhear(self, session_id: str) -> None:
        if self._routing.is_targeted and session_id in self._heard:
            loop = asyncio.get_running_loop()
            self._heard[session_id] = loop.call_later(LEAVE_AFTER_S, self._leave, session_id)

    def _leave(self, session_id: str) -> None:
        del self._heard[session_id]
        if (wire := self._link.wire) is not None:
            wire.send("UNSUBSCRIBE", *self._routing.channels_of(session_id))

    async def _subscribe_all(self, wire: Wire) -> None:
        wire.on_push = self._on_push
        wire.lost.add_done_callback(lambda _: self._fail_confirmations(LinkDown(sent=True)))
        if self._routing.pattern is not None:
            await self._subscribe(wire, "PSUBSCRIBE", [self._routing.pattern])
        subscribed: set[str] = set()
        while missing := self._wanted() - subscribed:
            # Whoever joins meanwhile is part of the next turn.
            channels = list(missing)
            for start in range(0, len(channels), SUBSCRIBE_SLICE):
                await self._subscribe(wire, "SUBSCRIBE", channels[start : start + SUBSCRIBE_SLICE])
            subscribed |= missing
        assert self._listener is not None
        self.probe_heard_at_s = time.monotonic()
        asyncio.get_running_loop().call_soon(self._listener.on_gap)

    def _wanted(self) -> set[str]:
        channels = {self._routing.updates, self._probe_channel}
        for session_id in self._heard:
            channels.update(self._routing.channels_of(session_id))
        return channels

    async def _subscribe(self, wire: Wire, command: str, channels: Iterable[str]) -> None:
        names = list(channels)
        loop = asyncio.get_running_loop()
        for name in names:
            self._confirmations[name] = loop.create_future()
        waiting = [self._confirmations[name] for name in names]
        wire.send(command, *names)
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
                return  # so answers a PING who cannot write to its disk: it lives
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
            self._hand_on(channel.decode("utf-8", "replace"), payload)
        except Exception:
            # One payload shall not cost the others their delivery.
            log.exception("what was published on a Redis channel could not be handled")

    def _hand_on(self, channel: str, payload: bytes) -> None:
        assert self._listener is not None
        if channel.startswith(self._routing.updates):
            self._listener.on_published(payload)
        elif channel == self._probe_channel:
            self.probe_heard_at_s = time.monotonic()
        elif (session_id := self._routing.session_of(channel)) is not None:
            self._listener.on_relayed(session_id, payload)
