"""How long sessions are kept."""

from msgspec import Struct

from lockstep.rules.state import TERMINAL, Session, Status


class Lifetimes(Struct, frozen=True):
    """How long a session is kept after its last command, by status; all in ms."""

    pending_ms: int = 24 * 3_600_000
    running_ms: int = 24 * 3_600_000
    running_without_deadline_ms: int = 48 * 3_600_000
    paused_ms: int = 7 * 24 * 3_600_000
    terminal_ms: int = 3_600_000

    def lapses_at_ms(self, session: Session, now_ms: int) -> int:
        """When the session, changed at `now_ms`, is given up."""
        if session.status in TERMINAL:
            return now_ms + self.terminal_ms
        if session.status is Status.PENDING:
            return now_ms + self.pending_ms
        if session.status is Status.PAUSED:
            return now_ms + self.paused_ms
        deadline_ms = session.deadline_ms
        if deadline_ms is None:
            return now_ms + self.running_without_deadline_ms
        return max(now_ms, deadline_ms) + self.running_ms
