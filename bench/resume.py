"""A storm of clients that come back: python -m bench.resume

One of two processes is restarted. Its clients, of protocol v2, are told when to come back; then they go where
chance puts them, to the other process or the restarted one, and resume from the position that they know. Half
of the sessions are switched meanwhile, so that their clients have missed something. The time is from the TCP
connect to SUBSCRIBED. Reads are counted as Redis sees them: a process that knows a session reads nothing, one
that does not reads it once for all who come.
"""

import argparse
import functools
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import contest, contestants, machine
from bench.contest import Table, median
from bench.contestants import Contestant, lockstep
from bench.idle import Clients
from bench.rest import running_session, start
from broker.script import Script
from lockstep.wire.protocol_v2 import SUBPROTOCOL

TITLE = "Coming back"
ROUNDS = 3
STOPS_WITHIN_S = 60.0
SWITCHING_S = 3.0


@dataclass(frozen=True)
class Turn:
    seen: dict[str, Any]
    reads: int
    most_reads: int
    """Of one session by one process."""
    switched: int


class Reads:
    """Counts, as a monitor of Redis, how often each session is read by each connection."""

    def __init__(self, redis: machine.Redis) -> None:
        self.counts: Counter[tuple[bytes, bytes]] = Counter()
        self._mark = f'"EVALSHA" "{Script("recent").sha}"'.encode()
        self._socket = socket.create_connection(("127.0.0.1", redis.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                if self._mark in line:
                    address, session = line.split(b" ", 3)[2], line.split(b'"')[7]
                    self.counts[address, session] += 1

    def __enter__(self) -> "Reads":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def switching(port: int, sessions: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Switches these sessions, one after the other, again and again."""
    (folder / "paths").write_text("".join(f"/v1/sessions/{each}/switch\n" for each in sessions))
    command = [
        *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("rest_load"))),
        *(f"--port={port}", f"--paths={folder / 'paths'}", "--connections=1"),
        *("--warm-up=0", f"--seconds={SWITCHING_S}"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def turn(server: Contestant, options: argparse.Namespace) -> Turn:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        staying, _ = start(server, redis, stack)
        port = machine.free_port()
        command = server.command(port, redis)
        leaving = stack.enter_context(machine.Process(command, cwd=server.cwd))
        contestants.wait_until_ready(f"http://127.0.0.1:{port}{server.ready}")
        sessions = [running_session(f"http://127.0.0.1:{staying}") for _ in range(options.sessions)]
        returns = (f"--subprotocol={SUBPROTOCOL}", f"--return={port},{staying}")
        clients = stack.enter_context(Clients(server, port, options.clients, sessions, *returns))
        clients.wait()
        with Reads(redis) as reads:
            switches = switching(staying, sessions[::2], folder)
            leaving.process.send_signal(signal.SIGTERM)
            leaving.process.wait(STOPS_WITHIN_S)
            stack.enter_context(machine.Process(command, cwd=server.cwd))
            clients.wait("returned")
            switches.communicate()
            counts = list(reads.counts.values())
        return Turn(clients.end(), sum(counts), max(counts, default=0), len(sessions[::2]))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=2000)


def run(options: argparse.Namespace) -> list[Table]:
    # Each session is at a process that hears it, not at all.
    server = replace(
        lockstep(options.checkout, "--routing=targeted"), joins=('--joined={"type":"SUBSCRIBED"',)
    )
    turns: dict[str, Callable[[], Turn]] = {"Lockstep": functools.partial(turn, server, options)}
    done = contest.interleaved(turns, options, TITLE).get("Lockstep", [])
    if not done:
        return []

    def each(value: Callable[[Turn], float], digits: int = 0) -> str:
        return f"{median(value(turn) for turn in done):,.{digits}f}"

    rows = [
        ["clients that came back", each(lambda turn: turn.seen["returned"])],
        ["of them resumed, and were told what they had missed", each(lambda turn: turn.seen["resumed"])],
        ["were sent the state instead", each(lambda turn: turn.seen["with_state"])],
        ["connect to SUBSCRIBED, p50 ms", each(lambda turn: turn.seen["subscribed_ms"]["p50"], 2)],
        ["p99 ms", each(lambda turn: turn.seen["subscribed_ms"]["p99"], 2)],
        ["longest away, s", each(lambda turn: turn.seen["longest_away_s"], 1)],
        ["reads of Redis", each(lambda turn: turn.reads)],
        ["most of one session by one process", each(lambda turn: turn.most_reads)],
    ]
    text = (
        f"{options.clients:,} clients in {options.sessions:,} sessions; half of the sessions are switched "
        f"while they are away. Both processes share one core. Medians of the rounds."
    )
    return [Table(TITLE, ["", "each round"], rows, text)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
