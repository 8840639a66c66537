"""RFC 6455 framing, server side: bytes in, messages out; no socket."""

import codecs
from collections.abc import Iterator
from struct import Struct

from lockstep.errors import INVALID_PAYLOAD, MESSAGE_TOO_BIG, PROTOCOL_ERROR, Close
from lockstep.wire.deflate import BrokenData, deflate, inflate

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_DATA_OPCODES = (CONTINUATION, TEXT, BINARY)
_CONTROL_OPCODES = (CLOSE, PING, PONG)
_RESERVED, _DEFLATED = 0x70, 0x40
# A shorter one fits into a packet as it is.
MIN_DEFLATED_BYTES = 1024
_HEAD_16, _HEAD_64 = Struct(">BBH").pack, Struct(">BBQ").pack


class FrameError(Exception):
    """The client broke the protocol; `close` says how the connection ends."""

    def __init__(self, close: Close) -> None:
        super().__init__(close.reason)
        self.close = close


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame (RFC 6455 5.2)."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, length))
    elif length < 65_536:
        head = _HEAD_16(0x80 | opcode, 126, length)
    else:
        head = _HEAD_64(0x80 | opcode, 127, length)
    return head + payload


def deflate_frame(frame: bytes) -> bytes:
    """The same message in a compressed frame (RFC 7692), or the frame itself if that would be no smaller."""
    start = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
    if len(frame) - start < MIN_DEFLATED_BYTES:
        return frame
    deflated = encode_frame(_DEFLATED | frame[0], deflate(memoryview(frame)[start:]))
    return deflated if len(deflated) < len(frame) else frame


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
        raise FrameError(PROTOCOL_ERROR.because("Invalid close code"))
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_PAYLOAD) from None


