"""What the body of a request may say."""

from typing import Any

from lockstep.requests.kinds import Boolean, Choice, Integer, List, Object, Record, Text, Uuid, Violations
from lockstep.rules.engine import Spec
from lockstep.rules.modes import MAX_TIME_MS
from lockstep.rules.seating import (
    MAX_INDEX,
    MAX_PARTICIPANTS,
    MIN_PARTICIPANTS,
    participant_of,
    seat_violations,
)
from lockstep.rules.state import MAX_METADATA_BYTES, Mode, OnTimeout
from lockstep.wire import protocol_v1

MIN_TIME_MS = 1000
MAX_INCREMENT_MS = 60_000
MAX_ADVANCE_MS = 86_400_000
ALLOWED_ON_TIMEOUT = {
    # The first is the default.
    Mode.PER_PARTICIPANT: (OnTimeout.FLAG, OnTimeout.ADVANCE, OnTimeout.EXPIRE),
    Mode.PER_GROUP: (OnTimeout.FLAG, OnTimeout.ADVANCE, OnTimeout.EXPIRE),
    Mode.PER_CYCLE: (OnTimeout.ADVANCE, OnTimeout.FLAG, OnTimeout.EXPIRE),
    Mode.GLOBAL: (OnTimeout.EXPIRE, OnTimeout.FLAG),
    Mode.COUNT_UP: (OnTimeout.EXPIRE,),
}
# Which fields a mode needs of the session.
NEEDED = {Mode.PER_CYCLE: ("time_per_cycle_ms",), Mode.GLOBAL: ("total_time_ms",)}
TIME = Integer(MIN_TIME_MS, MAX_TIME_MS)
PARTICIPANT = Record(
    {
        "participant_id": Uuid(),
        "participant_index": Integer(0, MAX_INDEX),
        "total_time_ms": TIME,
        "group_id": Text(128),
    }
)
CREATE = Record(
    {
        "session_id": Uuid(),
        "sync_mode": Choice(Mode),
        "participants": List(PARTICIPANT, MAX_PARTICIPANTS, distinct="participant_id"),
        "total_time_ms": TIME,
        "time_per_cycle_ms": TIME,
        "increment_ms": Integer(0, MAX_INCREMENT_MS),
        "max_time_ms": TIME,
        "on_timeout": Choice(OnTimeout),
        "metadata": Object(MAX_METADATA_BYTES),
        "presence": Boolean(),
    },
    required=["sync_mode"],
)
MAX_SUBJECT_LENGTH = 16_384
"""No token that a request can carry has a longer one."""
DISCONNECT = Record({"subject": Text(MAX_SUBJECT_LENGTH)}, required=["subject"])


ADVANCE = Record({"ms": Integer(1, MAX_ADVANCE_MS)}, required=["ms"])


def advance(body: Any) -> int:
    """How many ms are to pass. Raises ValidationError with all that is wrong."""
    violations = Violations()
    fields = ADVANCE.read(body, "", violations)
    violations.raise_if_any()
    ms: int = fields["ms"]
    return ms


def spec(body: Any) -> Spec:
    """A request to create a session. Raises ValidationError with all that is wrong."""
    violations = Violations()
    fields = CREATE.read(body, "", violations)
    mode: Mode | None = fields["sync_mode"]
    participants = fields["participants"] or []
    if mode is not None:
        _check_mode(mode, fields, participants, violations)
    violations.raise_if_any()
    assert mode is not None
    return Spec(
        session_id=fields["session_id"] or "",
        mode=mode,
        on_timeout=fields["on_timeout"] or ALLOWED_ON_TIMEOUT[mode][0],
        participants=tuple(participant_of(each, index) for index, each in enumerate(participants)),
        total_time_ms=fields["total_time_ms"],
        time_per_cycle_ms=fields["time_per_cycle_ms"],
        increment_ms=fields["increment_ms"] or 0,
        max_time_ms=fields["max_time_ms"],
        metadata=fields["metadata"] or None,
        presence=fields["presence"] or False,
    )


def _check_mode(
    mode: Mode, fields: dict[str, Any], participants: list[dict[str, Any]], violations: Violations
) -> None:
    """What this mode needs beyond the shape of the request."""
    already_wrong = {violation.field for violation in violations.found}
    for name in NEEDED.get(mode, ()):
        if fields[name] is None and name not in already_wrong:
            violations.add(name, f"is required in {mode.value}", "required")
    if len(participants) < MIN_PARTICIPANTS[mode] and "participants" not in already_wrong:
        violations.add("participants", f"must have 1 to {MAX_PARTICIPANTS} items in {mode.value}", "length")
    for found in seat_violations(mode, participants):
        if found.field not in already_wrong:
            violations.add(found.field, found.message, found.code)
    on_timeout = fields["on_timeout"]
    if on_timeout is not None and on_timeout not in ALLOWED_ON_TIMEOUT[mode]:
        allowed = ", ".join(ALLOWED_ON_TIMEOUT[mode])
        violations.add("on_timeout", f"must be one of {allowed} in {mode.value}", "choice")


def check_message(body: Any, violations: Violations) -> None:
    """A message for a session's clients: an object with a type that is not one of the server's."""
    if not isinstance(body, dict):
        violations.add("body", "must be an object", "type")
    elif not isinstance(body.get("type"), str) or not body["type"]:
        violations.add("type", "must be a string that is not empty", "required")
    elif body["type"] in protocol_v1.SERVER_TYPES:
        violations.add("type", f"{body['type']} is the server's own", "reserved")
