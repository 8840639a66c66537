"""A client's WebSocket after the handshake: frames in, frames out, and the end of it.

Tornado's own class for this costs a task per message and per connection, a Future per write, buffers
that nobody needs, and five more seconds for a client that has vanished; its write buffer has no limit, and
it echoes illegal close codes.
"""

import asyncio
import logging
import socket
from typing import Any

from handlers.connection_service import Service, Spoken
from handlers.connection_states import Reading, State
from handlers.excesses import Excesses
from handlers.heartbeat import PING_FRAME
from handlers.native import Recipient
from handlers.outgoing_queue import OutgoingQueue
from lockstep.errors import ABNORMAL_CLOSURE, DISCONNECTED, INTERNAL_ERROR, TOO_MANY_MESSAGES, TOO_SLOW, Close
from lockstep.live.peers import Frames, Kind
from lockstep.wire.encodings import Encoding
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

# Bounds what one client can take of an iteration of the loop: some hundred small messages.
READ_BYTES = 4096
CLOSE_TIMEOUT_S = 5.0
TOO_SLOW_TIMEOUT_S = 1.0


class Connection(Recipient):
    """One client, and in protocol v1 as the hub's Peer its subscription to its session.

    There may be tens of thousands, most of them idle: what only some need is made when they need it.
    """

    __slots__ = (
        "_reader",
        "_reading",
        "_service",
        "_socket",
        "_state",
        "_timer",
        "address",
        "caller",
        "close_code",
        "encoding",
        "excesses",
        "following",
        "is_counted",
        "protocol",
        "session_id",
        "subject",
    )

    outgoing: OutgoingQueue

    def __init__(
        self,
        sock: socket.SocketType,
        service: Service["Connection"],
        protocol: Spoken["Connection"],
        session_id: str | None,
        address: str = "",
    ) -> None:
        self.protocol = protocol
        self.encoding: Encoding = protocol.encoding
        self.session_id = session_id
        self.following: Any = None  # what protocol v2 keeps of its client
        self.address = address
        self.subject: str | None = None  # who it is, where its token says so
        self.caller = ""  # counted with its other connections to the session; empty: not counted so
        self.is_counted = False  # by the connection limits
        self.close_code: int | None = None
        self.excesses: Excesses | None = None
        self.outgoing = OutgoingQueue(sock, self)
        self._socket = sock
        self._service = service
        self._state = State.OPEN
        self._reading = Reading.PAUSED
        self._reader: FrameReader | None = None
        # When to close; once that has begun, when to stop waiting for the client.
        self._timer: asyncio.TimerHandle | None = None

    def start(self, early: bytes) -> None:
        """Begin to listen; `early` is what came with the handshake."""
        if self.is_over:
            return
        self._reading = Reading.LISTENING
        self._service.heartbeat.enter(self._socket.fileno(), self, is_pinged=self._state.can_send)
        if early:
            self._receive(early)

    @property
    def is_over(self) -> bool:
        return self._state is State.OVER

    # --- sending ---------------------------------------------------------------------------------

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        if self._state.can_send:
            self.outgoing.send(frame, kind, self)

    def send_batch(self, frames: Frames) -> None:
        if self._state.can_send:
            self.outgoing.send_batch(frames, self)

    def took(self, frames: Frames, sent: int) -> None:
        """The frames were offered to `outgoing.clear_descriptor`, which took so many bytes; -1: none."""
        if self._state.can_send:
            self.outgoing.took(frames, sent, self)

    @property
    def can_send(self) -> bool:
        return self._state.can_send

    def skipped(self, kind: Kind) -> bytes:
        """Of protocol v1, whose states wait themselves."""
        return b""

    def ping(self) -> None:
        if self._state.can_send:
            self._service.heartbeat.sockets.ask(self._socket.fileno())
            self.outgoing.send_ping(PING_FRAME)

    def expect_pong(self) -> None:
        """A client that has vanished answers no closing handshake either.

        One that is not read from, until what it has asked is done, may have answered.
        """
        owes_pong = self._service.heartbeat.sockets.owes_pong(self._socket.fileno())
        if owes_pong and self._reading is not Reading.PAUSED:
            self.close_code = ABNORMAL_CLOSURE.code
            self.abort()

    def on_conflated(self) -> None:
        self._service.metrics.conflated.inc()

    def on_overflow(self) -> None:
        self._service.metrics.slow_closes.inc()
        self.close(TOO_SLOW)

    def on_drained(self) -> None:
        self._end_if_sent()

    def on_broken(self) -> None:
        self.abort()

    # --- receiving -------------------------------------------------------------------------------

    def pause(self) -> None:
        """Leave what follows unread until `resume`, so that answers come in the order of the questions."""
        self._look_away(Reading.PAUSED)

    def resume(self) -> None:
        if self._reading is Reading.PAUSED and not self.is_over:
            self._listen()
            self.on_readable()

    def _listen(self) -> None:
        self._reading = Reading.LISTENING
        self._service.heartbeat.sockets.watch(self._socket.fileno())

    def _look_away(self, why: Reading) -> None:
        self._reading = why
        self._service.heartbeat.sockets.unwatch(self._socket.fileno())

    def on_readable(self) -> None:
        """There is something to read, and not just a pong: those pass by."""
        if self._reading is not Reading.LISTENING:
            return  # one that was readable at the same time has had it paused, or ended
        if self._service.read_scheduler.admit_or_queue(self):
            self._read()
        else:
            # Nor is the socket looked at: of a thousand that wait, each iteration would find all again.
            self._look_away(Reading.QUEUED)

    def read_on(self) -> None:
        if self._reading is Reading.QUEUED and not self.is_over:
            self._listen()
            self._read()

    def _read(self) -> None:
        if self._reader is not None and self._reader.unread is not None:
            self._handle_frames()  # what was left when reading was paused
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.abort()
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if not self._state.can_hear:
            return
        if self._reader is None:
            self._reader = FrameReader(self._service.max_message_bytes, inflates=self.encoding.is_deflated)
        self._reader.unread = self._reader.feed(data)
        self._handle_frames()

    def _handle_frames(self) -> None:
        reader = self._reader
        if reader is None or reader.unread is None:
            return
        try:
            for opcode, payload in reader.unread:
                self._handle(opcode, payload)
                if not self._state.can_hear:
                    break
                if self._reading is Reading.PAUSED:
                    return  # the rest waits in the iterator
        except FrameError as error:
            self._begin_to_end(State.FAILED, error.close.code, error.close.reason)
        reader.unread = None
        if not self._state.can_hear or reader.is_idle:
            self._reader = None
        self._service.heartbeat.sockets.set_within_message(self._socket.fileno(), self._reader is not None)
        self._end_if_sent()

    def _handle(self, opcode: int, payload: bytes) -> None:
        if self._service.message_rate and opcode != CLOSE and self._count_and_check_rate():
            self._service.metrics.limited.labels("message_rate").inc()
            self._begin_to_end(State.FAILED, TOO_MANY_MESSAGES.code, TOO_MANY_MESSAGES.reason)
        elif opcode in (TEXT, BINARY):
            if self._state.can_send:
                self._answer(payload, opcode == BINARY)
        elif opcode == PONG:
            self._service.heartbeat.sockets.answered(self._socket.fileno())
        elif opcode == PING:
            if self._state.can_send:
                self.outgoing.send_pong(encode_frame(PONG, payload))
        elif opcode == CLOSE:
            self._handle_close(payload)

    def _handle_close(self, payload: bytes) -> None:
        try:
            code, _ = decode_close(payload)
        except FrameError as error:
            self._begin_to_end(State.CLOSED, error.close.code, error.close.reason)
        else:
            self.close_code = code
            self._begin_to_end(State.CLOSED, code)

    def _count_and_check_rate(self) -> bool:
        """Count a frame; True if it is one too many in this second."""
        if self.excesses is None:
            self.excesses = Excesses()
        return self.excesses.count_frame(asyncio.get_running_loop().time()) > self._service.message_rate

    def _answer(self, payload: bytes, is_binary: bool) -> None:
        try:
            self.protocol.on_message(self, payload, is_binary)
        except Exception:
            log.exception("a message could not be handled", extra={"session_id": self.session_id})
            self.close(INTERNAL_ERROR)

    # --- ending ----------------------------------------------------------------------------------

    def close(self, how: Close) -> None:
        if self._state.can_send:
            self._begin_to_end(State.CLOSING, how.code, how.reason)

    def disconnect(self) -> None:
        self.close(DISCONNECTED)

    def close_in(self, delay_s: float, how: Close) -> None:
        """Close after this delay, if the connection lasts so long."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), self.close, how)

    def _begin_to_end(self, state: State, code: int | None, reason: str = "") -> None:
        """Move to `state`, and send a close frame unless one has been sent."""
        must_send = self._state.can_send
        self._state = state
        if not must_send:
            return
        self._service.heartbeat.sockets.displace(self._socket.fileno())
        self.close_code = self.close_code or code
        self.outgoing.finish(encode_close(code, reason))
        if not self.is_over:
            timeout_s = TOO_SLOW_TIMEOUT_S if code == TOO_SLOW.code else CLOSE_TIMEOUT_S
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self.abort)
            self._end_if_sent()

    def _end_if_sent(self) -> None:
        """End the connection if nothing more is to be said or heard, and all is sent."""
        if not self._state.ends_when_sent or not self.outgoing.is_empty:
            return
        if self._state is State.CLOSED and not self._has_unread():
            self.abort()
            return
        # Only our end of it: with data of the client unread, a full close would be a reset, which may
        # overtake the close frame.
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def _has_unread(self) -> bool:
        """Does the client talk on behind its close frame?"""
        try:
            return bool(self._socket.recv(READ_BYTES))
        except OSError:
            return False

    def abort(self) -> None:
        """Close the socket at once, whatever is unsent."""
        if self.is_over:
            return
        self._state, self._reading = State.OVER, Reading.PAUSED
        self._service.heartbeat.leave(self._socket.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.outgoing.discard()
        self._socket.close()
        self._reader = None
        self._service.on_end(self)
