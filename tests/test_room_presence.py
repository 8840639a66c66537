"""Who is present at a session, what each process says of it and what each client is told."""

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from lockstep.contract import Attendance
from lockstep.live import roster
from lockstep.live.presence import RoomPresence
from tests.support.peers import FakePeer
from tests.support.presence_view import PresenceView

S = "00000000-0000-4000-8000-00000000005e"
T0 = 1_704_067_200_000
A = "process a"
B = "process b"


class World:
    """One session at this process, on a clock that is set. `at_s` is both clocks, from T0 and from 0."""

    def __init__(self, *, is_known: bool = True) -> None:
        self.at_s = 0.0
        self.presence = RoomPresence(S, "epoch")
        self.said: dict[str, Attendance | None] = {}
        """To other processes, the last of each subject."""
        self.views: dict[FakePeer, PresenceView] = {}
        if is_known:
            self.read({})

    @property
    def now_ms(self, session_id: str | None = None) -> int:
        return T0 + round(self.at_s * 1000)

    def read(self, found: Mapping[str, Mapping[str, Attendance]]) -> None:
        self.presence.begin_read()
        self.said |= self.presence.end_read(found, self.at_s)

    def arrive(self, subject: str) -> None:
        self.said |= self.presence.arrive(subject, self.now_ms, self.at_s)

    def depart(self, subject: str) -> None:
        self.said |= self.presence.depart(subject, self.at_s)

    def hear(self, process: str, **said: tuple[int, int] | None) -> None:
        attendances = {
            subject: None if each is None else Attendance(each[0], T0 + each[1] * 1000)
            for subject, each in said.items()
        }
        self.said |= self.presence.hear(process, attendances, self.at_s)

    def wait(self, seconds: float) -> None:
        self.at_s += seconds
        self.said |= self.presence.report(self.at_s)
        self.presence.settle(self.at_s)

    def subscribe(self, subject: str) -> FakePeer:
        peer = FakePeer()
        self.arrive(subject)
        self.views[peer] = PresenceView()
        self.again(peer)
        return peer

    def again(self, peer: FakePeer) -> None:
        self.views[peer].subscribe(json.loads(bytes(self.presence.greet(peer))))

    def unsubscribe(self, peer: FakePeer, subject: str) -> None:
        del self.views[peer]
        self.presence.part(peer)
        self.depart(subject)

    def tell(self) -> None:
        telling = self.presence.tell(self.now_ms)
        assert telling.others.keys() <= self.views.keys()
        for peer, view in self.views.items():
            message = telling.others.get(peer, telling.message)
            if message is not None:
                view.take(json.loads(message))

    def told(self, peer: FakePeer) -> list[Any]:
        """What the peer has been told since this was asked last."""
        told, self.views[peer].told = self.views[peer].told, []
        return told

    @property
    def present(self) -> list[tuple[str, int, float]]:
        """(subject, connections, since in s)"""
        listing = json.loads(self.presence.listing(is_whole=True))
        return [
            (
                each["subject"],
                each["connections"],
                int(each["since"][17:19]) + int(each["since"][20:23]) / 1000,
            )
            for each in listing["present"]
        ]

    @property
    def anonymous(self) -> int:
        return int(json.loads(self.presence.listing())["anonymous"])


# --- own clients ---------------------------------------------------------------------------------------


def test_a_subject_with_three_tabs_is_present_once() -> None:
    world = World()
    for _ in range(3):
        world.arrive("anna")
        world.at_s += 1
    assert world.present == [("anna", 3, 0)]
    assert world.said == {"anna": Attendance(3, T0)}


def test_a_closed_tab_counts_no_more_at_once() -> None:
    world = World()
    world.arrive("anna")
    world.arrive("anna")
    world.depart("anna")
    assert world.present == [("anna", 1, 0)]
    assert world.said == {"anna": Attendance(1, T0)}


def test_the_last_departure_is_reported_3_s_later() -> None:
    world = World()
    world.arrive("anna")
    world.wait(10)
    world.depart("anna")
    assert world.said == {"anna": Attendance(0, T0)}
    world.wait(2.99)
    assert world.present == [("anna", 0, 0)]
    world.wait(0.01)
    assert (world.present, world.said) == ([], {"anna": None})


def test_who_comes_back_within_3_s_was_never_away() -> None:
    world = World()
    world.arrive("anna")
    world.wait(10)
    world.depart("anna")
    world.wait(2)
    world.arrive("anna")
    world.wait(10)
    assert (world.present, world.said) == ([("anna", 1, 0)], {"anna": Attendance(1, T0)})


