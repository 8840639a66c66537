"""What time it is: measured at Redis, or the machine's own, corrected without a jump."""

import logging
import random

import pytest

from broker.clock import RedisClock
from broker.memory import MemoryBroker
from lockstep.metrics import Metrics
from tests.support.fake_time import FakeTime

T0_US = 1_704_067_200_000_000


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


# --- how far it may be off -----------------------------------------------------------------------

DRIFT_PPM = 1000


class DriftingRedis:
    """Its clock drifts, and answers take their time; `apart_ms` is how far it is from the fake wall clock."""

    def __init__(self, fake: FakeTime, chance: random.Random) -> None:
        self.fake = fake
        self.chance = chance
        self.apart_ms = 0.0
        self.drift_ppm = chance.choice((-DRIFT_PPM, 0, DRIFT_PPM))

    def pass_time(self, seconds: float) -> None:
        self.fake.passed_s += seconds
        self.apart_ms += seconds * self.drift_ppm / 1000

    def answer(self, redis_clock: RedisClock, most_ms: float) -> None:
        """Tell the clock the time, each way taking up to so many ms."""
        sent_at_s = self.fake.passed_s
        self.pass_time(self.chance.choice((0, self.chance.random(), 1)) * most_ms / 1000)
        told_us = T0_US + int(self.fake.passed_s * 1_000_000 + self.apart_ms * 1000)
        self.pass_time(self.chance.choice((0, self.chance.random(), 1)) * most_ms / 1000)
        redis_clock.sample(sent_at_s, self.fake.passed_s, told_us)

    def off_ms(self, redis_clock: RedisClock) -> float:
        """How far from it the clock's time is, as it is shown."""
        since_t0_us = self.fake.passed_s * 1_000_000 + self.apart_ms * 1000
        return (redis_clock.shown_us() - T0_US - since_t0_us) / 1000


@pytest.mark.parametrize("seed", range(20))
def test_the_error_bound_holds_at_every_moment(fake: FakeTime, seed: int) -> None:
    redis = DriftingRedis(fake, chance := random.Random(seed))
    redis_clock = RedisClock(Metrics(), fake)
    redis.answer(redis_clock, 1.0)
    for _ in range(500):
        redis.pass_time(chance.choice((0.0, 0.001, 0.1, 1.0, 3.0)) * chance.random())
        if chance.random() < 0.5:
            redis.answer(redis_clock, chance.choice((0.1, 1.0, 10.0)))
        if chance.random() < 0.05:
            # More than both samples may be wrong by: else it is not noticed.
            redis.apart_ms += chance.choice((-1, 1)) * chance.choice((40, 300, 1_900, 60_000))
            redis.answer(redis_clock, 10.0)
        assert abs(redis.off_ms(redis_clock)) <= redis_clock.error_ms()


def test_the_error_bound_is_half_a_round_trip_and_grows_by_a_thousandth(fake: FakeTime) -> None:
    redis_clock = RedisClock(Metrics(), fake)
    assert redis_clock.error_ms() == float("inf"), "Redis has not answered yet"
    sampled(redis_clock, fake)
    assert redis_clock.error_ms() == pytest.approx(0.5, abs=0.01)
    fake.passed_s += 10
    assert redis_clock.error_ms() == pytest.approx(10.5, abs=0.01)
    sampled(redis_clock, fake)
    assert redis_clock.error_ms() == pytest.approx(0.5, abs=0.01)


def test_what_is_still_to_be_slewed_is_part_of_the_error_bound(fake: FakeTime) -> None:
    redis_clock = RedisClock(Metrics(), fake)
    sampled(redis_clock, fake)
    fake.set_by_s = 1.0
    sampled(redis_clock, fake)
    assert redis_clock.error_ms() == pytest.approx(1000.5, abs=0.01)
    fake.passed_s += 2
    assert redis_clock.error_ms() == pytest.approx(602.5, abs=0.01)
    fake.passed_s += 8
    assert redis_clock.error_ms() == pytest.approx(10.5, abs=0.01)


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


def test_the_embedded_brokers_clock_is_its_own(fake: FakeTime) -> None:
    broker = MemoryBroker(fake)
    fake.set_by_s = 3600
    fake.passed_s += 0.0012345
    assert broker.shown_us() // 1000 == broker.shown_ms() == broker.now_ms()
    assert 0 < broker.error_ms() < 0.01


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
