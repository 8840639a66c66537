"""What every REST answer has in common: JSON in and out, errors, the request id."""

import logging
import math
import random
import re
from asyncio import Future
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from handlers.origins import Origins
from lockstep import messages
from lockstep.errors import (
    LockstepError,
    MalformedJson,
    MethodNotAllowed,
    PayloadTooLarge,
    RouteNotFound,
    UnsupportedMediaType,
)
from lockstep.state import dumps

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_048_576
# So much of a refused body is still read, so that the client gets to the answer; then it is cut off.
MAX_DRAINED_BYTES = 16 * MAX_BODY_BYTES
_CHANCE = random.Random()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class JsonErrors(RequestHandler):
    """Errors become JSON here and nowhere else."""

    @property
    def request_id(self) -> str:
        """The caller's, where it is one that can be logged, or our own."""
        known = getattr(self, "_request_id", None)
        if known is None:
            given = self.request.headers.get("X-Request-ID", "")
            known = self._request_id = (
                given if _REQUEST_ID.fullmatch(given) else f"{_CHANCE.getrandbits(64):016x}"
            )
        return known

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Request-ID", self.request_id)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        # What is not UTF-8 is not a UUID either, and told as such.
        return value.decode("utf-8", "replace")

    def reply_bare(self, answer: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(dumps(answer))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, HTTPError):
            error = self._translated(error)
        if not isinstance(error, LockstepError):
            error = LockstepError("Internal server error")
        answer: dict[str, Any] = {"code": error.code, "message": error.message}
        if error.details is not None:
            answer["details"] = error.details
        if error.retry_after_s is not None:
            answer["retry_after_seconds"] = math.ceil(error.retry_after_s)
            self.set_header("Retry-After", str(math.ceil(error.retry_after_s)))
        if error.status == 405:
            self.set_header("Allow", ", ".join(self._allowed_methods()))
        self.reply_bare({"error": answer}, error.status)

    def _translated(self, error: HTTPError) -> LockstepError:
        """Tornado's own refusals in our words."""
        if error.status_code == 404:
            return RouteNotFound(f"No such route: {self.request.path[:200]}")
        if error.status_code == 405:
            return MethodNotAllowed(f"{self.request.method} is not allowed here")
        if error.status_code < 500:
            return MalformedJson("The request cannot be read")
        return LockstepError("Internal server error")

    def _allowed_methods(self) -> list[str]:
        return [
            method
            for method in self.SUPPORTED_METHODS
            if getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())
        ]

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A refusal is told to the client and in the request's log line; only a bug has a traceback."""
        if not isinstance(value, LockstepError | HTTPError):
            log.error("a request failed", exc_info=(typ, value, tb), extra={"request_id": self.request_id})


@stream_request_body
class ApiHandler(JsonErrors):
    """Parse, call one service, reply."""

    def __init__(self, application: Application, request: HTTPServerRequest, **kwargs: Any) -> None:
        self._body = bytearray()
        self._body_bytes = 0
        super().__init__(application, request, **kwargs)

    def initialize(self, origins: Origins) -> None:
        self._origins = origins

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Type", "application/json")
        # Called by Tornado before initialize, and again when an error clears what was set.
        if hasattr(self, "_origins"):
            self._set_cors_headers()

    def _set_cors_headers(self) -> None:
        for name, value in self._origins.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

    def prepare(self) -> None:
        self.settings["in_flight"].add(self)
        self._set_cors_headers()
        # The limit is ours to tell, in JSON; Tornado's own would cut the connection.
        self.request.connection.set_max_body_size(2**62)  # type: ignore[union-attr]
        try:
            declared = int(self.request.headers.get("Content-Length", 0))
        except ValueError:
            declared = 0
        if declared > MAX_DRAINED_BYTES:
            self._refuse_body()

    def data_received(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        if self._body_bytes <= MAX_BODY_BYTES:
            self._body += chunk
        elif self._body_bytes > MAX_DRAINED_BYTES and not self._finished:
            self._refuse_body()

    def _refuse_body(self) -> None:
        self.set_header("Connection", "close")
        self.send_error(PayloadTooLarge.status, exc_info=(PayloadTooLarge, too_large(MAX_BODY_BYTES), None))

    def compute_etag(self) -> str | None:
        return None  # Tornado's would hash every answer; states have their own

    def options(self, *args: str) -> None:
        methods = ", ".join(self._allowed_methods())
        self.set_header("Allow", methods)
        for name, value in self._origins.preflight(self.request.headers, methods).items():
            self.set_header(name, value)
        self.reply_empty(204)

    def read_body(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """The body's bytes. Raises PayloadTooLarge and UnsupportedMediaType."""
        if self._body_bytes > max_bytes:
            raise too_large(max_bytes)
        media_type = self.request.headers.get("Content-Type", "application/json").partition(";")[0].strip()
        if self._body and media_type.lower() != "application/json":
            raise UnsupportedMediaType(
                f"The body must be application/json, not {media_type[:100] or 'untyped'}"
            )
        return bytes(self._body)

    def read_json(self, max_bytes: int = MAX_BODY_BYTES) -> Any:
        """The body as JSON; None where there is none."""
        raw = self.read_body(max_bytes)
        return messages.loads(raw) if raw else None

    def reply(self, data: bytes, status: int = 200) -> None:
        """Answer {"data": ...} with data that is JSON already."""
        self.set_status(status)
        self.finish(b'{"data":' + data + b"}")

    def reply_empty(self, status: int) -> None:
        self.set_status(status)
        self.clear_header("Content-Type")
        self.finish()

    def finish(self, chunk: Any = None) -> "Future[None]":
        flushed = super().finish(chunk)
        # Not before it is on its way is a request done with, however large and slow its answer.
        flushed.add_done_callback(lambda _: self.settings["in_flight"].discard(self))
        return flushed

    def on_connection_close(self) -> None:
        self.settings["in_flight"].discard(self)


def log_request(handler: RequestHandler) -> None:
    """One line per request; never the query, which may carry secrets."""
    if not log.isEnabledFor(logging.INFO):
        return
    log.info(
        "request",
        extra={
            "request_id": getattr(handler, "_request_id", None),
            "method": handler.request.method,
            "path": handler.request.path[:200],
            "status": handler.get_status(),
            "duration_ms": round(handler.request.request_time() * 1000, 1),
        },
    )


def too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body must not exceed {max_bytes} bytes")


class UnknownRouteHandler(ApiHandler):
    """Whatever no route takes."""

    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            raise HTTPError(404)
