"""The edge to other processes: a broker by its URL."""

from broker.memory import MemoryBroker
from lockstep.contract import Broker


def open_broker(url: str) -> Broker:
    """memory:// for one process by itself. Raises ValueError, naming what it cannot use."""
    if url == "memory://":
        return MemoryBroker()
    raise ValueError(f"broker: {url!r} is not memory://")
