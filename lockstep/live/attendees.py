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
    """Counts connections. `now_s` is of a clock that never steps.

    Anonymous clients do not linger here: whether one has come back shows in the number of all processes.
    """

    __slots__ = ("_gone_s", "_leaving", "attendances")

    def __init__(self) -> None:
        self.attendances: dict[str, Attendance] = {}
        # Who has left, and when that is reported, in order. A subject has come back meanwhile if `_gone_s`
        # does not have it with that instant.
        self._leaving: deque[tuple[float, str]] = deque()
        self._gone_s: dict[str, float] = {}

    @property
    def next_report_s(self) -> float | None:
        """When the next departure is to be reported, or found to be none."""
        return self._leaving[0][0] if self._leaving else None

    def arrive(self, subject: str, since_ms: int) -> Attendance:
        """One more connection; what is to be said of its subject.

        A subject that is here already, or has just left, is present since it came first.
        """
        self._gone_s.pop(subject, None)
        before = self.attendances.get(subject)
        if before is None:
            return self._set(subject, 1, since_ms)
        return self._set(subject, before.connections + 1, before.since_ms)

    def depart(self, subject: str, now_s: float) -> Attendance | None:
        """One connection less; what is to be said of its subject."""
        before = self.attendances[subject]
        if before.connections == 1 and subject == ANONYMOUS:
            del self.attendances[subject]
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
