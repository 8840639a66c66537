"""A session as the contract has it, from requests to states, both as JSON: a second opinion on the product.

It imports nothing of the product and spells out every rule once more.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from tests.support.request_model import (
    DAY_MS,
    MAX_PARTICIPANTS,
    NEEDS_SOMEBODY,
    POLICIES,
    Refusal,
    Refused,
    invalid,
    read,
    size_bytes,
    wrong_clocks,
)

CLOCK_KINDS = {
    "per_participant": "participant",
    "per_group": "group",
    "per_cycle": "cycle",
    "global": "session",
    "count_up": "elapsed",
}
BANK_MODES = ("per_participant", "per_group")
LASTING = ("pending", "running", "paused")
ENDED = ("expired", "completed", "cancelled")


class Request(NamedTuple):
    """What is asked: `create`, `delete` or a command, its body, and when."""

    name: str
    at_ms: int
    body: Any = None


class Version(NamedTuple):
    """One version: what its event tells, and the state (its `commit` is the committer's, here empty)."""

    at_ms: int
    type: str
    state: dict[str, Any]
    data: dict[str, Any] | None = None
    lap_ms: int | None = None
    expired_participant_id: str | None = None


class Answer(NamedTuple):
    """What came of a request: the versions made, and, if it is refused, any of these may be the answer."""

    versions: list[Version]
    refusals: frozenset[Refusal] = frozenset()


CONFLICT = Refusal("CONFLICT")
WRONG_STATUS = Refusal("INVALID_STATE_TRANSITION")


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


# --- the session ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Bank:
    """A clock of a participant, or of a whole group, whose members share it."""

    budget_ms: int | None
    left_ms: int | None
    is_out: bool = False

    @property
    def is_playable(self) -> bool:
        return bool(self.left_ms) and not self.is_out


@dataclass(eq=False)
class Seat:
    participant_id: str
    index: int
    group_id: str | None
    bank: Bank
    used_ms: int = 0
    turns: int = 0


@dataclass(eq=False)
class SessionModel:
    """One session of the contract. `versions` is its history; a refused command has settled what was due.

    Its clocks are kept as the contract's state has them: as of `since_ms`, the instant from which what runs
    is reckoned.
    """

    session_id: str
    epoch: str
    mode: str
    given: dict[str, Any]
    created_ms: int
    updated_ms: int
    metadata: dict[str, Any]
    seats: list[Seat] = field(default_factory=list)
    status: str = "pending"
    active: Seat | None = None
    clock_ms: int | None = None
    lap_elapsed_ms: int = 0
    laps: int = 0
    is_flagged: bool = False
    since_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    versions: list[Version] = field(default_factory=list)

    @classmethod
    def created(cls, body: Any, epoch: str, at_ms: int) -> "SessionModel":
        """Raises Refused."""
        said = read("create", body)
        mode = said["sync_mode"]
        it = cls(said["session_id"], epoch, mode, said, at_ms, at_ms, said.get("metadata", {}))
        for place, each in enumerate(said["participants"]):
            it._add(each, place)
        it.clock_ms = {
            "per_cycle": said.get("time_per_cycle_ms"),
            "global": said.get("total_time_ms"),
            "count_up": 0,
        }.get(mode)
        it._note("created", at_ms)
        return it

    @property
    def policy(self) -> str:
        policy: str = self.given.get("on_timeout", POLICIES[self.mode][0])
        return policy

    # Time

    @property
    def deadline_ms(self) -> int | None:
        if self.status != "running" or self.since_ms is None:
            return None
        if self.mode == "count_up":
            most_ms = self.given.get("max_time_ms")
            return None if most_ms is None else self.since_ms + most_ms - (self.clock_ms or 0)
        is_told = self.is_flagged if self.mode == "global" else self.active is None or self.active.bank.is_out
        return None if is_told else self.since_ms + self._reading()

    def settle(self, now_ms: int) -> None:
        while (deadline_ms := self.deadline_ms) is not None and deadline_ms <= now_ms:
            self._charge(deadline_ms)
            if self.mode == "global":
                self.is_flagged = True
            elif self.active is not None and self.mode != "count_up":
                self.active.bank.is_out = True
            if self.policy == "flag":
                self._note("flagged", deadline_ms)
            elif self.policy == "expire" or self.mode == "count_up":
                self._end("expired", deadline_ms)
                self._note("expired", deadline_ms)
            else:
                self._hand_on(self._next(), deadline_ms)
                self._note("expired" if self.status == "expired" else "advanced", deadline_ms)

    def _charge(self, now_ms: int) -> None:
        """Reckon what ran until now; it runs on from now."""
        if self.status != "running":
            return
        assert self.since_ms is not None
        ran_ms = max(0, now_ms - self.since_ms)
        self.since_ms = now_ms
        if self.active is not None:
            self.active.used_ms += ran_ms
        if self.mode == "count_up":
            self.clock_ms = (self.clock_ms or 0) + ran_ms
            self.lap_elapsed_ms += ran_ms
        elif self.mode in BANK_MODES:
            assert self.active is not None
            self.active.bank.left_ms = max(0, (self.active.bank.left_ms or 0) - ran_ms)
        else:
            self.clock_ms = max(0, (self.clock_ms or 0) - ran_ms)

    def _reading(self) -> int:
        if self.mode in BANK_MODES:
            return (self.active or self._in_order()[0]).bank.left_ms or 0
        return self.clock_ms or 0

    # Commands

    def obey(self, name: str, body: Any, at_ms: int) -> None:
        """Settle, then do what is asked. Raises Refused."""
        said = read(name, body)
        now_ms = max(at_ms, self.updated_ms)
        self.settle(now_ms)
        data, expected_version = said.pop("data", None), said.pop("expected_version", self.version)
        refusals = set(getattr(self, f"_refuse_{name}")(**said))
        if expected_version != self.version:
            refusals.add(CONFLICT)
        if name == "complete" and self.status == "completed":
            if data is not None:
                refusals.add(CONFLICT)
            if not refusals:
                return
        if refusals:
            raise Refused(refusals)
        told = getattr(self, f"_{name}")(now_ms, **said) or {}
        self._note(told.pop("type", PAST[name]), now_ms, data=data, **told)

    @property
    def version(self) -> int:
        return len(self.versions)

    def _unless(self, *statuses: str) -> set[Refusal]:
        return set() if self.status in statuses else {WRONG_STATUS}

    def _unknown(self, name: str, participant_id: str | None) -> set[Refusal]:
        known = participant_id is None or self._seated(participant_id) is not None
        return set() if known else {invalid(name)}

    def _refuse_start(self, participant_id: str | None = None) -> set[Refusal]:
        return self._unless("pending") | self._unknown("participant_id", participant_id)

    def _start(self, now_ms: int, participant_id: str | None = None) -> None:
        self.status, self.started_ms, self.since_ms = "running", now_ms, now_ms
        self.active = self._seated(participant_id) or next(iter(self._in_order()), None)

    def _refuse_switch(
        self, next_participant_id: str | None = None, expected_participant_id: str | None = None
    ) -> set[Refusal]:
        refusals = self._unless("running") | self._unknown("next_participant_id", next_participant_id)
        if not self.seats and self.mode == "global":
            refusals.add(Refusal("VALIDATION_ERROR", None))
        active_id = self.active and self.active.participant_id
        if expected_participant_id is not None and expected_participant_id != active_id:
            refusals.add(CONFLICT)
        heir = self._seated(next_participant_id)
        if self.mode in BANK_MODES and heir is not None and heir.bank.is_out:
            refusals.add(CONFLICT)
        return refusals

    def _switch(
        self,
        now_ms: int,
        next_participant_id: str | None = None,
        expected_participant_id: str | None = None,
    ) -> dict[str, Any]:
        self._charge(now_ms)
        ending, lap_ms = self.active, self.lap_elapsed_ms
        was_out = ending is not None and ending.bank.is_out
        self._hand_on(self._seated(next_participant_id) or self._next(), now_ms, is_earned=True)
        return {
            "type": "expired" if self.status == "expired" else "switched",
            "lap_ms": lap_ms if self.mode == "count_up" else None,
            "expired_participant_id": ending.participant_id if ending is not None and was_out else None,
        }

    def _refuse_pause(self) -> set[Refusal]:
        return self._unless("running")

    def _pause(self, now_ms: int) -> None:
        self._charge(now_ms)
        self.status, self.since_ms = "paused", None

    def _refuse_resume(self) -> set[Refusal]:
        return self._unless("paused")

    def _resume(self, now_ms: int) -> None:
        self.status, self.since_ms = "running", now_ms

    def _refuse_adjust(self, delta_ms: int, target: str | None = None) -> set[Refusal]:
        if self.mode == "count_up":
            return self._unless(*LASTING) | {Refusal("VALIDATION_ERROR", None)}
        fits = target is None if self.mode not in BANK_MODES else self._target(target) is not None
        return self._unless(*LASTING) | (set() if fits else {invalid("target")})

    def _adjust(self, now_ms: int, delta_ms: int, target: str | None = None) -> None:
        self._charge(now_ms)
        bank = self._target(target)
        if bank is not None:
            bank.left_ms = within_a_day(bank.left_ms or 0, delta_ms)
            bank.is_out = bank.is_out and bank.left_ms == 0
            return
        self.clock_ms = within_a_day(self.clock_ms or 0, delta_ms)
        if self.clock_ms > 0:
            self.is_flagged = False
            if self.mode == "per_cycle" and self.active is not None:
                self.active.bank.is_out = False

    def _target(self, target: str | None) -> Bank | None:
        if self.mode not in BANK_MODES or target is None:
            return None
        for seat in self.seats:
            if target == seat.participant_id or (self.mode == "per_group" and target == seat.group_id):
                return seat.bank
        return None

    def _refuse_complete(self) -> set[Refusal]:
        return self._unless(*LASTING, "completed")

    def _complete(self, now_ms: int) -> None:
        self._charge(now_ms)
        self._end("completed", now_ms)

    def _refuse_cancel(self) -> set[Refusal]:
        return self._unless("pending")

    def _cancel(self, now_ms: int) -> None:
        self._end("cancelled", now_ms)

    def _refuse_seat(self, participants: list[dict[str, Any]]) -> set[Refusal]:
        refusals = self._unless(*LASTING)
        if len(self.seats) + len(participants) > MAX_PARTICIPANTS:
            refusals.add(CONFLICT)
        if any(self._seated(each.get("participant_id")) for each in participants):
            refusals.add(CONFLICT)
        wrong, arguable = wrong_clocks(self.mode, participants, self._groups())
        if wrong:
            refusals |= {invalid(*wrong), invalid(*wrong, *arguable)}
        return refusals

    def _seat(self, now_ms: int, participants: list[dict[str, Any]]) -> None:
        for each in participants:
            highest = max((seat.index for seat in self.seats), default=-1)
            self._add(each, highest + 1)

    def _refuse_unseat(self, participant_id: str) -> set[Refusal]:
        refusals = self._unless(*LASTING) | self._unknown("participant_id", participant_id)
        seat = self._seated(participant_id)
        if seat is not None and (seat is self.active or (len(self.seats) == 1 and self._needs_somebody())):
            refusals.add(CONFLICT)
        return refusals

    def _unseat(self, now_ms: int, participant_id: str) -> None:
        self.seats = [seat for seat in self.seats if seat.participant_id != participant_id]

    def _refuse_annotate(self, metadata: dict[str, Any]) -> set[Refusal]:
        fits = size_bytes(merge_patch(self.metadata, metadata)) <= 4_096
        return set() if fits else {invalid("metadata")}

    def _annotate(self, now_ms: int, metadata: dict[str, Any]) -> None:
        self.metadata = merge_patch(self.metadata, metadata)

    # Turns and seats

    def _needs_somebody(self) -> bool:
        return self.mode in NEEDS_SOMEBODY

    def _groups(self) -> dict[str, Bank]:
        """The banks of the groups there are, where groups have one."""
        if self.mode != "per_group":
            return {}
        return {seat.group_id: seat.bank for seat in self.seats if seat.group_id is not None}

    def _add(self, said: dict[str, Any], default_index: int) -> None:
        group_id, time_ms = said.get("group_id"), said.get("total_time_ms")
        bank = self._groups().get(group_id) if group_id is not None else None
        self.seats.append(
            Seat(
                said["participant_id"],
                said.get("participant_index", default_index),
                group_id,
                bank or Bank(time_ms, time_ms),
            )
        )

    def _seated(self, participant_id: str | None) -> Seat | None:
        return next((seat for seat in self.seats if seat.participant_id == participant_id), None)

    def _in_order(self) -> list[Seat]:
        return sorted(self.seats, key=lambda seat: seat.index)

    def _next(self) -> Seat | None:
        order = self._in_order()
        if self.active is not None:
            place = order.index(self.active)
            order = order[place + 1 :] + order[: place + 1]
        return next((seat for seat in order if self.mode not in BANK_MODES or seat.bank.is_playable), None)

    def _hand_on(self, heir: Seat | None, now_ms: int, is_earned: bool = False) -> None:
        if self.mode == "count_up":
            self.laps, self.lap_elapsed_ms = self.laps + 1, 0
        ending, self.active = self.active, heir
        if ending is not None:
            ending.turns += 1
            if heir is None:
                self._end("expired", now_ms)
                return
            if (
                is_earned
                and self.mode in BANK_MODES
                and ending.bank is not heir.bank
                and not ending.bank.is_out
            ):
                ending.bank.left_ms = (ending.bank.left_ms or 0) + self.given.get("increment_ms", 0)
        if self.mode == "per_cycle":
            self.clock_ms = self.given["time_per_cycle_ms"]
            for seat in self.seats:
                seat.bank.is_out = False

    def _end(self, status: str, now_ms: int) -> None:
        self.status, self.active, self.since_ms, self.ended_ms = status, None, None, now_ms

    # What it looks like

    def _note(self, kind: str, at_ms: int, **told: Any) -> None:
        self.updated_ms = at_ms
        self.versions.append(Version(at_ms, kind, self._state(self.version + 1), **told))

    @property
    def state(self) -> dict[str, Any]:
        return self.versions[-1].state

    def _state(self, version: int) -> dict[str, Any]:
        clock = None
        if self.status not in ENDED:
            reading = "elapsed_ms" if self.mode == "count_up" else "remaining_ms"
            clock = {"kind": CLOCK_KINDS[self.mode], reading: self._reading()}
        state = {
            "session_id": self.session_id,
            "epoch": self.epoch,
            "version": version,
            "commit": "",
            "deadline_ms": self.deadline_ms,
            "sync_mode": self.mode,
            "status": self.status,
            **({"presence": True} if self.given.get("presence") else {}),
            "participants": [self._shown(seat) for seat in self.seats],
            "active_participant_id": self.active and self.active.participant_id,
            "total_time_ms": self.given.get("total_time_ms"),
            "time_per_cycle_ms": self.given.get("time_per_cycle_ms"),
            "increment_ms": self.given.get("increment_ms", 0),
            "clock": clock,
            "on_timeout": self.policy,
            "cycle_started_at": written(self.since_ms),
            "session_started_at": written(self.started_ms),
            "session_completed_at": written(self.ended_ms),
            "created_at": written(self.created_ms),
            "updated_at": written(self.updated_ms),
            "metadata": self.metadata,
        }
        if "max_time_ms" in self.given:
            state["max_time_ms"] = self.given["max_time_ms"]
        if self.mode == "count_up":
            state |= {"lap_count": self.laps, "lap_elapsed_ms": self.lap_elapsed_ms}
        if self.mode == "global":
            state["is_flagged"] = self.is_flagged
        return state

    def _shown(self, seat: Seat) -> dict[str, Any]:
        shown = {
            "participant_id": seat.participant_id,
            "participant_index": seat.index,
            "budget_ms": seat.bank.budget_ms,
            "total_time_ms": seat.bank.left_ms,
            "time_remaining_ms": seat.bank.left_ms,
            "time_used_ms": seat.used_ms,
            "cycle_count": seat.turns,
            "is_active": seat is self.active,
            "has_expired": seat.bank.is_out,
        }
        return shown if seat.group_id is None else shown | {"group_id": seat.group_id}


PAST = {
    "start": "started",
    "switch": "switched",
    "pause": "paused",
    "resume": "resumed",
    "adjust": "adjusted",
    "complete": "completed",
    "cancel": "cancelled",
    "seat": "seated",
    "unseat": "unseated",
    "annotate": "annotated",
}


def within_a_day(left_ms: int, delta_ms: int) -> int:
    """A clock after an adjustment: what increments gave beyond a day stays, and no gift adds to it."""
    return min(max(left_ms + delta_ms, 0), max(left_ms, DAY_MS))


def written(instant_ms: int | None) -> str | None:
    if instant_ms is None:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{instant_ms % 1000:03d}Z"


# --- an id and what becomes of it ----------------------------------------------------------------


class StoreModel:
    """A store of one id: what every request for it is answered, over deletions and creations anew."""

    def __init__(self) -> None:
        self.session: SessionModel | None = None

    def ask(self, request: Request, epoch: str) -> Answer:
        """`epoch` is that of the session which the request creates, if it does."""
        before = 0 if self.session is None else self.session.version
        refusals: frozenset[Refusal] = frozenset()
        try:
            self._do(request, epoch)
        except Refused as refused:
            refusals = refused.refusals
        if self.session is None:
            return Answer([], refusals)
        # Then somebody sweeps.
        self.session.settle(max(request.at_ms, self.session.updated_ms))
        return Answer(self.session.versions[before:], refusals)

    def _do(self, request: Request, epoch: str) -> None:
        if request.name == "delete":
            self.session = None
        elif request.name == "create":
            created = SessionModel.created(request.body, epoch, request.at_ms)
            if self.session is not None:
                raise Refused({Refusal("SESSION_EXISTS")})
            self.session = created
        elif self.session is None:
            read(request.name, request.body)
            raise Refused({Refusal("SESSION_NOT_FOUND")})
        else:
            self.session.obey(request.name, request.body, request.at_ms)
