"""What a change costs, as a state (protocol v1) and as what has moved (v2), in JSON and MessagePack; and each
of them compressed; and by event streams: python -m bench.changes

A session is switched by REST again and again; the next switch is asked for when each client of it has been
told of the one before. Bytes are those of the WebSocket's frames, or of events. CPU time is the server's, for
all that a switch takes: to decide it, to commit it, to answer it, and to tell a thousand clients.
"""

import argparse
import functools
import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bench import contest, machine
from bench.contest import Table, median, number, ratio, spread
from bench.contestants import Contestant, complaints, generate, lockstep
from bench.rest import disturbance, running_session, start
from lockstep.wire import protocol_v2

TITLE = "Changes"
ROUNDS = 3
V1, V2, V2_MSGPACK, EVENTS = "v1, states", "v2, changes", "v2.msgpack, changes", "event streams, changes"
COMPRESSED = ", compressed"
# How a client's first message of the session begins: from then on it is told of each change.
JOINED = {
    V1: b'{"type":"CONNECTED"',
    V2: b'{"type":"SUBSCRIBED"',
    V2_MSGPACK: b"\x85\xa4type\xaaSUBSCRIBED",
    EVENTS: b"event: snapshot",
}
SPOKEN = {
    V1: (),
    V2: (f"--subprotocol={protocol_v2.SUBPROTOCOL}",),
    # The number of a version stands behind its key.
    V2_MSGPACK: (f"--subprotocol={protocol_v2.MSGPACK_SUBPROTOCOL}", "--find=version"),
    EVENTS: ("--events", "--path=/v1/sessions/%s/stream"),
}


@dataclass(frozen=True)
class Turn:
    """What a change has cost in one period."""

    bytes_each: float
    cpu_us: float
    per_s: float
    p50_ms: float
    p99_ms: float
    load_share: float
    others_share: float
    complaints: tuple[str, ...]


def turn(
    contestant: Contestant,
    protocol: str,
    is_compressed: bool,
    participants: int,
    clients: int,
    options: argparse.Namespace,
) -> Turn:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        port, pid = start(contestant, redis, stack)
        people = [str(uuid.uuid4()) for _ in range(participants)]
        rooms = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="lockstep-bench-"))
        rooms.write(running_session(f"http://127.0.0.1:{port}", people))
        rooms.flush()
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("generator"))),
            *(f"--ports={port}", f"--switch={port}", f"--pids={pid},{redis.pid}", f"--rooms={rooms.name}"),
            *(
                f"--clients={clients}",
                f"--path={contestant.path}",
                f"--joined={os.fsdecode(JOINED[protocol])}",
            ),
            *(f"--seconds={options.seconds}", f"--warm-up={options.warm_up}"),
            *SPOKEN[protocol],
            *(["--deflate"] if is_compressed else []),
        ]
        seen, busy_s = generate(command)
    measured = seen["measured"]
    server_s, redis_s = measured["cpu_s"]
    wall_s = measured["wall_s"]
    return Turn(
        bytes_each=measured["bytes"] / measured["received"],
        cpu_us=server_s / measured["received"] * clients * 1e6,
        per_s=measured["received"] / clients / wall_s,
        p50_ms=seen["latency_us"]["p50"] / 1000,
        p99_ms=seen["latency_us"]["p99"] / 1000,
        load_share=(measured["generator_cpu_s"] + redis_s) / wall_s,
        others_share=max(0.0, (busy_s - server_s) / wall_s),
        complaints=complaints(seen),
    )


def rows(outcomes: dict[str, list[Turn]]) -> list[list[str]]:
    bytes_each = {name: median(each.bytes_each for each in done) for name, done in outcomes.items()}
    cpu_us = {name: median(each.cpu_us for each in done) for name, done in outcomes.items()}
    return [
        [
            name,
            f"{bytes_each[name]:,.0f}",
            ratio(bytes_each.get(V1, 0.0), bytes_each[name]),
            number(cpu_us[name]),
            spread([each.cpu_us for each in done]),
            ratio(cpu_us.get(V1, 0.0), cpu_us[name]),
            number(median(each.per_s for each in done)),
            f"{median(each.p50_ms for each in done):.2f}",
            f"{median(each.p99_ms for each in done):.2f}",
        ]
        for name, done in outcomes.items()
    ]


def notes(outcomes: dict[str, list[Turn]]) -> list[str]:
    found = []
    for name, done in outcomes.items():
        for round_, each in enumerate(done, 1):
            found += [f"{name}, round {round_}: {words}." for words in each.complaints]
        busy = median(each.load_share for each in done)
        if busy > contest.BUSY_SHARE:
            found.append(f"{name}: Redis and the load kept their core {busy:.0%} busy, and may be the limit.")
        found += disturbance(name, [each.others_share for each in done])
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--participants", type=int, nargs="+", default=[2, 100, 1000])


def run(options: argparse.Namespace) -> list[Table]:
    server = lockstep(options.checkout)
    tables = []
    for participants in options.participants:
        turns: dict[str, Callable[[], Turn]] = {
            protocol + (COMPRESSED if is_compressed else ""): functools.partial(
                turn, server, protocol, is_compressed, participants, options.clients, options
            )
            for protocol in SPOKEN
            for is_compressed in ((False,) if protocol == EVENTS else (False, True))
        }
        outcomes = contest.interleaved(turns, options, f"{participants} participants")
        tables.append(
            Table(
                f"{TITLE}: {participants:,} participants, {options.clients:,} clients",
                [
                    *("protocol", "bytes to each", "fewer than v1", "CPU us per change", "rounds"),
                    *("less than v1", "changes per s", "p50 ms", "p99 ms"),
                ],
                rows(outcomes),
                notes=notes(outcomes),
                ratios=contest.ratios(
                    f"a switch of {participants:,} participants to {options.clients:,} clients by changes, "
                    "CPU us (less is better)",
                    *(outcomes, V2, [V1], lambda turn: turn.cpu_us),
                ),
            )
        )
    return tables


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
