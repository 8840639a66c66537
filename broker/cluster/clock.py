"""What time it is in a cluster: by the clock of each master for its sessions, by one for clients to see."""

import logging
import time
from collections.abc import Callable, Mapping

from broker.clock import SHOWN_RATE, STEP_MS, RedisClock, SlewedOffset, TimeSource
from broker.keys import partition_of
from broker.sentinel import Address
from lockstep.contract import Clock
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

# Clocks that are further apart than this are not kept in step by anybody.
APART_MS = 20.0


class ClusterClock(Clock):
    """A session goes by the clock of its partition's master; what is shown, by that of partition 0's.

    What is shown is slewed also where partition 0 goes from one master to another.
    """

    def __init__(
        self,
        of_partition: Callable[[int], RedisClock | None],
        of_all: Callable[[], Mapping[Address, RedisClock]],
        metrics: Metrics,
        source: TimeSource = time,
    ) -> None:
        """`of_partition` returns None as long as no master is known; `of_all`, those of all that are."""
        self._of_partition = of_partition
        self._of_all = of_all
        self._metrics = metrics
        self._source = source
        # The clock of partition 0 as far as it was measured: a new master has still to be asked.
        self._first = RedisClock(metrics, source)
        self._shown = SlewedOffset(source.monotonic() * 1000, self._first.offset_ms, SHOWN_RATE)
        # Which two were found to be apart.
        self._apart: tuple[Address, Address] | None = None

    def now_ms(self, session_id: str | None = None) -> int:
        clock = None if session_id is None else self._of_partition(partition_of(session_id))
        return (clock if clock is not None and clock.is_measured else self._known_first()).now_ms()

    def shown_us(self) -> int:
        monotonic_ms = self._source.monotonic() * 1000
        return int((monotonic_ms + self._shown_offset_ms(monotonic_ms)) * 1000)

    def error_ms(self) -> float:
        """How far what is shown may be off of the clock of any master."""
        shown_ms = self._shown_offset_ms(self._source.monotonic() * 1000)
        clocks = {self._known_first(), *(each for each in self._of_all().values() if each.is_measured)}
        return max(each.error_of_ms(shown_ms) for each in clocks)

    def _known_first(self) -> RedisClock:
        clock = self._of_partition(0)
        if clock is not None and clock is not self._first and clock.is_measured:
            if not self._first.is_measured:
                self._shown.offset_ms = clock.offset_ms  # nobody has seen anything yet
            self._first = clock
        return self._first

    def _shown_offset_ms(self, monotonic_ms: float) -> float:
        aim_ms = self._known_first().offset_ms
        shown_ms = self._shown.follow(monotonic_ms, aim_ms)
        if abs(aim_ms - shown_ms) > STEP_MS:
            shown_ms = self._shown.offset_ms = aim_ms
        return shown_ms

    def look(self) -> None:
        """See whether the masters' clocks are apart, and say so once until that changes; to be repeated."""
        clocks = {address: each for address, each in self._of_all().items() if each.is_measured}
        if not clocks:
            return
        behind, ahead = (pick(clocks, key=lambda each: clocks[each].offset_ms) for pick in (min, max))
        apart_ms = clocks[ahead].offset_ms - clocks[behind].offset_ms
        # What a slow answer may have made of it is not counted.
        is_apart = apart_ms - clocks[ahead].known_error_ms - clocks[behind].known_error_ms > APART_MS
        if is_apart and self._apart != (ahead, behind):
            self._apart = ahead, behind
            self._metrics.clocks_apart.inc()
            log.warning(
                "the clock of Redis at %s:%d is %.0f ms ahead of that at %s:%d: clients can show the time of "
                "all sessions no better than that; let NTP keep both",
                *(*ahead, apart_ms, *behind),
            )
        elif self._apart is not None and apart_ms < APART_MS:
            self._apart = None
            log.warning("the clocks of Redis are within %.0f ms of each other again", APART_MS)
