"""Presence at a hub: what other processes and followers are told, whatever clients, store and bus do."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from lockstep.contract import Attendance, Broker
from lockstep.errors import BrokerUnavailable, Conflict, SessionNotFound
from lockstep.live import roster, worklist
from lockstep.live.deadlines import Deadlines
from lockstep.live.followers import Followers
from lockstep.live.hub import Hub
from lockstep.live.peers import Kind
from lockstep.live.presence import RoomPresence
from lockstep.live.room import Room
from lockstep.metrics import Metrics
from lockstep.sessions import Sessions
from lockstep.wire import heads, protocol_v1
from lockstep.wire.encodings import Encoding, JsonText
from tests.support.chains import EPOCH, NEW, T0, S, compact
from tests.support.followers import View
from tests.support.loop_time import LoopTime, settled
from tests.support.peers import FakePeer
from tests.support.presence_view import PresenceView

A, B = "process-a", "process-b"


def state(version: int = 1, epoch: str = EPOCH, *, presence: bool = True) -> bytes:
    fields = {"session_id": S, "epoch": epoch, "version": version, "commit": f"a{version:07}"}
    shown = {"presence": True} if presence else {}
    more = {"deadline_ms": None, "sync_mode": "global", "status": "running"} | shown | {"participants": []}
    return compact(fields | more)


class Client(FakePeer):
    """A client of a subject, or of none. As a follower it holds what it is told against the contract."""

    def __init__(self, subject: str | None = None, encoding: Encoding | None = None) -> None:
        super().__init__()
        self.subject = subject
        if encoding is not None:
            self.encoding = encoding
        self.view = View(S)

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        super().send(frame, kind)
        self.view.take(self.got[-1])

    @property
    def presence(self) -> PresenceView:
        assert self.view.presence is not None
        return self.view.presence

    @property
    def subjects(self) -> set[str] | None:
        return self.presence.subjects

    def told(self) -> list[Any]:
        """By PRESENCE, since this was asked last."""
        told, self.presence.told = self.presence.told, []
        return told


class FakeBroker:
    """Has one session or none, and what other processes say; remembers what this one says."""

    def __init__(self) -> None:
        self.state: bytes | None = state()
        self.said: list[tuple[str, Attendance | None]] = []
        self.others: dict[str, dict[str, Attendance]] = {}
        self.forgotten = self.reads = 0
        self.is_away = False
        self.on_present: Callable[[], None] = lambda: None

    def now_ms(self, session_id: str | None = None) -> int:
        return T0 + round(asyncio.get_running_loop().time() * 1000)

    shown_ms = now_ms

    async def hear(self, session_id: str) -> bool:
        return not self.is_away

    def unhear(self, session_id: str) -> None:
        pass

    async def recent(self, session_id: str, events: int, size: int) -> tuple[bytes | None, list[bytes]]:
        return (await self.load([session_id]))[0], []

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        if self.is_away:
            raise BrokerUnavailable
        await asyncio.sleep(0)
        return [self.state for _ in session_ids]

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        return [each and each[: heads.BEGINNING_BYTES] for each in await self.load(session_ids)]

    def attend(self, session_id: str, subject: str, attendance: Attendance | None) -> None:
        self.said.append((subject, attendance))

    def forget_session(self, session_id: str) -> None:
        self.forgotten += 1
        self.said.clear()

    async def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        self.reads += 1
        if self.is_away:
            raise BrokerUnavailable
        found = {process: dict(said) for process, said in self.others.items()}
        await asyncio.sleep(0)
        self.on_present()
        return found

    @property
    def counts(self) -> dict[str, int | None]:
        """What this process says last, without since when."""
        return {subject: each and each.connections for subject, each in self.said}


class FakeDeadlines:
    def arm(self, session_id: str, deadline_ms: int | None) -> None:
        pass


class World:
    """Clients at a hub, among fakes, on a loop whose clock is set."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        broker, metrics = cast(Broker, self.broker), Metrics()
        sessions = cast(Sessions, self)
        self.hub = Hub(broker, sessions, cast(Deadlines, FakeDeadlines()), metrics)
        self.followers = Followers(self.hub, broker, sessions, metrics)
        self.metrics = metrics
        self.pass_s = LoopTime().pass_s

    async def read(self, session_id: str) -> bytes:
        """As `Sessions`."""
        (found,) = await self.broker.load([session_id])
        if found is None:
            raise SessionNotFound(session_id)
        return found

    async def follow(self, subject: str | None = None, encoding: Encoding | None = None) -> Client:
        client = Client(subject, encoding)
        await self.followers.subscribe(S, client, 1)
        await settled()
        return client

    async def join(self, subject: str | None = None) -> Client:
        """A client of protocol v1."""
        client = Client(subject)
        await self.hub.join(S, client)
        await settled()
        return client

    def leave(self, *clients: Client) -> None:
        for client in clients:
            self.followers.unsubscribe(S, client)
            self.hub.leave(S, client)

    def say(self, process: str, **said: int | None) -> None:
        """Another process says it, all of it since T0; it is stored, too."""
        attendances = {
            subject: None if each is None else Attendance(each, T0) for subject, each in said.items()
        }
        stored = self.broker.others.setdefault(process, {})
        for subject, attendance in attendances.items():
            if attendance is None:
                stored.pop(subject, None)
            else:
                stored[subject] = attendance
        self.hub.on_presence(S, process, attendances)

    async def publish(self, stored: bytes) -> None:
        self.broker.state = stored
        self.hub.on_published(protocol_v1.state_update(S, T0, stored))
        await settled()

    async def delete(self, epoch: str = EPOCH) -> None:
        self.broker.state = None
        self.hub.on_published(protocol_v1.session_deleted(S, T0, epoch))
        await settled()

    async def gap(self) -> None:
        self.hub.on_gap()
        await settled()

    async def listing(self) -> Any:
        listing = json.loads(await self.hub.presence.listing(S))
        return [each["subject"] for each in listing["present"]], listing["anonymous"], listing["total"]

    @property
    def tracked(self) -> list[RoomPresence]:
        return list(self.hub.presence._presences.values())


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.hub.close()


