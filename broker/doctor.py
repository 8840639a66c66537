"""A look at the Redis that production needs: each finding is ok, or says what to do."""

import asyncio
import time
import uuid
from typing import Any

from broker import rights
from broker.checks import OLDEST_REDIS, info_fields, version_numbers, wrong_mode
from broker.endpoint import parse
from broker.keys import Channels, Keys
from broker.link import Link, Refused
from broker.resp import LinkDown, RespConnection
from lockstep.config import Settings
from lockstep.metrics import Metrics

Finding = tuple[bool, str]
ROUND_TRIPS = 100
SLOW_MS = 2.0
MAX_CLOCK_OFFSET_MS = 1000
START_TIMEOUT_S = 3.0
PROBE_TIMEOUT_S = 2.0
# Redis cuts off a subscriber for which more than this is waiting; its own default for pubsub.
MIN_BUFFER_BYTES = 32 * 1_048_576


async def examine_redis(settings: Settings) -> list[Finding]:
    """Look at the Redis that the settings name."""

    async def nothing(connection: RespConnection) -> None:
        pass

    link = Link(parse(settings.broker), "commands", nothing, Metrics())
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await link.start()
        # Then the rest is of no use, and may not even be answered.
        if why := wrong_mode(await _info(link, "server"), await _info(link, "cluster")):
            return [(False, f"Redis: {why}")]
        return [
            await _version(link),
            await _eviction(link, settings),
            await _rights(link, settings),
            await _buffers(link),
            await _persistence(link),
            await _round_trip(link),
            await _clock(link),
            await _probe(link, settings),
        ]
    except TimeoutError:
        return [(False, "Redis: nobody answers; is it running, and is the address right?")]
    except (Refused, LinkDown) as error:
        return [(False, f"Redis: {error}; is it running, and are address and password right?")]
    finally:
        await link.close()


async def _info(link: Link, section: str) -> dict[str, str]:
    return info_fields(await link.call("INFO", section))


async def _config(link: Link, name: str) -> str | None:
    reply = await link.call("CONFIG", "GET", name)
    return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else None


async def _version(link: Link) -> Finding:
    version = (await _info(link, "server")).get("redis_version")
    if version is None:
        return True, "Redis version: not shown to this user (INFO)"
    if version_numbers(version) >= OLDEST_REDIS:
        return True, f"Redis version: {version}"
    return False, f"Redis version: {version}; 6.2 or newer is needed"


async def _eviction(link: Link, settings: Settings) -> Finding:
    policy = (await _info(link, "memory")).get("maxmemory_policy")
    if policy is None:
        return True, "eviction: not shown to this user (INFO)"
    if policy == "noeviction" or settings.allow_eviction:
        return True, f"eviction: {policy}"
    return False, f"eviction: {policy}; sessions could vanish: CONFIG SET maxmemory-policy noeviction"


async def _rights(link: Link, settings: Settings) -> Finding:
    user = parse(settings.broker).username or "default"
    lacked = await rights.missing(link.call, user, settings.prefix, settings.routing)
    found = lacked or await rights.in_the_way(link.call, Keys(settings.prefix))
    return found is None, f"rights and keys: {found or 'all that is needed'}"


async def _buffers(link: Link) -> Finding:
    limits = await _config(link, "client-output-buffer-limit")
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


async def _persistence(link: Link) -> Finding:
    is_kept = (await _info(link, "persistence")).get("aof_enabled")
    if is_kept is None:
        return True, "persistence: not shown to this user (INFO)"
    if is_kept == "1":
        return True, "persistence: append-only file"
    return False, "persistence: no append-only file; a restart loses changes: CONFIG SET appendonly yes"


async def _round_trip(link: Link) -> Finding:
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


async def _clock(link: Link) -> Finding:
    reply: Any = await link.call("TIME")
    offset_ms = (int(reply[0]) + int(reply[1]) / 1e6 - time.time()) * 1000
    text = f"clock: Redis's differs from this machine's by {offset_ms:.0f} ms"
    if abs(offset_ms) <= MAX_CLOCK_OFFSET_MS:
        return True, text
    return False, f"{text}; sessions follow Redis's: let NTP set both"


async def _probe(link: Link, settings: Settings) -> Finding:
    """Does a publication come back?"""
    channel = Channels(settings.routing, settings.prefix).probe(str(uuid.uuid4()))
    loop = asyncio.get_running_loop()
    subscribed, received = loop.create_future(), loop.create_future()

    def on_push(push: list[Any]) -> None:
        arrived = received if push[0] == b"message" else subscribed
        if not arrived.done():
            arrived.set_result(None)

    async def subscribe(connection: RespConnection) -> None:
        connection.on_push = on_push
        connection.send("SUBSCRIBE", channel)

    subscriber = Link(parse(settings.broker), "updates", subscribe, Metrics())
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await subscriber.start()
            await subscribed
            began_s = time.perf_counter()
            await link.call("PUBLISH", channel, "")
            await received
        took_ms = (time.perf_counter() - began_s) * 1000
        return True, f"Pub/Sub: a publication came back after {took_ms:.2f} ms"
    except TimeoutError:
        if not subscriber.is_up:
            return False, (
                "Pub/Sub: there is no second connection to Redis, and each process needs two; "
                "raise its maxclients, or find who holds so many (CLIENT LIST)"
            )
        return False, "Pub/Sub: a publication did not come back; may this user SUBSCRIBE and PUBLISH (ACL)?"
    finally:
        await subscriber.close()
