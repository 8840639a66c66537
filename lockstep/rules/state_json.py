"""The one JSON form of a session: the same on REST, WebSocket and in the store."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
import ujson
from msgspec import Raw, Struct

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


def top_level(session: Session) -> dict[str, Any]:
    """All of the JSON form but the participants; the first five keys are sliced by position elsewhere."""
    active = session.active_participant
    data: dict[str, Any] = {
        "session_id": session.session_id,
        "epoch": session.epoch,
        "version": session.version,
        "commit": session.commit,
        "deadline_ms": session.deadline_ms,
        "sync_mode": session.mode.value,
        "status": session.status.value,
        "participants": None,
        "active_participant_id": active and active.participant_id,
        "total_time_ms": session.total_time_ms,
        "time_per_cycle_ms": session.time_per_cycle_ms,
        "increment_ms": session.increment_ms,
        "clock": None,
        "on_timeout": session.on_timeout.value,
        "cycle_started_at": iso(session.cycle_started_at_ms),
        "session_started_at": iso(session.started_at_ms),
        "session_completed_at": iso(session.completed_at_ms),
        "created_at": iso(session.created_at_ms),
        "updated_at": iso(session.updated_at_ms),
        "metadata": session.metadata,
    }
    if session.status not in TERMINAL:
        reading = "elapsed_ms" if session.mode is Mode.COUNT_UP else "remaining_ms"
        data["clock"] = {"kind": CLOCK_KINDS[session.mode], reading: session.running_clock_ms}
    if session.max_time_ms is not None:
        data["max_time_ms"] = session.max_time_ms
    if session.mode is Mode.COUNT_UP:
        data["lap_count"] = session.lap_count
        data["lap_elapsed_ms"] = session.lap_elapsed_ms
    elif session.mode is Mode.GLOBAL:
        data["is_flagged"] = session.is_flagged
    return data


def participant_to_dict(participant: Participant, is_active: bool) -> dict[str, Any]:
    data = {
        "participant_id": participant.participant_id,
        "participant_index": participant.participant_index,
        "budget_ms": participant.budget_ms,
        "total_time_ms": participant.remaining_ms,
        "time_remaining_ms": participant.remaining_ms,
        "time_used_ms": participant.used_ms,
        "cycle_count": participant.cycle_count,
        "is_active": is_active,
        "has_expired": participant.has_expired,
    }
    if participant.group_id is not None:
        data["group_id"] = participant.group_id
    return data


def participants_to_list(session: Session) -> list[dict[str, Any]]:
    active = session.active
    return [participant_to_dict(p, place == active) for place, p in enumerate(session.participants)]


def to_dict(session: Session) -> dict[str, Any]:
    data = top_level(session)
    data["participants"] = participants_to_list(session)
    return data


_ENCODER = msgspec.json.Encoder()


def dumps(value: Any) -> bytes:
    """Compact JSON, as everything Lockstep sends or stores is written."""
    try:
        return _ENCODER.encode(value)
    except OverflowError:  # somebody's metadata, with integers of more than 64 bits
        return ujson.dumps(value, ensure_ascii=False, escape_forward_slashes=False).encode()


def to_json(session: Session) -> bytes:
    return dumps(to_dict(session))


class _Seat(Struct):
    """A participant as it is stored: what the rules need of it."""

    participant_id: str
    participant_index: int
    budget_ms: int | None
    total_time_ms: int | None
    time_used_ms: int
    cycle_count: int
    is_active: bool
    has_expired: bool
    group_id: str | None = None


class _Clock(Struct):
    remaining_ms: int | None = None
    elapsed_ms: int | None = None


class _Stored(Struct):
    """A session as it is stored: what the rules need of it."""

    session_id: str
    epoch: str
    version: int
    commit: str
    sync_mode: Mode
    status: Status
    participants: list[_Seat]
    total_time_ms: int | None
    time_per_cycle_ms: int | None
    increment_ms: int
    clock: _Clock | None
    on_timeout: OnTimeout
    cycle_started_at: str | None
    session_started_at: str | None
    session_completed_at: str | None
    created_at: str
    updated_at: str
    metadata: Raw
    max_time_ms: int | None = None
    lap_count: int = 0
    lap_elapsed_ms: int = 0
    is_flagged: bool = False


_DECODER = msgspec.json.Decoder(_Stored)


def from_json(raw: bytes) -> Session:
    """The inverse of `to_json`. Raises ValueError on what is not a state."""
    try:
        stored = _DECODER.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    active, clock_ms = None, None
    participants = []
    for place, each in enumerate(stored.participants):
        if each.is_active:
            active = place
        participants.append(
            Participant(
                each.participant_id,
                each.participant_index,
                each.budget_ms,
                each.total_time_ms,
                each.time_used_ms,
                each.cycle_count,
                each.has_expired,
                each.group_id,
            )
        )
    mode, clock = stored.sync_mode, stored.clock
    if clock is not None and mode not in BANK_MODES:
        clock_ms = clock.elapsed_ms if mode is Mode.COUNT_UP else clock.remaining_ms
        if clock_ms is None:
            raise ValueError("a clock that shows nothing")
    created_at_ms, updated_at_ms = from_iso(stored.created_at), from_iso(stored.updated_at)
    assert created_at_ms is not None
    assert updated_at_ms is not None
    return Session(
        session_id=stored.session_id,
        epoch=stored.epoch,
        version=stored.version,
        mode=mode,
        status=stored.status,
        on_timeout=stored.on_timeout,
        participants=tuple(participants),
        created_at_ms=created_at_ms,
        updated_at_ms=updated_at_ms,
        commit=stored.commit,
        active=active,
        total_time_ms=stored.total_time_ms,
        time_per_cycle_ms=stored.time_per_cycle_ms,
        increment_ms=stored.increment_ms,
        max_time_ms=stored.max_time_ms,
        clock_ms=clock_ms,
        lap_count=stored.lap_count,
        lap_elapsed_ms=stored.lap_elapsed_ms,
        is_flagged=stored.is_flagged,
        cycle_started_at_ms=from_iso(stored.cycle_started_at),
        started_at_ms=from_iso(stored.session_started_at),
        completed_at_ms=from_iso(stored.session_completed_at),
        # Anybody's numbers, of any size.
        metadata=ujson.loads(bytes(stored.metadata)),
    )
