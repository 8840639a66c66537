"""A commit that publishes what it changed, beside an earlier version: python -m bench.commits --before FOLDER

Switches by REST, sixteen at a time, nobody listens: the server decides, encodes, commits, and hears its own
publication; Redis runs the commit's script, stores the state and the event, and publishes. FOLDER is a
checkout of the earlier version. What counts is the CPU time of both for a switch, and how they compare.
"""

import argparse
import functools
import sys
from collections.abc import Callable

from bench import contest
from bench.contest import Table, median, number, ratio, spread
from bench.contestants import lockstep
from bench.rest import CONNECTIONS, Turn, notes, turn

TITLE = "Commits"
ROUNDS = 5
NOW, BEFORE = "Lockstep", "Lockstep before"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--participants", type=int, nargs="+", default=[2, 100, 1000])


def server_us(turn: Turn) -> float:
    return 1e6 / turn.per_cpu_s


def redis_us(turn: Turn) -> float:
    return 1e6 * turn.redis_share / turn.per_s


def rows(outcomes: dict[str, list[Turn]]) -> list[list[str]]:
    found = []
    for name, done in outcomes.items():
        cells = [name]
        for cost in (server_us, redis_us, lambda turn: server_us(turn) + redis_us(turn)):
            costs = {key: median(map(cost, turns)) for key, turns in outcomes.items()}
            cells += [
                number(costs[name]),
                spread([cost(each) for each in done]),
                ratio(costs[name], costs.get(BEFORE)),
            ]
        found.append(cells)
    return found


def run(options: argparse.Namespace) -> list[Table]:
    contestants = [lockstep(options.checkout, name=NOW)]
    if options.before:
        contestants.append(lockstep(options.before, name=BEFORE))
    tables = []
    for participants in options.participants:
        turns: dict[str, Callable[[], Turn]] = {
            each.name: functools.partial(turn, each, options, participants=participants)
            for each in contestants
        }
        outcomes = contest.interleaved(turns, options, f"{participants} participants")
        columns = [
            "",
            *(
                f"{what}{each}"
                for what in ("server us", "Redis us", "both us")
                for each in ("", " rounds", " to before")
            ),
        ]
        tables.append(
            Table(
                f"{TITLE}: {participants:,} participants",
                columns,
                rows(outcomes),
                f"CPU microseconds of a switch; {options.connections} at a time.",
                notes(outcomes),
            )
        )
    return tables


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
