"""What a protocol of the WebSocket is to a connection: one object, shared by all who speak it."""

import abc
import asyncio
import time
from collections.abc import Collection

from handlers.connection import Connection
from handlers.excesses import Excesses
from lockstep.access import Access
from lockstep.errors import CLOSE_BY_LIMIT, TOKEN_EXPIRED, TOO_MANY_INVALID, Close
from lockstep.limits import ConnectionLimits
from lockstep.wire.encodings import Encoding


class ClientProtocol(abc.ABC):
    """Lets a client in, answers what it says, and sends it away. A third protocol would be a third."""

    subprotocol: str
    """Its name in Sec-WebSocket-Protocol."""
    encoding: Encoding
    needs_session: bool
    """Its connections belong to one session, which the URL names."""

    @property
    @abc.abstractmethod
    def connections(self) -> Collection[Connection]:
        """Those that have been let in."""

    @abc.abstractmethod
    async def welcome(self, connection: Connection, access: Access, position: str | None) -> None:
        """Let the client in, unless that would exceed a limit. `position` is what its URL says of it."""

    @abc.abstractmethod
    def on_message(self, connection: Connection, payload: bytes, is_binary: bool) -> None:
        """A whole message, its bytes as they came."""

    @abc.abstractmethod
    def on_end(self, connection: Connection) -> None:
        """The connection is no more. Called once."""

    @abc.abstractmethod
    def send_away(self, connection: Connection, how: Close, come_back_after_ms: int) -> None:
        """The process stops: close the connection."""


async def let_in(connection: Connection, limits: ConnectionLimits, session_id: str | None) -> bool:
    """Count the connection, and its client in the session if it belongs to one.

    False where a limit forbids it, which closes it, and where it has ended meanwhile.
    """
    refusal = limits.count_and_check() or await limits.enter(
        session_id, connection.caller, connection.address
    )
    if refusal is not None:
        connection.close(CLOSE_BY_LIMIT[refusal])
        return False
    connection.is_counted = True
    if connection.is_over:  # it ended while it was waiting
        count_out(connection, limits, session_id)
        return False
    return True


def count_out(connection: Connection, limits: ConnectionLimits, session_id: str | None) -> None:
    """Make room for another client under the limits, if this one was counted."""
    if connection.is_counted:
        connection.is_counted = False
        limits.leave(session_id, connection.caller, connection.address)


def expire_with(connection: Connection, access: Access) -> None:
    """Close the connection when the token of this access runs out, instead of that of an earlier one."""
    if access.expires_at_s is not None:
        connection.close_in(access.expires_at_s - time.time(), TOKEN_EXPIRED)


def count_invalid(connection: Connection) -> None:
    """Count a message that was not understood, and close the connection of a client that goes on so."""
    if connection.excesses is None:
        connection.excesses = Excesses()
    if connection.excesses.count_invalid(asyncio.get_running_loop().time()):
        connection.close(TOO_MANY_INVALID)
