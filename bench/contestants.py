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
JOINED = '--joined={"type":"CONNECTED"'
# Above this, the machine did something else besides.
DISTURBED_SHARE = 0.05


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


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def publication() -> bytes:
    """What centrifuge's broker publishes for `node.Publish(room, text)`: protobuf, data (4) and time (9)."""
    data = text()
    return b"\x22" + varint(len(data)) + data + b"\x48" + varint(int(time.time() * 1000))


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
    common = ("--log-level=warning", "--max-connections-per-session=100000")
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
        joins=(JOINED,),
        ready="/ready",
        cwd=checkout,
    )


def peer(name: str, file: str, *settings: str, **more: Any) -> Contestant:
    return Contestant(
        name,
        lambda port, redis: [
            machine.node() if file.endswith(".js") else sys.executable,
            *(machine.PEERS / file, str(port), str(redis.port), *settings),
        ],
        env={"NODE_ENV": "production"},
        **more,
    )


def centrifuge(*settings: str, name: str = "centrifuge") -> list[Contestant]:
    """Centrifugo's engine on one core; none where it cannot be built."""
    program = machine.built_by_go("centrifuge")
    if program is None:
        return []
    return [
        Contestant(
            name,
            lambda port, redis: [program, *settings, str(port), str(redis.port)],
            channel="centrifuge.client.%s",
            payload=publication,
            joins=(
                '--hello={"id":1,"connect":{}}',
                "--answer={}={}",
                '--joined={"id":1,"connect":{',
                "--lines",
            ),
            env={"GOMAXPROCS": "1"},
        )
    ]


LIMIT = Contestant("limit", lambda port, redis: [machine.compiled("limit"), str(port), str(redis.port)])
WS = peer("ws", "ws.js", joins=(JOINED,))
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
    # What other processes took of the servers' core.
    others_share: float
    complaints: tuple[str, ...]
    # CPU time per message of what stands in front of the servers.
    front_us: float = 0


def per_cpu_s(load: Load) -> float:
    return load.per_cpu_s


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


def generate(
    command: list[str], on_measuring: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], float]:
    """What the generator saw, and how long the servers' core was busy meanwhile, with whatever it was."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as generator:
        assert generator.stdout is not None
        assert generator.stderr is not None
        busy_s, seen = 0.0, None
        for line in generator.stdout:
            if line == "measuring\n":
                on_measuring()
                busy_s = machine.busy_s(machine.SERVER_CORE)
            elif line == "measured\n":
                busy_s = machine.busy_s(machine.SERVER_CORE) - busy_s
            elif line.startswith("{"):
                seen = json.loads(line)
        failure = generator.stderr.read().strip()
    if generator.returncode or seen is None:
        raise RuntimeError(failure or f"the generator ended with {generator.returncode}")
    return seen, busy_s


@dataclass(frozen=True)
class Servers:
    """Processes that are ready, and the ports at which clients find them."""

    ports: list[int]
    pids: list[int]
    # What clients come through, on the core of the load.
    front_pids: tuple[int, ...] = ()


def started(contestant: Contestant, processes: int, redis: machine.Redis, stack: ExitStack) -> Servers:
    """Each at a port of its own."""
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
    return Servers(ports, pids)


def load(
    contestant: Contestant,
    *generator_options: str,
    clients: int,
    seconds: float,
    warm_up: float,
    rooms: int = 1,
    processes: int = 1,
    start: Callable[[Contestant, int, machine.Redis, ExitStack], Servers] = started,
    on_measuring: Callable[[int], object] = lambda pid: None,
) -> Load:
    """Start it, put the load on it, stop it. Several processes share the servers' core.

    `on_measuring` is called with the first one's pid when all have connected and the warming up is over.
    """
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        (folder / "rooms").write_text("".join(f"{uuid.uuid4()}\n" for _ in range(rooms)))
        (folder / "payload").write_bytes(contestant.payload())
        servers = start(contestant, processes, redis, stack)
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("generator"))),
            f"--ports={','.join(map(str, servers.ports))}",
            f"--pids={','.join(map(str, [*servers.pids, *servers.front_pids, redis.pid]))}",
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
        seen, busy_s = generate(command, lambda: on_measuring(servers.pids[0]))
    measured, latency = seen["measured"], seen["latency_us"]
    *all_cpu_s, redis_cpu_s = measured["cpu_s"]
    server_cpu_s, front_cpu_s = all_cpu_s[: len(servers.pids)], sum(all_cpu_s[len(servers.pids) :])
    wall_s = measured["wall_s"]
    return Load(
        per_cpu_s=measured["received"] / sum(server_cpu_s),
        per_s=measured["received"] / wall_s,
        p50_ms=latency["p50"] / 1000,
        p99_ms=latency["p99"] / 1000,
        server_share=sum(server_cpu_s) / wall_s,
        load_share=(measured["generator_cpu_s"] + redis_cpu_s + front_cpu_s) / wall_s,
        others_share=max(0.0, (busy_s - sum(server_cpu_s)) / wall_s),
        complaints=complaints(seen),
        front_us=front_cpu_s * 1e6 / measured["received"],
    )


def notes(outcomes: dict[str, list[Load]]) -> list[str]:
    """What a reader must know of the figures: messages gone astray, a load that was full, disturbance."""
    found, busy, others = [], [], []
    for name, loads in outcomes.items():
        for turn, each in enumerate(loads, 1):
            found += [f"{name}, round {turn}: {words}." for words in each.complaints]
        load_share = contest.median(each.load_share for each in loads)
        if load_share > contest.BUSY_SHARE:
            busy.append(f"{name} {load_share:.0%}")
        others_share = contest.median(each.others_share for each in loads)
        if others_share > DISTURBED_SHARE:
            others.append(f"{name} {others_share:.0%}")
    if busy:
        found.append(
            f"the load's core was nearly full, so that wall figures may be the load's: {', '.join(busy)}."
        )
    if others:
        found.append(f"other processes had a part of the servers' core: {', '.join(others)}.")
    return found


def measure(contestant: Contestant, *generator_options: str, **more: Any) -> Callable[[], Load]:
    return functools.partial(load, contestant, *generator_options, **more)
