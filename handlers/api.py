"""REST at Tornado's lower seam: a request comes in, an answer goes out.

Tornado's RequestHandler would do; but its generality costs more than all that a switch does. What it is
kept for, the page and the WebSocket's handshake, `Front` hands on to it.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http.client import responses
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from tornado.escape import parse_qs_bytes
from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application

from handlers.answers import error_body, error_headers, http_date, log_answer, request_id_of
from handlers.origins import Hosts, Origins, refused_host, refused_origin
from handlers.read_scheduler import ReadScheduler
from handlers.request_timeouts import RequestTimeouts
from handlers.tokens import Tokens
from handlers.tornado_private import ReplyHeaders
from lockstep.access import OPEN
from lockstep.addresses import Addresses
from lockstep.errors import (
    Forbidden,
    LockstepError,
    MalformedJson,
    MethodNotAllowed,
    PayloadTooLarge,
    RouteNotFound,
    Unauthorized,
    UnsupportedMediaType,
    ValidationError,
    Violation,
)
from lockstep.limits import RateLimits, RateLimitStatus
from lockstep.metrics import Metrics
from lockstep.rules.state_json import dumps
from lockstep.wire import strict_json

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_048_576
# So much of a refused body is still read, so that the client gets to the answer; then it is cut off.
MAX_DRAINED_BYTES = 4 * MAX_BODY_BYTES
# The same where the caller may not do what it asks for, whatever its body says; nothing of that is kept.
MAX_DRAINED_OF_REFUSED_BYTES = MAX_BODY_BYTES
# What a request may bring along that nobody looks at: beyond it there is no place for a body.
MAX_UNWANTED_BYTES = 4096
# After so much of a body its sender waits for its turn, as all do that send one.
BODY_BYTES_PER_TURN = 16_384
MAX_QUERY_ARGUMENTS = 100
# A length of more digits is of no body that anybody could send; Tornado would stumble over thousands of them.
MAX_LENGTH_DIGITS = 18
TORNADO_MAX_BODY_BYTES = 2**62
# For each method the function that does what it asks; HEAD is answered as GET is, and its body is left out.
ACTIONS = {"GET": "get", "HEAD": "get", "POST": "post", "DELETE": "delete", "OPTIONS": "options"}
CHANGES = ("POST", "DELETE")
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)(.*)", re.IGNORECASE)

_REQUEST_START = re.compile(r"t=([0-9]{1,10}(\.[0-9]{1,6})?)", re.ASCII)

# A pattern of paths, who answers, and what he needs for it.
Route = tuple[str, "type[ApiHandler]", dict[str, Any]]


class Front(HTTPServerConnectionDelegate):
    """The first to see a request: it finds who answers. REST and what nobody knows is answered here."""

    def __init__(
        self,
        routes: list[Route],
        application: Application,
        paths: frozenset[str],
        origins: Origins,
        hosts: Hosts | None,
        keep_alive_s: float,
        addresses: Addresses,
        rates: RateLimits | None,
        tokens: Tokens,
        metrics: Metrics,
    ) -> None:
        """`paths` are those that `application` answers; `hosts` is None where any name will do."""
        self.addresses = addresses
        self.tokens = tokens
        self.rates = rates  # None: nothing is limited
        self.metrics = metrics
        self.in_flight: set[ApiHandler] = set()
        self._routes = [(re.compile(pattern), handler, services) for pattern, handler, services in routes]
        self._application = application
        self._paths = paths
        self._origins = origins
        self._hosts = hosts
        self._timeouts = RequestTimeouts(keep_alive_s)
        self._requests = ReadScheduler()
        self._arrivals = ReadScheduler()
        self.bodies = ReadScheduler()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        assert isinstance(request_conn, HTTP1Connection)
        # A crowd of newcomers has a line of its own, as WebSockets have: nobody waits behind another kind.
        turns = self._requests if self._timeouts.has_seen(server_conn) else self._arrivals
        incoming = _Incoming(self, server_conn, request_conn, turns)
        self._timeouts.begin(server_conn, incoming)
        return incoming

    def on_close(self, server_conn: object) -> None:
        self._timeouts.forget(server_conn)

    def choose(
        self,
        server_conn: object,
        connection: HTTPConnection,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
    ) -> HTTPMessageDelegate:
        path, _, query = start_line.path.partition("?")
        assert isinstance(connection, HTTP1Connection)
        refuse = self._refusal(start_line.method, path, headers)
        is_ours = path not in self._paths
        if refuse is None and not is_ours and not _brings_much(headers):
            return self._application.start_request(server_conn, connection)
        if start_line.version != "HTTP/1.0" and ("Host" not in headers or "," in headers["Host"]):
            raise HTTPInputError("A request has one Host")  # RFC 9112 3.2
        handler, services, arguments = self._route(path)
        if refuse is not None:
            handler, services = Refused, {"origins": self._origins, "refuse": refuse}
        elif not (is_ours and start_line.method == "POST" and hasattr(handler, "post")) and _brings_much(
            headers
        ):
            handler, services = UnwantedBody, {"origins": self._origins}
        return handler(self, connection, start_line.method, path, query, headers, arguments, services)

    def _refusal(self, method: str, path: str, headers: HTTPHeaders) -> Callable[[str], Forbidden] | None:
        """How a page is refused that another site has made, if this is one's request; given its id.

        A browser names the Origin of every POST and DELETE, and lets no page choose it, nor the Host.
        """
        is_of_api = path.startswith("/v1/")
        host = headers.get("Host")
        hosts = self._hosts if is_of_api or path in self._paths else None
        if hosts is not None and host is not None and not hosts.admits(host):
            return partial(refused_host, host)
        if is_of_api and method in CHANGES:
            origin = headers.get("Origin")
            if origin is not None and not self._origins.admits(origin, host or ""):
                return partial(refused_origin, origin, host or "")
        return None

    def _route(self, path: str) -> tuple["type[ApiHandler]", dict[str, Any], list[str]]:
        for pattern, handler, services in self._routes:
            match = pattern.fullmatch(path)
            if match is not None:
                return handler, services, [_unquoted(each) for each in match.groups()]
        return UnknownRoute, {"origins": self._origins}, []


class _Incoming(HTTPMessageDelegate):
    """A request, from its first byte to its last."""

    def __init__(
        self, front: Front, server_conn: object, connection: HTTP1Connection, turns: ReadScheduler
    ) -> None:
        self.connection = connection
        self.has_head = self.is_whole = False
        self._front = front
        self._server_conn = server_conn
        self._chosen: HTTPMessageDelegate | None = None
        self._turns = turns
        self._turn: asyncio.Future[None] | None = None
        self._unpaced_bytes = 0

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> Any:
        self.has_head = True
        if self._turns.admit_or_queue(self):
            return self._begin(start_line, headers)
        self._turn = asyncio.get_running_loop().create_future()
        return self._wait_and_begin(start_line, headers)

    def read_on(self) -> None:
        assert self._turn is not None
        if not self._turn.done():
            self._turn.set_result(None)

    async def _wait_and_begin(self, start_line: Any, headers: HTTPHeaders) -> None:
        assert self._turn is not None
        await self._turn
        if self.connection.stream.closed():
            self.connection.detach()  # nobody is left to be answered, not even what is still in the buffer
            return
        receiving = self._begin(start_line, headers)
        if receiving is not None:
            await receiving

    def _begin(self, start_line: Any, headers: HTTPHeaders) -> Any:
        if not start_line.path.startswith("/"):
            start_line = _in_origin_form(start_line, headers)
        self._chosen = self._front.choose(self._server_conn, self.connection, start_line, headers)
        return self._chosen.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        assert self._chosen is not None
        self._chosen.data_received(chunk)
        self._unpaced_bytes += len(chunk)
        if self._unpaced_bytes < BODY_BYTES_PER_TURN:
            return None
        self._unpaced_bytes = 0
        self._turns = self._front.bodies
        if self._turns.admit_or_queue(self):
            return None
        self._turn = asyncio.get_running_loop().create_future()
        return self._turn

    def finish(self) -> None:
        self.is_whole = True
        assert self._chosen is not None
        self._chosen.finish()

    def on_connection_close(self) -> None:
        if self._chosen is not None:
            self._chosen.on_connection_close()


class ApiHandler(HTTPMessageDelegate):
    """One request: parse, call one service, reply. Errors become JSON here and nowhere else."""

    is_limited = True
    needs_token = False
    # True where the charge goes to the store together with what else is asked of it.
    admits_itself = False

    def __init__(
        self,
        front: Front,
        connection: HTTP1Connection,
        method: str,
        path: str,
        query: str,
        headers: HTTPHeaders,
        arguments: list[str],
        services: dict[str, Any],
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.request_id = request_id_of(headers)
        self._query = query
        self._arguments = arguments
        self._front = front
        self._in_flight = front.in_flight
        self._connection = connection
        self._began_s = time.monotonic()
        self._body = bytearray()
        self._body_bytes = 0
        self._reply_headers = ReplyHeaders()
        self._is_answered = False
        self._task: asyncio.Task[None] | None = None
        self.charge: Awaitable[RateLimitStatus] | None = None
        self._standing: RateLimitStatus | None = None
        self.access = OPEN
        # By name: a bound method would be a cycle, which only the collector takes apart.
        self._action = ACTIONS.get(method, "")
        self._refusal: LockstepError | None = None
        self._max_drained_bytes = MAX_DRAINED_BYTES
        self.initialize(**services)

    def initialize(self, origins: Origins) -> None:
        self._origins = origins

    # --- the request -----------------------------------------------------------------------------

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        self._in_flight.add(self)
        self._refusal = self._refusal_of_head()
        if self._refusal is not None:
            self._max_drained_bytes = MAX_DRAINED_OF_REFUSED_BYTES
        # The limit is ours to tell, in JSON; Tornado's own would cut the connection.
        self._connection.set_max_body_size(TORNADO_MAX_BODY_BYTES)
        declared = headers.get("Content-Length", "0")
        if declared.isdecimal() and len(declared) > MAX_LENGTH_DIGITS:
            headers["Content-Length"] = str(TORNADO_MAX_BODY_BYTES)  # else it would answer, too
            self._refuse_body()
        elif declared.isdecimal() and int(declared) > self._max_drained_bytes:
            self._refuse_body()

    def _refusal_of_head(self) -> LockstepError | None:
        """Why this caller may not do what it asks for, whatever the body says: told before that is read."""
        try:
            if self.needs_token:
                if self.method != "OPTIONS":
                    self.access = self._front.tokens.access(self.headers, self._token_in_query())
                    if hasattr(self, self._action):
                        self.authorize()
            elif self.is_limited and self._front.rates is not None:
                # It needs no token; but one that is good says whose request it is.
                with contextlib.suppress(Unauthorized):
                    self.access = self._front.tokens.access(self.headers, self._token_in_query())
        except LockstepError as error:
            return error
        except Exception:
            log.exception("a request failed", extra={"request_id": self.request_id})
            return LockstepError("Internal server error")
        return None

    def authorize(self) -> None:
        """Raises Forbidden where `access` does not allow what is asked for."""

    def data_received(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        if self._refusal is None and self._body_bytes <= MAX_BODY_BYTES:
            self._body += chunk
        elif self._body_bytes > self._max_drained_bytes:
            self._refuse_body()

    def _refuse_body(self) -> None:
        """Answer now; who still sends is cut off then."""
        if self._is_answered or self._task is not None:
            return
        self.set_header("Connection", "close")
        if self._refusal is None:
            self._refusal = too_large(MAX_BODY_BYTES)
        self._task = asyncio.create_task(self._answer())

    def finish(self) -> None:
        if not self._is_answered and self._task is None:
            self._task = asyncio.create_task(self._answer())

    def on_connection_close(self) -> None:
        """Nobody waits for the answer any more. What was begun is done all the same."""
        self._in_flight.discard(self)

    @property
    def _peer(self) -> str:
        peer: str = getattr(self._connection.context, "remote_ip", "")
        return peer

    @property
    def client(self) -> str:
        """Whose requests are counted together with this one."""
        return self.access.client or self._address

    @property
    def _address(self) -> str:
        """Where the request came from."""
        return self._front.addresses.client_of(self._peer, self.headers.get("X-Forwarded-For"))

    def received_at_s(self) -> float | None:
        """When a proxy of ours received the request, in epoch seconds, where it says so."""
        told = self.headers.get("X-Request-Start")
        if told is None or not self._front.addresses.is_proxy(self._peer):
            return None
        found = _REQUEST_START.fullmatch(told)
        return float(found[1]) if found else None

    def _token_in_query(self) -> str | None:
        return self.query_arguments().get("token", [None])[0] if "token=" in self._query else None

    @property
    def rates(self) -> RateLimits | None:
        """What limits this caller, if anything does."""
        return None if self.access.is_trusted else self._front.rates

    async def admit(self) -> None:
        """Raises RateLimited; else the answer says where the caller stands."""
        charge, self.charge = self.charge, None
        if charge is not None:
            self.tell_standing(await charge)

    def tell_standing(self, standing: RateLimitStatus) -> None:
        """Say in the answer where the caller stands; of several limits, in the one that is nearest."""
        if self._standing is None or standing.remaining < self._standing.remaining:
            self._standing = standing
            self._reply_headers.update(standing.headers())

    async def _answer(self) -> None:
        try:
            await self._act()
        except LockstepError as error:
            # Its frames lead back here: a cycle, and the body would wait for the collector.
            self._reply_error(error.with_traceback(None))
        except Exception:
            log.exception("a request failed", extra={"request_id": self.request_id})
            self._reply_error(LockstepError("Internal server error"))

    async def _act(self) -> None:
        rates, refusal = self.rates, self._refusal  # what is refused counts, too
        # A preflight cannot say whose it is: counted by address it would stand in the way of all behind that.
        if not self.is_limited or rates is None or self.method == "OPTIONS":
            if refusal is not None:
                raise refusal
            await self._do()
            return
        self.charge = rates.charge(self.client)
        if not self.admits_itself or refusal is not None:
            await self.admit()
        if refusal is not None:
            raise refusal
        try:
            await self._do()
        finally:
            # Whatever came of it, it was counted, and may have been one too many.
            await self.admit()

    async def _do(self) -> None:
        act: Callable[..., Awaitable[None]] | None = getattr(self, self._action, None)
        if act is None:
            raise MethodNotAllowed(f"{self.method} is not allowed here")
        await act(*self._arguments)

    async def options(self, *arguments: str) -> None:
        methods = ", ".join(self._allowed_methods())
        self.set_header("Allow", methods)
        self._reply_headers.update(self._origins.preflight(self.headers, methods))
        self.reply_empty(204)

    def _allowed_methods(self) -> list[str]:
        return [method for method, action in ACTIONS.items() if hasattr(self, action)]

    def query_arguments(self) -> dict[str, list[str]]:
        if self._query.count("&") >= MAX_QUERY_ARGUMENTS:
            message = f"must have at most {MAX_QUERY_ARGUMENTS} arguments"
            raise ValidationError([Violation("query", message, "length")])
        try:
            parsed = parse_qs_bytes(self._query, keep_blank_values=True)
        except ValueError:
            raise MalformedJson("The request cannot be read") from None
        return {
            name: [value.decode("utf-8", "replace") for value in values] for name, values in parsed.items()
        }

    def read_body(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """The body's bytes. Raises PayloadTooLarge and UnsupportedMediaType."""
        if self._body_bytes > max_bytes:
            raise too_large(max_bytes)
        if not self._body:
            return b""
        media_type = self.headers.get("Content-Type", "application/json").partition(";")[0].strip()
        if media_type.lower() != "application/json":
            raise UnsupportedMediaType(
                f"The body must be application/json, not {media_type[:100] or 'untyped'}"
            )
        return bytes(self._body)

    def read_json(self, max_bytes: int = MAX_BODY_BYTES) -> Any:
        """The body as JSON; None where there is none."""
        raw = self.read_body(max_bytes)
        return strict_json.loads(raw) if raw else None

    # --- the answer ------------------------------------------------------------------------------

    def set_header(self, name: str, value: str) -> None:
        self._reply_headers[name] = value

    def reply(self, data: bytes, status: int = 200) -> None:
        """Answer {"data": ...} with data that is JSON already."""
        self._send(status, b'{"data":' + data + b"}")

    def reply_bare(self, answer: Any, status: int = 200) -> None:
        self._send(status, dumps(answer))

    def reply_text(self, text: bytes, content_type: str) -> None:
        self._send(200, text, content_type)

    def reply_empty(self, status: int) -> None:
        self._send(status, b"")

    @property
    def route(self) -> str:
        """The pattern of this request's path, for figures: never what the path itself says."""
        return self.path

    def _reply_error(self, error: LockstepError) -> None:
        if error.status == 405:
            self.set_header("Allow", ", ".join(self._allowed_methods()))
        self._reply_headers.update(error_headers(error))
        self._reply_headers.update(error.headers)
        self._send(error.status, error_body(error))

    def _send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        if self._is_answered:
            log.error("a request was answered twice", extra={"request_id": self.request_id})
            return
        self._is_answered = True
        headers = self._reply_headers
        headers["Date"] = http_date()
        headers["X-Request-ID"] = self.request_id
        if status not in (204, 304):
            headers["Content-Type"] = content_type
            headers["Content-Length"] = str(len(body))
        headers.update(self._origins.headers(self.headers.get("Origin")))
        sent = self._connection.write_headers(
            ResponseStartLine("", status, responses.get(status, "Unknown")),
            cast(HTTPHeaders, headers),
            b"" if self.method == "HEAD" else body,
        )
        # Not before it is on its way is a request done with, however large and slow its answer.
        sent.add_done_callback(self._on_sent)
        self._connection.finish()
        duration_s = time.monotonic() - self._began_s
        self._front.metrics.observe_request(
            self.method if self.method in ACTIONS else "other", self.route, status, duration_s
        )
        log_answer(self.request_id, self.method, self.path, status, duration_s)

    def _on_sent(self, sent: "asyncio.Future[None]") -> None:
        sent.exception()  # who has gone does not mind
        self._in_flight.discard(self)


