"""What a doctor finds at one Redis: each finding is ok, or says what to do."""

import asyncio
import time
import uuid
from typing import Any

from broker.checks import OLDEST_REDIS, info_fields, version_numbers
from broker.endpoint import Endpoint
from broker.keys import Channels
from broker.link import Link
from broker.resp import RespConnection
from lockstep.config import Settings
from lockstep.metrics import Metrics

Finding = tuple[bool, str]
ROUND_TRIPS = 100
SLOW_MS = 2.0
CLOCK_LOOKS = 9
MAX_CLOCK_OFFSET_MS = 1000
PROBE_TIMEOUT_S = 2.0
# Redis cuts off a subscriber for which more than this is waiting; its own default for pubsub.
MIN_BUFFER_BYTES = 32 * 1_048_576


async def info(link: Link, section: str) -> dict[str, str]:
    return info_fields(await link.call("INFO", section))


async def config(link: Link, name: str) -> str | None:
    reply = await link.call("CONFIG", "GET", name)
    return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else None


async def version(link: Link, oldest: tuple[int, int] = OLDEST_REDIS) -> Finding:
    version = (await info(link, "server")).get("redis_version")
    if version is None:
        return True, "Redis version: not shown to this user (INFO)"
    if version_numbers(version) >= oldest:
        return True, f"Redis version: {version}"
    return False, f"Redis version: {version}; {oldest[0]}.{oldest[1]} or newer is needed"


async def eviction(link: Link, settings: Settings) -> Finding:
    policy = (await info(link, "memory")).get("maxmemory_policy")
    if policy is None:
        return True, "eviction: not shown to this user (INFO)"
    if policy == "noeviction" or settings.allow_eviction:
        return True, f"eviction: {policy}"
    return False, f"eviction: {policy}; sessions could vanish: CONFIG SET maxmemory-policy noeviction"


async def buffers(link: Link) -> Finding:
    limits = await config(link, "client-output-buffer-limit")
    if limits is None:
        return True, "output buffers: not shown by this Redis"
    words = limits.split()
    hard = int(words[words.index("pubsub") + 1]) if "pubsub" in words else 0
    if not hard or hard >= MIN_BUFFER_BYTES:
        return True, f"output buffers: pubsub may have {hard or 'any number of'} bytes waiting"
    return False, (
        f"output buffers: pubsub is cut off at {hard} bytes: "
        "CONFIG SET client-output-buffer-limit 'pubsub 33554432 8388608 60'"
    )


async def persistence(link: Link) -> Finding:
    is_kept = (await info(link, "persistence")).get("aof_enabled")
    if is_kept is None:
        return True, "persistence: not shown to this user (INFO)"
    if is_kept == "1":
        return True, "persistence: append-only file"
    return False, "persistence: no append-only file; a restart loses changes: CONFIG SET appendonly yes"


async def round_trip(link: Link) -> Finding:
    times = []
    for _ in range(ROUND_TRIPS):
        began_s = time.perf_counter()
        await link.call("PING")
        times.append((time.perf_counter() - began_s) * 1000)
    median = sorted(times)[ROUND_TRIPS // 2]
    text = f"round trip: {median:.2f} ms in the median, {max(times):.2f} ms at most"
    if median < SLOW_MS:
        return True, text
    return False, f"{text}; put Redis nearer, or find what slows it"


async def clock(link: Link) -> Finding:
    offset_ms = await clock_offset_ms(link)
    text = f"clock: Redis's differs from this machine's by {offset_ms:.0f} ms"
    if abs(offset_ms) <= MAX_CLOCK_OFFSET_MS:
        return True, text
    return False, f"{text}; sessions follow Redis's: let NTP set both"


async def clock_offset_ms(link: Link) -> float:
    """By how much Redis's clock is ahead of this machine's, by the fastest of some answers."""
    fastest_s, offset_ms = float("inf"), 0.0
    for _ in range(CLOCK_LOOKS):
        began_s, began_at_s = time.perf_counter(), time.time()
        reply: Any = await link.call("TIME")
        took_s = time.perf_counter() - began_s
        if took_s < fastest_s:
            fastest_s = took_s
            offset_ms = (int(reply[0]) + int(reply[1]) / 1e6 - began_at_s - took_s / 2) * 1000
    return offset_ms


async def probe(link: Link, endpoint: Endpoint, channels: Channels) -> Finding:
    """Does a publication come back?"""
    channel = channels.probe(str(uuid.uuid4()))
    loop = asyncio.get_running_loop()
    subscribed, received = loop.create_future(), loop.create_future()

    def on_push(push: list[Any]) -> None:
        arrived = received if push[0].endswith(b"message") else subscribed
        if not arrived.done():
            arrived.set_result(None)

    async def subscribe(connection: RespConnection) -> None:
        connection.on_push = on_push
        connection.send("SSUBSCRIBE" if channels.is_sharded else "SUBSCRIBE", channel)

    subscriber = Link(endpoint, "updates", subscribe, Metrics())
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await subscriber.start()
            await subscribed
            began_s = time.perf_counter()
            await link.call(channels.publish, channel, "")
            await received
        took_ms = (time.perf_counter() - began_s) * 1000
        return True, f"Pub/Sub: a publication came back after {took_ms:.2f} ms"
    except TimeoutError:
        if not subscriber.is_up:
            return False, (
                "Pub/Sub: there is no second connection to Redis, and each process needs two; "
                "raise its maxclients, or find who holds so many (CLIENT LIST)"
            )
        return False, (
            f"Pub/Sub: a publication did not come back; may this user {channels.publish} and subscribe (ACL)?"
        )
    finally:
        await subscriber.close()
