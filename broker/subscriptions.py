"""What one connection has subscribed to: what each channel brings is handed to who receives it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import hiredis
from redis.crc import key_slot

from broker.link import Refused
from broker.resp import LinkDown, RespConnection

log = logging.getLogger(__name__)

# Channels in one SUBSCRIBE; more at once would keep Redis from other clients.
SUBSCRIBE_SLICE = 500
CONFIRMATIONS = frozenset({b"subscribe", b"psubscribe", b"ssubscribe"})

Receiver = Callable[[bytes], None]
PatternReceiver = Callable[[bytes, bytes], None]


class Subscriptions:
    """Those of one connection, from its beginning to its end: the next connection has others."""

    def __init__(
        self,
        connection: RespConnection,
        on_refused: Callable[[str], None],
        on_withdrawn: Callable[[str], None],
    ) -> None:
        """`on_withdrawn` is called with a channel that Redis took away unasked: its slot has moved."""
        self._connection = connection
        self._on_refused = on_refused
        self._on_withdrawn = on_withdrawn
        self._receivers: dict[bytes, Receiver] = {}
        self._pattern_receivers: dict[bytes, PatternReceiver] = {}
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        connection.on_push = self._on_push
        connection.lost.add_done_callback(lambda _: self.fail(LinkDown(sent=True)))

    @property
    def is_lost(self) -> bool:
        return self._connection.lost.done()

    async def subscribe(self, command: str, receivers: Mapping[str, Receiver]) -> None:
        """Returns when Redis has confirmed it. Raises LinkDown, also where another Redis has the slot."""
        names = list(receivers)
        for start in range(0, len(names), SUBSCRIBE_SLICE):
            some = names[start : start + SUBSCRIBE_SLICE]
            self._receivers.update((name.encode(), receivers[name]) for name in some)
            await self._confirmed(command, some)

    async def subscribe_to_pattern(self, pattern: str, receive: PatternReceiver) -> None:
        """The same for all channels that match; what is received comes with its channel."""
        self._pattern_receivers[pattern.encode()] = receive
        await self._confirmed("PSUBSCRIBE", [pattern])

    async def confirmed(self, name: str) -> None:
        """Returns at once where the channel's subscription is confirmed already."""
        if (confirmation := self._confirmations.get(name.encode())) is not None:
            await asyncio.wait((confirmation,))
            confirmation.result()

    async def _confirmed(self, command: str, names: list[str]) -> None:
        if self.is_lost:
            raise LinkDown(sent=False)
        loop = asyncio.get_running_loop()
        # Where another asks for the same meanwhile, both wait for one confirmation.
        waiting = [self._confirmations.setdefault(name.encode(), loop.create_future()) for name in names]
        self._connection.send(command, *names)
        await asyncio.wait(waiting)
        for confirmation in waiting:
            confirmation.result()

    def unsubscribe(self, command: str, names: list[str]) -> None:
        """Receive nothing of these from now on, whatever is still on its way."""
        self.forget(names)
        if names and not self.is_lost:
            self._connection.send(command, *names)

    def forget(self, names: Iterable[str]) -> None:
        """Receive nothing of these; Redis need not be told."""
        for name in names:
            self._receivers.pop(name.encode(), None)
            self._pattern_receivers.pop(name.encode(), None)

    def give_up(self, why: str) -> None:
        """Begin again with another connection."""
        log.warning("connecting anew to Redis, to hear it: %s", why)
        self._connection.abort()

    def fail(self, error: LinkDown | Refused, slot: int | None = None) -> None:
        """What is not confirmed yet will not be: in this slot, or anywhere."""
        for name in [each for each in self._confirmations if slot is None or key_slot(each) == slot]:
            confirmation = self._confirmations.pop(name)
            if not confirmation.done():
                confirmation.set_exception(error)
                confirmation.exception()  # marked as retrieved: who waited for it may have left

    def _on_push(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._on_error(str(reply))
            return
        kind = reply[0]
        try:
            # What comes behind an UNSUBSCRIBE of ours has no receiver any more.
            if kind == b"message" or kind == b"smessage":
                if (receive := self._receivers.get(reply[1])) is not None:
                    receive(reply[2])
            elif kind == b"pmessage":
                if (receive_of := self._pattern_receivers.get(reply[1])) is not None:
                    receive_of(reply[2], reply[3])
            elif kind in CONFIRMATIONS:
                confirmation = self._confirmations.pop(reply[1], None)
                if confirmation is not None and not confirmation.done():
                    confirmation.set_result(None)
            elif (
                kind == b"sunsubscribe"
                and reply[1] in self._receivers
                and reply[1] not in self._confirmations
            ):
                self._on_withdrawn(reply[1].decode())
        except Exception:
            # One bad payload must not cost the others their delivery.
            log.exception("what was published on a Redis channel could not be handled")

    def _on_error(self, why: str) -> None:
        if why.startswith("MISCONF"):
            return  # a Redis that cannot write to its disk answers a PING so: it lives
        if why.startswith("MOVED "):
            self.fail(LinkDown(sent=False, why=why), slot=int(why.split()[1]))
        elif why.startswith("CLUSTERDOWN"):
            self.fail(LinkDown(sent=False, why=why))
        else:
            self._on_refused(why)
