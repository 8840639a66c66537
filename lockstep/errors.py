"""What a client can be told, and nothing else: one class per code of the contract."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar


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
        super().__init__("Request validation failed", [v.to_dict() for v in violations])


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


class RouteNotFound(LockstepError):
    code = "NOT_FOUND"
    status = 404


class MethodNotAllowed(LockstepError):
    code = "METHOD_NOT_ALLOWED"
    status = 405


class SessionExists(LockstepError):
    code = "SESSION_EXISTS"
    status = 409

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id} already exists")


class Conflict(LockstepError):
    """What the sender expected no longer holds. The service puts the current state into `details`."""

    code = "CONFLICT"
    status = 409


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


# Close codes (RFC 6455 7.4; 4000-4499: come back, 4500-4999: don't).
NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
ABNORMAL_CLOSURE = 1006  # never sent: there was no close frame
INVALID_PAYLOAD = 1007
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
INTERNAL_ERROR = 1011
TOO_SLOW = 4001
SESSION_FULL = 4002
SERVER_FULL = 4003
ADDRESS_FULL = 4004
TOO_MANY_NEW = 4005
TOO_MANY_MESSAGES = 4006
CALLER_FULL = 4007
TOKEN_REFUSED = 4501
TOKEN_FORBIDDEN = 4503
