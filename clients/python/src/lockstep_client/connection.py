"""Opening a WebSocket, and what its end means."""

import asyncio

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, NegotiationError, WebSocketException
from websockets.typing import Subprotocol

from lockstep_client.backoff import TOKEN_REFUSED, after_close
from lockstep_client.errors import LockstepError
from lockstep_client.exchange import error_in
from lockstep_client.messages import FORMER_SUBPROTOCOL, SUBPROTOCOL
from lockstep_client.tls import tls_context

CONNECT_WITHIN_S = 10.0
CLOSE_WITHIN_S = 1.0
MAX_MESSAGE_BYTES = 4 * 1_048_576
_CODES = {4503: "FORBIDDEN", 4504: "DISCONNECTED"}
"""What REST says where the WebSocket says it by closing."""


class Lost(Exception):
    """There is no connection any more, or none yet; another attempt may have one. `code`: why it closed."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


class TokenRefused(Exception):
    """The server wants another token than this."""


async def open_connection(url: str, token: str | None) -> ClientConnection:
    """Raises Lost, TokenRefused, and LockstepError where another attempt would come to the same."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            connection = await connect(
                url,
                subprotocols=[Subprotocol(SUBPROTOCOL), Subprotocol(FORMER_SUBPROTOCOL)],
                additional_headers=headers,
                open_timeout=None,
                close_timeout=CLOSE_WITHIN_S,
                ssl=tls_context() if url.startswith("wss:") else None,
                ping_interval=None,  # the PINGs of the protocol find out more
                max_size=MAX_MESSAGE_BYTES,
            )
    except InvalidStatus as error:
        raise _refused(error.response.status_code, bytes(error.response.body or b"")) from error
    except NegotiationError as error:
        raise LockstepError("UNSUPPORTED_PROTOCOL", f"The server speaks something else: {error}") from error
    except (OSError, EOFError, WebSocketException) as error:  # TimeoutError is an OSError
        raise Lost(f"{type(error).__name__} {error}".rstrip()) from error
    if connection.subprotocol != SUBPROTOCOL:
        await close_connection(connection)
        spoken = connection.subprotocol or "no protocol of ours"
        raise LockstepError("UNSUPPORTED_PROTOCOL", f"The server speaks {spoken}, not {SUBPROTOCOL}")
    return connection


async def close_connection(connection: ClientConnection, *, is_dead: bool = False) -> None:
    """Say so, unless it is dead; nothing of it is left afterwards."""
    try:
        if not is_dead:
            await connection.close()
    finally:
        connection.transport.abort()
        await connection.wait_closed()


def error_of_end(closed: ConnectionClosed) -> Exception:
    """Lost, TokenRefused, or the LockstepError that says why coming back is no use."""
    code, reason = (1006, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)
    if code == TOKEN_REFUSED:
        return TokenRefused(reason)
    if after_close(code) == "retry":
        return Lost(f"closed with {code} {reason}".rstrip(), code)
    details = {"close_code": code}
    return LockstepError(_CODES.get(code, "REFUSED"), reason or f"Closed with {code}", details=details)


def _refused(status: int, content: bytes) -> Exception:
    """Why a handshake was answered with something else."""
    if status == 401:
        return TokenRefused("The server asks for another token")
    if status in (408, 425, 429) or status >= 500:
        return Lost(f"the server answered {status}")
    error = error_in(content, status)
    text = f"What answered {status} at /ws is no Lockstep server"
    return error or LockstepError("INVALID_ANSWER", text, status=status)
