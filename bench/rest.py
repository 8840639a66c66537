"""A switch by REST, on a hundred running sessions: python -m bench.rest

Sixteen keep-alive connections, one request in flight on each; nobody listens by WebSocket. All contestants
read a session of the same shape from Redis, charge the clock, begin the next turn, compare and set, publish,
and answer with the same JSON. Lockstep, besides, keeps a history, deadlines and lapses in the same commit,
and hears and routes its own publications.
"""

import argparse
import functools
import json
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from bench import contest, contestants, machine
from bench.contest import Table, median, number, ratio, spread
from bench.contestants import DISTURBED_SHARE, Contestant, generate, lockstep, peer

TITLE = "Switch by REST"
SESSIONS = 100
CONNECTIONS = 16
# Budgets of a day: no clock runs out, and no session changes by itself.
BUDGET_MS = 86_400_000
# V8 and CPython 3.11 get quicker as they run; a server that has run for days is past that.
WARM_UP_S = 2.0

EXPRESS = peer("Express", "express.js")
STARLETTE = peer("Starlette", "starlette_app.py")


@dataclass(frozen=True)
class Turn:
    """What the generator saw of one server, and the CPU time of the server in the measured period."""

    per_cpu_s: float
    per_s: float
    p50_ms: float
    p99_ms: float
    server_share: float
    load_share: float
    redis_share: float
    # What other processes took of the server's core.
    others_share: float
    complaints: tuple[str, ...]


def post(url: str, body: Any = None) -> Any:
    raw = b"" if body is None else json.dumps(body).encode()
    with urlopen(
        Request(url, raw, {"Content-Type": "application/json"}, method="POST"), timeout=10
    ) as answer:
        return json.load(answer)["data"]


def running_session(server: str) -> str:
    """A session of two participants that was started; its id."""
    participants = [{"participant_id": str(uuid.uuid4()), "total_time_ms": BUDGET_MS} for _ in "ab"]
    made = post(f"{server}/v1/sessions", {"sync_mode": "per_participant", "participants": participants})
    session_id: str = made["session_id"]
    post(f"{server}/v1/sessions/{session_id}/start")
    return session_id


@functools.cache
def states(checkout: Path) -> dict[str, bytes]:
    """What Lockstep stores for such sessions: the peers begin with the very same."""
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        port = start(lockstep(checkout), redis, stack)[0]
        ids = [running_session(f"http://127.0.0.1:{port}") for _ in range(SESSIONS)]
        with redis.client as client:
            return {each: client.get(f"session:{each}") for each in ids}


def start(contestant: Contestant, redis: machine.Redis, stack: ExitStack) -> tuple[int, int]:
    """Port and pid of a server that is ready."""
    port = machine.free_port()
    command = contestant.command(port, redis)
    server = stack.enter_context(machine.Process(command, cwd=contestant.cwd, env=contestant.env))
    server.wait_for_port(port)
    if contestant.ready:
        contestants.wait_until_ready(f"http://127.0.0.1:{port}{contestant.ready}")
    return port, server.pid


def turn(contestant: Contestant, options: argparse.Namespace) -> Turn:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        port, pid = start(contestant, redis, stack)
        if contestant.name.startswith("Lockstep"):
            ids = [running_session(f"http://127.0.0.1:{port}") for _ in range(SESSIONS)]
        else:
            ids = list(states(options.checkout))
            with redis.client as client:
                client.mset({f"session:{each}": state for each, state in states(options.checkout).items()})
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        (folder / "paths").write_text("".join(f"/v1/sessions/{each}/switch\n" for each in ids))
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("rest_load"))),
            f"--port={port}",
            f"--paths={folder / 'paths'}",
            f"--connections={options.connections}",
            f"--pids={pid},{redis.pid}",
            f"--warm-up={WARM_UP_S + options.warm_up}",
            f"--seconds={options.seconds}",
        ]
        seen, busy_s = generate(command)
        with redis.client as client:
            versions = sum(json.loads(client.get(f"session:{each}"))["version"] for each in ids)
    return read(seen, busy_s, versions)


def read(seen: dict[str, Any], busy_s: float, versions: int) -> Turn:
    server_s, redis_s = seen["cpu_s"]
    others = {status: count for status, count in seen["statuses"].items() if status != "200"}
    answered = seen["requests"]
    complaints = [f"{count} answers with {status}" for status, count in others.items()]
    if seen["unanswered"]:
        complaints.append(f"{seen['unanswered']} requests without an answer")
    if versions < answered:
        complaints.append(f"{answered} switches were answered, {versions} are stored")
    return Turn(
        per_cpu_s=answered / server_s,
        per_s=answered / seen["wall_s"],
        p50_ms=seen["latency_us"]["p50"] / 1000,
        p99_ms=seen["latency_us"]["p99"] / 1000,
        server_share=server_s / seen["wall_s"],
        load_share=seen["generator_share"],
        redis_share=redis_s / seen["wall_s"],
        others_share=max(0.0, (busy_s - server_s) / seen["wall_s"]),
        complaints=tuple(complaints),
    )


def disturbance(name: str, shares: list[float]) -> list[str]:
    """A note, if the machine did something else besides."""
    share = median(shares)
    return (
        [f"{name}: other processes had {share:.0%} of the server's core."] if share > DISTURBED_SHARE else []
    )


def notes(outcomes: dict[str, list[Turn]]) -> list[str]:
    found = []
    for name, turns in outcomes.items():
        for round_, each in enumerate(turns, 1):
            found += [f"{name}, round {round_}: {words}." for words in each.complaints]
        busy = median(each.load_share + each.redis_share for each in turns)
        if busy > contest.BUSY_SHARE:
            found.append(f"{name}: Redis and the load kept their core {busy:.0%} busy, and may be the limit.")
        found += disturbance(name, [each.others_share for each in turns])
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=CONNECTIONS)


def run(options: argparse.Namespace) -> list[Table]:
    competing = [lockstep(options.checkout), EXPRESS, STARLETTE]
    turns: dict[str, Callable[[], Turn]] = {
        each.name: functools.partial(turn, each, options) for each in competing
    }
    outcomes = contest.interleaved(turns, options, TITLE)
    per_cpu_s = {name: median(each.per_cpu_s for each in done) for name, done in outcomes.items()}
    rows = [
        [
            name,
            number(per_cpu_s[name]),
            spread([each.per_cpu_s for each in done]),
            ratio(per_cpu_s[name], per_cpu_s.get("Express")),
            number(median(each.per_s for each in done)),
            f"{median(each.p50_ms for each in done):.2f}",
            f"{median(each.p99_ms for each in done):.2f}",
            f"{median(each.server_share for each in done):.0%}",
            f"{median(each.redis_share for each in done):.0%}",
            f"{median(each.load_share for each in done):.0%}",
        ]
        for name, done in outcomes.items()
    ]
    columns = [
        *("server", "requests per CPU-s", "rounds", "to Express", "requests per s", "p50 ms", "p99 ms"),
        *("server's core", "Redis", "load"),
    ]
    text = (
        f"POST /v1/sessions/ID/switch without a body, {SESSIONS} sessions of two, {options.connections} "
        "keep-alive connections with one request each. Server on one core, Redis and load on another."
    )
    return [Table(TITLE, columns, rows, text, notes(outcomes))]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
