"""What a room asks of its clients, and what it hands them."""

from enum import Enum
from typing import Protocol

from lockstep.errors import Close
from lockstep.wire.encodings import Encoding


class Kind(Enum):
    """What may become of a frame that a client has not taken yet."""

    MESSAGE = "message"
    """It is kept."""
    STATE = "state"
    """A newer one takes its place."""
    SYNC = "sync"
    """A state that answers or repairs, or the end: in place of an unsent one, itself not to be replaced."""
    CHANGE = "change"
    """It applies to what was sent before it. Where it has to wait, the latest state is sent in its place."""
    PRESENCE = "presence"
    """The same of who is present."""


Frames = list[tuple[Kind, bytes]]
"""What one iteration of the loop brings for those who are told the same, in order."""


def joined(frames: Frames) -> bytes:
    """All in one piece."""
    return frames[0][1] if len(frames) == 1 else b"".join([frame for _, frame in frames])


class Peer(Protocol):
    """One client's subscription to one session, as its room sees it. Nothing here ever waits for the client.

    A connection of protocol v1 is itself the peer of its session: an object for each would cost every idle
    client another 64 bytes.
    """

    @property
    def encoding(self) -> Encoding:
        """How its messages travel."""

    @property
    def subject(self) -> str | None:
        """Who it is, where its token says so; None for one of those whom nobody can tell apart."""

    @property
    def can_send(self) -> bool:
        """False from when its end has begun."""

    def send_batch(self, frames: Frames) -> None:
        """Send them in one piece if possible, else one by one, each by its kind."""

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        """Send a frame after everything sent before it."""

    def close(self, how: Close) -> None:
        """Close the connection behind what has been sent. It may be called again, and then does nothing."""

    def disconnect(self) -> None:
        """The subject is sent away: tell it, and end this subscription. Called again it does nothing."""
