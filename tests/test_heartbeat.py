"""The one timer that pings everybody, on a loop whose time the test moves."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from handlers.heartbeat import Heartbeat


class Timer:
    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s = at_s
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """As much of an event loop as a heartbeat needs."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, at_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(at_s, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what falls due at its time."""
        end_s = self.now_s + seconds + 1e-6
        while self._next(end_s) is not None:
            timer = self._next(end_s)
            assert timer is not None
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer.at_s)
            timer.callback()
        self.now_s = max(self.now_s, end_s)

    def stall(self, seconds: float) -> None:
        """Let time pass while nothing is called, as when the process is stopped."""
        self.now_s += seconds

    def _next(self, until_s: float) -> Timer | None:
        due = [timer for timer in self.timers if timer.at_s <= until_s and not timer.is_cancelled]
        return min(due, key=lambda timer: timer.at_s, default=None)


class Client:
    """A connection whose client answers, or does not; then it drops out, as a connection does."""

    def __init__(self, loop: Loop, heartbeat: Heartbeat, answers: bool = True) -> None:
        self.loop = loop
        self.heartbeat = heartbeat
        self.answers = answers
        self.owes_pong = False
        self.pinged_at: list[float] = []
        self.gone_at: float | None = None
        heartbeat.add(self)

    def ping(self) -> None:
        assert not self.owes_pong, "pinged again before the answer was looked for"
        self.pinged_at.append(self.loop.now_s)
        self.owes_pong = not self.answers

    def expect_pong(self) -> None:
        if self.owes_pong:
            self.gone_at = self.loop.now_s
            self.heartbeat.drop(self)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr("handlers.heartbeat.asyncio.get_running_loop", lambda: loop)
    return loop


def beating(interval_s: float = 5.0, timeout_s: float = 4.0) -> Heartbeat:
    heartbeat = Heartbeat(interval_s, timeout_s)
    heartbeat.start()
    return heartbeat


SETTINGS = [(5.0, 4.0), (0.4, 0.3), (0.2, 0.1), (60.0, 50.0), (1.0, 0.95), (0.05, 0.04), (7.3, 2.2)]


@pytest.mark.parametrize(("interval_s", "timeout_s"), SETTINGS)
def test_each_connection_is_pinged_once_an_interval(loop: Loop, interval_s: float, timeout_s: float) -> None:
    heartbeat = beating(interval_s, timeout_s)
    clients = [Client(loop, heartbeat) for _ in range(7)]
    loop.advance(interval_s * 10)
    for client in clients:
        assert len(client.pinged_at) == 10
        assert all(b - a == pytest.approx(interval_s) for a, b in pairwise(client.pinged_at))


@pytest.mark.parametrize(("interval_s", "timeout_s"), SETTINGS)
def test_a_client_that_answers_stays(loop: Loop, interval_s: float, timeout_s: float) -> None:
    heartbeat = beating(interval_s, timeout_s)
    client = Client(loop, heartbeat)
    loop.advance(interval_s * 20)
    assert client.gone_at is None


@pytest.mark.parametrize(("interval_s", "timeout_s"), SETTINGS)
def test_a_client_that_stops_answering_is_gone_after_interval_and_timeout_at_most(
    loop: Loop, interval_s: float, timeout_s: float
) -> None:
    heartbeat = beating(interval_s, timeout_s)
    clients = [Client(loop, heartbeat) for _ in range(100)]
    loop.advance(interval_s * 2.5)
    vanished_at = loop.now_s
    for client in clients:
        client.answers = False
    loop.advance(interval_s + timeout_s)
    tick_s = interval_s / 10 if interval_s < 1 else 0.1
    for client in clients:
        assert client.gone_at is not None
        assert client.gone_at - vanished_at <= interval_s + timeout_s + 0.001
        # The client had its time, to within a tick.
        assert client.gone_at - client.pinged_at[-1] >= min(timeout_s, interval_s / 2) - tick_s


