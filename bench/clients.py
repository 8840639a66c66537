"""The clients that people install: python -m bench.clients

Fifty clocks that run, each of a session of its own, in a page of Chromium: the CPU time of all its processes,
of which one has the page and another paints it. `useClock` looks at each clock in each frame, and renders
those whose text differs; beside it each clock is rendered in each frame. What a page takes that follows the
sessions and shows no clock is in all of them.

A back end in Python follows a thousand sessions over one socket, which others switch. The delay is from the
commit to the body of `async for`: on one machine and so by one clock, whose instants are told in whole ms.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, Page
from websockets import Subprotocol
from websockets.sync.client import ClientConnection, connect

from bench import contest, machine
from bench.contest import Table, median, spread
from bench.contestants import lockstep
from bench.rest import running_session, start
from lockstep.wire.protocol_v2 import SUBPROTOCOL
from tests.support.browser import chromium
from tests.support.bundles import bundle

TITLE = "Clients"
ROUNDS = 3
CLOCKS = 50
PAGE = machine.BENCH / "clients.jsx"
FROM_THE_PAGE = ("script", "frames", "renders")
# The server takes sixteen requests of a connection at a time, and leaves what is more unread.
UNDER_WAY = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=int, default=1000, help="that the back end follows")
    parser.add_argument("--updates-per-s", type=int, nargs="+", default=[100, 1000])


# --- A page ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Of one page, per second."""

    cpu_ms: float
    page_cpu_ms: float
    script_ms: float
    frames: float
    renders: float