def told(clients: Iterable[Client]) -> list[Any]:
    return [client.told() for client in clients]


# --- coming and going ----------------------------------------------------------------------------------


async def test_a_follower_is_told_who_is_there_and_then_who_comes() -> None:
    async with a_world() as world:
        world.say(A, carl=2)
        world.broker.others[A] = {"carl": Attendance(2, T0)}
        anna = await world.follow("anna")
        assert anna.subjects == {"anna", "carl"}
        bob = await world.follow("bob")
        await world.pass_s(0.25)
        assert (anna.told(), bob.subjects, bob.told()) == ([(["bob"], [])], {"anna", "bob", "carl"}, [])
        assert world.broker.counts == {"anna": 1, "bob": 1}


async def test_the_first_arrival_is_told_at_once_and_what_follows_after_250_ms() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        await settled()
        assert anna.told() == [(["bob"], [])]
        world.say(A, carl=1)
        await world.pass_s(0.2)
        world.say(A, dora=1, carl=None)
        world.say(A, emil=1)
        await settled()
        assert anna.told() == []
        await world.pass_s(0.05)
        assert anna.told() == [(["dora", "emil"], [])]


async def test_a_departure_is_told_3_s_later() -> None:
    async with a_world() as world:
        anna, bob = await world.follow("anna"), await world.follow("bob")
        await world.pass_s(1)
        anna.told()
        world.leave(bob)
        await world.pass_s(2.9)
        assert (anna.told(), world.broker.counts["bob"]) == ([], 0)
        await world.pass_s(0.1)
        assert (anna.told(), world.broker.counts["bob"]) == ([([], ["bob"])], None)


async def test_a_reload_tells_nobody_anything() -> None:
    async with a_world() as world:
        anna, bob = await world.follow("anna"), await world.follow("bob")
        nobody = await world.follow()
        await world.pass_s(1)
        told((anna, bob, nobody))
        for _ in range(5):
            world.leave(bob, nobody)
            await world.pass_s(1)
            bob, nobody = await world.follow("bob"), await world.follow()
            await world.pass_s(1)
            assert told((anna, bob, nobody)) == [[], [], []]
        await world.pass_s(5)
        assert anna.told() == []


