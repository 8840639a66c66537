"""A link to Redis that is slow, but alive: what is large takes its time, and nobody else waits for it."""

import asyncio
import json
from typing import Any
from uuid import uuid4

from broker.redis import RedisBroker
from lockstep.errors import Close
from lockstep.lifetimes import Lifetimes
from lockstep.live.deadlines import Deadlines
from lockstep.live.hub import Hub
from lockstep.live.peers import Frames, Kind
from lockstep.metrics import Metrics
from lockstep.sessions import Sessions
from lockstep.wire.encodings import JSON
from tests.support.redis_server import Proxy, RedisServer

FAST_ETHERNET_BYTES_PER_S = 100_000_000 / 8
ROOMS = 100
STATE_BYTES = 240_000  # of 1,000 participants


class Counting:
    """A peer that only counts what it is sent."""

    can_send = True
    encoding = JSON

    def __init__(self) -> None:
        self.states = 0

    def send_batch(self, frames: Frames) -> None:
        for kind, frame in frames:
            self.send(frame, kind)

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        self.states += kind is Kind.SYNC

    def close(self, how: Close) -> None:
        raise AssertionError("nothing ends here")


def large_state(session_id: str) -> bytes:
    head: dict[str, Any] = {"session_id": session_id, "epoch": "0lqtw8xc0bbbb", "version": 3}
    head |= {"commit": "c0mmit00", "deadline_ms": None, "filling": "x" * STATE_BYTES}
    return json.dumps(head, separators=(",", ":")).encode()


async def test_large_rooms_are_repaired_over_a_slow_link_and_commands_go_on_meanwhile() -> None:
    redis, prefix = RedisServer(), f"{uuid4()}-"
    async with Proxy(redis.port) as proxy:
        broker = RedisBroker(proxy.url, prefix, "all", allow_eviction=False, metrics=Metrics())
        sessions = Sessions(broker, Lifetimes(), Metrics())
        hub = Hub(broker, sessions, Deadlines(broker, sessions), Metrics())
        await broker.start(hub)
        try:
            peers = [Counting() for _ in range(ROOMS)]
            ids = [str(uuid4()) for _ in peers]
            for session_id, peer in zip(ids, peers, strict=True):
                await hub.join(session_id, peer)
            for session_id in ids:
                redis.client.set(f"{prefix}session:{session_id}", large_state(session_id))
            proxy.bytes_per_s = FAST_ETHERNET_BYTES_PER_S
            hub.on_gap()
            answered = 0
            async with asyncio.timeout(60):
                while not all(peer.states for peer in peers):
                    assert await broker.load([str(uuid4())]) == [None]
                    answered += 1
                    await asyncio.sleep(0)
            # Each slice of the repair may come before a command, but not all of them before one.
            assert answered > ROOMS / 4
            assert [peer.states for peer in peers] == [1] * ROOMS
            assert broker.not_ready() == []
        finally:
            await hub.close()
            await broker.close()
            redis.close()
