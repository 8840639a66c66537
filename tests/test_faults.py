"""Whatever happens to Redis or to a link: no client stays behind, nothing acknowledged is lost."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.faults import LoopLag, scene
from tests.support.load import (
    chess,
    eventually,
    history,
    rest,
)
from tests.support.redis_server import Proxy, RedisServer, Sentinels
from tests.support.variants import first_of


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer(aof=True)
    yield server
    server.close()


@pytest.mark.long
async def test_killed_subscriber_connections_leave_nobody_behind(redis: RedisServer) -> None:
    async with scene(redis.url) as play, LoopLag(play.servers[0]) as lag:
        for _ in range(5):
            with redis.client as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.3)  # changes go on between the faults
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        lag.assert_turned()
        assert play.switcher.statuses.keys() == {200}, "the commands' connection was not touched"


async def test_killed_command_connections_lose_nothing(redis: RedisServer) -> None:
    async with scene(redis.url) as play:
        for _ in range(5):
            with redis.client as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.3)  # changes go on between the faults
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        # A lost reply is asked for again; 503 is for who loses that one, too.
        play.assert_refused_in_time()


@pytest.mark.long
async def test_a_frozen_redis_leaves_nobody_behind(redis: RedisServer) -> None:
    async with scene(redis.url) as play, LoopLag(play.servers[0]) as lag:
        redis.freeze()
        await asyncio.sleep(3)
        redis.thaw()
        await play.served()
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        lag.assert_turned()
        play.assert_refused_in_time()


@pytest.mark.parametrize("away_s", first_of([1.0, 0.3, 3.0, 10.0]))
async def test_a_killed_redis_that_kept_its_data_loses_nothing(redis: RedisServer, away_s: float) -> None:
    async with scene(redis.url) as play, LoopLag(play.servers[0]) as lag:
        redis.kill()
        await asyncio.sleep(away_s)
        redis.start()
        await play.served()
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        lag.assert_turned()
        play.assert_refused_in_time()
        assert not any(watcher.is_gone for watcher in play.watchers)


@pytest.mark.parametrize("away_s", first_of([0.3, 3.0, 10.0]))
async def test_after_a_redis_that_came_back_empty_everybody_is_told(
    redis: RedisServer, away_s: float
) -> None:
    async with scene(redis.url) as play:
        redis.kill()
        redis.forget()
        await asyncio.sleep(away_s)
        redis.start()
        await play.served()
        await play.converged()
        assert all(watcher.is_gone for watcher in play.watchers)


@pytest.mark.long
async def test_a_flushed_redis_is_noticed_and_everybody_is_told(redis: RedisServer) -> None:
    async with scene(redis.url) as play:
        with redis.client as client:
            client.flushall()
        await play.converged()
        assert all(watcher.is_gone for watcher in play.watchers)


@pytest.mark.long
async def test_a_session_that_is_created_anew_after_a_loss_is_the_one_that_clients_show(
    redis: RedisServer,
) -> None:
    async with scene(redis.url) as play:
        play.switcher.stopped = True
        session_id = play.watchers[0].session_id
        redis.kill()
        redis.forget()
        redis.start()
        await play.served()
        anew = await rest(f"{play.servers[1].url}/v1/sessions", chess(session_id))
        assert anew.code == 201
        await play.converged()


@pytest.mark.parametrize("silent_s", first_of([6.0, 60.0]))
async def test_a_link_that_swallows_everything_starves_no_loop(redis: RedisServer, silent_s: float) -> None:
    async with Proxy(redis.port) as proxy, scene(proxy.url) as play, LoopLag(play.servers[0]) as lag:
        proxy.swallows_requests = proxy.swallows_replies = True
        await asyncio.sleep(silent_s)
        proxy.swallows_requests = proxy.swallows_replies = False
        await play.served()
        await play.converged()
        await play.assert_nothing_lost()
        play.assert_updates_rise()
        lag.assert_turned()
        play.assert_refused_in_time()


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_after_a_failover_every_client_shows_what_the_new_master_has(how: str) -> None:
    sentinels = await asyncio.to_thread(Sentinels, down_after_ms=1000)
    try:
        async with scene(sentinels.url) as play:
            if how == "killed":
                sentinels.master.kill()
            else:
                sentinels.master.freeze()

            async def promoted() -> str:
                role = (await asyncio.to_thread(sentinels.replica.client.role))[0]
                return "" if role == b"master" else "it is still a replica"

            await eventually(promoted, 30, "Sentinel did not promote the replica")
            await play.served()
            await asyncio.sleep(0.5)  # changes go on at the new master
            await play.converged()
            # Replication is asynchronous: what the old master had not passed on is gone, and counted.
            lost = 0
            for session_id, request_ids in play.switcher.acknowledged.items():
                events = await history(play.servers[0].url, session_id)
                lost += len(set(request_ids) - {event.get("request_id") for event in events})
            acknowledged = sum(map(len, play.switcher.acknowledged.values()))
            print(f"failover ({how}): {lost} of {acknowledged} acknowledged changes lost with the old master")
            play.assert_refused_in_time()
    finally:
        await asyncio.to_thread(sentinels.close)
