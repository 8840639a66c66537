"""What a client is sent: at once as far as its socket takes it, the rest when it takes more."""

import asyncio
import socket
from collections import deque
from typing import Any, Protocol

from handlers.native import Line
from lockstep.live.peers import Frames, Kind, joined

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


class Sender(Protocol):
    """Whose frames they are: one subscription of the client to one session."""

    def skipped(self, kind: Kind) -> bytes:
        """The latest that this kind tells, in place of what was not sent; empty where there is nothing."""


class UnsentFrames:
    """The frame in progress and those that wait for it; of states only the latest waits.

    Of changes the first waits. If others follow, none is sent: in their place goes the state that is the
    latest when their turn comes. It is the same with those who are present.
    """

    __slots__ = (
        "_pong",
        "_presences",
        "_rest",
        "_states",
        "_urgent",
        "_waiting",
        "are_last",
        "waiting_bytes",
    )

    def __init__(self, rest: memoryview) -> None:
        # Other clients that are behind share this memory: frames are not copied.
        self._rest = rest
        # These go behind the frame in progress and before those that wait.
        self._urgent: deque[bytes] = deque()
        self._pong: bytes | None = None
        # [whose, frame, kind]; without a frame: it is to be made. What is nobody's is kept.
        self._waiting: deque[list[Any]] = deque()
        self._states: dict[Sender, list[Any]] = {}
        self._presences: dict[Sender, list[Any]] = {}
        self.waiting_bytes = 0
        """Of all that waits but what has a place of its own, however big it is."""
        self.are_last = False
        """Nothing may be sent after them."""

    def put(self, kind: Kind, frame: bytes, sender: Sender) -> bool:
        """True if the frame took the place of an unsent state, or itself is not sent."""
        places = self._places(kind)
        waiting = None if kind is Kind.MESSAGE else places.get(sender)
        if kind in (Kind.STATE, Kind.CHANGE, Kind.PRESENCE):
            if waiting is not None:
                waiting[1] = frame if kind is Kind.STATE else None
                return True
            places[sender] = waiting = [sender, frame, kind]
            self._waiting.append(waiting)
            return False
        if kind is Kind.SYNC and (presence := self._presences.get(sender)) is not None:
            presence[1] = None  # it may apply to what was known before this
        if waiting is not None:
            # It is not to be replaced in turn, so that what was asked for is answered.
            waiting[:] = [None, frame, kind]
            del places[sender]
        else:
            self._waiting.append([None, frame, kind])
        self.waiting_bytes += len(frame)
        return waiting is not None

    def forget(self, sender: Sender) -> None:
        """Its state is not wanted any more, nor who is present."""
        for places in (self._states, self._presences):
            waiting = places.pop(sender, None)
            if waiting is not None:
                waiting[:] = [None, b"", Kind.MESSAGE]

    def put_last(self, frame: bytes) -> None:
        self._waiting.append([None, frame, Kind.MESSAGE])
        self.waiting_bytes += len(frame)

    def put_urgent(self, frame: bytes) -> None:
        self._urgent.append(frame)

    def put_pong(self, frame: bytes) -> None:
        """Replace an unsent pong (RFC 6455 5.5.3), so that a client that only pings takes no memory."""
        self._pong = frame

    def drop_waiting(self) -> None:
        """Keep only the frame in progress: without its end the client could not read what follows."""
        self._waiting.clear()
        self._states.clear()
        self._presences.clear()
        self._pong = None
        self.waiting_bytes = 0

    def flush(self, sock: socket.SocketType) -> None:
        """Return when everything is sent; raise what the socket raises when it takes no more."""
        while True:
            while self._rest:
                sent = sock.send(self._rest)
                self._rest = self._rest[sent:]
            if self._urgent:
                self._rest = memoryview(self._urgent.popleft())
            elif self._pong is not None:
                self._rest, self._pong = memoryview(self._pong), None
            elif self._waiting:
                self._rest = memoryview(self._take())
            else:
                return

    def _take(self) -> bytes:
        """The frame that is next."""
        waiting = self._waiting.popleft()
        if waiting[1] is None:
            # What is put meanwhile is in that state, or is the end, which takes its place.
            skipped = waiting[0].skipped(waiting[2])
            if waiting[1] is None:
                waiting[1] = skipped
        sender, frame, kind = waiting
        if sender is None:
            self.waiting_bytes -= len(frame)
        else:
            self._places(kind).pop(sender, None)
        return bytes(frame)

    def _places(self, kind: Kind) -> dict[Sender, list[Any]]:
        return self._presences if kind is Kind.PRESENCE else self._states


