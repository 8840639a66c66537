"""This process's clients of one session, by subject; one that leaves lingers, for it may be coming back."""

from collections import deque
from collections.abc import Mapping

from lockstep.contract import Attendance

LINGER_S = 3.0
"""A departure is reported so late: a page that is reloaded has not left."""
ANONYMOUS = ""
"""Stands for all clients that have no subject: their attendance says how many there are."""
Report = tuple[str, Attendance | None]
"""What is to be said of a subject; None: it is here no more."""


class Attendees:
    """Counts connections. `now_s` is of a clock that never steps."""

    __slots__ = ("_anonymous_s", "_gone_s", "_leaving", "attendances")

    def __init__(self) -> None:
        self.attendances: dict[str, Attendance] = {}
        # Who has left, and when that is reported, in order. A subject has come back meanwhile if `_gone_s`
        # does not have it with that instant.
        self._leaving: deque[tuple[float, str]] = deque()
        self._gone_s: dict[str, float] = {}
        # The same for clients of which nobody can tell whether they have come back.
        self._anonymous_s: deque[float] = deque()

    @property
    def next_report_s(self) -> float | None:
        """When the next departure is to be reported, or found to be none."""
        dues_s = [self._leaving[0][0]] if self._leaving else []
        if self._anonymous_s:
            dues_s.append(self._anonymous_s[0])
        return min(dues_s, default=None)

    def arrive(self, subject: str, since_ms: int) -> Attendance | None:
        """One more connection; what is to be said of its subject, None if that is what was said before.

        A subject that is here already, or has just left, is present since it came first.
        """
        if subject == ANONYMOUS and self._anonymous_s:
            # Of two that have left the first is reported in its time: the number is then what it was at most
            # within LINGER_S.
            self._anonymous_s.pop()
            return None
        self._gone_s.pop(subject, None)
        before = self.attendances.get(subject)
        if before is None:
            return self._set(subject, 1, since_ms)
        return self._set(subject, before.connections + 1, before.since_ms)

    def depart(self, subject: str, now_s: float) -> Attendance | None:
        """One connection less; what is to be said of its subject at once, None if nothing is."""
        before = self.attendances[subject]
        if subject == ANONYMOUS:
            self._anonymous_s.append(now_s + LINGER_S)
            return None
        if before.connections == 1:
            self._gone_s[subject] = now_s + LINGER_S
            self._leaving.append((now_s + LINGER_S, subject))
        return self._set(subject, before.connections - 1, before.since_ms)

    def report(self, now_s: float) -> list[Report]:
        """The departures that are to be reported by now."""
        reports: list[Report] = []
        while self._leaving and self._leaving[0][0] <= now_s:
            due_s, subject = self._leaving.popleft()
            if self._gone_s.get(subject) == due_s:
                del self._gone_s[subject], self.attendances[subject]
                reports.append((subject, None))
        count = 0
        while self._anonymous_s and self._anonymous_s[0] <= now_s:
            self._anonymous_s.popleft()
            count += 1
        if count:
            before = self.attendances.pop(ANONYMOUS)
            left = before.connections - count
            reports.append((ANONYMOUS, self._set(ANONYMOUS, left, before.since_ms) if left else None))
        return reports

    def antedate(self, said: Mapping[str, Attendance | None]) -> list[Report]:
        """Who is present elsewhere since an earlier instant is so here, too; what is to be said then."""
        reports: list[Report] = []
        for subject, attendance in said.items():
            own = self.attendances.get(subject)
            if own is not None and attendance is not None and attendance.since_ms < own.since_ms:
                reports.append((subject, self._set(subject, own.connections, attendance.since_ms)))
        return reports

    def _set(self, subject: str, connections: int, since_ms: int) -> Attendance:
        attendance = self.attendances[subject] = Attendance(connections, since_ms)
        return attendance
