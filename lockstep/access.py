"""What a caller may do. Where it comes from, a token mostly, is another's business."""

from dataclasses import dataclass
from enum import IntEnum

from lockstep.errors import Forbidden
from lockstep.rules import engine
from lockstep.rules.engine import Rule, Step
from lockstep.rules.modes import next_with_time
from lockstep.rules.state import Mode, Session, Status


class Scope(IntEnum):
    """Each includes those before it."""

    VIEW = 1
    PLAY = 2
    CONTROL = 3
    ADMIN = 4


# What each command needs.
COMMAND_SCOPES = {
    "start": Scope.CONTROL,
    "switch": Scope.PLAY,
    "pause": Scope.CONTROL,
    "resume": Scope.CONTROL,
    "adjust": Scope.CONTROL,
    "complete": Scope.CONTROL,
    "cancel": Scope.CONTROL,
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who asks, and what for. `session_ids` is None for all of them, `expires_at_s` epoch seconds.

    `caller` tells whose an Idempotency-Key is; empty where nobody says who he is. `client` tells whose
    requests are counted together; empty where only the address does.
    """

    scope: Scope
    session_ids: frozenset[str] | None = None
    subject: str | None = None
    expires_at_s: float | None = None
    is_by_token: bool = True
    caller: str = ""
    client: str = ""

    @property
    def is_trusted(self) -> bool:
        """True for the application's own back end, which nothing limits."""
        return self.is_by_token and self.scope is Scope.ADMIN

    def require(self, scope: Scope, session_id: str) -> None:
        """Raises Forbidden unless this caller has the scope, for this session."""
        if self.session_ids is not None and session_id not in self.session_ids:
            raise Forbidden("This token is not for this session", "session")
        self.require_scope(scope)

    def require_of_all(self, scope: Scope) -> None:
        """Raises Forbidden unless this caller has the scope for all sessions."""
        if self.session_ids is not None:
            raise Forbidden("This token is for certain sessions only", "session")
        self.require_scope(scope)

    def require_scope(self, scope: Scope) -> None:
        """The same where it is not known yet which session it is about."""
        if self.scope < scope:
            least = scope.name.lower()
            raise Forbidden(f"This needs the scope {least}", "scope", scope=least)

    def require_command(self, command: str, session_id: str) -> None:
        """Raises Forbidden where this caller may not give it, whatever its body says."""
        self.require(COMMAND_SCOPES[command], session_id)
        if self.scope is Scope.PLAY and self.subject is None:
            raise Forbidden("This token names no participant (sub): it is never its turn", "turn")

    def rule_of(self, rule: Rule) -> Rule:
        """The rule of a command that this caller may give: a player's is for its own turn only."""
        if self.scope is not Scope.PLAY:
            return rule
        assert self.subject is not None
        return _of_own_turn(self.subject, rule)


OPEN = Access(Scope.ADMIN, is_by_token=False)
"""Everybody's, where no keys are set."""

ANONYMOUS = Access(Scope.VIEW, is_by_token=False)
"""That of callers without a token, where --anonymous=view lets them in."""


def _of_own_turn(participant_id: str, rule: Rule) -> Rule:
    """A rule that ends a turn, refused to everybody but the active participant of the state decided on."""

    def guarded(session: Session, now_ms: int) -> Step:
        step, now_ms = engine.settled(session, now_ms)
        session = step.session
        active = session.active_participant
        if session.status in (Status.RUNNING, Status.PAUSED):
            if active is None or active.participant_id != participant_id.lower():
                raise Forbidden(f"It is not the turn of participant {participant_id}", "turn")
            # A lap is one's own; a turn goes to somebody else, or nobody could be given time by himself.
            if session.mode is not Mode.COUNT_UP and next_with_time(session) in (None, session.active):
                raise Forbidden("Nobody else has time left: the turn cannot pass to anybody", "turn")
        return step.followed_by(rule(session, now_ms))

    return guarded
