"""The rules of time: from a session and an instant to a step. Nothing here asks what time it is.

`decide` settles first: what fell due before the instant happens before it, dated at its own deadline. So a
rule is given a settled session, and an instant that is never before what has already happened. Equal
arguments give equal answers; a rule that refuses raises and has changed nothing.
"""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lockstep.errors import Conflict, LockstepError, PreconditionFailed
from lockstep.rules.modes import (
    MAX_TIME_MS,
    begin_turn,
    charge,
    end_turn,
    is_out,
    mark_run_out,
    next_with_time,
    seated,
)
from lockstep.rules.refusals import invalid, place_of, require_status
from lockstep.rules.state import (
    BANK_MODES,
    MAX_METADATA_BYTES,
    NOT_ENDED,
    Mode,
    OnTimeout,
    Participant,
    Session,
    Status,
)
from lockstep.rules.state_json import dumps
from lockstep.rules.steps import Guard, Rule, Step, Transition

# More in one commit would hold the loop, and the store, for too long.
MAX_SETTLED = 500


# --- what happens by itself ----------------------------------------------------------------------


def next_event(session: Session) -> tuple[int, Rule] | None:
    """What happens next if nobody does anything: its instant, and the rule that makes it happen."""
    deadline_ms = session.deadline_ms
    return None if deadline_ms is None else (deadline_ms, _run_out)


def is_due(session: Session, now_ms: int) -> bool:
    """Has the next event's instant come? A clock that stepped back makes nothing undone."""
    event = next_event(session)
    return event is not None and event[0] <= max(now_ms, session.updated_at_ms)


def settle(session: Session, now_ms: int, limit: int = MAX_SETTLED) -> Step:
    """Let happen what is due by `now_ms`, in order, at most `limit` events."""
    step = Step(session)
    for _ in range(limit):
        event = next_event(step.session)
        if event is None or event[0] > max(now_ms, step.session.updated_at_ms):
            break
        at_ms, rule = event
        step = step.followed_by(rule(step.session, at_ms))
    return step


def _run_out(session: Session, at_ms: int) -> Step:
    """The running clock reaches its end."""
    step, spent = Step(session), mark_run_out(charge(session, at_ms))
    if spent.on_timeout is OnTimeout.FLAG:
        return step.then(spent, "flagged", at_ms)
    if spent.on_timeout is OnTimeout.EXPIRE:
        return step.then(_end(spent, Status.EXPIRED, at_ms), "expired", at_ms)
    heir = next_with_time(spent)
    ended = end_turn(spent, heir)
    if heir is None:
        return step.then(_end(ended, Status.EXPIRED, at_ms), "expired", at_ms)
    return step.then(begin_turn(ended, heir, at_ms), "advanced", at_ms)


class Decision(Struct, frozen=True):
    """What becomes of a session: what fell due, then what was asked for, unless that is refused.

    The first `settled` of the step's transitions happened by themselves. Where more fell due than fits one
    commit, `is_settled` is False, and what was asked for has not been looked at.
    """

    step: Step
    settled: int
    is_settled: bool = True
    refusal: LockstepError | None = None


def decide(session: Session, now_ms: int, rule: Rule, guards: Iterable[Guard] = ()) -> Decision:
    """Settle the session, then apply the rule, unless a guard or the rule itself refuses."""
    now_ms = max(now_ms, session.updated_at_ms)
    step = settle(session, now_ms)
    settled = len(step.transitions)
    if settled and is_due(step.session, now_ms):
        return Decision(step, settled, is_settled=False)
    try:
        for guard in guards:
            guard(step.session)
        return Decision(step.followed_by(rule(step.session, now_ms)), settled)
    except LockstepError as error:
        return Decision(step, settled, refusal=error)


def _end(session: Session, status: Status, now_ms: int) -> Session:
    charged = charge(session, now_ms)
    return replace(
        charged, status=status, active=None, clock_ms=None, cycle_started_at_ms=None, completed_at_ms=now_ms
    )


# --- what somebody asks for ----------------------------------------------------------------------


