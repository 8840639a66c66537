"""The wire format: every message is built, sliced and parsed here."""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from lockstep.engine import Transition
from lockstep.errors import MalformedJson
from lockstep.state import (
    Session,
    Status,
    dumps,
    entity_tag,
    iso,
    participant_to_dict,
    participants_to_list,
    top_level,
)

# Types that only the server may send.
SERVER_TYPES = frozenset({"CONNECTED", "STATE_UPDATE", "STATE_SYNC", "SESSION_DELETED", "PONG", "ERROR"})
MAX_RELAYED_BYTES = 65_536
# Four times what a state of 1,000 participants takes; nobody who means well publishes more.
MAX_PUBLISHED_BYTES = 1_048_576
MAX_DEPTH = 100
# What it costs to read JSON goes by the number of its values, and nobody else is served meanwhile. No request
# has so many: 1,000 participants are 1,000 objects, and 64 KiB have no more than 32,768 values.
MAX_CONTAINERS = 12_000
MAX_COMMAS = 40_000

Position = tuple[str, int]
"""Where a state stands among those of its id: (epoch, version)."""

# A stored state and a published update are recognised by their beginnings; the rest is never parsed.
_STATE_BEGINS = (
    rb'\{"session_id":"([0-9a-f-]{36})","epoch":"([0-9a-z]{13})","version":(\d{1,15}),'
    rb'"commit":"([\w-]{8})","deadline_ms":(\d{1,15}|null),'
)
_STATE = re.compile(_STATE_BEGINS)
_EPOCH = re.compile(rb'\{"session_id":"([0-9a-f-]{36})","epoch":"([0-9a-z]{13})",')
_UPDATE = re.compile(
    rb'\{"type":"STATE_UPDATE","sessionId":"[0-9a-f-]{36}","timestamp":\d{13},"state":' + _STATE_BEGINS
)
_DELETED = re.compile(
    rb'\{"type":"SESSION_DELETED","sessionId":"[0-9a-f-]{36}","timestamp":\d{13},'
    rb'"epoch":"([0-9a-z]{13})","deleted":true\}$'
)
_UPDATE_ID = slice(
    len('{"type":"STATE_UPDATE","sessionId":"'), len('{"type":"STATE_UPDATE","sessionId":"') + 36
)
_TIMESTAMP = slice(_UPDATE_ID.stop + len('","timestamp":'), _UPDATE_ID.stop + len('","timestamp":') + 13)
_STATE_AT = len('{"type":"STATE_UPDATE","sessionId":"","timestamp":,"state":') + 36 + 13
_STATUS = re.compile(_STATE_BEGINS + rb'"sync_mode":"\w+","status":"(\w+)"')
BEGINNING_BYTES = 256
"""No beginning is longer; this much of a stored state is enough for `read_head` and `read_status`."""


class Head(Struct, frozen=True):
    """The beginning of a state: what identifies it, and when it falls due."""

    session_id: str
    position: Position
    commit: str
    deadline_ms: int | None

    @property
    def tag(self) -> str:
        return entity_tag(*self.position, self.commit)

    def is_of(self, other: "Head | None") -> bool:
        """True if both are of the very same state."""
        return other is not None and (self.position, self.commit) == (other.position, other.commit)


# --- states --------------------------------------------------------------------------------------


def beginning(session: Session) -> bytes:
    """What a commit compares: the state's JSON up to and with `commit`."""
    return (
        f'{{"session_id":"{session.session_id}","epoch":"{session.epoch}",'
        f'"version":{session.version},"commit":"{session.commit}"'
    ).encode()


def beginning_of(session_id: str, epoch: str | None = None) -> bytes:
    """What every state of this epoch, or of any, begins with."""
    begins = f'{{"session_id":"{session_id}",'
    return (begins if epoch is None else f'{begins}"epoch":"{epoch}",').encode()


