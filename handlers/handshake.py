"""The WebSocket's opening handshake (RFC 6455 4.2): GET /ws?sessionId=UUID."""

import asyncio
import hashlib
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import partial

from tornado.iostream import IOStream, StreamClosedError

from handlers.client_protocol import ClientProtocol, expire_with
from handlers.clients import Clients
from handlers.connection import Connection
from handlers.origins import refused_origin
from handlers.reply import Reply
from handlers.request import Request
from handlers.request_timeouts import STALLED_TIMEOUT_S
from handlers.services import Services
from handlers.tornado_private import release_socket
from lockstep.access import Scope
from lockstep.errors import (
    INVALID_SESSION_ID,
    MISSING_SESSION_ID,
    TOKEN_FORBIDDEN,
    TOKEN_REFUSED,
    TOO_MUCH_TOO_EARLY,
    Close,
    Forbidden,
    LockstepError,
    MalformedJson,
    ShuttingDown,
    Unauthorized,
    UnsupportedProtocol,
    UpgradeRequired,
)
from lockstep.wire import heads
from lockstep.wire.extensions import granted

SOCKET_PATHS = ("/ws", "/ws/")
EARLY_BYTES = 4096
VERSION = "13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OURS = "lockstep."
# RFC 3986 3.2, without what is between an "@" and what is before it.
_HOST = re.compile(r"[A-Za-z0-9\-._~!$&'()*+;=%:\[\]]+")

Refusal = Callable[[str], LockstepError]
"""Makes the refusal of a request, and logs it where that is due, with the request's id."""


class Handshakes:
    """Grants requests for a WebSocket, or refuses them."""

    def __init__(self, services: Services, clients: Clients) -> None:
        self._services = services
        self._clients = clients

    async def answer(self, request: Request, services: Services) -> Reply:
        refusal = self.find_refusal(request)
        if refusal is not None:
            raise refusal(request.request_id)
        opening = self.grant(request)
        return Reply(101, headers=opening.headers, successor=opening)

    def find_refusal(self, request: Request) -> Refusal | None:
        """Why the request is not granted, if it is not."""
        get = request.headers.get
        if get("Upgrade", "").lower() != "websocket" or request.method == "HEAD":
            return _upgrade_required
        if self._services.is_draining():
            # The request came by a connection that was open before; a proxy then asks another process.
            return _shutting_down
        listed = get("Sec-WebSocket-Protocol")
        if listed is not None and _OURS in listed and self._asks_for_unknown(_items(listed)):
            return partial(_unsupported_protocol, self._clients)
        if "upgrade" not in _items(get("Connection", "").lower()):
            return partial(_malformed, "Connection")
        if not self._admits_page(request.headers):
            return partial(refused_origin, get("Origin", ""), get("Host", ""))
        if get("Sec-WebSocket-Version") != VERSION:
            return _other_version
        if not get("Sec-WebSocket-Key"):
            return partial(_malformed, "Sec-WebSocket-Key")
        if _HOST.fullmatch(get("Host", "")) is None:
            return partial(_malformed, "Host")
        return None

    def _asks_for_unknown(self, listed: list[str]) -> bool:
        ours = [each for each in listed if each.startswith(_OURS)]
        return bool(ours) and not any(each in self._clients.protocols for each in ours)

    def _admits_page(self, headers: Mapping[str, str]) -> bool:
        """Whether the request comes from a page that may open a WebSocket here, or from no page."""
        # Browsers let no page choose these (Fetch Metadata).
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        if site in ("same-origin", "none") or (site is None and origin is None):
            return True
        return origin is not None and self._services.origins.admits(origin, headers.get("Host", ""))

    def grant(self, request: Request) -> "Opening":
        """What a request becomes that nothing forbids. Raises ValidationError and MalformedJson."""
        get = request.headers.get
        clients = self._clients
        listed = get("Sec-WebSocket-Protocol")
        # Clients list them in their order of preference.
        known = (each for each in _items(listed) if each in clients.protocols) if listed else iter(())
        subprotocol = next(known, None)
        offered = get("Sec-WebSocket-Extensions")
        extensions = granted(offered) if offered and clients.compression else None
        return Opening(self._services, clients, request, subprotocol, extensions)


