"""A client's socket after the handshake: frames in, frames out, and what becomes of a slow one.

Tornado's own class for this costs a task per message and per connection, a Future per write, buffers
that nobody needs, five more seconds for a peer that has vanished; its write buffer has no limit, and
it echoes illegal close codes. So the handshake is Tornado's, and what follows is ours.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from handlers.backlog import Backlog
from handlers.heartbeat import Heartbeat
from handlers.read_scheduler import ReadScheduler
from lockstep.errors import ABNORMAL_CLOSURE, INTERNAL_ERROR, TOO_MANY_MESSAGES, TOO_SLOW, Close
from lockstep.live.peers import Batch, Kind
from lockstep.metrics import Metrics
from lockstep.wire.encodings import JSON_V1
from lockstep.wire.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameError,
    FrameReader,
    decode_close,
    encode_close,
    encode_frame,
)

log = logging.getLogger(__name__)

# Bounds what one client can take of a turn of the loop: some hundred small messages.
READ_BYTES = 4096
MAX_UNSENT_BYTES = 1_048_576
CLOSE_TIMEOUT_S = 5.0
TOO_SLOW_TIMEOUT_S = 1.0
_PING_FRAME = encode_frame(PING, b"")


class Service(Protocol):
    """What all connections of a process share, and who answers their messages."""

    heartbeat: Heartbeat
    read_scheduler: ReadScheduler
    max_message_bytes: int
    metrics: Metrics
    message_rate: int
    """Frames a second of one client; 0: any number."""

    def on_message(self, connection: "Connection", payload: bytes, is_binary: bool) -> None:
        """A whole message, its bytes as they came."""

    def on_end(self, connection: "Connection") -> None:
        """The connection is no more. Called once."""


class Connection:
    """One client, as the hub's Peer. What the socket does not take at once waits, bounded.

    There may be tens of thousands, most of them idle: what only some need is made when they need it.
    """

    __slots__ = (
        "_abort_timer",
        "_backlog",
        "_expiry_timer",
        "_frames",
        "_frames_in_second",
        "_is_closing",
        "_is_deaf",
        "_is_in_line",
        "_is_over",
        "_is_paused",
        "_loop",
        "_owes_pong",
        "_peer_has_closed",
        "_reader",
        "_second",
        "_service",
        "_socket",
        "address",
        "caller",
        "clear_descriptor",
        "close_code",
        "heartbeat_slot",
        "invalid_at_s",
        "is_counted",
        "session_id",
    )

    encoding = JSON_V1

    def __init__(
        self, sock: socket.socket, service: Service, session_id: str | None, address: str = ""
    ) -> None:
        self.session_id = session_id
        self.address = address
        self.caller = ""  # whose share of the session's places it takes; nobody's: empty
        self.is_counted = False  # counted by the limits
        self.close_code: int | None = None
        self.heartbeat_slot = -1
        # When messages of this client were refused; kept by whoever refuses.
        self.invalid_at_s: deque[float] | None = None
        self._socket = sock
        # What may be sent to directly; -1 while something waits, or nothing more may be sent.
        self.clear_descriptor = sock.fileno()
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._backlog: Backlog | None = None
        self._reader: FrameReader | None = None
        self._frames: Iterator[tuple[int, bytes]] | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._second = self._frames_in_second = 0
        self._owes_pong = False
        self._is_paused = False
        self._is_in_line = False  # for its turn to be read
        self._is_closing = False  # our close frame is sent, or waits to be: nothing comes behind it
        self._is_deaf = False  # what the client says counts no more
        self._peer_has_closed = False
        self._is_over = False

    def start(self, early: bytes) -> None:
        """Begin to listen; `early` is what came with the handshake."""
        if not self._is_over:
            if not self._is_closing:
                self._service.heartbeat.add(self)
            self._listen()
            if early:
                self._receive(early)

    # --- sending ---------------------------------------------------------------------------------

    def send_batch(self, batch: Batch) -> None:
        if self._is_closing:
            return
        if self._backlog is not None:
            self._queue_all(batch.frames)
            return
        try:
            sent = self._socket.send(batch.data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._abort()
            return
        if sent != batch.size:
            self._fall_behind(batch, sent)

    def took(self, batch: Batch, sent: int) -> None:
        """So many bytes of the batch went when it was offered to `clear_descriptor`; -1: none ever will."""
        if self.clear_descriptor < 0:
            self.send_batch(batch)
        elif sent < 0:
            self._abort()
        else:
            self._fall_behind(batch, sent)

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        if self._is_closing:
            return
        if self._backlog is None:
            self._write(frame)
        else:
            self._queue_all([(kind, frame)])

    def _pong(self, frame: bytes) -> None:
        if self._backlog is not None and not self._is_closing:
            self._backlog.put_pong(frame)
        else:
            self.send(frame)

    def _write(self, frame: bytes) -> None:
        """Put the frame on the wire; what the socket does not take now becomes the backlog."""
        try:
            sent = self._socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._abort()
            return
        if sent != len(frame):
            self._begin_backlog(memoryview(frame)[sent:])

    def _fall_behind(self, batch: Batch, sent: int) -> None:
        """So many bytes of a batch were taken: one of its frames is in progress, those behind it wait."""
        for place, (_, frame) in enumerate(batch.frames):
            if sent < len(frame):
                self._begin_backlog(memoryview(frame)[sent:])
                self._queue_all(batch.frames[place + 1 :])
                return
            sent -= len(frame)

    def _begin_backlog(self, rest: memoryview) -> None:
        self._backlog = Backlog(rest)
        self.clear_descriptor = -1
        self._loop.add_writer(self._socket.fileno(), self._on_writable)

    def _queue_all(self, frames: list[tuple[Kind, bytes]]) -> None:
        assert self._backlog is not None
        for kind, frame in frames:
            if self._backlog.put(kind, frame):
                self._service.metrics.conflated.inc()
        if self._backlog.waiting_bytes > MAX_UNSENT_BYTES:
            self._backlog.drop_waiting()
            self._service.metrics.slow_closes.inc()
            self.close(TOO_SLOW)

    def _on_writable(self) -> None:
        assert self._backlog is not None
        try:
            self._backlog.flush(self._socket)
        except BlockingIOError:
            return
        except OSError:
            self._abort()
            return
        self._backlog = None
        self._loop.remove_writer(self._socket.fileno())
        if not self._is_closing:
            self.clear_descriptor = self._socket.fileno()
        self._end_if_done()

    # --- receiving -------------------------------------------------------------------------------

    def pause(self) -> None:
        """Leave what follows unread until `resume`, so that answers come in the order of the questions."""
        self._is_paused = True
        self._loop.remove_reader(self._socket.fileno())

    def resume(self) -> None:
        if self._is_over:
            return
        self._is_paused = False
        if not self._is_in_line:
            self._listen()
            self._on_readable()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        if self._service.read_scheduler.admit_or_queue(self):
            self._read()
        else:
            # Nor is the socket looked at: a thousand that can be read would be found again at every turn.
            self._is_in_line = True
            self._loop.remove_reader(self._socket.fileno())

    def read_on(self) -> None:
        self._is_in_line = False
        if not self._is_over and not self._is_paused:
            self._listen()
            self._read()

    def _read(self) -> None:
        if self._frames is not None:
            self._handle_frames()  # what was left when it was paused
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._abort()
        elif len(data) == 6 and data[:2] == b"\x8a\x80" and self._reader is None:
            self._owes_pong = False  # all that most clients ever say
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self._reader is None:
            self._reader = FrameReader(self._service.max_message_bytes)
        self._frames = self._reader.feed(data)
        self._handle_frames()

    def _handle_frames(self) -> None:
        if self._frames is None:
            return
        try:
            for opcode, payload in self._frames:
                self._handle(opcode, payload)
                if self._is_paused and not self._is_deaf:
                    return  # the rest waits in the iterator
                if self._is_deaf:
                    break
        except FrameError as error:
            self._is_deaf = True
            self.close(error.close)
        self._frames = None
        if self._is_deaf or (self._reader is not None and self._reader.is_idle):
            self._reader = None
        self._end_if_done()

    @property
    def is_over(self) -> bool:
        return self._is_over

    def _is_talkative(self) -> bool:
        second = int(self._loop.time())
        if second != self._second:
            self._second, self._frames_in_second = second, 0
        self._frames_in_second += 1
        return self._frames_in_second > self._service.message_rate

    def _handle(self, opcode: int, payload: bytes) -> None:
        if self._service.message_rate and opcode != CLOSE and self._is_talkative():
            self._service.metrics.limited.labels("message_rate").inc()
            self._is_deaf = True
            self.close(TOO_MANY_MESSAGES)
        elif opcode in (TEXT, BINARY):
            if not self._is_closing:
                self._answer(payload, opcode == BINARY)
        elif opcode == PONG:
            self._owes_pong = False
        elif opcode == PING:
            self._pong(encode_frame(PONG, payload))
        elif opcode == CLOSE:
            self._peer_has_closed = True
            self._is_deaf = True
            code, _ = decode_close(payload)
            self.close_code = code
            self._close(code)

    def _answer(self, payload: bytes, is_binary: bool) -> None:
        try:
            self._service.on_message(self, payload, is_binary)
        except Exception:
            log.exception("a message could not be handled", extra={"session_id": self.session_id})
            self.close(INTERNAL_ERROR)

    # --- ending ----------------------------------------------------------------------------------

    def ping(self) -> None:
        if self._is_closing:
            return
        self._owes_pong = True
        if self._backlog is not None:
            # Behind the frame in progress, before those that wait: who is slow shall not look dead.
            self._backlog.put_urgent(_PING_FRAME)
        else:
            self._write(_PING_FRAME)

    def expect_pong(self) -> None:
        """A peer that has vanished answers no closing handshake either."""
        if self._owes_pong:
            self.close_code = ABNORMAL_CLOSURE.code
            self._abort()

    def close(self, how: Close) -> None:
        self._close(how.code, how.reason)

    def _close(self, code: int | None, reason: str = "") -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self.clear_descriptor = -1
        self._service.heartbeat.drop(self)
        self.close_code = self.close_code or code
        frame = encode_close(code, reason)
        if self._backlog is not None:
            self._backlog.put(Kind.MESSAGE, frame)
        else:
            self._write(frame)
        if not self._is_over:
            timeout_s = TOO_SLOW_TIMEOUT_S if code == TOO_SLOW.code else CLOSE_TIMEOUT_S
            self._abort_timer = self._loop.call_later(timeout_s, self._abort)
            self._end_if_done()

    def close_in(self, delay_s: float, how: Close) -> None:
        """Close after this delay, if the connection lasts so long."""
        self._expiry_timer = self._loop.call_later(max(0.0, delay_s), self.close, how)

    def _end_if_done(self) -> None:
        """The connection ends when both have closed and all is sent."""
        if self._is_over or not self._is_closing or not self._is_deaf or self._backlog is not None:
            return
        if self._peer_has_closed and not self._has_unread():
            self._abort()
            return
        # After a breach (RFC 6455 7.1.7). Our end of it only: with data of the client unread, a full close
        # would be a reset, which may overtake the close frame.
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._abort()

    def _has_unread(self) -> bool:
        """Does the client talk on behind its close frame?"""
        try:
            return bool(self._socket.recv(READ_BYTES))
        except OSError:
            return False

    def _abort(self) -> None:
        if self._is_over:
            return
        self._is_over = self._is_closing = self._is_deaf = True
        self.clear_descriptor = -1
        self._service.heartbeat.drop(self)
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
            self._expiry_timer = None
        descriptor = self._socket.fileno()
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
        self._socket.close()
        self._backlog = self._reader = self._frames = None
        self._service.on_end(self)
