"""What a connection asks: of the process, which all share, and of the protocol that its client speaks."""

from typing import Protocol, TypeVar

from handlers.heartbeat import Heartbeat
from handlers.read_scheduler import ReadScheduler
from lockstep.metrics import Metrics
from lockstep.wire.encodings import Encoding

_Connection = TypeVar("_Connection", contravariant=True)


class Service(Protocol[_Connection]):
    """What all connections of a process share."""

    heartbeat: Heartbeat
    read_scheduler: ReadScheduler
    max_message_bytes: int
    metrics: Metrics
    message_rate: int
    """How many frames a client may send in a second; 0: any number."""

    def on_end(self, connection: _Connection) -> None:
        """The connection is no more. Called once."""


class Spoken(Protocol[_Connection]):
    """The protocol that the client speaks, as its connection sees it."""

    encoding: Encoding

    def on_message(self, connection: _Connection, payload: bytes, is_binary: bool) -> None:
        """A whole message, its bytes as they came."""

    def on_end(self, connection: _Connection) -> None:
        """The connection is no more. Called once."""
