"""What a handler of Tornado's has, the page's above all: errors become JSON."""

import logging
from typing import Any

from tornado.web import HTTPError, RequestHandler

from handlers.reply import error_reply, log_reply
from handlers.request import request_id_of
from handlers.services import Services
from lockstep.errors import LockstepError, MalformedJson, MethodNotAllowed, RouteNotFound

log = logging.getLogger(__name__)

ALLOWED = "GET, HEAD, OPTIONS"


class JsonErrors(RequestHandler):
    """A handler of Tornado's whose errors are those of REST. A subclass sets `services`."""

    services: Services

    @property
    def request_id(self) -> str:
        known: str | None = getattr(self, "_request_id", None)
        if known is None:
            known = self._request_id = request_id_of(self.request.headers)
        return known

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Request-ID", self.request_id)

    def set_cors_headers(self) -> None:
        """Let pages of admitted origins read the reply."""
        origin = self.request.headers.get("Origin")
        for name, value in self.services.origins.headers(origin).items():
            self.set_header(name, value)

    def options(self, *args: str, **kwargs: str) -> None:
        self.set_cors_headers()
        self.set_header("Allow", ALLOWED)
        self.set_status(204)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        return value.decode("utf-8", "replace")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, HTTPError):
            error = self._translated(error)
        if not isinstance(error, LockstepError):
            error = LockstepError("Internal server error")
        reply = error_reply(error)
        for name, value in (reply.headers or {}).items():
            self.set_header(name, value)
        self.set_cors_headers()
        self.set_status(reply.status)
        self.set_header("Content-Type", reply.content_type)
        self.finish(reply.body)

    def _translated(self, error: HTTPError) -> LockstepError:
        """The error that stands for one of Tornado's."""
        if error.status_code == 404:
            return RouteNotFound(f"No such route: {self.request.path[:200]}")
        if error.status_code == 405:
            return MethodNotAllowed(f"{self.request.method} is not allowed here", ALLOWED)
        if error.status_code < 500:
            return MalformedJson("The request cannot be read")
        return LockstepError("Internal server error")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log bugs only: a refusal is in the reply, and in the request's line."""
        if not isinstance(value, LockstepError | HTTPError):
            log.error("a request failed", exc_info=(typ, value, tb), extra={"request_id": self.request_id})


def log_request(handler: RequestHandler) -> None:
    """Tornado calls this at the end of each of its requests."""
    assert isinstance(handler, JsonErrors)
    request = handler.request
    method = request.method if request.method in ("GET", "HEAD", "POST") else "other"
    status, duration_s = handler.get_status(), request.request_time()
    handler.services.metrics.observe_request(method, request.path, status, duration_s)
    log_reply(handler.request_id, request.method or "", request.path, status, duration_s)
