"""REST at Tornado's lower interface, where a request comes in and a reply goes out.

Tornado's RequestHandler could do this, but its generality costs more than all that a switch does. What it is
kept for, the page, is passed on to a Tornado application.
"""

import asyncio
import re
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
)
from tornado.iostream import IOStream
from tornado.web import Application

from handlers.exchange import Exchange, UnwantedBody, announces_much
from handlers.handshake import SOCKET_PATHS, Handshakes
from handlers.newcomers import Newcomers
from handlers.origins import foreign_page_refusal
from handlers.read_scheduler import ReadScheduler
from handlers.request import Request
from handlers.request_timeouts import RequestTimeouts
from handlers.router import REFUSED, Router, unknown_route
from handlers.services import Services
from handlers.tornado_private import peer_address

# After this much of a body its sender is queued like all others that send one.
BODY_BYTES_PER_READ = 16_384
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)(.*)", re.IGNORECASE)


class Transport(HTTPServerConnectionDelegate):
    """Takes every request of this process, and finds what answers it."""

    def __init__(
        self,
        services: Services,
        router: Router,
        application: Application,
        application_paths: frozenset[str],
        handshakes: Handshakes,
        keep_alive_s: float,
    ) -> None:
        self.in_flight: set[Exchange] = set()
        self.body_scheduler = ReadScheduler()
        self._request_scheduler = ReadScheduler()
        self._newcomer_scheduler = ReadScheduler()
        self._services = services
        self._router = router
        self._application = application
        self._application_paths = application_paths
        self._timeouts = RequestTimeouts(keep_alive_s)
        self.newcomers = Newcomers(services, handshakes, self._newcomer_scheduler, self._timeouts)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        assert isinstance(request_conn, HTTP1Connection)
        # A crowd of new clients has a queue of its own, as WebSockets have: no kind waits behind another.
        is_known = self._timeouts.has_seen(server_conn)
        scheduler = self._request_scheduler if is_known else self._newcomer_scheduler
        incoming = IncomingRequest(self, server_conn, request_conn, scheduler)
        self._timeouts.begin(server_conn, incoming)
        return incoming

    def on_close(self, server_conn: object) -> None:
        self._timeouts.forget(server_conn)

    def find_delegate(
        self,
        server_conn: object,
        connection: HTTP1Connection,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
    ) -> HTTPMessageDelegate:
        """What answers the request."""
        services, method = self._services, start_line.method
        path, _, query = start_line.path.partition("?")
        is_tornados = path in self._application_paths
        is_of_pages = is_tornados or path in SOCKET_PATHS
        refuse = foreign_page_refusal(services.origins, services.hosts, method, path, is_of_pages, headers)
        if refuse is None and is_tornados and not announces_much(headers):
            return self._application.start_request(server_conn, connection)
        if start_line.version != "HTTP/1.0" and ("Host" not in headers or "," in headers["Host"]):
            raise HTTPInputError("A request has one Host")  # RFC 9112 3.2
        kind, session_id = Exchange, ""
        if refuse is not None:
            route = REFUSED
        else:
            route, session_id = self._router.find(method, path)
            if route.method != "POST" and announces_much(headers):
                kind, route = UnwantedBody, unknown_route(method)
        request = Request(
            method,
            path,
            query,
            session_id,
            headers,
            peer_address(connection),
            services.addresses,
            route.max_body_bytes,
        )
        refusal = None if refuse is None else refuse(request.request_id)
        return kind(services, self.in_flight, connection, request, route, refusal)


class IncomingRequest(HTTPMessageDelegate):
    """A request, from its first byte to its last: it is read when the schedulers admit it."""

    def __init__(
        self,
        transport: Transport,
        server_conn: object,
        connection: HTTP1Connection,
        scheduler: ReadScheduler,
    ) -> None:
        self.connection = connection
        self.has_head = self.is_whole = False
        self._transport = transport
        self._server_conn = server_conn
        self._delegate: HTTPMessageDelegate | None = None
        self._scheduler = scheduler
        self._admitted: asyncio.Future[None] | None = None
        self._unscheduled_bytes = 0

    @property
    def stream(self) -> IOStream | None:
        return self.connection.stream

    def cut_off(self) -> None:
        self.connection.stream.close()

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> Any:
        self.has_head = True
        if self._scheduler.admit_or_queue(self):
            return self._begin(start_line, headers)
        self._admitted = asyncio.get_running_loop().create_future()
        return self._begin_when_admitted(start_line, headers)

    def read_on(self) -> None:
        assert self._admitted is not None
        if not self._admitted.done():
            self._admitted.set_result(None)

    async def _begin_when_admitted(self, start_line: Any, headers: HTTPHeaders) -> None:
        assert self._admitted is not None
        await self._admitted
        if self.connection.stream.closed():
            self.connection.detach()  # nobody is left to be answered, nor what is still in the buffer
            return
        receiving = self._begin(start_line, headers)
        if receiving is not None:
            await receiving

    def _begin(self, start_line: Any, headers: HTTPHeaders) -> Any:
        if not start_line.path.startswith("/"):
            start_line = _in_origin_form(start_line, headers)
        self._delegate = self._transport.find_delegate(
            self._server_conn, self.connection, start_line, headers
        )
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        assert self._delegate is not None
        self._delegate.data_received(chunk)
        self._unscheduled_bytes += len(chunk)
        if self._unscheduled_bytes < BODY_BYTES_PER_READ:
            return None
        self._unscheduled_bytes = 0
        self._scheduler = self._transport.body_scheduler
        if self._scheduler.admit_or_queue(self):
            return None
        self._admitted = asyncio.get_running_loop().create_future()
        return self._admitted

    def finish(self) -> None:
        self.is_whole = True
        assert self._delegate is not None
        self._delegate.finish()

    def on_connection_close(self) -> None:
        if self._delegate is not None:
            self._delegate.on_connection_close()


def _in_origin_form(start_line: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """`GET http://host/path` as `GET /path`, with its host instead of the one in Host (RFC 9112 3.2.2)."""
    found = _ABSOLUTE.fullmatch(start_line.path)
    if found is None:
        return start_line
    if "Host" in headers:
        headers["Host"] = found[1]
    rest = found[2]
    return start_line._replace(path=rest if rest.startswith("/") else "/" + rest)
