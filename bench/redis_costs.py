"""What Redis spends on publications and keeps of sessions: python -m bench.redis_costs

What a publication costs by the number of processes that hear it; and what Redis keeps for a session, for an
event of its history, and for a channel that a process hears, as INFO's used_memory has it.
"""

import argparse
import functools
import json
import selectors
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from bench import contest, machine, rings
from bench.contest import Table, median, number, spread
from bench.contestants import lockstep
from bench.masters import even_sessions
from bench.rest import start

TITLE = "Redis: publications and memory"
ROUNDS = 3
PUBLICATION_BYTES = 2000


@contextmanager
def listeners(port: int, count: int, channels: list[str]) -> Iterator[None]:
    """Connections that hear these channels and read what comes, until the end."""
    subscribe = b"*%d\r\n$9\r\nSUBSCRIBE\r\n" % (len(channels) + 1) + b"".join(
        b"$%d\r\n%s\r\n" % (len(each), each.encode()) for each in channels
    )
    selector, is_over = selectors.DefaultSelector(), threading.Event()
    confirmed = threading.Semaphore(0)

    def read() -> None:
        tails = dict.fromkeys(sockets, b"")
        while not is_over.is_set():
            for key, _ in selector.select(0.1):
                sock: Any = key.fileobj
                data = tails[sock] + sock.recv(1 << 20)
                # The answer to the PING behind the subscriptions; no message of ours has these letters.
                if b"pong" in data:
                    confirmed.release()
                    data = b""
                tails[sock] = data[-3:]

    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        for each in sockets:
            selector.register(each, selectors.EVENT_READ)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for each in sockets:
                each.sendall(subscribe + b"*1\r\n$4\r\nPING\r\n")
            for _ in sockets:
                if not confirmed.acquire(timeout=30):
                    raise RuntimeError("no subscription")
            yield
        finally:
            is_over.set()
            reader.join()


def publication_us(count: int, options: argparse.Namespace) -> float:
    """CPU time of Redis for a publication that so many connections hear."""
    with machine.Redis() as store, listeners(store.port, count, ["x"]), store.client as client:
        message = "x" * PUBLICATION_BYTES
        for _ in range(100):
            client.publish("x", message)
        before_s = machine.cpu_s(store.pid)
        for _ in range(options.publications):
            client.publish("x", message)
        return (machine.cpu_s(store.pid) - before_s) * 1e6 / options.publications


def publications(options: argparse.Namespace) -> Table:
    turns = {
        f"{count} {'process' if count == 1 else 'processes'}": functools.partial(
            publication_us, count, options
        )
        for count in options.listeners
    }
    outcomes = contest.interleaved(turns, options, "publications")
    rows = [
        [name, number(median(done)), spread(done), number(median(done) / int(name.partition(" ")[0]))]
        for name, done in outcomes.items()
    ]
    columns = ["heard by", "Redis us per publication", "rounds", "us for each"]
    return Table(
        f"{TITLE}: a publication, by who hears it",
        columns,
        rows,
        f"{PUBLICATION_BYTES:,} bytes, one at a time: a PUBLISH of its own, which a commit's script spares.",
    )


def used_bytes(client: "redis.Redis") -> int:
    return int(client.info("memory")["used_memory"])


def memory(options: argparse.Namespace) -> Table:
    rows = []
    with ExitStack() as stack:
        store = stack.enter_context(machine.Redis())
        client = stack.enter_context(store.client)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
        port, _ = start(lockstep(options.checkout), store, stack)
        empty = used_bytes(client)
        ids = even_sessions(f"http://127.0.0.1:{port}")
        new = used_bytes(client)
        rows.append(["a session of two that has begun", f"{(new - empty) / len(ids):,.0f}"])
        paths = [f"/v1/sessions/{each}/switch" for each in ids]
        switches = 0
        while switches < options.switches * len(ids):
            switches += rings.post(port, paths, {}, 0.5, folder)
        rows.append(["an event of its history, a switch", f"{(used_bytes(client) - new) / switches:,.0f}"])
        state = json.loads(client.get(f"session:{ids[0]}"))
        rows.append(["the state itself", f"{len(json.dumps(state, separators=(',', ':'))):,}"])
    with machine.Redis() as store, store.client as client:
        empty = used_bytes(client)
        channels = [f"session-updates:{uuid.uuid4()}" for _ in range(options.channels)]
        for count in (1, 2):
            with listeners(store.port, count, channels):
                each = (used_bytes(client) - empty) / len(channels)
                where = "one process hears" if count == 1 else f"{count} processes hear"
                rows.append([f"a channel that {where}", f"{each:,.0f}"])
    return Table(f"{TITLE}: memory", ["", "bytes"], rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listeners", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--publications", type=int, default=3000)
    parser.add_argument("--channels", type=int, default=20_000)
    parser.add_argument("--switches", type=int, default=20, help="of each session, for the history")


def run(options: argparse.Namespace) -> list[Table]:
    return [publications(options), memory(options)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
