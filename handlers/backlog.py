"""What a client's socket has not taken yet."""

from collections import deque
from typing import Any, Protocol

from lockstep.live.peers import Kind


class Writable(Protocol):
    def send(self, data: bytes | memoryview, /) -> int:
        """As much as is taken now. Raises an OSError, of which some mean: nothing now."""


class Backlog:
    """The frame in progress and those that wait for it; of states never more than the latest waits."""

    __slots__ = ("_pong", "_rest", "_state", "_urgent", "_waiting", "waiting_bytes")

    def __init__(self, rest: memoryview) -> None:
        # Shared with whoever else is behind: frames are not copied.
        self._rest = rest
        # They go behind the frame in progress, before those that wait.
        self._urgent: deque[bytes] = deque()
        self._pong: bytes | None = None
        self._waiting: deque[list[Any]] = deque()  # [is_state, frame]
        self._state: list[Any] | None = None
        self.waiting_bytes = 0
        """Of all that waits but the state, which has a place of its own however big it is."""

    def put(self, kind: Kind, frame: bytes) -> bool:
        """True where the frame took the place of an unsent state."""
        if kind is Kind.STATE:
            if self._state is not None:
                self._state[1] = frame
                return True
            self._state = [True, frame]
            self._waiting.append(self._state)
            return False
        is_replacing = kind is Kind.SYNC and self._state is not None
        if kind is Kind.SYNC and self._state is not None:
            # In place of the unsent state, and no more to be replaced: what was asked for is answered.
            self._state[:] = [False, frame]
            self._state = None
        else:
            self._waiting.append([False, frame])
        self.waiting_bytes += len(frame)
        return is_replacing

    def put_urgent(self, frame: bytes) -> None:
        self._urgent.append(frame)

    def put_pong(self, frame: bytes) -> None:
        """In place of one that is unsent (RFC 6455 5.5.3): who only pings cannot make us keep answers."""
        self._pong = frame

    def drop_waiting(self) -> None:
        """The frame in progress remains: without its end the client could not read what follows."""
        self._waiting.clear()
        self._state = self._pong = None
        self.waiting_bytes = 0

    def flush(self, socket: Writable) -> bool:
        """Send until the socket takes no more, which it says by an exception; True when all is sent."""
        while True:
            sent = socket.send(self._rest)
            self._rest = self._rest[sent:]
            if self._rest:
                continue
            if self._urgent:
                self._rest = memoryview(self._urgent.popleft())
            elif self._pong is not None:
                self._rest, self._pong = memoryview(self._pong), None
            elif self._waiting:
                is_state, frame = self._waiting.popleft()
                if is_state:
                    self._state = None
                else:
                    self.waiting_bytes -= len(frame)
                self._rest = memoryview(frame)
            else:
                return True
