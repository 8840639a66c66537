"""Kinds of values that a request may have. Every violation is found at once, each with its path."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lockstep.errors import ValidationError, Violation
from lockstep.rules.state import Mode, OnTimeout, Status
from lockstep.rules.state_json import dumps
from lockstep.wire import heads

MAX_METADATA_BYTES = 4096
MAX_INT = 2**53 - 1
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
        if isinstance(value, str) and heads.UUID.fullmatch(value.lower()):
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


def session_id_in_path(text: str, complaints: Complaints) -> str:
    return Uuid().read(text, "id", complaints) or ""