async def test_a_subject_with_three_tabs_leaves_with_the_last_of_them() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        tabs = [await world.follow("bob"), await world.join("bob"), await world.follow("bob")]
        await world.pass_s(1)
        assert (anna.told(), world.broker.counts["bob"]) == ([(["bob"], [])], 3)
        for tab in tabs:
            world.leave(tab)
            await world.pass_s(2.5)
            assert anna.told() == []
        await world.pass_s(0.5)
        assert anna.told() == [([], ["bob"])]


async def test_clients_of_v1_are_counted_and_told_nothing() -> None:
    async with a_world() as world:
        old, older = await world.join("anna"), await world.join()
        assert world.broker.counts == {"anna": 1, "": 1}
        bob = await world.follow("bob")
        assert (bob.subjects, bob.presence.anonymous, bob.presence.total) == ({"anna", "bob"}, 1, 3)
        world.leave(older)
        await world.pass_s(3)
        assert (bob.told(), bob.presence.anonymous) == ([([], [])], 0)
        assert old.heard == older.heard == ["CONNECTED"]


async def test_a_second_subscribe_is_answered_with_the_whole_list() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        await world.pass_s(1)
        world.say(A, bob=1)
        world.say(A, carl=1)
        await world.followers.subscribe(S, anna, 2)
        assert (anna.subjects, world.broker.counts) == ({"anna", "bob", "carl"}, {"anna": 1})
        await world.pass_s(1)
        assert anna.told() == []


async def test_unsubscribing_and_subscribing_again_is_no_departure() -> None:
    async with a_world() as world:
        anna, bob = await world.follow("anna"), await world.follow("bob")
        await world.pass_s(1)
        anna.told()
        world.leave(bob)
        world.say(A, carl=1)
        await world.pass_s(1)
        assert bob.subjects == {"anna", "bob"}
        await world.followers.subscribe(S, bob, 2)
        assert bob.subjects == {"anna", "bob", "carl"}
        await world.pass_s(5)
        assert anna.told() == [(["carl"], [])]


async def test_who_leaves_before_it_is_told_is_told_nothing() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        await settled()
        carl = await world.follow("carl")
        world.say(A, dora=1)
        world.leave(carl)
        await world.pass_s(1)
        assert (anna.told(), carl.told()) == ([(["bob"], []), (["carl", "dora"], [])], [])


async def test_each_encoding_of_followers_is_told_the_same() -> None:
    async with a_world() as world:
        other = JsonText()
        anna, bob = await world.follow("anna"), await world.follow("bob", other)
        await world.pass_s(1)
        told((anna, bob))
        world.say(A, carl=1)
        await settled()
        dora, emil = await world.follow("dora"), await world.follow("emil", other)
        world.say(A, fanny=1)
        await world.pass_s(1)
        assert told((anna, bob)) == [[(["carl"], []), (["dora", "emil", "fanny"], [])]] * 2
        assert told((dora, emil)) == [[(["emil", "fanny"], [])], [(["fanny"], [])]]


# --- above 200 -----------------------------------------------------------------------------------------


async def test_many_are_told_only_how_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MAX_LISTED", 2)
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        await world.pass_s(1)
        carl = await world.follow("carl")
        await world.pass_s(1)
        assert (anna.told(), carl.subjects, carl.presence.total) == ([(["bob"], []), (None, None)], None, 3)
        assert carl.told() == []
        assert await world.listing() == (["bob", "anna", "carl"], 0, 3)
        world.say(A, bob=None)
        await world.pass_s(1)
        assert told((anna, carl)) == [[(["anna", "carl"], [])]] * 2


# --- sessions that begin and end -------------------------------------------------------------------------


async def test_presence_begins_for_those_who_wait_for_the_session() -> None:
    async with a_world() as world:
        world.broker.state = None
        anna, old, nobody = await world.follow("anna"), await world.join("bob"), await world.follow()
        assert (anna.view.presence, world.broker.said) == (None, [])
        await world.publish(state())
        await settled()
        assert told((anna, nobody)) == [[(["anna", "bob"], [])]] * 2
        assert (anna.presence.anonymous, world.broker.counts) == (1, {"anna": 1, "bob": 1, "": 1})
        assert "PRESENCE" not in old.heard


