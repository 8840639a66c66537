"""Whose pages may call: one setting for CORS, for what changes something, and for the WebSocket's Origin.

Also by which names a server may be called that is open on loopback, where no token protects it: a page whose
own name is made to point there (DNS rebinding) would be of the server's own origin.
"""

import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from lockstep.errors import Forbidden
from lockstep.hosts import DEFAULT_PORTS, is_address, split_host

log = logging.getLogger(__name__)

# Our own, and those that tracing in browsers adds to each request (W3C Trace Context, Sentry).
ALLOWED_HEADERS = (
    "Content-Type, Authorization, If-Match, If-None-Match, Idempotency-Key, Idempotency-TTL, Last-Event-ID, "
    "X-Request-ID, traceparent, tracestate, baggage, sentry-trace"
)
EXPOSED_HEADERS = (
    "ETag, Location, Idempotent-Replayed, Retry-After, "
    "RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, X-Request-ID"
)
PREFLIGHT_MAX_AGE_S = 600
MAX_SHOWN = 200
MAX_REMEMBERED_HOSTS = 256
_CHANGES = ("POST", "DELETE")
_SUBDOMAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Origins:
    """The origins that are admitted: any with "*", else the server's own and those listed."""

    def __init__(self, allowed: frozenset[str]) -> None:
        """`allowed` are origins as lockstep.hosts.canonical_origin gives them, or "*"."""
        self._are_all_allowed = "*" in allowed
        self._is_empty = not allowed
        self._listed = frozenset(each for each in allowed if "*" not in each)
        # Each is split into what comes before and after the subdomain.
        self._wildcards = [tuple(each.split("*")) for each in allowed - {"*"} if "*" in each]

    def admits(self, origin: str, host: str) -> bool:
        """True if a page of `origin` may open a WebSocket at `host`, or change something there."""
        return self._are_all_allowed or self._lists(origin) or _is_own(origin, host)

    def _lists(self, origin: str) -> bool:
        return origin in self._listed or any(
            origin.startswith(before)
            and origin.endswith(after)
            and _SUBDOMAIN.fullmatch(origin[len(before) : -len(after)])
            for before, after in self._wildcards
        )

    def headers(self, origin: str | None) -> dict[str, str]:
        """The headers of a reply to a request of this Origin."""
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

    def preflight(self, request: Mapping[str, str], methods: str) -> dict[str, str]:
        """The headers of a reply to OPTIONS, beside those of every reply."""
        if "Access-Control-Allow-Origin" not in self.headers(request.get("Origin")):
            return {}
        return {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        }


def _is_own(origin: str, host: str) -> bool:
    """True if a page of `origin` comes from the server that was called by `host`."""
    scheme, _, authority = origin.lower().partition("://")
    if scheme not in DEFAULT_PORTS or not authority:
        return False
    host = host.lower()
    # Some proxies write out the default port. Only they know whether clients use TLS.
    return authority == host or f"{authority}:{DEFAULT_PORTS[scheme]}" == host


class Hosts:
    """How a server that is open on loopback may be called: IP addresses, localhost, and a setting's names."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names | {"localhost"}
        self.admits = lru_cache(MAX_REMEMBERED_HOSTS)(self._admits)

    def _admits(self, host: str) -> bool:
        try:
            name, _ = split_host(host)
        except ValueError:
            return False
        return name in self._names or is_address(name)


Refusal = Callable[[str], Forbidden]
"""Makes the refusal of a request, and logs it, with the request's id."""


def foreign_page_refusal(
    origins: Origins,
    hosts: Hosts | None,
    method: str,
    path: str,
    is_of_pages: bool,
    headers: Mapping[str, str],
) -> Refusal | None:
    """The refusal of a request that comes from a page of another site, if this is one.

    A browser names the Origin of every POST and DELETE, and lets no page choose it, nor the Host.
    """
    is_of_api = path.startswith("/v1/")
    host = headers.get("Host")
    if hosts is not None and (is_of_api or is_of_pages) and host is not None and not hosts.admits(host):
        return partial(refused_host, host)
    if is_of_api and method in _CHANGES:
        origin = headers.get("Origin")
        if origin is not None and not origins.admits(origin, host or ""):
            return partial(refused_origin, origin, host or "")
    return None


def refused_origin(origin: str, host: str, request_id: str) -> Forbidden:
    """The refusal of a page's request; the reason is logged, because browsers hide it from the page."""
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
