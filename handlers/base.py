"""What the handlers of Tornado's kind share: those of the page and of the WebSocket's handshake."""

import logging
from typing import Any

from tornado.web import HTTPError, RequestHandler

from handlers.answers import error_body, error_headers, log_answer, request_id_of
from handlers.origins import Origins
from lockstep.errors import LockstepError, MalformedJson, MethodNotAllowed, RouteNotFound

log = logging.getLogger(__name__)

ALLOWED = "GET, HEAD, OPTIONS"


class JsonErrors(RequestHandler):
    """Errors become JSON."""

    @property
    def request_id(self) -> str:
        known: str | None = getattr(self, "_request_id", None)
        if known is None:
            known = self._request_id = request_id_of(self.request.headers)
        return known

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Request-ID", self.request_id)

    def admit_origin(self) -> None:
        """Let a page of an admitted origin read the answer."""
        origins: Origins = self.settings["origins"]
        for name, value in origins.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

    def options(self, *args: str, **kwargs: str) -> None:
        self.admit_origin()
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
        if error.status == 405:
            self.set_header("Allow", ALLOWED)
        for name, value in (error_headers(error) | dict(error.headers)).items():
            self.set_header(name, value)
        self.admit_origin()
        self.set_status(error.status)
        self.set_header("Content-Type", "application/json")
        self.finish(error_body(error))

    def _translated(self, error: HTTPError) -> LockstepError:
        """Tornado's own refusals in our words."""
        if error.status_code == 404:
            return RouteNotFound(f"No such route: {self.request.path[:200]}")
        if error.status_code == 405:
            return MethodNotAllowed(f"{self.request.method} is not allowed here")
        if error.status_code < 500:
            return MalformedJson("The request cannot be read")
        return LockstepError("Internal server error")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """A refusal is told to the client and in the request's log line; only a bug has a traceback."""
        if not isinstance(value, LockstepError | HTTPError):
            log.error("a request failed", exc_info=(typ, value, tb), extra={"request_id": self.request_id})


def log_request(handler: RequestHandler) -> None:
    request = handler.request
    method = request.method if request.method in ("GET", "HEAD", "POST") else "other"
    handler.settings["metrics"].observe_request(
        method, request.path, handler.get_status(), request.request_time()
    )
    log_answer(
        getattr(handler, "_request_id", None),
        request.method or "",
        request.path,
        handler.get_status(),
        request.request_time(),
    )
