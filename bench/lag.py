"""How late the event loop is while it works: python -m bench.lag

The scenarios of the other pages once more, each with a watch on the loop of Lockstep's process: how much
later than due it gets to something new. The scenarios that are about delay have figures of their own.
"""

import argparse
import dataclasses
import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from bench import contest, rest
from bench.contest import Table, median
from bench.contestants import load, lockstep
from bench.observed import lags, observed

TITLE = "Loop lag"
ROUNDS = 2


def watched(folder: Path, options: argparse.Namespace, *how: str, **more: Any) -> dict[str, float]:
    """The lag in the measured period, in ms, of Lockstep under such a load."""
    contestant, file = lockstep(options.checkout), folder / str(uuid.uuid4())
    contestant = dataclasses.replace(
        contestant,
        command=partial(lambda command, *where: observed(command(*where), file), contestant.command),
    )
    if more:
        period = {"seconds": options.seconds, "warm_up": options.warm_up}
        # What the connecting took is another period.
        load(contestant, *how, **more, **period, on_measuring=partial(lags, file))
    else:
        rest.turn(contestant, argparse.Namespace(**vars(options) | {"connections": rest.CONNECTIONS}))
    return lags(file)[-1]


def run(options: argparse.Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        lag = partial(watched, Path(folder), options)
        done = contest.interleaved(
            {
                "1 KB to 1,000 clients, 1 in flight": partial(lag, clients=1000),
                "1 KB to 5,000 clients, 1 in flight": partial(lag, clients=5000),
                "1 KB to 5,000 clients, 8 in flight": partial(lag, "--in-flight=8", clients=5000),
                "5,000 clients in 2,500 sessions, 8 in flight": partial(
                    lag, "--in-flight=8", clients=5000, rooms=2500
                ),
                "1,000 messages a second to 10 clients": partial(lag, "--rate=1000", clients=10),
                "switches by REST, 16 at a time": lag,
            },
            options,
            TITLE,
        )
    rows = [
        [name, *(f"{median(each[key] for each in rounds):.1f}" for key in ("p50_ms", "p99_ms", "max_ms"))]
        for name, rounds in done.items()
    ]
    text = "Medians of the rounds. The watch itself takes some of the core."
    return [Table(TITLE, ["", "p50 ms", "p99 ms", "longest ms"], rows, text)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