def test_each_departure_has_3_s_of_its_own() -> None:
    world = World()
    world.arrive("anna")
    world.depart("anna")
    world.wait(2)
    world.arrive("anna")
    world.depart("anna")
    world.wait(2)
    assert world.present == [("anna", 0, 0)]
    world.wait(1)
    assert world.present == []


def test_anonymous_clients_are_counted_and_count_3_s_longer() -> None:
    world = World()
    world.arrive("")
    world.arrive("")
    world.depart("")
    assert world.said == {"": Attendance(1, T0)}
    world.wait(2.5)
    assert (world.anonymous, world.present) == (2, [])
    world.wait(0.5)
    assert world.anonymous == 1
    world.depart("")
    world.wait(3)
    assert (world.anonymous, world.said) == (0, {"": None})


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_an_anonymous_client_that_reloads_does_not_change_the_number(is_elsewhere: bool) -> None:
    """Also where it comes back to another process."""
    world = World()
    world.arrive("")
    world.hear(A, **{"": (3, 0)})
    numbers = []
    for _ in range(5):
        world.depart("")
        numbers.append(world.anonymous)
        world.wait(1)
        if is_elsewhere:
            world.hear(A, **{"": (4, 0)})
        else:
            world.arrive("")
        numbers.append(world.anonymous)
        world.wait(1)
        if is_elsewhere:
            world.hear(A, **{"": (3, 0)})
            world.wait(1)
            world.arrive("")
        numbers.append(world.anonymous)
    world.wait(10)
    assert {*numbers, world.anonymous} == {4}


def test_anonymous_clients_of_a_process_that_is_no_more_count_no_longer() -> None:
    world = World()
    world.hear(A, **{"": (3, 0)})
    world.hear(B, **{"": (2, 0)})
    world.presence.hear(A, None, world.at_s)
    assert world.anonymous == 2


def test_what_a_read_finds_is_seen_at_once() -> None:
    """No process has more than another that has not fewer yet."""
    world = World()
    world.hear(A, **{"": (3, 0)})
    world.read({B: {"": Attendance(3, T0)}, A: {}})
    assert world.anonymous == 3


# --- other processes -----------------------------------------------------------------------------------


def test_connections_of_all_processes_are_added() -> None:
    world = World()
    world.arrive("anna")
    world.hear(A, anna=(2, 5), bob=(1, 6))
    world.hear(B, anna=(0, 7))
    assert world.present == [("anna", 3, 0), ("bob", 1, 6)]


def test_a_subject_is_present_since_it_came_to_any_process() -> None:
    world = World()
    world.hear(A, anna=(1, 0))
    world.wait(20)
    world.arrive("anna")
    assert world.said == {"anna": Attendance(1, T0)}
    world.hear(A, anna=None)
    assert world.present == [("anna", 1, 0)]


def test_an_earlier_arrival_elsewhere_that_is_heard_of_later_counts() -> None:
    world = World()
    world.wait(20)
    world.arrive("anna")
    world.hear(A, anna=(1, 19))
    assert world.said == {"anna": Attendance(1, T0 + 19_000)}
    world.hear(A, anna=None)
    assert world.present == [("anna", 1, 19)]


def test_what_a_process_said_goes_with_it() -> None:
    world = World()
    world.arrive("anna")
    world.hear(A, anna=(1, 0), bob=(1, 0))
    world.presence.hear(A, None, world.at_s)
    assert world.present == [("anna", 1, 0)]


def test_who_moves_to_another_process_was_never_away() -> None:
    world = World()
    peer = world.subscribe("anna")
    world.hear(A, bob=(1, 0))
    world.tell()
    world.told(peer)
    world.hear(A, bob=(0, 0))
    world.hear(B, bob=(1, 0))
    world.tell()
    world.hear(A, bob=None)
    world.tell()
    assert world.told(peer) == []


# --- reading what the store has ------------------------------------------------------------------------


def test_what_is_heard_during_a_read_counts_more_than_what_was_read() -> None:
    world = World(is_known=False)
    world.presence.begin_read()
    world.hear(A, anna=None, bob=(1, 0))
    world.presence.end_read({A: {"anna": Attendance(1, T0)}}, 0)
    assert [subject for subject, *_ in world.present] == ["bob"]


def test_a_process_that_the_store_knows_has_only_what_is_read() -> None:
    world = World()
    world.hear(A, anna=(1, 0), bob=(1, 0))
    world.hear(B, carl=(1, 0))
    world.read({A: {"bob": Attendance(1, T0)}, B: {}})
    assert [subject for subject, *_ in world.present] == ["bob"]


