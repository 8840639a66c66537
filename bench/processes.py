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
from bench.contest import Table, median, number, paired_text, spread
from bench.contestants import WS, Contestant, Load, lockstep, measure, notes, per_cpu_s

TITLE = "One to four processes"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=2500)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--in-flight", type=int, default=64)


def words(processes: int, is_together: bool) -> str:
    """Where the clients of a session are."""
    if processes == 1:
        return "1 process"
    return f"{processes} processes, {'together' if is_together else 'anywhere'}"


def run(options: argparse.Namespace) -> list[Table]:
    contestants: list[Contestant] = [
        lockstep(options.checkout, f"--routing={routing}", name=f"Lockstep --routing={routing}")
        for routing in ("all", "targeted")
    ]
    contestants.append(WS)
    turns: dict[str, Callable[[], Load]] = {}
    for processes in options.processes:
        for is_together in (False, True):
            # Of one process there is one kind, and of the peer what is asked of it.
            for contestant in contestants:
                if is_together and (processes == 1 or contestant is WS):
                    continue
                turns[f"{contestant.name}, {words(processes, is_together)}"] = measure(
                    contestant,
                    f"--in-flight={options.in_flight}",
                    *(("--by-room",) if is_together else ()),
                    clients=options.clients,
                    rooms=options.sessions,
                    processes=processes,
                    seconds=options.seconds,
                    warm_up=options.warm_up,
                )
    outcomes = contest.interleaved(turns, options, TITLE)
    rows, ratios = [], []
    for contestant in contestants:
        one = f"{contestant.name}, {words(1, is_together=False)}"
        for name, loads in outcomes.items():
            if not name.startswith(f"{contestant.name}, "):
                continue
            ws = name.replace(contestant.name, WS.name).replace("together", "anywhere")
            rows.append(
                [
                    name,
                    number(median(map(per_cpu_s, loads))),
                    spread([*map(per_cpu_s, loads)]),
                    paired_text(outcomes, name, one, per_cpu_s),
                    paired_text(outcomes, name, ws, per_cpu_s),
                    number(median(each.per_s for each in loads)),
                    f"{median(each.p50_ms for each in loads):.2f}",
                    f"{median(each.p99_ms for each in loads):.2f}",
                    f"{median(each.load_share for each in loads):.0%}",
                ]
            )
            if name != one and contestant is not WS:
                ratios += contest.ratios(f"{name}: messages per CPU-s", outcomes, name, [one, ws], per_cpu_s)
    columns = [
        *("server", "messages per CPU-s", "rounds", "to 1 process", "to ws"),
        *("messages per s", "p50 ms", "p99 ms", "load's core"),
    ]
    text = (
        f"{options.clients:,} clients in {options.sessions:,} sessions; {options.in_flight} in flight. "
        "CPU time is that of all processes. ws is compared where chance has spread the clients."
    )
    return [Table(TITLE, columns, rows, text, notes(outcomes), ratios=ratios)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
