"""What time it is: measured at Redis, or the machine's own, corrected without a jump."""

import logging

import pytest

from broker.clock import RedisClock
from broker.memory import MemoryBroker
from lockstep.metrics import Metrics

T0_S = 1_704_067_200.0


class FakeTime:
    """`time` for the code under test: both clocks run together until the wall clock is set."""

    def __init__(self) -> None:
        self.passed_s = 1000.0
        self.set_by_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    def time(self) -> float:
        return T0_S + self.passed_s + self.set_by_s


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


def sampled(redis_clock: RedisClock, fake: FakeTime) -> float:
    """The clock learns what Redis says: the fake wall time, within a millisecond's round trip."""
    at_s = fake.passed_s
    return redis_clock.sample(at_s - 0.0005, at_s + 0.0005, round(fake.time() * 1_000_000))


# --- Redis's clock, as it is shown ---------------------------------------------------------------


@pytest.mark.parametrize("by_s", [-1.9, -0.3, 0.004, 1.9])
def test_a_correction_of_up_to_two_seconds_is_slewed_within_ten(fake: FakeTime, by_s: float) -> None:
    redis_clock = RedisClock(Metrics(), fake)
    sampled(redis_clock, fake)
    latest_ms = redis_clock.shown_ms()
    fake.passed_s += 60  # nobody has asked for a while
    fake.set_by_s = by_s
    assert sampled(redis_clock, fake) == 0, "this is no step"
    assert abs(redis_clock.now_ms() - fake.time() * 1000) < 2, "changes are dated by it at once"
    assert abs(redis_clock.shown_ms() - (fake.time() - by_s) * 1000) < 2, "it is shown at once"
    for _ in range(1000):
        fake.passed_s += 0.01
        shown_ms = redis_clock.shown_ms()
        assert shown_ms >= latest_ms
        latest_ms = shown_ms
    assert abs(latest_ms - fake.time() * 1000) < 2


@pytest.mark.parametrize("by_s", [-3600, -2.5, 2.5, 3600])
def test_a_larger_step_is_shown_as_it_is_and_told(fake: FakeTime, by_s: float) -> None:
    redis_clock = RedisClock(Metrics(), fake)
    sampled(redis_clock, fake)
    fake.set_by_s = by_s
    assert sampled(redis_clock, fake) == pytest.approx(by_s * 1000, abs=2)
    assert abs(redis_clock.shown_ms() - fake.time() * 1000) < 2


def test_the_first_answer_of_redis_is_no_step(fake: FakeTime) -> None:
    redis_clock = RedisClock(Metrics(), fake)
    fake.set_by_s = 3600
    assert sampled(redis_clock, fake) == 0
    assert abs(redis_clock.shown_ms() - fake.time() * 1000) < 2


def test_a_measurement_that_can_be_wrong_by_more_changes_nothing(fake: FakeTime) -> None:
    redis_clock = RedisClock(Metrics(), fake)
    sampled(redis_clock, fake)
    before_ms = redis_clock.now_ms()
    slow = redis_clock.sample(fake.passed_s - 3, fake.passed_s + 3, round((fake.time() - 2.9) * 1_000_000))
    assert slow == 0
    assert redis_clock.now_ms() == before_ms


# --- the embedded broker's -----------------------------------------------------------------------


@pytest.mark.parametrize("by_s", [-100, 100])
def test_the_embedded_brokers_clock_follows_the_wall_clock_by_one_in_a_thousand(
    fake: FakeTime, by_s: float
) -> None:
    broker = MemoryBroker(fake)
    latest_ms = broker.now_ms()
    fake.set_by_s = by_s
    minutes = 0
    while abs(latest_ms - fake.time() * 1000) >= 2:
        minutes += 1
        fake.passed_s += 60
        now_ms = broker.now_ms()
        assert 60_000 * 0.999 - 1 <= now_ms - latest_ms <= 60_000 * 1.001 + 1
        latest_ms = now_ms
    assert minutes == pytest.approx(100_000 / 60, abs=2)


def test_an_embedded_clock_that_is_far_off_says_so_once(
    fake: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker(fake)
    with caplog.at_level(logging.WARNING):
        fake.set_by_s = 599
        broker.now_ms()
        assert not caplog.records
        fake.set_by_s = 3600
        for _ in range(3):
            fake.passed_s += 1
            broker.now_ms()
    assert len(caplog.records) == 1
    assert "restart" in caplog.records[0].getMessage()
    assert MemoryBroker(fake).now_ms() == int(fake.time() * 1000), "a restart does not set it right"
