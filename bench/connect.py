"""Setting up connections; a change's way to the clients of two processes: python -m bench.connect

Fifty clients a second come to one process on a Redis of its own: the time is from the TCP connect to the
arrival of CONNECTED. Then changes by REST at one of two processes, to clients of both: the time is from the
request's first byte to the update's last, so that deciding, committing and publishing are in it.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import contest, machine
from bench.contest import Table, median
from bench.contestants import lockstep, wait_until_ready
from bench.delivery import Caller, Client, percentile
from bench.observed import lags, observed
from bench.rest import disturbance, running_session

TITLE = "Setting up and delivering"
ROUNDS = 3
SESSIONS = 50
CLIENTS_PER_SESSION = 4
CALLERS = 8


@dataclass(frozen=True)
class Server:
    port: int
    pid: int
    lag_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lag_p99_ms(self) -> float | None:
        periods = lags(self.lag_file, self.pid)
        return periods[-1]["p99_ms"] if periods else None


class Others:
    """What other processes take of the server's core from now on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), machine.busy_s(machine.SERVER_CORE) - machine.cpu_s(self._server.pid)

    def share(self) -> float:
        now, others_s = self._now()
        return max(0.0, (others_s - self._began[1]) / (now - self._began[0]))


@contextmanager
def on_the_loads_core() -> Iterator[None]:
    """This process is the load, or a part of it: it shall not take the server's core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {machine.LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(stack: ExitStack, redis: machine.Redis, options: argparse.Namespace, core: int) -> Server:
    port = machine.free_port()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
    contestant = lockstep(options.checkout)
    command = contestant.command(port, redis)
    if options.observe:
        command = observed(command, folder / "lag")
    process = stack.enter_context(machine.Process(command, core, cwd=contestant.cwd, env=contestant.env))
    process.wait_for_port(port)
    wait_until_ready(f"http://127.0.0.1:{port}/ready")
    server = Server(port, process.pid, folder / "lag")
    if options.observe:
        server.lag_p99_ms()  # a period begins: what the start took is no part of it
    return server


async def connected(port: int, session_id: str) -> tuple[float, Client]:
    """How many ms from here to CONNECTED."""
    began_s = time.perf_counter()
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(session_id, []), "127.0.0.1", port)
    async with asyncio.timeout(10):
        await client.greeted
    return (time.perf_counter() - began_s) * 1000, client


async def set_up(server: Server, rate: float, seconds: float) -> list[float]:
    began_s = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(connected(server.port, str(uuid.uuid4()))))
    done = await asyncio.gather(*tasks)
    for _, client in done:
        client.transport.abort()
    return sorted(took_ms for took_ms, _ in done)


async def deliver(servers: list[Server], rate: float, seconds: float) -> tuple[list[list[float]], int]:
    """Milliseconds to clients of the process that made the change, and of the other; what did not arrive."""
    ids = [await asyncio.to_thread(running_session, servers[0].url) for _ in range(SESSIONS)]
    arrivals: list[list[tuple[str, int, float]]] = [[], []]
    loop = asyncio.get_running_loop()
    clients = []
    for number in range(SESSIONS * CLIENTS_PER_SESSION):
        session_id, place = ids[number // CLIENTS_PER_SESSION], number % 2
        _, client = await loop.create_connection(
            lambda s=session_id, p=place: Client(s, arrivals[p]), "127.0.0.1", servers[place].port
        )
        clients.append(client)
    await asyncio.gather(*(client.greeted for client in clients))
    callers: asyncio.Queue[Caller] = asyncio.Queue()
    for _ in range(CALLERS):
        callers.put_nowait((await loop.create_connection(Caller, "127.0.0.1", servers[0].port))[1])
    sent: dict[tuple[str, int], float] = {}

    async def change(session_id: str) -> None:
        caller = await callers.get()
        sent_s = time.perf_counter()
        sent[session_id, await caller.switch(session_id)] = sent_s
        callers.put_nowait(caller)

    began_s = time.perf_counter()
    changes = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
        changes.append(asyncio.create_task(change(ids[number % SESSIONS])))
    await asyncio.gather(*changes)
    await asyncio.sleep(0.5)  # what is still on its way
    took_ms = [
        sorted((at_s - sent[change]) * 1000 for *change_, at_s in each if (change := tuple(change_)) in sent)
        for each in arrivals
    ]
    for client in clients:
        client.transport.abort()
    return took_ms, len(sent) * CLIENTS_PER_SESSION - sum(map(len, took_ms))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connect-rate", type=float, default=50, help="connections per second")
    parser.add_argument("--change-rate", type=float, default=200, help="changes per second")
    parser.add_argument("--connect-seconds", type=float, default=10)
    parser.add_argument("--observe", action="store_true", help="watch the servers' event loops, too")


def run(options: argparse.Namespace) -> list[Table]:
    set_ups, delivered, loop_ms, shares = [], [], [], []
    missing = 0
    for _ in range(options.rounds):
        with on_the_loads_core(), ExitStack() as stack:
            redis = stack.enter_context(machine.Redis())
            server = start(stack, redis, options, machine.SERVER_CORE)
            others = Others(server)
            set_ups.append(asyncio.run(set_up(server, options.connect_rate, options.connect_seconds)))
            shares.append(others.share())
            loop_ms.append(server.lag_p99_ms() if options.observe else None)
        with on_the_loads_core(), ExitStack() as stack:
            redis = stack.enter_context(machine.Redis())
            # The one that decides has a core to itself; the other shares the load's.
            servers = [
                start(stack, redis, options, core) for core in (machine.SERVER_CORE, machine.LOAD_CORE)
            ]
            others = Others(servers[0])
            took_ms, lost = asyncio.run(deliver(servers, options.change_rate, options.seconds))
            shares.append(others.share())
            delivered.append(took_ms)
            missing += lost
    notes = [f"{missing} updates did not arrive."] if missing else []
    notes += disturbance("Lockstep", shares)
    if options.observe:
        notes.append(
            f"Event loop lag while clients connect, p99: {max(each or 0 for each in loop_ms):.1f} ms."
        )

    def row(name: str, rounds: list[list[float]]) -> list[str]:
        shares = [median(percentile(each, share) for each in rounds) for share in (0.5, 0.99, 1)]
        return [name, str(sum(map(len, rounds))), *(f"{each:.2f}" for each in shares)]

    return [
        Table(
            TITLE,
            ["", "times", "p50 ms", "p99 ms", "longest ms"],
            [
                row("TCP connect to CONNECTED", set_ups),
                row("change to a client of the same process", [same for same, _ in delivered]),
                row("change to a client of another process", [other for _, other in delivered]),
            ],
            f"{options.connect_rate:g} connections a second; then {options.change_rate:g} changes a second, "
            f"{SESSIONS} sessions with {CLIENTS_PER_SESSION} clients each. Medians of the rounds.",
            notes,
        )
    ]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
