"""What a client of protocol v2 follows: a subscription for each session, which is a peer of its room."""

from collections import deque
from typing import Protocol

from handlers.connection import Connection
from handlers.native import Recipient
from handlers.outgoing_queue import OutgoingQueue
from lockstep.access import Access
from lockstep.errors import Close
from lockstep.live.peers import Frames, Kind
from lockstep.wire.encodings import Encoding
from lockstep.wire.protocol_v2 import SessionRequest


class Service(Protocol):
    """What all subscriptions share."""

    def skipped(self, subscription: "Subscription", kind: Kind) -> bytes:
        """The frame that stands for those of this kind which were not sent."""

    def disconnect(self, subscription: "Subscription") -> None:
        """Tell its client that it is sent away, and end it. Called again it does nothing."""


class Subscription(Recipient):
    """Sends through its connection, which may have others. A client may have a hundred: they are small."""

    __slots__ = ("_service", "connection", "is_ended", "session_id")

    outgoing: OutgoingQueue

    def __init__(self, connection: Connection, session_id: str, service: Service) -> None:
        self.connection = connection
        self.outgoing = connection.outgoing
        self.session_id = session_id
        self.is_ended = False
        self._service = service

    @property
    def encoding(self) -> Encoding:
        return self.connection.encoding

    @property
    def subject(self) -> str | None:
        return self.connection.subject

    @property
    def can_send(self) -> bool:
        return not self.is_ended and self.connection.can_send

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        if self.connection.can_send:
            self.outgoing.send(frame, kind, self)

    def send_batch(self, frames: Frames) -> None:
        if self.connection.can_send:
            self.outgoing.send_batch(frames, self)

    def took(self, frames: Frames, sent: int) -> None:
        """The frames were offered to `outgoing.clear_descriptor`, which took so many bytes; -1: none."""
        if self.connection.can_send:
            self.outgoing.took(frames, sent, self)

    def skipped(self, kind: Kind) -> bytes:
        return self._service.skipped(self, kind)

    def close(self, how: Close) -> None:
        self.connection.close(how)

    def disconnect(self) -> None:
        self._service.disconnect(self)


class Following:
    """What is kept of a client: who it is, what it follows, and what it has asked for."""

    __slots__ = ("access", "queues", "subscriptions", "under_way")

    def __init__(self, access: Access) -> None:
        self.access = access
        self.subscriptions: dict[str, Subscription] = {}
        # For each session of which a request is under way: that one, and those that wait for it.
        self.queues: dict[str, deque[SessionRequest]] | None = None
        self.under_way = 0
