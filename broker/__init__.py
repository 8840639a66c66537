"""The edge to other processes: a broker by its URL."""

from broker.doctor import examine
from broker.memory import MemoryBroker
from broker.redis import RedisBroker
from lockstep.config import Settings
from lockstep.contract import Broker
from lockstep.metrics import Metrics

__all__ = ["examine", "open_broker"]


def open_broker(settings: Settings, metrics: Metrics) -> Broker:
    """memory:// for one process by itself, else Redis. Raises ValueError, naming what it cannot use."""
    if settings.broker == "memory://":
        return MemoryBroker()
    return RedisBroker(settings.broker, settings.prefix, settings.routing, settings.allow_eviction, metrics)
