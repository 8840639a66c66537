"""One session with many clients, and 1 KB to each of them: python -m bench.fanout

A message is published on Redis, on the channel that a server relays to the session's clients. So many are in
flight at once; the next is published when every client has one of them. The figure to compare is messages
per CPU-second of the server: it does not depend on what else the machine does.
"""

import argparse
import sys

from bench import contest
from bench.contest import Plot, Table, median, number, paired_text, spread
from bench.contestants import (
    LIMIT,
    SOCKET_IO,
    TORNADO,
    WEBSOCKETS,
    WS,
    Load,
    centrifuge,
    lockstep,
    measure,
    notes,
    per_cpu_s,
)

TITLE = "Fan-out"
ROUNDS = 5
REFERENCES = ("limit", "ws", "centrifuge")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--crowd", type=int, default=1000, help="the clients where more than one is in flight"
    )


def figure_of(clients: int, in_flight: int) -> str:
    at_a_time = "" if in_flight == 1 else f", {in_flight} at a time"
    return f"1 KB to {clients:,} clients{at_a_time}, messages per CPU-s"


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
            f"{median(each.server_share for each in loads):.0%}",
            f"{median(each.load_share for each in loads):.0%}",
        ]
        for name, loads in outcomes.items()
    ]


def run(options: argparse.Namespace) -> list[Table]:
    contestants = [
        *(lockstep(options.checkout), LIMIT, WS, *centrifuge()),
        # As its documentation has it for many messages to one client, which are sent together.
        *centrifuge("-write-delay=1", name="centrifuge, 1 ms of delay"),
        *(SOCKET_IO, WEBSOCKETS, TORNADO),
    ]
    if options.before:
        contestants.insert(1, lockstep(options.before, name="Lockstep before"))
    tables = []
    medians: dict[str, list[float | None]] = {
        name: [] for name in contest.chosen([each.name for each in contestants], options.only)
    }
    groups = []
    for in_flight in options.in_flight:
        for clients in options.clients if in_flight == 1 else [options.crowd]:
            turns = {
                each.name: measure(
                    each,
                    f"--in-flight={in_flight}",
                    clients=clients,
                    seconds=options.seconds,
                    warm_up=options.warm_up,
                )
                for each in contestants
            }
            what = f"{clients} clients, {in_flight} in flight"
            outcomes = contest.interleaved(turns, options, what)
            if in_flight == 1:
                groups.append(f"{clients:,} clients")
                for name, values in medians.items():
                    values.append(median(map(per_cpu_s, outcomes[name])) if name in outcomes else None)
            tables.append(
                Table(
                    f"{TITLE}: {clients:,} clients, {in_flight} in flight",
                    [
                        *("server", "messages per CPU-s", "rounds", "to the limit", "to ws", "to centrifuge"),
                        *("messages per s", "p50 ms", "p99 ms", "server's core", "load's core"),
                    ],
                    rows(outcomes),
                    notes=notes(outcomes),
                    ratios=contest.ratios(
                        figure_of(clients, in_flight),
                        outcomes,
                        "Lockstep",
                        REFERENCES,
                        per_cpu_s,
                    ),
                )
            )
    if tables:
        title = "1 KB to each client of a session"
        tables[0].plot = Plot(
            "fanout.svg", title, groups, medians, "messages per second of the server's CPU time"
        )
    return tables


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
