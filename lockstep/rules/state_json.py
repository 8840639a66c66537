"""The one JSON form of a session: the same on REST, WebSocket and in the store."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import ujson
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from lockstep.rules.state import (
    BANK_MODES,
    CLOCK_KINDS,
    TERMINAL,
    Mode,
    OnTimeout,
    Participant,
    Session,
    Status,
)

EPOCH_PATTERN = "[0-9a-z]{13}"

# What /openapi.json says of a field beyond its type. Decoding checks the type alone.
EpochMs = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
Count = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
Version = Annotated[int, Meta(extra_json_schema={"minimum": 1})]
UuidText = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Epoch = Annotated[str, Meta(extra_json_schema={"pattern": f"^{EPOCH_PATTERN}$"})]
Commit = Annotated[str, Meta(extra_json_schema={"minLength": 8, "maxLength": 8})]
ClockKind = Annotated[str, Meta(extra_json_schema={"enum": sorted(set(CLOCK_KINDS.values()))})]
OnlyTrue = Annotated[bool, Meta(extra_json_schema={"const": True})]
Object = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]


class ParticipantJson(Struct):
    """A participant in JSON. A field that is UNSET is left out."""

    participant_id: UuidText
    participant_index: Count
    budget_ms: Count | None
    total_time_ms: Count | None
    time_remaining_ms: Count | None
    time_used_ms: Count
    cycle_count: Count
    is_active: bool
    has_expired: bool
    group_id: str | UnsetType = UNSET


class ClockJson(Struct):
    """The clock on show: what remains of it; in count_up, what has elapsed."""

    kind: ClockKind
    remaining_ms: Count | UnsetType = UNSET
    elapsed_ms: Count | UnsetType = UNSET


class StateJson(Struct):
    """A session in JSON; its first eight fields are read by their position elsewhere (wire/heads.py).

    A field has the value of the session's attribute of that name, or of that name with `_ms`; only
    participants, clock and instants (`..._at`) are converted. A field that is UNSET is left out. A new field
    comes last, with the session's own default, for states that were stored before it.
    """

    session_id: UuidText
    epoch: Epoch
    version: Version
    commit: Commit
    deadline_ms: Count | None
    mode: Mode = field(name="sync_mode")
    status: Status
    presence: OnlyTrue | UnsetType
    participants: list[ParticipantJson]
    active_participant_id: UuidText | None
    total_time_ms: Count | None
    time_per_cycle_ms: Count | None
    increment_ms: Count
    clock: ClockJson | None
    on_timeout: OnTimeout
    cycle_started_at: Instant | None
    started_at: Instant | None = field(name="session_started_at")
    completed_at: Instant | None = field(name="session_completed_at")
    created_at: Instant
    updated_at: Instant
    metadata: Object
    max_time_ms: Count | UnsetType | None = None
    lap_count: Count | UnsetType = 0
    lap_elapsed_ms: Count | UnsetType = 0
    is_flagged: bool | UnsetType = False


class _StoredState(StateJson, kw_only=True):
    """A state as it is decoded: with all that a Session has, under the same names."""

    participants: tuple[Participant, ...]  # type: ignore[assignment]
    presence: bool = False

    @property
    def active(self) -> int | None:
        active_id = self.active_participant_id
        if active_id is not None:
            for index, each in enumerate(self.participants):
                if each.participant_id == active_id:
                    return index
        return None

    @property
    def clock_ms(self) -> int | None:
        if self.clock is None or self.mode in BANK_MODES:
            return None
        shown_ms = self.clock.elapsed_ms if self.mode is Mode.COUNT_UP else self.clock.remaining_ms
        if shown_ms is UNSET:
            raise ValueError("a clock that shows nothing")
        return shown_ms


def _instants(names: Iterable[str]) -> tuple[int, ...]:
    return tuple(index for index, name in enumerate(names) if name.endswith(("_at", "_at_ms")))


# By which names, and in which order, a state takes its values from a session, and a session from a state:
# `started_at` is `started_at_ms` there.
_STATE_FIELDS = [n if hasattr(Session, n) else f"{n}_ms" for n in StateJson.__struct_fields__]
_SESSION_FIELDS = [
    n if hasattr(_StoredState, n) else n.removesuffix("_ms") for n in Session.__struct_fields__
]
_state_values, _state_instants = attrgetter(*_STATE_FIELDS), _instants(_STATE_FIELDS)
_session_values, _session_instants = attrgetter(*_SESSION_FIELDS), _instants(_SESSION_FIELDS)
_STATE_NAMES = StateJson.__struct_encode_fields__
_CLOCK = _STATE_NAMES.index("clock")
_APART = (_STATE_NAMES.index("participants"), _STATE_NAMES.index("metadata"))


@lru_cache(1024)  # a state has seven of them, and most are those of the state before
def iso(instant_ms: int | None) -> str | None:
    """2024-01-01T00:00:00.000Z"""
    if instant_ms is None:
        return None
    seconds, ms = divmod(instant_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{ms:03d}Z"


@lru_cache(1024)
def from_iso(text: str | None) -> int | None:
    if text is None:
        return None
    whole = datetime.fromisoformat(text[:19] + "+00:00")
    return int(whole.timestamp()) * 1000 + int(text[20:23])


_ENCODER = msgspec.json.Encoder()


def dumps(value: Any) -> bytes:
    """Compact JSON, as everything Lockstep sends or stores is written."""
    try:
        return _ENCODER.encode(value)
    except OverflowError:  # somebody's metadata, with integers of more than 64 bits
        builtins = msgspec.to_builtins(value)
        return ujson.dumps(builtins, ensure_ascii=False, escape_forward_slashes=False).encode()


def to_json(session: Session) -> bytes:
    return dumps(state_json(session))


def to_dict(session: Session) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(state_json(session))
    return data


def state_json(session: Session) -> StateJson:
    values = [*_state_values(session)]
    for index in _state_instants:
        values[index] = iso(values[index])
    state = StateJson(*values)
    state.participants = participants_json(session)
    state.clock = _clock_json(session)
    if not session.presence:
        state.presence = UNSET
    if session.max_time_ms is None:
        state.max_time_ms = UNSET
    if session.mode is not Mode.COUNT_UP:
        state.lap_count = state.lap_elapsed_ms = UNSET
    if session.mode is not Mode.GLOBAL:
        state.is_flagged = UNSET
    return state


def state_differences(before: Session, after: Session) -> dict[str, Any]:
    """The fields of the state, by their names in JSON, that moved; but for `participants` and `metadata`."""
    differences: dict[str, Any] = {}
    for index, (old, new) in enumerate(zip(_state_values(before), _state_values(after), strict=True)):
        if index == _CLOCK:
            clock = _clock_json(after)
            if clock != _clock_json(before):
                differences["clock"] = msgspec.to_builtins(clock)
        elif index not in _APART and new != old:
            differences[_STATE_NAMES[index]] = iso(new) if index in _state_instants else new
    return differences


def _clock_json(session: Session) -> ClockJson | None:
    if session.status in TERMINAL:
        return None
    kind, shown_ms = CLOCK_KINDS[session.mode], session.running_clock_ms
    if session.mode is Mode.COUNT_UP:
        return ClockJson(kind, elapsed_ms=shown_ms)
    return ClockJson(kind, remaining_ms=shown_ms)


def participants_json(session: Session) -> list[ParticipantJson]:
    active = session.active
    return [participant_json(each, index == active) for index, each in enumerate(session.participants)]


def participant_json(participant: Participant, is_active: bool) -> ParticipantJson:
    return ParticipantJson(
        participant.participant_id,
        participant.participant_index,
        participant.budget_ms,
        participant.remaining_ms,
        participant.remaining_ms,
        participant.used_ms,
        participant.cycle_count,
        is_active,
        participant.has_expired,
        UNSET if participant.group_id is None else participant.group_id,
    )


_DECODER = msgspec.json.Decoder(_StoredState)


def from_json(raw: bytes) -> Session:
    """The inverse of `to_json`. Raises ValueError on what is not a state."""
    try:
        state = _DECODER.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    state.metadata = ujson.loads(bytes(state.metadata))  # which has anybody's numbers, of any size
    values = [*_session_values(state)]
    for index in _session_instants:
        values[index] = from_iso(values[index])
    return Session(*values)
