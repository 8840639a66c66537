"""How messages travel in WebSocket frames. What they say is another's business: it is JSON here."""

import abc
import json
import sys
from functools import cached_property
from typing import Any

import msgspec

from lockstep.errors import MalformedJson
from lockstep.wire import strict_json, strict_msgpack
from lockstep.wire.frames import BINARY, TEXT, deflate_frame, encode_frame


class Encoding(abc.ABC):
    """One for each way to write a message. A frame for a room is made once for all."""

    is_deflated = False
    """Frames may be compressed, in both directions."""

    @abc.abstractmethod
    def encode(self, message: bytes) -> bytes:
        """The whole frame of a message, which is JSON."""

    @abc.abstractmethod
    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        """What a client's message says, as builtins. Raises MalformedJson."""

    @cached_property
    def deflated(self) -> "Encoding":
        """The same in compressed frames: one object, for all whose extension is permessage-deflate."""
        return _Deflated(self)


class JsonText(Encoding):
    """The JSON itself, in text frames."""

    def encode(self, message: bytes) -> bytes:
        return encode_frame(TEXT, message)

    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        if is_binary:
            raise MalformedJson("Binary messages are not understood")
        return strict_json.loads(payload)


class MessagePack(Encoding):
    """The same values as MessagePack, in binary frames. Keys keep their order.

    Integers beyond 64 bits become doubles.
    """

    def encode(self, message: bytes) -> bytes:
        try:
            packed = _pack(_parse(message))
        except (OverflowError, msgspec.MsgspecError, RecursionError):
            packed = _pack_any(message)
        return encode_frame(BINARY, packed)

    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        if not is_binary:
            raise MalformedJson("Text messages are not understood")
        return strict_msgpack.loads(payload)


_parse = msgspec.json.Decoder().decode
_pack = msgspec.msgpack.Encoder().encode
# How much deeper in the stack a message may be encoded than it was checked when it came.
_DEEPER = 1000


def _pack_any(message: bytes) -> bytes:
    """The same of what msgspec would not read or write: numbers of any size, and whatever depth has come in.

    A number beyond a double is infinite, as it is to JavaScript. What is no JSON, since a state was damaged
    in the store, is a string: to clients of JSON it is no message either.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + _DEEPER)
    try:
        return _pack(json.loads(message, parse_int=_whole))
    except (ValueError, RecursionError):
        return _pack(message.decode(errors="replace"))
    finally:
        sys.setrecursionlimit(limit)


def _whole(digits: str) -> int | float:
    number = int(digits) if len(digits) <= 20 else float(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


class _Deflated(Encoding):
    """Another encoding whose frames are compressed where that makes them smaller."""

    is_deflated = True

    def __init__(self, plain: Encoding) -> None:
        self._plain = plain

    def encode(self, message: bytes) -> bytes:
        return deflate_frame(self._plain.encode(message))

    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        return self._plain.decode(payload, is_binary=is_binary)


JSON = JsonText()
MSGPACK = MessagePack()
