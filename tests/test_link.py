"""A connection that is kept up."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest

from broker import link as link_module
from broker.endpoint import parse
from broker.link import Link
from broker.resp import LinkDown, RespConnection
from lockstep.metrics import Metrics
from tests.support.redis_server import Proxy, RedisServer, free_port


async def nothing(connection: RespConnection) -> None:
    pass


async def test_a_call_in_the_turn_that_loses_the_connection_goes_over_the_next_one() -> None:
    redis = RedisServer()
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        connection = link.connection
        assert connection is not None
        connection.abort()  # lost in the next turn, before what is asked in this one is sent
        assert await link.call("PING") == b"PONG"
        assert link.connection is not connection
    finally:
        await link.close()
        redis.close()


async def test_what_was_sent_over_a_lost_connection_is_not_sent_again() -> None:
    redis = RedisServer()
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        redis.freeze()
        connection = link.connection
        assert connection is not None
        asked = asyncio.create_task(link.call("INCR", "calls"))
        await asyncio.sleep(0)  # it asks
        await asyncio.sleep(0)  # what was asked is sent
        connection.abort()
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
        connection = link.connection
        assert connection is not None
        redis.close()
        await connection.lost
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


async def test_a_fault_that_nobody_expected_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    async def at_the_third_time(connection: RespConnection) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ZeroDivisionError

    redis = RedisServer()
    link = Link(parse(redis.url), "commands", at_the_third_time, Metrics())
    try:
        async with asyncio.timeout(10):
            await link.start()
        assert await link.call("PING") == b"PONG"
        assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [ZeroDivisionError]
    finally:
        await link.close()
        redis.close()


# --- what is slow and what is silent -------------------------------------------------------------

MEGABYTE = 1_000_000


@asynccontextmanager
async def slow_link(bytes_per_s: float) -> AsyncIterator[tuple[Link, Proxy, RedisServer]]:
    redis = RedisServer()
    try:
        async with Proxy(redis.port) as proxy:
            link = Link(parse(proxy.url), "commands", nothing, Metrics())
            await link.start()
            proxy.bytes_per_s = bytes_per_s
            try:
                yield link, proxy, redis
            finally:
                await link.close()
    finally:
        redis.close()


async def test_a_reply_that_is_arriving_is_not_given_up() -> None:
    async with slow_link(2 * MEGABYTE) as (link, _, redis):
        redis.client.set("large", b"x" * 6 * MEGABYTE)
        connection = link.connection
        asked, behind = asyncio.create_task(link.call("GET", "large")), link.call("ECHO", "behind")
        assert len(await asked) == 6 * MEGABYTE
        assert await behind == b"behind"
        assert link.connection is connection


async def test_a_request_that_is_on_its_way_is_not_given_up() -> None:
    async with slow_link(2 * MEGABYTE) as (link, _, redis):
        connection = link.connection
        assert await link.call("SET", "large", b"x" * 8 * MEGABYTE) == b"OK"
        assert redis.client.strlen("large") == 8 * MEGABYTE
        assert link.connection is connection


async def test_a_reply_that_stops_arriving_is_given_up() -> None:
    async with slow_link(2 * MEGABYTE) as (link, proxy, redis):
        redis.client.set("large", b"x" * 4 * MEGABYTE)
        arrived = 0

        def break_off(data: bytes) -> bytes:
            nonlocal arrived
            arrived += len(data)
            return data if arrived < 2 * MEGABYTE else b""

        proxy.on_reply = break_off
        with pytest.raises(LinkDown) as down:
            async with asyncio.timeout(10):
                await link.call("GET", "large")
        assert down.value.sent


@pytest.mark.parametrize("size", [10, 20 * MEGABYTE], ids=["small", "more than the buffers take"])
async def test_a_silent_redis_is_given_up_while_calls_go_on(size: int) -> None:
    """What is sent fills buffers for a while, but that is no answer."""
    redis = RedisServer()
    link = Link(parse(redis.url), "commands", nothing, Metrics())
    try:
        await link.start()
        redis.freeze()
        first = asyncio.create_task(link.call("SET", "key", b"x" * size))

        async def call_on() -> None:
            while True:
                call = asyncio.create_task(link.call("ECHO", "more"))
                call.add_done_callback(lambda done: done.cancelled() or done.exception())
                await asyncio.sleep(0.05)

        others = asyncio.create_task(call_on())
        try:
            with pytest.raises(LinkDown) as down:
                async with asyncio.timeout(10):
                    await first
            assert down.value.sent
        finally:
            others.cancel()
    finally:
        redis.thaw()
        await link.close()
        redis.close()


async def test_a_greeting_takes_as_long_as_redis_goes_on_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "GREETING_TIMEOUT_S", 0.5)
    redis = RedisServer()

    async def greet_at_length(connection: RespConnection) -> None:
        for _ in range(20):
            await connection.checked_call("PING")
            await asyncio.sleep(0.05)

    link = Link(parse(redis.url), "commands", greet_at_length, Metrics())
    try:
        async with asyncio.timeout(10):
            await link.start()
        assert await link.call("PING") == b"PONG"
    finally:
        await link.close()
        redis.close()


async def test_a_greeting_that_nobody_answers_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "GREETING_TIMEOUT_S", 0.2)
    redis = RedisServer()
    tries = 0

    async def wait_for_ever_at_first(connection: RespConnection) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            monkeypatch.undo()  # the next one has time enough
            await asyncio.Event().wait()

    link = Link(parse(redis.url), "commands", wait_for_ever_at_first, Metrics())
    try:
        async with asyncio.timeout(10):
            await link.start()
        assert tries == 2
    finally:
        await link.close()
        redis.close()


@pytest.mark.parametrize("size", [1, 1_000, 70_000])
async def test_what_has_piled_up_is_handed_out_whole_and_in_order(size: int) -> None:
    connection = RespConnection()
    pushed: list[list[bytes]] = []
    connection.on_push = pushed.append
    messages = [[b"message", b"a channel", b"%d" % number * size] for number in range(10, 60)]
    data = b"".join(hiredis.pack_command(tuple(each)) for each in messages)
    # The last one is not all here.
    connection.data_received(data[:-1])
    assert pushed == messages[:-1]
    connection.data_received(data[-1:])
    assert pushed == messages
