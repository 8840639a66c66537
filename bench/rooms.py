"""Many sessions of two: python -m bench.rooms

A message of 1 KB is published to one session after the other, 16 of them at once. Each is for two clients, so
that what a server does for a publication counts, and not only what it does for each client.
"""

import argparse
import sys

from bench import contest
from bench.contest import Table, median, number, paired_text, spread
from bench.contestants import (
    LIMIT,
    WS,
    Load,
    centrifuge,
    lockstep,
    measure,
    notes,
    per_cpu_s,
)

TITLE = "Sessions of two"
ROUNDS = 5
REFERENCES = ("ws", "centrifuge", "limit")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, nargs="+", default=[50, 1000, 9000])
    parser.add_argument("--in-flight", type=int, default=16)


def rows(outcomes: dict[str, list[Load]]) -> list[list[str]]:
    return [
        [
            name,
            number(median(map(per_cpu_s, loads))),
            spread([*map(per_cpu_s, loads)]),
            *(paired_text(outcomes, name, to, per_cpu_s) for to in REFERENCES),
            number(median(each.per_s for each in loads)),
            f"{median(each.p50_ms for each in loads):.2f}",
            f"{median(each.p99_ms for each in loads):.2f}",
            f"{median(each.load_share for each in loads):.0%}",
        ]
        for name, loads in outcomes.items()
    ]


def run(options: argparse.Namespace) -> list[Table]:
    contestants = [lockstep(options.checkout), WS, *centrifuge(), LIMIT]
    if options.before:
        contestants.insert(1, lockstep(options.before, name="Lockstep before"))
    columns = [
        *("server", "messages per CPU-s", "rounds", *(f"to {name}" for name in REFERENCES)),
        *("messages per s", "p50 ms", "p99 ms", "load's core"),
    ]
    tables = []
    for sessions in options.sessions:
        turns = {
            each.name: measure(
                each,
                f"--in-flight={options.in_flight}",
                clients=2 * sessions,
                rooms=sessions,
                seconds=options.seconds,
                warm_up=options.warm_up,
            )
            for each in contestants
        }
        title = f"{sessions:,} sessions of two"
        outcomes = contest.interleaved(turns, options, title)
        figure = f"1 KB to each of {title}, messages per CPU-s"
        tables.append(
            Table(
                f"{TITLE}: {sessions:,} of them",
                columns,
                rows(outcomes),
                notes=notes(outcomes),
                ratios=contest.ratios(figure, outcomes, "Lockstep", REFERENCES, per_cpu_s),
            )
        )
    return tables


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
