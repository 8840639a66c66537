"""What time it is at Redis, by a measured offset to the monotonic clock, and what is shown of it."""

import logging
import time
from typing import Any, Protocol

from lockstep.contract import Clock
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

# How far Redis's clock and this machine's may drift apart: each by the 500 ppm that NTP slews a clock by
# at most. Quartz that nobody corrects stays within a fifth of that.
DRIFT_MS_PER_S = 2 * 0.5
# What is lost where TIME is floored to the microsecond, and in sums of floats of this size.
ROUNDING_MS = 0.002
# What is shown takes corrections of up to this by slewing, within 10 s; a larger one is shown at once.
STEP_MS = 2000.0
SHOWN_RATE = STEP_MS / 10_000


class TimeSource(Protocol):
    """The two clocks of a machine, both in s. The module `time` is one; a test has its own, and moves it."""

    def time(self) -> float:
        """The wall clock, which may be set."""

    def monotonic(self) -> float:
        """A clock that never goes back."""


class TimedByRedis(Protocol):
    """A clock that learns what time it is from the answers that carry TIME."""

    def now_ms(self) -> int: ...

    def measure(self, sent_at_s: float, reply: Any) -> None:
        """Take a reply to TIME, or one that carries it, to what was sent at `sent_at_s` and has just come."""


class SlewedOffset:
    """An offset to the monotonic clock that follows another one by `rate` ms per ms at most.

    With a rate below 1 a clock that adds it never goes back, whatever the offset has to follow.
    """

    def __init__(self, monotonic_ms: float, offset_ms: float, rate: float) -> None:
        self.offset_ms = offset_ms
        self._rate = rate
        self._at_ms = monotonic_ms

    def follow(self, monotonic_ms: float, aim_ms: float) -> float:
        """The offset at `monotonic_ms`, after it has moved towards `aim_ms` since the last call."""
        most_ms = max(0.0, monotonic_ms - self._at_ms) * self._rate
        self._at_ms = monotonic_ms
        self.offset_ms += max(-most_ms, min(most_ms, aim_ms - self.offset_ms))
        return self.offset_ms


class RedisClock(Clock):
    """Takes every answer that carries TIME as a sample; the best one counts until it has grown old.

    A sample's error is half its round trip, and grows with age. One that contradicts what is known,
    beyond the error of both, means that Redis's clock was set (or another Redis answers), and counts at once.
    """

    def __init__(self, metrics: Metrics, source: TimeSource = time) -> None:
        self._metrics = metrics
        self._source = source
        # Of the broker's clock to the monotonic one. Until the first answer, this machine's own idea.
        monotonic_ms = source.monotonic() * 1000
        self.offset_ms = source.time() * 1000 - monotonic_ms
        self._sample_error_ms = float("inf")
        self._sampled_at_s = 0.0
        self._shown = SlewedOffset(monotonic_ms, self.offset_ms, SHOWN_RATE)

    def measure(self, sent_at_s: float, reply: Any) -> None:
        """Take a reply to TIME, or one that carries it, to what was sent at `sent_at_s` and has just come."""
        seconds, microseconds = reply
        redis_us = int(seconds) * 1_000_000 + int(microseconds)
        step_ms = self.sample(sent_at_s, self._source.monotonic(), redis_us)
        if step_ms:
            self._metrics.clock_steps.inc()
            log.warning("the clock of Redis was set by %+.1f s (or this machine slept)", step_ms / 1000)

    def sample(self, sent_at_s: float, received_at_s: float, redis_us: int) -> float:
        """TIME was `redis_us` at some instant between these two of the monotonic clock.

        Returns by how many ms the clock was set, where that is too much to be slewed; else 0.
        """
        offset_ms = redis_us / 1000 - (sent_at_s + received_at_s) * 500
        error_ms = (received_at_s - sent_at_s) * 500 + ROUNDING_MS
        known_error_ms = self._known_error_ms(received_at_s)
        is_contradiction = abs(offset_ms - self.offset_ms) > error_ms + known_error_ms
        if error_ms > known_error_ms and not is_contradiction:
            return 0.0
        is_first = self._sample_error_ms == float("inf")
        # Up to here the shown offset followed what was known.
        step_ms = offset_ms - self._shown.follow(received_at_s * 1000, self.offset_ms)
        self.offset_ms = offset_ms
        self._sample_error_ms = error_ms
        self._sampled_at_s = sent_at_s
        if not is_first and abs(step_ms) <= STEP_MS:
            return 0.0
        self._shown.offset_ms = offset_ms
        return 0.0 if is_first else step_ms

    @property
    def is_measured(self) -> bool:
        return self._sample_error_ms < float("inf")

    @property
    def known_error_ms(self) -> float:
        """How far the estimate may be off by now."""
        return self._known_error_ms(self._source.monotonic())

    def _known_error_ms(self, monotonic_s: float) -> float:
        return self._sample_error_ms + (monotonic_s - self._sampled_at_s) * DRIFT_MS_PER_S

    def now_ms(self, session_id: str | None = None) -> int:
        """The best estimate; a better measurement may take it back by a little."""
        return int(self._source.monotonic() * 1000 + self.offset_ms)

    def shown_us(self) -> int:
        """For clients: small corrections are slewed, so it goes back only with a step of Redis's clock."""
        monotonic_ms = self._source.monotonic() * 1000
        return int((monotonic_ms + self._shown.follow(monotonic_ms, self.offset_ms)) * 1000)

    def error_ms(self) -> float:
        """How far what is shown may be off: as much as the estimate, and by what is still to be slewed."""
        return self.error_of_ms(self._shown.follow(self._source.monotonic() * 1000, self.offset_ms))

    def error_of_ms(self, offset_ms: float) -> float:
        """How far a clock of this offset may be off by now: by the estimate's own error, and from that."""
        return self.known_error_ms + abs(self.offset_ms - offset_ms) + ROUNDING_MS
