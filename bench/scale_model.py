"""A model of processes, clients and Redis, made of measured costs: python -m bench.scale_model [--write]

It has few costs: of a wake-up of a process, of a publication for somebody here and for nobody, of a send; and
what a publication and a send cost more among many. Each is solved from a point that docs/benchmarks-tables.md
records; then the benchmark's own scenes are simulated, and every other point is compared. Only then comes
docs/scale.md's deployment (bench/scale_plan.py). --write brings all of it into docs/scale.md.
"""

import argparse
import functools
import heapq
import math
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measured import Missing, Tables, recorded

# Among more than so many, what is touched has left some of the caches since it was last touched: each tenfold
# costs as much more as the one before.
FEW_SOCKETS = 100
FEW_SESSIONS = 50
PUBLICATIONS = 1500
# How far the model may be from a point that it was not made from.
TOLERANCE = 0.3


@dataclass(frozen=True)
class Costs:
    """CPU time in microseconds: of a server process, and of the benchmark's other core."""

    wake_us: float = 0.0
    """A turn of the loop in which something has come."""
    other_us: float = 0.0
    """More for a turn behind that of another process on the same core, which has used its caches."""
    few_publication_us: float = 0.0
    """Of one of few sessions, which has clients here, without the sends."""
    publication_growth_us: float = 0.0
    """More for each tenfold of the sessions."""
    dropped_us: float = 0.0
    """Of a session that has none."""
    few_send_us: float = 0.0
    """To one of few sockets."""
    send_growth_us: float = 0.0
    """More for each tenfold of the sockets."""
    load_publish_us: float = 0.0
    """The generator, and Redis, for each publication."""
    load_receipt_us: float = 0.0
    """The generator, for each message at a client."""

    def send_us(self, sockets: float) -> float:
        """To one of so many, which have their turns one after the other."""
        return self.few_send_us + self.send_growth_us * tenfolds(sockets / FEW_SOCKETS)

    def publication_us(self, sessions: float) -> float:
        """Of one of so many, which have their turns one after the other."""
        return self.few_publication_us + self.publication_growth_us * tenfolds(sessions / FEW_SESSIONS)


def tenfolds(ratio: float) -> float:
    return math.log10(max(1.0, ratio))


@dataclass(frozen=True)
class Scene:
    """What the benchmark does: sessions with so many clients each, at processes that share a core."""

    sessions: int
    clients: int
    in_flight: int
    processes: int = 1
    is_together: bool = False
    hears_all: bool = True


@dataclass(frozen=True)
class Seen:
    """What came of a scene."""

    per_cpu_s: float
    p50_ms: float


class _Part:
    """A publication at one process."""

    def __init__(self, publication: int, clients: int) -> None:
        self.publication, self.clients = publication, clients


def placed(scene: Scene) -> list[dict[int, int]]:
    """Of each session, how many clients are at which process."""
    dice = random.Random(1)
    places: list[dict[int, int]] = []
    for session in range(scene.sessions):
        here: dict[int, int] = {}
        for _ in range(scene.clients):
            process = session % scene.processes if scene.is_together else dice.randrange(scene.processes)
            here[process] = here.get(process, 0) + 1
        places.append(here)
    return places


