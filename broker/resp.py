"""One connection that speaks RESP2 to Redis: calls out and their replies in, or, once subscribed, pushes in.

The client library's connections would do for commands, at twice the cost; its Pub/Sub reader can
starve the event loop when a link goes silent. So this speaks the protocol over hiredis itself.
"""

import asyncio
import fcntl
import logging
import struct
import termios
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import hiredis

log = logging.getLogger(__name__)

Argument = str | bytes | int

# The reader moves all that it has not read yet to the front, again and again: what has piled up is fed to it
# in pieces, which it takes a fraction of the time to read.
FEED_BYTES = 8192


class LinkDown(Exception):
    """No answer. `sent` says whether the request may have reached Redis."""

    def __init__(self, sent: bool, why: str = "no answer") -> None:
        super().__init__(why)
        self.sent = sent


class _Batch:
    """The calls of one turn of the loop, and the token that ECHO brings back behind their replies."""

    def __init__(self, token: bytes, sent_at_s: float) -> None:
        self.token = token
        self.sent_at_s = sent_at_s
        self.ends_at_byte = 0  # of all that is sent over the connection
        self.began_s = time.monotonic()  # exact, which the loop's own time need not be
        self.futures: list[asyncio.Future[Any]] = []
        self.replies: list[Any] = []


class RespConnection(asyncio.Protocol):
    """Sends calls and hands out their replies; once subscribed it hands out what is pushed.

    The calls of one turn of the loop go out in one piece, with an ECHO behind them. Their replies
    are believed only when that has come back in its place: if something in between swallows a reply,
    callers must not be given each other's.
    """

    def __init__(self) -> None:
        self.on_push: Callable[[list[Any]], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_answered: Callable[[float], None] | None = None  # called with the round trip in s
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # When bytes last came in, or were last seen to leave.
        self.moved_at_s = asyncio.get_running_loop().time()
        # Until the greeting is over, Redis may answer whatever we send with the same complaint.
        self.is_greeted = False
        # Why Redis closes, if it says so: too many clients (before we ask), or protected mode.
        self._close_reason = "no answer"
        self._reader = hiredis.Reader()
        self._unsent: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._batches: deque[_Batch] = deque()
        self._tokens = count()
        self._transport: asyncio.Transport | None = None
        self._sent_bytes = 0
        # How much of it the other end had confirmed at the last look, and the batch that the look was for.
        self._confirmed_bytes = 0
        self._tracked: _Batch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.moved_at_s = asyncio.get_running_loop().time()
        try:
            for start in range(0, len(data), FEED_BYTES):
                self._reader.feed(data, start, min(FEED_BYTES, len(data) - start))
                self._take_replies()
        except hiredis.ProtocolError:
            log.exception(
                "what answers is no Redis, or something between changes its answers; connecting anew"
            )
            self.abort()

    def _take_replies(self) -> None:
        gets = self._reader.gets
        while (reply := gets()) is not False:
            if self.on_push is not None:
                self.on_push(reply)
            elif self._batches:
                self._on_reply(self._batches[0], reply)
            elif isinstance(reply, hiredis.ReplyError):
                self._close_reason = str(reply)

    def _on_reply(self, batch: _Batch, reply: Any) -> None:
        if len(batch.replies) < len(batch.futures):
            batch.replies.append(reply)
            return
        if reply != batch.token and (self.is_greeted or not isinstance(reply, hiredis.ReplyError)):
            log.warning("answers of Redis were lost or doubled on the way; connecting anew")
            self.abort()
            return
        self._batches.popleft()
        if self.on_answered is not None:
            self.on_answered(time.monotonic() - batch.began_s)
        for future, each in zip(batch.futures, batch.replies, strict=True):
            if not future.done():
                future.set_result(each)

    def call(self, *arguments: Argument) -> "asyncio.Future[Any]":
        """Send a command; the future's result is its reply, also where that is an error."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self.lost.done():
            _fail([future], sent=False, why=self._close_reason)
            return future
        if not self._unsent:
            loop.call_soon(self._flush)
        self._unsent.append((arguments, future))
        return future

    async def checked_call(self, *arguments: Argument) -> Any:
        """Like `call`, but an error reply raises LinkDown: for what must not fail."""
        reply = await self.call(*arguments)
        if isinstance(reply, hiredis.ReplyError):
            raise LinkDown(sent=False, why=str(reply))
        return reply

    def ping(self) -> None:
        """Make Redis send something."""
        if self.on_push is not None:
            self.send("PING")
        elif not self._unsent:
            self._flush()

    def send(self, *arguments: Argument) -> None:
        """Send a command whose answer comes as a push."""
        assert self._transport is not None
        self._transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]

    def _flush(self) -> None:
        if self.lost.done():
            return
        batch = _Batch(b"%d" % next(self._tokens), asyncio.get_running_loop().time())
        pieces = []
        for arguments, future in self._unsent:
            pieces.append(hiredis.pack_command(arguments))  # type: ignore[arg-type]
            batch.futures.append(future)
        self._unsent.clear()
        self._batches.append(batch)
        assert self._transport is not None
        pieces.append(hiredis.pack_command(("ECHO", batch.token)))  # type: ignore[arg-type]
        data = b"".join(pieces)
        self._sent_bytes += len(data)
        batch.ends_at_byte = self._sent_bytes
        self._transport.write(data)

    @property
    def is_waited_for(self) -> bool:
        return bool(self._batches)

    def track_progress(self, now_s: float) -> None:
        """Note how far the oldest call has got; to be repeated while it is waited for."""
        if not self._batches:
            return
        oldest = self._batches[0]
        before_bytes, was_oldest = self._confirmed_bytes, self._tracked is oldest
        # Only that call's own bytes count: what is sent behind it may just fill buffers that nobody empties.
        if not was_oldest or before_bytes < oldest.ends_at_byte:
            self._confirmed_bytes = self._sent_bytes - self._unsent_bytes()
            if was_oldest and self._confirmed_bytes > before_bytes:
                self.moved_at_s = now_s
        self._tracked = oldest

    def stalled_s(self, now_s: float) -> float:
        """For how long a call has been waiting while no byte of it, nor of any reply, has moved."""
        return now_s - max(self._batches[0].sent_at_s, self.moved_at_s) if self._batches else 0.0

    def _unsent_bytes(self) -> int:
        """What waits in this process and, where the system tells, what the other end has not confirmed."""
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        sock = self._transport.get_extra_info("socket")
        try:
            waiting = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return unsent
        return unsent + int(struct.unpack("i", waiting)[0])

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        if not self.is_greeted and self._batches and self._batches[0].replies:
            reply = self._batches[0].replies[0]
            if isinstance(reply, hiredis.ReplyError):
                self._close_reason = str(reply)
        for batch in self._batches:
            _fail(batch.futures, sent=True, why=self._close_reason)
        _fail([future for _, future in self._unsent], sent=False, why=self._close_reason)
        if self.on_lost is not None:
            self.on_lost()


def _fail(futures: list["asyncio.Future[Any]"], sent: bool, why: str) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(LinkDown(sent, why))
            future.exception()  # marked as retrieved: its caller may have left
