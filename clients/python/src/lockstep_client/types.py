"""The shapes of what is sent and received, by the names that they have in JSON.

Instants that end in `_at` are ISO 8601 in UTC with milliseconds: `2024-01-01T00:00:00.000Z`. What ends in
`_ms` is milliseconds: a duration, or, where the name says `deadline` or `timestamp`, epoch milliseconds of
the server's clock.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypeAlias, TypedDict

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""Anything that JSON can say."""

JsonObject: TypeAlias = Mapping[str, Json]

SyncMode: TypeAlias = Literal["per_participant", "per_cycle", "per_group", "global", "count_up"]
"""Which clock runs: see the concepts in Lockstep's documentation."""

Status: TypeAlias = Literal["pending", "running", "paused", "expired", "completed", "cancelled"]
"""Where a session is in its life; the last three are its end."""

OnTimeout: TypeAlias = Literal["flag", "advance", "expire"]
"""What happens when the running clock has run out."""

ClockKind: TypeAlias = Literal["participant", "group", "cycle", "session", "elapsed"]

StateCommandName: TypeAlias = Literal[
    "start", "pause", "resume", "adjust", "complete", "cancel", "seat", "unseat", "annotate"
]
"""A command that is answered with the state it led to: all but switch."""

CommandName: TypeAlias = Literal["switch"] | StateCommandName

Scope: TypeAlias = Literal["view", "play", "control", "admin"]
"""What a token allows; each includes those before it."""


class Participant(TypedDict):
    """One participant of a state.

    `total_time_ms` and `time_remaining_ms` are both what is left at the state's `cycle_started_at`.
    """

    participant_id: str
    participant_index: int
    budget_ms: int | None
    total_time_ms: int | None
    time_remaining_ms: int | None
    time_used_ms: int
    cycle_count: int
    is_active: bool
    has_expired: bool
    group_id: NotRequired[str]


class Clock(TypedDict):
    """The clock that runs, as of `cycle_started_at`: `elapsed_ms` in count_up, else `remaining_ms`."""

    kind: ClockKind
    remaining_ms: NotRequired[int]
    elapsed_ms: NotRequired[int]


class State(TypedDict):
    """A session at one version. `epoch`, `version` and `commit` together name it and no other."""

    session_id: str
    epoch: str
    version: int
    commit: str
    deadline_ms: int | None
    sync_mode: SyncMode
    status: Status
    presence: NotRequired[bool]
    participants: list[Participant]
    active_participant_id: str | None
    total_time_ms: int | None
    time_per_cycle_ms: int | None
    increment_ms: int
    clock: Clock | None
    on_timeout: OnTimeout
    cycle_started_at: str | None
    session_started_at: str | None
    session_completed_at: str | None
    created_at: str
    updated_at: str
    metadata: JsonObject
    max_time_ms: NotRequired[int]
    lap_count: NotRequired[int]
    lap_elapsed_ms: NotRequired[int]
    is_flagged: NotRequired[bool]


class ParticipantChanges(TypedDict, total=False):
    """Of a participant what moved; all of it where it is new, `removed` where it left."""

    participant_id: str
    removed: bool
    participant_index: int
    budget_ms: int | None
    total_time_ms: int | None
    time_remaining_ms: int | None
    time_used_ms: int
    cycle_count: int
    is_active: bool
    has_expired: bool
    group_id: str


class Changes(TypedDict, total=False):
    """The fields of a state that moved, with their new values; of participants those that moved."""

    session_id: str
    epoch: str
    version: int
    commit: str
    deadline_ms: int | None
    sync_mode: SyncMode
    status: Status
    presence: bool
    participants: list[ParticipantChanges]
    active_participant_id: str | None
    total_time_ms: int | None
    time_per_cycle_ms: int | None
    increment_ms: int
    clock: Clock | None
    on_timeout: OnTimeout
    cycle_started_at: str | None
    session_started_at: str | None
    session_completed_at: str | None
    created_at: str
    updated_at: str
    metadata: JsonObject
    max_time_ms: int
    lap_count: int
    lap_elapsed_ms: int
    is_flagged: bool


class Event(TypedDict):
    """One version of a session: what happened, when, and by whom: `actor` is a token's `sub`."""

    version: int
    type: str
    at: str
    actor: NotRequired[str]
    data: NotRequired[JsonObject]
    lap_ms: NotRequired[int]
    expired_participant_id: NotRequired[str]


class HistoryEvent(Event):
    """The same as the history has it: with what it changed."""

    changes: Changes
    request_id: NotRequired[str]


class NewParticipant(TypedDict, total=False):
    """A participant to be created with a session, or seated; an id is made where none is given."""

    participant_id: str
    participant_index: int
    total_time_ms: int
    group_id: str


class CreateBody(TypedDict):
    """A session to be created."""

    sync_mode: SyncMode
    session_id: NotRequired[str]
    participants: NotRequired[Sequence[NewParticipant]]
    total_time_ms: NotRequired[int]
    time_per_cycle_ms: NotRequired[int]
    increment_ms: NotRequired[int]
    max_time_ms: NotRequired[int]
    on_timeout: NotRequired[OnTimeout]
    metadata: NotRequired[JsonObject]
    presence: NotRequired[bool]


class CommandBody(TypedDict, total=False):
    """What a command may say. `expected_version` and `data` go with each, the others with those named."""

    expected_version: int
    """The command is refused (CONFLICT) if the session is at another version."""
    data: JsonObject
    """Kept in the command's event and told with it, at most 1 KiB: a move, a bid, an answer."""
    participant_id: str
    """Of start: who begins. Of unseat: who leaves."""
    next_participant_id: str
    """Of switch: whose turn comes, instead of the next in order."""
    expected_participant_id: str
    """Of switch: refused (CONFLICT) if it is another's turn, so that a double click switches once."""
    delta_ms: int
    """Of adjust: the time to give, or if negative to take."""
    target: str
    """Of adjust: a participant_id; in per_group also a group_id."""
    participants: Sequence[NewParticipant]
    """Of seat: the newcomers."""
    metadata: JsonObject
    """Of annotate: a JSON merge patch (RFC 7396) of the metadata."""


class Switched(TypedDict):
    """The answer to a switch: who is active now, and how the turn before ended."""

    session_id: str
    active_participant_id: str | None
    cycle_started_at: str | None
    participants: list[Participant]
    status: Status
    version: int
    expired_participant_id: NotRequired[str]
    lap_ms: NotRequired[int]


class CommandResult(TypedDict):
    """What a command over the WebSocket led to, and when, in epoch ms of the server's clock."""

    position: str
    """The state's name, as in `Update.position`."""
    timestamp: float
    replayed: NotRequired[bool]
    """True where a command with this key had been applied before."""
    lap_ms: NotRequired[int]
    expired_participant_id: NotRequired[str]


class Present(TypedDict):
    """A subject that is connected, by so many connections, since it came."""

    subject: str
    connections: int
    since: str


class Presence(TypedDict):
    """Who is connected to a session; `anonymous` counts those without a subject, `total` is all of them."""

    present: list[Present]
    anonymous: int
    total: int


class TimeAnswer(TypedDict):
    """What time it is at the server, in epoch ms."""

    timestamp_ms: int
    server_version: str
    drift_tolerance_ms: int
