"""How long the event loop stands still, and how soon all clients are right again: python -m bench.faults

Three processes, 200 clients, changes going on. The loop is asked through /health; a bare asyncio loop in
the same scene says how much of that is the machine. The goal is no more than 200 ms beyond it, and 2 s.
"""

import asyncio
from collections.abc import Awaitable, Callable

from bench.delivery import machine
from tests.support.faults import LoopLag, scene
from tests.support.redis_server import Proxy, RedisServer


async def frozen(redis: RedisServer, _: Proxy) -> None:
    redis.freeze()
    await asyncio.sleep(3)
    redis.thaw()


async def killed(redis: RedisServer, _: Proxy) -> None:
    redis.kill()
    await asyncio.sleep(3)
    redis.start()


async def silent(_: RedisServer, proxy: Proxy) -> None:
    proxy.swallows_requests = proxy.swallows_replies = True
    await asyncio.sleep(6)
    proxy.swallows_requests = proxy.swallows_replies = False


async def measure(name: str, fault: Callable[[RedisServer, Proxy], Awaitable[None]]) -> None:
    redis = RedisServer(aof=True)
    try:
        async with Proxy(redis.port) as proxy, scene(proxy.url) as play, LoopLag(play.servers[0]) as lag:
            await fault(redis, proxy)
            await play.served()
            converged_s = await play.converged()
            await play.assert_nothing_lost()
            print(
                f"{name}: loop stood still {lag.server_s * 1000:.0f} ms, "
                f"a bare one {lag.bare_s * 1000:.0f} ms; "
                f"all clients right {converged_s * 1000:.0f} ms after Redis answered; "
                f"slowest request {play.switcher.slowest_s * 1000:.0f} ms"
            )
    finally:
        redis.close()


def main() -> None:
    print(machine())
    for name, fault in (
        ("Redis frozen for 3 s", frozen),
        ("killed for 3 s", killed),
        ("link silent for 6 s", silent),
    ):
        asyncio.run(measure(name, fault))


if __name__ == "__main__":
    main()
