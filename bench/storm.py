"""All clients lose their connection, and come back: python -m bench.storm

What `make up` starts: Redis, four processes and nginx, with a session for each four of the clients, of
protocol v2. First all connections are cut at the clients' end, and all of them come back in the same moment,
which no client of ours does; then all processes are killed with kill -9, and the clients come back as the one
for JavaScript does, after up to half a second, twice as much after a refusal; then the processes are renewed
one after the other (`make roll`). Everything, the clients included, shares this machine's cores.
"""

import argparse
import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import contest, machine
from bench.contest import Ratio, Table, median
from bench.rest import running_session
from lockstep.wire.protocol_v2 import SUBPROTOCOL
from tests.support.stack import Stack

TITLE = "Reconnect storms"
ROUNDS = 3
CLIENTS_PER_SESSION = 4
# Two descriptors for each client, and some for nginx itself.
NGINX_RESERVED_DESCRIPTORS = 512
REFUSALS = ("connect_refused", "reset", "unavailable", "limited", "other_status")
BACK_WITHIN_S = 120.0


class Crowd:
    """The clients of storm.c, connected when this is entered."""

    def __init__(self, port: int, count: int, rooms: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lockstep-bench-")
        file = Path(self._folder.name) / "rooms"
        file.write_text("".join(f"{room}\n" for room in rooms))
        command = [str(machine.compiled("storm")), f"--port={port}", f"--clients={count}", f"--rooms={file}"]
        command += [f"--subprotocol={SUBPROTOCOL}", '--joined={"type":"SUBSCRIBED"']
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if line := self.process.stdout.readline().strip():
            return line
        raise RuntimeError(self.process.stderr.read().strip())

    def __enter__(self) -> "Crowd":
        assert self.hear() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._folder.cleanup()


def cut(stack: Stack, crowd: Crowd) -> None:
    crowd.say("cut")


def kill(stack: Stack, crowd: Crowd) -> None:
    pids = stack.pids()
    crowd.say("watch")
    for name in stack.names:
        os.kill(pids[name], signal.SIGKILL)


def roll(stack: Stack, crowd: Crowd) -> None:
    crowd.say("watch")
    rolled = asyncio.run(stack.roll())
    assert rolled.returncode == 0, rolled.stderr
    crowd.say("report")


STORMS: dict[str, Callable[[Stack, Crowd], None]] = {
    "cut, back in the same moment": cut,
    "all processes killed": kill,
    "processes renewed one by one": roll,
}


@contextmanager
def crowded(options: argparse.Namespace) -> Iterator[tuple[Stack, Crowd]]:
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        most = (machine.file_limit() - NGINX_RESERVED_DESCRIPTORS) // 2
        stack = Stack(Path(folder), f"--connections={min(options.clients, most)}", *options.stack)
        started = stack.up(env=dict(each.split("=", 1) for each in options.set))
        assert started.returncode == 0, started.stderr
        try:
            rooms = [running_session(stack.url) for _ in range(options.clients // CLIENTS_PER_SESSION)]
            with Crowd(int(stack.listen.rpartition(":")[2]), options.clients, rooms) as crowd:
                yield stack, crowd
        finally:
            stack.command("down")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument(
        "--storm", nargs="+", choices=[each.split(" ")[0] for each in ("cut", "kill", "roll")]
    )
    parser.add_argument("--stack", nargs="+", default=[], help="options of deploy/stack.py up")
    parser.add_argument("--set", nargs="+", default=["LOCKSTEP_LOG_LEVEL=warning"], help="of its environment")


def cpu_s(stack: Stack, crowd: Crowd) -> dict[str, float]:
    """CPU time so far of the processes that run, of nginx with its workers, and of the others."""
    pids = stack.pids()
    nginx = pids["nginx"], *machine.children(pids["nginx"])
    return {
        "processes": sum(machine.cpu_s(pids[name]) for name in stack.names if name in pids),
        "nginx": sum(map(machine.cpu_s, nginx)),
        "redis": machine.cpu_s(pids["redis"]),
        "clients": machine.cpu_s(crowd.process.pid),
    }


def storm(fault: Callable[[Stack, Crowd], None], stack: Stack, crowd: Crowd) -> dict[str, Any]:
    before_s = cpu_s(stack, crowd)
    fault(stack, crowd)
    seen: dict[str, Any] = json.loads(crowd.hear())
    after_s = cpu_s(stack, crowd)
    if fault is not cut:
        before_s["processes"] = 0  # they are others
    seen["cpu_s"] = {name: round(after_s[name] - before_s[name], 2) for name in after_s}
    print(f"{fault.__name__}: {json.dumps(seen)}", file=sys.stderr, flush=True)
    return seen


def run(options: argparse.Namespace) -> list[Table]:
    wanted = {
        name: fault for name, fault in STORMS.items() if not options.storm or fault.__name__ in options.storm
    }
    with crowded(options) as (stack, crowd):
        turns = {name: functools.partial(storm, fault, stack, crowd) for name, fault in wanted.items()}
        outcomes = contest.interleaved(turns, options, TITLE)
    rows = []
    for name, storms in outcomes.items():
        refused = [sum(seen[each] for each in REFUSALS) for seen in storms]
        rows.append(
            [
                name,
                f"{median(seen['lost'] for seen in storms):,.0f}",
                f"{median(refused):,.0f}",
                *(
                    f"{median(seen['away_s'][share] for seen in storms):.2f}"
                    for share in ("p50", "p99", "max")
                ),
                f"{max(seen['away_s']['max'] for seen in storms):.2f}",
            ]
        )
    text = (
        f"{options.clients:,} clients in {options.clients // CLIENTS_PER_SESSION:,} sessions, through nginx "
        "at four processes. A client is away until it is told that it hears its session again. Medians."
    )
    ratios = [
        Ratio(
            f"{options.clients:,} clients cut off at once, all back through nginx after s (less is better)",
            f"{median(seen['away_s']['max'] for seen in storms):.1f}",
            *("", 0.0),
        )
        for name, storms in outcomes.items()
        if wanted[name] is cut
    ]
    columns = [
        "",
        "connections lost",
        "attempts refused",
        "away p50 s",
        "p99 s",
        "longest s",
        "of all rounds s",
    ]
    return [Table(TITLE, columns, rows, text, ratios=ratios)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
