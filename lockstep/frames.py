"""RFC 6455 framing, server side: bytes in, messages out; no socket."""

import codecs
from collections.abc import Iterator

from lockstep.errors import INVALID_PAYLOAD, MESSAGE_TOO_BIG, PROTOCOL_ERROR

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_DATA_OPCODES = (CONTINUATION, TEXT, BINARY)
_CONTROL_OPCODES = (CLOSE, PING, PONG)


class FrameError(Exception):
    """The peer broke the protocol; the connection ends with `close_code`."""

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(reason)
        self.close_code = close_code
        self.reason = reason


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame (RFC 6455 5.2)."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    if length < 65_536:
        return bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big") + payload


def encode_text_frame(message: bytes) -> bytes:
    return encode_frame(TEXT, message)


def encode_close(code: int | None, reason: str = "") -> bytes:
    if code is None:
        return encode_frame(CLOSE, b"")
    # A control frame takes 125 bytes; no character is cut in two.
    fitting = reason.encode()[:123].decode(errors="ignore").encode()
    return encode_frame(CLOSE, code.to_bytes(2, "big") + fitting)


def decode_close(payload: bytes) -> tuple[int | None, str]:
    """Code and reason of a received close; FrameError where RFC 6455 7.4 does not allow the code."""
    if not payload:
        return None, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(PROTOCOL_ERROR, "Invalid close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_PAYLOAD, "Invalid UTF-8") from None


class FrameReader:
    """Cuts a client's bytes into messages. It keeps what is unfinished, and never more than the limit."""

    __slots__ = ("_buffer", "_decoder", "_max_bytes", "_message", "_message_opcode")

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes
        self._buffer = b""
        self._message: bytearray | None = None
        self._message_opcode = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    @property
    def is_idle(self) -> bool:
        """True between messages: nothing is kept."""
        return not self._buffer and self._message is None

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (opcode, payload) of each message and control frame that `data` completes.

        Raises FrameError at the first breach; what came before it has been yielded.
        """
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        start = 0
        while True:
            frame = self._frame_at(data, start)
            if frame is None:
                self._buffer = data[start:]
                return
            final, opcode, payload, start = frame
            if opcode in _CONTROL_OPCODES:
                yield opcode, payload
                continue
            message = self._assemble(final, opcode, payload)
            if message is not None:
                yield message

    def _frame_at(self, data: bytes, start: int) -> tuple[bool, int, bytes, int] | None:
        if len(data) - start < 2:
            return None
        first, second = data[start], data[start + 1]
        final, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        if first & 0x70:
            raise FrameError(PROTOCOL_ERROR, "Reserved bits set")
        if not second & 0x80:
            raise FrameError(PROTOCOL_ERROR, "Unmasked frame")
        if opcode in _CONTROL_OPCODES:
            if not final or length > 125:
                raise FrameError(PROTOCOL_ERROR, "Fragmented or oversized control frame")
        elif opcode not in _DATA_OPCODES:
            raise FrameError(PROTOCOL_ERROR, "Unknown opcode")
        elif (opcode == CONTINUATION) is (self._message is None):
            raise FrameError(PROTOCOL_ERROR, "Broken fragmentation")
        at = start + 2
        if length >= 126:
            size = 2 if length == 126 else 8
            if len(data) < at + size:
                return None
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if opcode in _DATA_OPCODES and length + len(self._message or b"") > self._max_bytes:
            raise FrameError(MESSAGE_TOO_BIG, f"Message over {self._max_bytes} bytes")
        end = at + 4 + length
        if len(data) < end:
            return None
        return final, opcode, _unmask(data[at : at + 4], data[at + 4 : end]), end

    def _assemble(self, final: bool, opcode: int, payload: bytes) -> tuple[int, bytes] | None:
        if opcode != CONTINUATION:
            if final:
                if opcode == TEXT:
                    self._check_utf8(payload, final=True)
                return opcode, payload
            self._message = bytearray()
            self._message_opcode = opcode
        assert self._message is not None
        self._message += payload
        if self._message_opcode == TEXT:
            self._check_utf8(payload, final)
        if not final:
            return None
        message = bytes(self._message)
        self._message = None
        return self._message_opcode, message

    def _check_utf8(self, payload: bytes, final: bool) -> None:
        # Incremental, so that a broken fragment ends the connection before the rest has come.
        decoder = self._decoder or codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(payload, final)
        except UnicodeDecodeError:
            raise FrameError(INVALID_PAYLOAD, "Invalid UTF-8") from None
        self._decoder = None if final else decoder


def _unmask(mask: bytes, data: bytes) -> bytes:
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")
