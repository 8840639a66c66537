"""Sessions of two at one to four processes: python -m bench.processes

5,000 clients in 2,500 sessions, at server processes that share one core; messages of 1 KB are published to
one session after the other. Either chance has spread the clients, so that the two of a session are mostly at
two processes, or a balancer keeps them together. A publication to two clients of one process takes one
process one turn; to clients of two processes it takes each of them one. Processes that hear every session pay
for what they drop, too; those that subscribe to their own sessions only do not.
"""

import argparse
import sys
from collections.abc import Callable

from bench import contest
from bench.contest import Ratio, Table, median, number, spread
from bench.contestants import WS, Load, lockstep, measure, notes, per_cpu_s

TITLE = "One to four processes"
ROUNDS = 3
ALL, TARGETED = "Lockstep --routing=all", "Lockstep --routing=targeted"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=2500)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    # Each process has as much to do as one that is alone.
    parser.add_argument("--in-flight-each", type=int, default=64)


Case = tuple[str, int, bool]
"""The server, how many processes of it, and whether the clients of a session are at one of them."""


def words(case: Case) -> str:
    name, processes, is_together = case
    where = "" if processes == 1 else " together" if is_together else " anywhere"
    return f"{name}, {processes} {'process' if processes == 1 else 'processes'}{where}"


def figure_of(case: Case) -> str:
    name, processes, is_together = case
    where = "together" if is_together else "anywhere"
    routing = "" if name == ALL else f", {name.removeprefix('Lockstep --')}"
    return f"{processes} processes, sessions of two {where}{routing}, messages per CPU-s"


def run(options: argparse.Namespace) -> list[Table]:
    contestants = {
        ALL: lockstep(options.checkout, "--routing=all"),
        TARGETED: lockstep(options.checkout, "--routing=targeted"),
        WS.name: WS,
    }
    cases: list[Case] = [
        (name, processes, is_together)
        for processes in options.processes
        for is_together in (False, True)
        for name in contestants
        # Of one process there is one kind, and of the peer what is asked of it.
        if not is_together or (processes > 1 and name != WS.name)
    ]
    turns: dict[str, Callable[[], Load]] = {
        words((name, processes, is_together)): measure(
            contestants[name],
            f"--in-flight={options.in_flight_each * processes}",
            *(("--by-room",) if is_together else ()),
            clients=options.clients,
            rooms=options.sessions,
            processes=processes,
            seconds=options.seconds,
            warm_up=options.warm_up,
        )
        for name, processes, is_together in cases
    }
    outcomes = contest.interleaved(turns, options, TITLE)
    rows, ratios = [], []
    for case in sorted(cases, key=lambda case: [*contestants].index(case[0])):
        name, processes, _ = case
        if (loads := outcomes.get(words(case))) is None:
            continue
        references = {"1 process": (name, 1, False), "ws": (WS.name, processes, False)}
        values = {
            to: contest.paired(outcomes, words(case), words(other), per_cpu_s)
            for to, other in references.items()
        }
        per_s = number(median(map(per_cpu_s, loads)))
        rows.append(
            [
                *(words(case), per_s, spread([*map(per_cpu_s, loads)])),
                *("-" if value is None else f"{value:.2f}" for value in values.values()),
                number(median(each.per_s for each in loads)),
                f"{median(each.p50_ms for each in loads):.2f}",
                f"{median(each.p99_ms for each in loads):.2f}",
                f"{median(each.load_share for each in loads):.0%}",
            ]
        )
        if processes > 1 and name != WS.name:
            ratios += [
                Ratio(figure_of(case), per_s, to, value) for to, value in values.items() if value is not None
            ]
    columns = [
        *("server", "messages per CPU-s", "rounds", "to 1 process", "to ws"),
        *("messages per s", "p50 ms", "p99 ms", "load's core"),
    ]
    text = (
        f"{options.clients:,} clients in {options.sessions:,} sessions; {options.in_flight_each} in flight "
        "for each process. CPU time is that of all processes. ws is compared where chance has spread the "
        "clients."
    )
    return [Table(TITLE, columns, rows, text, notes(outcomes), ratios=ratios)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
