"""The hub with peers and a broker that do just what a test says."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from lockstep.contract import Affected, Broker
from lockstep.errors import BrokerUnavailable, Close, SessionNotFound
from lockstep.live import repair as repair_module
from lockstep.live import worklist
from lockstep.live.deadlines import Deadlines
from lockstep.live.hub import Hub
from lockstep.live.peers import Kind
from lockstep.metrics import Metrics
from lockstep.rules.state_json import dumps
from lockstep.sessions import Sessions
from lockstep.wire import heads, payloads, protocol_v1
from lockstep.wire.encodings import JsonText
from lockstep.wire.frames import TEXT, encode_frame
from tests.support.peers import FakePeer

T0 = 1_704_067_200_000
S = "00000000-0000-4000-8000-00000000005e"
OTHER = "00000000-0000-4000-8000-0000000000ff"
OLD, EPOCH, NEW = "0lqtw8xa0aaaa", "0lqtw8xc0bbbb", "0lqtw8xd0cccc"


def state(
    version: int, epoch: str = EPOCH, commit: str = "c0mmit00", due: int | None = None, sid: str = S
) -> bytes:
    head = {"session_id": sid, "epoch": epoch, "version": version, "commit": commit, "deadline_ms": due}
    return json.dumps(head | {"status": "running"}, separators=(",", ":")).encode()


def published(version: int, epoch: str = EPOCH, **fields: Any) -> bytes:
    return protocol_v1.state_update(fields.get("sid", S), T0, state(version, epoch, **fields))


def deleted(epoch: str) -> bytes:
    return protocol_v1.session_deleted(S, T0, epoch)


class FakeBroker:
    """Has these states; `on_load` happens between a read and its answer."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}
        self.is_away = False
        self.away: set[str] = set()  # sessions of a part that is
        self.unheard: list[str] = []
        self.loaded: list[list[str]] = []
        self.on_load: Callable[[], None] = lambda: None
        self.hearing: Callable[[], Any] = lambda: asyncio.sleep(0)

    def now_ms(self, session_id: str | None = None) -> int:
        return T0

    def shown_ms(self) -> int:
        return self.now_ms()

    async def hear(self, session_id: str) -> bool:
        await self.hearing()
        return not self.is_away

    def unhear(self, session_id: str) -> None:
        self.unheard.append(session_id)

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        if self.is_away or not self.away.isdisjoint(session_ids):
            raise BrokerUnavailable
        found = [self.states.get(session_id) for session_id in session_ids]
        self.on_load()
        await asyncio.sleep(0)
        if at_most_bytes is not None:
            sizes = list(itertools.accumulate(len(each or b"") for each in found))
            found = [each for place, each in enumerate(found) if not place or sizes[place] <= at_most_bytes]
            self.loaded.append(session_ids[: len(found)])
        return found

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        return [each and each[: heads.BEGINNING_BYTES] for each in await self.load(session_ids)]


class FakeSessions:
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker

    async def read(self, session_id: str) -> bytes:
        (found,) = await self.broker.load([session_id])
        if found is None:
            raise SessionNotFound(session_id)
        return found


class FakeDeadlines:
    def __init__(self) -> None:
        self.armed: dict[str, int | None] = {}

    def arm(self, session_id: str, deadline_ms: int | None) -> None:
        self.armed[session_id] = deadline_ms


