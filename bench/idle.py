"""Connections on which nothing happens: python -m bench.idle

What a connection keeps of the server's memory and takes of its time, with a ping every 5 s at every server;
what a process takes that has no client; and how long a client that answers no more is kept. ws pings as its
own page has it; Tornado by itself, and does nothing else; centrifuge by messages of its protocol, with what
it offers for connections that are idle (small stacks, a timer in place of a writing goroutine). All servers
run at the same moment, on one core: it is CPU time that counts, and the memory of each is its own. So the
rounds are one behind the other, of the same connections.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import contest, machine
from bench.contest import Table, median, spread
from bench.contestants import WS, Contestant, centrifuge, lockstep, peer
from bench.rest import start
from lockstep.wire.protocol_v2 import SUBPROTOCOL

TITLE = "Idle connections"
ROUNDS = 3
PING_INTERVAL_S = 5.0
REFERENCES = ("ws", "centrifuge", "Tornado")
OURS = "Lockstep"
SILENT_CLIENTS = 200
SILENT_AT_MOST_S = 20.0

BY_V2 = (f"--subprotocol={SUBPROTOCOL}",)
SUBSCRIBED = '--joined={"type":"SUBSCRIBED"'
MANY = 100
# The generator puts the id of a session in place of %s.
FOLLOWING = (
    *BY_V2,
    '--hello={"type":"SUBSCRIBE","id":"one of the many of this connection","sessionId":"%s","position":null}',
    f"--subscriptions={MANY}",
)

TORNADO = peer("Tornado", "tornado_plain.py", path="/ws")


class Clients:
    """Clients of idle_clients.c, connected when this is made."""

    def __init__(
        self, contestant: Contestant, port: int, count: int, rooms: list[str], *options: str
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lockstep-bench-")
        file = Path(self._folder.name) / "rooms"
        file.write_text("".join(f"{room}\n" for room in rooms))
        joins = [
            option for option in contestant.joins if option.startswith(("--joined", "--hello", "--ping"))
        ]
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("idle_clients"))),
            *(f"--port={port}", f"--clients={count}", f"--rooms={file}", f"--path={contestant.path}"),
            *joins,
            *options,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self, line: str = "ready") -> None:
        """Until all have joined, or whatever else it says."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline().strip() != line:
            raise RuntimeError(self.process.stderr.read().strip())

    def go_silent(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("silent\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Disconnect; what they saw."""
        out, errors = self.process.communicate(timeout=60)
        if self.process.returncode:
            raise RuntimeError(errors.strip())
        seen: dict[str, Any] = json.loads(out.splitlines()[-2])
        return seen

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()


@dataclass
class Subject:
    """A server and the clients it shall have."""

    name: str
    contestant: Contestant
    clients: int
    rooms: int
    options: tuple[str, ...] = ()
    """What its clients do besides, as idle_clients.c has it."""
    subscriptions: int = 1
    port: int = 0
    pid: int = 0
    empty_bytes: int = 0
    connected: Clients | None = None


def connect(subjects: list[Subject], stack: ExitStack) -> None:
    """Start the servers, then the clients of all of them, and return when the last one has joined."""
    redis = stack.enter_context(machine.Redis())
    for subject in subjects:
        subject.port, subject.pid = start(subject.contestant, redis, stack)
    time.sleep(1)
    for subject in subjects:
        subject.empty_bytes = machine.rss_bytes(subject.pid)
        rooms = [str(uuid.uuid4()) for _ in range(subject.rooms)]
        clients = Clients(subject.contestant, subject.port, subject.clients, rooms, *subject.options)
        subject.connected = stack.enter_context(clients)
    for subject in subjects:
        assert subject.connected is not None
        subject.connected.wait()


def complaints(subjects: list[Subject]) -> list[str]:
    """Whether the servers did ping, and kept those who answered."""
    found = []
    for subject in subjects:
        assert subject.connected is not None
        seen = subject.connected.end()
        if seen["closed"]:
            found.append(f"{subject.name}: {seen['closed']} clients were closed, though they answered.")
        if seen["pings"] < subject.clients:
            found.append(f"{subject.name}: only {seen['pings']} pings for {subject.clients} clients.")
    return found


def memory(options: argparse.Namespace) -> Table:
    server, count = lockstep(options.checkout), options.memory_clients
    v2 = replace(server, joins=(SUBSCRIBED,))
    many = replace(v2, path="/ws")
    few = max(1, count // MANY)
    subjects = [
        Subject("Lockstep, a session for each", server, count, count),
        Subject("Lockstep v2, a session for each", v2, count, count, BY_V2),
        Subject(f"Lockstep v2, {MANY} sessions, the same for each", many, few, MANY, FOLLOWING, MANY),
        Subject(f"Lockstep v2, {MANY} sessions of its own", many, few, few * MANY, FOLLOWING, MANY),
        Subject("Lockstep, one session", server, count, 1),
        Subject("Tornado", TORNADO, count, 1),
    ]
    with ExitStack() as stack:
        connect(subjects, stack)
        time.sleep(2 * PING_INTERVAL_S + 1)
        rows = []
        for subject in subjects:
            full_bytes = machine.rss_bytes(subject.pid)
            each = (full_bytes - subject.empty_bytes) / subject.clients
            megabytes = [f"{size / 2**20:.1f}" for size in (subject.empty_bytes, full_bytes)]
            rows.append(
                [subject.name, *megabytes, f"{each / 1024:.2f}", f"{each / 1024 / subject.subscriptions:.2f}"]
            )
        notes = complaints(subjects)
    text = (
        f"Resident memory before and with {count:,} connections, or {few:,} with {MANY} sessions each, "
        "after two ping intervals."
    )
    columns = ["server", "MB before", "MB with them", "KB per connection", "KB per session of it"]
    return Table(f"{TITLE}: memory", columns, rows, text, notes)


def pinging(options: argparse.Namespace) -> list[Contestant]:
    """Servers that ping every 5 s."""
    return [
        lockstep(options.checkout),
        *([lockstep(options.before, name="Lockstep before")] if options.before else []),
        replace(WS, command=lambda port, redis: [*WS.command(port, redis), str(int(PING_INTERVAL_S))]),
        *(
            replace(each, joins=(*each.joins, "--ping={}"))
            for each in centrifuge(f"-ping={int(PING_INTERVAL_S)}", "-write-delay=5", "-off-read-loop")
        ),
        TORNADO,
    ]


def shares(subjects: list[Subject], options: argparse.Namespace) -> dict[str, list[float]]:
    """What each server takes of a core, a round behind the other."""
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(options.rounds):
        before_s = [machine.cpu_s(subject.pid) for subject in subjects]
        began_s = time.monotonic()
        time.sleep(options.cpu_seconds)
        took_s = time.monotonic() - began_s
        for subject, before in zip(subjects, before_s, strict=True):
            found[subject.name].append((machine.cpu_s(subject.pid) - before) / took_s)
    return found


def processor(options: argparse.Namespace) -> list[Table]:
    tables = []
    for count in options.cpu_clients:
        subjects = [
            Subject(each.name, each, count, 1 if each is TORNADO else count) for each in pinging(options)
        ]
        with ExitStack() as stack:
            connect(subjects, stack)
            time.sleep(2 * PING_INTERVAL_S)
            taken = shares(subjects, options)
            bytes_each = {
                subject.name: (machine.rss_bytes(subject.pid) - subject.empty_bytes) / count
                for subject in subjects
            }
            notes = complaints(subjects)
        rows = [
            [
                name,
                f"{median(taken[name]):.2%}",
                spread(taken[name]),
                *(contest.paired_text(taken, name, to, float) for to in REFERENCES),
                f"{each / 1024:.2f}",
            ]
            for name, each in bytes_each.items()
        ]
        title = f"{count:,} idle connections"
        sizes = {name: [each / 1024] for name, each in bytes_each.items()}
        tables.append(
            Table(
                f"{TITLE}: {count:,} of them",
                [
                    "server",
                    "of a core",
                    "rounds",
                    *(f"to {name}" for name in REFERENCES),
                    "KB per connection",
                ],
                rows,
                f"A session for each connection. Rounds of {options.cpu_seconds:g} s, a ping every "
                f"{PING_INTERVAL_S:g} s. Resident memory beyond that of the server without clients.",
                notes,
                ratios=[
                    *contest.ratios(
                        f"{title}, % of a core (less is better)",
                        taken,
                        OURS,
                        REFERENCES,
                        float,
                        "{:.1%}".format,
                    ),
                    *contest.ratios(f"{title}, KB for each (less is better)", sizes, OURS, REFERENCES, float),
                ],
            )
        )
    return tables


def wake_ups(pid: int) -> int:
    """How often the threads of a process have waited for something so far."""
    statuses = (file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(
        int(count) for text in statuses for count in re.findall(r"^voluntary_ctxt\w+:\s*(\d+)", text, re.M)
    )


def alone(options: argparse.Namespace) -> Table:
    """Processes that are up, hear Redis and have no client."""
    subjects = [Subject(each.name, each, 0, 0) for each in pinging(options) if each is not TORNADO]
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        for subject in subjects:
            subject.port, subject.pid = start(subject.contestant, redis, stack)
        time.sleep(PING_INTERVAL_S)
        before, began_s = [wake_ups(subject.pid) for subject in subjects], time.monotonic()
        taken = shares(subjects, options)
        took_s = time.monotonic() - began_s
        wakes_per_s = {
            subject.name: [(wake_ups(subject.pid) - count) / took_s]
            for subject, count in zip(subjects, before, strict=True)
        }
        megabytes = {subject.name: machine.rss_bytes(subject.pid) / 2**20 for subject in subjects}
    rows = [
        [
            name,
            *(f"{wakes_per_s[name][0]:.1f}", f"{median(each):.3%}", spread(each)),
            f"{megabytes[name]:.1f}",
        ]
        for name, each in taken.items()
    ]
    what, to = "a process without clients", REFERENCES[:2]
    ratios = [
        *contest.ratios(f"{what}, wake-ups per s (less is better)", wakes_per_s, OURS, to, float),
        *contest.ratios(f"{what}, % of a core (less is better)", taken, OURS, to, float, "{:.2%}".format),
    ]
    columns = ["server", "wake-ups per s", "of a core", "rounds", "MB"]
    return Table(f"{TITLE}: processes without a client", columns, rows, ratios=ratios)


def dead(options: argparse.Namespace) -> Table:
    subjects = [
        Subject("Lockstep", lockstep(options.checkout), SILENT_CLIENTS, SILENT_CLIENTS),
        Subject("Tornado", TORNADO, SILENT_CLIENTS, 1),
    ]
    rows = []
    with ExitStack() as stack:
        connect(subjects, stack)
        time.sleep(PING_INTERVAL_S)
        for subject in subjects:
            assert subject.connected is not None
            subject.connected.go_silent()
        time.sleep(SILENT_AT_MOST_S)
        for subject in subjects:
            assert subject.connected is not None
            seen = subject.connected.end()
            gone = f"{seen['closed']} of {seen['clients']}"
            rows.append([subject.name, gone, f"{seen['first_gone_s']:.1f}", f"{seen['last_gone_s']:.1f}"])
    text = (
        f"{SILENT_CLIENTS} clients that have answered pings so far answer none any more, at once: when the "
        "server cuts the connection. Tornado sends a close frame first, and waits for an answer to it."
    )
    columns = ["server", "gone", "first after s", "last after s"]
    return Table(f"{TITLE}: clients that fell silent", columns, rows, text)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory-clients", type=int, default=5000)
    parser.add_argument("--cpu-clients", type=int, nargs="+", default=[18_000])
    parser.add_argument("--cpu-seconds", type=float, default=10, help="best a multiple of the ping interval")


def run(options: argparse.Namespace) -> list[Table]:
    return [memory(options), *processor(options), alone(options), dead(options)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
