"""What the server says over the WebSocket (protocol v2), each message checked as it is read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

from lockstep_client.errors import LockstepError
from lockstep_client.types import Changes, CommandResult, Event, Json, State

SUBPROTOCOL = "lockstep.v2.json"
FORMER_SUBPROTOCOL = "lockstep.v1.json"
"""Offered in order to be told that the server speaks no other."""
MAX_NUMBER = 2**53


class BadMessage(Exception):
    """What came is no message of the protocol, or lacks what it must have."""


@dataclass(frozen=True, slots=True)
class Welcome:
    timestamp_ms: float


@dataclass(frozen=True, slots=True)
class Change:
    """UPDATE: what turns the state at `from_position` into that at `position`."""

    session_id: str
    timestamp_ms: float
    from_position: str
    position: str
    changes: Changes
    events: list[Event]


@dataclass(frozen=True, slots=True)
class Subscribed:
    """`changes` since the position that was named; or None, and `position` and `state` replace it."""

    id: object
    session_id: str
    timestamp_ms: float
    changes: list[Change] | None
    position: str | None
    state: State | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    id: object
    session_id: str
    timestamp_ms: float
    position: str | None
    reason: str
    state: State


@dataclass(frozen=True, slots=True)
class Deleted:
    session_id: str
    timestamp_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    id: object
    said: CommandResult


@dataclass(frozen=True, slots=True)
class Refusal:
    """ERROR: the answer to a request, or to something that the server did not understand (`id` is None)."""

    id: object
    error: LockstepError


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """`error` says why, unless it was asked for."""

    id: object
    session_id: str
    error: LockstepError | None


@dataclass(frozen=True, slots=True)
class Reauthenticated:
    id: object


@dataclass(frozen=True, slots=True)
class Pong:
    """`error_ms` is infinite where the server does not know by how much it is wrong.

    Where its time `stands_still`, one comes without having been asked for when that was moved.
    """

    id: object
    received_at_ms: float
    timestamp_ms: float
    error_ms: float
    stands_still: bool


@dataclass(frozen=True, slots=True)
class GoingAway:
    reconnect_after_ms: float


Message: TypeAlias = (
    Welcome
    | Subscribed
    | Change
    | Snapshot
    | Deleted
    | Result
    | Refusal
    | Unsubscribed
    | Reauthenticated
    | Pong
    | GoingAway
)
_Fields: TypeAlias = dict[str, object]


def read_message(text: str | bytes) -> Message | None:
    """The message that a frame is; None for what this client has no use for. Raises BadMessage."""
    if not isinstance(text, str):
        raise BadMessage("a binary frame")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("no JSON") from None
    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
        raise BadMessage("no object with a type")
    read = _READERS.get(said["type"])
    return None if read is None else read(said)


def _text(said: _Fields, name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str):
        raise BadMessage(f"{said.get('type')} without {name}")
    return value


def _number(said: _Fields, name: str) -> float:
    value = said.get(name)
    # Python reads NaN, Infinity and numbers of any length from JSON, of which no clock can be made.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise BadMessage(f"{said.get('type')} without {name}")
    return value


def _position(said: _Fields) -> str | None:
    return None if said.get("position") is None else _text(said, "position")


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _state(said: _Fields) -> State:
    state = said.get("state")
    if not isinstance(state, dict):
        raise BadMessage(f"{said['type']} without state")
    return cast(State, state)


def _subscribed(said: _Fields) -> Subscribed:
    updates = said.get("updates")
    changes = None
    if updates is not None:
        if not _are_objects(updates):
            raise BadMessage("SUBSCRIBED with updates that are none")
        changes = [_change(each) for each in cast(list[_Fields], updates)]
    elif "state" not in said:
        raise BadMessage("SUBSCRIBED without state")
    return Subscribed(
        said.get("id"),
        _text(said, "sessionId"),
        _number(said, "timestamp"),
        changes,
        _position(said),
        None if said.get("state") is None else _state(said),
    )


def _change(said: _Fields) -> Change:
    changes, events = said.get("changes"), said.get("events")
    if not isinstance(changes, dict) or not _are_objects(events):
        raise BadMessage("UPDATE without changes or events")
    moved = changes.get("participants", [])
    if not _are_objects(moved) or not all(isinstance(each.get("participant_id"), str) for each in moved):
        raise BadMessage("UPDATE with participants that are none")
    return Change(
        _text(said, "sessionId"),
        _number(said, "timestamp"),
        _text(said, "from"),
        _text(said, "position"),
        cast(Changes, changes),
        cast(list[Event], events),
    )


def _snapshot(said: _Fields) -> Snapshot:
    return Snapshot(
        said.get("id"),
        _text(said, "sessionId"),
        _number(said, "timestamp"),
        _position(said),
        _text(said, "reason"),
        _state(said),
    )


def _refusal(said: _Fields) -> Refusal:
    return Refusal(said.get("id"), _error(said, _text(said, "code")))


def _unsubscribed(said: _Fields) -> Unsubscribed:
    error = None if said.get("code") is None else _error(said, _text(said, "code"))
    return Unsubscribed(said.get("id"), _text(said, "sessionId"), error)


def _error(said: _Fields, code: str) -> LockstepError:
    retry_after_ms = None if said.get("retryAfterMs") is None else round(_number(said, "retryAfterMs"))
    message = said.get("message")
    return LockstepError(
        code,
        message if isinstance(message, str) else code,
        details=cast(Json, said.get("details")),
        retry_after_ms=retry_after_ms,
    )


def _pong(said: _Fields) -> Pong:
    error_ms = float("inf") if said.get("errorMs") is None else _number(said, "errorMs")
    instants = _number(said, "receivedAt"), _number(said, "timestamp")
    return Pong(said.get("id"), *instants, error_ms, said.get("standsStill") is True)


def _result(said: _Fields) -> Result:
    _text(said, "position")
    _number(said, "timestamp")
    names = CommandResult.__annotations__
    fields = {name: value for name, value in said.items() if name in names}
    return Result(said.get("id"), cast(CommandResult, fields))


_READERS: dict[str, Callable[[_Fields], Message]] = {
    "WELCOME": lambda said: Welcome(_number(said, "timestamp")),
    "SUBSCRIBED": _subscribed,
    "UPDATE": _change,
    "SNAPSHOT": _snapshot,
    "DELETED": lambda said: Deleted(_text(said, "sessionId"), _number(said, "timestamp")),
    "RESULT": _result,
    "ERROR": _refusal,
    "UNSUBSCRIBED": _unsubscribed,
    "REAUTHENTICATED": lambda said: Reauthenticated(said.get("id")),
    "PONG": _pong,
    "GOING_AWAY": lambda said: GoingAway(_number(said, "reconnectAfterMs")),
}
