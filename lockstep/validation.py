"""What a request may say. Every violation is found at once, each with the path of its field."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lockstep import messages
from lockstep.engine import Spec
from lockstep.errors import ValidationError, Violation
from lockstep.modes import MAX_TIME_MS
from lockstep.state import Mode, OnTimeout, Participant, Status, dumps

MIN_TIME_MS = 1000
MAX_INCREMENT_MS = 60_000
MAX_PARTICIPANTS = 1000
MAX_METADATA_BYTES = 4096
# For Idempotency-Key.
MAX_KEY_LENGTH = 255
MAX_KEPT_S = 86_400
MAX_PAGE = 100
DEFAULT_PAGE = 50
MAX_INT = 2**53 - 1

ALLOWED_ON_TIMEOUT = {
    # The first is the default.
    Mode.PER_PARTICIPANT: (OnTimeout.FLAG, OnTimeout.ADVANCE, OnTimeout.EXPIRE),
    Mode.PER_GROUP: (OnTimeout.FLAG, OnTimeout.ADVANCE, OnTimeout.EXPIRE),
    Mode.PER_CYCLE: (OnTimeout.ADVANCE, OnTimeout.FLAG, OnTimeout.EXPIRE),
    Mode.GLOBAL: (OnTimeout.EXPIRE, OnTimeout.FLAG),
    Mode.COUNT_UP: (OnTimeout.EXPIRE,),
}
# What a mode needs of the session, of each participant, and how many of those.
NEEDED = {Mode.PER_CYCLE: ("time_per_cycle_ms",), Mode.GLOBAL: ("total_time_ms",)}
NEEDED_OF_EACH = {Mode.PER_PARTICIPANT: ("total_time_ms",), Mode.PER_GROUP: ("total_time_ms", "group_id")}
MIN_PARTICIPANTS = {mode: 0 if mode in (Mode.GLOBAL, Mode.COUNT_UP) else 1 for mode in Mode}

EPOCH = re.compile("[0-9a-z]{13}")
CURSOR = re.compile(r"([0-9]{1,16})-([0-9a-f-]{36})")


MAX_COMPLAINTS = 100
# Of the name of an unknown field so much is told.
MAX_NAMED_LENGTH = 200


class Complaints:
    """The violations found so far, the first MAX_COMPLAINTS."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, message: str, code: str) -> None:
        if len(self.found) < MAX_COMPLAINTS:
            self.found.append(Violation(field[:MAX_NAMED_LENGTH], message, code))

    def raise_if_any(self) -> None:
        if self.found:
            raise ValidationError(self.found)


# --- kinds of values -----------------------------------------------------------------------------


class Kind(Protocol):
    """Turns a JSON value into what the rules work with, or complains and returns None."""

    def read(self, value: Any, path: str, complaints: Complaints) -> Any: ...


@dataclass(frozen=True)
class Integer:
    minimum: int
    maximum: int
    zero: bool = True

    def read(self, value: Any, path: str, complaints: Complaints) -> int | None:
        if type(value) is not int:
            complaints.add(path, "must be an integer", "type")
        elif not self.minimum <= value <= self.maximum:
            complaints.add(path, f"must be from {self.minimum} to {self.maximum}", "range")
        elif value == 0 and not self.zero:
            complaints.add(path, "must not be 0", "range")
        else:
            return value
        return None


@dataclass(frozen=True)
class Uuid:
    def read(self, value: Any, path: str, complaints: Complaints) -> str | None:
        if isinstance(value, str) and messages.UUID.fullmatch(value.lower()):
            return value.lower()
        complaints.add(path, "must be a UUID", "uuid")
        return None


@dataclass(frozen=True)
class Text:
    max_length: int

    def read(self, value: Any, path: str, complaints: Complaints) -> str | None:
        if not isinstance(value, str):
            complaints.add(path, "must be a string", "type")
        elif not 1 <= len(value) <= self.max_length:
            complaints.add(path, f"must have 1 to {self.max_length} characters", "length")
        else:
            return value
        return None


@dataclass(frozen=True)
class Choice:
    of: type[Mode] | type[OnTimeout] | type[Status]

    def read(self, value: Any, path: str, complaints: Complaints) -> Any:
        if isinstance(value, str) and value in self.of.__members__.values():
            return self.of(value)
        complaints.add(path, f"must be one of {', '.join(self.of)}", "choice")
        return None


