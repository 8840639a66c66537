"""Lockstep with a watch on its event loop: python -m bench.observed FILE [--SETTING=VALUE ...]

A task sleeps 5 ms at a time in the server's own loop and notes by how much each sleep was too long: as late
as that, a message or a request would have been looked at. FILE gets a line of JSON at each SIGUSR1, for the
period since the last one, and at the end. The watch takes CPU time itself, so speed is measured without it.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTERVAL_S = 0.005


class LagWatch:
    """How late the loop of the running process is; it never holds more than one period."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._late_s: list[float] = []

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.report)
        try:
            while True:
                due_s = time.perf_counter() + INTERVAL_S
                await asyncio.sleep(INTERVAL_S)
                self._late_s.append(max(0.0, time.perf_counter() - due_s))
        finally:
            self.report()

    def report(self) -> None:
        ordered = sorted(self._late_s)
        self._late_s.clear()
        if not ordered:
            return
        line = {
            "samples": len(ordered),
            "p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 3),
            "max_ms": round(ordered[-1] * 1000, 3),
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def lags(file: Path, pid: int | None = None) -> list[dict[str, float]]:
    """The periods so far; with the pid, the one that ends now is among them."""
    before = len(_lines(file))
    if pid is not None:
        os.kill(pid, signal.SIGUSR1)
        end_s = time.monotonic() + 5
        while len(_lines(file)) == before and time.monotonic() < end_s:
            time.sleep(0.01)
    return [json.loads(line) for line in _lines(file)]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def observed(command: Sequence[str | Path], file: Path) -> list[str | Path]:
    """The command that starts the same server under observation, in the same folder."""
    python, program, *settings = command
    assert program == "server.py", program
    return [python, Path(__file__), file, *settings]


def main(file: Path, settings: Sequence[str]) -> None:
    # The server is that of the folder it is started from, which need not be the one this file is in.
    sys.path[0] = os.getcwd()
    import server

    serve = server.serve

    async def watched(*arguments: Any, **more: Any) -> None:
        watch = asyncio.create_task(LagWatch(file).run())
        try:
            await serve(*arguments, **more)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    server.serve = watched
    server.main(settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
