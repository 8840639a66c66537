"""How a setting is declared: its default, its help, and what its value has to be."""

import os
from collections.abc import Callable
from dataclasses import Field, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class SettingsError(Exception):
    """One line that names the setting and says what is wrong with it."""


class Check(NamedTuple):
    """What a value has to be; `wanted` follows the words "is not" in a complaint."""

    wanted: str
    holds: Callable[[Any], bool]


def setting(default: T, help: str, check: Check | None = None) -> T:
    """A field of Settings."""
    return field(default=default, metadata={"help": help, "check": check})


def help_of(declared: Field[Any]) -> str:
    text: str = declared.metadata["help"]
    return text


def check_of(declared: Field[Any]) -> Check | None:
    check: Check | None = declared.metadata["check"]
    return check


def from_to(minimum: float, maximum: float, wanted: str | None = None) -> Check:
    return Check(wanted or f"from {minimum} to {maximum}", lambda value: minimum <= value <= maximum)


def above_0_to(maximum: float, example: str = "") -> Check:
    return Check(f"more than 0 and at most {maximum}{example}", lambda value: 0 < value <= maximum)


def one_of(*choices: str) -> Check:
    *others, last = choices
    return Check(f"{', '.join(others)} or {last}", lambda value: value in choices)


def path_within(max_bytes: int) -> Check:
    return Check(
        f"a path of at most {max_bytes} bytes",
        lambda value: len(os.fsencode(value)) <= max_bytes and "\0" not in value,
    )


def read_by(read: Callable[[str], object], wanted: str) -> Check:
    """What `read` takes without a ValueError."""

    def holds(value: str) -> bool:
        try:
            read(value)
        except ValueError:
            return False
        return True

    return Check(wanted, holds)


def listed(text: str) -> list[str]:
    """The items of a comma-separated list."""
    return [stripped for part in text.split(",") if (stripped := part.strip())]