@dataclass(frozen=True)
class Metadata:
    def read(self, value: Any, path: str, complaints: Complaints) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            complaints.add(path, "must be an object", "type")
        elif len(dumps(value)) > MAX_METADATA_BYTES:
            complaints.add(path, f"must not exceed {MAX_METADATA_BYTES} bytes as JSON", "length")
        else:
            return value
        return None


@dataclass(frozen=True)
class List:
    of: Kind
    max_length: int

    def read(self, value: Any, path: str, complaints: Complaints) -> list[Any] | None:
        if not isinstance(value, list):
            complaints.add(path, "must be an array", "type")
            return None
        if len(value) > self.max_length:
            complaints.add(path, f"must have at most {self.max_length} items", "length")
            return None
        return [self.of.read(item, f"{path}.{place}", complaints) for place, item in enumerate(value)]


@dataclass(frozen=True)
class Record:
    """An object with these fields and no others. null is the same as absent; absent is None."""

    fields: Mapping[str, Kind]
    required: Collection[str] = ()

    def read(self, value: Any, path: str, complaints: Complaints) -> dict[str, Any]:
        prefix = path and path + "."
        if not isinstance(value, dict):
            complaints.add(path or "body", "must be an object", "type")
            return dict.fromkeys(self.fields)
        for name in value:
            if name not in self.fields:
                complaints.add(prefix + name, "is not a known field", "unknown_field")
        read: dict[str, Any] = {}
        for name, kind in self.fields.items():
            given = value.get(name)
            if given is not None:
                read[name] = kind.read(given, prefix + name, complaints)
            else:
                read[name] = None
                if name in self.required:
                    complaints.add(prefix + name, "is required", "required")
        return read


TIME = Integer(MIN_TIME_MS, MAX_TIME_MS)

PARTICIPANT = Record(
    {
        "participant_id": Uuid(),
        "participant_index": Integer(0, MAX_INT),
        "total_time_ms": TIME,
        "group_id": Text(128),
    }
)

CREATE = Record(
    {
        "session_id": Uuid(),
        "sync_mode": Choice(Mode),
        "participants": List(PARTICIPANT, MAX_PARTICIPANTS),
        "total_time_ms": TIME,
        "time_per_cycle_ms": TIME,
        "increment_ms": Integer(0, MAX_INCREMENT_MS),
        "max_time_ms": TIME,
        "on_timeout": Choice(OnTimeout),
        "metadata": Metadata(),
    },
    required=["sync_mode"],
)

_VERSION: dict[str, Kind] = {"expected_version": Integer(1, MAX_INT)}

COMMANDS = {
    "start": Record({"participant_id": Uuid(), **_VERSION}),
    "switch": Record({"next_participant_id": Uuid(), "expected_participant_id": Uuid(), **_VERSION}),
    "pause": Record(_VERSION),
    "resume": Record(_VERSION),
    "adjust": Record(
        {"delta_ms": Integer(-MAX_TIME_MS, MAX_TIME_MS, zero=False), "target": Text(128), **_VERSION},
        required=["delta_ms"],
    ),
    "complete": Record(_VERSION),
    "cancel": Record(_VERSION),
}


# --- requests ------------------------------------------------------------------------------------


def session_id_in_path(text: str, complaints: Complaints) -> str:
    return Uuid().read(text, "id", complaints) or ""


def command(name: str, body: Any, complaints: Complaints) -> dict[str, Any]:
    """The fields of a command's body; a missing body says nothing."""
    return COMMANDS[name].read({} if body is None else body, "", complaints)


