"""What is done to have a call answered: attempts, and waits between them. Who does it, sends and waits."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import httpx

from lockstep_client.backoff import backoff_ms
from lockstep_client.calls import Call
from lockstep_client.errors import LockstepError
from lockstep_client.tokens import Credentials

T = TypeVar("T")
MIN_ATTEMPT_S = 0.05
MAX_RETRY_AFTER_S = 99_999_999
MAX_BACKOFF_STEP = 2
"""Somebody waits for the answer: 2 s at most between two attempts."""


@dataclass(frozen=True, slots=True)
class GetToken:
    """Ask the function that gives tokens, and let the credentials take what it gives."""


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


Step: TypeAlias = GetToken | httpx.Request | Wait
Outcome: TypeAlias = httpx.Response | httpx.RequestError | str | None
"""Of a request its response, or why there is none; of GetToken the token."""


def exchange(
    call: Call[T], base_url: str, credentials: Credentials, timeout_s: float
) -> Generator[Step, Outcome, T]:
    """Yields what is to be done next, takes what came of it, and returns what the call's answer says.

    Without an answer, and where the server cannot do it now (429, 5xx), the call is sent again, until
    `timeout_s` is over. Raises LockstepError.
    """
    ends_at_s = time.monotonic() + timeout_s
    attempt = 0
    has_renewed = False
    while True:
        token = credentials.token
        if token is None and credentials.source is not None:
            given = yield GetToken()
            assert isinstance(given, str)
            token = given
        # Half of the time at most, so that a dead connection leaves time for another.
        left_s = ends_at_s - time.monotonic()
        most_s = timeout_s / 2 if call.is_repeatable else timeout_s
        outcome = yield _request(call, base_url, token, max(min(left_s, most_s), MIN_ATTEMPT_S))
        if isinstance(outcome, httpx.Response):
            error = _error_of(outcome)
            if error is None:
                return _read(call, outcome)
            if outcome.status_code == 401 and not has_renewed and credentials.refuse(token):
                has_renewed = True
                continue
            if outcome.status_code != 429 and outcome.status_code < 500:
                raise error
        else:
            assert isinstance(outcome, httpx.RequestError)
            error = _unanswered(outcome)
        wait_s = ((error.retry_after_ms or 0) + backoff_ms(min(attempt, MAX_BACKOFF_STEP))) / 1000
        attempt += 1
        if not call.is_repeatable or time.monotonic() + wait_s > ends_at_s:
            raise error from (outcome if isinstance(outcome, httpx.RequestError) else None)
        yield Wait(wait_s)


def _request(call: Call[T], base_url: str, token: str | None, timeout_s: float) -> httpx.Request:
    headers = dict(call.headers)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Request(
        call.method,
        base_url + call.path,
        params=call.params,
        content=call.content,
        headers=headers,
        extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
    )


def _read(call: Call[T], response: httpx.Response) -> T:
    try:
        return call.read(None if response.status_code == 204 else json.loads(response.content))
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise _invalid(response) from error


def error_in(content: bytes, status: int, retry_after_s: float | None = None) -> LockstepError | None:
    """The error that a REST answer of the server is; None where it is none of the server's."""
    try:
        said = json.loads(content)["error"]
        code, message, details = said["code"], said["message"], said.get("details")
        retry_after_s = said.get("retry_after_seconds", retry_after_s)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(code, str) or not isinstance(message, str):
        return None
    if not isinstance(retry_after_s, int | float) or not 0 <= retry_after_s <= MAX_RETRY_AFTER_S:
        retry_after_s = None  # Infinity, for one, which Python reads from JSON
    retry_after_ms = None if retry_after_s is None else round(retry_after_s * 1000)
    return LockstepError(code, message, details=details, retry_after_ms=retry_after_ms, status=status)


def _error_of(response: httpx.Response) -> LockstepError | None:
    """Why the call failed, if it did."""
    status = response.status_code
    if status < 300:
        return None
    return error_in(response.content, status, _retry_after_s(response)) or _invalid(response)


def _invalid(response: httpx.Response) -> LockstepError:
    """Somebody else answered: a proxy, mostly."""
    retry_after_s = _retry_after_s(response)
    return LockstepError(
        "INVALID_ANSWER",
        f"{response.request.url} answered {response.status_code}, and not as Lockstep would",
        retry_after_ms=None if retry_after_s is None else retry_after_s * 1000,
        status=response.status_code,
    )


def _retry_after_s(response: httpx.Response) -> int | None:
    header = response.headers.get("Retry-After", "")
    return int(header) if header.isascii() and header.isdigit() and len(header) < 9 else None


def _unanswered(error: httpx.RequestError) -> LockstepError:
    if isinstance(error, httpx.DecodingError):
        return LockstepError("INVALID_ANSWER", f"The answer cannot be decoded: {error}")
    return LockstepError("UNREACHABLE", f"No answer: {type(error).__name__} {error}".rstrip())
