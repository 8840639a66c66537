"""What followers of a session's changes are sent, whatever the bus, the store and clients do meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from lockstep.contract import Broker
from lockstep.errors import BrokerUnavailable, SessionNotFound
from lockstep.live.deadlines import Deadlines
from lockstep.live.followers import Followers
from lockstep.live.hub import Hub
from lockstep.live.peers import Kind
from lockstep.metrics import Metrics
from lockstep.sessions import Sessions
from lockstep.wire import heads, protocol_v1
from lockstep.wire.encodings import JSON
from tests.support.chains import EPOCH, NEW, OLD, T0, S, compact, event, position, publication, state
from tests.support.client_model import position_of
from tests.support.followers import View
from tests.support.peers import FakePeer


class Follower(FakePeer):
    """Applies what it is sent; what does not apply raises where it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.view = View(S)

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        super().send(frame, kind)
        self.view.take(self.got[-1])

    @property
    def told(self) -> list[str]:
        return self.view.told


class FakeBroker:
    """Has one session or none. `on_read` happens between a read and its answer, `on_load` where a repair has
    seen that a state differs and reads it whole; `gate` keeps answers back.
    """

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.events: list[bytes] = []
        self.reads = 0
        self.is_away = False
        self.on_read: Callable[[], None] = lambda: None
        self.on_load: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    def store(self, version: int, line: str = "a", epoch: str = EPOCH) -> None:
        self.state = state(version, line, epoch)
        self.events = [event(each, line) for each in range(1, version + 1)]

    def now_ms(self, session_id: str | None = None) -> int:
        return T0

    def shown_ms(self) -> int:
        return T0

    async def hear(self, session_id: str) -> bool:
        return not self.is_away

    def unhear(self, session_id: str) -> None:
        pass

    async def _read(self) -> tuple[bytes | None, list[bytes]]:
        self.reads += 1
        if self.is_away:
            raise BrokerUnavailable
        found = self.state, self.events
        on_read, self.on_read = self.on_read, lambda: None
        on_read()
        await self.gate.wait()
        return found

    async def recent(self, session_id: str, events: int, size: int) -> tuple[bytes | None, list[bytes]]:
        return await self._read()

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        if at_most_bytes is not None:
            self.on_read = self.on_load
        return [(await self._read())[0] for _ in session_ids]

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        return [each and each[: heads.BEGINNING_BYTES] for each in await self.load(session_ids)]


class FakeSessions:
    async def read(self, session_id: str) -> bytes:
        raise AssertionError("nothing is due, and all that is stored can be read")


class FakeDeadlines:
    def arm(self, session_id: str, deadline_ms: int | None) -> None:
        pass


