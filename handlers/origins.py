"""Whose pages may call: one setting for CORS, for what changes something, and for the WebSocket's Origin.

And which names lead here, where no token protects a server that is open on loopback: a page whose own name
is made to point here (DNS rebinding) would be of the server's own origin.
"""

import logging
import re
from functools import lru_cache

from tornado.httputil import HTTPHeaders

from lockstep.errors import Forbidden
from lockstep.hosts import DEFAULT_PORTS, is_address, split_host

log = logging.getLogger(__name__)

# Those of our own, and those that tracing in browsers adds to each request (W3C Trace Context, Sentry).
ALLOWED_HEADERS = (
    "Content-Type, Authorization, If-Match, If-None-Match, Idempotency-Key, Idempotency-TTL, X-Request-ID, "
    "traceparent, tracestate, baggage, sentry-trace"
)
EXPOSED_HEADERS = (
    "ETag, Location, Idempotent-Replayed, Retry-After, "
    "RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, X-Request-ID"
)
PREFLIGHT_MAX_AGE_S = 600
MAX_SHOWN = 200
MAX_REMEMBERED_HOSTS = 256
_SUBDOMAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Origins:
    """Empty: only the server's own. "*": any. Else those listed, and the server's own."""

    def __init__(self, allowed: frozenset[str]) -> None:
        """`allowed` are as lockstep.hosts.canonical_origin gives them, or "*"."""
        self._are_all_allowed = "*" in allowed
        self._is_empty = not allowed
        self._listed = frozenset(each for each in allowed if "*" not in each)
        # What stands before and behind the subdomain.
        self._wildcards = [tuple(each.split("*")) for each in allowed - {"*"} if "*" in each]

    def admits(self, origin: str, host: str) -> bool:
        """May a page of `origin` open a WebSocket at `host`, or change something there?"""
        return self._are_all_allowed or self._lists(origin) or _is_own(origin, host)

    def _lists(self, origin: str) -> bool:
        return origin in self._listed or any(
            origin.startswith(before)
            and origin.endswith(behind)
            and _SUBDOMAIN.fullmatch(origin[len(before) : -len(behind)])
            for before, behind in self._wildcards
        )

    def headers(self, origin: str | None) -> dict[str, str]:
        """What an answer to a request of this Origin carries."""
        if self._is_empty:
            return {}
        shared = {
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        }
        if self._are_all_allowed:
            return {"Access-Control-Allow-Origin": "*", **shared}
        if origin is not None and self._lists(origin):
            return {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **shared}
        return {"Vary": "Origin"}

    def preflight(self, request: HTTPHeaders, methods: str) -> dict[str, str]:
        """What the answer to an OPTIONS carries beside `headers`."""
        if "Access-Control-Allow-Origin" not in self.headers(request.get("Origin")):
            return {}
        return {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        }


def _is_own(origin: str, host: str) -> bool:
    """Is a page of `origin` one of the server that was called by `host`?"""
    scheme, _, authority = origin.lower().partition("://")
    if scheme not in DEFAULT_PORTS or not authority:
        return False
    host = host.lower()
    # Some proxies say the port that goes without saying. Whether it is TLS outside, only they know.
    return authority == host or f"{authority}:{DEFAULT_PORTS[scheme]}" == host


class Hosts:
    """The names of a server that is open on loopback: IP addresses, localhost, and those of a setting."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names | {"localhost"}
        self.admits = lru_cache(MAX_REMEMBERED_HOSTS)(self._admits)

    def _admits(self, host: str) -> bool:
        try:
            name, _ = split_host(host)
        except ValueError:
            return False
        return name in self._names or is_address(name)


def refused_origin(origin: str, host: str, request_id: str) -> Forbidden:
    """The refusal of a page's request; its reason is logged, since browsers hide it from the page."""
    log.warning(
        "refused: pages of %r are neither of this server (it was called by the Host %r) nor in --origins; "
        "a proxy in front must pass Host on as it is",
        origin[:MAX_SHOWN],
        host[:MAX_SHOWN],
        extra={"request_id": request_id},
    )
    return Forbidden("Pages of this origin may not do this (setting origins)", "origin")


def refused_host(host: str, request_id: str) -> Forbidden:
    """The refusal of a request by a name that may have been made to point here."""
    log.warning(
        "refused: the Host %r is not an IP address, not localhost, and not in --hosts; "
        "a proxy in front may have set it",
        host[:MAX_SHOWN],
        extra={"request_id": request_id},
    )
    return Forbidden("This server is not called by this Host (setting hosts)", "host")
