"""The beginning of a stored state, by which it is recognised without being parsed."""

import re

from msgspec import Struct

from lockstep.rules.state import Session, Status, position_of

Order = tuple[str, int]
"""Which of two states of an id is the later one: (epoch, version)."""

STATE_BEGINS = (
    rb'\{"session_id":"([0-9a-f-]{36})","epoch":"([0-9a-z]{13})","version":(\d{1,15}),'
    rb'"commit":"([\w-]{8})","deadline_ms":(\d{1,15}|null),'
)
_STATE = re.compile(STATE_BEGINS)
_EPOCH = re.compile(rb'\{"session_id":"([0-9a-f-]{36})","epoch":"([0-9a-z]{13})",')
_STATUS = re.compile(STATE_BEGINS + rb'"sync_mode":"\w+","status":"(?P<status>\w+)"')
_HAS_PRESENCE = re.compile(_STATUS.pattern + rb',"presence":true,')
BEGINNING_BYTES = 256
"""No beginning is longer; this much of a stored state is enough for all that is read of one here."""


class Head(Struct, frozen=True):
    """The beginning of a state: what identifies it, and when it falls due."""

    session_id: str
    order: Order
    commit: str
    deadline_ms: int | None

    @property
    def position(self) -> str:
        return position_of(*self.order, self.commit)

    @property
    def tag(self) -> str:
        return f'"{self.position}"'

    def is_due(self, now_ms: int) -> bool:
        return self.deadline_ms is not None and self.deadline_ms <= now_ms

    def is_same_state_as(self, other: "Head | None") -> bool:
        """True if both are of the very same state."""
        return other is not None and (self.order, self.commit) == (other.order, other.commit)


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
    return head_of(_STATE.match(state))


def read_status(state: bytes) -> Status | None:
    """The status of a stored state, by its beginning; None if these bytes are not one."""
    match = _STATUS.match(state)
    try:
        return Status(match["status"].decode()) if match else None
    except ValueError:
        return None


def has_presence(state: bytes) -> bool:
    """True if these are the bytes of a state, or its beginning, whose session tells who is connected."""
    return _HAS_PRESENCE.match(state) is not None


def head_of(match: re.Match[bytes] | None) -> Head | None:
    if match is None:
        return None
    session_id, epoch, version, commit, deadline = match.groups()
    return Head(
        session_id.decode(),
        (epoch.decode(), int(version)),
        commit.decode(),
        None if deadline == b"null" else int(deadline),
    )


UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""A UUID in lower case, as they are compared and stored."""
