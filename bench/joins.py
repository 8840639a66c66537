"""How many clients a server takes in per second of its CPU time: python -m bench.joins

Clients come in storms, 64 at once, and stay until the last one has arrived; then all leave, which is not
measured. A handshake is over with the answer 101: nothing is asked of the server besides, but what it does by
itself (Lockstep's protocol v2 says WELCOME) is in its CPU time. A join is over when the server says that the
client hears its session: CONNECTED in protocol v1, SUBSCRIBED with the state's place in v2, the answer to the
connect command of centrifuge. The first storm of a server warms it up.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench import contest, machine
from bench.contest import Table, median, number, paired_text, spread
from bench.contestants import LIMIT, WS, Contestant, centrifuge, lockstep
from bench.idle import BY_V2, SUBSCRIBED, TORNADO
from bench.rest import start

TITLE = "Handshakes and joins"
ROUNDS = 5
REFERENCES = ("ws", "centrifuge")
LOCKSTEP, V2 = "Lockstep", "Lockstep, protocol v2"


@dataclass(frozen=True)
class Storms:
    """What the storms after the first one came to, each a median."""

    per_cpu_s: float
    per_s: float
    p50_ms: float
    p99_ms: float


def arrivals_per_cpu_s(storms: Storms) -> float:
    return storms.per_cpu_s


def storms(contestant: Contestant, rooms: int, more: Iterable[str], options: argparse.Namespace) -> Storms:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        (folder / "rooms").write_text("".join(f"{uuid.uuid4()}\n" for _ in range(rooms)))
        port, pid = start(contestant, redis, stack)
        said = [each for each in contestant.joins if each.startswith(("--joined", "--hello"))]
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("joins"))),
            *(f"--port={port}", f"--pid={pid}", f"--path={contestant.path}"),
            *([f"--rooms={folder / 'rooms'}"] if rooms else []),
            *(f"--clients={options.clients}", f"--storms={1 + options.storms}", *said, *more),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    _, *seen = map(json.loads, done.stdout.splitlines())
    return Storms(
        per_cpu_s=median(each["arrived"] / each["cpu_s"] for each in seen),
        per_s=median(each["arrived"] / each["wall_s"] for each in seen),
        p50_ms=median(each["p50_ms"] for each in seen),
        p99_ms=median(each["p99_ms"] for each in seen),
    )


def compare(
    title: str, text: str, turns: dict[str, Callable[[], Storms]], what: str, options: argparse.Namespace
) -> Table:
    outcomes = contest.interleaved(turns, options, title)
    rows = [
        [
            name,
            number(median(each.per_cpu_s for each in done)),
            spread([each.per_cpu_s for each in done]),
            *(paired_text(outcomes, name, to, arrivals_per_cpu_s) for to in REFERENCES),
            number(median(each.per_s for each in done)),
            f"{median(each.p50_ms for each in done):.2f}",
            f"{median(each.p99_ms for each in done):.2f}",
        ]
        for name, done in outcomes.items()
    ]
    columns = [
        *("server", f"{what} per CPU-s", "rounds", "to ws", "to centrifuge"),
        *(f"{what} per s", "p50 ms", "p99 ms"),
    ]
    ratios = contest.ratios(f"{title} per CPU-s", outcomes, LOCKSTEP, REFERENCES, arrivals_per_cpu_s)
    return Table(f"{TITLE}: {title}", columns, rows, text, ratios=ratios)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=3000, help="of a storm")
    parser.add_argument("--storms", type=int, default=2, help="measured ones, of each server in each round")


def run(options: argparse.Namespace) -> list[Table]:
    server = lockstep(options.checkout)
    peers = [WS, *centrifuge()]
    if options.before:
        peers.append(lockstep(options.before, name="Lockstep before"))

    def turns(contestants: list[Contestant], rooms: int) -> dict[str, Callable[[], Storms]]:
        found = {each.name: functools.partial(storms, each, rooms, (), options) for each in contestants}
        if rooms:
            by_v2 = replace(server, joins=(SUBSCRIBED,))
            found[V2] = functools.partial(storms, by_v2, rooms, BY_V2, options)
        return found

    limit = replace(LIMIT, path="/ws?sessionId=any")
    # A socket of protocol v2 names no session when it is opened.
    by_v2 = replace(server, path="/ws", joins=())
    handshakes: dict[str, Callable[[], Storms]] = {
        LOCKSTEP: functools.partial(storms, by_v2, 0, BY_V2, options),
        **turns([*(replace(each, path="/ws", joins=()) for each in (*peers, TORNADO)), limit], rooms=0),
    }
    many, in_each = options.clients, "of a storm, two in each session"
    return [
        compare("handshakes", f"{many:,} clients of a storm.", handshakes, "handshakes", options),
        compare(
            *("joins", f"{many:,} clients {in_each}.", turns([server, *peers], many // 2), "joins", options)
        ),
        compare(
            "joins of one session",
            f"{many:,} clients of a storm, all in the same session.",
            *(turns([server, *peers], 1), "joins", options),
        ),
    ]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
