"""What time it is in a cluster whose masters do not agree about it."""

import logging
import uuid

import pytest

from broker.clock import RedisClock
from broker.cluster.clock import ClusterClock
from broker.keys import partition_of
from broker.sentinel import Address
from lockstep.metrics import Metrics
from tests.support.fake_time import FakeTime

A, B = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


class TwoMasters:
    """Partition 0 is at A until it is moved; all others are at B."""

    def __init__(self) -> None:
        self.time = FakeTime()
        self.metrics = Metrics()
        self.clocks = {address: RedisClock(self.metrics, self.time) for address in (A, B)}
        self.first: Address | None = A
        self.clock = ClusterClock(self.of_partition, lambda: self.clocks, self.metrics, self.time)

    def of_partition(self, partition: int) -> RedisClock | None:
        if self.first is None:
            return None
        return self.clocks[B if partition else self.first]

    def measure(self, master: Address, ahead_ms: float, round_trip_ms: float = 1.0) -> None:
        """It answers that it is so much ahead of this machine."""
        half_s = round_trip_ms / 2000
        at_s, redis_us = self.time.passed_s, round((self.time.time() + ahead_ms / 1000) * 1_000_000)
        self.clocks[master].sample(at_s - half_s, at_s + half_s, redis_us)

    @property
    def ahead_ms(self) -> float:
        """How far what is shown is ahead of this machine."""
        return self.clock.shown_us() / 1000 - self.time.time() * 1000

    @property
    def count(self) -> float | None:
        return self.metrics.registry.get_sample_value("lockstep_clocks_apart_total")


@pytest.fixture
def two() -> TwoMasters:
    return TwoMasters()


def session_in(is_first: bool) -> str:
    ids = iter(lambda: str(uuid.uuid4()), "")
    return next(each for each in ids if (partition_of(each) == 0) is is_first)


def test_a_session_goes_by_the_clock_of_its_own_master(two: TwoMasters) -> None:
    two.measure(A, 5)
    two.measure(B, 300)
    machine_ms = two.time.time() * 1000
    assert two.clock.now_ms(session_in(True)) == pytest.approx(machine_ms + 5, abs=1.1)
    assert two.clock.now_ms(session_in(False)) == pytest.approx(machine_ms + 300, abs=1.1)
    assert two.clock.now_ms() == pytest.approx(machine_ms + 5, abs=1.1)
    assert two.ahead_ms == pytest.approx(5, abs=0.1)


def test_until_a_master_has_answered_its_sessions_go_by_the_first_clock(two: TwoMasters) -> None:
    two.measure(A, 300)
    assert two.clock.now_ms(session_in(False)) == two.clock.now_ms()


def test_before_any_answer_the_error_is_infinite(two: TwoMasters) -> None:
    assert two.clock.error_ms() == float("inf")
    two.first = None
    assert two.clock.error_ms() == float("inf")
    assert two.ahead_ms == pytest.approx(0, abs=0.1)
    two.measure(B, 3)
    assert two.clock.error_ms() == float("inf"), "what is shown is partition 0's"


def test_the_first_answer_is_shown_at_once(two: TwoMasters) -> None:
    assert two.ahead_ms == pytest.approx(0, abs=0.1)
    two.measure(A, 1500)
    assert two.ahead_ms == pytest.approx(1500, abs=0.1)


@pytest.mark.parametrize("ahead_ms", [-40, 40])
def test_the_error_covers_the_clocks_of_all_masters(two: TwoMasters, ahead_ms: float) -> None:
    two.measure(A, 0)
    alone_ms = two.clock.error_ms()
    two.measure(B, ahead_ms)
    assert alone_ms < 1 < 40 <= two.clock.error_ms() < 41


@pytest.mark.parametrize("ahead_ms", [-1900, -15, 15, 1900])
def test_a_replica_that_takes_over_is_followed_without_going_back(two: TwoMasters, ahead_ms: float) -> None:
    two.measure(A, 0)
    shown_us = two.clock.shown_us()
    two.measure(B, ahead_ms)
    two.first = B
    assert two.ahead_ms == pytest.approx(0, abs=0.1), "not at once"
    for _ in range(1000):
        two.time.passed_s += 0.01
        assert abs(two.ahead_ms - ahead_ms) <= two.clock.error_ms()
        assert two.clock.shown_us() >= shown_us
        shown_us = two.clock.shown_us()
    assert two.ahead_ms == pytest.approx(ahead_ms, abs=0.1)


def test_one_whose_clock_is_far_off_is_shown_as_it_is(two: TwoMasters) -> None:
    two.measure(A, 0)
    two.measure(B, -3_600_000)
    assert two.ahead_ms == pytest.approx(0, abs=0.1)
    two.first = B
    assert two.ahead_ms == pytest.approx(-3_600_000, abs=0.1)


def test_a_new_master_is_not_shown_before_it_has_answered(two: TwoMasters) -> None:
    two.measure(A, 300)
    assert two.ahead_ms == pytest.approx(300, abs=0.1)
    two.first = B
    two.time.passed_s += 1
    assert two.ahead_ms == pytest.approx(300, abs=0.1)
    assert two.clock.error_ms() < 10


def test_clocks_that_are_apart_are_named_once_until_that_changes(
    two: TwoMasters, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        two.clock.look()
        two.clock.look()
        found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return found

    assert lines() == []
    two.measure(A, 0)
    two.measure(B, 15)
    assert (lines(), two.count) == ([], 0)
    two.measure(B, 35)
    (line,) = lines()
    assert "Redis at 10.0.0.2:6379 is 35 ms ahead of that at 10.0.0.1:6379" in line
    two.measure(A, 70)
    (line,) = lines()
    assert "Redis at 10.0.0.1:6379 is 35 ms ahead of that at 10.0.0.2:6379" in line
    assert two.count == 2
    two.measure(B, 70)
    (line,) = lines()
    assert "within 20 ms" in line
    assert (lines(), two.count) == ([], 2)


def test_what_a_slow_answer_makes_of_clocks_is_not_counted_as_a_difference(two: TwoMasters) -> None:
    two.measure(A, 0)
    two.measure(B, 25, round_trip_ms=40)
    two.clock.look()
    assert two.count == 0
