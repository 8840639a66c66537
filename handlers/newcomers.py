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
from collections.abc import Callable, Iterator
from typing import Any

from tornado.iostream import IOStream

from handlers.handshake import Handshakes, Opening
from handlers.origins import foreign_page_refusal
from handlers.read_scheduler import ReadScheduler
from handlers.reply import head_of, http_date, log_reply
from handlers.request import Request
from handlers.request_timeouts import RequestTimeouts
from handlers.services import Services
from handlers.tornado_private import headers_of
from lockstep.errors import LockstepError
from lockstep.tasks import Tasks

# How much is read of a connection at first; a longer head is read by Tornado.
READ_BYTES = 4096
# RFC 9112 3 and 5, without what is obsolete there or not of ASCII. No step of it goes back over a line's end.
_HEAD = re.compile(
    rb"GET (/ws/?)(?:\?([!-~]*))? HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~]*\r\n)+)\r\n"
)
# What has to do with a body, or is for Tornado to answer.
_OF_BODIES = ("Content-Length", "Transfer-Encoding", "Expect")

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

    def find_opening(self, data: bytes, address: Any) -> "Admission | None":
        """What these first bytes of a connection ask for, if it is a handshake that nothing forbids."""
        services = self._services
        found = _HEAD.match(data)
        if found is None:
            return None
        path, query, lines = found[1].decode(), (found[2] or b"").decode(), found[3].decode()
        headers = headers_of(_fields(lines))
        if headers is None or any(name in headers for name in _OF_BODIES):
            return None
        if foreign_page_refusal(services.origins, services.hosts, "GET", path, True, headers) is not None:
            return None
        request = Request("GET", path, query, "", headers, peer_of(address), services.addresses, 0)
        if self._handshakes.find_refusal(request) is not None:
            return None
        try:
            opening = self._handshakes.grant(request)
        except LockstepError:
            return None
        return Admission(request, opening, data[found.end() :])

    def open(self, admission: "Admission", sock: socket.socket) -> None:
        request, opening = admission.request, admission.opening
        headers = {"Date": http_date(), "X-Request-ID": request.request_id, **opening.headers}
        self._tasks.spawn(opening.open(sock, head_of(101, headers), admission.early))
        duration_s = time.monotonic() - admission.began_s
        self._services.metrics.observe_request("GET", request.path, 101, duration_s)
        log_reply(request.request_id, "GET", request.path, 101, duration_s)


class Admission:
    """A handshake that will be answered when it is its turn."""

    __slots__ = ("began_s", "early", "opening", "request")

    def __init__(self, request: Request, opening: Opening, early: bytes) -> None:
        self.request = request
        self.opening = opening
        self.early = early
        self.began_s = time.monotonic()


class Newcomer:
    """A connection until its first bytes have come and, if they are a handshake, until it is their turn."""

    __slots__ = ("_address", "_admission", "_is_watched", "_newcomers", "_pass_on", "_socket")

    # For the timeouts: nothing has come yet.
    stream: IOStream | None = None
    has_head = is_whole = False

    def __init__(self, newcomers: Newcomers, sock: socket.socket, address: Any, pass_on: PassOn) -> None:
        self._newcomers = newcomers
        self._socket = sock
        self._address = address
        self._pass_on = pass_on
        self._is_watched = False
        self._admission: Admission | None = None

    def read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            self._watch()
            return
        except OSError:
            data = b""
        self._unwatch()
        if not data:
            self._socket.close()
            return
        self._admission = self._newcomers.find_opening(data, self._address)
        if self._admission is None:
            self._pass_on(self._socket, self._address, data)
        elif self._newcomers.scheduler.admit_or_queue(self):
            self.read_on()

    def read_on(self) -> None:
        assert self._admission is not None
        self._newcomers.open(self._admission, self._socket)

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


def _fields(lines: str) -> Iterator[tuple[str, str]]:
    for line in lines.split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        yield name, value.strip(" \t")


def peer_of(address: Any) -> str:
    """Who has connected: an IP address, or nobody in particular by a Unix socket."""
    return address[0] if isinstance(address, tuple) else ""
