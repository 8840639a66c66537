"""How long one command takes in the engine: read the stored state, settle, switch, write the new one.

    python bench/engine.py

It ends with status 1 if a median misses its goal.
"""

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lockstep.rules import engine
from lockstep.rules.state import Mode, OnTimeout, Participant, Session
from lockstep.rules.state_json import from_json, to_json

T0 = 1_704_067_200_000
BANK_MS = 600_000
WARM_UP = 20
CASES = ((2, 5_000, 60.0), (1_000, 300, 5_000.0))
"""Participants, rounds, and the goal for settle + switch including encoding, in microseconds."""


def running(count: int) -> Session:
    seats = tuple(
        Participant(f"{place:08x}-0000-4000-8000-000000000000", place, BANK_MS, BANK_MS)
        for place in range(count)
    )
    spec = engine.Spec(
        session_id="00000000-0000-4000-8000-00000000005e",
        mode=Mode.PER_PARTICIPANT,
        on_timeout=OnTimeout.FLAG,
        participants=seats,
        increment_ms=2_000,
    )
    return engine.start(engine.create(spec, "0lqtw8xc0abcd", T0).session, T0).session


def microseconds(work: Callable[[int], object], rounds: int) -> list[float]:
    """How long each round took; the first ones, when everything is cold, are left out."""
    taken = []
    for number in range(WARM_UP + rounds):
        before = time.perf_counter_ns()
        work(number)
        taken.append((time.perf_counter_ns() - before) / 1_000)
    return sorted(taken[WARM_UP:])


def percentile(ordered: list[float], percent: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def report(name: str, ordered: list[float], goal_us: float | None = None) -> bool:
    median = statistics.median(ordered)
    p90, p99 = percentile(ordered, 90), percentile(ordered, 99)
    verdict = "" if goal_us is None else f"   goal {goal_us:.0f}: {'met' if median <= goal_us else 'MISSED'}"
    print(f"  {name:<34}{median:>10.1f}{p90:>10.1f}{p99:>10.1f}{ordered[-1]:>10.1f}{verdict}")
    return goal_us is None or median <= goal_us


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> int:
    print(f"{platform.platform()}, {processor()}")
    print(f"Python {platform.python_version()} ({platform.python_implementation()})")
    are_met = True
    for count, rounds, goal_us in CASES:
        session = running(count)
        stored = to_json(session)
        print(f"\n{count} participants, {len(stored):,} bytes, {rounds:,} rounds (microseconds)")
        print(f"  {'':<34}{'median':>10}{'p90':>10}{'p99':>10}{'max':>10}")

        def switch(number: int, session: Session = session) -> bytes:
            settled = engine.settle(session, T0 + number)
            return to_json(engine.switch(settled.session, T0 + number).session)

        def late_switch(number: int, session: Session = session) -> bytes:
            return to_json(engine.decide(session, T0 + BANK_MS + number, engine.switch).step.session)

        def command(number: int, stored: bytes = stored) -> bytes:
            return to_json(engine.decide(from_json(stored), T0 + number, engine.switch).step.session)

        are_met &= report("settle + switch + encode", microseconds(switch, rounds), goal_us)
        report("flag + switch + encode", microseconds(late_switch, rounds))
        report("decode + settle + switch + encode", microseconds(command, rounds))
    return 0 if are_met else 1


if __name__ == "__main__":
    sys.exit(main())