def chromium_pids() -> dict[int, str]:
    """The processes of Chromium below this one, and what each is: a "renderer" has the page."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = {}, [os.getpid()]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            waiting.append(pid)
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            if "chrom" in command.split("\0")[0].split(" ")[0]:
                kind = re.search(r"--type=([\w-]+)", command)
                found[pid] = kind[1] if kind else "browser"
    return found


def cpu_ms() -> dict[str, float]:
    """CPU time of Chromium so far: of all its processes, and of those that have pages."""
    used = {"all": 0.0, "renderer": 0.0}
    for pid, kind in chromium_pids().items():
        of_it = machine.cpu_s(pid) * 1000
        used["all"] += of_it
        if kind == "renderer":
            used["renderer"] += of_it
    return used


def draw(page: Page, way: str, decimals: int, url: str, ids: list[str], options: argparse.Namespace) -> Drawn:
    page.goto(f"{url}/health")  # the server's own, and next to nothing
    page.evaluate(script())
    page.evaluate("show", {"url": url, "sessionIds": ids, "way": way, "decimals": decimals})
    page.wait_for_function("areShown()")
    time.sleep(options.warm_up)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    before, began_s = seen_of(page, devtools), time.monotonic()
    time.sleep(options.seconds)
    took_s, after = time.monotonic() - began_s, seen_of(page, devtools)
    devtools.detach()
    return Drawn(*((after[name] - before[name]) / took_s for name in ("all", "renderer", *FROM_THE_PAGE)))


def seen_of(page: Page, devtools: CDPSession) -> dict[str, float]:
    """All so far: CPU time, that of JavaScript, frames and renders."""
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    (script_s,) = [each["value"] for each in metrics if each["name"] == "ScriptDuration"]
    return cpu_ms() | {"script": script_s * 1000} | page.evaluate("counts")


@functools.cache
def script() -> str:
    return bundle(PAGE, "--minify", '--define:process.env.NODE_ENV="production"')


def pages(options: argparse.Namespace) -> Table:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        url = f"http://127.0.0.1:{start(lockstep(options.checkout), redis, stack)[0]}"
        ids = [running_session(url) for _ in range(CLOCKS)]
        page = stack.enter_context(chromium()).new_page()
        ways = {
            "no clock": ("NoClock", 0),
            "useClock, seconds": ("TextChecked", 0),
            "useClock, tenths": ("TextChecked", 1),
            "without the look, seconds": ("EachFrame", 0),
            "without the look, tenths": ("EachFrame", 1),
        }
        turns = {
            name: functools.partial(draw, page, way, decimals, url, ids, options)
            for name, (way, decimals) in ways.items()
        }
        outcomes = contest.interleaved(turns, options, "a page")
    rows = [
        [
            name,
            f"{median(each.cpu_ms for each in drawn):.0f}",
            spread([each.cpu_ms for each in drawn]),
            f"{median(each.page_cpu_ms for each in drawn):.0f}",
            f"{median(each.script_ms for each in drawn):.0f}",
            f"{median(each.frames for each in drawn):.0f}",
            f"{median(each.renders for each in drawn):,.0f}",
        ]
        for name, drawn in outcomes.items()
    ]
    columns = [
        *("drawn", "CPU ms per s", "rounds", "of the page's process", "of JavaScript"),
        *("frames per s", "renders per s"),
    ]
    return Table(f"{TITLE}: {CLOCKS} clocks in a page", columns, rows)


# --- A back end -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Followed:
    cpu_share: float
    per_s: float
    delays_ms: list[float]
    rss_bytes: int

    @property
    def cpu_us(self) -> float:
        return self.cpu_share / self.per_s * 1e6


class Switching:
    """Switches these sessions in turn, so many in a second, by one WebSocket, until it is stopped."""

    def __init__(self, socket: ClientConnection, ids: list[str], per_s: int) -> None:
        self._socket = socket
        self._is_over = threading.Event()
        self._room = threading.Semaphore(UNDER_WAY)
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(ids, per_s)),
            threading.Thread(target=self._hear),
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, ids: list[str], per_s: int) -> None:
        began_s = time.monotonic()
        count = 0
        while not self._is_over.is_set():
            self._room.acquire()
            command = {
                "type": "COMMAND",
                "id": count,
                "sessionId": ids[count % len(ids)],
                "command": "switch",
            }
            self._socket.send(json.dumps(command))
            count += 1
            time.sleep(max(0.0, began_s + count / per_s - time.monotonic()))

    def _hear(self) -> None:
        for text in self._socket:
            message: dict[str, Any] = json.loads(text)
            if message["type"] == "ERROR":
                self.errors.append(str(message))
            if message["type"] in ("RESULT", "ERROR"):
                self._room.release()

    def stop(self) -> None:
        self._is_over.set()
        self._threads[0].join()
        self._socket.close()
        self._threads[1].join()


def follow(port: int, ids: list[str], per_s: int, options: argparse.Namespace) -> Followed:
    with ExitStack() as stack:
        follower = stack.enter_context(
            subprocess.Popen(
                [
                    *("taskset", "-c", str(machine.LOAD_CORE), machine.PYTHON),
                    *("-m", "bench.follower", f"http://127.0.0.1:{port}"),
                ],
                cwd=machine.ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(follower.terminate)
        say(follower, json.dumps(ids))
        hear(follower)
        url = f"ws://127.0.0.1:{port}/ws"
        socket = stack.enter_context(connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None))
        switching = Switching(socket, ids, per_s)
        stack.callback(switching.stop)
        time.sleep(options.warm_up)
        say(follower, "begin")
        used_s, began_s = machine.cpu_s(follower.pid), time.monotonic()
        time.sleep(options.seconds)
        used_s, took_s = machine.cpu_s(follower.pid) - used_s, time.monotonic() - began_s
        rss_bytes = machine.rss_bytes(follower.pid)
        say(follower, "end")
        delays_ms = json.loads(hear(follower))
        if switching.errors:
            raise RuntimeError(switching.errors[0])
        return Followed(used_s / took_s, len(delays_ms) / took_s, delays_ms, rss_bytes)


def say(program: "subprocess.Popen[str]", line: str) -> None:
    assert program.stdin is not None
    program.stdin.write(f"{line}\n")
    program.stdin.flush()


def hear(program: "subprocess.Popen[str]") -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise RuntimeError("the follower has ended")
    return line


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def back_ends(options: argparse.Namespace) -> Table:
    with ExitStack() as stack:
        redis = stack.enter_context(machine.Redis())
        server = lockstep(options.checkout, f"--max-subscriptions={options.sessions}")
        port = start(server, redis, stack)[0]
        ids = [running_session(f"http://127.0.0.1:{port}") for _ in range(options.sessions)]
        turns: dict[str, Callable[[], Followed]] = {
            f"{per_s:,}": functools.partial(follow, port, ids, per_s, options)
            for per_s in options.updates_per_s
        }
        outcomes = contest.interleaved(turns, options, "a back end")
    rows = [
        [
            name,
            f"{median(each.per_s for each in followed):,.0f}",
            f"{median(each.cpu_share for each in followed):.1%}",
            spread([each.cpu_share for each in followed]),
            f"{median(each.cpu_us for each in followed):.0f}",
            f"{median(percentile(each.delays_ms, 0.5) for each in followed):.1f}",
            f"{median(percentile(each.delays_ms, 0.99) for each in followed):.1f}",
            f"{median(each.rss_bytes for each in followed) / 2**20:.0f}",
        ]
        for name, followed in outcomes.items()
    ]
    columns = [
        *("switches per s", "updates per s", "of a core", "rounds", "CPU µs per update"),
        *("delay p50 ms", "p99 ms", "MB"),
    ]
    return Table(f"{TITLE}: a back end that follows {options.sessions:,} sessions", columns, rows)


def run(options: argparse.Namespace) -> list[Table]:
    return [pages(options), back_ends(options)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
