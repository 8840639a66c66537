"""What time it is at the server, and how far that may be off."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

MAX_DRIFT = 1_500e-6
"""By how much the server's time and this machine's clock move apart at most, in ms per ms.

The server's gains or loses up to 1 ms a second while it follows a clock that was set, and this machine's up
to half a ms while NTP slews it.
"""
USUAL_DRIFT = 200e-6
"""The same where nobody slews anything: quartz on both sides, each within 100 ppm."""
SLEW_RATE = 0.5
"""By how much what is shown is corrected, in ms per ms: less than 1, so that it never goes back."""
JUMP_MS = 250.0
"""By more than this only a sleep, or somebody who sets a clock, moves wall and monotonic clock apart."""
WALL_RESOLUTION_MS = 1.0
ROUNDING_MS = 0.002
"""By how much the server floors instants, and sums of floats of this size are rounded."""


class _Interval(NamedTuple):
    """Of offsets: server time less local time, in ms."""

    low: float
    high: float

    def widened(self, by_ms: float) -> "_Interval":
        return _Interval(self.low - by_ms, self.high + by_ms)

    def within(self, other: "_Interval") -> "_Interval":
        return _Interval(max(self.low, other.low), min(self.high, other.high))

    @property
    def is_empty(self) -> bool:
        """Also where an end is no number."""
        return not self.low <= self.high

    @property
    def middle(self) -> float:
        return self.low + (self.high - self.low) / 2


_ANYTHING = _Interval(-math.inf, math.inf)
_NO_CLOCK = _Interval(0.0, 0.0)
"""An answer of a clock that runs contradicts it."""


def _local_ms() -> float:
    return time.perf_counter() * 1000


def _wall_ms() -> float:
    return time.time() * 1000


class ServerTime:
    """What time it is at the server, measured by questions and answers.

    Its basis is a monotonic clock: setting the wall clock does not move it. The server answered between the
    instants at which the question left and the answer came. So the offset of its clock lies in an interval,
    wider by what the server says of its own error. What was learned so far is such an interval too: it widens
    with its age, as clocks drift, and each answer narrows it. What is shown is slewed towards the middle of
    what is likely, an interval in which clocks drift as they usually do; `error_ms` reaches to the farthest
    end of what is possible, so it counts everything: the way, the age, the server's error, what is still to
    be slewed, and how coarse the local clock is.

    What is shown never goes back, except at an answer that contradicts what was known (the server's clock was
    set), and at the first answer after a jump or `forget()`.

    On some platforms the monotonic clock stands still while the machine sleeps. The wall clock does not, so a
    jump between the two makes `error_ms` infinite until something is measured anew. Somebody who sets the
    wall clock causes the same: the two cannot be told apart, and a needless measurement costs little.
    """

    def __init__(
        self,
        local_ms: Callable[[], float] = _local_ms,
        wall_ms: Callable[[], float] = _wall_ms,
        resolution_ms: float = time.get_clock_info("perf_counter").resolution * 1000,
    ) -> None:
        """`local_ms` is monotonic, and of this resolution; `wall_ms` runs on while the machine sleeps."""
        self.local_ms = local_ms
        self._wall_ms = wall_ms
        self._reading_error_ms = resolution_ms + ROUNDING_MS
        self._possible = self._likely = _ANYTHING
        self._learned_at_ms = self._shown_at_ms = local_ms()
        self._forgotten_at_ms = -math.inf
        # The best guess until the server has said something.
        self._shown_from_ms = wall_ms()
        self._to_slew_ms = 0.0
        self._wall_lead_ms = self._shown_from_ms - self._shown_at_ms
        self._stands_at_ms: float | None = None

    def now_ms(self) -> float:
        """Server time in epoch ms, not rounded."""
        if self._stands_at_ms is not None:
            return self._stands_at_ms
        return self._shown_ms(self.local_ms())

    @property
    def error_ms(self) -> float:
        """The most by which `now_ms()` can be wrong; infinite until it is measured, and after a jump."""
        local_ms = self.local_ms()
        if self._apart_ms(local_ms) > JUMP_MS:
            return math.inf
        if self._stands_at_ms is not None:
            return math.inf if self._possible == _ANYTHING else 0.0
        low, high = self._possible.widened(self._uncertainty_ms(local_ms, MAX_DRIFT))
        offset_ms = self._shown_ms(local_ms) - local_ms
        return max(high - offset_ms, offset_ms - low) + self._reading_error_ms

    @property
    def has_jumped(self) -> bool:
        """Whether wall and monotonic clock have moved apart since the last answer, or since `forget()`."""
        return self._apart_ms(self.local_ms()) > JUMP_MS

    def learn(
        self,
        sent_ms: float,
        received_ms: float,
        timestamp_ms: float,
        received_at_ms: float | None = None,
        server_error_ms: float = 0.0,
    ) -> None:
        """Learn from an answer that has just come. One asked for before a jump or `forget()` is not believed.

        `sent_ms` and `received_ms` are local: when the question left, and when the answer came. The server
        had the question at `received_at_ms` and answered at `timestamp_ms`, by its own time. Without the
        former, the latter is all that is known, floored to the ms, as in /v1/time. `server_error_ms` is the
        most by which its own time can be wrong; infinite where it does not know.
        """
        if self.has_jumped:
            self.forget()
        if sent_ms < self._forgotten_at_ms:
            return
        self._stands_at_ms = None
        asked_at_ms = timestamp_ms + 1 if received_at_ms is None else received_at_ms
        answer = _Interval(timestamp_ms - received_ms, asked_at_ms - sent_ms)
        answer = answer.widened(self._reading_error_ms + self._slept_ms(received_ms))
        # Clocks drifted also while the question and the answer were on their way.
        possible = answer.widened(server_error_ms + (received_ms - sent_ms) * MAX_DRIFT)
        if possible.is_empty:
            return  # which no server says
        known = self._possible.widened(self._uncertainty_ms(received_ms, MAX_DRIFT)).within(possible)
        likely = self._likely.widened(self._uncertainty_ms(received_ms, USUAL_DRIFT)).within(answer)
        is_step = known.is_empty or self._possible == _ANYTHING
        if known.is_empty:
            known, likely = possible, answer
        elif likely.is_empty:
            likely = answer.within(known)
        self._possible, self._likely, self._learned_at_ms = known, likely, received_ms
        self._show(max(known.low, min(known.high, likely.middle)), is_step)

    def stand(self, timestamp_ms: float) -> None:
        """The server's time stands still, at this instant, until it says otherwise: only a test moves it."""
        self._stands_at_ms = timestamp_ms
        self._possible = self._likely = _NO_CLOCK
        self._wall_lead_ms = self._wall_ms() - self.local_ms()

    def forget(self) -> None:
        """Measure anew, as after a sleep. `now_ms()` goes on as before until the first answer.

        A new connection is no reason to: what was known remains true.
        """
        self._possible = self._likely = _ANYTHING
        self._forgotten_at_ms = self.local_ms()
        self._wall_lead_ms = self._wall_ms() - self._forgotten_at_ms

    def _show(self, offset_ms: float, is_step: bool) -> None:
        """Show this offset from now on, or go there."""
        local_ms = self.local_ms()
        self._wall_lead_ms = self._wall_ms() - local_ms
        self._shown_from_ms = local_ms + offset_ms if is_step else self._shown_ms(local_ms)
        self._shown_at_ms = local_ms
        self._to_slew_ms = offset_ms - (self._shown_from_ms - local_ms)

    def _shown_ms(self, local_ms: float) -> float:
        """The sum is made in this order so that no rounding lets it go back."""
        since_ms = max(0.0, local_ms - self._shown_at_ms)
        most_ms = since_ms * SLEW_RATE
        return self._shown_from_ms + (since_ms + max(-most_ms, min(most_ms, self._to_slew_ms)))

    def _uncertainty_ms(self, local_ms: float, drift: float) -> float:
        """By how much what was learned may have changed since, in either direction."""
        return max(0.0, local_ms - self._learned_at_ms) * drift + self._slept_ms(local_ms)

    def _slept_ms(self, local_ms: float) -> float:
        """For how long this clock may have stood still since the last answer, where that is no jump yet."""
        apart_ms, rounded_ms = self._apart_ms(local_ms), 2 * (WALL_RESOLUTION_MS + self._reading_error_ms)
        return apart_ms + rounded_ms if apart_ms > rounded_ms else 0.0

    def _apart_ms(self, local_ms: float) -> float:
        """How far the wall clock and the monotonic one have moved apart since the last answer."""
        return abs(self._wall_ms() - local_ms - self._wall_lead_ms)
