"""Redis's own work, on one master and on three: python -m bench.masters

Switches by REST at one process, sixteen at a time, of sessions that lie evenly in all partitions: what one
Redis, a Cluster of one master and a Cluster of three take for each, in CPU time of all the redis-servers
together. What they take without any change, for Redis's own housekeeping, the cluster's gossip, the process's
pings and sweeps, is measured before, and is not in it. Masters have cores of their own where it matters; here
three of them share one with each other and the load, and each finds its caches used by the others. So each is
asked alone for the sessions that are its own, and what it takes counts by its share of the partitions; what
all take that are asked at once is beside it.
"""

import argparse
import functools
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench import contest, machine
from bench.contest import Table, median, number, spread
from bench.contestants import generate, lockstep
from bench.rest import BUDGET_MS, CONNECTIONS, WARM_UP_S, disturbance, post, start
from broker.keys import PARTITIONS, partition_of, slot_of
from tests.support.redis_cluster import RedisCluster

TITLE = "Redis: one master and three"
ROUNDS = 5
ONE, CLUSTER, MASTERS = "one Redis", "a Cluster of 1 master", "a Cluster of 3 masters"
SESSIONS_EACH = 4


class Masters:
    """A Cluster on the core of the load, without replicas: what a replica takes is another figure."""

    def __init__(self, count: int) -> None:
        self._cluster = RedisCluster(masters=count, replicas=0)
        self.url, self.port = self._cluster.url, self._cluster.nodes[0].port
        self.ports = [node.port for node in self._cluster.nodes]
        self.pids = []
        for node in self._cluster.nodes:
            assert node.process is not None
            machine.pin(node.process.pid, machine.LOAD_CORE)
            self.pids.append(node.process.pid)

    def owners(self) -> list[int]:
        """Which master each partition has."""
        nodes = self._cluster.nodes
        return [nodes.index(self._cluster.master_of(slot_of(each))) for each in range(PARTITIONS)]

    def __enter__(self) -> "Masters":
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()


@dataclass(frozen=True)
class Period:
    """CPU time of a change in microseconds, at the server and at each redis-server, beyond that at rest."""

    server_us: float
    redis_us: tuple[float, ...]
    per_s: float
    others_share: float


@dataclass(frozen=True)
class Turn:
    """What changes take of masters that are asked one by one, and of all that are asked at once."""

    alone: tuple[Period, ...]
    at_once: Period
    partitions: tuple[int, ...]
    # Of a core, all redis-servers together.
    at_rest: float
    # Those that the script calls included.
    commands: float

    @property
    def master_us(self) -> tuple[float, ...]:
        """What each master takes for a change of its own, whatever the others do for it."""
        return tuple(sum(period.redis_us) for period in self.alone)

    @property
    def redis_us(self) -> float:
        pairs = zip(self.master_us, self.partitions, strict=True)
        return sum(each * partitions for each, partitions in pairs) / PARTITIONS


def even_sessions(url: str) -> list[str]:
    """As many running sessions in each partition."""
    missing = dict.fromkeys(range(PARTITIONS), SESSIONS_EACH)
    ids = []
    while any(missing.values()):
        session_id = str(uuid.uuid4())
        if not missing[partition_of(session_id)]:
            continue
        missing[partition_of(session_id)] -= 1
        banks = [{"participant_id": str(uuid.uuid4()), "total_time_ms": BUDGET_MS} for _ in range(2)]
        spec = {"session_id": session_id, "sync_mode": "per_participant", "participants": banks}
        post(f"{url}/v1/sessions", spec)
        post(f"{url}/v1/sessions/{session_id}/start")
        ids.append(session_id)
    return ids


def calls_of(port: int) -> dict[str, int]:
    """How often each command was called."""
    with redis.Redis(port=port) as client:
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


def at_rest(pids: list[int], seconds: float) -> list[float]:
    """What these take of a core when nothing is asked of them."""
    before_s, began_s = [machine.cpu_s(each) for each in pids], time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    return [(machine.cpu_s(each) - before) / took_s for each, before in zip(pids, before_s, strict=True)]


