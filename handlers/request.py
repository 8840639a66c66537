"""A request to REST, as handlers see it: its head, its query, its body, and who asks."""

import random
import re
from collections.abc import Awaitable, Mapping

from tornado.escape import parse_qs_bytes

from lockstep.access import OPEN, Access
from lockstep.addresses import Addresses
from lockstep.errors import (
    MalformedJson,
    PayloadTooLarge,
    UnsupportedMediaType,
    ValidationError,
    Violation,
)
from lockstep.limits import RateLimitStatus

MAX_BODY_BYTES = 1_048_576
MAX_QUERY_ARGUMENTS = 100
# What stands for itself in a query: nearly all of them are of this.
_UNESCAPED = re.compile(r"[!-$&-*,-~]*")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_REQUEST_START = re.compile(r"t=([0-9]{1,10}(\.[0-9]{1,6})?)", re.ASCII)
_RANDOM = random.Random()


class Request:
    """One request. Its body is complete, and its caller known, when a handler gets it."""

    __slots__ = (
        "_addresses",
        "_peer",
        "_query",
        "access",
        "body",
        "charge",
        "headers",
        "max_body_bytes",
        "method",
        "path",
        "rate_limit",
        "received_bytes",
        "request_id",
        "session_id",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        session_id: str,
        headers: Mapping[str, str],
        peer: str,
        addresses: Addresses,
        max_body_bytes: int,
    ) -> None:
        """`session_id` is what stands for it in the path, valid or not; `peer` is who has connected."""
        self.method = method
        self.path = path
        self.session_id = session_id
        self.headers = headers
        self.request_id = request_id_of(headers)
        self.access: Access = OPEN
        self.body = bytearray()  # no more of it is kept than any handler takes
        self.received_bytes = 0  # of the whole body
        self.max_body_bytes = max_body_bytes
        self.charge: Awaitable[RateLimitStatus] | None = None
        self.rate_limit: RateLimitStatus | None = None
        self._query = query
        self._peer = peer
        self._addresses = addresses

    @property
    def client(self) -> str:
        """Whose requests are counted together with this one."""
        return self.access.client or self.address

    @property
    def address(self) -> str:
        """Where it comes from, also through proxies of ours."""
        return self._addresses.client_of(self._peer, self.headers.get("X-Forwarded-For"))

    def received_at_s(self) -> float | None:
        """When a proxy of ours received the request, in epoch seconds, where it says so."""
        sent = self.headers.get("X-Request-Start")
        if sent is None or not self._addresses.is_proxy(self._peer):
            return None
        found = _REQUEST_START.fullmatch(sent)
        return float(found[1]) if found else None

    def token_in_query(self) -> str | None:
        return self.query_arguments().get("token", [None])[0] if "token=" in self._query else None

    def query_arguments(self) -> dict[str, list[str]]:
        """Raises ValidationError and MalformedJson."""
        if not self._query:
            return {}
        if self._query.count("&") >= MAX_QUERY_ARGUMENTS:
            message = f"must have at most {MAX_QUERY_ARGUMENTS} arguments"
            raise ValidationError([Violation("query", message, "length")])
        if _UNESCAPED.fullmatch(self._query):
            arguments: dict[str, list[str]] = {}
            for each in self._query.split("&"):
                name, _, value = each.partition("=")
                if each:
                    arguments.setdefault(name, []).append(value)
            return arguments
        try:
            parsed = parse_qs_bytes(self._query, keep_blank_values=True)
        except ValueError:
            raise MalformedJson("The request cannot be read") from None
        return {
            name: [value.decode("utf-8", "replace") for value in values] for name, values in parsed.items()
        }

    def read_body(self) -> bytes:
        """The body's bytes. Raises PayloadTooLarge and UnsupportedMediaType."""
        if self.received_bytes > self.max_body_bytes:
            raise too_large(self.max_body_bytes)
        if not self.body:
            return b""
        media_type = self.headers.get("Content-Type", "application/json").partition(";")[0].strip()
        if media_type.lower() != "application/json":
            raise UnsupportedMediaType(
                f"The body must be application/json, not {media_type[:100] or 'untyped'}"
            )
        return bytes(self.body)

    async def admit(self) -> None:
        """Wait until the request is counted, if it is. Raises RateLimited where it was one too many."""
        charge, self.charge = self.charge, None
        if charge is not None:
            self.note_rate_limit(await charge)

    def note_rate_limit(self, status: RateLimitStatus) -> None:
        """The reply tells of one limit: of several, the one that is nearest."""
        if self.rate_limit is None or status.remaining < self.rate_limit.remaining:
            self.rate_limit = status


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own, if it can be logged, or a new one."""
    given = headers.get("X-Request-ID")
    return given if given and _REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    return f"{_RANDOM.getrandbits(64):016x}"


def too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body must not exceed {max_bytes} bytes")