def test_a_process_that_the_store_does_not_know_is_believed_for_15_s() -> None:
    world = World()
    world.hear(A, anna=(1, 0))
    world.read({})
    assert world.presence.next_doubt_s == 15
    world.at_s = 14.9
    world.read({})
    assert [subject for subject, *_ in world.present] == ["anna"]
    world.at_s = 15
    world.read({})
    assert (world.present, world.presence.next_doubt_s) == ([], None)


def test_a_process_that_is_heard_again_is_not_in_doubt() -> None:
    world = World()
    world.hear(A, anna=(1, 0))
    world.read({})
    world.at_s = 10
    world.hear(A, anna=(1, 0))
    assert world.presence.next_doubt_s is None
    world.at_s = 16
    world.read({})
    assert [subject for subject, *_ in world.present] == ["anna"]


# --- what clients are told -----------------------------------------------------------------------------


def test_a_subscriber_is_in_its_list_and_not_told_of_itself_again() -> None:
    world = World()
    anna = world.subscribe("anna")
    assert world.views[anna].subjects == {"anna"}
    world.tell()
    bob = world.subscribe("bob")
    assert world.views[bob].subjects == {"anna", "bob"}
    world.tell()
    assert (world.told(anna), world.told(bob)) == ([(["bob"], [])], [])


def test_one_who_came_since_the_last_telling_is_told_what_came_after_it() -> None:
    world = World()
    anna = world.subscribe("anna")
    world.tell()
    world.hear(A, bob=(1, 0))
    carl = world.subscribe("carl")
    world.hear(A, dora=(1, 0), bob=None)
    world.tell()
    assert world.told(anna) == [(["carl", "dora"], [])]
    assert world.told(carl) == [(["dora"], ["bob"])]


def test_what_comes_and_goes_between_two_tellings_is_not_told() -> None:
    world = World()
    anna = world.subscribe("anna")
    world.tell()
    world.hear(A, bob=(1, 0))
    world.hear(A, bob=None)
    world.tell()
    assert world.told(anna) == []


def test_a_change_of_connections_alone_is_not_told() -> None:
    world = World()
    anna = world.subscribe("anna")
    world.tell()
    world.arrive("anna")
    world.hear(A, anna=(7, 0))
    world.tell()
    assert world.told(anna) == []


def test_a_change_of_the_anonymous_is_told() -> None:
    world = World()
    anna = world.subscribe("anna")
    world.tell()
    nobody = world.subscribe("")
    world.tell()
    assert (world.told(anna), world.views[anna].anonymous, world.views[anna].total) == ([([], [])], 1, 2)
    assert world.told(nobody) == []


def test_clients_that_were_there_before_it_are_told_everybody() -> None:
    world = World()
    peer = FakePeer()
    world.views[peer] = PresenceView()
    world.arrive("anna")
    world.hear(A, bob=(1, 0))
    world.tell()
    assert world.told(peer) == [(["anna", "bob"], [])]


def test_above_200_subjects_only_their_number_is_told() -> None:
    world = World()
    for number in range(199):
        world.arrive(f"subject {number}")
    anna = world.subscribe("anna")
    world.tell()
    assert len(world.views[anna].subjects or ()) == 200
    bob = world.subscribe("bob")
    world.tell()
    assert world.told(anna) == [(None, None)]
    assert (world.views[anna].total, world.views[bob].subjects, world.told(bob)) == (201, None, [])
    assert len(world.present) == 201
    world.hear(A, carl=(1, 0))
    world.tell()
    assert (world.told(anna), world.told(bob), world.views[bob].total) == ([(None, None)],) * 2 + (202,)
    world.unsubscribe(bob, "bob")
    world.hear(A, carl=None)
    world.wait(3)
    world.tell()
    [(joined, left)] = world.told(anna)
    assert (len(joined), "anna" in joined, left) == (200, True, [])


def test_one_who_has_missed_some_is_told_everybody() -> None:
    world = World()
    anna = world.subscribe("anna")
    world.tell()
    world.hear(A, bob=(1, 0))
    view = world.views.pop(anna)
    world.tell()
    for message in world.presence.catch_up(anna, T0):
        view.take(json.loads(message))
    assert view.told == [(None, None), (["anna", "bob"], [])]
    world.views[anna] = view
    view.told = []
    world.hear(A, carl=(1, 0), bob=None)
    world.tell()
    assert world.told(anna) == [(["carl"], ["bob"])]


