"""REST, call by call: what is asked, and what the answer says. Nothing is sent here."""

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypedDict, TypeVar, cast

from lockstep_client.errors import LockstepError
from lockstep_client.types import (
    CommandBody,
    CommandName,
    CreateBody,
    HistoryEvent,
    JsonObject,
    Presence,
    State,
    Status,
    Switched,
    TimeAnswer,
)

T = TypeVar("T")
PAGE = 100
"""Of a list of sessions, the most that the server gives at once."""

_SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_KEY = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[object], T]
    """What the JSON of a good answer says; None stands for no JSON. Raises TypeError or KeyError."""
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True
    """Whether it may be sent again where it is not known if it was done: what changes something has a key."""


class Page(NamedTuple, Generic[T]):
    """A part of a list, and the call for the next one, if there is one."""

    items: list[T]
    next_call: "Call[Page[T]] | None"


def create_session(body: CreateBody, idempotency_key: str | None) -> Call[State]:
    return _change("POST", "/v1/sessions", _state, body, idempotency_key)


def session(session_id: str) -> Call[State]:
    return Call("GET", _path(session_id), _state)


def sessions(status: Status | None, cursor: str | None = None) -> Call[Page[State]]:
    def read(answer: object) -> Page[State]:
        page = _data(answer, sessions=list)
        following = page["next_cursor"]
        if following is None:
            return Page(cast(list[State], page["sessions"]), None)
        if not isinstance(following, str) or following == cursor:
            raise TypeError("its next_cursor leads nowhere")
        return Page(cast(list[State], page["sessions"]), sessions(status, following))

    given = {"status": status, "limit": str(PAGE), "cursor": cursor}
    params = {name: value for name, value in given.items() if value is not None}
    return Call("GET", "/v1/sessions", read, params)


def command(
    session_id: str,
    name: CommandName,
    body: CommandBody | None,
    idempotency_key: str | None,
    if_match: str | None,
) -> Call[State | Switched]:
    if not re.fullmatch("[a-z_]+", name):
        raise invalid("command", "is no name of a command")
    return _change("POST", _path(session_id, name), _changed, body, idempotency_key, if_match)


def events(session_id: str, since: int, epoch: str | None) -> Call[Page[HistoryEvent]]:
    def read(answer: object) -> Page[HistoryEvent]:
        page = _data(answer, epoch=str, events=list)
        following = page["next_since"]
        if following is None:
            return Page(cast(list[HistoryEvent], page["events"]), None)
        if not isinstance(following, int) or following <= since:
            raise TypeError("its next_since leads nowhere")
        next_call = events(session_id, following, cast(str, page["epoch"]))
        return Page(cast(list[HistoryEvent], page["events"]), next_call)

    params = {"since": str(since)} | ({} if epoch is None else {"epoch": epoch})
    return Call("GET", _path(session_id, "events"), read, params)


def publish(session_id: str, message: JsonObject, idempotency_key: str | None) -> Call[None]:
    return _change("POST", _path(session_id, "messages"), _nothing, message, idempotency_key)


def presence(session_id: str) -> Call[Presence]:
    return Call("GET", _path(session_id, "presence"), _presence)


def disconnect(session_id: str, subject: str) -> Call[None]:
    return _change("POST", _path(session_id, "disconnect"), _nothing, {"subject": subject}, None)


def delete(session_id: str, idempotency_key: str | None, if_match: str | None) -> Call[None]:
    return _change("DELETE", _path(session_id), _nothing, None, idempotency_key, if_match)


def read_time() -> Call[TimeAnswer]:
    return Call("GET", "/v1/time", _time)


def advance(ms: int) -> Call[int]:
    return Call("POST", "/v1/time/advance", _advanced, **_json({"ms": ms}), is_repeatable=False)


def new_key() -> str:
    """An idempotency key that is nobody else's."""
    return secrets.token_urlsafe(16)


def checked_key(key: str | None) -> str:
    """A key that can be sent; a new one where there is none. Raises LockstepError."""
    if key is None:
        return new_key()
    if not _KEY.fullmatch(key):
        raise invalid("Idempotency-Key", "must be 1 to 255 printable ASCII characters")
    return key


def checked_id(session_id: str) -> str:
    """An id of a session, in lower case as the server writes it. Raises LockstepError."""
    if not _SESSION_ID.fullmatch(session_id):
        raise invalid("id", "must be a UUID")
    return session_id.lower()


def invalid(field_: str, message: str) -> LockstepError:
    details = [{"field": field_, "message": message, "code": "format"}]
    return LockstepError("VALIDATION_ERROR", f"{field_} {message}", details=details)


# --- requests ------------------------------------------------------------------------------------------


def _path(session_id: str, below: str = "") -> str:
    path = f"/v1/sessions/{checked_id(session_id)}"
    return f"{path}/{below}" if below else path


class _Content(TypedDict):
    content: bytes
    headers: dict[str, str]


def _json(body: Mapping[str, object]) -> _Content:
    content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _change(
    method: str,
    path: str,
    read: Callable[[object], T],
    body: Mapping[str, object] | None,
    idempotency_key: str | None,
    if_match: str | None = None,
) -> Call[T]:
    sent: _Content = {"content": b"", "headers": {}} if body is None else _json(body)
    sent["headers"]["Idempotency-Key"] = checked_key(idempotency_key)
    if if_match is not None:
        if not _KEY.fullmatch(if_match):
            raise invalid("If-Match", "must be a position")
        sent["headers"]["If-Match"] = if_match if if_match == "*" else f'"{if_match.strip(chr(34))}"'
    return Call(method, path, read, **sent)


# --- answers -------------------------------------------------------------------------------------------


def _object(value: object, **needed: type) -> dict[str, object]:
    """An object with these fields of these types. Raises TypeError."""
    if not isinstance(value, dict):
        raise TypeError("it is no object")
    for name, kind in needed.items():
        if not isinstance(value.get(name), kind):
            raise TypeError(f"its {name} is no {kind.__name__}")
    return value


def _data(answer: object, **needed: type) -> dict[str, object]:
    return _object(_object(answer).get("data"), **needed)


def _state(answer: object) -> State:
    return cast(State, _data(answer, session_id=str, epoch=str, version=int, participants=list))


def _changed(answer: object) -> State | Switched:
    return cast(State | Switched, _data(answer, session_id=str, version=int, participants=list))


def _presence(answer: object) -> Presence:
    return cast(Presence, _data(answer, total=int))


def _time(answer: object) -> TimeAnswer:
    return cast(TimeAnswer, _object(answer, timestamp_ms=int))


def _advanced(answer: object) -> int:
    return cast(TimeAnswer, _object(answer, timestamp_ms=int))["timestamp_ms"]


def _nothing(answer: object) -> None:
    return None
