"""What processes say to each other over the channels of the bus, and what others may say there."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from lockstep.errors import MalformedJson
from lockstep.rules.state_json import dumps
from lockstep.wire import updates
from lockstep.wire.heads import STATE_BEGINS, UUID, Head, head_of
from lockstep.wire.protocol_v1 import state_update, update_prefix
from lockstep.wire.strict_json import loads

MAX_RELAYED_BYTES = 65_536
# Four times what a state of 1,000 participants takes; nobody who means well publishes more.
MAX_PUBLISHED_BYTES = 1_048_576
_UPDATE = re.compile(
    rb'\{"type":"STATE_UPDATE","sessionId":"[0-9a-f-]{36}","timestamp":\d{13},"state":' + STATE_BEGINS
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


class Update(Struct, frozen=True):
    """A state to deliver: the `payload` begins as clients of protocol v1 get it.

    `head` is None where the sender gave no order. `changes` is the UPDATE of protocol v2, where a process of
    ours sent one along, and `came_from` the position that it applies to.
    """

    session_id: str
    payload: bytes
    state: bytes
    head: Head | None
    is_foreign: bool = False
    changes: bytes | None = None
    came_from: str | None = None

    @property
    def message(self) -> bytes:
        """The STATE_UPDATE of protocol v1."""
        return self.payload if self.changes is None else self.payload[:_STATE_AT] + self.state + b"}"

    @property
    def timestamp_ms(self) -> int:
        return int(self.payload[_TIMESTAMP])


class Deletion(Struct, frozen=True):
    """A session is gone: of this epoch, or, where the sender named none, whichever there was."""

    session_id: str
    message: bytes | None
    epoch: str | None


class Disconnect(Struct, frozen=True, tag_field="type", tag="DISCONNECT", rename="camel"):
    """Somebody who may do so ends the connections of this subject to the session."""

    session_id: Annotated[str, Meta(pattern=f"^{UUID.pattern}$")]
    subject: Annotated[str, Meta(min_length=1)]


def published(session_id: str, timestamp_ms: int, state: bytes, update: bytes) -> bytes:
    """What a commit publishes, as lua/commit.lua does: its STATE_UPDATE, and the UPDATE behind the state.

    The length of the UPDATE comes last, in 8 digits, so that both can be cut out from the end. A creation
    has no `update`: its publication is the STATE_UPDATE alone.
    """
    if not update:
        return state_update(session_id, timestamp_ms, state)
    prefix = update_prefix(session_id, timestamp_ms)
    return b'%b%b,"update":%b,"updateBytes":"%08d"}' % (prefix, state, update, len(update))


def update_id(payload: bytes) -> str | None:
    """The session id of a STATE_UPDATE as Lockstep publishes it, by position; None for any other payload."""
    if payload.startswith(b'{"type":"STATE_UPDATE","sessionId":"'):
        return payload[_UPDATE_ID].decode("ascii", "replace")
    return None


def read_published(payload: bytes, now_ms: int) -> Update | Deletion | Disconnect | None:
    """What a payload of `session-updates` means; None for junk."""
    if len(payload) > MAX_PUBLISHED_BYTES:
        return None
    head = head_of(_UPDATE.match(payload))
    if head is not None and payload[_UPDATE_ID] == head.session_id.encode() and _is_typed_json(payload):
        return _cut(payload, head)
    deleted = _DELETED.match(payload)
    if deleted is not None:
        return Deletion(_deleted_id(payload), payload, deleted[1].decode())
    if _NOTICE_BEGINS.match(payload):
        return _read_notice(payload)
    return _read_foreign(payload, now_ms)


# What processes of ours say to each other beside updates.
_NOTICE_BEGINS = re.compile(rb'\{"type":"DISCONNECT",')
_NOTICE = msgspec.json.Decoder(Disconnect)


def _read_notice(payload: bytes) -> Disconnect | None:
    try:
        return _NOTICE.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_TAIL = re.compile(rb',"updateBytes":"(\d{8})"\}')
_TAIL_BYTES = len(',"updateBytes":"00000000"}')


def _cut(payload: bytes, head: Head) -> Update:
    """What a STATE_UPDATE of ours says to clients of v1, and its UPDATE, where it ends with one."""
    tail = _TAIL.fullmatch(payload, len(payload) - _TAIL_BYTES)
    if tail is not None:
        end = len(payload) - _TAIL_BYTES
        start = end - int(tail[1])
        cut = start - len(',"update":')
        changes = payload[start:end]
        ends = updates.ends_of(changes)
        if payload[cut:start] == b',"update":' and ends is not None and ends[1] == head.position:
            state = payload[_STATE_AT:cut]
            return Update(head.session_id, payload, state, head, changes=changes, came_from=ends[0])
    return Update(head.session_id, payload, payload[_STATE_AT:-1], head)


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
    text = dumps(state)
    return Update(session_id, state_update(session_id, now_ms, text), text, head, is_foreign=True)


class _Typed(Struct, gc=False):
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


_ADDRESSED = re.compile(rb'\{"sessionId":"([0-9a-f-]{36})","message":')


def addressed(session_id: str, message: bytes) -> bytes:
    """A message to a session's clients where its channel does not name the session: on Redis Cluster."""
    return b'{"sessionId":"%b","message":%b}' % (session_id.encode(), message)


def is_addressed(payload: bytes) -> bool:
    """Whether it is such a message, as ``addressed`` makes them."""
    return _ADDRESSED.match(payload) is not None


def read_addressed(payload: bytes) -> tuple[str, bytes] | None:
    """Whose clients it is for, and what ``read_relayed`` is to read; None where it names no session."""
    found = _ADDRESSED.match(payload)
    if found is not None and _is_typed_json(message := payload[found.end() : -1]) and payload[-1:] == b"}":
        return found[1].decode(), message
    try:
        session_id = loads(payload)["sessionId"].lower()
    except (MalformedJson, AttributeError, KeyError, TypeError):
        return None
    return (session_id, payload) if UUID.fullmatch(session_id) else None
