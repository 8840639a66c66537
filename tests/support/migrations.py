"""Sessions that are moved: what there is at one end, and whether the other end has the same."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from broker import open_broker
from broker.keys import PARTITIONS, Keys, partition_of
from lockstep.config import Settings
from lockstep.contract import Broker
from lockstep.metrics import Metrics
from tests.support.brokers import started
from tests.support.processes import ROOT
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import Proxy, RedisServer

# Between the looks at both ends.
TAKES_AT_MOST_MS = 20_000
AnyRedis = RedisServer | RedisCluster


class End:
    """FROM or TO, with the raw look that no broker gives."""

    def __init__(self, server: AnyRedis, prefix: str) -> None:
        self.server = server
        self.prefix = prefix
        self.client: Any = server.client

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def is_cluster(self) -> bool:
        return isinstance(self.server, RedisCluster)

    def broker(self) -> Broker:
        return open_broker(Settings(broker=self.url, prefix=self.prefix), Metrics())

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Broker]:
        """A broker of a process that ends with it, and of which no sign of life is left."""
        broker = self.broker()
        async with started(broker):
            yield broker
        self.forget_processes()

    def keys(self, session_id: str) -> Keys:
        return Keys(self.prefix, partition_of(session_id) if self.is_cluster else None)

    @property
    def first_keys(self) -> Keys:
        return Keys(self.prefix, 0 if self.is_cluster else None)

    def all_keys(self) -> list[Keys]:
        return [Keys(self.prefix, p) for p in range(PARTITIONS)] if self.is_cluster else [Keys(self.prefix)]

    def forget_processes(self) -> None:
        """As when 15 s have passed since they ended."""
        for keys in self.all_keys():
            for key in self.client.scan_iter(keys.life_sign("*").replace("{", "[{]")):
                self.client.delete(key)

    def look(self, session_id: str) -> tuple[Any, ...]:
        """All that is stored of a session, and for how many ms more."""
        keys, client = self.keys(session_id), self.client
        state, events = keys.state(session_id), keys.events(session_id)
        return (
            client.get(state),
            client.xrange(events),
            client.zscore(keys.sessions, session_id),
            client.zscore(keys.deadlines, session_id),
            client.pttl(state),
            client.pttl(events),
        )

    def routing(self) -> bytes | None:
        said: bytes | None = self.client.get(self.first_keys.routing)
        return said


def assert_same(source: End, target: End, session_ids: Sequence[str]) -> None:
    """Both have the same, for the same time."""
    for session_id in session_ids:
        *theirs, state_ms, events_ms = source.look(session_id)
        *ours, our_state_ms, our_events_ms = target.look(session_id)
        assert theirs[0] is not None
        assert ours == theirs
        assert abs(our_state_ms - state_ms) < TAKES_AT_MOST_MS
        assert abs(our_events_ms - events_ms) < TAKES_AT_MOST_MS


async def migrate_command(*args: str) -> "asyncio.subprocess.Process":
    """`lockstep migrate` as a process of its own, under way."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "server.py", "migrate", *args),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def slowed(end: End) -> AsyncIterator[str]:
    """A URL by which it takes a while to get there, so that a move can be interrupted."""
    if isinstance(end.server, RedisCluster):
        yield end.url
        return
    async with Proxy(end.server.port) as proxy:
        proxy.delay_s = 0.002
        yield proxy.url
