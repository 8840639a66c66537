"""Event streams (WHATWG HTML, "Server-sent events"): clients that follow one session by a plain GET.

What they are told is protocol v2, as events. Tornado reads their request, and has no part in what follows.
"""

import asyncio
import logging
import random
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from tornado.iostream import IOStream

from handlers.heartbeat import Heartbeat
from handlers.native import Recipient
from handlers.outgoing_queue import OutgoingQueue
from handlers.read_scheduler import ReadScheduler
from handlers.tornado_private import release_socket
from lockstep.access import Access
from lockstep.errors import (
    CLOSE_BY_LIMIT,
    DISCONNECTED,
    ERROR_BY_LIMIT,
    INTERNAL_ERROR,
    TOKEN_EXPIRED,
    TOO_SLOW,
    Close,
    LockstepError,
    Unauthorized,
)
from lockstep.limits import ConnectionLimits
from lockstep.live.followers import Followers
from lockstep.live.peers import Frames, Kind
from lockstep.metrics import Metrics
from lockstep.rules.state_json import dumps
from lockstep.wire import events
from lockstep.wire.encodings import Encoding
from lockstep.wire.protocol_v2 import Unsubscribed

log = logging.getLogger(__name__)

COMMENT_INTERVAL_S = 15.0
# TCP gives up a client that takes nothing for so long, or is not there any more (tcp(7)): with each comment
# it has something to deliver. Behind a Unix socket that is up to the proxy, whose client it is.
TAKES_NOTHING_TIMEOUT_S = 60.0
# A client whose stream has ended comes back after a time between these, unless the server names another.
MIN_RETRY_MS, MAX_RETRY_MS = 1000, 3000
MAX_POSITION_LENGTH = 200
# Clients have nothing to say behind their request: what comes is not looked at, and is no more than this.
MAX_RECEIVED_BYTES = 4096
END_TIMEOUT_S = 5.0
TOO_SLOW_TIMEOUT_S = 1.0


class EventStreams:
    """All that are open at this process, and what they share."""

    def __init__(self, followers: Followers, limits: ConnectionLimits, metrics: Metrics) -> None:
        self.followers = followers
        self.skipped = followers.skipped  # one object for all of them
        self.limits = limits
        self.metrics = metrics
        self.heartbeat = Heartbeat(COMMENT_INTERVAL_S, COMMENT_INTERVAL_S)
        self.read_scheduler = ReadScheduler()
        self.connections: set[EventStream] = set()

    async def admit(
        self, session_id: str, access: Access, address: str, position: str | None
    ) -> "EventStream":
        """A stream that is counted and has to begin, or to be given up.

        `position` is what the client says of it. Raises SessionFull, AddressFull, ServerFull.
        """
        stream = EventStream(self, session_id, access, address, position)
        refusal = self.limits.count_and_check() or await self.limits.enter(session_id, stream.caller, address)
        if refusal is not None:
            raise ERROR_BY_LIMIT[refusal](CLOSE_BY_LIMIT[refusal].reason)
        return stream

    def send_away(self, connection: "EventStream", how: Close, come_back_after_ms: int) -> None:
        """The process stops: end the stream."""
        # An EventSource tries again after the same time, also while nobody listens yet.
        connection.end(events.retry(MIN_RETRY_MS + come_back_after_ms), how)

    def on_end(self, stream: "EventStream") -> None:
        """The connection is no more."""
        self.connections.discard(stream)
        self.limits.leave(stream.session_id, stream.caller, stream.address)
        self.metrics.count_closed(stream.close_code)
        log.info("stream closed", extra={"session_id": stream.session_id, "close_code": stream.close_code})


def some_retry() -> bytes:
    """When to come back, if nobody says anything else: not all at once."""
    return events.retry(random.randint(MIN_RETRY_MS, MAX_RETRY_MS))