def test_the_time_for_an_answer_is_what_was_set(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    client = Client(loop, heartbeat, answers=False)
    loop.advance(9.0)
    assert client.gone_at is not None
    assert client.gone_at - client.pinged_at[0] == pytest.approx(4.0)


def test_connections_opened_together_are_not_pinged_together(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    clients = [Client(loop, heartbeat) for _ in range(1000)]
    loop.advance(5.0)
    at_once = Counter(client.pinged_at[0] for client in clients)
    assert max(at_once.values()) == 20  # 50 ticks in 5 s


@pytest.mark.parametrize("every_s", [0.1, 0.9, 1.0, 4.9, 5.0])
def test_connections_opened_regularly_are_not_pinged_together(loop: Loop, every_s: float) -> None:
    heartbeat, clients = beating(5.0, 4.0), []
    for _ in range(500):
        clients.append(Client(loop, heartbeat))
        loop.advance(every_s)
    loop.advance(5.0)
    at_once = Counter(round(client.pinged_at[-1], 2) for client in clients)
    assert max(at_once.values()) <= 11  # 50 ticks in 5 s


def test_a_connection_is_not_expected_to_answer_before_it_was_asked(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    for _ in range(60):
        loop.advance(0.1)
        client = Client(loop, heartbeat, answers=False)
        while client.gone_at is None:
            loop.advance(0.1)
        assert client.pinged_at


def test_a_dropped_connection_is_left_alone(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    client, other = Client(loop, heartbeat), Client(loop, heartbeat)
    loop.advance(1.0)
    heartbeat.drop(client)
    heartbeat.drop(client)  # again does no harm
    before = len(client.pinged_at)
    loop.advance(20.0)
    assert (len(client.pinged_at), client.gone_at) == (before, None)
    assert len(other.pinged_at) in (4, 5)


def test_connections_may_go_while_all_are_pinged(loop: Loop) -> None:
    """As when a socket turns out to be broken."""
    heartbeat = beating(0.2, 0.1)

    class Fragile(Client):
        def ping(self) -> None:
            super().ping()
            heartbeat.drop(self)

    clients = [Fragile(loop, heartbeat) for _ in range(50)]
    loop.advance(1.0)
    assert [len(client.pinged_at) for client in clients] == [1] * 50


def test_ticks_missed_in_a_stall_are_not_made_up_for(loop: Loop) -> None:
    """What was answered meanwhile is still to be read: nobody is judged for time in which nothing was."""
    heartbeat = beating(5.0, 4.0)
    clients = [Client(loop, heartbeat) for _ in range(500)]
    loop.advance(5.0)
    loop.stall(60.0)
    woken_at = loop.now_s
    loop.advance(5.0)
    for client in clients:
        assert sum(at_s >= woken_at for at_s in client.pinged_at) in (1, 2)


def test_who_was_asked_just_before_a_stall_has_time_to_answer_after_it(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    client = Client(loop, heartbeat, answers=False)
    while not client.pinged_at:
        loop.advance(0.1)
    loop.stall(60.0)
    loop.advance(3.5)
    assert client.gone_at is None
    loop.advance(0.6)
    assert client.gone_at is not None


def test_the_beat_keeps_its_time_though_each_tick_is_a_little_late(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    client = Client(loop, heartbeat)
    for _ in range(5000):
        loop.advance(0.1)
        loop.stall(0.03)
    seconds = loop.now_s - client.pinged_at[0]
    assert len(client.pinged_at) == pytest.approx(1 + seconds / 5, abs=1)


def test_the_first_clients_are_not_pinged_as_soon_as_they_come(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    for _ in range(20):
        client, opened_at = Client(loop, heartbeat), loop.now_s
        while not client.pinged_at:
            loop.advance(0.1)
        assert client.pinged_at[0] - opened_at >= 2.5


def test_a_closed_heartbeat_is_silent(loop: Loop) -> None:
    heartbeat = beating(5.0, 4.0)
    client = Client(loop, heartbeat)
    loop.advance(20.0)
    heartbeat.close()
    before = len(client.pinged_at)
    assert before > 0
    loop.advance(20.0)
    assert len(client.pinged_at) == before
    Heartbeat(5.0, 4.0).close()  # also one that was never started


def test_without_connections_there_is_no_timer(loop: Loop) -> None:
    """A process without clients is not woken for them."""
    heartbeat = beating(5.0, 4.0)
    for _ in range(3):
        loop.advance(1.0)
        assert loop.timers == []
        client = Client(loop, heartbeat)
        loop.advance(10.0)
        assert (len(loop.timers), len(client.pinged_at)) == (1, 2)
        heartbeat.drop(client)


def test_each_tick_says_how_late_it_comes(loop: Loop) -> None:
    late_s: list[float] = []
    heartbeat = Heartbeat(5.0, 4.0, late_s.append)
    heartbeat.start()
    Client(loop, heartbeat)
    loop.advance(1.0)
    assert late_s == pytest.approx([0.0] * 10, abs=1e-5)
    loop.stall(0.5)
    loop.advance(0.05)
    assert max(late_s) == pytest.approx(0.4, abs=0.01)
