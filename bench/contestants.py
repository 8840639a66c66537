"""Who takes part in a fan-out: how each is started, joined and published to.

All are one process on one core, have TCP_NODELAY on and compression off, relay the same message from the same
Redis, and are otherwise as their own documentation would have them.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from bench import contest, machine

# The generator puts these in place of themselves: a number of 16 digits, and the id of the room.
NUMBER = "@" * 16
ROOM = str(uuid.UUID(int=0))
MESSAGE_BYTES = 1024


def message() -> dict[str, str]:
    """1 KB of JSON as an application would send it."""
    empty = {"type": "X", "sequence": NUMBER, "data": ""}
    missing = MESSAGE_BYTES - len(json.dumps(empty, separators=(",", ":")))
    return empty | {"data": "x" * missing}


def text() -> bytes:
    return json.dumps(message(), separators=(",", ":")).encode()


def emitted() -> bytes:
    """What @socket.io/redis-emitter publishes for `emitter.to(room).emit("X", message)`."""
    packet = {"type": 2, "data": ["X", message()], "nsp": "/"}
    encoded: bytes = msgpack.packb(["emitter", packet, {"rooms": [ROOM], "flags": {}, "except": []}])
    return encoded


@dataclass(frozen=True)
class Contestant:
    """A server program, and how a client of it is made."""

    name: str
    command: Callable[[int, machine.Redis], list[str | Path]]
    path: str = "/ws?sessionId=%s"
    channel: str = "ws:%s"
    payload: Callable[[], bytes] = text
    # Options of the generator that make a client join.
    joins: tuple[str, ...] = ()
    # Answers 200 when messages are heard; without one, a server listens no earlier than that.
    ready: str | None = None
    cwd: Path = machine.ROOT
    env: dict[str, str] = field(default_factory=dict)


def lockstep(checkout: Path, *settings: str, name: str = "Lockstep") -> Contestant:
    # What a benchmark needs of Lockstep's settings stands here and nowhere else.
    common = ("--log-level=warning",)
    return Contestant(
        name,
        lambda port, redis: [
            machine.PYTHON,
            "server.py",
            f"--port={port}",
            f"--broker={redis.url}",
            *common,
            *settings,
        ],
        joins=('--joined={"type":"CONNECTED"',),
        ready="/ready",
        cwd=checkout,
    )


def peer(name: str, file: str, **more: Any) -> Contestant:
    program = "node" if file.endswith(".js") else sys.executable
    return Contestant(
        name,
        lambda port, redis: [program, machine.PEERS / file, str(port), str(redis.port)],
        env={"NODE_ENV": "production"},
        **more,
    )


LIMIT = Contestant("limit", lambda port, redis: [machine.compiled("limit"), str(port), str(redis.port)])
WS = peer("ws", "ws.js")
SOCKET_IO = peer(
    "Socket.IO",
    "socketio.js",
    path="/socket.io/?EIO=4&transport=websocket&sessionId=%s",
    channel="socket.io#/#%s#",
    payload=emitted,
    joins=("--hello=40", "--answer=2=3", '--joined=42["joined"'),
)
WEBSOCKETS = peer("websockets", "websockets_broadcast.py")
TORNADO = peer("Tornado", "tornado_loop.py")


@dataclass(frozen=True)
class Load:
    """What the generator saw, and the CPU time of the servers in the measured period."""

    per_cpu_s: float
    per_s: float
    p50_ms: float
    p99_ms: float
    server_share: float
    load_share: float
    complaints: tuple[str, ...]


def complaints(seen: dict[str, Any]) -> tuple[str, ...]:
    """What did not go as it must: every message arrives at every client, once and in order."""
    missing = seen["expected"] - seen["received"]
    found = {
        f"{missing} of {seen['expected']} messages did not arrive": missing,
        f"{seen['twice']} came twice": seen["twice"],
        f"{seen['misordered']} came out of order": seen["misordered"],
        f"{seen['closed']} clients were closed": seen["closed"],
        f"{seen['unheard']} publications had no subscriber": seen["unheard"],
        f"{seen['skipped']} publications were left out": seen["skipped"],
    }
    return tuple(words for words, count in found.items() if count)


def wait_until_ready(url: str, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def load(
    contestant: Contestant,
    *generator_options: str,
    clients: int,
    seconds: float,
    warm_up: float,
    rooms: int = 1,
    processes: int = 1,
) -> Load:
    """Start it, put the load on it, stop it. Several processes share the servers' core."""
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        (folder / "rooms").write_text("".join(f"{uuid.uuid4()}\n" for _ in range(rooms)))
        (folder / "payload").write_bytes(contestant.payload())
        ports, pids = [], []
        for _ in range(processes):
            port = machine.free_port()
            server = machine.Process(contestant.command(port, redis), cwd=contestant.cwd, env=contestant.env)
            stack.enter_context(server)
            server.wait_for_port(port)
            if contestant.ready:
                wait_until_ready(f"http://127.0.0.1:{port}{contestant.ready}")
            ports.append(port)
            pids.append(server.pid)
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("generator"))),
            f"--ports={','.join(map(str, ports))}",
            f"--pids={','.join(map(str, [*pids, redis.pid]))}",
            f"--redis={redis.port}",
            f"--rooms={folder / 'rooms'}",
            f"--payload={folder / 'payload'}",
            f"--clients={clients}",
            f"--seconds={seconds}",
            f"--warm-up={warm_up}",
            f"--path={contestant.path}",
            f"--channel={contestant.channel}",
            *contestant.joins,
            *generator_options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"the generator ended with {done.returncode}")
    seen = json.loads(done.stdout.splitlines()[-2])
    measured, latency = seen["measured"], seen["latency_us"]
    *server_cpu_s, redis_cpu_s = measured["cpu_s"]
    wall_s = measured["wall_s"]
    return Load(
        per_cpu_s=measured["received"] / sum(server_cpu_s),
        per_s=measured["received"] / wall_s,
        p50_ms=latency["p50"] / 1000,
        p99_ms=latency["p99"] / 1000,
        server_share=sum(server_cpu_s) / wall_s,
        load_share=(measured["generator_cpu_s"] + redis_cpu_s) / wall_s,
        complaints=complaints(seen),
    )


def notes(outcomes: dict[str, list[Load]], what: str = "") -> list[str]:
    """What a reader must know of the figures: messages that went missing, and a load that was the limit."""
    found = []
    for name, loads in outcomes.items():
        for round_, each in enumerate(loads, 1):
            found += [f"{what}{name}, round {round_}: {words}." for words in each.complaints]
        busy = contest.median(each.load_share for each in loads)
        if busy > contest.BUSY_SHARE:
            found.append(
                f"{what}{name}: the load's core was {busy:.0%} busy; its wall figures may be the load's."
            )
    return found


def measure(contestant: Contestant, *generator_options: str, **more: Any) -> Callable[[], Load]:
    return functools.partial(load, contestant, *generator_options, **more)
