"""Where connections come in: a few in a turn of the loop, and none while there are no descriptors."""

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, UnsatisfiableReadError

from handlers.answers import error_body
from handlers.api import Front
from handlers.read_scheduler import ReadScheduler
from lockstep.errors import HeadTooLarge

log = logging.getLogger(__name__)

LISTEN_BACKLOG = 1024
# More would make the loop's turns long: each of them is some work, now and in the next turns.
ACCEPTS_PER_TURN = 16
# After so long there may be descriptors again.
RETRY_S = 1.0
# So many are kept for what the process opens itself: its connections to Redis and Sentinel, names, files.
RESERVED_DESCRIPTORS = 32
# Below that there would be no room for clients.
MIN_DESCRIPTORS = 2 * RESERVED_DESCRIPTORS
# What is read of a connection at a time.
CHUNK_BYTES = 4096
MAX_HEAD_BYTES = 16_384
MAX_CHUNKS = 4096
CHUNKS_PER_TURN = 32
_HEAD_TOO_LARGE = error_body(HeadTooLarge(f"The head of a request must not exceed {MAX_HEAD_BYTES} bytes"))


class ClientStream(IOStream):
    """What Tornado's lacks: a word on a head that is too long, and a bound for a body in crumbs.

    A body in chunks of a byte costs as much for each as others for a packet.
    """

    def __init__(self, connection: socket.socket, turns: ReadScheduler) -> None:
        super().__init__(connection, read_chunk_size=CHUNK_BYTES)
        self._turns = turns
        self._turn: asyncio.Future[None] | None = None
        self._chunks = 0  # of this request's body

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """A request's head."""
        self._chunks = 0
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """The line before a chunk."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            self.close()
        if self._chunks % CHUNKS_PER_TURN or self._turns.admit_or_queue(self):
            return super().read_until(delimiter, max_bytes)
        self._turn = asyncio.get_running_loop().create_future()
        return asyncio.ensure_future(self._read_later(self._turn, delimiter, max_bytes))

    async def _read_later(
        self, turn: "asyncio.Future[None]", delimiter: bytes, max_bytes: int | None
    ) -> bytes:
        await turn
        return await super().read_until(delimiter, max_bytes)

    def read_on(self) -> None:
        assert self._turn is not None
        if not self._turn.done():
            self._turn.set_result(None)

    def close(self, exc_info: Any = False) -> None:
        is_reading_head = self._read_regex is not None
        if isinstance(exc_info, UnsatisfiableReadError) and is_reading_head and not self.closed():
            head = (
                f"HTTP/1.1 {HeadTooLarge.status} Request Header Fields Too Large\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(_HEAD_TOO_LARGE)}\r\n\r\n"
            )
            with suppress(OSError):
                self.socket.send(head.encode() + _HEAD_TOO_LARGE)
                self.socket.shutdown(socket.SHUT_WR)
                # With data unread a close is a reset, which may overtake the answer.
                self.socket.recv(4 * MAX_HEAD_BYTES)
        super().close(exc_info)
        if self.error is not None:
            # Its frames lead back here: a cycle, and all that was read would wait for the collector.
            self.error.__traceback__ = None


def descriptor_limit() -> int:
    """How many files this process may have open; it may be changed while it runs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


class FrontServer(HTTPServer):
    """Tornado's server, but it takes in few at a time, and tells the front when a connection has ended.

    Raises ValueError where the limit of open files leaves no room for clients.
    """

    request_callback: Front

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        if descriptor_limit() < MIN_DESCRIPTORS:
            raise ValueError(
                f"only {descriptor_limit()} files may be open (ulimit -n): {MIN_DESCRIPTORS} are the least"
            )
        super().initialize(*args, **kwargs)
        self.conn_params.chunk_size = CHUNK_BYTES
        self.conn_params.max_header_size = MAX_HEAD_BYTES
        self.conn_params.header_timeout = None  # handlers/patience.py sees to that

    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        stream.set_nodelay(True)
        # Our answers go out in one piece: Tornado need not switch this back and forth for each.
        stream.set_nodelay = _leave_as_it_is  # type: ignore[method-assign]
        super().handle_stream(stream, address)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for listener in sockets:
            self._sockets[listener.fileno()] = listener
            self._handlers[listener.fileno()] = partial(self._look_away, listener)
            self._look_at(listener)

    def stop(self) -> None:
        """Close the listeners; whom the kernel has let in already is taken in first, not reset."""
        for listener in self._sockets.values():
            self._take_in(listener, LISTEN_BACKLOG)
        super().stop()

    def _take_in(self, listener: socket.socket, at_most: int) -> None:
        first_reserved = descriptor_limit() - RESERVED_DESCRIPTORS
        try:
            for _ in range(at_most):
                connection, address = listener.accept()
                # The lowest that is free, so its number tells how many are in use.
                descriptor = connection.fileno()
                self._handle_connection(connection, address)
                if descriptor >= first_reserved:
                    self._pause(listener, f"{descriptor} of {descriptor_limit()} files are open")
                    return
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:
            self._pause(listener, str(error))

    def _pause(self, listener: socket.socket, why: str) -> None:
        """Leave who comes to the kernel until there are descriptors again."""
        log.warning("no more clients are let in for now: %s", why)
        self._look_away(listener)
        asyncio.get_running_loop().call_later(RETRY_S, self._go_on, listener)

    def _go_on(self, listener: socket.socket) -> None:
        if self._stopped:
            return
        try:
            lowest_free = os.dup(listener.fileno())
            os.close(lowest_free)
        except OSError:
            lowest_free = sys.maxsize
        if lowest_free < descriptor_limit() - RESERVED_DESCRIPTORS:
            self._look_at(listener)
        else:
            asyncio.get_running_loop().call_later(RETRY_S, self._go_on, listener)

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        try:
            self.handle_stream(ClientStream(connection, self.request_callback.bodies), address)
        except Exception:
            log.exception("a connection could not be taken in")

    def _look_at(self, listener: socket.socket) -> None:
        if not self._stopped:
            asyncio.get_running_loop().add_reader(listener, self._take_in, listener, ACCEPTS_PER_TURN)

    def _look_away(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listener)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        self.request_callback.on_close(server_conn)


def _leave_as_it_is(value: bool) -> None:
    pass