class FrameReader:
    """Cuts a client's bytes into messages. It keeps what is unfinished, and never more than the limit.

    A message takes memory as it arrives: one that is announced to be huge, or that arrives byte by byte,
    costs no more than its bytes. Text that cannot become UTF-8 is refused in the middle of a frame. A
    compressed message is inflated when it is complete; the limit holds before and after.
    """

    __slots__ = (
        "_buffer",
        "_decoder",
        "_inflates",
        "_is_deflated",
        "_is_last",
        "_mask",
        "_max_bytes",
        "_message",
        "_missing",
        "_opcode",
        "unread",
    )

    def __init__(self, max_message_bytes: int, *, inflates: bool = False) -> None:
        """`inflates`: the client may send compressed messages."""
        self._max_bytes = max_message_bytes
        self._inflates = inflates
        self.unread: Iterator[tuple[int, bytes]] | None = None
        """Messages of what was fed that nobody has asked for yet; kept by the owner."""
        self._buffer = b""  # the beginning of a header or of a control frame
        # The message that has begun; of its current frame whether it is the last, and how much is missing.
        self._message: bytearray | None = None
        self._opcode = 0
        self._is_deflated = self._is_last = False
        self._mask = b""
        self._missing = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    @property
    def is_idle(self) -> bool:
        """True between messages: nothing is kept."""
        return not self._buffer and self._message is None

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (opcode, payload) of each message and control frame that `data` completes.

        Raises FrameError when the client breaks the protocol; what came before that has been yielded.
        """
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        start = 0
        while True:
            if not self._missing:
                header = self._header_at(data, start)
                if header is None:
                    self._buffer = data[start:]
                    return
                is_last, opcode, at, length = header
                end = at + length
                if opcode in _CONTROL_OPCODES or (is_last and opcode != CONTINUATION and end <= len(data)):
                    # The whole frame at once, as most arrive.
                    if end > len(data):
                        self._buffer = data[start:]
                        return
                    payload = _unmask(data[at - 4 : at], data[at:end])
                    if data[start] & _DEFLATED:
                        payload = self._inflated(payload)
                    if opcode == TEXT:
                        _check_whole_utf8(payload)
                    start = end
                    yield opcode, payload
                    continue
                if opcode != CONTINUATION:
                    self._begin(opcode, is_deflated=bool(data[start] & _DEFLATED))
                self._is_last, self._mask, self._missing = is_last, data[at - 4 : at], length
                start = at
            piece = data[start : start + self._missing]
            start += len(piece)
            self._add(piece)
            if self._missing:
                return
            if self._is_last:
                yield self._finish()

    def _header_at(self, data: bytes, start: int) -> tuple[bool, int, int, int] | None:
        """(Is it the last of its message, opcode, index of its payload, length of that); None: incomplete."""
        if len(data) - start < 2:
            return None
        first, second = data[start], data[start + 1]
        final, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        if first & _RESERVED and not (
            self._inflates and opcode in (TEXT, BINARY) and first & _RESERVED == _DEFLATED
        ):
            raise FrameError(PROTOCOL_ERROR.because("Reserved bits set"))
        if not second & 0x80:
            raise FrameError(PROTOCOL_ERROR.because("Unmasked frame"))
        if opcode in _CONTROL_OPCODES:
            if not final or length > 125:
                raise FrameError(PROTOCOL_ERROR.because("Fragmented or oversized control frame"))
        elif opcode not in _DATA_OPCODES:
            raise FrameError(PROTOCOL_ERROR.because("Unknown opcode"))
        elif (opcode == CONTINUATION) is (self._message is None):
            raise FrameError(PROTOCOL_ERROR.because("Broken fragmentation"))
        at = start + 2
        if length >= 126:
            size, shortest = (2, 126) if length == 126 else (8, 65_536)
            if len(data) < at + size:
                return None
            length = int.from_bytes(data[at : at + size], "big")
            if not shortest <= length < 2**63:
                raise FrameError(PROTOCOL_ERROR.because("Invalid payload length"))
            at += size
        if opcode in _DATA_OPCODES and length + len(self._message or b"") > self._max_bytes:
            raise self._too_big()
        at += 4
        return (final, opcode, at, length) if at <= len(data) else None

    def _begin(self, opcode: int, *, is_deflated: bool) -> None:
        """Begin a message that comes in several frames, or whose frame comes in pieces."""
        self._message = bytearray()
        self._opcode, self._is_deflated = opcode, is_deflated
        if opcode == TEXT and not is_deflated:
            self._decoder = codecs.getincrementaldecoder("utf-8")()

    def _add(self, piece: bytes) -> None:
        assert self._message is not None
        piece = _unmask(self._mask, piece)
        turned = len(piece) % 4
        self._mask = self._mask[turned:] + self._mask[:turned]
        self._missing -= len(piece)
        self._message += piece
        if self._decoder is not None:
            _check_utf8(self._decoder, piece, final=self._is_last and not self._missing)

    def _finish(self) -> tuple[int, bytes]:
        assert self._message is not None
        message = bytes(self._message)
        self._message = self._decoder = None
        self._mask = b""
        if self._is_deflated:
            message = self._inflated(message)
            if self._opcode == TEXT:
                _check_whole_utf8(message)
        return self._opcode, message

    def _inflated(self, payload: bytes) -> bytes:
        try:
            message = inflate(payload, self._max_bytes)
        except BrokenData:
            raise FrameError(INVALID_PAYLOAD.because("Invalid compressed data")) from None
        if len(message) > self._max_bytes:
            raise self._too_big()
        return message

    def _too_big(self) -> FrameError:
        return FrameError(MESSAGE_TOO_BIG.because(f"Message over {self._max_bytes} bytes"))


def _check_whole_utf8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_PAYLOAD) from None


def _check_utf8(decoder: codecs.IncrementalDecoder, piece: bytes, final: bool) -> None:
    try:
        decoder.decode(piece, final)
    except UnicodeDecodeError:
        raise FrameError(INVALID_PAYLOAD) from None
    # Python's decoder waits for the third byte of a surrogate, which no byte can make valid.
    pending, _ = decoder.getstate()
    if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
        raise FrameError(INVALID_PAYLOAD)


def _unmask(mask: bytes, data: bytes) -> bytes:
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")
