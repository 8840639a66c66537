"""The edge to other processes: a broker by its URL."""

from broker.doctor import examine
from broker.endpoint import parse
from broker.memory import MemoryBroker
from broker.redis import RedisBroker
from lockstep.config import Settings
from lockstep.contract import Broker
from lockstep.metrics import Metrics

__all__ = ["check_url", "examine", "open_broker"]


def check_url(url: str) -> None:
    """Raises ValueError where no broker can be had by this URL, whatever runs there."""
    if url != "memory://":
        parse(url)


def open_broker(settings: Settings, metrics: Metrics) -> Broker:
    """memory:// for one process by itself, else Redis. Raises ValueError, naming what it cannot use."""
    if settings.broker == "memory://":
        return MemoryBroker()
    return RedisBroker(settings.broker, settings.prefix, settings.routing, settings.allow_eviction, metrics)
