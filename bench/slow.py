"""A session with a thousand clients, two of which stop reading: python -m bench.slow

Messages of 1 KB and changes by REST at a steady rate, first in quiet; then one client stops reading for 4 s
and another for good. What the others notice is the figure: the time from the publication, or from the request
of the change, to its arrival at each of them, before and after. Besides: the memory that the two take, how
soon the first one shows the latest state when it reads again, and when the other is cut off.
"""

import argparse
import array
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from bench import contest, machine
from bench.connect import Others, Server, on_the_loads_core, start
from bench.contest import Table, median
from bench.contestants import lockstep
from bench.delivery import Caller, percentile
from bench.idle import Clients
from bench.observed import lags
from bench.rest import disturbance, running_session
from tests.support.ws_client import Closed, WsClient

TITLE = "Slow clients"
ROUNDS = 3
PAUSE_S = 4.0
# The interval, the timeout, and a second of grace; or the limit on what is kept, if that is reached first.
GONE_WITHIN_S = 10.0
RECEIVE_BUFFER_BYTES = 4096
QUIET, STALLED = 0, 1


@dataclass
class Sent:
    """When each change and each message went off, by its version or sequence, and in which period."""

    changes: dict[int, tuple[int, int]] = field(default_factory=dict)
    messages: dict[int, tuple[int, int]] = field(default_factory=dict)
    period: int = QUIET
    is_over: bool = False


@dataclass
class Outcome:
    """One run."""

    took_ms: dict[tuple[str, int], list[float]]
    missing: int
    grown_bytes: int
    caught_up_ms: float
    had_to_come_back: bool
    gone_after_s: float | None
    lag_ms: list[dict[str, float]]
    others_share: float


async def publish(redis: Redis, session_id: str, sent: Sent, rate: float, size: int) -> None:
    began_s, sequence = time.monotonic(), 0
    while not sent.is_over:
        sequence += 1
        await asyncio.sleep(max(0.0, began_s + sequence / rate - time.monotonic()))
        message = {"type": "X", "sequence": "", "data": ""}
        message["sequence"] = f"{sequence:016}"
        message["data"] = "x" * (size - len(json.dumps(message, separators=(",", ":"))))
        sent.messages[sequence] = (time.monotonic_ns(), sent.period)
        await redis.publish(f"ws:{session_id}", json.dumps(message, separators=(",", ":")))


async def change(server: Server, session_id: str, sent: Sent, rate: float) -> None:
    loop = asyncio.get_running_loop()
    _, caller = await loop.create_connection(Caller, "127.0.0.1", server.port)
    began_s, number = time.monotonic(), 0
    while not sent.is_over:
        number += 1
        await asyncio.sleep(max(0.0, began_s + number / rate - time.monotonic()))
        at_ns, period = time.monotonic_ns(), sent.period
        sent.changes[await caller.switch(session_id)] = (at_ns, period)


class Slow:
    """A client that reads as long as it shall, into small buffers."""

    def __init__(self, server: Server, session_id: str) -> None:
        self._url = f"ws://127.0.0.1:{server.port}/ws?sessionId={session_id}"
        self.version = 0
        self.came_back = False
        self._reads = asyncio.Event()
        self._reads.set()

    async def connect(self) -> None:
        self._client = await WsClient.connect(self._url, limit=4096, rcvbuf=RECEIVE_BUFFER_BYTES)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while not isinstance(message := await self._client.recv(3600), Closed):
            if message["type"] in ("STATE_UPDATE", "STATE_SYNC"):
                self.version = message["state"]["version"]
            await self._reads.wait()
        # It was cut off; it does as any client does.
        self.came_back = True
        await self.connect()
        await self._client.send({"type": "RECONNECT"})

    def stop_reading(self) -> None:
        """Behind the message that is being read: what is left of it would be no message."""
        self._reads.clear()

    async def read_until(self, version: int) -> float:
        """Read again; how many ms it takes until it shows this version or a later one."""
        began_s = time.monotonic()
        self._reads.set()
        async with asyncio.timeout(30):
            while self.version < version:
                await asyncio.sleep(0.001)
        return (time.monotonic() - began_s) * 1000

    def abort(self) -> None:
        self._reading.cancel()
        self._client.abort()


def open_sockets(pid: int) -> int:
    """Other files count, too: what matters is by how many there are fewer."""
    return len(os.listdir(f"/proc/{pid}/fd"))


async def watch_cuts(pid: int, cut_after_s: list[float]) -> None:
    """Note when the server gives up a socket; its kernel may still hold what was sent on it."""
    began_s, sockets = time.monotonic(), open_sockets(pid)
    while True:
        await asyncio.sleep(0.05)
        while len(cut_after_s) < sockets - open_sockets(pid):
            cut_after_s.append(time.monotonic() - began_s)