async def test_the_end_of_a_session_ends_presence_and_its_successor_begins_anew() -> None:
    async with a_world() as world:
        anna, bob = await world.follow("anna"), await world.follow("bob")
        world.say(A, carl=1)
        await world.pass_s(1)
        world.leave(bob)
        world.broker.others.clear()
        await world.delete()
        assert (anna.view.presence, world.broker.forgotten, world.tracked) == (None, 1, [])
        await world.pass_s(5)
        assert (anna.view.presence, world.broker.said) == (None, [])
        await world.publish(state(1, NEW))
        assert (anna.told(), world.broker.counts) == ([(["anna"], [])], {"anna": 1})


async def test_a_successor_without_presence_has_none() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        await world.delete()
        world.broker.said.clear()
        await world.publish(state(1, NEW, presence=False))
        world.say(A, bob=1)
        await world.pass_s(1)
        assert (anna.view.presence, world.broker.said, world.tracked) == (None, [], [])


async def test_a_late_change_of_the_session_that_is_gone_begins_nothing() -> None:
    async with a_world() as world:
        await world.follow("anna")
        await world.delete()
        world.broker.said.clear()
        world.hub.on_published(protocol_v1.state_update(S, T0, state(2)))
        await settled()
        assert (world.broker.said, world.tracked) == ([], [])


async def test_a_new_session_whose_predecessors_end_was_missed_is_told_of_all_clients() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        await world.pass_s(1)
        anna.told()
        world.broker.others = {B: {"carl": Attendance(1, T0)}, A: {}}
        world.broker.state = state(1, NEW)
        await world.gap()
        await world.pass_s(1)
        assert (world.broker.forgotten, world.broker.counts) == (1, {"anna": 1})
        assert (anna.told(), anna.subjects) == ([(["carl"], ["bob"])], {"anna", "carl"})


async def test_a_state_that_somebody_else_publishes_says_nothing_of_presence() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        foreign = {"sessionId": S, "state": {"epoch": NEW, "version": 7, "status": "running"}}
        world.hub.on_published(compact(foreign))
        await settled()
        assert anna.view.told[-1] == "foreign"
        world.say(A, bob=1)
        await world.pass_s(1)
        assert (anna.told(), world.broker.forgotten) == ([(["bob"], [])], 0)


async def test_sessions_without_presence_say_and_tell_nothing() -> None:
    async with a_world() as world:
        world.broker.state = state(presence=False)
        anna, old = await world.follow("anna"), await world.join("bob")
        world.say(A, carl=1)
        await world.publish(state(2, presence=False))
        world.leave(old, anna)
        await world.pass_s(5)
        assert (world.broker.said, world.broker.reads, world.tracked) == ([], 0, [])
        assert anna.view.presence is None


# --- what is not heard -----------------------------------------------------------------------------------


async def test_after_a_gap_what_was_missed_is_told() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        world.say(B, carl=1)
        await world.pass_s(1)
        anna.told()
        world.broker.others = {A: {"dora": Attendance(1, T0)}, B: {"carl": Attendance(1, T0)}}
        await world.gap()
        await world.pass_s(0.25)
        assert anna.told() == [(["dora"], ["bob"])]


async def test_processes_that_a_store_has_lost_are_believed_for_15_s() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        world.say(B, carl=1)
        await world.pass_s(1)
        anna.told()
        world.broker.others = {}
        await world.gap()
        await world.pass_s(10)
        world.say(A, bob=1)
        await world.pass_s(4)
        assert anna.told() == []
        await world.pass_s(1)
        assert anna.told() == [([], ["carl"])]
        world.broker.others = {}
        await world.gap()
        await world.pass_s(15)
        assert anna.told() == [([], ["bob"])]


async def test_a_gap_gives_the_store_its_15_s_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "RETRY_S", 0)
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, bob=1)
        await world.pass_s(1)
        anna.told()
        world.broker.others = {}
        await world.gap()
        world.broker.is_away = True
        await world.pass_s(20)
        world.broker.is_away = False
        await world.gap()
        await world.pass_s(14)
        assert anna.told() == []
        await world.pass_s(1)
        assert anna.told() == [([], ["bob"])]


