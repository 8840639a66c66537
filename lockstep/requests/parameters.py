"""What the query and the headers of a request may say."""

import re
from collections.abc import Callable
from typing import Any

from lockstep.requests.kinds import Violations
from lockstep.rules.state import Status
from lockstep.rules.state_json import EPOCH_PATTERN

# Of an Idempotency-Key.
MAX_KEY_LENGTH = 255
# A proxy may send a request to other processes for a while: its key is kept longer, whatever the caller asks.
MIN_KEPT_S = 60
MAX_KEPT_S = 86_400
MAX_PAGE = 100
DEFAULT_PAGE = 50
EPOCH = re.compile(EPOCH_PATTERN)
CURSOR = re.compile(r"([0-9]{1,16})-([0-9a-f-]{36})")


def query(
    given: dict[str, list[str]], fields: dict[str, Callable[[str], Any]], violations: Violations
) -> dict[str, Any]:
    """Query arguments by name; the function that reads one raises ValueError with what it has to be."""
    read: dict[str, Any] = dict.fromkeys(fields)
    for name, values in given.items():
        if name not in fields:
            violations.add(name, "is not a known argument", "unknown_field")
        elif len(values) > 1:
            violations.add(name, "is given twice", "duplicate")
        elif values[0]:
            try:
                read[name] = fields[name](values[0])
            except ValueError as error:
                violations.add(name, str(error), "format")
    return read


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,16}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"must be an integer from {minimum} to {maximum}")
        return int(text)

    return read


def status(text: str) -> Status:
    if text not in Status.__members__.values():
        raise ValueError(f"must be one of {', '.join(Status)}")
    return Status(text)


def epoch(text: str) -> str:
    if not EPOCH.fullmatch(text):
        raise ValueError("must be the 13 characters of an epoch")
    return text


def cursor(text: str) -> tuple[int, str]:
    """Where the next page of a list begins: after this instant of lapse and this id."""
    found = CURSOR.fullmatch(text)
    if found is None:
        raise ValueError("must be the next_cursor of another page")
    return int(found[1]), found[2]


def kept_s_of(key: str, ttl: str | None) -> int:
    """For how many seconds the outcome of a request with this Idempotency-Key is kept."""
    violations = Violations()
    # No header can say one that begins or ends with a space.
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not (
        key.isascii() and key.isprintable() and key == key.strip()
    ):
        violations.add(
            "Idempotency-Key", f"must be 1 to {MAX_KEY_LENGTH} printable ASCII characters", "format"
        )
    kept_s = MAX_KEPT_S
    if ttl is not None:
        digits = ttl.lstrip("0")
        if re.fullmatch("[0-9]{1,5}", digits) and int(digits) <= MAX_KEPT_S:
            kept_s = int(digits)
        else:
            violations.add("Idempotency-TTL", f"must be 1 to {MAX_KEPT_S} seconds", "range")
    violations.raise_if_any()
    return kept_s


def tags(header: str | None) -> frozenset[str] | None:
    """The tags of an If-Match or If-None-Match header (RFC 9110 13.1); None if there is no header."""
    if header is None:
        return None
    return frozenset(tag.strip() for tag in header.split(","))
