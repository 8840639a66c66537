"""What is kept for clients that come back: python -m bench.rings

9,000 sessions, a client of each, and changes to all of them in turn, by REST, each with 1 KB of data that its
UPDATE carries. A process keeps the latest UPDATEs of each session, in 64 MiB at most: its memory is read
after each change to all of them. Beside it a process with clients of protocol v1, which keeps none.
"""

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench import contest, machine
from bench.contest import Table, median
from bench.contestants import Contestant, generate, lockstep
from bench.idle import BY_V2, SUBSCRIBED, Clients
from bench.rest import start

TITLE = "Memory of updates"
ROUNDS = 1
V1, V2 = "v1", "v2"
SPEC = {"sync_mode": "global", "total_time_ms": 86_400_000}
CHANGE = {"metadata": {}, "data": {"x": "x" * 1000}}
CREATING_S = 1.0


@dataclass(frozen=True)
class Turn:
    """MB that the server has grown by, after each step, and how many changes it had made then."""

    grown_mb: tuple[float, ...]
    changes: tuple[int, ...]


def post(port: int, paths: list[str], body: object, seconds: float, folder: Path) -> int:
    """POST this to the paths in turn; how often that was done."""
    (folder / "paths").write_text("".join(f"{path}\n" for path in paths))
    (folder / "body").write_text(json.dumps(body))
    seen, _ = generate(
        [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("rest_load")), f"--port={port}"),
            *(f"--paths={folder / 'paths'}", f"--body={folder / 'body'}", "--connections=16"),
            *("--warm-up=0", f"--seconds={seconds}"),
        ]
    )
    refused = {status: count for status, count in seen["statuses"].items() if status not in ("200", "201")}
    if refused:
        raise RuntimeError(f"answers: {refused}")
    return int(seen["requests"])


def turn(server: Contestant, client_options: tuple[str, ...], options: argparse.Namespace) -> Turn:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        port, pid = start(server, redis, stack)
        count = 0
        while count < options.rooms:
            count += post(port, ["/v1/sessions"], SPEC, CREATING_S, folder)
        with redis.client as client:
            keys = client.scan_iter("session:*", count=10_000)
            sessions = [key.decode().partition(":")[2] for key in keys][: options.rooms]
        clients = stack.enter_context(Clients(server, port, len(sessions), sessions, *client_options))
        clients.wait()
        before_bytes = machine.rss_bytes(pid)
        paths = [f"/v1/sessions/{each}/annotate" for each in sessions]
        grown_mb, changes = [], []
        made = 0
        for step in range(1, options.changes + 1):
            while made < step * len(sessions):
                # From where it stopped, so that every session has its turn.
                at = made % len(paths)
                made += post(port, paths[at:] + paths[:at], CHANGE, 0.5, folder)
            grown_mb.append((machine.rss_bytes(pid) - before_bytes) / 2**20)
            changes.append(made)
        return Turn(tuple(grown_mb), tuple(changes))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rooms", type=int, default=9000)
    parser.add_argument("--changes", type=int, default=10, help="of each session")


def run(options: argparse.Namespace) -> list[Table]:
    server = lockstep(options.checkout)
    turns: dict[str, Callable[[], Turn]] = {
        V1: functools.partial(turn, server, (), options),
        V2: functools.partial(turn, replace(server, joins=(SUBSCRIBED,)), BY_V2, options),
    }
    outcomes = contest.interleaved(turns, options, TITLE)
    rows = []
    for step in range(options.changes):
        grown = {name: median(each.grown_mb[step] for each in done) for name, done in outcomes.items()}
        more = f"{grown[V2] - grown[V1]:.1f}" if len(grown) == 2 else "-"
        rows.append(
            [f"{step + 1}", *(f"{grown[name]:.1f}" if name in grown else "-" for name in (V1, V2)), more]
        )
    columns = ["changes to each", "MB grown, clients of v1", "of v2", "more"]
    text = f"{options.rooms:,} sessions with a client each. Medians of the rounds."
    return [Table(TITLE, columns, rows, text)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
