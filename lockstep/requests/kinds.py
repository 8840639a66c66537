"""Kinds of values that a request may have. Every violation is found at once, each with its path."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lockstep.errors import MAX_VIOLATIONS, ValidationError, Violation
from lockstep.rules.state import Mode, OnTimeout, Status
from lockstep.rules.state_json import dumps
from lockstep.wire import heads

MAX_INT = 2**53 - 1
# The name of an unknown field is anybody's text: it is cut off here.
MAX_FIELD_LENGTH = 200


class Violations:
    """Collects what is wrong with a request, up to MAX_VIOLATIONS."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, message: str, code: str) -> None:
        if len(self.found) < MAX_VIOLATIONS:
            self.found.append(Violation(field[:MAX_FIELD_LENGTH], message, code))

    def raise_if_any(self) -> None:
        if self.found:
            raise ValidationError(self.found)


class Kind(Protocol):
    """Turns a JSON value into what the rules work with; or adds a violation and returns None."""

    def read(self, value: Any, path: str, violations: Violations) -> Any: ...


@dataclass(frozen=True)
class Integer:
    minimum: int
    maximum: int
    allows_zero: bool = True

    def read(self, value: Any, path: str, violations: Violations) -> int | None:
        if type(value) is not int:
            violations.add(path, "must be an integer", "type")
        elif not self.minimum <= value <= self.maximum:
            violations.add(path, f"must be from {self.minimum} to {self.maximum}", "range")
        elif value == 0 and not self.allows_zero:
            violations.add(path, "must not be 0", "range")
        else:
            return value
        return None


@dataclass(frozen=True)
class Boolean:
    def read(self, value: Any, path: str, violations: Violations) -> bool | None:
        if isinstance(value, bool):
            return value
        violations.add(path, "must be true or false", "type")
        return None


@dataclass(frozen=True)
class Uuid:
    def read(self, value: Any, path: str, violations: Violations) -> str | None:
        if isinstance(value, str) and heads.UUID.fullmatch(value.lower()):
            return value.lower()
        violations.add(path, "must be a UUID", "uuid")
        return None


@dataclass(frozen=True)
class Text:
    max_length: int

    def read(self, value: Any, path: str, violations: Violations) -> str | None:
        if not isinstance(value, str):
            violations.add(path, "must be a string", "type")
        elif not 1 <= len(value) <= self.max_length:
            violations.add(path, f"must have 1 to {self.max_length} characters", "length")
        else:
            return value
        return None


@dataclass(frozen=True)
class Choice:
    of: type[Mode] | type[OnTimeout] | type[Status]

    def read(self, value: Any, path: str, violations: Violations) -> Any:
        if isinstance(value, str) and value in self.of.__members__.values():
            return self.of(value)
        violations.add(path, f"must be one of {', '.join(self.of)}", "choice")
        return None


@dataclass(frozen=True)
class Object:
    """An object of any fields."""

    max_bytes: int | None = None
    """As JSON."""

    def read(self, value: Any, path: str, violations: Violations) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            violations.add(path, "must be an object", "type")
        elif self.max_bytes is not None and len(dumps(value)) > self.max_bytes:
            violations.add(path, f"must not exceed {self.max_bytes} bytes as JSON", "length")
        else:
            return value
        return None


@dataclass(frozen=True)
class List:
    of: "Record"
    max_length: int
    min_length: int = 0
    distinct: str | None = None
    """The field that no two items may have alike."""

    def read(self, value: Any, path: str, violations: Violations) -> list[dict[str, Any]] | None:
        if not isinstance(value, list):
            violations.add(path, "must be an array", "type")
            return None
        if len(value) > self.max_length:
            violations.add(path, f"must have at most {self.max_length} items", "length")
            return None
        if len(value) < self.min_length:
            violations.add(path, f"must have {self.min_length} to {self.max_length} items", "length")
            return None
        read = [self.of.read(item, f"{path}.{index}", violations) for index, item in enumerate(value)]
        if self.distinct is not None:
            seen = set()
            for index, item in enumerate(read):
                field = item[self.distinct]
                if field is not None and field in seen:
                    violations.add(f"{path}.{index}.{self.distinct}", "is given twice", "duplicate")
                seen.add(field)
        return read


@dataclass(frozen=True)
class Record:
    """An object with these fields and no others. null is the same as absent; absent is None."""

    fields: Mapping[str, Kind]
    required: Collection[str] = ()

    def read(self, value: Any, path: str, violations: Violations) -> dict[str, Any]:
        prefix = path and path + "."
        if not isinstance(value, dict):
            violations.add(path or "body", "must be an object", "type")
            return dict.fromkeys(self.fields)
        for name in value:
            if name not in self.fields:
                violations.add(prefix + name, "is not a known field", "unknown_field")
        read: dict[str, Any] = {}
        for name, kind in self.fields.items():
            given = value.get(name)
            if given is not None:
                read[name] = kind.read(given, prefix + name, violations)
            else:
                read[name] = None
                if name in self.required:
                    violations.add(prefix + name, "is required", "required")
        return read


def session_id_in_path(text: str, violations: Violations) -> str:
    return Uuid().read(text, "id", violations) or ""


def valid_session_id(text: str) -> str:
    """The same where the path says all there is. Raises ValidationError."""
    violations = Violations()
    session_id = session_id_in_path(text, violations)
    violations.raise_if_any()
    return session_id