def turn(masters: int | None, options: argparse.Namespace) -> Turn:
    """With None: a Redis that is no Cluster."""
    with ExitStack() as stack:
        store: Any = machine.Redis() if masters is None else Masters(masters)
        stack.enter_context(store)
        pids = [store.pid] if masters is None else store.pids
        ports = [store.port] if masters is None else store.ports
        owners = [0] * PARTITIONS if masters is None else store.owners()
        file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-"))) / "paths"
        port, pid = start(lockstep(options.checkout), store, stack)
        ids = even_sessions(f"http://127.0.0.1:{port}")
        rest_shares = at_rest([pid, *pids], options.masters_seconds)

        def period(sessions: list[str]) -> Period:
            file.write_text("".join(f"/v1/sessions/{each}/switch\n" for each in sessions))
            seen, busy_s = generate(
                [
                    *("taskset", "-c", str(machine.LOAD_CORE), str(machine.compiled("rest_load"))),
                    *(f"--port={port}", f"--paths={file}", f"--connections={options.connections}"),
                    f"--pids={','.join(map(str, [pid, *pids]))}",
                    *(f"--warm-up={WARM_UP_S}", f"--seconds={options.masters_seconds}"),
                ]
            )
            if set(seen["statuses"]) != {"200"}:
                raise RuntimeError(f"answers: {seen['statuses']}")
            wall_s, changes = seen["wall_s"], seen["requests"]
            server_us, *redis_us = (
                1e6 * (used_s - share * wall_s) / changes
                for used_s, share in zip(seen["cpu_s"], rest_shares, strict=True)
            )
            others_share = max(0.0, (busy_s - seen["cpu_s"][0]) / wall_s)
            return Period(server_us, tuple(redis_us), changes / wall_s, others_share)

        for each in ports:
            with redis.Redis(port=each) as client:
                client.config_resetstat()
        at_once = period(ids)
        stats = [calls_of(each) for each in ports]
        apart = [
            [each for each in ids if owners[partition_of(each)] == master] for master in range(len(pids))
        ]
        alone = (at_once,) if len(pids) == 1 else tuple(map(period, apart))
    return Turn(
        alone=alone,
        at_once=at_once,
        partitions=tuple(owners.count(master) for master in range(len(pids))),
        at_rest=sum(rest_shares[1:]),
        commands=sum(sum(each.values()) for each in stats) / sum(each["evalsha"] for each in stats),
    )


def of_each(turns: list[Turn]) -> str:
    """What each master takes for a change of its own, and how many of the partitions it has."""
    found = []
    for master, partitions in enumerate(turns[0].partitions):
        took_us = median(each.master_us[master] for each in turns)
        found.append(f"{number(took_us)} ({partitions / PARTITIONS:.0%})")
    return ", ".join(found)


def changes(options: argparse.Namespace) -> Table:
    turns: dict[str, Callable[[], Turn]] = {
        name: functools.partial(turn, masters, options)
        for name, masters in {ONE: None, CLUSTER: 1, MASTERS: 3}.items()
    }
    outcomes = contest.interleaved(turns, options, TITLE)

    def alone_us(each: Turn) -> float:
        return each.redis_us

    def at_once_us(each: Turn) -> float:
        return sum(each.at_once.redis_us)

    def server_us(each: Turn) -> float:
        return each.at_once.server_us

    rows = [
        [
            name,
            number(median(map(alone_us, done))),
            spread([*map(alone_us, done)]),
            contest.paired_text(outcomes, name, ONE, alone_us),
            of_each(done),
            number(median(map(at_once_us, done))),
            f"{median(each.commands for each in done):.1f}",
            f"{median(each.at_rest for each in done):.2%}",
            number(median(map(server_us, done))),
            contest.paired_text(outcomes, name, ONE, server_us),
        ]
        for name, done in outcomes.items()
    ]
    columns = [
        *("", "Redis us per change", "rounds", "to one Redis", "each master (its partitions)"),
        *("all at once, on one core", "commands per change", "at rest", "server us", "to one Redis"),
    ]
    figure = "Redis of 3 masters together, CPU us per change (less is better)"
    notes = [
        note
        for name, done in outcomes.items()
        for note in disturbance(name, [each.at_once.others_share for each in done])
    ]
    ratios = contest.ratios(figure, outcomes, MASTERS, [ONE], alone_us)
    return Table(TITLE, columns, rows, notes=notes, ratios=ratios)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--masters-seconds", type=float, default=3.0, help="of changes")


def run(options: argparse.Namespace) -> list[Table]:
    return [changes(options)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
