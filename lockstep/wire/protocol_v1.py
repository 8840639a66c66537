"""Protocol v1: what the server and its clients say to each other over the WebSocket, each message once.

`/asyncapi.json` is made from these classes, too. A field that is UNSET is left out. What the application
publishes comes beside them, byte by byte as it was sent.
"""

from typing import Any

from msgspec import UNSET, Raw, Struct

from lockstep.rules.state_json import EpochMs, Object, UuidText, dumps

SUBPROTOCOL = "lockstep.v1.json"


class _Message(Struct, tag_field="type", rename="camel", kw_only=True):
    """One JSON object, whose `type` comes first."""


# --- from the server -----------------------------------------------------------------------------------


class Connected(_Message, tag="CONNECTED", kw_only=True):
    """The first message: whatever is changed from here on arrives."""

    session_id: UuidText
    timestamp: EpochMs


class StateUpdate(_Message, tag="STATE_UPDATE", kw_only=True):
    """A change: the whole state after it, at its own instant."""

    session_id: UuidText
    timestamp: EpochMs
    state: Object


class StateSync(_Message, tag="STATE_SYNC", kw_only=True):
    """A state that replaces whatever the client has."""

    session_id: UuidText
    timestamp: EpochMs
    state: Object


class SessionDeleted(_Message, tag="SESSION_DELETED", kw_only=True):
    """The session is gone; close 1000 follows."""

    session_id: UuidText
    timestamp: EpochMs
    epoch: str
    deleted: bool


class Pong(_Message, tag="PONG", kw_only=True):
    """What time it is, and the PING's own id."""

    timestamp: EpochMs
    id: Any = UNSET


class Error(_Message, tag="ERROR", kw_only=True):
    """What the client said cannot be answered otherwise."""

    code: str
    message: str


SERVER_MESSAGES = (Connected, StateUpdate, StateSync, SessionDeleted, Pong, Error)
# Types that only the server may send.
SERVER_TYPES = frozenset(str(each.__struct_config__.tag) for each in SERVER_MESSAGES)


# --- from the client -----------------------------------------------------------------------------------


class Ping(_Message, tag="PING", kw_only=True):
    """What time is it? The id, any JSON, comes back."""

    id: Any = UNSET


class Reconnect(_Message, tag="RECONNECT", kw_only=True):
    """What is the state?"""


CLIENT_MESSAGES = (Ping, Reconnect)


# --- as bytes ------------------------------------------------------------------------------------------


def connected(session_id: str, now_ms: int) -> bytes:
    return dumps(Connected(session_id=session_id, timestamp=now_ms))


def update_prefix(session_id: str, now_ms: int) -> bytes:
    """What stands before the state in a STATE_UPDATE; a closing brace follows the state."""
    return state_update(session_id, now_ms, b"{}").removesuffix(b"{}}")


def state_update(session_id: str, now_ms: int, state: bytes) -> bytes:
    return dumps(StateUpdate(session_id=session_id, timestamp=now_ms, state=Raw(state)))


def state_sync(session_id: str, now_ms: int, state: bytes) -> bytes:
    return dumps(StateSync(session_id=session_id, timestamp=now_ms, state=Raw(state)))


def session_deleted(session_id: str, now_ms: int, epoch: str) -> bytes:
    return dumps(SessionDeleted(session_id=session_id, timestamp=now_ms, epoch=epoch, deleted=True))


def pong(now_ms: int, ping: dict[str, Any]) -> bytes:
    return dumps(Pong(timestamp=now_ms, id=ping.get("id", UNSET)))


def error(code: str, message: str) -> bytes:
    return dumps(Error(code=code, message=message))
