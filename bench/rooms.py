"""Many small sessions on several processes: python -m bench.rooms

5,000 clients in 2,500 sessions, at two server processes that share one core; messages are published to one
session after the other. Either a balancer keeps the clients of a session together, or they are where chance
has put them, so that half of the sessions are at both processes. Processes that hear every session pay for
what they drop; those that subscribe to their own sessions only do not.
"""

import argparse
import sys

from bench import contest
from bench.contest import Table, median, number, ratio, spread
from bench.contestants import LIMIT, WS, Load, lockstep, measure, notes

TITLE = "Many sessions, two processes"
LOCKSTEP_ALL = "Lockstep --routing=all"
LOCKSTEP_TARGETED = "Lockstep --routing=targeted"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=2500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=64)


def rows(outcomes: dict[str, list[Load]], clients_per_session: float) -> list[list[str]]:
    per_cpu_s = {name: median(each.per_cpu_s for each in loads) for name, loads in outcomes.items()}
    return [
        [
            name,
            number(per_cpu_s[name]),
            spread([each.per_cpu_s for each in loads]),
            ratio(per_cpu_s[name], per_cpu_s.get("ws")),
            number(median(each.per_s for each in loads)),
            number(median(each.per_s for each in loads) / clients_per_session),
            f"{median(each.p50_ms for each in loads):.2f}",
            f"{median(each.p99_ms for each in loads):.2f}",
            f"{median(each.load_share for each in loads):.0%}",
        ]
        for name, loads in outcomes.items()
    ]


def run(options: argparse.Namespace) -> list[Table]:
    contestants = [
        lockstep(options.checkout, "--routing=all", name=LOCKSTEP_ALL),
        lockstep(options.checkout, "--routing=targeted", name=LOCKSTEP_TARGETED),
        WS,
        LIMIT,
    ]
    tables = []
    for words, where in (("kept together", ("--by-room",)), ("anywhere", ())):
        turns = {
            each.name: measure(
                each,
                f"--in-flight={options.in_flight}",
                *where,
                clients=options.clients,
                rooms=options.sessions,
                processes=options.processes,
                seconds=options.seconds,
                warm_up=options.warm_up,
            )
            for each in contestants
        }
        outcomes = contest.interleaved(turns, options, f"rooms, {words}")
        tables.append(
            Table(
                f"{TITLE}: clients of a session {words}",
                [
                    *(
                        "server",
                        "messages per CPU-s",
                        "rounds",
                        "to ws",
                        "messages per s",
                        "publications per s",
                    ),
                    *("p50 ms", "p99 ms", "load's core"),
                ],
                rows(outcomes, options.clients / options.sessions),
                text=f"{options.clients:,} clients in {options.sessions:,} sessions; {options.processes} "
                f"processes on one core; {options.in_flight} in flight. CPU time is that of all processes.",
                notes=notes(outcomes),
            )
        )
    return tables


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
