"""Examples and tables of a document, held against what really happens."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

FENCE = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "…"

POSITION = re.compile(r"[0-9a-z]{13}-(\d+)-[\w-]{8}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def _is_epoch_ms(value: Any) -> bool:
    return type(value) in (int, float) and 10**12 < value < 10**13


# What differs each time is compared by its shape alone.
SHAPES: dict[str, Callable[[Any], object]] = {
    "epoch": lambda value: re.fullmatch("[0-9a-z]{13}", value),
    "commit": lambda value: re.fullmatch(r"[\w-]{8}", value),
    "connectionId": lambda value: re.fullmatch(r"[0-9a-f]{8}-\d+", value),
    "errorMs": lambda value: type(value) is float and 0 <= value < 1000,
    "reconnectAfterMs": lambda value: type(value) is int and 1 <= value <= 9999,
    **dict.fromkeys(["timestamp", "timestamp_ms", "receivedAt", "deadline_ms"], _is_epoch_ms),
    **dict.fromkeys(
        [
            "at",
            "since",
            "created_at",
            "updated_at",
            "cycle_started_at",
            "session_started_at",
            "session_completed_at",
        ],
        lambda value: INSTANT.fullmatch(value),
    ),
}
# What depends on how fast the story is told may differ by this much.
ELAPSED = {"total_time_ms", "time_remaining_ms", "time_used_ms", "remaining_ms", "elapsed_ms"}
TOLD_WITHIN_MS = 30_000


@dataclass(frozen=True)
class Block:
    """One fenced example: `json server`, `json client`, `json 201` or `http`."""

    language: str
    role: str
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def blocks_of(document: str) -> list[Block]:
    return [Block(found[1], found[2] or "", found[3]) for found in FENCE.finditer(document)]


def table_under(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its own head."""
    section = document.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def differences(told: Any, real: Any, path: str = "", within_ms: int = TOLD_WITHIN_MS) -> Iterator[str]:
    """Where an example and reality disagree; times that run may by `within_ms`."""
    key = path.rsplit(".", 1)[-1]
    if told == ANYTHING:
        return
    if isinstance(told, dict) and isinstance(real, dict):
        told = dict(told)
        is_open = told.pop(ANYTHING, None) is not None
        for name in told.keys() - real.keys():
            yield f"{path}.{name} is not there"
        for name in real.keys() - told.keys():
            if not is_open:
                yield f"{path}.{name} is not told"
        for name in told.keys() & real.keys():
            yield from differences(told[name], real[name], f"{path}.{name}", within_ms)
    elif isinstance(told, list) and isinstance(real, list) and len(told) == len(real):
        for place, (one, other) in enumerate(zip(told, real, strict=True)):
            yield from differences(one, other, f"{path}.{place}", within_ms)
    elif told is not None and real is not None and key in SHAPES:
        if type(told) is not type(real) or not (SHAPES[key](told) and SHAPES[key](real)):
            yield f"{path}: {told!r} and {real!r} are not both of that shape"
    elif isinstance(told, str) and isinstance(real, str) and (position := POSITION.fullmatch(told)):
        found = POSITION.fullmatch(real)
        if found is None or found[1] != position[1]:
            yield f"{path}: {real!r} is no position of the version in {told!r}"
    elif key in ELAPSED and type(told) is type(real) is int:
        if abs(told - real) > within_ms:
            yield f"{path}: {told} is told, {real} is too far from it"
    elif type(told) is not type(real) or told != real:
        yield f"{path}: {told!r} is told, {real!r} is real"


def assert_alike(told: Any, real: Any, within_ms: int = TOLD_WITHIN_MS) -> None:
    assert list(differences(told, real, within_ms=within_ms)) == []


def filled(told: Any, real: Any) -> Any:
    """The example, with what it leaves open as it really was. The two are alike."""
    if told == ANYTHING:
        return real
    if isinstance(told, dict) and isinstance(real, dict):
        return {name: filled(told.get(name, ANYTHING), value) for name, value in real.items()}
    if isinstance(told, list) and isinstance(real, list):
        return [filled(one, other) for one, other in zip(told, real, strict=True)]
    return told
