"""A connection that is kept up."""

import asyncio
import logging
import re

import pytest

from broker.endpoint import parse
from broker.link import Link, LinkDown, Wire
from lockstep.metrics import Metrics
from tests.redis_server import RedisServer, free_port


async def nothing(wire: Wire) -> None:
    pass


async def test_a_call_in_the_turn_that_loses_the_connection_goes_over_the_next_one() -> None:
    redis = RedisServer()
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        wire = link.wire
        assert wire is not None
        wire.abort()  # lost in the next turn, before what is asked in this one is sent
        assert await link.call("PING") == b"PONG"
        assert link.wire is not wire
    finally:
        await link.close()
        redis.close()


async def test_what_was_sent_over_a_lost_connection_is_not_sent_again() -> None:
    redis = RedisServer()
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        redis.freeze()
        wire = link.wire
        assert wire is not None
        asked = asyncio.create_task(link.call("INCR", "calls"))
        await asyncio.sleep(0)  # it asks
        await asyncio.sleep(0)  # what was asked is sent
        wire.abort()
        with pytest.raises(LinkDown) as down:
            await asked
        assert down.value.sent
    finally:
        redis.thaw()
        await link.close()
        redis.close()


async def test_a_call_is_on_its_way_before_it_is_awaited() -> None:
    redis = RedisServer()
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        first = link.call("INCR", "calls")
        assert await link.call("GET", "calls") == b"1"
        assert await first == 1
    finally:
        await link.close()
        redis.close()


async def test_the_return_of_redis_is_logged_with_how_long_it_was_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    def back() -> list[str]:
        return [line for line in caplog.messages if "is back" in line]

    port = free_port()
    redis = RedisServer(port=port)
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        assert back() == []
        wire = link.wire
        assert wire is not None
        redis.close()
        await wire.lost
        redis = RedisServer(port=port)
        async with asyncio.timeout(10):
            while not link.is_up:
                await asyncio.sleep(0.01)
        (line,) = back()
        assert re.fullmatch(
            rf"Redis is back at redis://127\.0\.0\.1:{port}\S* \(for commands\), after \d+\.\d s", line
        )
    finally:
        await link.close()
        redis.close()
