"""What a client can be told, and nothing else: one class for each code, and the table of close codes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

MAX_VIOLATIONS = 100
"""No more of them are told."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request. `field` is a path such as participants.0.total_time_ms."""

    field: str
    message: str
    code: str

    def to_dict(self) -> dict[str, str]:
        return {"field": self.field, "message": self.message, "code": self.code}


class LockstepError(Exception):
    """Base of the closed list. `status` is the HTTP status, `details` goes into the answer if not None."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: int = 500
    retry_after_s: float | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    """What the answer carries besides."""

    def __init__(self, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class ValidationError(LockstepError):
    code = "VALIDATION_ERROR"
    status = 400

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__(
            "Request validation failed", [each.to_dict() for each in violations[:MAX_VIOLATIONS]]
        )


class MalformedJson(LockstepError):
    code = "MALFORMED_JSON"
    status = 400


class InvalidStateTransition(LockstepError):
    code = "INVALID_STATE_TRANSITION"
    status = 400


class SessionNotFound(LockstepError):
    code = "SESSION_NOT_FOUND"
    status = 404

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id} not found")


class UpgradeRequired(LockstepError):
    code = "UPGRADE_REQUIRED"
    status = 426

    def __init__(self, message: str, version: str = "") -> None:
        """`version` is that of the WebSocket, where it asks for another one."""
        super().__init__(message)
        self.headers = {"Upgrade": "websocket"}
        if version:
            self.headers["Sec-WebSocket-Version"] = version


class RouteNotFound(LockstepError):
    code = "NOT_FOUND"
    status = 404


class MethodNotAllowed(LockstepError):
    code = "METHOD_NOT_ALLOWED"
    status = 405

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = {"Allow": allowed}


class SessionExists(LockstepError):
    code = "SESSION_EXISTS"
    status = 409

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id} already exists")


class Conflict(LockstepError):
    """What the sender expected no longer holds. The service says what the session is now.

    `details` have its state, `position` names it.
    """

    code = "CONFLICT"
    status = 409
    position = ""


class NotSubscribed(LockstepError):
    """Said over a WebSocket: a message about a session needs a subscription to it."""

    code = "NOT_SUBSCRIBED"
    status = 409

    def __init__(self, session_id: str) -> None:
        super().__init__(f"There is no subscription to session {session_id}")


class TooManySubscriptions(LockstepError):
    code = "TOO_MANY_SUBSCRIPTIONS"
    status = 409

    def __init__(self, most: int) -> None:
        super().__init__(f"A connection may have {most} subscriptions")


class SessionFull(LockstepError):
    """The session has as many clients as it may, or as many of this caller."""

    code = "SESSION_FULL"
    status = 429
    retry_after_s = 5.0


class AddressFull(LockstepError):
    code = "ADDRESS_FULL"
    status = 429
    retry_after_s = 5.0


class ServerFull(LockstepError):
    """This process lets nobody in, or not so many at once; another may."""

    code = "SERVER_FULL"
    status = 503
    retry_after_s = 1.0


class UnsupportedProtocol(LockstepError):
    """None of the subprotocols that a WebSocket's client lists is known."""

    code = "UNSUPPORTED_PROTOCOL"
    status = 400

    def __init__(self, supported: list[str]) -> None:
        super().__init__("None of these subprotocols is known", {"supported": supported})


class PreconditionFailed(Conflict):
    """The same, said by If-Match (RFC 9110 13.1.1)."""

    status = 412


class EventsGone(LockstepError):
    code = "EVENTS_GONE"
    status = 410


class PayloadTooLarge(LockstepError):
    code = "PAYLOAD_TOO_LARGE"
    status = 413


class HeadTooLarge(LockstepError):
    """A request's line and headers are longer than is read."""

    code = "HEAD_TOO_LARGE"
    status = 431


class UnsupportedMediaType(LockstepError):
    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class StateCorrupt(LockstepError):
    code = "STATE_CORRUPT"
    status = 500

    def __init__(self, session_id: str) -> None:
        super().__init__(f"The stored state of session {session_id} cannot be read")


class SessionBusy(LockstepError):
    code = "SESSION_BUSY"
    status = 503
    retry_after_s = 1.0

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id} is being changed by others, nothing was applied")


class BrokerUnavailable(LockstepError):
    """The broker does not answer. `outcome` says whether the change may have been applied all the same."""

    code = "BROKER_UNAVAILABLE"
    status = 503
    retry_after_s = 1.0

    def __init__(self, outcome: str = "not_applied") -> None:
        assert outcome in ("not_applied", "unknown")
        super().__init__("The broker cannot be reached", {"outcome": outcome})


