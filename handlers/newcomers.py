"""New connections: most begin with a WebSocket's handshake, which is answered here; the others are Tornado's.

Tornado reads a head with a stream, a connection, a coroutine and several futures, to be able to read another
request behind it. A handshake that comes in one piece, as all do but the oddest, and that nothing forbids,
needs none of them. Whatever is not such a one is passed on with what has been read of it, and answered as
every other request: so what is refused, and how, is decided in one place.
"""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tornado.iostream import IOStream

from handlers.handshake import Handshakes
from handlers.origins import foreign_page_refusal
from handlers.read_scheduler import ReadScheduler
from handlers.reply import head_of, http_date, log_reply
from handlers.request import Request
from handlers.request_timeouts import RequestTimeouts
from handlers.services import Services
from lockstep.errors import LockstepError
from lockstep.tasks import Tasks

# How much is read of a connection at first; a longer head is read by Tornado.
READ_BYTES = 4096
# RFC 9112 3 and 5, without what is obsolete there or not of ASCII. No step of it goes back over a line's end.
_HEAD = re.compile(
    rb"GET (/ws/?)(?:\?([!-~]*))? HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~]*\r\n)+)\r\n"
)
_BEGINNING = b"GET /ws"
_FIELD = re.compile(r"([^:]+):([^\r]*)\r\n")
_SPELLED = {"websocket": "WebSocket", "id": "ID"}
# What has to do with a body, or is for Tornado to answer.
_FOR_TORNADO = frozenset({"Content-Length", "Transfer-Encoding", "Expect"})

PassOn = Callable[[socket.socket, Any, bytes], None]
"""Lets Tornado serve a connection, from which these bytes have been read."""


class Newcomers:
    """Takes every new connection of a process."""

    def __init__(
        self, services: Services, handshakes: Handshakes, scheduler: ReadScheduler, timeouts: RequestTimeouts
    ) -> None:
        self.scheduler = scheduler
        self.timeouts = timeouts
        self._services = services
        self._handshakes = handshakes
        self._tasks = Tasks()

    def take(self, sock: socket.socket, address: Any, pass_on: PassOn) -> None:
        """Serve a connection that was accepted just now."""
        sock.setblocking(False)
        # Its request has mostly come by now: then the loop need not look at the socket for it.
        Newcomer(self, sock, address, pass_on).read()

    def open(self, sock: socket.socket, address: Any, data: bytes) -> bool:
        """Let a client in whose first bytes are a handshake that nothing forbids; False: they are not."""
        began_s, services = time.monotonic(), self._services
        found = _HEAD.match(data)
        if found is None:
            return False
        path, query, lines = found[1].decode(), (found[2] or b"").decode(), found[3].decode()
        fields = _FIELD.findall(lines)
        headers = {spelled(name): value.strip(" \t") for name, value in fields}
        if len(headers) != len(fields) or not _FOR_TORNADO.isdisjoint(headers):
            return False
        if foreign_page_refusal(services.origins, services.hosts, "GET", path, True, headers) is not None:
            return False
        request = Request("GET", path, query, "", headers, peer_of(address), services.addresses, 0)
        if self._handshakes.find_refusal(request) is not None:
            return False
        try:
            opening = self._handshakes.grant(request)
        except LockstepError:
            return False
        answered = {"Date": http_date(), "X-Request-ID": request.request_id, **opening.headers}
        self._tasks.spawn(opening.open(sock, head_of(101, answered), data[found.end() :]))
        duration_s = time.monotonic() - began_s
        services.metrics.observe_request("GET", path, 101, duration_s)
        log_reply(request.request_id, "GET", path, 101, duration_s)
        return True


class Newcomer:
    """A connection until its first bytes have come and, if they may be a handshake, its turn."""

    __slots__ = ("_address", "_data", "_is_watched", "_newcomers", "_pass_on", "_socket")

    # For the timeouts: nothing has come yet.
    stream: IOStream | None = None
    has_head = is_whole = False

    def __init__(self, newcomers: Newcomers, sock: socket.socket, address: Any, pass_on: PassOn) -> None:
        self._newcomers = newcomers
        self._socket = sock
        self._address = address
        self._pass_on = pass_on
        self._is_watched = False
        self._data = b""

    def read(self) -> None:
        try:
            self._data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            self._watch()
            return
        except OSError:
            pass
        self._unwatch()
        if not self._data:
            self._socket.close()
        elif not self._data.startswith(_BEGINNING):
            self._pass_on(self._socket, self._address, self._data)
        elif self._newcomers.scheduler.admit_or_queue(self):
            self.read_on()

    def read_on(self) -> None:
        if not self._newcomers.open(self._socket, self._address, self._data):
            self._pass_on(self._socket, self._address, self._data)

    def cut_off(self) -> None:
        self._unwatch()
        self._socket.close()

    def _watch(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            self._newcomers.timeouts.begin(self, self)
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self.read)

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._newcomers.timeouts.forget(self)
            asyncio.get_running_loop().remove_reader(self._socket.fileno())


@lru_cache(1000)
def spelled(name: str) -> str:
    """A header's name as this code spells all of them: Sec-WebSocket-Key, X-Request-ID."""
    return "-".join(_SPELLED.get(part.lower()) or part.capitalize() for part in name.split("-"))


def peer_of(address: Any) -> str:
    """Who has connected: an IP address, or nobody in particular by a Unix socket."""
    return address[0] if isinstance(address, tuple) else ""
