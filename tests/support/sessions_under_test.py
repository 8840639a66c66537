"""Sessions for tests: short ways to make one, and a second opinion on what becomes of it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from lockstep.rules.engine import Spec
from lockstep.rules.state import Mode, OnTimeout, Participant, Session
from tests.support import settled_rules as engine

T0 = 1_704_067_200_000
"""2024-01-01T00:00:00.000Z"""

DAY = 86_400_000
SESSION = "00000000-0000-4000-8000-00000000005e"
EPOCH = "0lqtw8xc0abcd"
A, B, C, D, E = (f"{letter * 8}-0000-4000-8000-000000000000" for letter in "abcde")
NOBODY = "99999999-0000-4000-8000-000000000000"

DEFAULT_POLICY = {
    Mode.PER_PARTICIPANT: OnTimeout.FLAG,
    Mode.PER_GROUP: OnTimeout.FLAG,
    Mode.PER_CYCLE: OnTimeout.ADVANCE,
    Mode.GLOBAL: OnTimeout.EXPIRE,
    Mode.COUNT_UP: OnTimeout.EXPIRE,
}


# --- by hand -------------------------------------------------------------------------------------

# What `pending` and `running` take for a session of each kind.
TEAMS: dict[str, Any] = {"mode": Mode.PER_GROUP, "groups": ("red", "red", "blue")}
ROUNDS: dict[str, Any] = {"mode": Mode.PER_CYCLE, "time_per_cycle_ms": 10_000}
EXAM: dict[str, Any] = {"mode": Mode.GLOBAL, "total_time_ms": 60_000}
LAPS: dict[str, Any] = {"mode": Mode.COUNT_UP}


def pending(
    *banks_ms: int | None,
    mode: Mode = Mode.PER_PARTICIPANT,
    on_timeout: OnTimeout | None = None,
    groups: tuple[str, ...] | None = None,
    order: tuple[int, ...] | None = None,
    **fields: Any,
) -> Session:
    """A session of participants A, B, C ... with these banks, created at T0.

    `groups` and `order` (participant_index) are by place; `fields` are those of a Spec.
    """
    seats = tuple(
        Participant(
            participant_id=(A, B, C, D, E)[place],
            participant_index=order[place] if order else place,
            budget_ms=bank_ms,
            remaining_ms=bank_ms,
            group_id=groups[place] if groups else None,
        )
        for place, bank_ms in enumerate(banks_ms)
    )
    spec = Spec(
        session_id=SESSION,
        mode=mode,
        on_timeout=on_timeout or DEFAULT_POLICY[mode],
        participants=seats,
        **fields,
    )
    return engine.create(spec, EPOCH, T0).session


def running(*banks_ms: int | None, **fields: Any) -> Session:
    """The same, started at T0."""
    return engine.start(pending(*banks_ms, **fields), T0).session


def remaining(session: Session) -> tuple[int | None, ...]:
    return tuple(p.remaining_ms for p in session.participants)


def used(session: Session) -> tuple[int, ...]:
    return tuple(p.used_ms for p in session.participants)


def turns(session: Session) -> tuple[int, ...]:
    return tuple(p.cycle_count for p in session.participants)


def expired(session: Session) -> tuple[bool, ...]:
    return tuple(p.has_expired for p in session.participants)


def active(session: Session) -> str | None:
    return None if session.active_participant is None else session.active_participant.participant_id


# --- a second opinion ----------------------------------------------------------------------------


class Refused(Exception):
    """The codes with which the contract allows to refuse."""

    def __init__(self, *codes: str) -> None:
        super().__init__(*codes)
        self.codes = codes


@dataclass
class Seat:
    participant_id: str
    index: int
    budget: int | None
    group: str | None
    used: int = 0
    turns: int = 0


@dataclass
class Bank:
    left: Any
    is_out: bool = False


@dataclass
class Moment:
    """One version as the contract would have it."""

    at: int
    state: dict[str, Any]
    lap: int | None = None
    ended_expired: str | None = None


@dataclass
class Counter:
    """A session that counts: every millisecond is a step of a loop, every rule is spelled out once more.

    It shares nothing with the engine, is slow, and is therefore only for short times. `passed` is its
    answer: one moment for each version.
    """

    spec: Spec
    at: int
    seats: list[Seat] = field(default_factory=list)
    banks: dict[str, Bank] = field(default_factory=dict)
    status: str = "pending"
    turn: Seat | None = None
    clock: Any = None
    flagged: bool = False
    laps: int = 0
    lap: int = 0
    since: int | None = None
    started: int | None = None
    ended: int | None = None
    version: int = 0
    passed: list[Moment] = field(default_factory=list)

    @classmethod
    def of(cls, spec: Spec) -> "Counter":
        it = cls(spec, T0)
        for p in spec.participants:
            it.seats.append(Seat(p.participant_id, p.participant_index, p.budget_ms, p.group_id))
            it.banks.setdefault(it._account(it.seats[-1]), Bank(p.budget_ms))
        it.clock = {"per_cycle": spec.time_per_cycle_ms, "global": spec.total_time_ms, "count_up": 0}.get(
            spec.mode
        )
        it._happened()
        return it

    # Time passing

    def copy(self) -> "Counter":
        twin = Counter(**{name: getattr(self, name) for name in self.__dataclass_fields__})
        twin.seats = [Seat(**vars(seat)) for seat in self.seats]
        twin.banks = {key: Bank(**vars(bank)) for key, bank in self.banks.items()}
        twin.turn = None if self.turn is None else twin.seats[self.seats.index(self.turn)]
        twin.passed = list(self.passed)
        return twin

    def wait(self, until: int) -> tuple["Counter", "Counter"]:
        """Itself after the last expiry by `until`, and itself at `until`."""
        last, it = self, self.copy()
        while True:
            while it._is_due():
                it._fire()
                last = it.copy()
            if it.at >= until:
                return last, it
            it._tick()

    def _tick(self) -> None:
        self.at += 1
        if self.status != "running":
            return
        if self.turn is not None:
            self.turn.used += 1
        if self.spec.mode == "count_up":
            self.clock += 1
            self.lap += 1
        elif self.clock is not None:
            self.clock -= self.clock > 0
        else:
            self._bank.left -= self._bank.left > 0

    def _is_due(self) -> bool:
        if self.status != "running":
            return False
        if self.spec.mode == "count_up":
            return self.spec.max_time_ms is not None and self.clock >= self.spec.max_time_ms
        return self._reading() == 0 and not self._is_told()

    def _is_told(self) -> bool:
        return self.flagged if self.spec.mode == "global" else self.turn is not None and self._bank.is_out

    def _fire(self) -> None:
        if self.spec.mode == "global":
            self.flagged = True
        elif self.spec.mode != "count_up":
            self._bank.is_out = True
        if self.spec.on_timeout == "flag":
            self.since = self.at
        elif self.spec.on_timeout == "expire":
            self._over("expired")
        else:
            self._pass_on(self._next())
        self._happened()

    # Commands

    def obey(self, name: str, at: int, **arguments: Any) -> "Counter":
        """What becomes of it by the command. Raises Refused; what fell due before is in `wait` then."""
        _, it = self.wait(at)
        complaints = {code for code in getattr(it, f"_{name}_refused")(**arguments) if code}
        if complaints:
            raise Refused(*complaints)
        if name == "complete" and it.status == "completed":
            return self
        extra = getattr(it, f"_{name}")(**arguments) or {}
        it._happened(**extra)
        return it

    def _unless(self, *statuses: str) -> str | None:
        return None if self.status in statuses else "INVALID_STATE_TRANSITION"

    def _unknown(self, participant_id: str | None) -> str | None:
        known = {seat.participant_id for seat in self.seats}
        return None if participant_id is None or participant_id in known else "VALIDATION_ERROR"

    def _start_refused(self, participant_id: str | None) -> list[str | None]:
        return [self._unless("pending"), self._unknown(participant_id)]

    def _start(self, participant_id: str | None) -> None:
        self.status, self.started, self.since = "running", self.at, self.at
        wanted = [seat for seat in self._in_order() if participant_id in (None, seat.participant_id)]
        self.turn = wanted[0] if wanted else None

    def _switch_refused(
        self, next_participant_id: str | None, expected_participant_id: str | None
    ) -> list[str | None]:
        complaints = [self._unless("running"), self._unknown(next_participant_id)]
        if self.status == "running":
            if not self.seats and self.spec.mode == "global":
                complaints.append("VALIDATION_ERROR")
            if expected_participant_id not in (None, self.turn and self.turn.participant_id):
                complaints.append("CONFLICT")
            if self.spec.mode in ("per_participant", "per_group"):
                for seat in self.seats:
                    if seat.participant_id == next_participant_id and self.banks[self._account(seat)].is_out:
                        complaints.append("CONFLICT")
        return complaints

    def _switch(self, next_participant_id: str | None, expected_participant_id: str | None) -> dict[str, Any]:
        ending = self.turn
        out_of_time = ending is not None and self._bank.is_out
        extra = {
            "lap": self.lap if self.spec.mode == "count_up" else None,
            "ended_expired": ending.participant_id if ending is not None and out_of_time else None,
        }
        named = [seat for seat in self.seats if seat.participant_id == next_participant_id]
        self._pass_on(named[0] if named else self._next())
        return extra

    def _pause_refused(self) -> list[str | None]:
        return [self._unless("running")]

    def _pause(self) -> None:
        self.status, self.since = "paused", None

    def _resume_refused(self) -> list[str | None]:
        return [self._unless("paused")]

    def _resume(self) -> None:
        self.status, self.since = "running", self.at

    def _adjust_refused(self, delta_ms: int, target: str | None) -> list[str | None]:
        fits: set[str | None] = set()
        if self.spec.mode in ("per_cycle", "global"):
            fits = {None}
        elif self.spec.mode != "count_up":
            fits = {seat.participant_id for seat in self.seats}
        if self.spec.mode == "per_group":
            fits |= {seat.group for seat in self.seats}
        return [self._unless("pending", "running", "paused"), None if target in fits else "VALIDATION_ERROR"]

    def _adjust(self, delta_ms: int, target: str | None) -> None:
        if self.status == "running":
            self.since = self.at
        if target is None:
            self.clock = self._bounded(self.clock, delta_ms)
            if self.clock > 0:
                self.flagged = False
                if self.turn is not None and self.spec.mode == "per_cycle":
                    self._bank.is_out = False
            return
        (account,) = {
            self._account(seat) for seat in self.seats if target in (seat.participant_id, seat.group)
        }
        bank = self.banks[account]
        bank.left = self._bounded(bank.left, delta_ms)
        bank.is_out = bank.is_out and bank.left == 0

    @staticmethod
    def _bounded(time: int, delta: int) -> int:
        # What increments have taken beyond a day stays; no gift adds to it.
        return min(max(time + delta, 0), max(time, DAY))

    def _complete_refused(self) -> list[str | None]:
        return [self._unless("pending", "running", "paused", "completed")]

    def _complete(self) -> None:
        self._over("completed")

    def _cancel_refused(self) -> list[str | None]:
        return [self._unless("pending")]

    def _cancel(self) -> None:
        self._over("cancelled")

    # Turns

    @property
    def _bank(self) -> Bank:
        return self.banks[self._account(self.turn)]

    def _account(self, seat: Seat | None) -> str:
        assert seat is not None
        return f"group {seat.group}" if self.spec.mode == "per_group" else seat.participant_id

    def _in_order(self) -> list[Seat]:
        return sorted(self.seats, key=lambda seat: seat.index)

    def _next(self) -> Seat | None:
        if self.turn is None:
            return None
        waiting = self._in_order()
        while waiting[-1] is not self.turn:
            waiting.append(waiting.pop(0))
        for seat in waiting:
            bank = self.banks[self._account(seat)]
            if self.spec.mode not in ("per_participant", "per_group") or (bank.left > 0 and not bank.is_out):
                return seat
        return None

    def _pass_on(self, heir: Seat | None) -> None:
        if self.turn is not None:
            self.turn.turns += 1
            if heir is None:
                self._over("expired")
                return
            stays = self._account(heir) == self._account(self.turn)
            if self.spec.mode in ("per_participant", "per_group") and not stays and not self._bank.is_out:
                self._bank.left += self.spec.increment_ms
        self.turn, self.since = heir, self.at
        if self.spec.mode == "per_cycle":
            self.clock = self.spec.time_per_cycle_ms
            for bank in self.banks.values():
                bank.is_out = False
        if self.spec.mode == "count_up":
            self.laps, self.lap = self.laps + 1, 0

    def _over(self, status: str) -> None:
        self.status, self.turn, self.clock, self.since, self.ended = status, None, None, None, self.at

    # What it looks like

    def _reading(self) -> Any:
        if self.clock is not None:
            return self.clock
        return self.banks[self._account(self.turn or self._in_order()[0])].left

    def _happened(self, **extra: Any) -> None:
        self.version += 1
        self.passed.append(Moment(self.at, self._state(), **extra))

    def _state(self) -> dict[str, Any]:
        mode, is_over = self.spec.mode.value, self.status in ("expired", "completed", "cancelled")
        kind = {
            "per_participant": "participant",
            "per_group": "group",
            "per_cycle": "cycle",
            "global": "session",
        }
        clock: dict[str, Any] | None = None if is_over else {"kind": kind.get(mode, "elapsed")}
        deadline = None
        if clock is not None:
            clock["elapsed_ms" if mode == "count_up" else "remaining_ms"] = self._reading()
        if self.status == "running" and mode == "count_up" and self.spec.max_time_ms is not None:
            deadline = self.at + self.spec.max_time_ms - self.clock
        elif self.status == "running" and mode != "count_up" and not self._is_told():
            deadline = self.at + self._reading()
        state = {
            "session_id": self.spec.session_id,
            "epoch": EPOCH,
            "version": self.version,
            "commit": "",
            "sync_mode": mode,
            "status": self.status,
            **({"presence": True} if self.spec.presence else {}),
            "participants": [self._seat_state(seat) for seat in self.seats],
            "active_participant_id": self.turn and self.turn.participant_id,
            "total_time_ms": self.spec.total_time_ms,
            "time_per_cycle_ms": self.spec.time_per_cycle_ms,
            "increment_ms": self.spec.increment_ms,
            "clock": clock,
            "on_timeout": self.spec.on_timeout.value,
            "deadline_ms": deadline,
            "cycle_started_at": _written(self.since),
            "session_started_at": _written(self.started),
            "session_completed_at": _written(self.ended),
            "created_at": _written(T0),
            "updated_at": _written(self.at),
            "metadata": self.spec.metadata or {},
        }
        if self.spec.max_time_ms is not None:
            state["max_time_ms"] = self.spec.max_time_ms
        if mode == "count_up":
            state |= {"lap_count": self.laps, "lap_elapsed_ms": self.lap}
        if mode == "global":
            state["is_flagged"] = self.flagged
        return state

    def _seat_state(self, seat: Seat) -> dict[str, Any]:
        bank = self.banks[self._account(seat)]
        state = {
            "participant_id": seat.participant_id,
            "participant_index": seat.index,
            "budget_ms": seat.budget,
            "total_time_ms": bank.left,
            "time_remaining_ms": bank.left,
            "time_used_ms": seat.used,
            "cycle_count": seat.turns,
            "is_active": seat is self.turn,
            "has_expired": bank.is_out,
        }
        return state if seat.group is None else state | {"group_id": seat.group}


def _written(instant: int | None) -> str | None:
    if instant is None:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