def epoch_of(session_id: str, state: bytes) -> str:
    """The epoch of this session's state, or of its beginning; empty where these bytes are not one.

    The rest of it may be damaged: so much is enough to delete it by, and to tell its clients.
    """
    match = _EPOCH.match(state)
    return match[2].decode() if match and match[1] == session_id.encode() else ""


def read_head(state: bytes) -> Head | None:
    """The head of a stored state; None if these bytes are not one."""
    return _head(_STATE.match(state))


def read_status(state: bytes) -> Status | None:
    """The status of a stored state, by its beginning; None if these bytes are not one."""
    match = _STATUS.match(state)
    try:
        return Status(match[match.re.groups].decode()) if match else None
    except ValueError:
        return None


def _head(match: re.Match[bytes] | None) -> Head | None:
    if match is None:
        return None
    session_id, epoch, version, commit, deadline = match.groups()
    return Head(
        session_id.decode(),
        (epoch.decode(), int(version)),
        commit.decode(),
        None if deadline == b"null" else int(deadline),
    )


# --- from the server to clients ------------------------------------------------------------------


def connected(session_id: str, now_ms: int) -> bytes:
    return f'{{"type":"CONNECTED","sessionId":"{session_id}","timestamp":{now_ms}}}'.encode()


def update_prefix(session_id: str, now_ms: int) -> bytes:
    """What stands before the state in a STATE_UPDATE; a closing brace follows the state."""
    return f'{{"type":"STATE_UPDATE","sessionId":"{session_id}","timestamp":{now_ms},"state":'.encode()


def state_update(session_id: str, now_ms: int, state: bytes) -> bytes:
    return update_prefix(session_id, now_ms) + state + b"}"


def state_sync(session_id: str, now_ms: int, state: bytes) -> bytes:
    prefix = f'{{"type":"STATE_SYNC","sessionId":"{session_id}","timestamp":{now_ms},"state":'
    return prefix.encode() + state + b"}"


def session_deleted(session_id: str, now_ms: int, epoch: str) -> bytes:
    return (
        f'{{"type":"SESSION_DELETED","sessionId":"{session_id}","timestamp":{now_ms},'
        f'"epoch":"{epoch}","deleted":true}}'
    ).encode()


def pong(now_ms: int, ping: dict[str, Any]) -> bytes:
    answer = {"type": "PONG", "timestamp": now_ms}
    if "id" in ping:
        answer["id"] = ping["id"]
    return dumps(answer)


def error(code: str, message: str) -> bytes:
    return dumps({"type": "ERROR", "code": code, "message": message})


# --- between processes ---------------------------------------------------------------------------


class Update(Struct, frozen=True):
    """A state to deliver: `message` as clients get it. `head` is None where the sender gave no order."""

    session_id: str
    message: bytes
    head: Head | None

    @property
    def state(self) -> bytes:
        return self.message[_STATE_AT:-1]

    @property
    def timestamp_ms(self) -> int:
        return int(self.message[_TIMESTAMP])


class Deletion(Struct, frozen=True):
    """A session is gone: of this epoch, or, where the sender named none, whichever there was."""

    session_id: str
    message: bytes | None
    epoch: str | None


def update_id(payload: bytes) -> str | None:
    """The session id of a STATE_UPDATE as Lockstep publishes it, by position; None for any other payload."""
    if payload.startswith(b'{"type":"STATE_UPDATE","sessionId":"'):
        return payload[_UPDATE_ID].decode("ascii", "replace")
    return None


def read_published(payload: bytes, now_ms: int) -> Update | Deletion | None:
    """What a payload of `session-updates` means; None for junk."""
    if len(payload) > MAX_PUBLISHED_BYTES:
        return None
    head = _head(_UPDATE.match(payload))
    if head is not None and payload[_UPDATE_ID] == head.session_id.encode() and _is_typed_json(payload):
        return Update(head.session_id, payload, head)
    deleted = _DELETED.match(payload)
    if deleted is not None:
        return Deletion(_deleted_id(payload), payload, deleted[1].decode())
    return _read_foreign(payload, now_ms)


