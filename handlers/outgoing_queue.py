"""What a client is sent: at once as far as its socket takes it, the rest when it takes more."""

import asyncio
import socket
from collections import deque
from typing import Any, Protocol

from lockstep.live.peers import Batch, Kind

MAX_UNSENT_BYTES = 1_048_576


class Owner(Protocol):
    """Learns what becomes of the frames in its queue."""

    def on_conflated(self) -> None:
        """A frame took the place of an unsent state."""

    def on_overflow(self) -> None:
        """Over MAX_UNSENT_BYTES waited, and were dropped. The frame in progress is still sent."""

    def on_drained(self) -> None:
        """Everything that waited has been sent."""

    def on_broken(self) -> None:
        """The socket will never take anything again."""


class UnsentFrames:
    """The frame in progress and those that wait for it; of states only the latest waits."""

    __slots__ = ("_pong", "_rest", "_state", "_urgent", "_waiting", "waiting_bytes")

    def __init__(self, rest: memoryview) -> None:
        # Other clients that are behind share this memory: frames are not copied.
        self._rest = rest
        # These go behind the frame in progress and before those that wait.
        self._urgent: deque[bytes] = deque()
        self._pong: bytes | None = None
        self._waiting: deque[list[Any]] = deque()  # [is_state, frame]
        self._state: list[Any] | None = None
        self.waiting_bytes = 0
        """Of all that waits but the state, which has a place of its own however big it is."""

    def put(self, kind: Kind, frame: bytes) -> bool:
        """True if the frame took the place of an unsent state."""
        if kind is Kind.STATE:
            if self._state is not None:
                self._state[1] = frame
                return True
            self._state = [True, frame]
            self._waiting.append(self._state)
            return False
        is_replacing = kind is Kind.SYNC and self._state is not None
        if kind is Kind.SYNC and self._state is not None:
            # It is not to be replaced in turn, so that what was asked for is answered.
            self._state[:] = [False, frame]
            self._state = None
        else:
            self._waiting.append([False, frame])
        self.waiting_bytes += len(frame)
        return is_replacing

    def put_urgent(self, frame: bytes) -> None:
        self._urgent.append(frame)

    def put_pong(self, frame: bytes) -> None:
        """Replace an unsent pong (RFC 6455 5.5.3), so that a client that only pings takes no memory."""
        self._pong = frame

    def drop_waiting(self) -> None:
        """Keep only the frame in progress: without its end the client could not read what follows."""
        self._waiting.clear()
        self._state = self._pong = None
        self.waiting_bytes = 0

    def flush(self, sock: socket.socket) -> None:
        """Return when everything is sent; raise what the socket raises when it takes no more."""
        while True:
            sent = sock.send(self._rest)
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
                return


class OutgoingQueue:
    """Sends frames through one socket, in order. It keeps what the socket does not take, up to a limit.

    There is one for each connection, and nearly always it is empty: `UnsentFrames` are made when needed.
    """

    __slots__ = ("_is_finished", "_owner", "_socket", "_unsent", "clear_descriptor")

    def __init__(self, sock: socket.socket, owner: Owner) -> None:
        self._socket = sock
        self._owner = owner
        self._unsent: UnsentFrames | None = None
        self._is_finished = False
        self.clear_descriptor = sock.fileno()
        """What may be sent to directly; -1 while something waits, or when nothing more may be sent."""

    @property
    def is_empty(self) -> bool:
        return self._unsent is None

    def send(self, frame: bytes, kind: Kind) -> None:
        if self._unsent is None:
            self._write(frame)
        else:
            self._put_all([(kind, frame)])

    def send_batch(self, batch: Batch) -> None:
        if self._unsent is not None:
            self._put_all(batch.frames)
            return
        sent = self._offer(batch.data)
        if sent != batch.size:
            self._fall_behind(batch, sent)

    def took(self, batch: Batch, sent: int) -> None:
        """`clear_descriptor` took so many bytes of the batch; -1: it was negative, or its socket broken."""
        if self.clear_descriptor < 0:
            self.send_batch(batch)
        else:
            self._fall_behind(batch, sent)

    def send_ping(self, frame: bytes) -> None:
        """Send it before all that waits, so that a slow client does not look dead."""
        if self._unsent is None:
            self._write(frame)
        else:
            self._unsent.put_urgent(frame)

    def send_pong(self, frame: bytes) -> None:
        """Send it before all that waits, and in place of a pong that waits."""
        if self._unsent is None:
            self._write(frame)
        else:
            self._unsent.put_pong(frame)

    def finish(self, frame: bytes) -> None:
        """Send the last frame behind all that waits; nothing may be sent after it."""
        self._is_finished = True
        self.clear_descriptor = -1
        if self._unsent is None:
            self._write(frame)
        else:
            self._unsent.put(Kind.MESSAGE, frame)

    def discard(self) -> None:
        """Forget what is unsent, and the owner: the socket is about to be closed."""
        self.clear_descriptor = -1
        if self._unsent is not None:
            self._unsent = None
            asyncio.get_running_loop().remove_writer(self._socket.fileno())
        del self._owner  # else both would wait for the garbage collector

    def _offer(self, data: bytes) -> int:
        """How much of it the socket takes now; -1 if it is broken."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return -1

    def _write(self, frame: bytes) -> None:
        sent = self._offer(frame)
        if sent < 0:
            self._owner.on_broken()
        elif sent != len(frame):
            self._begin_waiting(memoryview(frame)[sent:])

    def _fall_behind(self, batch: Batch, sent: int) -> None:
        """Of the batch so many bytes were taken: one of its frames is in progress, those behind it wait."""
        if sent < 0:
            self._owner.on_broken()
            return
        for index, (_, frame) in enumerate(batch.frames):
            if sent < len(frame):
                self._begin_waiting(memoryview(frame)[sent:])
                self._put_all(batch.frames[index + 1 :])
                return
            sent -= len(frame)

    def _begin_waiting(self, rest: memoryview) -> None:
        self._unsent = UnsentFrames(rest)
        self.clear_descriptor = -1
        asyncio.get_running_loop().add_writer(self._socket.fileno(), self._on_writable)

    def _put_all(self, frames: list[tuple[Kind, bytes]]) -> None:
        assert self._unsent is not None
        for kind, frame in frames:
            if self._unsent.put(kind, frame):
                self._owner.on_conflated()
        if self._unsent.waiting_bytes > MAX_UNSENT_BYTES:
            self._unsent.drop_waiting()
            self._owner.on_overflow()

    def _on_writable(self) -> None:
        assert self._unsent is not None
        try:
            self._unsent.flush(self._socket)
        except BlockingIOError:
            return
        except OSError:
            self._owner.on_broken()
            return
        self._unsent = None
        asyncio.get_running_loop().remove_writer(self._socket.fileno())
        if not self._is_finished:
            self.clear_descriptor = self._socket.fileno()
        self._owner.on_drained()
