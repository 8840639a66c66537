"""The channels that are subscribed to together: those of one Redis, or of one partition of a cluster."""

import asyncio
import time
from functools import partial

from broker.keys import Channels
from broker.resp import LinkDown
from broker.subscriptions import Receiver, Subscriptions
from lockstep.contract import Listener
from lockstep.wire import attendances, payloads

# A session without clients is heard this long: they often come back.
LEAVE_AFTER_S = 30.0


class Topic:
    """Hands what comes on its channels to the listener, whichever connection it is subscribed over.

    In targeted routing it knows which sessions are to be heard, while there is no connection too.
    """

    def __init__(
        self, channels: Channels, process: str, partition: int | None = None, *, has_probe: bool = True
    ) -> None:
        self.partition = partition
        self.listener: Listener | None = None
        # Anything but its own probe; what is relayed on the channel of one session does not count.
        self.has_received = False
        # A channel on which this process publishes to itself; None: there is none.
        self.probe = channels.probe(process) if has_probe else None
        self.probe_sent_at_s: float | None = None  # the first one that has not come back
        self.probe_received_at_s = time.monotonic()
        self._channels = channels
        self._process = process
        self._subscriptions: Subscriptions | None = None
        self._is_complete = False
        # In targeted routing: the sessions that are subscribed to, or will be over the next connection; with
        # the timer that ends it where a session has no clients any more.
        self._sessions: dict[str, asyncio.TimerHandle | None] = {}
        shard = "S" if channels.is_sharded else ""
        self._subscribe, self._unsubscribe = f"{shard}SUBSCRIBE", f"{shard}UNSUBSCRIBE"

    @property
    def is_heard(self) -> bool:
        """Whether all that is published on its channels reaches the listener."""
        subscriptions = self._subscriptions
        return self._is_complete and subscriptions is not None and not subscriptions.is_lost

    @property
    def publish_probe(self) -> tuple[str, ...]:
        """The command that publishes a probe."""
        assert self.probe is not None
        return self._channels.publish, self.probe, ""

    def close(self) -> None:
        for timer in self._sessions.values():
            if timer is not None:
                timer.cancel()

    # --- the connection it is heard over -----------------------------------------------------------

    async def subscribe(self, subscriptions: Subscriptions) -> None:
        """Be heard over this connection. Raises LinkDown where it is lost, where another Redis has these
        channels, and where the topic has been left meanwhile; Refused where that is not allowed."""
        self.withdraw()
        self._subscriptions = subscriptions
        if self._channels.pattern is not None:
            await subscriptions.subscribe_to_pattern(self._channels.pattern, self._on_message)
        subscribed: set[str] = set()
        # Sessions that are joined meanwhile come with the next round.
        while missing := {name: each for name, each in self._receivers().items() if name not in subscribed}:
            await subscriptions.subscribe(self._subscribe, missing)
            if self._subscriptions is not subscriptions:
                raise LinkDown(sent=True, why="it was left meanwhile")
            subscribed.update(missing)
        self.probe_received_at_s, self.probe_sent_at_s = time.monotonic(), None
        self._is_complete = True

    def leave(self) -> None:
        """Be heard no longer over the connection that there was."""
        if self._subscriptions is not None:
            self._subscriptions.unsubscribe(self._unsubscribe, list(self._receivers()))
            if self._channels.pattern is not None:
                self._subscriptions.unsubscribe("PUNSUBSCRIBE", [self._channels.pattern])
        self.withdraw()

    def withdraw(self) -> None:
        """Redis serves its channels over that connection no longer."""
        if self._subscriptions is not None:
            self._subscriptions.forget(self._receivers())
        self._subscriptions, self._is_complete = None, False
        self.probe_sent_at_s = None  # it does not come any more

    def has_channel(self, name: str) -> bool:
        return name in self._receivers()

    def _receivers(self) -> dict[str, Receiver]:
        receivers: dict[str, Receiver] = {self._channels.updates: self._on_update}
        if self.probe is not None:
            receivers[self.probe] = self._on_probe
        if self._channels.is_sharded:
            receivers[self._channels.messages] = self._on_addressed
        for session_id in self._sessions:
            receivers.update(self._receivers_of(session_id))
        return receivers

    def _receivers_of(self, session_id: str) -> dict[str, Receiver]:
        """Those of a session in targeted routing."""
        assert self.listener is not None
        if self._channels.is_sharded:
            return {self._channels.update(session_id): self._on_update_or_message}
        return {
            self._channels.update(session_id): self._on_update,
            self._channels.message(session_id): partial(self.listener.on_relayed, session_id),
        }

    # --- sessions, in targeted routing ---------------------------------------------------------------

    async def hear(self, session_id: str) -> bool:
        """True when the session is heard from now on; False while Redis is away (then it will be)."""
        if not self._channels.is_targeted:
            return self.is_heard
        timer = self._sessions.get(session_id)
        if timer is not None:
            timer.cancel()
        is_new = session_id not in self._sessions
        self._sessions[session_id] = None
        subscriptions = self._subscriptions
        if subscriptions is None or not self.is_heard:
            return False
        receivers = self._receivers_of(session_id)
        try:
            if is_new:
                await subscriptions.subscribe(self._subscribe, receivers)
            else:
                for channel in receivers:
                    await subscriptions.confirmed(channel)
        except LinkDown as down:
            if self._subscriptions is subscriptions and self.is_heard:
                subscriptions.give_up(f"a session cannot be heard: {down}")
                return False
        # Meanwhile it may have moved: then the session is heard there, with all others.
        return self.is_heard

    def unhear(self, session_id: str) -> None:
        if self._channels.is_targeted and session_id in self._sessions:
            loop = asyncio.get_running_loop()
            self._sessions[session_id] = loop.call_later(LEAVE_AFTER_S, self._leave_session, session_id)

    def _leave_session(self, session_id: str) -> None:
        if self._subscriptions is not None and not self._is_complete:
            # It may be subscribed to already: who came back before the others are would not be heard.
            self.unhear(session_id)
            return
        del self._sessions[session_id]
        if self._subscriptions is not None:
            self._subscriptions.unsubscribe(self._unsubscribe, list(self._receivers_of(session_id)))

    # --- what comes ----------------------------------------------------------------------------------

    def _on_update(self, payload: bytes) -> None:
        assert self.listener is not None
        self.has_received = True
        said = attendances.read_message(payload) if payload.startswith(attendances.BEGINNING) else None
        if said is None:
            self.listener.on_published(payload)
        elif said.process != self._process:
            self.listener.on_presence(said.session_id, said.process, said.attendances)

    def _on_update_or_message(self, payload: bytes) -> None:
        if payloads.is_addressed(payload):
            self._on_addressed(payload)
        else:
            self._on_update(payload)

    def _on_addressed(self, payload: bytes) -> None:
        addressed = payloads.read_addressed(payload)
        if addressed is None:
            self._on_update(payload)  # which counts it as junk
        else:
            assert self.listener is not None
            self.has_received = True
            self.listener.on_relayed(*addressed)

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        assert self.listener is not None
        self.has_received = True
        self.listener.on_relayed(self._channels.session_of(channel), payload)

    def _on_probe(self, payload: bytes) -> None:
        self.probe_received_at_s, self.probe_sent_at_s = time.monotonic(), None
