"""What a process does again and again it does at once, and without clients nothing else wakes it."""

import asyncio
from typing import Any, cast

import pytest

from lockstep import beats
from lockstep.beats import MAX_INTERVAL_S, MIN_INTERVAL_S, beat, next_beat
from lockstep.errors import BrokerUnavailable
from lockstep.tasks import Tasks
from tests.support.api import SOME_ID, serving
from tests.support.redis_server import RedisServer
from tests.support.ws_client import WsClient


def timers() -> list[asyncio.TimerHandle]:
    """Those of the running loop that are due within the next seconds."""
    loop = cast(Any, asyncio.get_running_loop())
    return [each for each in loop._scheduled if not each.cancelled() and each.when() < loop.time() + 2]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "MIN_INTERVAL_S", 0.1)
    monkeypatch.setattr(beats, "MAX_INTERVAL_S", 0.12)


@pytest.mark.usefixtures("quickly")
async def test_all_who_wait_for_a_beat_share_one_timer_and_come_together() -> None:
    assert timers() == []
    order: list[int] = []

    async def wait(number: int) -> None:
        for _ in range(2):
            assert await beat() >= 0
            order.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert len(timers()) == 1
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert [set(order[:3]), set(order[3:])] == [{0, 1, 2}] * 2
    assert len(order) == 6
    assert timers() == [], "nobody waits for the next one"


async def test_a_beat_comes_within_a_second() -> None:
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    coming = next_beat()
    after_s = loop.time()
    [timer] = timers()
    assert before_s + MIN_INTERVAL_S <= timer.when() <= after_s + MAX_INTERVAL_S + 0.01
    assert MAX_INTERVAL_S + 0.01 < 1
    assert next_beat() is coming
    async with asyncio.timeout(10):
        assert await asyncio.wait((coming,))
    assert next_beat() is not coming


@pytest.mark.usefixtures("quickly")
async def test_who_waits_no_longer_leaves_the_others_waiting() -> None:
    impatient, patient = asyncio.create_task(beat()), asyncio.create_task(beat())
    await asyncio.sleep(0)
    impatient.cancel()
    async with asyncio.timeout(10):
        assert await patient >= 0
    assert impatient.cancelled()


@pytest.mark.usefixtures("quickly")
async def test_work_on_beats_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    turns, done = [BrokerUnavailable(), ZeroDivisionError()], asyncio.Event()

    async def work() -> None:
        if turns:
            raise turns.pop(0)
        done.set()

    tasks = Tasks()
    tasks.on_beats(work, "a test")
    async with asyncio.timeout(10):
        await done.wait()
    await tasks.close()
    assert caplog.messages == [f"a test is put off: {BrokerUnavailable().message}", "a test failed"]


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_a_process_without_clients_has_one_timer_within_the_next_seconds(broker: str) -> None:
    """With clients it has one more, which pings them."""
    redis = RedisServer() if broker == "redis" else None
    try:
        async with serving(**({} if redis is None else {"broker": redis.url})) as api:

            async def is_at_rest(count: int) -> bool:
                # Looks at the store, begun at a beat, are over; so are timeouts of what began just now.
                async with asyncio.timeout(10):
                    while len(timers()) != count:
                        await asyncio.sleep(0.02)
                return True

            async with asyncio.timeout(30):
                assert await is_at_rest(1)
                client = await WsClient.connect(f"{api.url.replace('http', 'ws')}/ws?sessionId={SOME_ID}")
                assert await is_at_rest(2)
                client.abort()
                while api.server.heartbeat.sockets.owners():
                    await asyncio.sleep(0.01)
                assert await is_at_rest(1)
    finally:
        if redis is not None:
            redis.close()
