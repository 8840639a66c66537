"""Why something was not done."""

from lockstep_client.types import Json


class LockstepError(Exception):
    """A request, a command or a subscription has failed.

    `code` is the server's (`SESSION_NOT_FOUND`, `CONFLICT`, `VALIDATION_ERROR`, `FORBIDDEN` ...), or one of
    this client's own:

    - `UNREACHABLE`: no answer within the timeout. Whether a change was made is unknown; asked again with the
      same idempotency key, it is made once
    - `INVALID_ANSWER`: what answered is no Lockstep server, or breaks its contract: a proxy's page, for one
    - `REFUSED`: the server does not want this client's WebSocket; `details.close_code` says why
    - `UNSUPPORTED_PROTOCOL`: the server is too old to be followed
    - `MESSAGE_TOO_BIG`: a command is too long for the WebSocket; by REST it may be longer
    - `CLOSED`: the client was closed

    `details` is what the server adds for programs: an object, with `VALIDATION_ERROR` a list.
    `retry_after_ms` says after how long trying again may help. `status` is HTTP's, where HTTP was asked.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Json = None,
        retry_after_ms: int | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.retry_after_ms = retry_after_ms
        self.status = status

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.code, self.message, self.details, self.retry_after_ms, self.status)


def _again(
    code: str, message: str, details: Json, retry_after_ms: int | None, status: int | None
) -> LockstepError:
    return LockstepError(code, message, details=details, retry_after_ms=retry_after_ms, status=status)
