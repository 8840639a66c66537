"""How clients begin to follow a session's changes (protocol v2), and what they are answered while they do."""

import asyncio
from typing import Protocol

from msgspec import UNSET, UnsetType

from lockstep.contract import Bus, Clock, Store
from lockstep.errors import BrokerUnavailable, SessionNotFound
from lockstep.live.hub import Hub
from lockstep.live.peers import Kind, Peer
from lockstep.live.presence import RoomPresence
from lockstep.live.ring import MAX_RING_BYTES, MAX_RING_EVENTS
from lockstep.live.timeline import Timeline
from lockstep.metrics import Metrics
from lockstep.sessions import Sessions
from lockstep.wire import heads
from lockstep.wire.protocol_v2 import RequestId


class FollowersBroker(Bus, Store, Clock, Protocol):
    """What followers ask of a broker."""


class Followers:
    """Answers from what the session's timeline knows; one that is not current reads the store first.

    However many ask meanwhile, a timeline reads once.
    """

    def __init__(self, hub: Hub, broker: FollowersBroker, sessions: Sessions, metrics: Metrics) -> None:
        self._hub = hub
        self._broker = broker
        self._sessions = sessions
        self._metrics = metrics

    async def subscribe(
        self, session_id: str, peer: Peer, id_: RequestId | UnsetType = UNSET, position: str | None = None
    ) -> None:
        """Let the peer follow the session from `position` on, or from its state; its first message says that.

        Also a session that does not exist yet. A peer that follows it already is sent the state. Raises
        BrokerUnavailable, StateCorrupt; then it does not follow. Nor does a peer whose end has begun by then.
        """
        async with self._hub.hearing(session_id, peer) as is_heard:
            if not is_heard:
                raise BrokerUnavailable
            timeline = await self._current(session_id)
            # The room may be another one after each wait.
            while (presence := self._hub.rooms[session_id].presence) is not None and not presence.is_known:
                await self._hub.presence.read(presence)
                timeline = await self._current(session_id)
            if peer.can_send:
                self._answer(timeline, presence, peer, id_, position)

    def unsubscribe(self, session_id: str, peer: Peer) -> None:
        """The peer is sent nothing of the session any more."""
        timeline = self._timeline(session_id)
        if timeline is not None and peer in timeline.audiences:
            timeline.audiences.leave(peer)
            presence = self._hub.rooms[session_id].presence
            if presence is not None:
                self._hub.presence.depart(presence, peer)
            self._hub.drop_if_empty(session_id)

    async def sync(self, session_id: str, peer: Peer, id_: RequestId) -> None:
        """Send a peer that follows the session its state. Raises SessionNotFound, BrokerUnavailable."""
        timeline = self._timeline(session_id)
        if timeline is None or not timeline.is_current:
            timeline = await self._current(session_id)
        if not peer.can_send or peer not in timeline.audiences:
            return
        if timeline.state is None:
            raise SessionNotFound(session_id)
        timeline.audiences.catch_up(peer)
        snapshot = timeline.snapshot("requested", self._broker.shown_ms(), id_)
        peer.send(peer.encoding.encode(snapshot), Kind.SYNC)
        self._metrics.count_sent("SNAPSHOT")

    def skipped(self, session_id: str, peer: Peer, kind: Kind) -> bytes:
        """What stands for the UPDATEs or PRESENCEs that a slow peer was not sent; empty: there is none."""
        timeline = self._timeline(session_id)
        if timeline is None or peer not in timeline.audiences:
            return b""
        if kind is Kind.PRESENCE:
            presence = self._hub.rooms[session_id].presence
            return b"" if presence is None else self._hub.presence.skipped(presence, timeline, peer)
        self._metrics.count_sent("SNAPSHOT")
        return timeline.skipped(peer, self._broker.shown_ms())

    def _timeline(self, session_id: str) -> Timeline | None:
        room = self._hub.rooms.get(session_id)
        return None if room is None else room.timeline

    def _answer(
        self,
        timeline: Timeline,
        presence: RoomPresence | None,
        peer: Peer,
        id_: RequestId | UnsetType,
        position: str | None,
    ) -> None:
        is_first = peer not in timeline.audiences
        if is_first:
            timeline.audiences.enter(peer)
            if presence is not None:
                self._hub.presence.arrive(presence, peer)
        else:
            timeline.audiences.catch_up(peer)
        present = UNSET if presence is None else presence.greet(peer)
        now_ms = self._broker.shown_ms()
        answer = timeline.subscribed(id_, position, now_ms, is_first=is_first, presence=present)
        peer.send(peer.encoding.encode(answer), Kind.SYNC)
        self._metrics.count_sent("SUBSCRIBED")

    # --- reading -----------------------------------------------------------------------------------

    async def _current(self, session_id: str) -> Timeline:
        """The session's timeline, when it knows what is stored. Raises BrokerUnavailable, StateCorrupt."""
        room = self._hub.room_of(session_id, is_read=True)
        timeline = room.timeline
        if timeline is None:
            timeline = room.timeline = Timeline(session_id, self._hub.rings, self._hub.make_recipients)
        while not timeline.is_current:
            if timeline.reading is None:
                timeline.reading = asyncio.create_task(self._read(timeline))
            await asyncio.shield(timeline.reading)
        return timeline

    async def _read(self, timeline: Timeline) -> None:
        try:
            gap_count, session_id = timeline.gap_count, timeline.session_id
            update_count = timeline.update_count
            state, events = await self._recent(session_id)
            head = None if state is None else heads.read_head(state)
            if state is not None and (
                head is None or head.session_id != session_id or head.is_due(self._broker.now_ms(session_id))
            ):
                # Settled first, as everywhere; or it says that the state cannot be read.
                await self._sessions.read(session_id)
                update_count = timeline.update_count
                state, events = await self._recent(session_id)
                head = None if state is None else heads.read_head(state)
            if self._timeline(session_id) is timeline:  # else everybody has left meanwhile
                timeline.learn(head, state, events, self._broker.shown_ms(), update_count)
            timeline.is_current = gap_count == timeline.gap_count
            self._hub.learned(timeline, head, state)
        except BaseException:
            # There may be others in the room by now, who follow no changes.
            self._hub.repair.learn(timeline.session_id)
            raise
        finally:
            timeline.reading = None

    async def _recent(self, session_id: str) -> tuple[bytes | None, list[bytes]]:
        return await self._broker.recent(session_id, MAX_RING_EVENTS, MAX_RING_BYTES)
