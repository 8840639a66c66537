"""How each mode's clock is charged, rewarded and handed on. Pure; the rules in engine.py call these."""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from lockstep.rules.state import BANK_MODES, Mode, Participant, Session

MAX_TIME_MS = 86_400_000


def seated(session: Session, place: int, holder: Participant, **changes: Any) -> Session:
    """The session with `holder` at `place`, and other `changes`; in per_group its bank is its group's."""
    seats = (*session.participants[:place], holder, *session.participants[place + 1 :])
    if session.mode is Mode.PER_GROUP:
        bank_ms, out = holder.remaining_ms, holder.has_expired
        seats = tuple(
            replace(p, remaining_ms=bank_ms, has_expired=out)
            if p.group_id == holder.group_id and (p.remaining_ms != bank_ms or p.has_expired is not out)
            else p
            for p in seats
        )
    return replace(session, participants=seats, **changes)


def charge(session: Session, now_ms: int) -> Session:
    """Account for what ran since `cycle_started_at`, and reckon from `now_ms` on."""
    if session.cycle_started_at_ms is None:
        return session
    # A clock that steps backwards must not give time back.
    elapsed = max(0, now_ms - session.cycle_started_at_ms)
    changes: dict[str, Any] = {"cycle_started_at_ms": now_ms}
    if session.mode is Mode.COUNT_UP:
        changes["clock_ms"] = session.running_clock_ms + elapsed
        changes["lap_elapsed_ms"] = session.lap_elapsed_ms + elapsed
    elif session.clock_ms is not None:
        changes["clock_ms"] = max(0, session.clock_ms - elapsed)
    active = session.active_participant
    if active is None or session.active is None:
        return replace(session, **changes)
    # All of a turn counts as used, also what passes after a flag, when the bank is 0 already.
    left_ms = active.remaining_ms
    if session.mode in BANK_MODES and left_ms is not None:
        left_ms = max(0, left_ms - elapsed)
    charged = replace(active, used_ms=active.used_ms + elapsed, remaining_ms=left_ms)
    return seated(session, session.active, charged, **changes)


def mark_run_out(session: Session, has_run_out: bool = True) -> Session:
    """Say that the running clock has run out, where the mode has somebody or something to say it of."""
    if session.mode is Mode.GLOBAL:
        return replace(session, is_flagged=has_run_out)
    active = session.active_participant
    if session.mode is Mode.COUNT_UP or active is None or session.active is None:
        return session
    return seated(session, session.active, replace(active, has_expired=has_run_out))


def end_turn(session: Session, heir: int | None) -> Session:
    """Reward the active participant (Fischer) and count the turn. `heir` is None when nobody follows."""
    ending = session.active_participant
    if ending is None or session.active is None:
        return session
    bank_ms = ending.remaining_ms
    if _earns_increment(session, ending, heir) and bank_ms is not None:
        bank_ms += session.increment_ms
    ended = replace(ending, cycle_count=ending.cycle_count + 1, remaining_ms=bank_ms)
    return seated(session, session.active, ended)


def _earns_increment(session: Session, ending: Participant, heir: int | None) -> bool:
    if session.mode not in BANK_MODES or ending.has_expired or heir is None:
        return False
    # Only a turn that passes to somebody else is rewarded, and within a group the bank runs on.
    if heir == session.active:
        return False
    return session.mode is Mode.PER_PARTICIPANT or session.participants[heir].group_id != ending.group_id


def begin_turn(session: Session, heir: int | None, now_ms: int) -> Session:
    """The next turn (in count_up: lap) begins at `now_ms`."""
    session = replace(session, active=heir, cycle_started_at_ms=now_ms)
    if session.mode is Mode.COUNT_UP:
        return replace(session, lap_count=session.lap_count + 1, lap_elapsed_ms=0)
    if session.mode is Mode.PER_CYCLE:
        # Nobody is ever out: an expired cycle is forgotten when the next one begins.
        seats = tuple(replace(p, has_expired=False) if p.has_expired else p for p in session.participants)
        return replace(session, clock_ms=session.time_per_cycle_ms, participants=seats)
    return session


def is_out(session: Session, participant: Participant) -> bool:
    """True if the participant's own clock has expired, so that no turn may be given to it."""
    return session.mode in BANK_MODES and participant.has_expired


def next_with_time(session: Session) -> int | None:
    """Who follows by participant_index (stable, cyclic); the one whose turn ends is tried last."""
    for place in _turn_order(session):
        participant = session.participants[place]
        if session.mode not in BANK_MODES or (participant.remaining_ms and not participant.has_expired):
            return place
    return None


def _turn_order(session: Session) -> Iterator[int]:
    seats = session.participants
    order = sorted(range(len(seats)), key=lambda place: seats[place].participant_index)
    after = 0 if session.active is None else order.index(session.active) + 1
    yield from order[after:]
    yield from order[:after]
