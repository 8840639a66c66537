"""How processes tell each other who is connected to a session: a message on the channel of its updates."""

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from lockstep.attendance import Attendance

BEGINNING = b'{"type":"PRESENCE","sessionId":"'
_HEAD = re.compile(
    re.escape(BEGINNING) + rb'([0-9a-f-]{36})","process":"([0-9a-f-]{36})","attendances":(?=[{n])'
)
_DECODER = msgspec.json.Decoder(dict[str, Attendance | None] | None)


class Attendances(Struct, frozen=True):
    """What a process says of its clients of a session; None: it is no more (see ``Listener.on_presence``)."""

    session_id: str
    process: str
    attendances: dict[str, Attendance | None] | None


def message_of(session_id: str, process: str, attendances: Mapping[str, Attendance | None] | None) -> bytes:
    """The message: subjects with [connections, since_ms] or null, or null for all of them."""
    said = msgspec.json.encode(attendances)
    return BEGINNING + f'{session_id}","process":"{process}","attendances":'.encode() + said + b"}"


def read_message(payload: bytes) -> Attendances | None:
    """What such a message says; None for any other payload."""
    head = _HEAD.match(payload)
    if head is None or not payload.endswith(b"}"):
        return None
    try:
        attendances = _DECODER.decode(memoryview(payload)[head.end() : -1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Attendances(head[1].decode(), head[2].decode(), attendances)