class Spec(Struct, frozen=True):
    """A validated request to create a session. Ids that are empty are made by `Sessions.create`."""

    session_id: str
    mode: Mode
    on_timeout: OnTimeout
    participants: tuple[Participant, ...]
    total_time_ms: int | None = None
    time_per_cycle_ms: int | None = None
    increment_ms: int = 0
    max_time_ms: int | None = None
    metadata: dict[str, Any] | None = None
    presence: bool = False


def create(spec: Spec, epoch: str, now_ms: int) -> Step:
    clock_ms = {
        Mode.PER_CYCLE: spec.time_per_cycle_ms,
        Mode.GLOBAL: spec.total_time_ms,
        Mode.COUNT_UP: 0,
    }.get(spec.mode)
    session = Session(
        session_id=spec.session_id,
        epoch=epoch,
        version=1,
        mode=spec.mode,
        status=Status.PENDING,
        on_timeout=spec.on_timeout,
        participants=spec.participants,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        total_time_ms=spec.total_time_ms,
        time_per_cycle_ms=spec.time_per_cycle_ms,
        increment_ms=spec.increment_ms,
        max_time_ms=spec.max_time_ms,
        clock_ms=clock_ms,
        metadata=spec.metadata or {},
        presence=spec.presence,
    )
    return Step(session, (Transition(session, "created", now_ms),))


def start(session: Session, now_ms: int, *, participant_id: str | None = None) -> Step:
    """Begin the first turn: of the given participant, or of the first by participant_index."""
    require_status(session, {Status.PENDING}, "cannot be started")
    first: int | None
    if participant_id is not None:
        first = place_of(session, participant_id, "participant_id")
    else:
        seats = session.participants
        first = min(range(len(seats)), key=lambda place: seats[place].participant_index, default=None)
    started = replace(
        session, status=Status.RUNNING, active=first, cycle_started_at_ms=now_ms, started_at_ms=now_ms
    )
    return Step(session).then(started, "started", now_ms)


def switch(
    session: Session,
    now_ms: int,
    *,
    next_participant_id: str | None = None,
    expected_participant_id: str | None = None,
) -> Step:
    """Stop the active participant's clock and start the next one's; in count_up, also end the lap.

    The turn passes to the named participant, or to the next with time left; when nobody has any,
    the session expires. Where nobody is active yet it begins the first turn. Raises Conflict if somebody
    else than `expected_participant_id` is active.
    """
    require_status(session, {Status.RUNNING}, "not running")
    ending = session.active_participant
    active_id = ending and ending.participant_id
    if expected_participant_id is not None and active_id != expected_participant_id:
        raise Conflict(f"Participant {expected_participant_id} is not the active one")
    named = None
    if next_participant_id is not None:
        named = place_of(session, next_participant_id, "next_participant_id")
        if is_out(session, session.participants[named]):
            raise Conflict(f"The clock of participant {next_participant_id} has expired")
    if not session.participants and session.mode is Mode.GLOBAL:
        raise invalid(
            "sync_mode", "A global session without participants has no turns to switch", "not_allowed"
        )
    charged = charge(session, now_ms)
    lap_ms = charged.lap_elapsed_ms if session.mode is Mode.COUNT_UP else None
    ended_expired = ending.participant_id if ending is not None and ending.has_expired else None
    heir = named if named is not None else next_with_time(charged)
    ended = end_turn(charged, heir)
    if heir is None and ending is not None:
        over = _end(ended, Status.EXPIRED, now_ms)
        return Step(session).then(over, "expired", now_ms, ended_expired=ended_expired)
    begun = begin_turn(ended, heir, now_ms)
    return Step(session).then(begun, "switched", now_ms, lap_ms=lap_ms, ended_expired=ended_expired)


def pause(session: Session, now_ms: int) -> Step:
    """Stand still; the same turn goes on at resume."""
    require_status(session, {Status.RUNNING}, "cannot be paused")
    charged = charge(session, now_ms)
    return Step(session).then(
        replace(charged, status=Status.PAUSED, cycle_started_at_ms=None), "paused", now_ms
    )


