"""Where connections come in: a few in a turn of the loop, and none while there are no descriptors."""

import asyncio
import logging
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from handlers.api import Front

log = logging.getLogger(__name__)

LISTEN_BACKLOG = 1024
# More would make the loop's turns long: each of them is some work, now and in the next turns.
ACCEPTS_PER_TURN = 16
# After so long there may be descriptors again.
RETRY_S = 1.0


class FrontServer(HTTPServer):
    """Tornado's server, but it takes in few at a time, and tells the front when a connection has ended."""

    request_callback: Front

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
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
        try:
            for _ in range(at_most):
                self._handle_connection(*listener.accept())
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:
            # Out of descriptors, mostly. The kernel keeps who comes; to look again at once would help nobody.
            log.warning("nobody can be let in: %s", error)
            self._look_away(listener)
            asyncio.get_running_loop().call_later(RETRY_S, self._look_at, listener)

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