async def test_lists_stay_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "RETRY_S", 0)
    async with a_world() as world:
        anna = await world.follow("anna")
        bob = await world.follow("bob")
        world.say(A, carl=1)
        await world.pass_s(1)
        told((anna, bob))
        world.broker.is_away = True
        await world.gap()
        world.leave(bob)
        await world.pass_s(30)
        assert (anna.told(), await world.listing()) == ([([], ["bob"])], (["carl", "anna"], 0, 2))
        with pytest.raises(BrokerUnavailable):
            await world.followers.subscribe(S, Client("dora"), 1)
        world.broker.others = {A: {}}
        world.broker.is_away = False
        await world.gap()
        await world.pass_s(1)
        assert anna.told() == [([], ["carl"])]


async def test_what_is_published_while_it_is_read_is_not_lost() -> None:
    async with a_world() as world:

        def publish() -> None:
            world.broker.on_present = lambda: None
            world.hub.on_presence(S, A, {"bob": None, "carl": Attendance(1, T0)})

        world.broker.others = {A: {"bob": Attendance(1, T0)}}
        world.broker.on_present = publish
        anna = await world.follow("anna")
        assert anna.subjects == {"anna", "carl"}


async def test_a_gap_while_it_is_read_has_it_read_again() -> None:
    async with a_world() as world:

        def gap() -> None:
            world.broker.on_present = lambda: None
            world.broker.others = {A: {"carl": Attendance(1, T0)}}
            world.hub.on_gap()

        world.broker.others = {A: {"bob": Attendance(1, T0)}}
        world.broker.on_present = gap
        anna = await world.follow("anna")
        assert anna.subjects == {"anna", "carl"}


async def test_a_gap_of_other_sessions_has_it_not_read_again() -> None:
    async with a_world() as world:
        world.broker.others = {A: {"bob": Attendance(1, T0)}}
        anna = await world.follow("anna")
        world.broker.others = {A: {"carl": Attendance(1, T0)}}
        world.hub.on_gap(lambda session_id: session_id != S)
        await settled()
        assert anna.subjects == {"anna", "bob"}
        world.hub.on_gap(lambda session_id: session_id == S)
        await settled()
        assert anna.subjects == {"anna", "carl"}


async def test_what_is_read_for_those_who_have_left_is_read_again_for_who_comes() -> None:
    """In between nobody hears what is published."""
    async with a_world() as world:
        old = await world.join("old")
        reading = asyncio.create_task(world.hub.presence.read(world.tracked[0]))
        gate = asyncio.Event()

        async def present(session_id: str) -> dict[str, dict[str, Attendance]]:
            found = {process: dict(said) for process, said in world.broker.others.items()}
            await gate.wait()
            return found

        world.broker.present = present  # type: ignore[method-assign]
        world.broker.others = {A: {"bob": Attendance(1, T0)}}
        await settled()
        world.leave(old)
        world.broker.others = {A: {"carl": Attendance(1, T0)}}
        coming = asyncio.create_task(world.follow("anna"))
        await settled()
        gate.set()
        await reading
        assert (await coming).subjects == {"anna", "carl", "old"}


async def test_a_follower_is_refused_while_it_is_not_known_who_is_there() -> None:
    async with a_world() as world:
        await world.join("bob")

        async def hear(session_id: str) -> bool:
            return True

        world.broker.hear = hear  # type: ignore[method-assign]
        world.broker.is_away = True
        anna = Client("anna")
        with pytest.raises(BrokerUnavailable):
            await world.followers.subscribe(S, anna, 1)
        assert (anna.got, world.broker.counts) == ([], {"bob": 1})
        world.broker.is_away = False
        await world.followers.subscribe(S, anna, 1)
        assert anna.subjects == {"anna", "bob"}


async def test_a_process_that_is_no_more_leaves_nobody_behind() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.say(A, anna=1, bob=1)
        await world.pass_s(1)
        anna.told()
        world.hub.on_presence(S, A, None)
        await world.pass_s(1)
        assert anna.told() == [([], ["bob"])]


# --- rooms and processes that end ------------------------------------------------------------------------


async def test_a_departure_is_reported_though_nobody_is_left() -> None:
    async with a_world() as world:
        anna, old = await world.follow("anna"), await world.join()
        world.leave(anna, old)
        assert (world.hub.rooms, world.broker.counts) == ({}, {"anna": 0, "": None})
        await world.pass_s(3)
        assert (world.broker.counts, world.tracked) == ({"anna": None, "": None}, [])


