"""How far clients are off the server's time on simulated paths: python -m bench.server_time [RUNS]

Beside it what the best of the last eight answers would show, which clients took up to 0.4. Medians and 99th
percentiles are of |shown - truth|, in ms, at every look; "bound" is the median of the error that is stated,
"false" how often the truth lay beyond it, "back" the largest step back while there was a bound.
"""

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lockstep_client.server_time import ServerTime

from tests.support.time_paths import PATHS, Event, Path, events_of

RUNS = 1_000
KEPT = 8
JUMP_MS = 250.0


class Measured(Protocol):
    """Server time, measured."""

    @property
    def error_ms(self) -> float: ...

    def now_ms(self) -> float: ...

    def forget(self) -> None: ...

    def learn(
        self,
        sent_ms: float,
        received_ms: float,
        timestamp_ms: float,
        received_at_ms: float | None = None,
        server_error_ms: float = 0.0,
    ) -> None: ...


class _Sample(NamedTuple):
    offset_ms: float
    reach_ms: float
    error_ms: float


class BestOfEight:
    """The answer with the shortest way counts; it can be wrong by half of that, it was said."""

    def __init__(self, local_ms: Callable[[], float], wall_ms: Callable[[], float]) -> None:
        self._local_ms = local_ms
        self._wall_ms = wall_ms
        self._samples: list[_Sample] = []
        self._offset_ms = self._wall_lead_ms = wall_ms() - local_ms()

    def now_ms(self) -> float:
        return self._local_ms() + self._offset_ms

    @property
    def error_ms(self) -> float:
        if self._has_jumped:
            return math.inf
        return min((sample.error_ms for sample in self._samples), default=math.inf)

    @property
    def _has_jumped(self) -> bool:
        return abs(self._wall_ms() - self._local_ms() - self._wall_lead_ms) > JUMP_MS

    def learn(
        self,
        sent_ms: float,
        received_ms: float,
        timestamp_ms: float,
        received_at_ms: float | None = None,
        server_error_ms: float = 0.0,
    ) -> None:
        least_ms = timestamp_ms - received_ms
        most_ms = (timestamp_ms + 1 if received_at_ms is None else received_at_ms) - sent_ms
        at_server_ms = 0 if received_at_ms is None else timestamp_ms - received_at_ms
        sample = _Sample(
            offset_ms=(least_ms + most_ms) / 2,
            reach_ms=(most_ms - least_ms) / 2 + server_error_ms,
            error_ms=max(0, received_ms - sent_ms - at_server_ms) / 2 + server_error_ms,
        )
        if self._has_jumped:
            self.forget()
        self._wall_lead_ms = self._wall_ms() - self._local_ms()
        agree = all(
            abs(old.offset_ms - sample.offset_ms) <= old.reach_ms + sample.reach_ms for old in self._samples
        )
        self._samples = [*(self._samples[1 - KEPT :] if agree else []), sample]
        self._offset_ms = min(self._samples, key=lambda each: each.error_ms).offset_ms

    def forget(self) -> None:
        self._samples = []
        self._wall_lead_ms = self._wall_ms() - self._local_ms()


@dataclass
class Seen:
    """What was shown on one path, at each look for which a bound was stated."""

    off_ms: list[float]
    bounds_ms: list[float]
    false: int = 0
    back_ms: float = 0.0

    def row(self) -> str:
        p50, p99 = (statistics.quantiles(self.off_ms, n=100)[percent - 1] for percent in (50, 99))
        false = 100 * self.false / len(self.off_ms)
        bound_ms = statistics.median(self.bounds_ms)
        return f"{p50:>9.2f}{p99:>9.2f}{bound_ms:>9.2f}{false:>8.2f}%{self.back_ms:>11.2f}"


Make = Callable[[Callable[[], float], Callable[[], float], float], Measured]


def watch(make: Make, path: Path, events: list[Event], seen: Seen) -> None:
    """Let it learn and forget what happens, and look when somebody looks."""
    at = events[0]
    time = make(lambda: at.local_ms, lambda: at.wall_ms, path.resolution_ms)
    shown_ms, had_bound = -math.inf, False
    for at in events:
        if at.name == "learn":
            time.learn(*at.answer)
        elif at.name == "forget":
            time.forget()
        else:
            now_ms, bound_ms = time.now_ms(), time.error_ms
            if had_bound:
                seen.back_ms = max(seen.back_ms, shown_ms - now_ms)
            shown_ms, had_bound = now_ms, math.isfinite(bound_ms)
            if had_bound:
                off_ms = abs(now_ms - at.truth_ms)
                seen.off_ms.append(off_ms)
                seen.bounds_ms.append(bound_ms)
                seen.false += off_ms > bound_ms


def main(runs: int) -> int:
    """Returns 1 if a bound was false or time went back."""
    measured: dict[str, Make] = {
        "now": ServerTime,
        "best of eight": lambda local_ms, wall_ms, _: BestOfEight(local_ms, wall_ms),
    }
    print(f"{runs:,} runs of each path, of {PATHS[0].pings} answers each")
    print(f"{'':64}{'p50':>9}{'p99':>9}{'bound':>9}{'false':>9}{'back':>11}")
    is_true = True
    for path in PATHS:
        seen = {name: Seen([], []) for name in measured}
        for seed in range(runs):
            events = events_of(path, seed)
            for name, make in measured.items():
                watch(make, path, events, seen[name])
        for name in measured:
            print(f"{path.name if name == 'now' else '':50}{name:14}{seen[name].row()}", flush=True)
        is_true &= not seen["now"].false and not seen["now"].back_ms
    return 0 if is_true else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else RUNS))
