"""How late an expiry is told, of 5,000 in 10 s with a process killed half-way: python -m bench.expiry

The scene and its checks (none twice, none missed, none early) are those of tests/test_expiry.py; here the
99th percentile of lateness must be within 250 ms.
"""

import asyncio

from bench.delivery import machine
from tests import test_expiry
from tests.redis_server import RedisServer

GOAL_P99_MS = 250


def main() -> None:
    print(machine())
    test_expiry.P99_LATENESS_MS = GOAL_P99_MS
    redis = RedisServer()
    try:
        asyncio.run(
            test_expiry.test_every_expiry_fires_once_and_none_early_though_a_process_is_killed(redis, 5000)
        )
    finally:
        redis.close()
    print(f"goal of {GOAL_P99_MS} ms: met")


if __name__ == "__main__":
    main()
