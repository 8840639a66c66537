"""What a caller may do. Where it comes from, a token mostly, is another's business."""

from dataclasses import dataclass
from enum import IntEnum

from lockstep import engine
from lockstep.engine import Rule, Step
from lockstep.errors import Forbidden
from lockstep.state import Session, Status

# What a participant may do by itself, while it is the active one.
OWN_COMMANDS = frozenset({"switch", "pause", "resume"})


class Scope(IntEnum):
    """Each includes those before it."""

    VIEW = 1
    CONTROL = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Access:
    """Who asks, and what for. `session_ids` is None for all of them, `expires_at_s` epoch seconds.

    `caller` tells whose an Idempotency-Key is; empty where nobody says who he is.
    """

    scope: Scope
    session_ids: frozenset[str] | None = None
    subject: str | None = None
    expires_at_s: float | None = None
    is_by_token: bool = True
    caller: str = ""

    def covers(self, session_id: str) -> bool:
        return self.session_ids is None or session_id in self.session_ids

    def require_view(self, session_id: str) -> None:
        if not self.covers(session_id):
            raise Forbidden("This token is not for this session")

    def require_admin(self, session_id: str | None) -> None:
        """Of this session; None: of all."""
        if session_id is None and self.session_ids is not None:
            raise Forbidden("This token is for certain sessions only")
        if session_id is not None:
            self.require_view(session_id)
        if self.scope < Scope.ADMIN:
            raise Forbidden("This needs the scope admin")

    def require_admin_of_any(self) -> None:
        """Before it is known which session it is about."""
        if self.scope < Scope.ADMIN:
            raise Forbidden("This needs the scope admin")

    def rule_for(self, command: str, session_id: str, rule: Rule) -> Rule:
        """The rule of a command, for this caller. Raises Forbidden where it may not give it at all."""
        if self.scope is not Scope.CONTROL or command not in OWN_COMMANDS:
            self.require_admin(session_id)
            return rule
        self.require_view(session_id)
        if self.subject is None:
            raise Forbidden("This token names no participant (sub)")
        return _as_active(self.subject, rule)


OPEN = Access(Scope.ADMIN, is_by_token=False)
"""Everybody's, where no keys are set."""


def _as_active(participant_id: str, rule: Rule) -> Rule:
    """The rule, refused to everybody but the active participant of the state that is decided on."""

    def guarded(session: Session, now_ms: int) -> Step:
        step, now_ms = engine.settled(session, now_ms)
        session = step.session
        active = session.active_participant
        is_active = active is not None and active.participant_id == participant_id.lower()
        if session.status in (Status.RUNNING, Status.PAUSED) and not is_active:
            raise Forbidden(f"Participant {participant_id} is not the active one")
        return step.followed_by(rule(session, now_ms))

    return guarded
