"""Protocol v2: what the server and its clients say to each other, each message declared once.

`/asyncapi.json` is made from these classes, too. A field that is UNSET is left out. States, bodies and what
the application says are JSON as it came (`Raw`).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from lockstep.rules.state_json import Count, EpochMs, Instant, Object, UuidText, Version

SUBPROTOCOL = "lockstep.v2.json"
MSGPACK_SUBPROTOCOL = "lockstep.v2.msgpack"
MAX_ID_LENGTH = 64

RequestId = Annotated[str, Meta(max_length=MAX_ID_LENGTH)] | int
SessionId = Annotated[
    str, Meta(max_length=36, pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
]
Position = Annotated[str, Meta(max_length=200)]
PreciseMs = Annotated[float, Meta(extra_json_schema={"minimum": 0})]
"""Epoch ms with up to three decimals."""
ErrorMs = Annotated[float, Meta(extra_json_schema={"minimum": 0})]
"""At most so far is the process's time from the broker's own clock; null where that is not known yet."""


# --- from the server -----------------------------------------------------------------------------------


class _Message(Struct, tag_field="type", rename="camel", kw_only=True):
    """One object, whose `type` comes first."""


class Welcome(_Message, tag="WELCOME", kw_only=True):
    """The first message, sent once."""

    protocol: str
    connection_id: str
    timestamp: EpochMs
    error_ms: ErrorMs | None
    server: str
    ping_interval_ms: Count
    subject: str | UnsetType = UNSET
    scope: str | UnsetType = UNSET


class CommitEvent(Struct, kw_only=True):
    """One version that an UPDATE brings; what it changed stands in the UPDATE."""

    version: Version
    type: str
    at: Instant
    actor: str | UnsetType = UNSET
    data: Object | UnsetType = UNSET
    lap_ms: Count | UnsetType = UNSET
    expired_participant_id: UuidText | UnsetType = UNSET


class Update(_Message, tag="UPDATE", kw_only=True):
    """One commit: what turns the state at `from` into that at `position`."""

    session_id: UuidText
    timestamp: EpochMs
    from_: Position = field(name="from")
    position: Position
    changes: Object
    events: list[CommitEvent]


class Subscribed(_Message, tag="SUBSCRIBED", kw_only=True):
    """The answer to SUBSCRIBE: the updates behind its position, or the position and the state."""

    id: RequestId | UnsetType = UNSET
    session_id: UuidText
    timestamp: EpochMs
    updates: Annotated[Raw, Meta(extra_json_schema={"type": "array"})] | UnsetType = UNSET
    position: Position | UnsetType | None = UNSET
    state: Object | UnsetType | None = UNSET
    presence: Object | UnsetType = UNSET


class Present(Struct, kw_only=True):
    """A subject that is connected, with so many connections: 0 where the last one closed just now."""

    subject: str
    connections: Count
    since: Instant


class Left(Struct, kw_only=True):
    subject: str


PresentArray = Annotated[Raw, Meta(extra_json_schema={"type": "array"})]


class PresenceList(Struct, kw_only=True):
    """Who is connected to a session; `present` is left out where they are too many."""

    present: PresentArray | UnsetType = UNSET
    anonymous: Count
    total: Count


class Presence(_Message, tag="PRESENCE", kw_only=True):
    """Who has come and who has left since the client was told last.

    Without both, the client has no list from now on; it gets everybody in `joined` when it has one again.
    """

    session_id: UuidText
    timestamp: EpochMs
    joined: PresentArray | UnsetType = UNSET
    left: list[Left] | UnsetType = UNSET
    anonymous: Count
    total: Count


Reason = Literal["created", "requested", "skipped", "repair", "foreign"]


class Snapshot(_Message, tag="SNAPSHOT", kw_only=True):
    """A state that replaces whatever the client has."""

    id: RequestId | UnsetType = UNSET
    session_id: UuidText
    timestamp: EpochMs
    position: Position | None
    reason: Reason
    state: Object


class Deleted(_Message, tag="DELETED", kw_only=True):
    session_id: UuidText
    timestamp: EpochMs
    epoch: str | None


class Relayed(_Message, tag="MESSAGE", kw_only=True):
    """What the application has published for the session's clients."""

    session_id: UuidText
    timestamp: EpochMs
    message: Object


class Result(_Message, tag="RESULT", kw_only=True):
    """A command was applied; the state that it led to comes as UPDATE."""

    id: RequestId
    session_id: UuidText
    timestamp: EpochMs
    position: Position
    replayed: bool | UnsetType = UNSET
    lap_ms: Count | UnsetType = field(name="lap_ms", default=UNSET)
    expired_participant_id: UuidText | UnsetType = field(name="expired_participant_id", default=UNSET)


