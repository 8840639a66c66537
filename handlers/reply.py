"""What a request is answered: replies, errors as replies, and the line that is logged of each."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http.client import responses
from typing import Any, Protocol

from tornado.iostream import IOStream

from lockstep.errors import LockstepError
from lockstep.limits import RateLimitStatus
from lockstep.rules.state_json import dumps

log = logging.getLogger(__name__)

JSON = "application/json"


class Successor(Protocol):
    """What has a connection from a reply's head on, in place of Tornado."""

    async def begin(self, stream: IOStream, head: bytes) -> None:
        """Send the head, and what is to follow it until the connection ends. Called once.

        The stream may be closed already, or have something to write that is of a reply before this one.
        """


@dataclass(slots=True)
class Reply:
    """What a handler returns. `rate_limit` is what a limit of its own has left to the caller.

    `successor` sends the body, where that has no length, and ends the connection with it.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] | None = None
    content_type: str = JSON
    rate_limit: RateLimitStatus | None = None
    has_length: bool = True
    successor: Successor | None = None


def data(encoded: bytes) -> bytes:
    """The body {"data": ...} of data that is JSON already."""
    return b'{"data":' + encoded + b"}"


def error_reply(error: LockstepError) -> Reply:
    headers: dict[str, str] = {}
    answer: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        answer["details"] = error.details
    if error.retry_after_s is not None:
        retry_after_s = math.ceil(error.retry_after_s)
        answer["retry_after_seconds"] = retry_after_s
        headers["Retry-After"] = str(retry_after_s)
    return Reply(error.status, dumps({"error": answer}), headers | dict(error.headers))


def reason_of(status: int) -> str:
    return responses.get(status, "Unknown")


def head_of(status: int, headers: Mapping[str, str]) -> bytes:
    """A response's first line and its headers, of which no value has a line break."""
    lines = [f"HTTP/1.1 {status} {reason_of(status)}", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin1")


def http_date() -> str:
    """The current time, as RFC 9110 6.6.1 wants it."""
    return _date_of(int(time.time()))


@lru_cache(1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


def log_reply(request_id: str | None, method: str, path: str, status: int, duration_s: float) -> None:
    """Log one line per request; never the query, which may carry secrets."""
    if log.isEnabledFor(logging.INFO):
        log.info(
            "request",
            extra={
                "request_id": request_id,
                "method": method,
                "path": path[:200],
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
            },
        )
