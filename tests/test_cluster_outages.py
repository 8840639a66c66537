"""A part of a Redis Cluster is away: sessions of the others go on, and what comes back has lost nothing."""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import ujson

from broker.keys import Keys, partition_of, slot_of
from lockstep.rules.state_json import iso
from tests.support.faults import REFUSED_WITHIN_S, scene
from tests.support.load import chess, data, eventually, rest
from tests.support.processes import ServerProcess, running
from tests.support.redis_cluster import ClusterNode, RedisCluster

OPTIONS = ("--appendonly", "yes", "--appendfsync", "always", "--cluster-require-full-coverage", "no")


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster(*OPTIONS, can_cut=True)
    yield cluster
    cluster.close()


def slot_of_session(session_id: str) -> int:
    return slot_of(partition_of(session_id))


def master_of(cluster: RedisCluster, session_id: str) -> ClusterNode:
    return cluster.master_of(slot_of_session(session_id))


async def created_at(server: ServerProcess, cluster: RedisCluster, master: ClusterNode, **spec: Any) -> str:
    """A running session that this master has: a game, unless `spec` says another thing."""
    spec = spec or chess()
    while master_of(cluster, spec.setdefault("session_id", str(uuid.uuid4()))) is not master:
        del spec["session_id"]
    data(await rest(f"{server.url}/v1/sessions", spec))
    data(await rest(f"{server.url}/v1/sessions/{spec['session_id']}/start"))
    return str(spec["session_id"])


@dataclass
class Switches:
    """Switches of one session, one after the other, and what became of each."""

    url: str
    statuses: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    stopped: bool = False

    async def run(self) -> None:
        while not self.stopped:
            began_s = time.monotonic()
            answer = await rest(f"{self.url}/switch")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            self.statuses[answer.code] += 1
            if answer.code != 200:
                self.outcomes[ujson.loads(answer.body)["error"]["details"]["outcome"]] += 1
            await asyncio.sleep(0.02)

    async def more(self, status: int, count: int = 5) -> None:
        wanted = self.statuses[status] + count

        async def complaint() -> str:
            return "" if self.statuses[status] >= wanted else f"it is answered {dict(self.statuses)}"

        await eventually(complaint, 30, f"no more switches are answered {status}")


@contextlib.asynccontextmanager
async def switching(server: ServerProcess, *session_ids: str) -> AsyncIterator[list[Switches]]:
    switches = [Switches(f"{server.url}/v1/sessions/{each}") for each in session_ids]
    tasks = [asyncio.create_task(each.run()) for each in switches]
    try:
        yield switches
        for each in switches:
            each.stopped = True
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "frozen", "cut off"])
async def test_sessions_of_the_other_masters_go_on_while_one_is_away(cluster: RedisCluster, how: str) -> None:
    masters = cluster.masters()
    with running(await asyncio.to_thread(ServerProcess, f"--broker={cluster.url}")) as server:
        ids = [await created_at(server, cluster, master) for master in masters]
        async with switching(server, *ids) as [lost, *others]:
            for each in (lost, *others):
                await each.more(200)
            master = masters[0]
            {"killed": master.kill, "frozen": master.freeze, "cut off": partial(cluster.cut_off, master)}[
                how
            ]()
            await lost.more(503, 1)
            await asyncio.to_thread(cluster.replacement, master, slot_of_session(ids[0]))
            await lost.more(200)
        for each in others:
            assert set(each.statuses) == {200}
        assert set(lost.statuses) == {200, 503}
        assert lost.slowest_s < REFUSED_WITHIN_S
        if how == "cut off":
            await asyncio.to_thread(cluster.reconnect)


@pytest.mark.long
async def test_a_slot_that_stays_half_moved_refuses_its_sessions_and_loses_nothing(
    cluster: RedisCluster,
) -> None:
    with running(await asyncio.to_thread(ServerProcess, f"--broker={cluster.url}")) as server:
        source = cluster.masters()[0]
        session_id = await created_at(server, cluster, source)
        async with switching(server, session_id) as [switches]:
            await switches.more(200)
            move = await asyncio.to_thread(
                cluster.move, slot_of_session(session_id), cluster.other_master(source)
            )
            # The state is over, and the events are not.
            state = Keys("", partition_of(session_id)).state(session_id)
            await asyncio.to_thread(move.move_these, [state.encode()])
            await switches.more(503, 2)
            assert set(switches.outcomes) == {"not_applied"}
            await asyncio.to_thread(move.finish)
            await switches.more(200)
        state = data(await rest(f"{server.url}/v1/sessions/{session_id}", method="GET"))
        # Created and started, and each change that was answered 200; none that was refused.
        assert state["version"] == 2 + switches.statuses[200]


@pytest.mark.long
async def test_all_nodes_that_are_killed_and_come_back_have_lost_nothing(cluster: RedisCluster) -> None:
    async with scene(cluster.url, 2, sessions=8, clients=40) as play:
        for node in cluster.nodes:
            node.kill()
        await asyncio.sleep(1)
        for node in cluster.nodes:
            node.start(wait=False)
        await play.served()
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        play.assert_refused_in_time()


@pytest.mark.long
async def test_nodes_that_are_renewed_one_by_one_lose_nothing(cluster: RedisCluster) -> None:
    def renew() -> None:
        for node in cluster.nodes:
            if node in cluster.masters():
                cluster.failover(node)
            node.restart()
            cluster.wait_until_whole()

    async with scene(cluster.url, 2, sessions=8, clients=40) as play:
        await asyncio.to_thread(renew)
        await play.served()
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        play.assert_refused_in_time()


@pytest.mark.long
async def test_a_clock_that_ran_out_while_its_master_was_away_is_dated_right(cluster: RedisCluster) -> None:
    with running(await asyncio.to_thread(ServerProcess, f"--broker={cluster.url}")) as server:
        master, timer = cluster.masters()[1], {"sync_mode": "global", "total_time_ms": 3_000}
        session_id = await created_at(server, cluster, master, **timer)
        path = f"{server.url}/v1/sessions/{session_id}"
        deadline_ms = data(await rest(path, method="GET"))["deadline_ms"]
        # Its replica has to have it first: replication is asynchronous.
        (replica,) = cluster.replicas_of(master)

        async def unreplicated() -> str:
            offsets = [each.info("replication")["master_repl_offset"] for each in (master, replica)]
            return "" if offsets[0] == offsets[1] else f"the replica is behind: {offsets}"

        await eventually(unreplicated, 5, "it is not replicated")
        master.kill()

        async def complaint() -> str:
            answer = await rest(path, method="GET")
            if answer.code != 200:
                return str(answer.code)
            status = data(answer)["status"]
            return "" if status == "expired" else str(status)

        await eventually(complaint, 30, "it has not expired")
        events = data(await rest(f"{path}/events", method="GET"))["events"]
        assert events[-1]["type"] == "expired", events[-1]
        assert events[-1]["at"] == iso(deadline_ms)