def resume(session: Session, now_ms: int) -> Step:
    require_status(session, {Status.PAUSED}, "cannot be resumed")
    return Step(session).then(
        replace(session, status=Status.RUNNING, cycle_started_at_ms=now_ms), "resumed", now_ms
    )


def adjust(session: Session, now_ms: int, *, delta_ms: int, target: str | None = None) -> Step:
    """Give or take time: of a bank (`target`: whose), or of the one clock of the session (no target)."""
    require_status(session, NOT_ENDED, "cannot be adjusted")
    if session.mode is Mode.COUNT_UP:
        raise invalid("sync_mode", "A count_up session has no time to adjust", "not_allowed")
    place = _adjusted_bank(session, target)
    charged = charge(session, now_ms)
    if place is None:
        assert charged.clock_ms is not None
        changed = replace(charged, clock_ms=_adjusted(charged.clock_ms, delta_ms))
        if changed.clock_ms and changed.has_run_out:
            changed = mark_run_out(changed, False)
    else:
        holder = charged.participants[place]
        assert holder.remaining_ms is not None
        bank_ms = _adjusted(holder.remaining_ms, delta_ms)
        still_out = holder.has_expired and bank_ms == 0
        changed = seated(charged, place, replace(holder, remaining_ms=bank_ms, has_expired=still_out))
    return Step(session).then(changed, "adjusted", now_ms)


def complete(session: Session, now_ms: int) -> Step:
    """End the session; a completed one stays as it is and nothing is refused."""
    if session.status is Status.COMPLETED:
        return Step(session)
    require_status(session, NOT_ENDED, "cannot be completed")
    return Step(session).then(_end(session, Status.COMPLETED, now_ms), "completed", now_ms)


def cancel(session: Session, now_ms: int) -> Step:
    require_status(session, {Status.PENDING}, "cannot be cancelled")
    return Step(session).then(_end(session, Status.CANCELLED, now_ms), "cancelled", now_ms)


def annotate(session: Session, now_ms: int, *, metadata: dict[str, Any]) -> Step:
    """Merge a patch into the metadata (RFC 7396), whatever the status; a version also where nothing moves."""
    patched = _patched(session.metadata, metadata)
    if len(dumps(patched)) > MAX_METADATA_BYTES:
        raise invalid("metadata", f"must leave at most {MAX_METADATA_BYTES} bytes as JSON", "length")
    return Step(session).then(replace(session, metadata=patched), "annotated", now_ms)


def _patched(target: Any, patch: dict[str, Any]) -> dict[str, Any]:
    patched = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            patched.pop(name, None)
        elif isinstance(value, dict):
            patched[name] = _patched(patched.get(name), value)
        else:
            patched[name] = value
    return patched


def at_version(version: int) -> Guard:
    """Refuses what its sender did not see: `expected_version`."""

    def guard(session: Session) -> None:
        if session.version != version:
            raise Conflict(f"Session {session.session_id} is at version {session.version}, not {version}")

    return guard


def as_tagged(tags: frozenset[str]) -> Guard:
    """The same by the tags of an If-Match."""

    def guard(session: Session) -> None:
        if not session.is_one_of(tags):
            raise not_as_tagged(session)

    return guard


def not_as_tagged(session: Session) -> PreconditionFailed:
    return PreconditionFailed(
        f"Session {session.session_id} is at version {session.version}, not as If-Match says"
    )


def _adjusted_bank(session: Session, target: str | None) -> int | None:
    """The place of the bank that `target` names; None for the session's one clock."""
    if session.mode not in BANK_MODES:
        if target is not None:
            raise invalid(
                "target", f"A {session.mode.value} session has one clock: give no target", "not_allowed"
            )
        return None
    if target is None:
        raise invalid("target", f"A {session.mode.value} session needs a target", "required")
    if session.mode is Mode.PER_GROUP:
        for place, participant in enumerate(session.participants):
            if participant.group_id == target:
                return place
    return place_of(session, target.lower(), "target")


def _adjusted(clock_ms: int, delta_ms: int) -> int:
    """A clock stops at 0 and at a day; one that increments have taken beyond it loses nothing by a gift."""
    return max(0, min(clock_ms + delta_ms, max(clock_ms, MAX_TIME_MS)))
