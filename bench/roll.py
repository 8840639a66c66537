"""Processes renewed, and one killed, under load: python -m bench.roll

Redis, four processes and nginx as `make up` starts them; 200 clients and 30 callers that switch. The goal is
that no request fails, and that who is cut off has the latest state again after 1 s at p95 and 3 s at most.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.delivery import machine, percentile
from tests.support.load import eventually
from tests.support.stack import Stack, loaded

CLIENTS = 200
CALLERS = 30


async def rolled(stack: Stack) -> None:
    assert (await stack.roll()).returncode == 0


async def killed(stack: Stack) -> None:
    os.kill(stack.pids()[stack.names[0]], signal.SIGKILL)
    await eventually(stack.all_ready, 20, "supervisord does not start it again")


async def measure(stack: Stack, name: str, fault: Callable[[Stack], Awaitable[None]]) -> None:
    async with loaded(stack, CLIENTS, CALLERS) as load:
        await fault(stack)
        await load.some_answers()
    await load.check_counted_once()
    failed = load.statuses.total() - load.statuses[200]
    away = sorted(load.away_s)
    print(
        f"{name}: {failed} of {load.statuses.total()} requests failed; {len(away)} times a client was away, "
        f"p50 {percentile(away, 0.5):.2f}, p95 {percentile(away, 0.95):.2f}, at most {away[-1]:.2f} s"
    )


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        stack = Stack(Path(folder))
        started = stack.up()
        assert started.returncode == 0, started.stderr
        try:
            for name, fault in (("all four renewed, one by one", rolled), ("one killed", killed)):
                asyncio.run(measure(stack, name, fault))
        finally:
            stack.command("down")


if __name__ == "__main__":
    main()
