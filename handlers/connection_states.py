"""The states of a WebSocket connection, and what it may do in each."""

from enum import Enum


class State(Enum):
    """What a connection may still do. It moves down this table only."""

    # name       can_send  can_hear  ends_when_sent
    OPEN = "open", True, True, False
    # Our close frame is sent, or waits to be; the client may speak until it has sent its own.
    CLOSING = "closing", False, True, False
    # The client has broken the protocol: what it still says is read, so that it gets our close frame, and
    # discarded (RFC 6455 7.1.7).
    FAILED = "failed", False, False, True
    # Both have closed.
    CLOSED = "closed", False, False, True
    # The socket is closed.
    OVER = "over", False, False, False

    def __init__(self, name: str, can_send: bool, can_hear: bool, ends_when_sent: bool) -> None:
        self.can_send = can_send
        """Also: the client's messages are answered."""
        self.can_hear = can_hear
        self.ends_when_sent = ends_when_sent


class Reading(Enum):
    """Why the socket is looked at, or not."""

    LISTENING = "listening"
    QUEUED = "queued"
    """There is something to read, when the scheduler says so."""
    PAUSED = "paused"
    """A message is being answered, and the next has to wait for that."""
