"""The WebSocket: /ws?sessionId=UUID."""

import asyncio
import logging
from collections import deque

from tornado.websocket import WebSocketHandler

from handlers.base import JsonErrors
from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from handlers.origins import Origins
from lockstep import messages
from lockstep.contract import Broker
from lockstep.errors import (
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    LockstepError,
    MalformedJson,
    OriginForbidden,
    UpgradeRequired,
)
from lockstep.frames import encode_text_frame
from lockstep.hub import Hub

log = logging.getLogger(__name__)

MAX_REFUSED = 10
REFUSED_WITHIN_S = 10.0


class SocketHandler(JsonErrors, WebSocketHandler):
    """One client of one session. It hears of changes through the hub, never from here."""

    ws_connection: Connection | None
    _peer: Connection
    _session_id: str | None = None
    _refused: deque[float] | None = None

    def initialize(
        self, hub: Hub, broker: Broker, heartbeat: Heartbeat, origins: Origins, max_message_bytes: int
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._heartbeat = heartbeat
        self._origins = origins
        self._max_message_bytes = max_message_bytes

    def get_websocket_protocol(self) -> Connection | None:
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        return Connection(self, self.on_frame, self._max_message_bytes, self._heartbeat)

    async def get(self, *args: str, **kwargs: str) -> None:
        headers = self.request.headers
        if headers.get("Upgrade", "").lower() != "websocket":
            self.set_header("Upgrade", "websocket")
            raise UpgradeRequired("This is a WebSocket: connect with an Upgrade")
        await super().get(*args, **kwargs)

    def check_origin(self, origin: str) -> bool:
        if not self._origins.admits(origin, self.request.host):
            raise OriginForbidden("Pages of this origin may not connect")
        return True

    async def open(self, *args: str, **kwargs: str) -> None:
        assert self.ws_connection is not None
        self._peer = peer = self.ws_connection
        given = [
            value.decode("utf-8", "replace") for value in self.request.query_arguments.get("sessionId", [])
        ]
        if not any(given):
            peer.close(POLICY_VIOLATION, "Missing sessionId parameter")
            return
        session_id = given[0].lower()
        if len(given) > 1 or not messages.UUID.fullmatch(session_id):
            peer.close(POLICY_VIOLATION, "Invalid sessionId format")
            return
        self._session_id = session_id
        try:
            await self._hub.join(session_id, peer)
        except Exception:
            log.exception("a client could not be set up", extra={"session_id": session_id})
            peer.close(INTERNAL_ERROR, "Internal server error")

    async def on_frame(self, payload: bytes, is_binary: bool) -> None:
        """A whole message of the client, its bytes as they came."""
        assert self._session_id is not None
        try:
            if is_binary:
                raise MalformedJson("Binary messages are not understood")
            message = messages.loads(payload)
            if not isinstance(message, dict) or not isinstance(message.get("type"), str):
                raise MalformedJson("A message is a JSON object with a type")
        except MalformedJson as error:
            self._refuse("INVALID_MESSAGE", error.message)
            return
        if message["type"] == "PING":
            self._send(messages.pong(self._broker.now_ms(), message))
        elif message["type"] == "RECONNECT":
            try:
                await self._hub.sync(self._session_id, self._peer)
            except LockstepError as error:
                self._send(messages.error(error.code, error.message))
        else:
            self._refuse("UNKNOWN_TYPE", f"Unknown message type {message['type'][:50]!r}")

    def on_close(self) -> None:
        if self._session_id is not None:
            self._hub.leave(self._session_id, self._peer)
        log.info("socket closed", extra={"session_id": self._session_id, "close_code": self.close_code})

    def on_message(self, message: str | bytes) -> None:
        raise NotImplementedError("messages arrive by on_frame")

    def _send(self, message: bytes) -> None:
        self._peer.send(encode_text_frame(message))

    def _refuse(self, code: str, message: str) -> None:
        """Say so, and close on a client that goes on like this."""
        self._send(messages.error(code, message))
        now_s = asyncio.get_running_loop().time()
        if self._refused is None:
            self._refused = deque(maxlen=MAX_REFUSED)
        self._refused.append(now_s)
        if len(self._refused) == MAX_REFUSED and now_s - self._refused[0] <= REFUSED_WITHIN_S:
            self._peer.close(POLICY_VIOLATION, "Too many invalid messages")
