"""What the routes answer, for /openapi.json: responses with their headers, and the errors instead of them."""

from collections.abc import Iterable

from lockstep import errors
from lockstep.access import Scope
from lockstep.errors import LockstepError
from lockstep.requests.json_schema import COUNT, STRING, Schema, list_of, object_of, ref_to

ERRORS_OF_ANY_ROUTE: tuple[type[LockstepError], ...] = (
    errors.PayloadTooLarge,
    errors.HeadTooLarge,
    LockstepError,
)
# Of a route that reaches the broker.
STORE_ERRORS = (
    *ERRORS_OF_ANY_ROUTE,
    errors.Unauthorized,
    errors.Forbidden,
    errors.BrokerUnavailable,
    errors.StateCorrupt,
)
# Of a change that may have an Idempotency-Key.
IDEMPOTENCY_ERRORS = (errors.IdempotencyKeyReused, errors.ReceivedTooLongAgo)
COMMAND_ERRORS: tuple[type[LockstepError], ...] = (
    *STORE_ERRORS,
    *IDEMPOTENCY_ERRORS,
    errors.ValidationError,
    errors.MalformedJson,
    errors.InvalidStateTransition,
    errors.SessionNotFound,
    errors.Conflict,
    errors.PreconditionFailed,
    errors.UnsupportedMediaType,
    errors.SessionBusy,
)

# Each header with its name among the document's headers.
_NAMES = {
    "X-Request-ID": "RequestId",
    "ETag": "ETag",
    "Location": "Location",
    "Retry-After": "RetryAfter",
    "Idempotent-Replayed": "Replayed",
    "RateLimit-Limit": "RateLimitLimit",
    "RateLimit-Remaining": "RateLimitRemaining",
    "RateLimit-Reset": "RateLimitReset",
}


def headers_by_name() -> dict[str, Schema]:
    return {
        "RequestId": {"description": "The request's own X-Request-ID, or one made for it", "schema": STRING},
        "ETag": {"description": '"<epoch>-<version>-<commit>"', "schema": STRING},
        "Location": {"description": "The session's path", "schema": STRING},
        "RetryAfter": {"description": "Seconds", "schema": COUNT},
        "Replayed": {
            "description": "true where the request was done before",
            "schema": {"type": "string", "enum": ["true"]},
        },
        "RateLimitLimit": {"description": "Requests in a window", "schema": COUNT},
        "RateLimitRemaining": {"description": "Requests left in this window", "schema": COUNT},
        "RateLimitReset": {"description": "Seconds until the next window", "schema": COUNT},
    }


def answer(description: str, schema: Schema | None = None, headers: Iterable[str] = ()) -> Schema:
    """A response with these headers, besides the one that all have."""
    named = {name: ref_to("headers", _NAMES[name]) for name in ("X-Request-ID", *headers)}
    response: Schema = {"description": description, "headers": named}
    return response if schema is None else response | {"content": {"application/json": {"schema": schema}}}


def data(schema: Schema) -> Schema:
    return object_of({"data": schema})


def refusals(error_types: Iterable[type[LockstepError]], *, is_limited: bool) -> dict[str, Schema]:
    """The responses for these errors by status, each with the codes it can have."""
    found: dict[str, set[str]] = {}
    retry: set[str] = set()
    for kind in error_types:
        found.setdefault(str(kind.status), set()).add(kind.code)
        if kind.retry_after_s is not None:
            retry.add(str(kind.status))
    if is_limited:
        found.setdefault("429", set()).add("RATE_LIMIT_EXCEEDED")
        retry.add("429")
    answers = {}
    for status, codes in sorted(found.items()):
        headers = ["Retry-After"] if status in retry else []
        if status == "429":
            headers += ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]
        answers[status] = answer(", ".join(sorted(codes)), _error(codes), headers)
    return answers


def _error(codes: set[str]) -> Schema:
    details: Schema = {"type": "object"}
    if errors.ValidationError.code in codes:
        details = {"anyOf": [details, list_of("Violation")]}
    for kind in (errors.Unauthorized, errors.Forbidden):
        if codes == {kind.code}:
            # `scope` is there where it is the reason: the least that will do.
            scope = {"enum": [each.name.lower() for each in Scope]}
            details = object_of({"reason": {"enum": list(kind.reasons)}, "scope": scope}, ["scope"])
    error = {
        "code": {"type": "string", "enum": sorted(codes)},
        "message": STRING,
        "details": details,
        "retry_after_seconds": COUNT,
    }
    return object_of({"error": object_of(error, ["details", "retry_after_seconds"])})