def meaning(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a command's fields say, however they were spelled: null is absent, and an id has no case."""
    said = {name: value for name, value in arguments.items() if value is not None}
    if "target" in said and messages.UUID.fullmatch(said["target"].lower()):
        said["target"] = said["target"].lower()
    return said


def spec(body: Any) -> Spec:
    """A request to create a session. Raises ValidationError with all that is wrong."""
    complaints = Complaints()
    read = CREATE.read(body, "", complaints)
    mode: Mode | None = read["sync_mode"]
    given = read["participants"] or []
    _check_distinct(given, complaints)
    if mode is not None:
        _check_mode(mode, read, given, complaints)
    complaints.raise_if_any()
    assert mode is not None
    return Spec(
        session_id=read["session_id"] or "",
        mode=mode,
        on_timeout=read["on_timeout"] or ALLOWED_ON_TIMEOUT[mode][0],
        participants=tuple(
            Participant(
                participant_id=each["participant_id"] or "",
                participant_index=place if each["participant_index"] is None else each["participant_index"],
                budget_ms=each["total_time_ms"],
                remaining_ms=each["total_time_ms"],
                group_id=each["group_id"],
            )
            for place, each in enumerate(given)
        ),
        total_time_ms=read["total_time_ms"],
        time_per_cycle_ms=read["time_per_cycle_ms"],
        increment_ms=read["increment_ms"] or 0,
        max_time_ms=read["max_time_ms"],
        metadata=read["metadata"] or None,
    )


def _check_distinct(given: list[dict[str, Any]], complaints: Complaints) -> None:
    seen = set()
    for place, each in enumerate(given):
        participant_id = each["participant_id"]
        if participant_id is not None and participant_id in seen:
            complaints.add(f"participants.{place}.participant_id", "is given twice", "duplicate")
        seen.add(participant_id)


def _check_mode(
    mode: Mode, read: dict[str, Any], given: list[dict[str, Any]], complaints: Complaints
) -> None:
    """What this mode needs beyond the shape of the request."""
    complained = {violation.field for violation in complaints.found}

    def need(path: str, value: Any) -> None:
        if value is None and path not in complained:
            complaints.add(path, f"is required in {mode.value}", "required")

    for name in NEEDED.get(mode, ()):
        need(name, read[name])
    if len(given) < MIN_PARTICIPANTS[mode] and "participants" not in complained:
        complaints.add("participants", f"must have 1 to {MAX_PARTICIPANTS} items in {mode.value}", "length")
    banks: dict[str, int] = {}
    for place, each in enumerate(given):
        path = f"participants.{place}"
        for name in NEEDED_OF_EACH.get(mode, ()):
            need(f"{path}.{name}", each[name])
        group, bank = each["group_id"], each["total_time_ms"]
        if mode is Mode.PER_GROUP and None not in (group, bank) and banks.setdefault(group, bank) != bank:
            complaints.add(f"{path}.total_time_ms", "must be the same in the whole group", "group")
    on_timeout = read["on_timeout"]
    if on_timeout is not None and on_timeout not in ALLOWED_ON_TIMEOUT[mode]:
        allowed = ", ".join(ALLOWED_ON_TIMEOUT[mode])
        complaints.add("on_timeout", f"must be one of {allowed} in {mode.value}", "choice")


def message(body: Any, complaints: Complaints) -> None:
    """A message for a session's clients: an object with a type that is not the server's own."""
    if not isinstance(body, dict):
        complaints.add("body", "must be an object", "type")
    elif not isinstance(body.get("type"), str) or not body["type"]:
        complaints.add("type", "must be a string that is not empty", "required")
    elif body["type"] in messages.SERVER_TYPES:
        complaints.add("type", f"{body['type']} is the server's own", "reserved")


def query(
    given: dict[str, list[str]], fields: dict[str, Callable[[str], Any]], complaints: Complaints
) -> dict[str, Any]:
    """Query arguments by name, each read by its function, which raises ValueError with what it wants."""
    read: dict[str, Any] = dict.fromkeys(fields)
    for name, values in given.items():
        if name not in fields:
            complaints.add(name, "is not a known argument", "unknown_field")
        elif len(values) > 1:
            complaints.add(name, "is given twice", "duplicate")
        elif values[0]:
            try:
                read[name] = fields[name](values[0])
            except ValueError as error:
                complaints.add(name, str(error), "format")
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
    """Where a list goes on: the instant of lapse and the id that it ended at."""
    found = CURSOR.fullmatch(text)
    if found is None:
        raise ValueError("must be the next_cursor of another page")
    return int(found[1]), found[2]


def idempotency(key: str, ttl: str | None) -> int:
    """How long, in s, the outcome of a request with this Idempotency-Key is kept."""
    complaints = Complaints()
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        complaints.add(
            "Idempotency-Key", f"must be 1 to {MAX_KEY_LENGTH} printable ASCII characters", "format"
        )
    kept_s = MAX_KEPT_S
    if ttl is not None:
        digits = ttl.lstrip("0")
        if re.fullmatch("[0-9]{1,5}", digits) and int(digits) <= MAX_KEPT_S:
            kept_s = int(digits)
        else:
            complaints.add("Idempotency-TTL", f"must be 1 to {MAX_KEPT_S} seconds", "range")
    complaints.raise_if_any()
    return kept_s


def tags(header: str | None) -> frozenset[str] | None:
    """The tags of an If-Match or If-None-Match header (RFC 9110 13.1); None if there is no header."""
    if header is None:
        return None
    return frozenset(tag.strip() for tag in header.split(","))
