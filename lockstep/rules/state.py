"""What a session is, as the rules see it."""

from enum import StrEnum
from typing import Any

from msgspec import Struct, field


class Mode(StrEnum):
    """Which clock runs, and what a switch does to it."""

    PER_PARTICIPANT = "per_participant"
    PER_CYCLE = "per_cycle"
    PER_GROUP = "per_group"
    GLOBAL = "global"
    COUNT_UP = "count_up"


class Status(StrEnum):
    """Where a session is in its life; the last three are terminal."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    EXPIRED = "expired"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class OnTimeout(StrEnum):
    """What happens when the running clock reaches its end."""

    FLAG = "flag"
    ADVANCE = "advance"
    EXPIRE = "expire"


TERMINAL = frozenset({Status.EXPIRED, Status.COMPLETED, Status.CANCELLED})
NOT_ENDED = frozenset(Status) - TERMINAL
MAX_METADATA_BYTES = 4096
"""As JSON."""
BANK_MODES = frozenset({Mode.PER_PARTICIPANT, Mode.PER_GROUP})
CLOCK_KINDS = {
    Mode.PER_PARTICIPANT: "participant",
    Mode.PER_GROUP: "group",
    Mode.PER_CYCLE: "cycle",
    Mode.GLOBAL: "session",
    Mode.COUNT_UP: "elapsed",
}


class Participant(Struct, frozen=True):
    """One participant. In per_group `remaining_ms` is the group's bank, the same for every member.

    The second names are those of the JSON form, which is decoded straight into this.
    """

    participant_id: str
    participant_index: int
    budget_ms: int | None = None
    remaining_ms: int | None = field(default=None, name="total_time_ms")
    used_ms: int = field(default=0, name="time_used_ms")
    cycle_count: int = 0
    has_expired: bool = False
    group_id: str | None = None


class Session(Struct, frozen=True):
    """A session as of `cycle_started_at_ms`; what runs since then is arithmetic.

    `active` is an index into `participants`. `clock_ms` is what remains (or, in count_up, has elapsed)
    of the clock that the participants share; where the clock is a bank it is None, and the bank
    stands with the participant. Instants are epoch milliseconds of the broker's clock. With `presence` its
    clients are told who is connected.

    A new field goes here, with a default, and under the same name into StateJson (state_json.py).
    """

    session_id: str
    epoch: str
    version: int
    mode: Mode
    status: Status
    on_timeout: OnTimeout
    participants: tuple[Participant, ...]
    created_at_ms: int
    updated_at_ms: int
    commit: str = ""
    active: int | None = None
    total_time_ms: int | None = None
    time_per_cycle_ms: int | None = None
    increment_ms: int = 0
    max_time_ms: int | None = None
    clock_ms: int | None = None
    lap_count: int = 0
    lap_elapsed_ms: int = 0
    is_flagged: bool = False
    cycle_started_at_ms: int | None = None
    started_at_ms: int | None = None
    completed_at_ms: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    presence: bool = False

    @property
    def active_participant(self) -> Participant | None:
        return None if self.active is None else self.participants[self.active]

    @property
    def active_participant_id(self) -> str | None:
        return None if self.active is None else self.participants[self.active].participant_id

    @property
    def running_clock_ms(self) -> int:
        """What the clock shows at `cycle_started_at`: remaining, in count_up elapsed."""
        if self.clock_ms is not None:
            return self.clock_ms
        # Before the start the bank on show is the one that will run first.
        holder = self.active_participant or min(self.participants, key=lambda p: p.participant_index)
        assert holder.remaining_ms is not None
        return holder.remaining_ms

    @property
    def has_run_out(self) -> bool:
        """True once the expiry of the running clock has been reported, so that it is reported once."""
        if self.mode is Mode.GLOBAL:
            return self.is_flagged
        active = self.active_participant
        return active is not None and active.has_expired

    @property
    def deadline_ms(self) -> int | None:
        """The instant at which the running clock runs out; None if no clock runs towards one."""
        if self.cycle_started_at_ms is None or self.has_run_out:
            return None
        if self.mode is Mode.COUNT_UP:
            if self.max_time_ms is None:
                return None
            return self.cycle_started_at_ms + self.max_time_ms - self.running_clock_ms
        return self.cycle_started_at_ms + self.running_clock_ms

    @property
    def position(self) -> str:
        return position_of(self.epoch, self.version, self.commit)

    @property
    def tag(self) -> str:
        """What the ETag header carries."""
        return f'"{self.position}"'

    def is_one_of(self, tags: frozenset[str]) -> bool:
        """True if one of these tags of an If-Match names this state, with its commit or without."""
        return not tags.isdisjoint(("*", self.tag, f'"{self.epoch}-{self.version}"'))


def position_of(epoch: str, version: int, commit: str) -> str:
    """Names one state and no other: after a loss versions are used again, commits are not."""
    return f"{epoch}-{version}-{commit}"
