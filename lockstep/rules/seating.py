"""Who sits at a session: what its mode needs of them, and how they come and leave later."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from lockstep.errors import Conflict, ValidationError, Violation
from lockstep.rules.refusals import place_of, require_status
from lockstep.rules.state import NOT_ENDED, Mode, Participant, Session
from lockstep.rules.steps import Step

MAX_PARTICIPANTS = 1000
MIN_PARTICIPANTS = {mode: 0 if mode in (Mode.GLOBAL, Mode.COUNT_UP) else 1 for mode in Mode}
MAX_INDEX = 2**53 - 1
"""Above it numbers are no longer exact in JavaScript."""
NEEDED_OF_EACH = {Mode.PER_PARTICIPANT: ("total_time_ms",), Mode.PER_GROUP: ("total_time_ms", "group_id")}
"""Which fields a mode needs of each participant."""

Newcomer = Mapping[str, Any]
"""What a request says of a participant, by the names in JSON; None where it does not."""


def participant_of(newcomer: Newcomer, default_index: int) -> Participant:
    index = newcomer["participant_index"]
    return Participant(
        participant_id=newcomer["participant_id"] or "",
        participant_index=default_index if index is None else index,
        budget_ms=newcomer["total_time_ms"],
        remaining_ms=newcomer["total_time_ms"],
        group_id=newcomer["group_id"],
    )


def seat_violations(
    mode: Mode, newcomers: Sequence[Newcomer], groups: Collection[str | None] = ()
) -> Iterator[Violation]:
    """What the mode misses in them. `groups` are those that have their bank already."""
    banks: dict[str, int] = {}
    for index, newcomer in enumerate(newcomers):
        path = f"participants.{index}"
        group, bank_ms = newcomer["group_id"], newcomer["total_time_ms"]
        if mode is Mode.PER_GROUP and group in groups:
            if bank_ms is not None:
                yield Violation(
                    f"{path}.total_time_ms", "is that of the group, which is there", "not_allowed"
                )
            continue
        for name in NEEDED_OF_EACH.get(mode, ()):
            if newcomer[name] is None:
                yield Violation(f"{path}.{name}", f"is required in {mode.value}", "required")
        if mode is not Mode.PER_GROUP or group is None or bank_ms is None:
            continue
        if banks.setdefault(group, bank_ms) != bank_ms:
            yield Violation(f"{path}.total_time_ms", "must be the same in the whole group", "group")


def seat(session: Session, now_ms: int, *, participants: Sequence[Newcomer]) -> Step:
    """Newcomers at the end, all of them or none. No clock is charged, and nobody's turn begins.

    In per_group who comes to a group that is there takes its bank, with its budget and its expiry.
    """
    require_status(session, NOT_ENDED, "cannot seat anybody")
    groups = {each.group_id: each for each in session.participants if session.mode is Mode.PER_GROUP}
    violations = [*seat_violations(session.mode, participants, groups)]
    if violations:
        raise ValidationError(violations)
    known = {each.participant_id for each in session.participants}
    for newcomer in participants:
        if newcomer["participant_id"] in known:
            raise Conflict(f"Participant {newcomer['participant_id']} is seated already")
    if len(known) + len(participants) > MAX_PARTICIPANTS:
        raise Conflict(
            f"Session {session.session_id} has {len(known)} participants, and {MAX_PARTICIPANTS} at most"
        )
    seats = [*session.participants]
    last_index = max((each.participant_index for each in seats), default=-1)
    for newcomer in participants:
        seated = participant_of(newcomer, min(last_index + 1, MAX_INDEX))
        last_index = max(last_index, seated.participant_index)
        member = groups.get(seated.group_id)
        if member is not None:
            seated = replace(
                seated,
                budget_ms=member.budget_ms,
                remaining_ms=member.remaining_ms,
                has_expired=member.has_expired,
            )
        seats.append(seated)
    return Step(session).then(replace(session, participants=tuple(seats)), "seated", now_ms)


def unseat(session: Session, now_ms: int, *, participant_id: str) -> Step:
    """One leaves, whose turn it is not; a group's bank goes with its last member. No clock is charged."""
    require_status(session, NOT_ENDED, "cannot unseat anybody")
    place = place_of(session, participant_id, "participant_id")
    if place == session.active:
        raise Conflict(f"It is the turn of participant {participant_id}")
    if len(session.participants) <= MIN_PARTICIPANTS[session.mode]:
        raise Conflict(f"A {session.mode.value} session needs a participant: {participant_id} is the last")
    active = session.active
    if active is not None and active > place:
        active -= 1
    seats = (*session.participants[:place], *session.participants[place + 1 :])
    return Step(session).then(replace(session, participants=seats, active=active), "unseated", now_ms)
