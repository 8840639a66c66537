"""The sockets that mostly say nothing: pongs end in the poller, all else is named and left unread."""

import asyncio
import gc
import random
import select
import socket
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from handlers import native_twin
from handlers.heartbeat import Heartbeat
from handlers.native import Poller
from tests.support.loop_time import LoopTime
from tests.support.ws_client import CLOSE, PING, PONG, TEXT, encode

POLLERS = {"as installed": Poller, "twin": native_twin.Poller}
A_PONG = encode(PONG, b"")
NOT_JUST_A_PONG = {
    "a message": encode(TEXT, b"{}"),
    "a ping": encode(PING, b""),
    "a close": encode(CLOSE, b""),
    "half a pong": A_PONG[:3],
    "two pongs": A_PONG * 2,
    "a pong and the beginning of something": A_PONG + b"\x81",
    "a pong with data": encode(PONG, b"x"),
    "a pong without a mask": encode(PONG, b"", masked=False),
    "a pong with a reserved bit": encode(PONG, b"", rsv=0x40),
    "a pong in fragments": encode(PONG, b"", fin=False),
    "six bytes of a message": encode(TEXT, b""),
}


class Owner:
    """Whom a socket belongs to, and the other end of its line."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.descriptor = self.ours.fileno()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@contextmanager
def owners(count: int) -> Iterator[list[Owner]]:
    with ExitStack() as stack:
        made = [Owner() for _ in range(count)]
        for each in made:
            stack.callback(each.close)
        yield made


@pytest.mark.parametrize("kind", POLLERS)
def test_a_pong_is_taken_and_pays_what_is_owed(kind: str) -> None:
    poller = POLLERS[kind](2)
    with owners(2) as (one, other):
        for each in (one, other):
            poller.enter(each.descriptor, each)
            poller.place(each.descriptor, 1)
        assert poller.ask_all(0) == []
        assert poller.silent(1) == []
        assert set(poller.ask_all(1)) == {one, other}
        one.theirs.send(A_PONG)
        assert poller.ready() == []
        assert poller.silent(1) == [other]
        assert [poller.owes_pong(each.descriptor) for each in (one, other)] == [False, True]
        with pytest.raises(BlockingIOError):
            one.ours.recv(1)
        poller.answered(other.descriptor)
        assert poller.silent(1) == []
        poller.ask(one.descriptor)
        assert poller.silent(1) == [one]


@pytest.mark.parametrize("kind", POLLERS)
@pytest.mark.parametrize("said", NOT_JUST_A_PONG)
def test_whatever_else_is_said_is_named_and_left_unread(kind: str, said: str) -> None:
    poller, data = POLLERS[kind](1), NOT_JUST_A_PONG[said]
    with owners(1) as [owner]:
        poller.enter(owner.descriptor, owner)
        poller.ask(owner.descriptor)
        owner.theirs.send(data)
        for _ in range(2):
            assert poller.ready() == [owner]
        assert owner.ours.recv(100) == data
        assert poller.owes_pong(owner.descriptor)
        assert poller.ready() == []


@pytest.mark.parametrize("kind", POLLERS)
def test_a_pong_that_nobody_has_asked_for_is_the_owners(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(1) as [owner]:
        poller.enter(owner.descriptor, owner)
        poller.place(owner.descriptor, 0)
        poller.ask(owner.descriptor)
        owner.theirs.send(A_PONG)
        assert poller.ready() == []
        owner.theirs.send(A_PONG)
        assert poller.ready() == [owner]
        assert owner.ours.recv(100) == A_PONG


@pytest.mark.parametrize("kind", POLLERS)
def test_the_end_of_a_line_is_named(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(2) as (one, other):
        for each in (one, other):
            poller.enter(each.descriptor, each)
            poller.ask(each.descriptor)
        one.theirs.close()
        other.theirs.send(A_PONG)
        other.theirs.close()
        assert poller.ready() == [one]  # first the pong that came before the end
        assert set(poller.ready()) == {one, other}


@pytest.mark.parametrize("kind", POLLERS)
def test_within_a_message_pongs_are_the_owners(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(1) as [owner]:
        poller.enter(owner.descriptor, owner)
        poller.ask(owner.descriptor)
        poller.set_within_message(owner.descriptor, True)
        owner.theirs.send(A_PONG)
        assert poller.ready() == [owner]
        poller.set_within_message(owner.descriptor, False)
        assert poller.ready() == []


@pytest.mark.parametrize("kind", POLLERS)
def test_who_is_not_watched_is_not_looked_at(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(1) as [owner]:
        poller.enter(owner.descriptor, owner)
        for _ in range(2):
            poller.unwatch(owner.descriptor)
            owner.theirs.send(b"x")
            assert poller.ready() == []
            assert not select.select([poller.fileno()], [], [], 0)[0], "the loop would come for nothing"
            for _ in range(2):
                poller.watch(owner.descriptor)
            assert select.select([poller.fileno()], [], [], 0)[0]
            assert poller.ready() == [owner]


@pytest.mark.parametrize("kind", POLLERS)
def test_of_a_crowd_that_talks_without_end_nobody_waits_for_more_than_two_turns(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(400) as crowd:
        for each in crowd:
            poller.enter(each.descriptor, each)
            each.theirs.send(b"without end")
        for _ in range(5):
            assert set(poller.ready()) | set(poller.ready()) == set(crowd)


@pytest.mark.parametrize("kind", POLLERS)
def test_what_is_not_here_is_not_touched(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(1) as [stranger]:
        for descriptor in (-1, stranger.descriptor, 1_000_000):
            for method in (
                poller.leave,
                poller.watch,
                poller.unwatch,
                poller.displace,
                poller.ask,
                poller.answered,
            ):
                method(descriptor)
            poller.set_within_message(descriptor, True)
            poller.place(descriptor, 0)
            assert not poller.owes_pong(descriptor)
        assert (poller.owners(), poller.ask_all(0), len(poller)) == ([], [], 0)
        poller.enter(stranger.descriptor, stranger)
        with pytest.raises(ValueError, match="here already"):
            poller.enter(stranger.descriptor, stranger)
        with pytest.raises(IndexError):
            poller.place(stranger.descriptor, 1)
    closed = stranger.descriptor
    poller.leave(closed)
    with pytest.raises((OSError, ValueError)):
        poller.enter(closed, stranger)
    assert len(poller) == 0


def test_what_is_no_number_is_refused_in_c() -> None:
    """In Python it would just be found nowhere."""
    native = pytest.importorskip("handlers._native", reason="there was no compiler")
    poller = native.Poller(1)
    for call in (poller.leave, poller.ask, poller.owes_pong, poller.ask_all, poller.silent):
        with pytest.raises(TypeError):
            call("no number")
    for ticks in (0, -1):
        with pytest.raises(ValueError, match="ticks"):
            native.Poller(ticks)


@pytest.mark.parametrize("kind", POLLERS)
def test_whoever_has_left_is_not_kept(kind: str) -> None:
    poller = POLLERS[kind](1)
    with owners(2) as made:
        kept = [weakref.ref(each) for each in made]
        for each in made:
            poller.enter(each.descriptor, each)
            poller.place(each.descriptor, 0)
        poller.leave(made[0].descriptor)
        assert poller.owners() == [made[1]]
        made[1].poller = poller  # type: ignore[attr-defined]
        del made[:], each, poller
    gc.collect()
    assert [each() for each in kept] == [None, None]


class Line:
    """One poller and its sockets, known by their number."""

    def __init__(self, poller: Poller, made: list[Owner]) -> None:
        self.poller = poller
        self.made = made

    def do(self, act: str, number: int, argument: object) -> object:
        who, poller = self.made[number], self.poller
        if act == "say":
            assert isinstance(argument, bytes)
            who.theirs.send(argument)
            named = self._numbers(poller.ready())
            for each in named:
                self.made[each].ours.recv(100)
            return named
        if act == "enter":
            return who in poller.owners() or poller.enter(who.descriptor, who)
        if act in ("ask_all", "silent"):
            return self._numbers(getattr(poller, act)(argument))
        if act in ("place", "set_within_message"):
            return getattr(poller, act)(who.descriptor, argument)
        return getattr(poller, act)(who.descriptor)

    def _numbers(self, found: list[Owner]) -> list[int]:
        return sorted(self.made.index(each) for each in found)


@pytest.mark.parametrize("seed", range(10))
def test_the_twin_does_the_same(seed: int) -> None:
    chance, ticks, count = random.Random(seed), 3, 8
    acts: dict[str, list[object]] = {
        "say": [A_PONG, A_PONG, encode(TEXT, b"hello")],
        "place": [*range(ticks)],
        "ask_all": [*range(ticks)],
        "silent": [*range(ticks)],
        "set_within_message": [False, False, True],
    } | {each: [None] for each in ("leave", "watch", "unwatch", "displace", "ask", "answered", "owes_pong")}
    with owners(count) as ours, owners(count) as theirs:
        lines = Line(Poller(ticks), ours), Line(native_twin.Poller(ticks), theirs)
        for _ in range(1000):
            act = chance.choice([*acts, "say", "place", "enter", "enter"])
            number, argument = chance.randrange(count), chance.choice(acts.get(act, [None]))
            one, other = (line.do(act, number, argument) for line in lines)
            assert one == other, act


# --- with a heartbeat, in a loop -------------------------------------------------------------------


class Client(Owner):
    """Answers what it is asked, if it does; reads what is not a pong."""

    class Outgoing:
        clear_descriptor = -1

    def __init__(self, heartbeat: Heartbeat) -> None:
        super().__init__()
        self.outgoing = self.Outgoing()
        self.outgoing.clear_descriptor = self.descriptor
        self.heartbeat = heartbeat
        self.theirs.setblocking(False)
        self.said: list[bytes] = []
        self.waiting_pings = 0
        self.is_gone = asyncio.Event()
        heartbeat.enter(self.descriptor, self, is_pinged=True)

    def on_readable(self) -> None:
        self.said.append(self.ours.recv(100))
        if self.said[-1] == b"bug":
            raise ZeroDivisionError

    def ping(self) -> None:
        self.waiting_pings += 1

    def took(self, batch: object, sent: int) -> None:
        raise AssertionError("a socket takes two bytes or none")

    def expect_pong(self) -> None:
        self.leave()

    def leave(self) -> None:
        self.heartbeat.leave(self.descriptor)
        self.is_gone.set()

    async def answer(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            assert await loop.sock_recv(self.theirs, 100) == encode(PING, b"", masked=False)
            await loop.sock_sendall(self.theirs, A_PONG)


async def test_who_answers_stays_and_who_falls_silent_goes() -> None:
    heartbeat, loop_time = Heartbeat(0.2, 0.1), LoopTime()
    heartbeat.start()
    answering, silent = Client(heartbeat), Client(heartbeat)
    answers = asyncio.create_task(answering.answer())
    while not silent.is_gone.is_set():
        await loop_time.pass_s(0.1)
    for _ in range(10):
        await loop_time.pass_s(0.1)
    answers.cancel()
    await asyncio.gather(answers, return_exceptions=True)
    assert not answering.is_gone.is_set()
    while not answering.is_gone.is_set():
        await loop_time.pass_s(0.1)
    assert loop_time.passed_s < 2
    assert (answering.said, silent.said) == ([], [])
    for each in (answering, silent):
        each.close()


async def test_behind_what_waits_a_ping_waits_too() -> None:
    heartbeat, loop_time = Heartbeat(0.2, 0.1), LoopTime()
    heartbeat.start()
    clear, behind = Client(heartbeat), Client(heartbeat)
    behind.outgoing.clear_descriptor = -1
    async with asyncio.timeout(10):
        while not behind.waiting_pings:
            await loop_time.pass_s(0.1)
        await loop_time.pass_s(0.1)  # the other one's tick may be the next
        assert await asyncio.get_running_loop().sock_recv(clear.theirs, 2) == encode(PING, b"", masked=False)
    with pytest.raises(BlockingIOError):
        behind.theirs.recv(1)
    assert not clear.waiting_pings
    for each in (clear, behind):
        each.leave()
        each.close()


async def test_a_fault_at_one_client_does_not_keep_the_others_from_being_read() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    heartbeat = Heartbeat(5.0, 4.0)
    clients = [Client(heartbeat) for _ in range(5)]
    for number, each in enumerate(clients):
        each.theirs.send(b"well" if number % 2 else b"bug")
    async with asyncio.timeout(10):
        while not all(each.said for each in clients):
            await asyncio.sleep(0)
    assert [type(each) for each in faults] == [ZeroDivisionError] * 3
    for each in clients:
        each.leave()
        each.close()


async def test_the_loop_looks_at_one_descriptor_and_at_none_without_clients() -> None:
    loop, heartbeat = asyncio.get_running_loop(), Heartbeat(5.0, 4.0)
    for _ in range(2):
        clients = [Client(heartbeat) for _ in range(3)]
        assert not any(loop.remove_reader(each.descriptor) for each in clients)
        for each in clients:
            each.leave()
            each.leave()  # again does no harm
            each.close()
        assert not loop.remove_reader(heartbeat.sockets.fileno())