class World:
    """A hub among fakes."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.deadlines = FakeDeadlines()
        self.hub = Hub(
            cast(Broker, self.broker),
            cast(Sessions, FakeSessions(self.broker)),
            cast(Deadlines, self.deadlines),
            Metrics(),
        )

    async def join(self, session_id: str = S, peer: FakePeer | None = None) -> FakePeer:
        """A peer in its room; its greeting is left out of what it got."""
        peer = peer or FakePeer()
        await self.hub.join(session_id, peer)
        await settled()
        assert peer.heard == ["CONNECTED"]
        peer.got.clear()
        return peer

    async def gap(self, affected: Affected | None = None) -> None:
        self.hub.on_gap(affected)
        await settled()


async def served() -> None:
    """What has been handed to the hub has been sent."""
    await asyncio.sleep(0)


async def settled() -> None:
    """Everything that can happen has happened: the fakes wait for nothing but turns of the loop."""
    for _ in range(30):
        await asyncio.sleep(0)


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.hub.close()


# --- delivery ------------------------------------------------------------------------------------


async def test_a_state_goes_to_every_peer_of_its_room_as_the_bytes_published() -> None:
    async with a_world() as world:
        first, second, other = await world.join(), await world.join(), await world.join(OTHER)
        world.hub.on_published(published(1))
        await served()
        assert first.heard == second.heard == [("STATE_UPDATE", 1)]
        assert first.frames[-1] == encode_frame(TEXT, published(1))
        assert first.frames[-1] is second.frames[-1], "encoded once, before the loop"
        assert other.heard == []


async def test_each_audience_gets_frames_in_its_own_encoding_made_once_for_all_of_it() -> None:
    class Loud(JsonText):
        def encode(self, message: bytes) -> bytes:
            return super().encode(message.replace(b"hello", b"HELLO"))

    loud = Loud()

    class LoudPeer(FakePeer):
        encoding = loud

    async with a_world() as world:
        plain = [await world.join() for _ in range(2)]
        others = [await world.join(peer=LoudPeer()) for _ in range(2)]
        world.hub.on_relayed(S, b'{"type":"NOTE","text":"hello"}')
        world.hub.on_published(published(1))
        await served()
        assert [peer.got[0]["text"] for peer in plain + others] == ["hello", "hello", "HELLO", "HELLO"]
        assert [peer.heard[1] for peer in plain + others] == [("STATE_UPDATE", 1)] * 4
        assert plain[0].frames[-2] is plain[1].frames[-2]
        assert others[0].frames[-2] is others[1].frames[-2]
        for peer in plain + others:
            world.hub.leave(S, peer)
        assert (world.broker.unheard, world.hub.peers) == ([S], [])


async def test_a_state_that_is_not_newer_is_dropped() -> None:
    async with a_world() as world:
        peer = await world.join()
        for version in (2, 1, 2, 3, 2, 5, 4, 5, 6):
            world.hub.on_published(published(version))
        world.hub.on_published(published(6, commit="another0"))
        await served()
        assert peer.heard == [("STATE_UPDATE", version) for version in (2, 3, 5, 6)]


async def test_a_session_made_anew_is_newer_and_the_one_before_it_older_whatever_their_versions() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(9, EPOCH))
        await served()
        world.hub.on_published(published(1, NEW))
        await served()
        world.hub.on_published(published(10, EPOCH))
        await served()
        assert [(each["state"]["epoch"], each["state"]["version"]) for each in peer.got] == [
            (EPOCH, 9),
            (NEW, 1),
        ]


@pytest.mark.parametrize("is_string", [False, True])
async def test_a_foreign_state_is_relayed_and_leaves_the_order_as_it_was(is_string: bool) -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(5))
        await served()
        foreign: Any = {"status": "strange"}
        payload = {"sessionId": S.upper(), "state": json.dumps(foreign) if is_string else foreign}
        world.hub.on_published(json.dumps(payload).encode())
        await served()
        world.hub.on_published(published(4))
        await served()
        world.hub.on_published(published(6))
        await served()
        assert [each["state"] for each in peer.got[1:2]] == [foreign]
        assert peer.heard == [("STATE_UPDATE", version) for version in (5, None, 6)]


async def test_a_foreign_state_with_a_version_is_ordered() -> None:
    async with a_world() as world:
        peer = await world.join()
        for version in (5, 4, 6):
            payload = {"sessionId": S, "state": {"epoch": EPOCH, "version": version, "more": 1}}
            world.hub.on_published(json.dumps(payload).encode())
            await served()
        world.hub.on_published(published(6))
        await served()
        world.hub.on_published(published(7))
        await served()
        assert peer.heard == [("STATE_UPDATE", version) for version in (5, 6, 7)]


async def test_a_peer_may_leave_while_its_room_is_told() -> None:
    async with a_world() as world:

        class Fleeting(FakePeer):
            def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
                super().send(frame, kind)
                if len(self.frames) > 1:
                    for peer in peers:
                        world.hub.leave(S, peer)

        peers = [await world.join(peer=Fleeting()) for _ in range(3)]
        world.hub.on_published(published(1))
        await served()
        assert [("STATE_UPDATE", 1)] in [peer.heard for peer in peers]
        assert all(len(peer.heard) <= 1 for peer in peers)
        assert world.hub.peers == []
        before = [list(peer.heard) for peer in peers]
        world.hub.on_published(published(2))
        await served()
        assert [peer.heard for peer in peers] == before


async def test_a_peer_may_leave_while_it_is_closed() -> None:
    async with a_world() as world:

        class Hasty(FakePeer):
            def close(self, how: Close) -> None:
                super().close(how)
                world.hub.leave(S, self)

        peers = [await world.join(peer=Hasty()) for _ in range(3)]
        world.hub.on_published(deleted(EPOCH))
        await served()
        assert [peer.heard for peer in peers] == [["SESSION_DELETED", 1000]] * 3


# --- the end of a session ------------------------------------------------------------------------


async def test_a_deletion_is_told_and_ends_the_room() -> None:
    async with a_world() as world:
        peer, other = await world.join(), await world.join(OTHER)
        world.hub.on_published(published(3))
        world.hub.on_published(deleted(EPOCH))
        world.hub.on_published(published(1, NEW))
        await served()
        assert peer.heard == [("STATE_UPDATE", 3), "SESSION_DELETED", 1000]
        assert peer.got[-2] == json.loads(deleted(EPOCH))
        assert peer.got[-1] == (1000, "Session deleted")
        assert world.broker.unheard == [S]
        assert world.deadlines.armed[S] is None
        assert other.heard == []
        newcomer = await world.join()
        world.hub.on_published(published(2, NEW))
        await served()
        assert newcomer.heard == [("STATE_UPDATE", 2)]
        world.hub.leave(S, peer)  # it goes only now, and leaves another's room alone
        assert world.hub.peers == [other, newcomer] or world.hub.peers == [newcomer, other]


async def test_a_deletion_of_an_older_epoch_is_dropped() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(1, NEW))
        world.hub.on_published(deleted(EPOCH))
        await served()
        assert peer.heard == [("STATE_UPDATE", 1)]
        world.hub.on_published(published(2, NEW))
        world.hub.on_published(deleted(NEW))
        await served()
        assert peer.heard == [("STATE_UPDATE", 1), ("STATE_UPDATE", 2), "SESSION_DELETED", 1000]


async def test_a_deletion_of_an_older_epoch_than_what_was_read_is_dropped() -> None:
    async with a_world() as world:
        world.broker.states[S] = state(1, NEW)
        peer = await world.join()
        world.hub.on_published(deleted(EPOCH))
        await served()
        assert peer.heard == []


async def test_a_deletion_reaches_a_room_that_has_seen_nothing() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(deleted(EPOCH))
        await served()
        assert peer.heard == ["SESSION_DELETED", 1000]


@pytest.mark.parametrize("fields", [{"deleted": True}, {"state": None}])
async def test_a_foreign_deletion_is_told_in_our_words(fields: dict[str, Any]) -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.hub.on_published(json.dumps({"sessionId": S} | fields).encode())
        await served()
        assert peer.got[1:] == [json.loads(deleted(EPOCH)), (1000, "Session deleted")]


async def test_a_foreign_deletion_of_an_older_epoch_is_dropped() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.hub.on_published(json.dumps({"sessionId": S, "deleted": True, "epoch": OLD}).encode())
        await served()
        assert peer.heard == [("STATE_UPDATE", 3)]


# --- sending somebody away -----------------------------------------------------------------------


def sent_away(subject: str, session_id: str = S) -> bytes:
    return dumps(payloads.Disconnect(session_id=session_id, subject=subject))


def of(subject: str | None) -> FakePeer:
    peer = FakePeer()
    peer.subject = subject
    return peer


async def test_only_the_subjects_peers_of_that_session_are_sent_away_behind_what_came_before() -> None:
    async with a_world() as world:
        anna, again, bert, nobody = [
            await world.join(peer=of(each)) for each in ("anna", "anna", "bert", None)
        ]
        elsewhere = await world.join(OTHER, of("anna"))
        world.hub.on_published(published(1))
        world.hub.on_relayed(S, b'{"type":"NOTE"}')
        world.hub.on_published(sent_away("anna"))
        assert anna.heard == again.heard == [("STATE_UPDATE", 1), "NOTE", "disconnected"]
        await served()
        assert anna.heard == again.heard == [("STATE_UPDATE", 1), "NOTE", "disconnected"]
        assert bert.heard == nobody.heard == [("STATE_UPDATE", 1), "NOTE"]
        assert elsewhere.heard == []
        assert world.hub.junk == 0


async def test_who_is_about_to_enter_is_sent_away_too() -> None:
    async with a_world() as world:
        is_heard = asyncio.Event()
        world.broker.hearing = is_heard.wait
        anna, bert = of("anna"), of("bert")
        joining = [asyncio.create_task(world.hub.join(S, each)) for each in (anna, bert)]
        await settled()
        world.hub.on_published(sent_away("anna", OTHER))
        world.hub.on_published(sent_away("anna"))
        assert (anna.heard, bert.heard) == (["disconnected"], [])
        anna.is_over = True
        is_heard.set()
        await asyncio.gather(*joining)
        assert (anna.heard, bert.heard) == (["disconnected"], ["CONNECTED"])
        world.hub.leave(S, bert)
        assert (world.hub.rooms, world.hub._joining) == ({}, {})


# --- messages of others --------------------------------------------------------------------------


async def test_a_message_is_relayed_as_it_is_to_its_room_alone() -> None:
    async with a_world() as world:
        first, second, other = await world.join(), await world.join(), await world.join(OTHER)
        raw = b' {"n" : 1.50, "type" : "NOTE"}\n'
        world.hub.on_relayed(S, raw)
        await served()
        assert first.frames[-1] == second.frames[-1] == encode_frame(TEXT, raw)
        assert other.heard == []


async def test_of_a_wrapped_message_the_inner_one_is_relayed() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_relayed(S, json.dumps({"sessionId": S, "message": {"type": "NOTE", "n": 1}}).encode())
        await served()
        assert peer.got == [{"type": "NOTE", "n": 1}]


JUNK = [
    b"",
    b"junk",
    b"\xff",
    b"[]",
    b"5",
    b"{}",
    b'{"sessionId":5,"state":{}}',
    b'{"sessionId":"x","deleted":true}',
]


async def test_junk_reaches_nobody_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with a_world() as world:
        peer = await world.join()
        for payload in JUNK:
            world.hub.on_published(payload)
            world.hub.on_relayed(S, payload)
            await served()
        assert world.hub.junk == 2 * len(JUNK)
        assert peer.heard == []
        world.hub.on_published(published(1))
        await served()
        assert peer.heard == [("STATE_UPDATE", 1)]


@pytest.mark.parametrize(
    "payload",
    [b'{"type":"NOTE","n":"\xed\xa0\x80"}', b'{"sessionId":"x","message":{"type":"N","t":"\\ud800"}}'],
)
async def test_what_could_not_be_sent_as_text_is_junk_too(payload: bytes) -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_relayed(S, payload)
        await served()
        assert (world.hub.junk, peer.frames[1:]) == (1, [])


async def test_junk_is_logged_at_most_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> int:
        return sum("junk" in record.getMessage() for record in caplog.records)

    caplog.set_level(logging.WARNING)
    async with a_world() as world:
        for _ in range(1000):
            world.hub.on_published(b"junk")
            await served()
        assert lines() == 1
        world.hub._junk_logged_at -= 1.01  # a second later
        for _ in range(1000):
            world.hub.on_published(b"junk")
            await served()
        assert lines() == 2
        assert "1001" in caplog.records[-1].getMessage(), "how many were not logged can be told"
        assert world.hub.junk == 2000


# --- clients come and go -------------------------------------------------------------------------


async def test_a_peer_is_greeted_when_its_channel_is_heard_and_not_before() -> None:
    async with a_world() as world:
        is_heard = asyncio.Event()
        world.broker.hearing = is_heard.wait
        peer = FakePeer()
        joining = asyncio.create_task(world.hub.join(S, peer))
        await settled()
        assert peer.got == []
        is_heard.set()
        await joining
        assert peer.got == [{"type": "CONNECTED", "sessionId": S, "timestamp": T0}]
        world.hub.on_published(published(1))
        await served()
        assert peer.heard == ["CONNECTED", ("STATE_UPDATE", 1)]


async def test_a_peer_that_ends_while_its_channel_is_joined_leaves_no_trace() -> None:
    async with a_world() as world:
        is_heard = asyncio.Event()
        world.broker.hearing = is_heard.wait
        peer = FakePeer()
        joining = asyncio.create_task(world.hub.join(S, peer))
        await settled()
        peer.is_over = True
        world.hub.leave(S, peer)
        is_heard.set()
        await joining
        await settled()
        assert (world.hub.peers, world.hub.rooms, world.hub._joining) == ([], {}, {})
        assert world.broker.unheard == [S], "the channel is left, too"
        assert peer.got == []


async def test_a_peer_that_cannot_be_set_up_leaves_no_trace() -> None:
    async with a_world() as world:

        async def failing() -> None:
            raise RuntimeError

        world.broker.hearing = failing
        with pytest.raises(RuntimeError):
            await world.hub.join(S, FakePeer())
        assert (world.hub.peers, world.hub.rooms, world.hub._joining) == ([], {}, {})
        assert world.broker.unheard == [S]


@pytest.mark.parametrize("leaver", ["one in the room", "one that joins too"])
async def test_a_channel_is_not_left_while_another_peer_joins_it(leaver: str) -> None:
    async with a_world() as world:
        there = await world.join()
        is_heard = asyncio.Event()
        world.broker.hearing = is_heard.wait
        leaving, staying = FakePeer(), FakePeer()
        joining = [asyncio.create_task(world.hub.join(S, peer)) for peer in (leaving, staying)]
        await settled()
        world.hub.leave(S, there)
        leaving.is_over = leaver == "one that joins too"
        is_heard.set()
        await asyncio.gather(*joining)
        assert world.broker.unheard == []
        world.hub.on_published(published(1))
        await served()
        assert staying.heard == ["CONNECTED", ("STATE_UPDATE", 1)]
        for peer in (leaving, staying):
            world.hub.leave(S, peer)
        assert (world.broker.unheard, world.hub.peers) == ([S], [])


async def test_a_channel_is_left_with_the_last_peer() -> None:
    async with a_world() as world:
        first, second = await world.join(), await world.join()
        world.hub.leave(S, first)
        world.hub.leave(S, first)
        assert world.broker.unheard == []
        assert world.hub.peers == [second]
        world.hub.leave(S, second)
        assert (world.broker.unheard, world.hub.peers) == ([S], [])
        assert world.deadlines.armed[S] is None
        world.hub.leave(S, second)
        world.hub.leave(OTHER, second)
        assert world.broker.unheard == [S]


async def test_a_room_that_was_empty_begins_anew() -> None:
    async with a_world() as world:
        first = await world.join()
        world.hub.on_published(published(5))
        await served()
        world.hub.leave(S, first)
        second = await world.join()
        world.hub.on_published(published(3))  # after a loss of data, say; nobody here has seen 5
        await served()
        assert second.heard == [("STATE_UPDATE", 3)]


async def test_the_deadline_of_a_session_is_armed_with_its_first_client() -> None:
    async with a_world() as world:
        world.broker.states[S] = state(3, due=T0 + 500)
        await world.join()
        await world.join(OTHER)
        assert world.deadlines.armed == {S: T0 + 500}


async def test_the_deadlines_of_many_rooms_are_armed() -> None:
    async with a_world() as world:
        ids = [f"{number:08}-0000-4000-8000-000000000000" for number in range(250)]
        for number, session_id in enumerate(ids):
            world.broker.states[session_id] = state(1, due=T0 + number, sid=session_id)
            await world.hub.join(session_id, FakePeer())
        await settled()
        assert world.deadlines.armed == {session_id: T0 + number for number, session_id in enumerate(ids)}


async def test_what_is_heard_while_a_beginning_is_read_counts_more_than_it() -> None:
    async with a_world() as world:
        world.broker.states[S] = state(3, due=T0 + 500)
        peer = FakePeer()

        def overtake() -> None:
            world.broker.states[S] = state(4, due=T0 + 900)
            world.hub.on_published(published(4, due=T0 + 900))

        await world.hub.join(S, peer)
        world.broker.on_load = overtake
        await settled()
        assert world.deadlines.armed == {S: T0 + 900}


async def test_each_update_arms_its_deadline_and_an_old_one_does_not() -> None:
    async with a_world() as world:
        await world.join()
        world.hub.on_published(published(2, due=T0 + 700))
        await served()
        world.hub.on_published(published(1, due=T0 + 100))
        await served()
        assert world.deadlines.armed == {S: T0 + 700}
        world.hub.on_published(published(3))
        await served()
        assert world.deadlines.armed == {S: None}


# --- RECONNECT -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "stored", "told"), [(None, 3, 3), (3, 3, 3), (5, 3, 5), (5, 7, 7)])
async def test_a_sync_is_never_older_than_the_room(sent: int | None, stored: int, told: int) -> None:
    async with a_world() as world:
        peer, other = await world.join(), await world.join()
        if sent:
            world.hub.on_published(published(sent))
            await served()
        world.broker.states[S] = state(stored)
        other.got.clear()
        peer.got.clear()
        await world.hub.sync(S, peer)
        assert peer.heard == [("STATE_SYNC", told)]
        assert peer.got[0]["state"] == json.loads(state(told))
        assert other.heard == [], "only who asks is answered"


async def test_a_sync_is_not_older_than_what_was_heard_while_it_was_read() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.broker.states[S] = state(3)
        world.broker.on_load = lambda: world.hub.on_published(published(4))
        await world.hub.sync(S, peer)
        assert peer.heard == [("STATE_UPDATE", 4), ("STATE_SYNC", 4)]


async def test_a_sync_does_not_hold_back_what_is_newer_than_the_rooms() -> None:
    """What one client asked for is not what the others have seen."""
    async with a_world() as world:
        peer, other = await world.join(), await world.join()
        world.broker.states[S] = state(4)
        await world.hub.sync(S, peer)
        world.hub.on_published(published(3))
        world.hub.on_published(published(4))
        await served()
        assert other.heard == [("STATE_UPDATE", 3), ("STATE_UPDATE", 4)]


async def test_a_sync_without_a_session_is_refused() -> None:
    async with a_world() as world:
        peer = await world.join()
        with pytest.raises(SessionNotFound):
            await world.hub.sync(S, peer)
        assert peer.heard == []


async def test_a_peer_that_leaves_while_it_is_answered_takes_nothing_from_the_others() -> None:
    async with a_world() as world:
        leaving, staying = await world.join(), await world.join()
        world.broker.states[S] = state(3)

        def leave() -> None:
            world.broker.on_load = lambda: None
            world.hub.on_published(published(2))
            world.hub.leave(S, leaving)
            leaving.is_over = True
            # The answer is ready before the room is served.
            world.hub._serving._handle.cancel()  # type: ignore[union-attr]

        world.broker.on_load = leave
        await world.hub.sync(S, leaving)
        world.hub._serving._serve()
        world.hub.on_published(published(3))
        await served()
        assert leaving.got == []
        assert staying.heard == [("STATE_UPDATE", 2), ("STATE_UPDATE", 3)]
        assert world.hub.peers == [staying]


async def test_a_peer_that_is_told_that_its_session_is_gone_is_sent_no_state_behind_it() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.broker.states[S] = state(3)
        world.broker.on_load = lambda: world.hub.on_published(deleted(EPOCH))
        await world.hub.sync(S, peer)
        await served()
        assert peer.heard == ["SESSION_DELETED", 1000]


async def test_a_sync_is_answered_from_the_room_while_the_store_is_away() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.broker.is_away = True
        with pytest.raises(BrokerUnavailable):
            await world.hub.sync(S, peer)
        world.hub.on_published(published(3))
        await world.hub.sync(S, peer)
        assert peer.heard == [("STATE_UPDATE", 3), ("STATE_SYNC", 3)]


async def test_who_asks_during_a_read_shares_the_next_with_all_who_do() -> None:
    async with a_world() as world:
        peers = [await world.join() for _ in range(30)]
        await served()
        world.broker.states[S] = state(3)
        loads = 0
        late: list[asyncio.Task[None]] = []

        def change() -> None:
            nonlocal loads
            loads += 1
            if loads == 1:
                world.broker.states[S] = state(4)
                late.extend(asyncio.create_task(world.hub.sync(S, peer)) for peer in peers[10:])

        world.broker.on_load = change
        await asyncio.gather(*(world.hub.sync(S, peer) for peer in peers[:10]))
        await asyncio.gather(*late)
        assert [peer.heard for peer in peers] == [[("STATE_SYNC", 3)]] * 10 + [[("STATE_SYNC", 4)]] * 20
        assert loads == 2
        await world.hub.sync(S, peers[0])
        assert loads == 3, "a later one reads anew"


# --- after a gap ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "stored", "told"),
    [
        (published(3), state(5), [("STATE_SYNC", 5)]),
        (published(3), state(3), []),
        (published(3), state(3, commit="another0"), [("STATE_SYNC", 3)]),
        (published(9), state(3), [("STATE_SYNC", 3)]),
        (published(9), state(1, NEW), [("STATE_SYNC", 1)]),
        (published(3), None, ["SESSION_DELETED", 1000]),
        (None, state(3), [("STATE_SYNC", 3)]),
        (None, None, []),
    ],
    ids=["newer", "same", "another commit", "data loss", "made anew", "gone", "none seen", "none at all"],
)
async def test_after_a_gap_a_room_is_told_what_it_does_not_have(
    seen: bytes | None, stored: bytes | None, told: list[Any]
) -> None:
    async with a_world() as world:
        first, second = await world.join(), await world.join()
        if seen is not None:
            world.hub.on_published(seen)
            await served()
        if stored is not None:
            world.broker.states[S] = stored
        for peer in (first, second):
            peer.got.clear()
        await world.gap()
        assert first.heard == second.heard == told
        await world.gap()
        assert first.heard == told, "once is enough"


async def test_a_session_that_is_gone_is_named_with_the_epoch_the_room_had() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        await world.gap()
        assert peer.got[1:] == [json.loads(deleted(EPOCH)), (1000, "Session deleted")]


async def test_a_session_that_was_read_but_never_heard_is_missed_when_it_is_gone() -> None:
    async with a_world() as world:
        world.broker.states[S] = state(3)
        peer = await world.join()
        del world.broker.states[S]
        await world.gap()
        assert peer.heard == ["SESSION_DELETED", 1000]


async def test_after_a_loss_of_data_updates_go_on_from_the_lower_version() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(9))
        world.broker.states[S] = state(3, due=T0 + 300)
        await world.gap()
        assert world.deadlines.armed == {S: T0 + 300}
        for version in (3, 4, 5):
            world.hub.on_published(published(version))
            await served()
        assert peer.heard == [
            ("STATE_UPDATE", 9),
            ("STATE_SYNC", 3),
            ("STATE_UPDATE", 4),
            ("STATE_UPDATE", 5),
        ]


async def test_what_is_heard_during_a_repair_is_not_undone_by_it() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(4)

        def move_on() -> None:
            world.broker.states[S] = state(5)
            world.hub.on_published(published(5))

        world.broker.on_load = move_on
        await world.gap()
        assert peer.heard == [("STATE_UPDATE", 3), ("STATE_UPDATE", 5)]


@pytest.mark.parametrize(
    ("seen", "stored", "heard_meanwhile", "stored_then"),
    [
        (published(5), state(7), published(4), state(7)),
        (published(5), state(7), deleted(OLD), state(7)),
        (published(9), state(3), published(4), state(4)),
        (published(5), state(7), b'{"sessionId":"' + S.encode() + b'","state":{"odd":1}}', state(7)),
    ],
    ids=["old update", "old deletion", "after data loss", "without an order"],
)
async def test_what_is_dropped_or_has_no_order_does_not_stand_for_the_repair(
    seen: bytes, stored: bytes, heard_meanwhile: bytes, stored_then: bytes
) -> None:
    """What is heard while the store is read makes up for it only if it is newer than what the room has."""
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(seen)
        world.broker.states[S] = stored

        def once() -> None:
            world.broker.on_load = lambda: None
            world.broker.states[S] = stored_then
            world.hub.on_published(heard_meanwhile)

        world.broker.on_load = once
        await world.gap()
        assert ("STATE_SYNC", json.loads(stored_then)["version"]) in peer.heard


async def test_a_repair_is_tried_until_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "RETRY_S", 0)
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(5)
        world.broker.is_away = True
        await world.gap()
        await settled()
        assert peer.heard == [("STATE_UPDATE", 3)]
        world.broker.is_away = False
        await settled()
        assert peer.heard == [("STATE_UPDATE", 3), ("STATE_SYNC", 5)]


async def test_a_gap_of_some_sessions_leaves_the_others_alone() -> None:
    other = f"{1:08}-0000-4000-8000-000000000000"
    async with a_world() as world:
        peer, untroubled = await world.join(), await world.join(other)
        world.broker.states.update({S: state(5), other: state(5, sid=other)})
        await world.gap(lambda session_id: session_id == S)
        assert (peer.heard, untroubled.heard) == ([("STATE_SYNC", 5)], [])


async def test_a_gap_during_a_repair_is_repaired_too() -> None:
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(5)

        def lose_again() -> None:
            world.broker.on_load = lambda: None
            world.broker.states[S] = state(6)
            world.hub.on_gap()

        world.broker.on_load = lose_again
        await world.gap()
        assert peer.heard[0] == ("STATE_UPDATE", 3)
        assert peer.heard[-1] == ("STATE_SYNC", 6)


async def test_all_rooms_are_repaired_however_many() -> None:
    async with a_world() as world:
        peers = {}
        for number in range(250):
            session_id = f"{number:08}-0000-4000-8000-000000000000"
            peers[session_id] = await world.join(session_id)
            world.broker.states[session_id] = state(number + 1, sid=session_id)
        await world.gap()
        assert [peer.heard for peer in peers.values()] == [
            [("STATE_SYNC", number + 1)] for number in range(250)
        ]


async def test_a_repair_reads_whole_only_what_differs_and_little_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "REPAIR_BYTES", 4_000)
    async with a_world() as world:
        ids = [f"{number:08}-0000-4000-8000-000000000000" for number in range(30)]
        large = b" " * 1_000
        peers = []
        for session_id in ids:
            world.broker.states[session_id] = state(3, sid=session_id) + large
            peers.append(await world.join(session_id))
        for session_id in ids[:10]:
            world.hub.on_published(published(3, sid=session_id))
        await settled()
        for peer in peers:
            peer.got.clear()
        await world.gap()
        assert [peer.heard for peer in peers] == [[]] * 10 + [[("STATE_SYNC", 3)]] * 20
        read = [session_id for together in world.broker.loaded for session_id in together]
        assert sorted(read) == ids[10:], "only what is not as stored is read, and once"
        assert max(map(len, world.broker.loaded)) == 3, "no more than fits is read in one go"


async def test_new_rooms_are_read_when_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        monkeypatch.setattr(worklist, "RETRY_S", 0)
        world.broker.states[S] = state(3, due=T0 + 500)
        world.broker.is_away = True
        await world.join()
        world.broker.is_away = False
        await settled()
        assert world.deadlines.armed == {S: T0 + 500}


async def test_a_room_whose_last_peer_leaves_during_a_repair_is_passed_over() -> None:
    async with a_world() as world:
        peer, other = await world.join(), await world.join(OTHER)
        world.broker.states = {S: state(2), OTHER: state(2, sid=OTHER)}
        world.broker.on_load = lambda: world.hub.leave(S, peer)
        await world.gap()
        assert (peer.heard, other.heard) == ([], [("STATE_SYNC", 2)])


# --- while the store is away ---------------------------------------------------------------------


async def test_who_comes_while_the_store_is_away_gets_a_sync_when_it_is_back() -> None:
    """Also where the room itself has missed nothing."""
    async with a_world() as world:
        early = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(3)
        world.broker.is_away = True
        late = await world.join()
        assert late.heard == []
        world.broker.is_away = False
        await world.gap()
        assert late.heard == [("STATE_SYNC", 3)]
        assert early.heard[0] == ("STATE_UPDATE", 3)


async def test_who_comes_while_the_store_is_away_hears_nothing_if_there_is_no_session() -> None:
    async with a_world() as world:
        world.broker.is_away = True
        late = await world.join()
        world.broker.is_away = False
        await world.gap()
        assert late.heard == []
        world.hub.on_published(published(1))
        await served()
        assert late.heard == [("STATE_UPDATE", 1)]


async def test_a_promised_sync_is_not_forgotten_over_an_old_update() -> None:
    async with a_world() as world:
        early = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(3)
        world.broker.is_away = True
        late = await world.join()
        world.broker.is_away = False

        def once() -> None:
            world.broker.on_load = lambda: None
            world.hub.on_published(published(2))

        world.broker.on_load = once
        await world.gap()
        assert ("STATE_SYNC", 3) in late.heard
        assert early.heard[0] == ("STATE_UPDATE", 3)


# --- losses without a gap ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (state(5), [("STATE_SYNC", 5)]),
        (state(3), []),
        (state(3, commit="another0"), [("STATE_SYNC", 3)]),
        (state(1), [("STATE_SYNC", 1)]),
        (None, ["SESSION_DELETED", 1000]),
    ],
    ids=["newer", "same", "another commit", "older", "gone"],
)
async def test_a_silent_loss_is_found_by_the_check(
    stored: bytes | None, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_module, "CHECK_INTERVAL_S", 0.0)
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        await served()
        if stored is not None:
            world.broker.states[S] = stored
        peer.got.clear()
        world.hub.start()
        await settled()
        assert peer.heard == told


async def test_a_session_that_nobody_announced_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "CHECK_INTERVAL_S", 0.0)
    async with a_world() as world:
        peer = await world.join()
        world.hub.start()
        await settled()
        assert peer.heard == []
        world.broker.states[S] = state(1)
        await settled()
        assert peer.heard == [("STATE_SYNC", 1)]


async def test_the_check_goes_on_after_the_store_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "CHECK_INTERVAL_S", 0.0)
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(4)
        world.broker.is_away = True
        world.hub.start()
        await settled()
        world.broker.is_away = False
        await settled()
        assert peer.heard == [("STATE_UPDATE", 3), ("STATE_SYNC", 4)]


async def test_the_check_passes_over_a_part_that_is_away_and_finds_what_it_has_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "CHECK_INTERVAL_S", 0.0)
    async with a_world() as world:
        peers = {sid: await world.join(sid) for sid in (S, OTHER)}
        world.broker.states = {sid: state(1, sid=sid) for sid in peers}
        world.broker.away = {S}
        world.hub.start()
        await settled()
        assert [peer.heard for peer in peers.values()] == [[], [("STATE_SYNC", 1)]]
        world.broker.away.clear()
        await settled()
        assert [peer.heard for peer in peers.values()] == [[("STATE_SYNC", 1)]] * 2


async def test_what_is_heard_during_a_check_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "CHECK_INTERVAL_S", 0.0)
    async with a_world() as world:
        peer = await world.join()
        world.hub.on_published(published(3))
        world.broker.states[S] = state(3)
        versions = iter(range(4, 20))

        def move_on() -> None:
            version = next(versions, None)
            if version is not None:
                world.broker.states[S] = state(version)
                world.hub.on_published(published(version))

        world.broker.on_load = move_on
        world.hub.start()
        await settled()
        await settled()
        assert peer.heard == [("STATE_UPDATE", version) for version in range(3, 20)]
