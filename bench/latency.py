"""How long a message takes when nothing is busy: python -m bench.latency

1,000 messages a second for 10 clients, published when they are due, whatever has arrived by then. The time is
from when a message was due to its last byte at the client, so that no delay is left out of the figures.
"""

import argparse
import sys

from bench import contest
from bench.contest import Table, median
from bench.contestants import LIMIT, WS, Load, centrifuge, lockstep, measure, notes

TITLE = "Latency"
ROUNDS = 3
REFERENCES = ("limit", "ws", "centrifuge")


def p99_ms(load: Load) -> float:
    return load.p99_ms


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1000.0, help="messages per second")


def run(options: argparse.Namespace) -> list[Table]:
    turns = {
        each.name: measure(
            each,
            f"--rate={options.rate}",
            clients=options.clients,
            seconds=options.seconds,
            warm_up=options.warm_up,
        )
        for each in (lockstep(options.checkout), WS, *centrifuge(), LIMIT)
    }
    outcomes = contest.interleaved(turns, options, "latency")
    rows = [
        [
            name,
            f"{median(each.p50_ms for each in loads):.2f}",
            f"{median(each.p99_ms for each in loads):.2f}",
            f"{max(each.p99_ms for each in loads):.2f}",
            f"{median(each.server_share for each in loads):.1%}",
        ]
        for name, loads in outcomes.items()
    ]
    what = f"{options.rate:,.0f} messages a second to {options.clients} clients"
    return [
        Table(
            f"{TITLE}: {what}",
            ["server", "p50 ms", "p99 ms", "p99 of the worst round", "of a core"],
            rows,
            notes=notes(outcomes),
            ratios=contest.ratios(
                f"{what}, p99 ms (less is better)",
                *(outcomes, "Lockstep", REFERENCES, p99_ms),
            ),
        )
    ]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
