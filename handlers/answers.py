"""What every answer has in common, whoever gives it: errors as JSON, the request id, the line in the log."""

import logging
import math
import random
import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from tornado.httputil import HTTPHeaders

from lockstep.errors import LockstepError
from lockstep.rules.state_json import dumps

log = logging.getLogger(__name__)

_CHANCE = random.Random()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_of(headers: HTTPHeaders) -> str:
    """The caller's, where it is one that can be logged, or our own."""
    given = headers.get("X-Request-ID")
    return given if given and _REQUEST_ID.fullmatch(given) else f"{_CHANCE.getrandbits(64):016x}"


def error_body(error: LockstepError) -> bytes:
    answer: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        answer["details"] = error.details
    if error.retry_after_s is not None:
        answer["retry_after_seconds"] = math.ceil(error.retry_after_s)
    return dumps({"error": answer})


def error_headers(error: LockstepError) -> dict[str, str]:
    return {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}


def http_date() -> str:
    """Now, as RFC 9110 6.6.1 wants it."""
    return _date_of(int(time.time()))


@lru_cache(1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)


def log_answer(request_id: str | None, method: str, path: str, status: int, duration_s: float) -> None:
    """One line per request; never the query, which may carry secrets."""
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