class Error(_Message, tag="ERROR", kw_only=True):
    id: RequestId | UnsetType = UNSET
    session_id: str | UnsetType = UNSET
    code: str
    message: str
    details: Any = UNSET
    retry_after_ms: Count | UnsetType = UNSET


class Unsubscribed(_Message, tag="UNSUBSCRIBED", kw_only=True):
    """Asked for; or, with a code, the token does not allow it any more, or the subject was sent away."""

    id: RequestId | UnsetType = UNSET
    session_id: UuidText
    code: str | UnsetType = UNSET
    message: str | UnsetType = UNSET


class Reauthenticated(_Message, tag="REAUTHENTICATED", kw_only=True):
    id: RequestId
    subject: str | UnsetType = UNSET
    scope: str


class Pong(_Message, tag="PONG", kw_only=True):
    """Where time `stands_still`, it comes also without a PING, when time was moved."""

    id: RequestId | UnsetType = UNSET
    received_at: PreciseMs
    timestamp: PreciseMs
    error_ms: ErrorMs | None
    stands_still: Literal[True] | UnsetType = UNSET


class GoingAway(_Message, tag="GOING_AWAY", kw_only=True):
    """Close 1001 follows: come back after so long."""

    reconnect_after_ms: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": 9999})]


SERVER_MESSAGES = (
    Welcome,
    Subscribed,
    Update,
    Snapshot,
    Deleted,
    Relayed,
    Presence,
    Result,
    Error,
    Unsubscribed,
    Reauthenticated,
    Pong,
    GoingAway,
)


# --- from the client -----------------------------------------------------------------------------------


class Subscribe(_Message, tag="SUBSCRIBE", kw_only=True):
    id: RequestId | UnsetType  # required of clients; the URL's shorthand has none
    session_id: SessionId
    position: Position | None = None


class Unsubscribe(_Message, tag="UNSUBSCRIBE", kw_only=True):
    id: RequestId
    session_id: SessionId


class Sync(_Message, tag="SYNC", kw_only=True):
    id: RequestId
    session_id: SessionId


class Command(_Message, tag="COMMAND", kw_only=True):
    id: RequestId
    session_id: SessionId
    command: str
    body: dict[str, Any] | None = None
    idempotency_key: str | None = None


class Reauth(_Message, tag="REAUTH", kw_only=True):
    id: RequestId
    token: str


class Ping(_Message, tag="PING", kw_only=True):
    id: RequestId | UnsetType = UNSET


SessionRequest = Subscribe | Unsubscribe | Sync | Command
ClientMessage = SessionRequest | Reauth | Ping
CLIENT_MESSAGES: dict[str, type[ClientMessage]] = {
    "SUBSCRIBE": Subscribe,
    "UNSUBSCRIBE": Unsubscribe,
    "SYNC": Sync,
    "COMMAND": Command,
    "REAUTH": Reauth,
    "PING": Ping,
}


BAD_MESSAGES = ("INVALID_MESSAGE", "UNKNOWN_TYPE")


class BadMessage(Exception):
    """A message that is none of the protocol's. `id` is its own, where it has one that can be echoed.

    `code` is one of BAD_MESSAGES.
    """

    def __init__(self, code: str, message: str, id_: RequestId | UnsetType) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id_


def read_message(said: Any) -> ClientMessage:
    """The message that a decoded value is. Raises BadMessage, which names the field."""
    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
        raise BadMessage("INVALID_MESSAGE", "A message is an object with a type", UNSET)
    id_ = said.get("id", UNSET)
    try:
        echoed: RequestId | UnsetType = UNSET if id_ is UNSET else _checked_id(id_)
    except ValueError as error:
        raise BadMessage("INVALID_MESSAGE", str(error), UNSET) from None
    kind = CLIENT_MESSAGES.get(said["type"])
    if kind is None:
        raise BadMessage("UNKNOWN_TYPE", f"Unknown message type {said['type'][:50]!r}", echoed)
    try:
        message: ClientMessage = msgspec.convert(said, kind)
    except msgspec.ValidationError as error:
        raise BadMessage("INVALID_MESSAGE", str(error), echoed) from None
    if not isinstance(message, Reauth | Ping):
        message.session_id = message.session_id.lower()
    return message


def _checked_id(value: Any) -> RequestId:
    """A string or an integer of up to 64 characters. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("id: expected a string or an integer")
    if (value.bit_length() > 256 if isinstance(value, int) else False) or len(str(value)) > MAX_ID_LENGTH:
        raise ValueError(f"id: at most {MAX_ID_LENGTH} characters")
    return value