class ReceivedTooLongAgo(LockstepError):
    """It lay here for so long that it may have been done elsewhere, and nobody would remember."""

    code = "RECEIVED_TOO_LONG_AGO"
    status = 503
    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__("The request was received too long ago to be done now", {"outcome": "not_applied"})


class ShuttingDown(LockstepError):
    """Said to who wants to stay; a request that can be answered at once still is."""

    code = "SHUTTING_DOWN"
    status = 503
    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__("Server shutting down")


class Unauthorized(LockstepError):
    """No token, or one that is not believed. `message` never quotes it.

    `details.reason` is one of `reasons`.
    """

    code = "UNAUTHORIZED"
    status = 401
    reasons = ("missing", "malformed", "signature", "expired", "not_yet", "audience", "issuer", "claim")
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, {"reason": reason})


class Forbidden(LockstepError):
    """`details.reason` is one of `reasons`; if it is the scope, `details.scope` is the least that will do."""

    code = "FORBIDDEN"
    status = 403
    reasons = ("session", "scope", "turn", "origin", "host")

    def __init__(self, message: str, reason: str, **details: str) -> None:
        super().__init__(message, {"reason": reason, **details})


class RateLimited(LockstepError):
    """`headers` say where the caller stands (RateLimit-*)."""

    code = "RATE_LIMIT_EXCEEDED"
    status = 429

    def __init__(self, message: str, retry_after_s: float, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = headers


class IdempotencyKeyReused(LockstepError):
    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request: a new request needs a new key")


@dataclass(frozen=True, slots=True)
class Close:
    """How a connection ends: what its close frame says (RFC 6455 7.4), and whether to come back.

    Of our own codes 4000-4499 say "come back" and 4500-4999 say "don't", but for 4501: with another token.
    """

    code: int
    reason: str
    may_come_back: bool

    def because(self, reason: str) -> "Close":
        """The same, with a reason that says more."""
        return replace(self, reason=reason)


SESSION_DELETED = Close(1000, "Session deleted", may_come_back=False)
GOING_AWAY = Close(1001, "Server shutting down", may_come_back=True)
PROTOCOL_ERROR = Close(1002, "Protocol error", may_come_back=False)
ABNORMAL_CLOSURE = Close(1006, "", may_come_back=True)  # never sent: there was no close frame
INVALID_PAYLOAD = Close(1007, "Invalid UTF-8", may_come_back=False)
POLICY_VIOLATION = Close(1008, "Policy violation", may_come_back=False)
MISSING_SESSION_ID = POLICY_VIOLATION.because("Missing sessionId parameter")
INVALID_SESSION_ID = POLICY_VIOLATION.because("Invalid sessionId format")
TOO_MUCH_TOO_EARLY = POLICY_VIOLATION.because("Too much was sent before the handshake was answered")
TOO_MANY_INVALID = POLICY_VIOLATION.because("Too many invalid messages")
MESSAGE_TOO_BIG = Close(1009, "Message too big", may_come_back=False)
INTERNAL_ERROR = Close(1011, "Internal server error", may_come_back=True)
TOO_SLOW = Close(4001, "Too slow", may_come_back=True)
SESSION_FULL = Close(4002, "Too many clients of this session", may_come_back=True)
SERVER_FULL = Close(4003, "Too many clients", may_come_back=True)
ADDRESS_FULL = Close(4004, "Too many clients from this address", may_come_back=True)
TOO_MANY_NEW = Close(4005, "Too many new clients", may_come_back=True)
TOO_MANY_MESSAGES = Close(4006, "Too many messages", may_come_back=True)
CALLER_FULL = Close(4007, "Too many connections of yours to this session", may_come_back=True)
TOKEN_REFUSED = Close(4501, "This token is not valid", may_come_back=True)
TOKEN_EXPIRED = TOKEN_REFUSED.because("This token has expired")
TOKEN_FORBIDDEN = Close(4503, "This token is for another session", may_come_back=False)
DISCONNECTED = Close(4504, "Disconnected", may_come_back=False)
# By the name of the connection limit that refuses a client.
CLOSE_BY_LIMIT = {
    "session": SESSION_FULL,
    "process": SERVER_FULL,
    "caller": CALLER_FULL,
    "address": ADDRESS_FULL,
    "connection_rate": TOO_MANY_NEW,
}
# The same, where a request is refused for it.
ERROR_BY_LIMIT: Mapping[str, type[LockstepError]] = {
    "session": SessionFull,
    "process": ServerFull,
    "caller": SessionFull,
    "address": AddressFull,
    "connection_rate": ServerFull,
}
