"""JSON from outside, read strictly."""

import json
from typing import Any, NoReturn

from lockstep.errors import MalformedJson

MAX_DEPTH = 100
# What it costs to read JSON goes by the number of its values, and nobody else is served meanwhile. No request
# has so many: 1,000 participants are 1,000 objects, and 64 KiB have no more than 32,768 values.
MAX_CONTAINERS = 12_000
MAX_COMMAS = 40_000


def loads(raw: bytes) -> Any:
    """Strict JSON (RFC 8259): raises MalformedJson also for what JSON libraries let pass.

    That is NaN and Infinity, numbers beyond a double, lone surrogates, duplicate keys and nesting
    beyond what every JSON library reads back; and more values than anybody needs.
    """
    try:
        if len(raw) > MAX_CONTAINERS and (
            raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS or raw.count(b",") > MAX_COMMAS
        ):
            raise ValueError("too many values")
        text = raw.decode()
        value = _DECODER.decode(text)
        if "\\u" in text:
            # Only an escape can bring a lone surrogate; encoding finds it wherever it stands.
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
            raise RecursionError
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"Not valid JSON: {_complaint(error)}") from None
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    within = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in within)


def _complaint(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "lone surrogate"
    if isinstance(error, UnicodeDecodeError):
        return "invalid UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at position {error.pos}"
    return str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return number


def _whole(text: str) -> int:
    if len(text) > 300:
        raise ValueError("number out of range")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("duplicate key")
    return data


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
)
