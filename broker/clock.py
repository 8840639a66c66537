"""Redis's time, from a measured offset to this process's monotonic clock."""

import time

# How far two good clocks may drift apart: 500 ppm, what NTP slews at most.
DRIFT_MS_PER_S = 0.5
# A correction of no more than this is smoothed over; more is a step of Redis's own clock.
STEP_MS = 50.0


class RedisClock:
    """Every answer that carries TIME is a sample; the best one counts until it has grown old.

    A sample's error is half its round trip, and grows with age. One that contradicts what is known,
    beyond the error of both, means that Redis's clock was set (or another Redis answers), and counts at once.
    """

    def __init__(self) -> None:
        # Until the first answer, this machine's own idea.
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._error_ms = float("inf")
        self._sampled_at_s = 0.0
        self._last_ms = 0

    def sample(self, sent_at_s: float, received_at_s: float, redis_us: int) -> None:
        """TIME was `redis_us` at some instant between the two of `time.monotonic()`."""
        offset_ms = redis_us / 1000 - (sent_at_s + received_at_s) * 500
        error_ms = (received_at_s - sent_at_s) * 500
        known_error_ms = self._error_ms + (received_at_s - self._sampled_at_s) * DRIFT_MS_PER_S
        is_contradiction = abs(offset_ms - self._offset_ms) > error_ms + known_error_ms
        if error_ms <= known_error_ms or is_contradiction:
            self._offset_ms = offset_ms
            self._error_ms = error_ms
            self._sampled_at_s = received_at_s

    @property
    def offset_ms(self) -> float:
        return self._offset_ms

    def now_ms(self) -> int:
        now_ms = int(time.monotonic() * 1000 + self._offset_ms)
        if self._last_ms - STEP_MS < now_ms < self._last_ms:
            return self._last_ms
        self._last_ms = now_ms
        return now_ms
