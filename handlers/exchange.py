"""One request to REST and its reply: who asks is checked, the body collected, the handler asked.

Replies and errors become bytes here and nowhere else, once for each request.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, ResponseStartLine

from handlers.reply import Reply, Successor, error_reply, head_of, http_date, log_reply, reason_of
from handlers.request import MAX_BODY_BYTES, Request, too_large
from handlers.router import METHODS, Limiting, Route
from handlers.services import Services
from handlers.tornado_private import ReplyHeaders
from lockstep.errors import LockstepError, Unauthorized

log = logging.getLogger(__name__)

# How much of a refused body is still read, so that the client gets to the reply; then it is cut off.
MAX_DRAINED_BYTES = 4 * MAX_BODY_BYTES
# The same where the caller may not do what it asks for, whatever its body says; nothing of that is kept.
MAX_DRAINED_OF_REFUSED_BYTES = MAX_BODY_BYTES
# A body that nobody looks at is overlooked up to this size.
MAX_UNWANTED_BYTES = 4096
# Nobody could send a body whose length has more digits; Tornado fails on thousands of them.
MAX_LENGTH_DIGITS = 18
TORNADO_MAX_BODY_BYTES = 2**62


class Exchange(HTTPMessageDelegate):
    """One request, from its head to the end of its reply.

    It keeps no cycle of itself: no bound method, and no error with a traceback. A body of a megabyte would
    wait for the collector otherwise.
    """

    def __init__(
        self,
        services: Services,
        in_flight: "set[Exchange]",
        connection: HTTP1Connection,
        request: Request,
        route: Route,
        refusal: LockstepError | None = None,
    ) -> None:
        """`refusal` is what the request is answered where that is known before its caller is."""
        self._services = services
        self._in_flight = in_flight
        self._connection = connection
        self._request = request
        self._route = route
        self._refusal = refusal
        self._began_s = time.monotonic()
        self._max_drained_bytes = MAX_DRAINED_BYTES
        self._is_cut_off = False
        self._task: asyncio.Task[None] | None = None

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        self._in_flight.add(self)
        if self._refusal is None:
            self._refusal = self._refusal_of_caller()
        if self._refusal is not None:
            self._max_drained_bytes = MAX_DRAINED_OF_REFUSED_BYTES
        # Too large a body is refused here, in JSON; Tornado would cut the connection.
        self._connection.set_max_body_size(TORNADO_MAX_BODY_BYTES)
        declared = headers.get("Content-Length", "0")
        if declared.isdecimal() and len(declared) > MAX_LENGTH_DIGITS:
            headers["Content-Length"] = str(TORNADO_MAX_BODY_BYTES)  # or Tornado would answer it, too
            self._refuse_body()
        elif declared.isdecimal() and int(declared) > self._max_drained_bytes:
            self._refuse_body()

    def _refusal_of_caller(self) -> LockstepError | None:
        """Why the caller may not do what it asks for, whatever its body says: known before that is read."""
        route, request, tokens = self._route, self._request, self._services.tokens
        try:
            if route.needs is not None:
                request.access = tokens.access(request.headers, request.token_in_query())
                route.needs(request.access, request.session_id.lower())
            elif route.limiting is not Limiting.NOT and self._services.rates is not None:
                # No token is needed, but a good one says whose request it is.
                with contextlib.suppress(Unauthorized):
                    request.access = tokens.access(request.headers, request.token_in_query())
        except LockstepError as error:
            return error.with_traceback(None)
        except Exception:
            return self._bug()
        return None

    def data_received(self, chunk: bytes) -> None:
        request = self._request
        request.received_bytes += len(chunk)
        if self._refusal is None and request.received_bytes <= MAX_BODY_BYTES:
            request.body += chunk
        elif request.received_bytes > self._max_drained_bytes:
            self._refuse_body()

    def _refuse_body(self) -> None:
        """Reply now; a client that still sends is cut off then."""
        if self._task is not None:
            return
        self._is_cut_off = True
        if self._refusal is None:
            self._refusal = too_large(MAX_BODY_BYTES)
        self._task = asyncio.create_task(self._answer())

    def finish(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._answer())

    def on_connection_close(self) -> None:
        """Nobody waits for the reply any more. What was begun is done all the same."""
        self._in_flight.discard(self)

    async def _answer(self) -> None:
        try:
            reply = await self._ask_handler()
        except LockstepError as error:
            reply = error_reply(error.with_traceback(None))
        except Exception:
            reply = error_reply(self._bug())
        headers = self._headers_of(reply)
        if reply.successor is None:
            self._send(reply, headers)
        else:
            await self._hand_over(reply.successor, reply.status, headers)

    async def _ask_handler(self) -> Reply:
        route, request, services, refusal = self._route, self._request, self._services, self._refusal
        rates = None if request.access.is_trusted else services.rates
        if rates is not None and route.limiting is not Limiting.NOT:
            request.charge = rates.charge(request.client)
            # What is refused counts, too.
            if route.limiting is Limiting.FIRST or refusal is not None:
                await request.admit()
        if refusal is not None:
            raise refusal
        try:
            return await route.handler(request, services)
        finally:
            # Whatever came of it, it was counted, and may have been one too many.
            if request.charge is not None:
                await request.admit()

    def _bug(self) -> LockstepError:
        log.exception("a request failed", extra={"request_id": self._request.request_id})
        return LockstepError("Internal server error")

    def _headers_of(self, reply: Reply) -> ReplyHeaders:
        request = self._request
        if reply.rate_limit is not None:
            request.note_rate_limit(reply.rate_limit)
        headers = ReplyHeaders()
        if self._is_cut_off or reply.successor is not None:
            headers["Connection"] = "close"
        if request.rate_limit is not None:
            headers.update(request.rate_limit.headers())
        if reply.headers is not None:
            headers.update(reply.headers)
        headers["Date"] = http_date()
        headers["X-Request-ID"] = request.request_id
        if reply.status == 101:
            return headers  # of a WebSocket a page is shown no header
        if reply.status not in (204, 304):
            headers["Content-Type"] = reply.content_type
            if reply.has_length:
                headers["Content-Length"] = str(len(reply.body))
        headers.update(self._services.origins.headers(request.headers.get("Origin")))
        return headers

    def _send(self, reply: Reply, headers: ReplyHeaders) -> None:
        sent = self._connection.write_headers(
            ResponseStartLine("", reply.status, reason_of(reply.status)),
            cast(HTTPHeaders, headers),
            b"" if self._request.method == "HEAD" else reply.body,
        )
        # However large and slow the reply is, the request is in flight until the kernel has taken it.
        sent.add_done_callback(self._on_sent)
        self._connection.finish()
        self._note(reply.status)

    async def _hand_over(self, successor: Successor, status: int, headers: ReplyHeaders) -> None:
        """Let Tornado go of the connection."""
        stream = self._connection.detach()
        self._in_flight.discard(self)
        self._note(status)
        await successor.begin(stream, head_of(status, headers))

    def _note(self, status: int) -> None:
        """Count the reply, and log it."""
        request = self._request
        duration_s = time.monotonic() - self._began_s
        method = request.method if request.method in METHODS else "other"
        self._services.metrics.observe_request(method, self._route.label, status, duration_s)
        log_reply(request.request_id, request.method, request.path, status, duration_s)

    def _on_sent(self, sent: "asyncio.Future[None]") -> None:
        sent.exception()  # a client that has gone needs no reply
        self._in_flight.discard(self)


class UnwantedBody(Exchange):
    """A request with a body where none belongs: it is refused at once, and nothing of the body is read."""

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> None:
        self._in_flight.add(self)
        # Whatever length is announced, it is refused here, and the body is not waited for.
        self._connection.set_max_body_size(TORNADO_MAX_BODY_BYTES)
        if "Content-Length" in headers:
            headers["Content-Length"] = str(TORNADO_MAX_BODY_BYTES)
        self._refusal = too_large(MAX_UNWANTED_BYTES)
        self._refuse_body()

    def data_received(self, chunk: bytes) -> None:
        pass


def announces_much(headers: HTTPHeaders) -> bool:
    """True if a body is announced that is too large to be overlooked."""
    declared = headers.get("Content-Length", "0")
    is_little = (
        declared.isdecimal() and len(declared) <= MAX_LENGTH_DIGITS and int(declared) <= MAX_UNWANTED_BYTES
    )
    return not is_little or "Transfer-Encoding" in headers