class OutgoingQueue(Line):
    """Sends frames through one socket, in order. It keeps what the socket does not take, up to a limit.

    There is one for each connection, and nearly always it is empty: `UnsentFrames` are made when needed.
    """

    __slots__ = ("_owner", "_socket", "_unsent")

    def __init__(self, sock: socket.SocketType, owner: Owner) -> None:
        self._socket = sock
        self._owner = owner
        self._unsent: UnsentFrames | None = None
        self.clear_descriptor = sock.fileno()
        """What may be sent to directly; -1 while something waits, or when nothing more may be sent."""

    @property
    def is_empty(self) -> bool:
        return self._unsent is None

    def send(self, frame: bytes, kind: Kind, sender: Sender) -> None:
        if self._unsent is None:
            self._write(frame)
        else:
            self._put_all([(kind, frame)], sender)

    def send_first(self, head: bytes) -> None:
        """Send this with what follows at once; if nothing does, the kernel waits 200 ms for it."""
        self._written(head, self._offer(head, socket.MSG_MORE))

    def send_batch(self, frames: Frames, sender: Sender) -> None:
        if self._unsent is not None:
            self._put_all(frames, sender)
            return
        data = joined(frames)
        sent = self._offer(data)
        if sent != len(data):
            self._fall_behind(frames, sent, sender)

    def took(self, frames: Frames, sent: int, sender: Sender) -> None:
        """`clear_descriptor` took so many bytes of the frames; -1: it was negative, or its socket broken."""
        if self.clear_descriptor < 0:
            self.send_batch(frames, sender)
        else:
            self._fall_behind(frames, sent, sender)

    def forget(self, sender: Sender) -> None:
        """Nothing that waits as its state is sent any more."""
        if self._unsent is not None:
            self._unsent.forget(sender)

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
        self.clear_descriptor = -1
        if self._unsent is None:
            self._write(frame)
        else:
            self._unsent.put_last(frame)
        if self._unsent is not None:
            self._unsent.are_last = True

    def discard(self) -> None:
        """Forget what is unsent, and the owner: the socket is about to be closed."""
        self.clear_descriptor = -1
        if self._unsent is not None:
            self._unsent = None
            asyncio.get_running_loop().remove_writer(self._socket.fileno())
        del self._owner  # else both would wait for the garbage collector

    def _offer(self, data: bytes, flags: int = 0) -> int:
        """How much of it the socket takes now; -1 if it is broken."""
        try:
            return self._socket.send(data, flags)
        except BlockingIOError:
            return 0
        except OSError:
            return -1

    def _write(self, frame: bytes) -> None:
        self._written(frame, self._offer(frame))

    def _written(self, frame: bytes, sent: int) -> None:
        if sent < 0:
            self._owner.on_broken()
        elif sent != len(frame):
            self._begin_waiting(memoryview(frame)[sent:])

    def _fall_behind(self, frames: Frames, sent: int, sender: Sender) -> None:
        """So many bytes of these were taken: one of the frames is in progress, those behind it wait."""
        if sent < 0:
            self._owner.on_broken()
            return
        for index, (_, frame) in enumerate(frames):
            if sent < len(frame):
                self._begin_waiting(memoryview(frame)[sent:])
                self._put_all(frames[index + 1 :], sender)
                return
            sent -= len(frame)

    def _begin_waiting(self, rest: memoryview) -> None:
        self._unsent = UnsentFrames(rest)
        self.clear_descriptor = -1
        asyncio.get_running_loop().add_writer(self._socket.fileno(), self._on_writable)

    def _put_all(self, frames: Frames, sender: Sender) -> None:
        assert self._unsent is not None
        for kind, frame in frames:
            if self._unsent.put(kind, frame, sender):
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
        are_last, self._unsent = self._unsent.are_last, None
        asyncio.get_running_loop().remove_writer(self._socket.fileno())
        if not are_last:
            self.clear_descriptor = self._socket.fileno()
        self._owner.on_drained()