class UnknownRoute(ApiHandler):
    """Whatever no route takes."""

    route = "unknown"

    async def _do(self) -> None:
        raise RouteNotFound(f"No such route: {self.path[:200]}")


class UnwantedBody(ApiHandler):
    """A body where none belongs: nothing of it is read. Who still sends is cut off."""

    route = "unknown"

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        self._in_flight.add(self)
        # Whatever it announces, the refusal is ours to tell, and the rest is not waited for.
        self._connection.set_max_body_size(TORNADO_MAX_BODY_BYTES)
        if "Content-Length" in headers:
            headers["Content-Length"] = str(TORNADO_MAX_BODY_BYTES)
        self._refusal = too_large(MAX_UNWANTED_BYTES)
        self._refuse_body()

    def data_received(self, chunk: bytes) -> None:
        pass


def _brings_much(headers: HTTPHeaders) -> bool:
    """Is a body announced that is larger than can be overlooked?"""
    declared = headers.get("Content-Length", "0")
    is_little = (
        declared.isdecimal() and len(declared) <= MAX_LENGTH_DIGITS and int(declared) <= MAX_UNWANTED_BYTES
    )
    return not is_little or "Transfer-Encoding" in headers


class Refused(ApiHandler):
    """Whatever a page asks that another site has made."""

    route = "refused"
    is_limited = False

    def initialize(self, origins: Origins, refuse: Callable[[str], Forbidden]) -> None:  # type: ignore[override]
        super().initialize(origins)
        self._refuse = refuse

    def _refusal_of_head(self) -> LockstepError:
        return self._refuse(self.request_id)


def _in_origin_form(start_line: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """`GET http://host/path` as `GET /path`, with its host instead of the one in Host (RFC 9112 3.2.2)."""
    found = _ABSOLUTE.fullmatch(start_line.path)
    if found is None:
        return start_line
    if "Host" in headers:
        headers["Host"] = found[1]
    rest = found[2]
    return start_line._replace(path=rest if rest.startswith("/") else "/" + rest)


def _unquoted(text: str) -> str:
    # What is not UTF-8 is not a UUID either, and told as such.
    return unquote_to_bytes(text).decode("utf-8", "replace") if "%" in text else text


def too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body must not exceed {max_bytes} bytes")
