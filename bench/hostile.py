"""A thousand hostile clients of a kind beside honest ones: python -m bench.hostile

A session with 200 clients is changed and sent messages at a steady rate; then a thousand clients of each
kind, of those who send without end a hundred, come to the same session, do what no honest client does, and
stay for the seconds. The time is from the publication, or from the request of the change, to the arrival at
each honest client.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from redis.asyncio import Redis

from bench import contest, machine
from bench.connect import Others, Server, on_the_loads_core, start
from bench.contest import Table, median
from bench.contestants import lockstep
from bench.delivery import percentile
from bench.idle import Clients
from bench.observed import lags
from bench.rest import disturbance, running_session
from bench.slow import Sent, change, publish, times
from tests.support.hostiles import KINDS, crowd

TITLE = "Hostile clients"
ROUNDS = 1
HONEST_CLIENTS = 200
QUIET = "nobody"


async def play(
    server: Server, redis_url: str, session_id: str, sent: Sent, options: argparse.Namespace
) -> None:
    redis = Redis.from_url(redis_url)
    load = [
        asyncio.create_task(publish(redis, session_id, sent, options.message_rate, 1024)),
        asyncio.create_task(change(server, session_id, sent, options.switch_rate)),
    ]
    await asyncio.sleep(options.warm_up)
    for period, name in enumerate((QUIET, *KINDS)):
        sent.period = period
        if name == QUIET:
            await asyncio.sleep(options.seconds)
        else:
            command = (
                *(sys.executable, "-m", "tests.support.hostiles", str(server.port), name),
                *(str(crowd(name, options.hostile)), str(options.seconds), session_id),
            )
            attack = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
            if await attack.wait():
                raise RuntimeError(f"the attack has failed: {name}")
        lags(server.lag_file, server.pid)  # ends the period
    sent.is_over = True
    await asyncio.gather(*load)
    await asyncio.sleep(1)  # what is still on its way
    await redis.aclose()


class Outcome:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        with on_the_loads_core(), ExitStack() as stack:
            redis = stack.enter_context(machine.Redis())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
            server = start(stack, redis, options, machine.SERVER_CORE)
            session_id = running_session(server.url)
            record = folder / "record"
            honest = stack.enter_context(
                Clients(
                    lockstep(options.checkout),
                    server.port,
                    HONEST_CLIENTS,
                    [session_id],
                    f"--record={record}",
                )
            )
            honest.wait()
            sent, others = Sent(), Others(server)
            asyncio.run(play(server, redis.url, session_id, sent, options))
            self.others_share = others.share()
            seen = honest.end()
            if seen["closed"]:
                raise RuntimeError(f"{seen['closed']} honest clients were closed: {seen['close_code']}")
            self.took_ms, self.missing = times(record, sent, HONEST_CLIENTS)
            self.lag_ms = lags(server.lag_file)[1:]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hostile", type=int, default=1000, help="clients of each kind")
    parser.add_argument("--message-rate", type=float, default=20, help="messages per second")
    parser.add_argument("--switch-rate", type=float, default=20, help="changes per second")


def run(options: argparse.Namespace) -> list[Table]:
    # In the honest ones' session, and on a machine that shall not have the limit as its protection.
    options = argparse.Namespace(**vars(options) | {"observe": True})
    runs = [Outcome(options) for _ in range(options.rounds)]

    def row(period: int, name: str) -> list[str]:
        cells = [name]
        for kind in ("messages", "changes"):
            for share in (0.5, 0.99):
                cells.append(f"{median(percentile(each.took_ms[kind, period], share) for each in runs):.2f}")
        return [*cells, f"{median(each.lag_ms[period]['p99_ms'] for each in runs):.1f}"]

    notes = [f"{sum(each.missing for each in runs)} messages and changes did not arrive."]
    notes += disturbance("Lockstep", [each.others_share for each in runs])
    return [
        Table(
            TITLE,
            ["beside", "messages p50 ms", "p99 ms", "changes p50 ms", "p99 ms", "loop lag p99 ms"],
            [row(period, name) for period, name in enumerate((QUIET, *KINDS))],
            f"{HONEST_CLIENTS} honest clients of one session, {options.message_rate:g} messages of 1 KB and "
            f"{options.switch_rate:g} changes a second; {options.hostile:,} hostile ones at a time, "
            "a tenth of those who send without end. Medians of the rounds.",
            notes,
        )
    ]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