def simulate(scene: Scene, costs: Costs) -> Seen:
    """So many publications are under way; the next one is made when all clients have one of them.

    Two cores: the servers', whose processes have their turns in the order in which they became ready, and the
    other, on which the generator and Redis do one thing after the other.
    """
    places = placed(scene)
    send_us = costs.send_us(scene.sessions * scene.clients)
    publication_us = costs.publication_us(scene.sessions)
    pending: list[deque[_Part]] = [deque() for _ in range(scene.processes)]
    ready: deque[int] = deque()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    state = {
        "busy_us": 0.0,
        "load_free_us": 0.0,
        "order": 0.0,
        "made": 0.0,
        "is_running": 0.0,
        "messages": 0.0,
        "ran_last": 0.0,
    }
    began_us: dict[int, float] = {}
    missing: dict[int, int] = {}
    took_us: list[float] = []

    def at(time_us: float, what: Callable[[float], None]) -> None:
        state["order"] += 1
        heapq.heappush(events, (time_us, int(state["order"]), what))

    def on_load(now_us: float, cost_us: float, then: Callable[[float], None]) -> None:
        state["load_free_us"] = max(now_us, state["load_free_us"]) + cost_us
        at(state["load_free_us"], then)

    def publish(now_us: float) -> None:
        if state["made"] >= PUBLICATIONS:
            return
        number = int(state["made"])
        state["made"] += 1
        here = places[number % scene.sessions]
        began_us[number], missing[number] = now_us, scene.clients
        processes = range(scene.processes) if scene.hears_all else here
        parts = [(process, _Part(number, here.get(process, 0))) for process in processes]
        on_load(now_us, costs.load_publish_us, lambda now_us: arrive(parts, now_us))

    def arrive(parts: list[tuple[int, _Part]], now_us: float) -> None:
        for process, part in parts:
            if not pending[process] and process not in ready:
                ready.append(process)
            pending[process].append(part)
        run(now_us)

    def run(now_us: float) -> None:
        if state["is_running"] or not ready:
            return
        state["is_running"] = 1.0
        process = ready.popleft()
        parts, spent_us = list(pending[process]), costs.wake_us
        if process != state["ran_last"]:
            spent_us += costs.other_us
        state["ran_last"] = process
        pending[process].clear()
        for part in parts:
            if not part.clients:
                spent_us += costs.dropped_us
                continue
            spent_us += publication_us
            # The client in the middle stands for all of them.
            middle_us = now_us + spent_us + part.clients * send_us / 2 - began_us[part.publication]
            spent_us += part.clients * send_us
            took_us.append(middle_us)
            at(now_us + spent_us, lambda now_us, part=part: received(part, now_us))  # type: ignore[misc]
        state["busy_us"] += spent_us
        at(now_us + spent_us, ended)

    def ended(now_us: float) -> None:
        state["is_running"] = 0.0
        run(now_us)

    def received(part: _Part, now_us: float) -> None:
        on_load(now_us, part.clients * costs.load_receipt_us, lambda now_us: done(part, now_us))

    def done(part: _Part, now_us: float) -> None:
        state["messages"] += part.clients
        missing[part.publication] -= part.clients
        if not missing[part.publication]:
            publish(now_us)

    for _ in range(scene.in_flight):
        publish(0.0)
    while events:
        now_us, _, what = heapq.heappop(events)
        what(now_us)
    return Seen(state["messages"] / state["busy_us"] * 1e6, sorted(took_us)[len(took_us) // 2] / 1000)


@dataclass(frozen=True)
class Point:
    """A figure of the tables, and the scene that it was measured in."""

    table: str
    row: str
    scene: Scene
    column: str = "messages per CPU-s"

    def measured(self, tables: Tables) -> float:
        return tables.figure(self.table, self.row, self.column)

    def load_us(self, tables: Tables) -> float:
        """CPU time of the other core for a message."""
        busy = tables.figure(self.table, self.row, "load's core")
        return busy / tables.figure(self.table, self.row, "messages per s") * 1e6


def fan_out(clients: int) -> Point:
    return Point(f"Fan-out: {clients:,} clients, 1 in flight", "Lockstep", Scene(1, clients, 1))


def small(sessions: int) -> Point:
    return Point(f"Sessions of two: {sessions:,} of them", "Lockstep", Scene(sessions, 2, 16))


def several(processes: int, is_together: bool, hears_all: bool) -> Point:
    where = "" if processes == 1 else " together" if is_together else " anywhere"
    count = "1 process" if processes == 1 else f"{processes} processes"
    row = f"Lockstep --routing={'all' if hears_all else 'targeted'}, {count}{where}"
    return Point(
        "One to four processes", row, Scene(2500, 2, 64 * processes, processes, is_together, hears_all)
    )


# The points that the costs are solved from; all others are compared.
ALONE = Point("Latency: 1,000 messages a second to 10 clients", "Lockstep", Scene(1, 10, 1), "of a core")
ALONE_PER_S = 1000
FEW, HALL = fan_out(100), fan_out(5000)
SMALL, SMALL_MANY = small(50), small(9000)
THEIR_OWN = several(4, is_together=False, hears_all=False)
EVERYTHING = several(4, is_together=False, hears_all=True)
MANY = fan_out(1000)
COMPARED = (
    MANY,
    small(1000),
    several(1, is_together=False, hears_all=True),
    several(1, is_together=False, hears_all=False),
    several(2, is_together=False, hears_all=True),
    several(2, is_together=False, hears_all=False),
    several(2, is_together=True, hears_all=False),
    several(4, is_together=True, hears_all=False),
)


def solved(costs_of: Callable[[float], Costs], point: Point, most_us: float, tables: Tables) -> Costs:
    """The costs, one of which is unknown, that give the point's figure: what costs more is done less."""
    low_us, high_us = 0.0, most_us
    for _ in range(9):
        middle_us = (low_us + high_us) / 2
        if simulate(point.scene, costs_of(middle_us)).per_cpu_s > point.measured(tables):
            low_us = middle_us
        else:
            high_us = middle_us
    return costs_of((low_us + high_us) / 2)


@functools.cache
def calibrated(tables: Tables) -> Costs:
    """A publication alone is a wake-up, itself, and the sends. Several at once share a wake-up."""
    alone_us = ALONE.measured(tables) * 1e6 / ALONE_PER_S
    few_us, hall_us = (point.scene.clients * 1e6 / point.measured(tables) for point in (FEW, HALL))
    few_send_us = (few_us - alone_us) / (FEW.scene.clients - ALONE.scene.clients)
    once_us = max(0.0, few_us - FEW.scene.clients * few_send_us)
    hall_send_us = (hall_us - once_us) / HALL.scene.clients
    receipt_us = MANY.load_us(tables)
    publish_us = max(0.0, (SMALL.load_us(tables) - receipt_us) * SMALL.scene.clients)
    sends = Costs(
        few_send_us=few_send_us,
        send_growth_us=max(0.0, hall_send_us - few_send_us) / tenfolds(HALL.scene.clients / FEW_SOCKETS),
        load_receipt_us=receipt_us,
        load_publish_us=publish_us,
    )
    costs = solved(
        lambda us: replace(sends, few_publication_us=us, wake_us=once_us - us), SMALL, once_us, tables
    )
    few = costs
    costs = solved(lambda us: replace(few, publication_growth_us=us), SMALL_MANY, once_us, tables)
    alone = costs
    costs = solved(lambda us: replace(alone, other_us=us), THEIR_OWN, 10 * once_us, tables)
    shared = costs
    return solved(lambda us: replace(shared, dropped_us=us), EVERYTHING, 4 * once_us, tables)


@dataclass(frozen=True)
class Comparison:
    """The model beside a point that it was not made from."""

    what: str
    measured: float
    simulated: float

    @property
    def is_off_by(self) -> float:
        return self.simulated / self.measured - 1


def comparisons(costs: Costs, tables: Tables) -> list[Comparison]:
    found = [
        Comparison(
            f"{point.table}: {point.row}", point.measured(tables), simulate(point.scene, costs).per_cpu_s
        )
        for point in COMPARED
    ]
    p50_ms = tables.figure(MANY.table, MANY.row, "p50 ms")
    return [*found, Comparison(f"{MANY.table}: p50 ms", p50_ms, simulate(MANY.scene, costs).p50_ms)]


def main() -> int:
    from bench import scale_plan

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/scale.md")
    parser.add_argument("--tables", type=Path, help="another page of tables than docs/benchmarks-tables.md")
    options = parser.parse_args()
    tables = recorded(options.tables) if options.tables else recorded()
    parts = scale_plan.parts(tables)
    for text in dict.fromkeys(parts.values()):
        print(text, end="\n\n")
    if options.write:
        scale_plan.write(parts)
    try:
        compared = comparisons(calibrated(tables), tables)
    except Missing:
        return 1  # which one is said above
    off = [each for each in compared if abs(each.is_off_by) > TOLERANCE]
    for each in off:
        print(f"not believed: {each.what}: {each.is_off_by:+.0%}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
