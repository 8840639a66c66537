"""Accepts connections: a few in each iteration of the loop, and none while descriptors are short."""

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, UnsatisfiableReadError

from handlers import tornado_private
from handlers.listeners import LISTEN_BACKLOG, UnixListener
from handlers.read_scheduler import ReadScheduler
from handlers.reply import error_reply
from handlers.transport import Transport
from lockstep.errors import HeadTooLarge

log = logging.getLogger(__name__)

# Each new connection is some work, in this iteration of the loop and in the next: more would make them long.
ACCEPTS_PER_ITERATION = 16
# Retry accept() after this delay when out of file descriptors.
RETRY_S = 1.0
# Descriptors kept for what the process opens itself: connections to Redis and Sentinel, name lookups, files.
RESERVED_DESCRIPTORS = 32
# Below this limit there would be no room for clients.
MIN_DESCRIPTORS = 2 * RESERVED_DESCRIPTORS
# How much is read from a connection at a time.
READ_BYTES = 4096
MAX_HEAD_BYTES = 16_384
MAX_CHUNKS = 4096
CHUNKS_PER_READ = 32
_HEAD_TOO_LARGE = error_reply(
    HeadTooLarge(f"The head of a request must not exceed {MAX_HEAD_BYTES} bytes")
).body


class ClientStream(IOStream):
    """Tornado's stream, which also answers a head that is too long, and bounds a body in tiny chunks.

    A chunk of one byte costs as much as a whole packet.
    """

    def __init__(self, connection: socket.socket, scheduler: ReadScheduler) -> None:
        super().__init__(connection, read_chunk_size=READ_BYTES)
        self._scheduler = scheduler
        self._admitted: asyncio.Future[None] | None = None
        self._chunks = 0  # of the current request's body

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read a request's head."""
        self._chunks = 0
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read the line before a chunk."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            self.close()
        if self._chunks % CHUNKS_PER_READ or self._scheduler.admit_or_queue(self):
            return super().read_until(delimiter, max_bytes)
        self._admitted = asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(self._read_when_admitted(self._admitted, delimiter, max_bytes))

    async def _read_when_admitted(
        self, admitted: "asyncio.Future[None]", delimiter: bytes, max_bytes: int | None
    ) -> bytes:
        await admitted
        return await super().read_until(delimiter, max_bytes)

    def read_on(self) -> None:
        assert self._admitted is not None
        if not self._admitted.done():
            self._admitted.set_result(None)

    def set_nodelay(self, value: bool) -> None:
        """It is always on: replies go out in one piece, so Tornado need not switch it for each of them."""

    def close(self, exc_info: Any = False) -> None:
        is_too_long = isinstance(exc_info, UnsatisfiableReadError) and tornado_private.is_reading_head(self)
        if is_too_long and not self.closed():
            self._answer_too_long_head()
        super().close(exc_info)
        if self.error is not None:
            # Its frames refer to this stream: a cycle, and all that was read would wait for the collector.
            self.error.__traceback__ = None

    def _answer_too_long_head(self) -> None:
        head = (
            f"HTTP/1.1 {HeadTooLarge.status} Request Header Fields Too Large\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(_HEAD_TOO_LARGE)}\r\n\r\n"
        )
        with suppress(OSError):
            self.socket.send(head.encode() + _HEAD_TOO_LARGE)
            self.socket.shutdown(socket.SHUT_WR)
            # With data unread, closing resets the connection, and the reset may overtake the answer.
            self.socket.recv(4 * MAX_HEAD_BYTES)


def descriptor_limit() -> int:
    """How many files this process may have open; the limit may be changed while it runs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


class ClientServer(HTTPServer):
    """Tornado's server, which accepts few at a time, and tells the transport when a connection has ended.

    Raises ValueError where the limit of open files leaves no room for clients.
    """

    request_callback: Transport

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        if descriptor_limit() < MIN_DESCRIPTORS:
            raise ValueError(
                f"only {descriptor_limit()} files may be open (ulimit -n): {MIN_DESCRIPTORS} are the least"
            )
        super().initialize(*args, **kwargs)
        # handlers/request_timeouts.py does what Tornado's own timeout would.
        tornado_private.configure(self, chunk_bytes=READ_BYTES, max_head_bytes=MAX_HEAD_BYTES)
        self._listeners: list[socket.socket] = []

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for listener in sockets:
            with suppress(OSError):  # a Unix socket has nothing of the kind
                # What it accepts has it from the first.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._listeners.append(listener)
            self._watch(listener)

    def stop(self) -> None:
        """Close the listeners; connections that the kernel has accepted already are served, not reset.

        What still arrives on an open connection is answered with Connection: close.
        """
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            if isinstance(listener, UnixListener):
                listener.unlink()  # before its queue is emptied: nobody can come into it behind that
            self._accept(listener, LISTEN_BACKLOG)
            self._unwatch(listener)
            listener.close()
        tornado_private.end_keep_alive(self)

    def _accept(self, listener: socket.socket, at_most: int) -> None:
        first_reserved = descriptor_limit() - RESERVED_DESCRIPTORS
        try:
            for _ in range(at_most):
                connection, address = listener.accept()
                # The kernel gives the lowest free number, so it tells how many are in use.
                descriptor = connection.fileno()
                self._begin(connection, address)
                if descriptor >= first_reserved:
                    self._pause(listener, f"{descriptor} of {descriptor_limit()} files are open")
                    return
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:
            self._pause(listener, str(error))

    def _begin(self, connection: socket.socket, address: Any) -> None:
        try:
            self.request_callback.newcomers.take(connection, address, self._serve)
        except Exception:
            log.exception("a connection could not be taken in")

    def _serve(self, connection: socket.socket, address: Any, data: bytes) -> None:
        """Serve a connection from which these bytes have been read."""
        stream = ClientStream(connection, self.request_callback.body_scheduler)
        tornado_private.fill(stream, data)
        self.handle_stream(stream, address)

    def _pause(self, listener: socket.socket, why: str) -> None:
        """Leave new connections in the kernel's queue until there are descriptors again."""
        log.warning("no more clients are let in for now: %s", why)
        self._unwatch(listener)
        asyncio.get_running_loop().call_later(RETRY_S, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener not in self._listeners:
            return  # it was closed meanwhile
        try:
            lowest_free = os.dup(listener.fileno())
            os.close(lowest_free)
        except OSError:
            lowest_free = sys.maxsize
        if lowest_free < descriptor_limit() - RESERVED_DESCRIPTORS:
            self._watch(listener)
        else:
            asyncio.get_running_loop().call_later(RETRY_S, self._resume, listener)

    def _watch(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, ACCEPTS_PER_ITERATION)

    def _unwatch(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self.request_callback.on_close(server_conn)
