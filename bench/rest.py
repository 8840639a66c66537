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
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import jwt

from bench import contest, contestants, machine
from bench.contest import Table, median, number, ratio, spread
from bench.contestants import DISTURBED_SHARE, Contestant, generate, lockstep, peer

TITLE = "Switch by REST"
LOCKED = "Lockstep with tokens and limits"
ROUNDS = 5
SESSIONS = 100
CONNECTIONS = 16
# Budgets of a day: no clock runs out, and no session changes by itself.
BUDGET_MS = 86_400_000
# With tokens a participant switches only in his own turn; one who is alone has it always.
PLAYER = str(uuid.uuid4())
COMMAND = {"type": "COMMAND", "command": "switch"}
SECRET = "a secret of this benchmark, and of no other use"
# V8 and CPython 3.11 get quicker as they run; a server that has run for days is past that.
WARM_UP_S = 2.0

FIGURES = {
    "Lockstep": "switches by REST per CPU-s",
    LOCKED: "switches by REST with tokens and limits per CPU-s",
}

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


def post(url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    raw = b"" if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    with urlopen(Request(url, raw, headers, method="POST"), timeout=10) as answer:
        return json.load(answer)["data"]


def running_session(
    server: str, participants: Sequence[str] = (), headers: dict[str, str] | None = None
) -> str:
    """A session, of two participants if it is not said of which, that was started; its id."""
    banks = [
        {"participant_id": each, "total_time_ms": BUDGET_MS}
        for each in participants or (str(uuid.uuid4()), str(uuid.uuid4()))
    ]
    spec = {"sync_mode": "per_participant", "participants": banks}
    session_id: str = post(f"{server}/v1/sessions", spec, headers)["session_id"]
    post(f"{server}/v1/sessions/{session_id}/start", None, headers)
    return session_id


def bearer(scope: str) -> dict[str, str]:
    claims = {"sid": "*", "sub": PLAYER, "scope": scope, "exp": int(time.time()) + 3600}
    return {"Authorization": "Bearer " + jwt.encode(claims, SECRET, algorithm="HS256")}


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


def turn(
    contestant: Contestant,
    options: argparse.Namespace,
    is_alone: bool = False,
    subprotocol: str | None = None,
    is_shared: bool = False,
    participants: int = 2,
) -> Turn:
    """`is_alone`: one participant in each session, who switches as himself where tokens are asked for.

    With a subprotocol the switches are commands over as many WebSockets; `is_shared`: over a single one.
    """
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        port, pid = start(contestant, redis, stack)
        if contestant.name.startswith("Lockstep"):
            url, headers = f"http://127.0.0.1:{port}", bearer("admin")
            people = [PLAYER] if is_alone else [str(uuid.uuid4()) for _ in range(participants)]
            ids = [running_session(url, people, headers) for _ in range(SESSIONS)]
        else:
            ids = list(states(options.checkout))
            with redis.client as client:
                client.mset({f"session:{each}": state for each, state in states(options.checkout).items()})
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        if subprotocol is None:
            lines = [f"/v1/sessions/{each}/switch" for each in ids]
            asking = [f"--paths={folder / 'lines'}"]
        else:
            said = [COMMAND | {"id": place, "sessionId": each} for place, each in enumerate(ids)]
            lines = [json.dumps(each, separators=(",", ":")) for each in said]
            asking = [f"--messages={folder / 'lines'}", f"--subprotocol={subprotocol}"]
        (folder / "lines").write_text("".join(f"{line}\n" for line in lines))
        command = [
            *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("rest_load"))),
            f"--port={port}",
            *asking,
            f"--connections={1 if is_shared else options.connections}",
            *([f"--under-way={options.connections}"] if is_shared else []),
            f"--pids={pid},{redis.pid}",
            f"--warm-up={WARM_UP_S + options.warm_up}",
            f"--seconds={options.seconds}",
            *(f"--header={name}: {value}" for name, value in bearer("control").items() if is_alone),
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


def row(name: str, done: list[Turn], to: list[Turn] | None) -> list[str]:
    per_cpu_s = median(each.per_cpu_s for each in done)
    return [
        name,
        number(per_cpu_s),
        spread([each.per_cpu_s for each in done]),
        ratio(per_cpu_s, median(each.per_cpu_s for each in to) if to else None),
        number(median(each.per_s for each in done)),
        f"{median(each.p50_ms for each in done):.2f}",
        f"{median(each.p99_ms for each in done):.2f}",
        f"{median(each.server_share for each in done):.0%}",
        f"{median(each.redis_share for each in done):.0%}",
        f"{median(each.load_share for each in done):.0%}",
    ]


def compare(
    contestants: list[Contestant], to: str, text: str, options: argparse.Namespace, title: str, is_alone: bool
) -> Table:
    turns: dict[str, Callable[[], Turn]] = {
        each.name: functools.partial(turn, each, options, is_alone) for each in contestants
    }
    outcomes = contest.interleaved(turns, options, title)
    columns = [
        *("server", "requests per CPU-s", "rounds", f"to {to}", "requests per s", "p50 ms", "p99 ms"),
        *("server's core", "Redis", "load"),
    ]
    rows = [row(name, done, outcomes.get(to)) for name, done in outcomes.items()]
    ratios = [
        ratio
        for name, figure in FIGURES.items()
        if is_alone == (name != "Lockstep")
        for ratio in contest.ratios(
            figure, outcomes, name, ["Express", "Starlette"], lambda turn: turn.per_cpu_s
        )
    ]
    return Table(title, columns, rows, text, notes(outcomes), ratios=ratios)


def run(options: argparse.Namespace) -> list[Table]:
    text = (
        f"POST /v1/sessions/ID/switch without a body, {SESSIONS} sessions of two, {options.connections} "
        "keep-alive connections with one request each. Server on one core, Redis and load on another."
    )
    open_to_all = lockstep(options.checkout)
    contestants = [open_to_all, EXPRESS, STARLETTE]
    if options.before:
        contestants.insert(1, lockstep(options.before, name="Lockstep before"))
    tables = [compare(contestants, "Express", text, options, TITLE, is_alone=False)]
    with tempfile.NamedTemporaryFile("w", prefix="lockstep-bench-") as secret:
        secret.write(SECRET)
        secret.flush()
        locked = lockstep(
            options.checkout,
            f"--jwt-secret-file={secret.name}",
            "--rate-limit-general=100000000/60",
            "--rate-limit-switch=100000000/1",
            name=LOCKED,
        )
        text = (
            "The same in sessions of one, with a token of scope control in each request. The limits, of the "
            "caller and of the session, are counted in Redis, and set so high that nobody is refused. "
            "Express has neither, and sessions of two."
        )
        servers = [open_to_all, locked, EXPRESS]
        alone = compare(servers, "Express", text, options, f"{TITLE}, locked doors", is_alone=True)
    return [*tables, alone]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
