"""The edge to other processes: a broker by its URL."""

import time
from collections.abc import Callable

from broker.clock import TimeSource
from broker.memory import MemoryBroker
from lockstep.config import Settings
from lockstep.contract import Broker
from lockstep.metrics import Metrics

MEMORY_URL = "memory://"

# What is of Redis is imported where a URL names one: a process without one starts in two thirds of the time.


def check_url(url: str) -> None:
    """Raises ValueError where no broker can be had by this URL, whatever runs there."""
    if url == MEMORY_URL:
        return
    from broker.endpoint import parse

    parse(url)


def is_cluster(url: str) -> bool:
    return url.partition("://")[0].endswith("+cluster")


def open_broker(settings: Settings, metrics: Metrics, source: TimeSource = time) -> Broker:
    """memory:// for one process by itself, else Redis. Raises ValueError, naming what it cannot use.

    The embedded broker's time is that of `source`.
    """
    if settings.broker == MEMORY_URL:
        return MemoryBroker(source)
    options = (settings.broker, settings.prefix, settings.routing, settings.allow_eviction, metrics)
    if is_cluster(settings.broker):
        from broker.cluster.broker import ClusterBroker

        return ClusterBroker(*options)
    from broker.redis import RedisBroker

    return RedisBroker(*options)


async def examine(settings: Settings) -> list[tuple[bool, str]]:
    """Look at the broker that the settings name: each finding is ok, or says what to do."""
    if settings.broker == MEMORY_URL:
        return [(True, "broker: memory://, one process by itself; its state dies with it")]
    if is_cluster(settings.broker):
        from broker.cluster.doctor import examine_cluster

        return await examine_cluster(settings)
    from broker.doctor import examine_redis

    return await examine_redis(settings)


async def migrate(source_url: str, target_url: str, prefix: str, say: Callable[[str], None]) -> None:
    """Move all sessions from one Redis, or Cluster, to another, telling how that goes line by line.

    Raises ValueError, whose text says what is in the way.
    """
    if MEMORY_URL in (source_url, target_url):
        raise ValueError(f"what is in {MEMORY_URL} ends with its process, and cannot be moved")
    from broker.migration_ends import move

    await move(source_url, target_url, prefix, say)