class Opening:
    """A handshake that is granted, and becomes a client's connection."""

    __slots__ = ("_arguments", "_clients", "_extensions", "_protocol", "_request", "_services", "headers")

    def __init__(
        self,
        services: Services,
        clients: Clients,
        request: Request,
        subprotocol: str | None,
        extensions: str | None,
    ) -> None:
        self._services = services
        self._clients = clients
        self._request = request
        self._extensions = extensions
        self._protocol = clients.protocols.get(subprotocol or "", clients.default_protocol)
        self._arguments = request.query_arguments()
        key = request.headers["Sec-WebSocket-Key"].encode("latin1")
        self.headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": b64encode(hashlib.sha1(key + _GUID).digest()).decode(),
        }
        if subprotocol is not None:
            self.headers["Sec-WebSocket-Protocol"] = subprotocol
        if extensions is not None:
            self.headers["Sec-WebSocket-Extensions"] = extensions

    async def begin(self, stream: IOStream, head: bytes) -> None:
        """Take the connection from Tornado; the head goes out behind what is still to be written."""
        try:
            sock, early = await _take_socket(stream)
        except (StreamClosedError, TimeoutError):
            return
        await self.open(sock, head, early)

    async def open(self, sock: socket.SocketType, head: bytes, early: bytes) -> None:
        """Send the head, let the client in, and begin to listen; `early` is what came with the request."""
        request, protocol = self._request, self._protocol
        requested = self._requested_session(protocol)
        session_id = requested if isinstance(requested, str) else None
        connection = Connection(sock, self._clients, protocol, session_id, request.address)
        if self._extensions is not None:
            connection.encoding = protocol.encoding.deflated
        self._clients.metrics.opened.inc()
        connection.outgoing.send_first(head)
        if connection.is_over:
            return  # what is begun for it now would not end with it
        if len(early) > EARLY_BYTES:
            early = b""
            connection.close(TOO_MUCH_TOO_EARLY)
        elif isinstance(requested, Close):
            connection.close(requested)
        else:
            await self._admit(protocol, connection)
        connection.start(early)

    async def _admit(self, protocol: ClientProtocol, connection: Connection) -> None:
        try:
            access = self._services.tokens.access(self._request.headers, self._argument("token"))
            if connection.session_id is None:
                access.require_scope(Scope.VIEW)
            else:
                access.require(Scope.VIEW, connection.session_id)
        except Unauthorized as error:
            connection.close(TOKEN_REFUSED.because(error.message))
        except Forbidden as error:
            connection.close(TOKEN_FORBIDDEN.because(error.message))
        else:
            connection.subject = access.subject or None
            expire_with(connection, access)
            if not access.is_trusted:
                connection.caller = access.client if access.subject else connection.address
            await protocol.welcome(connection, access, self._argument("position"))

    def _argument(self, name: str) -> str | None:
        values = self._arguments.get(name)
        return None if values is None else values[-1]

    def _requested_session(self, protocol: ClientProtocol) -> str | Close | None:
        """The session's id, None where none is asked for and none is needed, or why there is none."""
        values = self._arguments.get("sessionId", [])
        if not values and not protocol.needs_session:
            return None
        if not any(values) and protocol.needs_session:
            return MISSING_SESSION_ID
        session_id = values[0].lower()
        if len(values) > 1 or not heads.UUID.fullmatch(session_id):
            return INVALID_SESSION_ID
        return session_id


async def _take_socket(stream: IOStream) -> tuple[socket.SocketType, bytes]:
    """Take the socket from Tornado's stream once all is written, and what the stream has read.

    That is more than EARLY_BYTES if the client sent so much before it had the answer. The connection reads
    what is still in the kernel, however much, as everything else. Raises StreamClosedError, and TimeoutError
    if the client does not take what was written.
    """
    if stream.writing():
        try:
            async with asyncio.timeout(STALLED_TIMEOUT_S):
                await stream.write(b"")
        except TimeoutError:
            stream.close()
            raise
    # This is done at once if something has come already, which is then in one piece.
    reading = asyncio.ensure_future(stream.read_bytes(EARLY_BYTES + 1, partial=True))
    early = reading.result() if reading.done() else b""
    return release_socket(stream), early


def _items(header: str) -> list[str]:
    return [each.strip() for each in header.split(",")]


def _upgrade_required(request_id: str) -> LockstepError:
    return UpgradeRequired("This is a WebSocket: connect with an Upgrade")


def _other_version(request_id: str) -> LockstepError:
    return UpgradeRequired(f"Only version {VERSION} of the WebSocket is spoken here", VERSION)


def _shutting_down(request_id: str) -> LockstepError:
    return ShuttingDown()


def _unsupported_protocol(clients: Clients, request_id: str) -> LockstepError:
    return UnsupportedProtocol(sorted(clients.protocols))


def _malformed(header: str, request_id: str) -> LockstepError:
    return MalformedJson(f"This WebSocket's header {header} is missing or cannot be used")