def _deleted_id(payload: bytes) -> str:
    start = len('{"type":"SESSION_DELETED","sessionId":"')
    return payload[start : start + 36].decode()


def _read_foreign(payload: bytes, now_ms: int) -> Update | Deletion | None:
    """{"sessionId", "state": object or JSON string}, {"sessionId", "deleted": true} or "state": null."""
    try:
        data = loads(payload)
        state = data.get("state")
        session_id = data["sessionId"].lower()
        if isinstance(state, str):
            state = loads(state.encode())
    except (MalformedJson, AttributeError, KeyError):
        return None
    if not UUID.fullmatch(session_id):
        return None
    if data.get("deleted") is True or ("state" in data and state is None):
        epoch = data.get("epoch")
        return Deletion(session_id, None, epoch if isinstance(epoch, str) else None)
    if not isinstance(state, dict):
        return None
    epoch, version, deadline_ms = state.get("epoch"), state.get("version"), state.get("deadline_ms")
    head = None
    if isinstance(epoch, str) and type(version) is int:
        head = Head(
            session_id,
            (epoch, version),
            str(state.get("commit", "")),
            deadline_ms if type(deadline_ms) is int else None,
        )
    return Update(session_id, state_update(session_id, now_ms, dumps(state)), head)


UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""A UUID in lower case, as they are compared and stored."""


class _Typed(Struct):
    type: str


_TYPED = msgspec.json.Decoder(_Typed)


def _is_typed_json(payload: bytes) -> bool:
    """Checked from end to end, and nothing built of it: that takes a tenth of the time of a parser."""
    try:
        _TYPED.decode(payload)
        return payload.isascii() or bool(payload.decode())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def read_relayed(payload: bytes) -> bytes | None:
    """What a payload of `ws:<id>` sends to the clients; None for junk."""
    if len(payload) > MAX_RELAYED_BYTES:
        return None
    if _is_typed_json(payload):
        return payload
    # A wrapped one, or junk.
    try:
        data = loads(payload)
    except MalformedJson:
        return None
    if not isinstance(data, dict):
        return None
    if isinstance(data.get("type"), str):
        return payload
    inner = data.get("message")
    if "sessionId" in data and isinstance(inner, dict) and isinstance(inner.get("type"), str):
        return dumps(inner)
    return None


# --- history -------------------------------------------------------------------------------------


def events(
    before: Session | None,
    transitions: Sequence[Transition],
    actor: str | None = None,
    request_id: str | None = None,
) -> list[bytes]:
    """One JSON object per transition; its `changes` turn the state before it into the state after it."""
    encoded = []
    for transition in transitions:
        event: dict[str, Any] = {
            "version": transition.session.version,
            "type": transition.type,
            "at": iso(transition.at_ms),
        }
        if actor is not None:
            event["actor"] = actor
        if request_id is not None:
            event["request_id"] = request_id
        if transition.lap_ms is not None:
            event["lap_ms"] = transition.lap_ms
        event["changes"] = _changes(before, transition.session)
        encoded.append(dumps(event))
        before = transition.session
    return encoded


_ABSENT = object()


def _changes(before: Session | None, after: Session) -> dict[str, Any]:
    new = top_level(after)
    if before is None:
        return new | {"participants": participants_to_list(after)}
    old = top_level(before)
    changes = {key: value for key, value in new.items() if old.get(key, _ABSENT) != value}
    moved = []
    for place, (was, now) in enumerate(zip(before.participants, after.participants, strict=True)):
        was_active, now_active = place == before.active, place == after.active
        if was is now and was_active is now_active:
            continue
        old_seat, new_seat = participant_to_dict(was, was_active), participant_to_dict(now, now_active)
        fields = {key: value for key, value in new_seat.items() if old_seat[key] != value}
        if fields:
            moved.append({"participant_id": now.participant_id} | fields)
    if moved:
        changes["participants"] = moved
    return changes


# --- JSON from outside ---------------------------------------------------------------------------


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
