"""What a caller may do. Where it comes from, a token mostly, is another's business."""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from lockstep.errors import Forbidden
from lockstep.rules.modes import next_with_time
from lockstep.rules.state import Mode, Session, Status
from lockstep.rules.steps import Guard


class Scope(IntEnum):
    """Each includes those before it."""

    VIEW = 1
    PLAY = 2
    CONTROL = 3
    ADMIN = 4


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

    def require_command(self, scope: Scope, session_id: str) -> None:
        """Raises Forbidden where this caller may not give a command of this scope, whatever its body says."""
        self.require(scope, session_id)
        if self.scope is Scope.PLAY and self.subject is None:
            raise Forbidden("This token names no participant (sub): it is never its turn", "turn")

    @property
    def guards(self) -> tuple[Guard, ...]:
        """What a command of this caller is checked by: a player's is for its own turn only."""
        if self.scope is not Scope.PLAY:
            return ()
        assert self.subject is not None
        return (partial(_require_own_turn, self.subject),)


OPEN = Access(Scope.ADMIN, is_by_token=False)
"""Everybody's, where no keys are set."""

ANONYMOUS = Access(Scope.VIEW, is_by_token=False)
"""That of callers without a token, where --anonymous=view lets them in."""


def _require_own_turn(participant_id: str, session: Session) -> None:
    """Raises Forbidden unless the session's turn is the participant's, and somebody else's can follow."""
    if session.status not in (Status.RUNNING, Status.PAUSED):
        return
    active = session.active_participant
    if active is None or active.participant_id != participant_id.lower():
        raise Forbidden(f"It is not the turn of participant {participant_id}", "turn")
    # A lap is one's own. Any other turn passes to somebody else, or players could give themselves time.
    if session.mode is not Mode.COUNT_UP and next_with_time(session) in (None, session.active):
        raise Forbidden("Nobody else has time left: the turn cannot pass to anybody", "turn")