def test_who_is_told_everything_has_no_news() -> None:
    world = World()
    world.subscribe("anna")
    assert world.presence.has_news
    world.tell()
    assert not world.presence.has_news
    world.arrive("anna")
    assert not world.presence.has_news
    world.arrive("")
    assert world.presence.has_news


# --- any history ---------------------------------------------------------------------------------------


class Model:
    """The same from scratch, from everything that ever happened: nothing is kept but the history."""

    def __init__(self) -> None:
        self.own: list[tuple[float, int, str]] = []  # (at_s, 1 or -1, subject)
        self.others: dict[str, dict[str, int]] = {}
        self.anonymous = 0
        self.more: list[tuple[float, int]] = []  # how many they were, until when

    def note(self, at_s: float) -> None:
        """Something has happened."""
        self.more.append((at_s, self.anonymous))
        own = sum(by for _, by, subject in self.own if subject == "")
        self.anonymous = own + sum(said.get("", 0) for said in self.others.values())

    def lapse(self, process: str, at_s: float) -> None:
        """The process is no more: nobody waits for its clients, but still for those that had left before."""
        before = self.anonymous
        self.others.pop(process, None)
        self.note(at_s)
        if self.anonymous < before:
            self.more = [(until_s, count) for until_s, count in self.more if count > before]

    def _own_counts(self, at_s: float) -> dict[str, int]:
        counts: dict[str, int] = {}
        for subject in {subject for *_, subject in self.own if subject}:
            moves = [(when_s, by) for when_s, by, of in self.own if of == subject]
            count = sum(by for _, by in moves)
            if count or at_s - moves[-1][0] < 3:
                counts[subject] = count
        return counts

    def present(self, at_s: float) -> tuple[dict[str, int], int]:
        """Connections by subject, and the number of anonymous ones."""
        total: dict[str, int] = {}
        for said in (self._own_counts(at_s), *self.others.values()):
            for subject, count in said.items():
                if subject:
                    total[subject] = total.get(subject, 0) + count
        recently = [count for until_s, count in self.more if until_s > at_s - 3]
        return total, max([self.anonymous, *recently])


@pytest.mark.parametrize("seed", range(60))
def test_any_history_leaves_everybody_with_who_is_present(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MAX_LISTED", 4)
    luck = random.Random(seed)
    world, model = World(), Model()
    subjects = ["", "", "anna", "bob", "carl", "dora", "emil", "fanny", "gustav"]
    peers: dict[FakePeer, str] = {}
    silent: list[str] = []  # clients of protocol v1

    def check() -> None:
        present, anonymous = model.present(world.at_s)
        assert ({subject: count for subject, count, _ in world.present}, world.anonymous) == (
            present,
            anonymous,
        )
        listed = set(present) if len(present) <= 4 else None
        for view in world.views.values():
            assert (view.subjects, view.anonymous) == (listed, anonymous)
            assert view.total == len(present) + anonymous

    for _ in range(400):
        subject = luck.choice(subjects)
        match luck.randrange(11):
            case 0 | 1:
                model.own.append((world.at_s, 1, subject))
                peers[world.subscribe(subject)] = subject
            case 2:
                model.own.append((world.at_s, 1, subject))
                world.arrive(subject)
                silent.append(subject)
            case 3 | 4 if peers:
                peer = luck.choice(list(peers))
                model.own.append((world.at_s, -1, peers[peer]))
                world.unsubscribe(peer, peers.pop(peer))
            case 5 if silent:
                subject = silent.pop(luck.randrange(len(silent)))
                model.own.append((world.at_s, -1, subject))
                world.depart(subject)
            case 6:
                process, count = luck.choice((A, B)), luck.randrange(3)
                model.others.setdefault(process, {})[subject] = count
                world.hear(process, **{subject: (count, luck.randrange(60))})
            case 7:
                process = luck.choice((A, B))
                model.others.setdefault(process, {}).pop(subject, None)
                world.hear(process, **{subject: None})
            case 8 if luck.random() < 0.3:
                process = luck.choice((A, B))
                model.lapse(process, world.at_s)
                world.presence.hear(process, None, world.at_s)
            case 9 if peers:
                world.again(luck.choice(list(peers)))
            case _:
                world.wait(luck.choice((0.125, 0.25, 1, 2.75)))
                world.tell()
                check()
        model.note(world.at_s)
    world.wait(3)
    world.tell()
    check()
    own = {subject: each for subject, each in world.said.items() if each is not None}
    assert own == world.presence.own