class World:
    """Followers at a hub, among fakes."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        broker, sessions, metrics = cast(Broker, self.broker), cast(Sessions, FakeSessions()), Metrics()
        self.hub = Hub(broker, sessions, cast(Deadlines, FakeDeadlines()), metrics)
        self.followers = Followers(self.hub, broker, sessions, metrics)

    async def follow(self, asked: str | None = None, view: View | None = None) -> Follower:
        peer = Follower()
        peer.view = view or peer.view
        await self.followers.subscribe(S, peer, 1, asked)
        assert peer.got[0]["type"] == "SUBSCRIBED"
        await settled()
        return peer

    async def commit(self, version: int, line: str = "a", epoch: str = EPOCH, **how: Any) -> None:
        """Stored and heard."""
        self.broker.store(version, line, epoch)
        self.hub.on_published(publication(version, line, epoch, **how))
        await settled()

    async def delete(self, epoch: str = EPOCH) -> None:
        self.broker.state, self.broker.events = None, []
        self.hub.on_published(protocol_v1.session_deleted(S, T0, epoch))
        await settled()

    async def gap(self) -> None:
        self.hub.on_gap()
        await settled()

    @property
    def stored(self) -> Any:
        return None if self.broker.state is None else json.loads(self.broker.state)

    def assert_at_the_end(self, *peers: Follower) -> None:
        for peer in peers:
            assert peer.view.state == self.stored, peer.told
            assert peer.view.position == position_of(self.stored)


async def settled() -> None:
    """The fakes wait for nothing but turns of the loop."""
    for _ in range(40):
        await asyncio.sleep(0)


@asynccontextmanager
async def a_world(version: int = 0) -> AsyncIterator[World]:
    world = World()
    if version:
        world.broker.store(version)
    yield world
    world.broker.gate.set()
    await world.hub.close()


# --- what is published -----------------------------------------------------------------------------


async def test_a_session_that_does_not_exist_yet_is_followed_from_its_creation_on() -> None:
    async with a_world() as world:
        peer = await world.follow()
        assert (peer.got[0]["state"], peer.got[0]["position"]) == (None, None)
        for version in (1, 2, 3):
            await world.commit(version)
        assert peer.told == ["state", "created", "UPDATE", "UPDATE"]
        world.assert_at_the_end(peer)


async def test_an_update_that_does_not_follow_what_was_sent_goes_out_as_the_state_that_came_with_it() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.commit(5)
        await world.commit(6)
        assert peer.told == ["state", "repair", "UPDATE"]
        world.assert_at_the_end(peer)
        # It is not the state that this room knew, but it is one that somebody may come back with.
        assert (await world.follow(position(4), View(S, json.loads(state(4)), position(4)))).told == [
            "recovered"
        ]


@pytest.mark.parametrize("version", [1, 4])
async def test_an_update_to_an_unknown_session_is_a_creation_or_a_repair(version: int) -> None:
    async with a_world() as world:
        peer = await world.follow()
        await world.commit(version)
        assert peer.told == ["state", "created" if version == 1 else "repair"]
        world.assert_at_the_end(peer)


async def test_a_state_of_a_process_that_publishes_no_update_is_a_repair_with_its_position() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        world.broker.store(4)
        world.hub.on_published(protocol_v1.state_update(S, T0, state(4)))
        await settled()
        await world.commit(5)
        assert peer.told == ["state", "repair", "UPDATE"]
        world.assert_at_the_end(peer)


async def test_what_was_sent_is_not_sent_again() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.commit(4)
        reads = world.broker.reads
        for _ in range(3):
            world.hub.on_published(publication(4))
            await settled()
        assert (peer.told, world.broker.reads) == (["state", "UPDATE"], reads)


async def test_what_is_late_makes_the_store_be_asked_and_nothing_be_sent() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.commit(4)
        await world.commit(5)
        reads = world.broker.reads
        for version in (4, 3, 2, 1):
            world.hub.on_published(publication(version))
            await settled()
        assert peer.told == ["state", "UPDATE", "UPDATE"]
        assert world.broker.reads > reads


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_of_another_line_what_is_stored_is_shown(version: int) -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.commit(4)
        await world.commit(5)
        await world.commit(version, "b")
        assert peer.told[-1] == "repair"
        world.assert_at_the_end(peer)
        await world.commit(version + 1, "b")
        assert peer.told[-1] == "UPDATE"
        world.assert_at_the_end(peer)


FOREIGN: list[dict[str, Any]] = [
    {"status": "strange"},
    {"status": "strange", "epoch": EPOCH, "version": 9, "commit": "foreign0"},
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=["without order", "with an order"])
async def test_behind_a_foreign_state_comes_what_is_stored(foreign: dict[str, Any]) -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.commit(4)
        world.hub.on_published(compact({"sessionId": S, "state": foreign}))
        await settled()
        assert (peer.view.state, peer.view.position) == (foreign, None)
        await world.commit(5)
        assert peer.told == ["state", "UPDATE", "foreign", "repair"]
        await world.commit(6)
        assert peer.told[-1] == "UPDATE"
        world.assert_at_the_end(peer)


@pytest.mark.parametrize("foreign", FOREIGN, ids=["without order", "with an order"])
async def test_after_a_gap_a_foreign_state_gives_way_to_what_is_stored(foreign: dict[str, Any]) -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        world.hub.on_published(compact({"sessionId": S, "state": foreign}))
        await settled()
        await world.gap()
        world.assert_at_the_end(peer)


async def test_who_comes_after_a_foreign_state_gets_what_is_stored() -> None:
    async with a_world(3) as world:
        first = await world.follow()
        world.hub.on_published(compact({"sessionId": S, "state": {"status": "strange"}}))
        await settled()
        second = await world.follow(position(3), View(S, json.loads(state(3)), position(3)))
        world.assert_at_the_end(second)
        await world.commit(4)
        world.assert_at_the_end(first, second)


async def test_a_message_is_inside_and_changes_nothing() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        for said in ({"type": "UPDATE", "sessionId": S}, {"type": "DELETED", "n": 1.5}):
            world.hub.on_relayed(S, compact(said))
            await settled()
            assert (peer.got[-1]["type"], peer.got[-1]["message"]) == ("MESSAGE", said)
        world.assert_at_the_end(peer)


# --- the end, and another life -----------------------------------------------------------------------


async def test_a_deletion_leaves_the_follower_and_another_life_is_told() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.delete()
        assert (peer.got[-1]["type"], peer.got[-1]["epoch"]) == ("DELETED", EPOCH)
        await world.commit(1, epoch=NEW)
        await world.commit(2, epoch=NEW)
        assert peer.told == ["state", "DELETED", "created", "UPDATE"]
        world.assert_at_the_end(peer)


async def test_another_life_that_was_not_heard_from_its_beginning_is_a_repair() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.delete()
        await world.commit(4, epoch=NEW)
        assert peer.told == ["state", "DELETED", "repair"]
        world.assert_at_the_end(peer)


async def test_a_deletion_of_an_earlier_life_is_dropped() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        world.hub.on_published(protocol_v1.session_deleted(S, T0, OLD))
        await settled()
        assert peer.told == ["state"]


async def test_what_comes_late_of_a_life_that_has_ended_is_not_shown() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.delete()
        world.hub.on_published(publication(4))
        await settled()
        assert set(peer.told[1:]) == {"DELETED"}
        await world.commit(1, epoch=NEW)
        world.hub.on_published(publication(5))
        await settled()
        assert peer.told[-1] == "created"
        world.assert_at_the_end(peer)


async def test_a_life_that_the_store_has_again_is_shown_and_followed() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.delete()
        await world.commit(4)  # the store had lost the deletion, and nobody was told of a gap
        world.assert_at_the_end(peer)
        await world.commit(5)
        assert peer.told[-1] == "UPDATE"
        world.assert_at_the_end(peer)


async def test_a_deletion_while_a_room_is_repaired_outdates_what_was_read() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        world.broker.store(4)  # and it was not heard

        def delete() -> None:
            world.broker.state = None
            world.hub.on_published(protocol_v1.session_deleted(S, T0, EPOCH))

        world.broker.on_load = delete
        await world.gap()
        assert peer.told == ["state", "DELETED"]


# --- reads -------------------------------------------------------------------------------------------


async def test_what_came_while_an_older_state_was_read_is_not_lost_and_not_doubled() -> None:
    async with a_world(5) as world:
        world.broker.gate.clear()
        coming = asyncio.create_task(world.follow(position(3), View(S, json.loads(state(3)), position(3))))
        await settled()
        await world.commit(6)
        await world.commit(7)
        world.broker.gate.set()
        peer = await coming
        assert peer.told == ["recovered"]
        assert [version for _, version in peer.view.events] == [4, 5, 6, 7]
        await world.commit(8)
        world.assert_at_the_end(peer)


async def test_what_comes_late_behind_a_newer_state_that_was_read_is_not_doubled() -> None:
    async with a_world(8) as world:
        world.broker.on_read = lambda: world.hub.on_published(publication(6))
        peer = await world.follow()
        assert peer.view.position == position(8)
        for version in (7, 8):
            world.hub.on_published(publication(version))
            await settled()
        await world.commit(9)
        assert peer.told == ["state", "UPDATE"]
        world.assert_at_the_end(peer)


async def test_a_gap_during_a_read_makes_it_read_again() -> None:
    async with a_world(5) as world:
        world.broker.gate.clear()
        coming = asyncio.create_task(world.follow())
        await settled()
        reads = world.broker.reads
        world.broker.store(9)  # and it was not heard
        world.hub.on_gap()
        world.broker.gate.set()
        peer = await coming
        assert world.broker.reads > reads
        assert (peer.told, peer.view.position) == (["state"], position(9))


async def test_a_gap_of_other_sessions_makes_it_read_nothing() -> None:
    async with a_world(5) as world:
        peer = await world.follow()
        reads = world.broker.reads
        world.hub.on_gap(lambda session_id: session_id != S)
        await settled()
        await world.follow()
        assert (world.broker.reads, peer.told) == (reads, ["state"])


async def test_a_deletion_during_a_read_counts_more_than_what_was_read() -> None:
    async with a_world(5) as world:
        world.broker.gate.clear()
        coming = asyncio.create_task(world.follow())
        await settled()
        await world.delete()
        world.broker.gate.set()
        peer = await coming
        assert peer.told == ["state"]
        world.assert_at_the_end(peer)


async def test_another_life_that_began_during_a_read_counts_more_than_what_was_read() -> None:
    async with a_world(5) as world:
        world.broker.gate.clear()
        coming = asyncio.create_task(world.follow(position(5), View(S, json.loads(state(5)), position(5))))
        await settled()
        await world.delete()
        await world.commit(1, epoch=NEW)
        world.broker.gate.set()
        peer = await coming
        assert peer.told == ["state"]
        await world.commit(2, epoch=NEW)
        world.assert_at_the_end(peer)


@pytest.mark.parametrize("stored", [(3, "b"), (5, "b"), (7, "b"), (4, "a")])
async def test_what_was_read_counts_where_nothing_came_meanwhile(stored: tuple[int, str]) -> None:
    async with a_world(3) as world:
        first = await world.follow()
        await world.commit(4)
        await world.commit(5)
        world.broker.store(*stored)
        timeline = world.hub.rooms[S].timeline
        assert timeline is not None
        timeline.note_gap()  # and the repair has not come so far
        second = await world.follow(position(5), View(S, json.loads(state(5)), position(5)))
        assert second.told[0] == "state"
        world.assert_at_the_end(first, second)
        await world.commit(stored[0] + 1, stored[1])
        world.assert_at_the_end(first, second)


async def test_however_many_come_one_read_answers_them_all() -> None:
    async with a_world(5) as world:
        peers = await asyncio.gather(*(world.follow() for _ in range(50)))
        assert world.broker.reads <= 2  # the room's deadline is the other
        await world.commit(6)
        assert await world.follow()
        assert world.broker.reads <= 2
        world.assert_at_the_end(*peers)


async def test_while_the_store_is_away_nobody_follows_and_then_everybody_may() -> None:
    async with a_world(5) as world:
        world.broker.is_away = True
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                await world.followers.subscribe(S, Follower(), 1)
        await settled()
        assert world.hub.rooms == {}
        world.broker.is_away = False
        world.assert_at_the_end(await world.follow())


# --- what one of them asks ---------------------------------------------------------------------------


async def test_who_comes_between_a_change_and_its_delivery_gets_it_once() -> None:
    async with a_world(3) as world:
        first = await world.follow()
        for version in (4, 5, 6):
            world.broker.store(version)
            world.hub.on_published(publication(version))
        late = Follower()
        late.view = View(S, json.loads(state(4)), position(4))
        subscribing = asyncio.create_task(world.followers.subscribe(S, late, 1, position(4)))
        await settled()
        await subscribing
        assert [version for _, version in late.view.events] == [5, 6]
        world.assert_at_the_end(first, late)


async def test_who_follows_already_gets_the_state_whatever_position_it_names() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        await world.followers.subscribe(S, peer, 2, position(3))
        assert peer.told == ["state", "state"]
        await world.commit(4)
        assert peer.told == ["state", "state", "UPDATE"]


async def test_a_state_that_is_asked_for_never_overtakes_nor_doubles_a_change() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        for version in (4, 5):
            world.broker.store(version)
            world.hub.on_published(publication(version))
        await world.followers.sync(S, peer, 2)
        assert peer.told == ["state", "UPDATE", "UPDATE", "requested"]
        await settled()
        assert peer.told == ["state", "UPDATE", "UPDATE", "requested"]
        await world.delete()
        with pytest.raises(SessionNotFound):
            await world.followers.sync(S, peer, 3)


async def test_who_is_behind_shares_one_frame_with_all_of_the_same_encoding() -> None:
    """However they take turns."""
    async with a_world(3) as world:
        peers = [Follower() for _ in range(4)]
        for peer, encoding in zip(peers, [JSON, JSON.deflated] * 2, strict=True):
            peer.encoding = encoding
            await world.followers.subscribe(S, peer, 1)
        for version in (4, 5):
            await world.commit(version)
            frames = [world.followers.skipped(S, peer, Kind.CHANGE) for peer in peers * 2]
            assert json.loads(frames[0][4:])["position"] == position(version)
            assert len({id(frame) for frame in frames}) == 2
            assert frames[0] is frames[2]
            assert frames[1] is frames[3]


async def test_of_whom_nobody_follows_nothing_is_kept() -> None:
    async with a_world(3) as world:
        peers = [await world.follow() for _ in range(3)]
        await world.commit(4)
        assert world.hub.rings.total_bytes > 0
        for peer in peers:
            world.followers.unsubscribe(S, peer)
        assert (world.hub.rooms, world.hub.rings.total_bytes) == ({}, 0)
        world.followers.unsubscribe(S, peers[0])
        await world.commit(5)
        assert all(peer.view.position == position(4) for peer in peers)


async def test_nothing_is_kept_of_a_read_whose_asker_has_gone() -> None:
    async with a_world(3) as world:
        peer = await world.follow()
        world.hub.on_gap()
        await settled()
        world.hub.on_gap()
        world.broker.gate.clear()
        asking = asyncio.create_task(world.followers.sync(S, peer, 2))
        await settled()
        world.followers.unsubscribe(S, peer)
        world.broker.gate.set()
        await asking
        await settled()
        assert (world.hub.rooms, world.hub.rings.total_bytes) == ({}, 0)
