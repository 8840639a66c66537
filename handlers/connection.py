"""A client's socket after the handshake: frames in, frames out, and what becomes of a slow one.

It stands in at Tornado's own seam (`WebSocketHandler.get_websocket_protocol`) because of what
Tornado's protocol class does otherwise: a task per message sent, a task per connection for pings,
five more seconds for a peer that has vanished, an unlimited write buffer, no close frame for
invalid UTF-8, and illegal close codes echoed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.iostream import SSLIOStream, StreamClosedError
from tornado.websocket import WebSocketHandler, WebSocketProtocol13, _WebSocketParams

from handlers.heartbeat import Heartbeat
from lockstep.errors import TOO_SLOW
from lockstep.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameError,
    FrameReader,
    decode_close,
    encode_close,
    encode_frame,
)

log = logging.getLogger(__name__)

READ_BYTES = 65_536
READS_PER_TURN = 8
MESSAGES_PER_TURN = 64
MAX_UNSENT_BYTES = 1_048_576
CLOSE_TIMEOUT_S = 5.0
TOO_SLOW_TIMEOUT_S = 1.0
_PING_FRAME = encode_frame(PING, b"")


class Connection(WebSocketProtocol13):
    """One client, as the hub's Peer. What the socket does not take at once waits here, bounded."""

    def __init__(
        self,
        handler: WebSocketHandler,
        on_frame: Callable[[bytes, bool], Awaitable[None]],
        max_message_bytes: int,
        heartbeat: Heartbeat,
    ) -> None:
        super().__init__(
            handler, mask_outgoing=False, params=_WebSocketParams(max_message_size=max_message_bytes)
        )
        self._reader: FrameReader | None = FrameReader(max_message_bytes)
        # Takes each whole message, its bytes and whether it is binary.
        self._on_frame = on_frame
        self._heartbeat = heartbeat
        self._owes_pong = False
        # Frames that wait for the one in progress. At most one of them is a state: [is_state, frame].
        self._unsent: deque[list[Any]] = deque()
        self._unsent_state: list[Any] | None = None
        self._unsent_bytes = 0
        self._in_progress = False
        self._abort_timer: asyncio.TimerHandle | None = None

    # --- sending ---------------------------------------------------------------------------------

    def send_state(self, frame: bytes) -> None:
        if self.server_terminated:
            return
        if not self._in_progress:
            self._write(frame)
        elif self._unsent_state is not None:
            self._unsent_state[1] = frame
        else:
            self._unsent_state = [True, frame]
            self._unsent.append(self._unsent_state)

    def send_sync(self, frame: bytes) -> None:
        if self._unsent_state is None or self.server_terminated:
            self.send(frame)
            return
        # In place of the unsent state, and no more to be replaced: what was asked for is answered.
        self._unsent_state[:] = [False, frame]
        self._unsent_state = None
        self._count_unsent(frame)

    def send(self, frame: bytes) -> None:
        if self.server_terminated:
            return
        if not self._in_progress:
            self._write(frame)
            return
        self._unsent.append([False, frame])
        self._count_unsent(frame)

    def _count_unsent(self, frame: bytes) -> None:
        self._unsent_bytes += len(frame)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._give_up_unsent()
            self.close(TOO_SLOW, "Too slow")

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if not self.server_terminated:
            self.server_terminated = True
            self._heartbeat.drop(self)
            self.close_code = self.close_code or code
            self.close_reason = self.close_reason or reason
            if not self.stream.closed():
                frame = encode_close(code, reason or "")
                if self._in_progress:
                    self._unsent.append([False, frame])
                    self._unsent_bytes += len(frame)
                else:
                    self._write(frame)
                timeout_s = TOO_SLOW_TIMEOUT_S if code == TOO_SLOW else CLOSE_TIMEOUT_S
                self._abort_timer = asyncio.get_running_loop().call_later(timeout_s, self._abort)
        self._close_stream_if_done()

    def _write(self, frame: bytes | memoryview) -> None:
        """Put the frame on the wire, the part that the socket does not take now by way of the stream."""
        stream = self.stream
        try:
            # Past the stream's own buffer, which must be empty for the order to hold. Encryption has
            # no such short cut.
            if not stream.writing() and not isinstance(stream, SSLIOStream):
                sent = self._send_now(frame)
                if sent == len(frame):
                    return
                frame = memoryview(frame)[sent:]
            written = stream.write(frame)
            if stream.writing():
                self._in_progress = True
                written.add_done_callback(self._on_written)
        except (StreamClosedError, OSError):
            self._abort()

    def _send_now(self, frame: bytes | memoryview) -> int:
        socket = self.stream.socket
        if socket is None:
            raise StreamClosedError  # closed a moment ago, and nobody has said so yet
        try:
            return socket.send(frame)
        except BlockingIOError:
            return 0

    def _on_written(self, written: "asyncio.Future[None]") -> None:
        self._in_progress = False
        if written.cancelled() or written.exception() is not None:
            return  # the stream is closed, and the reading side says so
        while self._unsent and not self._in_progress:
            waiting = self._unsent.popleft()
            if waiting[0]:
                self._unsent_state = None
            else:
                self._unsent_bytes -= len(waiting[1])
            self._write(waiting[1])
        self._close_stream_if_done()

    def _give_up_unsent(self) -> None:
        self._unsent.clear()
        self._unsent_state = None
        self._unsent_bytes = 0

    # --- receiving -------------------------------------------------------------------------------

    async def _receive_frame_loop(self) -> None:
        reads = 0
        try:
            while not self.client_terminated:
                data = await self.stream.read_bytes(READ_BYTES, partial=True)
                await self._receive(data)
                reads += 1
                if reads % READS_PER_TURN == 0:
                    # Data that is there already is read without a pause; others need one.
                    await asyncio.sleep(0)
        except StreamClosedError:
            pass
        finally:
            self._abort()
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    async def _receive(self, data: bytes) -> None:
        if self._reader is None:
            return  # after a breach the client is only waited for
        try:
            for number, (opcode, payload) in enumerate(self._reader.feed(data), 1):
                if number % MESSAGES_PER_TURN == 0:
                    await asyncio.sleep(0)  # whoever talks fast has no more of the loop than others
                if opcode in (TEXT, BINARY):
                    await self._on_message(payload, opcode == BINARY)
                elif opcode == PONG:
                    self._owes_pong = False
                elif opcode == PING:
                    self.send(encode_frame(PONG, payload))
                elif opcode == CLOSE:
                    # Also with a code that is refused, nothing follows: TCP ends with our answer.
                    self.client_terminated = True
                    self.close_code, self.close_reason = decode_close(payload)
                    self.close(self.close_code)
                    return
        except FrameError as error:
            # Not closed at once: a reset would overtake the close frame, and the client never learn why.
            self._reader = None
            self.close(error.close_code, error.reason)

    async def _on_message(self, payload: bytes, is_binary: bool) -> None:
        if self.server_terminated:
            return
        try:
            await self._on_frame(payload, is_binary)
        except Exception:
            log.exception("a message could not be handled")
            self.close(1011, "Internal server error")

    # --- ending ----------------------------------------------------------------------------------

    def start_pinging(self) -> None:
        self.set_nodelay(True)
        self._heartbeat.add(self)

    def ping(self) -> None:
        self._owes_pong = True
        try:
            if self.stream.writing():
                # Behind the frame in progress, before those that wait.
                self.stream.write(_PING_FRAME)
            else:
                self._write(_PING_FRAME)
        except StreamClosedError:
            self._abort()

    def expect_pong(self) -> None:
        if self._owes_pong:
            self.close_code = self.close_code or 1006
            self._abort()

    def _close_stream_if_done(self) -> None:
        is_sent = not self._in_progress and not self._unsent and not self.stream.writing()
        if self.server_terminated and self.client_terminated and is_sent:
            self._abort()

    def _abort(self) -> None:
        self.client_terminated = True
        self.server_terminated = True
        self._heartbeat.drop(self)
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None
        self._give_up_unsent()
        if self.stream is not None:
            self.stream.close()
