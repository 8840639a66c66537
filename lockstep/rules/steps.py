"""What a rule makes of a session: a step, one transition for each version."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lockstep.rules.state import Session

Rule = Callable[[Session, int], "Step"]
"""From a settled session and an instant (ms) to a step. Raises LockstepError to refuse."""

Guard = Callable[[Session], None]
"""A plain check of a settled session. Raises LockstepError to refuse."""


class Transition(Struct, frozen=True):
    """One version of a session. `ended_expired` names whose turn ended after its clock had run out."""

    session: Session
    type: str
    at_ms: int
    lap_ms: int | None = None
    ended_expired: str | None = None

    @property
    def extras(self) -> dict[str, Any]:
        """What is answered beside the state."""
        extras: dict[str, Any] = {}
        if self.ended_expired is not None:
            extras["expired_participant_id"] = self.ended_expired
        if self.lap_ms is not None:
            extras["lap_ms"] = self.lap_ms
        return extras


class Step(Struct, frozen=True):
    """A session, and the transitions that led to it: one per version."""

    session: Session
    transitions: tuple[Transition, ...] = ()

    def then(self, session: Session, type_: str, at_ms: int, **extra: Any) -> "Step":
        session = replace(session, version=self.session.version + 1, updated_at_ms=at_ms)
        return Step(session, (*self.transitions, Transition(session, type_, at_ms, **extra)))

    def followed_by(self, other: "Step") -> "Step":
        return Step(other.session, self.transitions + other.transitions)