class EventStream(Recipient):
    """One client: a peer of its session's room, from its response's head on to the end of its socket.

    There may be tens of thousands, most of them idle.
    """

    __slots__ = (
        "_access",
        "_has_socket",
        "_is_queued",
        "_position",
        "_received_bytes",
        "_socket",
        "_streams",
        "_timer",
        "address",
        "caller",
        "close_code",
        "heartbeat_slot",
        "is_over",
        "session_id",
        "subject",
    )

    encoding: Encoding = events.EVENTS
    _socket: socket.SocketType
    outgoing: OutgoingQueue

    def __init__(
        self, streams: EventStreams, session_id: str, access: Access, address: str, position: str | None
    ) -> None:
        self.session_id = sys.intern(session_id)  # all who follow it share the text
        self.subject = access.subject or None
        self.address = address
        self.caller = ""
        if not access.is_trusted:
            self.caller = access.client if access.subject else address
        self.close_code: int | None = None
        self.heartbeat_slot = -1
        self.is_over = False
        """Nothing more is sent but what waits already; it has left its room."""
        self._streams = streams
        self._access: Access | None = access  # until it begins, as the position
        self._position = position if position and len(position) <= MAX_POSITION_LENGTH else None
        self._has_socket = False
        self._is_queued = False
        self._received_bytes = 0
        # When its token runs out; once it ends, when to stop waiting for the client.
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self, stream: IOStream, head: bytes) -> None:
        """Send the head of the response, and follow the session.

        What the client has sent behind its request is not looked at.
        """
        streams = self._streams
        if stream.closed() or stream.writing():
            # Of what was before, something is unsent: the connection is about to break.
            stream.close()
            self._give_up()
            return
        sock = release_socket(stream)
        self._socket, self._has_socket = sock, True
        self.outgoing = OutgoingQueue(sock, self)
        with suppress(OSError):  # the client may be gone already
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(TAKES_NOTHING_TIMEOUT_S * 1000)
            )
        streams.connections.add(self)
        streams.metrics.opened.inc()
        streams.heartbeat.add(self)
        streams.heartbeat.enter(sock.fileno(), self, is_pinged=False)
        self.send(head + some_retry())
        access, position = self._access, self._position
        self._access = self._position = None
        if self.is_over:
            return
        assert access is not None
        if access.expires_at_s is not None:
            self._call_in(access.expires_at_s - time.time(), self._expire)
        try:
            await streams.followers.subscribe(self.session_id, self, position=position)
        except LockstepError as error:
            # An EventSource comes back by itself after this, and never after a status other than 200.
            self.end(events.comment(f"{error.code}: {error.message}"), INTERNAL_ERROR)
        except Exception:
            log.exception("a stream could not begin", extra={"session_id": self.session_id})
            self.close(INTERNAL_ERROR)

    def _give_up(self) -> None:
        """The client has gone before the stream could begin."""
        self.is_over = True
        self._streams.limits.leave(self.session_id, self.caller, self.address)

    # --- sending ---------------------------------------------------------------------------------

    @property
    def can_send(self) -> bool:
        return not self.is_over

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        if not self.is_over:
            self.outgoing.send(frame, kind, self)

    def send_batch(self, frames: Frames) -> None:
        if not self.is_over:
            self.outgoing.send_batch(frames, self)

    def took(self, frames: Frames, sent: int) -> None:
        """The frames were offered to `outgoing.clear_descriptor`, which took so many bytes; -1: none."""
        if not self.is_over:
            self.outgoing.took(frames, sent, self)

    def skipped(self, kind: Kind) -> bytes:
        return self._streams.skipped(self.session_id, self, kind)

    def ping(self) -> None:
        if self.outgoing.is_empty:
            self.outgoing.send_ping(events.COMMENT)

    def expect_pong(self) -> None:
        """Nobody answers a comment: TCP ends the connection to a client that is not there any more."""

    def on_conflated(self) -> None:
        self._streams.metrics.conflated.inc()

    def on_overflow(self) -> None:
        self._streams.metrics.slow_closes.inc()
        self.close(TOO_SLOW)

    def on_drained(self) -> None:
        if self.is_over:
            self._end_connection()

    def on_broken(self) -> None:
        self.abort()

    # --- receiving -------------------------------------------------------------------------------

    def on_readable(self) -> None:
        if self._is_queued or not self._has_socket:
            return  # one that was readable at the same time has ended it
        if self._streams.read_scheduler.admit_or_queue(self):
            self._read()
        else:
            # Nor is the socket looked at: of a thousand that wait, each iteration would find all again.
            self._is_queued = True
            self._streams.heartbeat.sockets.unwatch(self._socket.fileno())

    def read_on(self) -> None:
        if self._is_queued and self._has_socket:
            self._is_queued = False
            self._streams.heartbeat.sockets.watch(self._socket.fileno())
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(MAX_RECEIVED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received_bytes += len(data)
        if not data or self._received_bytes > MAX_RECEIVED_BYTES:
            self.abort()

    # --- ending ----------------------------------------------------------------------------------

    def close(self, how: Close) -> None:
        self.end(b"", how)

    def disconnect(self) -> None:
        """The application ends all connections of this subject to the session."""
        self._unsubscribe("DISCONNECTED", DISCONNECTED)

    def _expire(self) -> None:
        self._unsubscribe(Unauthorized.code, TOKEN_EXPIRED)

    def _unsubscribe(self, code: str, how: Close) -> None:
        """End the stream, and say that it is no use to come back as before."""
        told = Unsubscribed(session_id=self.session_id, code=code, message=how.reason)
        self._streams.metrics.count_sent("UNSUBSCRIBED")
        self.end(self.encoding.encode(dumps(told)), how)

    def end(self, last: bytes, how: Close) -> None:
        """Leave the room, send this behind all that waits, and end the connection."""
        if self.is_over:
            return
        self.close_code = how.code
        self._leave()
        self.outgoing.finish(last)
        if self._has_socket:
            self._call_in(TOO_SLOW_TIMEOUT_S if how.code == TOO_SLOW.code else END_TIMEOUT_S, self.abort)
            if self.outgoing.is_empty:
                self._end_connection()

    def _leave(self) -> None:
        self.is_over = True
        self._streams.heartbeat.drop(self)
        self._streams.followers.unsubscribe(self.session_id, self)

    def _call_in(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), callback)

    def _end_connection(self) -> None:
        """All is sent: close the socket, or only our end of it if something of the client is unread.

        A full close would then be a reset, which may overtake what was sent.
        """
        try:
            has_unread = bool(self._socket.recv(MAX_RECEIVED_BYTES))
        except OSError:
            has_unread = False
        if not has_unread:
            self.abort()
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def abort(self) -> None:
        """Close the socket at once, whatever is unsent."""
        if not self._has_socket:
            return
        self._has_socket = False
        if not self.is_over:
            self._leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._streams.heartbeat.leave(self._socket.fileno())
        self.outgoing.discard()
        self._socket.close()
        self._streams.on_end(self)
