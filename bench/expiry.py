"""How late an expiry is told, of 5,000 in 10 s with a process killed half-way: python -m bench.expiry

The scene and its checks (none twice, none missed, none early) are in tests/support/expiries.py; here the
99th percentile of lateness must be within 250 ms.
"""

import asyncio

from bench.delivery import machine
from tests.support.expiries import p99_lateness_ms
from tests.support.redis_server import RedisServer

GOAL_P99_MS = 250


def main() -> None:
    print(machine())
    redis = RedisServer()
    try:
        assert asyncio.run(p99_lateness_ms(redis, 5000)) <= GOAL_P99_MS
    finally:
        redis.close()
    print(f"goal of {GOAL_P99_MS} ms: met")


if __name__ == "__main__":
    main()