async def test_who_comes_back_to_an_empty_room_was_never_away() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        since_ms = dict(world.broker.said)["anna"]
        assert since_ms is not None
        world.say(A, bob=1)
        world.leave(anna)
        await world.pass_s(2)
        world.broker.others = {A: {"carl": Attendance(1, T0)}}  # nobody hears it here
        anna = await world.follow("anna")
        assert anna.subjects == {"anna", "carl"}
        await world.pass_s(5)
        assert (world.broker.said[-1], anna.told()) == (("anna", since_ms), [])


async def test_a_session_created_anew_while_nobody_was_here_knows_of_nobody_before() -> None:
    async with a_world() as world:
        anna = await world.follow("anna")
        world.leave(anna)
        world.broker.state = state(1, NEW)
        bob = await world.follow("bob")
        assert (bob.subjects, world.broker.forgotten, world.broker.counts) == ({"bob"}, 1, {"bob": 1})
        await world.pass_s(5)
        assert (bob.told(), world.broker.counts) == ([], {"bob": 1})


async def test_a_process_that_drains_reports_no_departure() -> None:
    async with a_world() as world:
        anna, bob, nobody = await world.follow("anna"), await world.follow("bob"), await world.follow()
        world.leave(bob)
        world.hub.presence.drain()
        await world.pass_s(1)
        world.leave(nobody, anna)
        await world.pass_s(20)
        assert world.broker.counts == {"anna": 1, "bob": 0, "": 1}


async def test_nothing_is_left_when_all_has_ended() -> None:
    async with a_world() as world:
        clients = [await world.follow("anna"), await world.follow(), await world.join("bob")]
        world.say(A, carl=1)
        await world.pass_s(1)
        world.leave(*clients)
        clients.clear()
        await world.pass_s(3)
        gc.collect()
        assert [each for each in gc.get_objects() if isinstance(each, Client | Room | RoomPresence)] == []
        timers = [
            each
            for each in asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            if not each.cancelled() and "presence" in repr(each)
        ]
        assert timers == []


async def test_a_client_that_only_wanted_to_come_leaves_nothing_behind() -> None:
    async with a_world() as world:
        client = Client("anna")
        client.is_over = True
        await world.followers.subscribe(S, client, 1)
        await world.pass_s(5)
        assert (world.hub.rooms, world.tracked, world.broker.said) == ({}, [], [])


# --- REST ------------------------------------------------------------------------------------------------


async def test_the_list_of_a_session_without_clients_here_is_read() -> None:
    async with a_world() as world:
        world.broker.others = {A: {"anna": Attendance(1, T0), "": Attendance(3, T0)}}
        assert await world.listing() == (["anna"], 3, 4)
        old = await world.join("bob")
        assert await world.listing() == (["anna", "bob"], 3, 5)
        world.leave(old)
        assert await world.listing() == (["anna", "bob"], 3, 5)
        await world.pass_s(3)
        assert await world.listing() == (["anna"], 3, 4)


async def test_the_list_that_followers_have_is_not_read_again() -> None:
    async with a_world() as world:
        await world.follow("anna")
        reads = world.broker.reads
        world.broker.is_away = True
        assert (await world.listing(), world.broker.reads) == ((["anna"], 0, 1), reads)


async def test_a_session_without_presence_has_no_list() -> None:
    async with a_world() as world:
        world.broker.state = state(presence=False)
        with pytest.raises(Conflict, match="without presence"):
            await world.listing()
        await world.follow("anna")
        with pytest.raises(Conflict, match="without presence"):
            await world.listing()
        world.broker.state = None
        with pytest.raises(SessionNotFound):
            await world.listing()
        world.broker.is_away = True
        with pytest.raises(BrokerUnavailable):
            await world.listing()


async def test_subjects_here_are_counted() -> None:
    async with a_world() as world:
        clients = [await world.follow("anna"), await world.join("anna"), await world.follow()]
        await world.follow("bob")
        assert b"lockstep_presence_subjects 2.0" in world.metrics.text()
        world.leave(*clients)
        await world.pass_s(3)
        assert b"lockstep_presence_subjects 1.0" in world.metrics.text()