async def play(
    server: Server, redis_url: str, session_id: str, sent: Sent, options: argparse.Namespace
) -> tuple[int, float, bool, float | None]:
    redis = Redis.from_url(redis_url)
    pausing, gone = Slow(server, session_id), Slow(server, session_id)
    await pausing.connect()
    await gone.connect()
    load = [
        asyncio.create_task(publish(redis, session_id, sent, options.message_rate, options.message_bytes)),
        asyncio.create_task(change(server, session_id, sent, options.switch_rate)),
    ]
    await asyncio.sleep(options.warm_up)
    for sent_so_far in (sent.changes, sent.messages):
        sent_so_far.clear()
    await asyncio.sleep(max(options.seconds, PAUSE_S))
    lags(server.lag_file, server.pid)  # ends the period

    before_bytes, largest_bytes = machine.rss_bytes(server.pid), 0
    cut_after_s: list[float] = []
    watching = asyncio.create_task(watch_cuts(server.pid, cut_after_s))
    sent.period = STALLED
    pausing.stop_reading()
    gone.stop_reading()
    began_s, caught_up_ms, cut_in_pause_s = time.monotonic(), 0.0, []
    while time.monotonic() - began_s < GONE_WITHIN_S + 2:
        largest_bytes = max(largest_bytes, machine.rss_bytes(server.pid))
        await asyncio.sleep(0.1)
        if not caught_up_ms and time.monotonic() - began_s >= PAUSE_S:
            cut_in_pause_s = cut_after_s[:]
            caught_up_ms = await pausing.read_until(max(sent.changes))
    watching.cancel()
    # Who of the two was cut off in the pause? The one that comes back says so; then the other was, or is not.
    seen_s = cut_in_pause_s[1:] if pausing.came_back else cut_after_s
    gone_after_s = seen_s[0] if seen_s else None
    lags(server.lag_file, server.pid)
    sent.is_over = True
    await asyncio.gather(*load)
    await asyncio.sleep(1)  # what is still on its way
    pausing.abort()
    gone.abort()
    await redis.aclose()
    return largest_bytes - before_bytes, caught_up_ms, pausing.came_back, gone_after_s


def times(record: Path, sent: Sent, clients: int) -> tuple[dict[tuple[str, int], list[float]], int]:
    """Milliseconds by kind and period, and how many never came."""
    arrivals = array.array("q")
    with record.open("rb") as file:
        arrivals.frombytes(file.read())
    took_ms: dict[tuple[str, int], list[float]] = {}
    tables = (sent.changes, sent.messages)
    count = 0
    for at in range(0, len(arrivals), 4):
        _, kind, number, at_ns = arrivals[at : at + 4]
        known = tables[kind].get(number)
        if known is not None:
            count += 1
            key = ("messages" if kind else "changes", known[1])
            took_ms.setdefault(key, []).append((at_ns - known[0]) / 1e6)
    for each in took_ms.values():
        each.sort()
    return took_ms, clients * sum(map(len, tables)) - count


def one_run(options: argparse.Namespace) -> Outcome:
    with on_the_loads_core(), ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        server = start(stack, redis, options, machine.SERVER_CORE)
        session_id = running_session(server.url)
        record = folder / "record"
        others = Clients(
            lockstep(options.checkout), server.port, options.clients - 2, [session_id], f"--record={record}"
        )
        stack.enter_context(others)
        others.wait()
        sent, disturbing = Sent(), Others(server)
        grown_bytes, caught_up_ms, came_back, gone_after_s = asyncio.run(
            play(server, redis.url, session_id, sent, options)
        )
        others_share = disturbing.share()
        seen = others.end()
        took_ms, missing = times(record, sent, options.clients - 2)
        if seen["closed"]:
            raise RuntimeError(f"{seen['closed']} clients that did read were closed: {seen['close_code']}")
        # The first period of the watch is the start, the second the quiet one.
        lag_ms = lags(server.lag_file)[-2:]
    return Outcome(took_ms, missing, grown_bytes, caught_up_ms, came_back, gone_after_s, lag_ms, others_share)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--message-rate", type=float, default=20, help="messages per second")
    parser.add_argument("--message-bytes", type=int, default=1024)
    parser.add_argument("--switch-rate", type=float, default=20, help="changes per second")


def run(options: argparse.Namespace) -> list[Table]:
    tables = measure(options, TITLE)
    # What the kernel does not hold for them any more, the server must: messages so large that this is soon.
    large = {"clients": 50, "message_rate": 60, "message_bytes": 30_000}
    return tables + measure(argparse.Namespace(**vars(options) | large), f"{TITLE}, large messages")


def measure(options: argparse.Namespace, title: str) -> list[Table]:
    # Without knowing the loop's lag it could not be told whether the server or the machine was late.
    options = argparse.Namespace(**vars(options) | {"observe": True})
    runs = []
    for turn in range(options.rounds):
        print(f"{title}, round {turn + 1}", file=sys.stderr, flush=True)
        runs.append(one_run(options))

    def row(period: int, name: str) -> list[str]:
        cells = [name]
        for kind in ("messages", "changes"):
            for share in (0.5, 0.99):
                cells.append(f"{median(percentile(each.took_ms[kind, period], share) for each in runs):.2f}")
        return [*cells, f"{median(each.lag_ms[period]['p99_ms'] for each in runs):.1f}"]

    def all_of(values: list[Any], unit: str) -> str:
        return ", ".join("-" if value is None else f"{value:.1f}" for value in values) + f" {unit}"

    facts = [
        ["messages and changes that did not arrive", str(sum(each.missing for each in runs))],
        [
            "memory grew by, at most",
            f"{max(each.grown_bytes for each in runs) / 2**20:.1f} MB",
        ],
        [
            f"after {PAUSE_S:g} s, the latest state shown within",
            all_of([each.caught_up_ms for each in runs], "ms"),
        ],
        ["it had been cut off meanwhile", f"{sum(each.had_to_come_back for each in runs)} of {len(runs)}"],
        ["the other one gone after", all_of([each.gone_after_s for each in runs], "s")],
    ]
    text = (
        f"{options.clients:,} clients of one session, {options.message_rate:g} messages of "
        f"{options.message_bytes:,} bytes and {options.switch_rate:g} changes a second. From publication, or "
        "from the request, to arrival at all those who read. Medians of the rounds."
    )
    notes = disturbance("Lockstep", [each.others_share for each in runs])
    columns = ["", "messages p50 ms", "p99 ms", "changes p50 ms", "p99 ms", "loop lag p99 ms"]
    return [
        Table(title, columns, [row(QUIET, "all read"), row(STALLED, "two do not")], text, notes),
        Table(f"{title}: the two themselves", ["", "each round"], facts),
    ]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
