"""What time it is at Redis, by a measured offset to the monotonic clock, and what is shown of it."""

import time

# How far two good clocks may drift apart: 500 ppm, what NTP slews at most.
DRIFT_MS_PER_S = 0.5
# What is shown takes a correction of up to this by slewing, within 10 s; a larger one is shown as it is.
STEP_MS = 2000.0
SHOWN_RATE = STEP_MS / 10_000


class SlewedOffset:
    """An offset to the monotonic clock that follows another one by `rate` ms per ms at most.

    With a rate below 1 a clock that is read by it never goes back, whatever it has to follow.
    """

    def __init__(self, offset_ms: float, rate: float) -> None:
        self.offset_ms = offset_ms
        self._rate = rate
        self._at_ms = time.monotonic() * 1000

    def follow(self, monotonic_ms: float, aim_ms: float) -> float:
        """The offset at `monotonic_ms`, after it has moved towards `aim_ms` since the last call."""
        most_ms = max(0.0, monotonic_ms - self._at_ms) * self._rate
        self._at_ms = monotonic_ms
        self.offset_ms += max(-most_ms, min(most_ms, aim_ms - self.offset_ms))
        return self.offset_ms


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
        self._shown = SlewedOffset(self._offset_ms, SHOWN_RATE)

    def sample(self, sent_at_s: float, received_at_s: float, redis_us: int) -> float:
        """TIME was `redis_us` at some instant between the two of `time.monotonic()`.

        Returns by how many ms the clock was set, where that is too much to be slewed; else 0.
        """
        offset_ms = redis_us / 1000 - (sent_at_s + received_at_s) * 500
        error_ms = (received_at_s - sent_at_s) * 500
        known_error_ms = self._error_ms + (received_at_s - self._sampled_at_s) * DRIFT_MS_PER_S
        is_contradiction = abs(offset_ms - self._offset_ms) > error_ms + known_error_ms
        if error_ms > known_error_ms and not is_contradiction:
            return 0.0
        is_first = self._error_ms == float("inf")
        # Up to here it followed what was known.
        step_ms = offset_ms - self._shown.follow(received_at_s * 1000, self._offset_ms)
        self._offset_ms = offset_ms
        self._error_ms = error_ms
        self._sampled_at_s = received_at_s
        if not is_first and abs(step_ms) <= STEP_MS:
            return 0.0
        self._shown.offset_ms = offset_ms
        return 0.0 if is_first else step_ms

    @property
    def offset_ms(self) -> float:
        return self._offset_ms

    def now_ms(self) -> int:
        """The best estimate; a better measurement may take it back by a little."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def shown_ms(self) -> int:
        """For clients: small corrections are slewed, so it goes back only with a step of Redis's clock."""
        monotonic_ms = time.monotonic() * 1000
        return int(monotonic_ms + self._shown.follow(monotonic_ms, self._offset_ms))
