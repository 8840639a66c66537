"""MessagePack from outside, read strictly: what JSON could say as well, and nothing else.

Libraries read it faster, but msgspec does not notice a key that comes twice, and `msgpack` sets memory aside
for what lengths claim, on each level. What clients say is short.
"""

from collections.abc import Callable
from math import isfinite
from struct import Struct
from struct import error as StructError
from typing import Any, NoReturn

from lockstep.errors import MalformedJson
from lockstep.wire.strict_json import MAX_DEPTH

# What it costs to read a message goes by its values, keys among them. 16 KiB of JSON have no more.
MAX_VALUES = 8_192


def loads(raw: bytes) -> Any:
    """The one value that these bytes are, as builtins. Raises MalformedJson.

    That also for what JSON has not: binary data, extensions (timestamps are one), NaN and infinity, keys that
    are not strings or come twice; for nesting beyond that of JSON; and for more values than anybody needs.
    """
    reader = _Reader(raw)
    try:
        value = reader.read(MAX_DEPTH)
        reader.end()
    except (IndexError, StructError):
        complaint = "it ends too early"
    except UnicodeDecodeError:
        complaint = "invalid UTF-8"
    except ValueError as error:
        complaint = str(error)
    else:
        return value
    raise MalformedJson(f"Not valid MessagePack: {complaint}, at byte {reader.at}")


class _Reader:
    """Reads value after value. No memory is set aside for what a length only claims."""

    __slots__ = ("_raw", "_values_left", "at")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._values_left = MAX_VALUES
        self.at = 0

    def read(self, levels: int) -> Any:
        """The next value, which may be nested so many levels deep."""
        first = self._raw[self.at]
        self.at += 1
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first >= 0xC0:
            return _READERS[first - 0xC0](self, first, levels)
        if first >= 0xA0:
            return self._text(first - 0xA0)
        if first >= 0x90:
            return self._array(first - 0x90, levels)
        return self._object(first - 0x80, levels)

    def end(self) -> None:
        if self.at < len(self._raw):
            raise ValueError("something comes behind the value")

    def constant(self, first: int, levels: int) -> bool | None:
        return _CONSTANTS[first]

    def number(self, first: int, levels: int) -> int | float:
        number: int | float = self._fixed(first)
        if not isfinite(number):
            raise ValueError("NaN or infinity")
        return number

    def long_text(self, first: int, levels: int) -> str:
        return self._text(self._fixed(first))

    def long_array(self, first: int, levels: int) -> list[Any]:
        return self._array(self._fixed(first), levels)

    def long_object(self, first: int, levels: int) -> dict[str, Any]:
        return self._object(self._fixed(first), levels)

    def refused(self, first: int, levels: int) -> NoReturn:
        raise ValueError(_REFUSED.get(first, "an extension type"))

    def _fixed(self, first: int) -> Any:
        """The number, or the length, behind this first byte."""
        form = _FORMS[first]
        (number,) = form.unpack_from(self._raw, self.at)
        self.at += form.size
        return number

    def _text(self, length: int) -> str:
        end = self.at + length
        if end > len(self._raw):
            raise IndexError
        text = self._raw[self.at : end].decode()
        self.at = end
        return text

    def _array(self, length: int, levels: int) -> list[Any]:
        self._enter(length, levels)
        value = []
        for _ in range(length):
            value.append(self.read(levels - 1))
        return value

    def _object(self, length: int, levels: int) -> dict[str, Any]:
        self._enter(2 * length, levels)
        value: dict[str, Any] = {}
        for _ in range(length):
            name = self.read(levels - 1)
            if not isinstance(name, str):
                raise ValueError("a key that is not a string")
            if name in value:
                raise ValueError("duplicate key")
            value[name] = self.read(levels - 1)
        return value

    def _enter(self, values: int, levels: int) -> None:
        if levels == 0:
            raise ValueError("nested too deeply")
        if values > len(self._raw) - self.at:
            raise IndexError
        self._values_left -= values
        if self._values_left < 0:
            raise ValueError("too many values")


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
_LENGTHS = dict(zip(range(0xD9, 0xE0), "BHIHIHI", strict=True))
_FORMS = {first: Struct(f">{form}") for first, form in (_NUMBERS | _LENGTHS).items()}
_REFUSED = {0xC1: "a byte that means nothing"} | dict.fromkeys(range(0xC4, 0xC7), "binary data")
# By the first byte, from 0xC0 to 0xDF.
_READERS: list[Callable[[_Reader, int, int], Any]] = [_Reader.refused] * 32
for _firsts, _read in (
    (_CONSTANTS, _Reader.constant),
    (_NUMBERS, _Reader.number),
    (range(0xD9, 0xDC), _Reader.long_text),
    (range(0xDC, 0xDE), _Reader.long_array),
    (range(0xDE, 0xE0), _Reader.long_object),
):
    for _first in _firsts:
        _READERS[_first - 0xC0] = _read
