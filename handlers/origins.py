"""Which other sites' pages may call: one setting for REST (CORS) and for the WebSocket's Origin."""

from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders

ALLOWED_HEADERS = "Content-Type, Authorization, If-Match, If-None-Match, Idempotency-Key, X-Request-ID"
EXPOSED_HEADERS = "ETag, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, X-Request-ID"
PREFLIGHT_MAX_AGE_S = 600


class Origins:
    """Empty: only the server's own. "*": any. Else those listed, and the server's own."""

    def __init__(self, allowed: frozenset[str]) -> None:
        self._allowed = allowed

    def admits(self, origin: str, host: str) -> bool:
        """May a page of `origin` open a WebSocket at `host`?"""
        if "*" in self._allowed or origin.rstrip("/") in self._allowed:
            return True
        return urlsplit(origin).netloc.lower() == host.lower()

    def headers(self, origin: str | None) -> dict[str, str]:
        """What an answer to a request of this Origin carries."""
        if not self._allowed:
            return {}
        shared = {
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
        }
        if "*" in self._allowed:
            return {"Access-Control-Allow-Origin": "*", **shared}
        if origin is not None and origin in self._allowed:
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
