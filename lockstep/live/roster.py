"""Who is present at a session: what each process says of its clients, put together."""

from collections import deque
from collections.abc import Mapping

from msgspec import UNSET, Raw

from lockstep.contract import Attendance
from lockstep.live.attendees import ANONYMOUS, LINGER_S
from lockstep.rules.state_json import dumps, iso
from lockstep.wire.protocol_v2 import PresenceList, Present

MAX_LISTED = 200
"""Where more subjects are present, clients are told only how many."""
Attendances = Mapping[str, Attendance | None]
"""By subject; None: not there any more."""


class _Subject:
    """One that is present: all its connections, since when it is, and its JSON."""

    __slots__ = ("connections", "entry", "since_ms")

    def __init__(self) -> None:
        self.connections = self.since_ms = 0
        self.entry: bytes | None = None


class LateFalls:
    """A number that falls LINGER_S late: it is shown as the highest that it was within that time."""

    __slots__ = ("_higher", "_number")

    def __init__(self) -> None:
        self._number = 0
        # (until when it is shown, what it was), ever lower.
        self._higher: deque[tuple[float, int]] = deque()

    @property
    def shown(self) -> int:
        return self._higher[0][1] if self._higher else self._number

    @property
    def next_fall_s(self) -> float | None:
        return self._higher[0][0] if self._higher else None

    def set(self, number: int, now_s: float) -> None:
        highest = max(number, self._number)
        while self._higher and self._higher[-1][1] <= highest:
            self._higher.pop()
        if number < self._number:
            self._higher.append((now_s + LINGER_S, self._number))
        self._number = number

    def fall(self, now_s: float) -> None:
        """What is over by now is not shown any more."""
        while self._higher and self._higher[0][0] <= now_s:
            self._higher.popleft()


class Roster:
    """A subject is present as long as any process says so, since the earliest instant that one of them says.

    One of whom nobody knows whether it has come back, to whichever process, counts LINGER_S longer. `flips`
    are the subjects that came or left, in this order, until somebody clears it. `now_s` is of a clock that
    never steps.
    """

    __slots__ = (
        "_anonymous",
        "_by_process",
        "_connected_anonymous",
        "_listing",
        "_order",
        "_subjects",
        "flips",
    )

    def __init__(self) -> None:
        self.flips: list[str] = []
        self._anonymous = LateFalls()
        self._connected_anonymous = 0
        self._by_process: dict[str, dict[str, Attendance]] = {}
        self._subjects: dict[str, _Subject] = {}
        # Made when they are needed: the subjects in order, and the list that clients get.
        self._order: list[str] | None = None
        self._listing: bytes | None = None

    def __len__(self) -> int:
        return len(self._subjects)

    def __contains__(self, subject: str) -> bool:
        return subject in self._subjects

    @property
    def anonymous(self) -> int:
        return self._anonymous.shown

    @property
    def next_fall_s(self) -> float | None:
        """When the number of the anonymous falls."""
        return self._anonymous.next_fall_s

    @property
    def total(self) -> int:
        return len(self._subjects) + self.anonymous

    @property
    def is_listed(self) -> bool:
        """True if they are few enough for clients to be told who they are."""
        return len(self._subjects) <= MAX_LISTED

    @property
    def processes(self) -> list[str]:
        return list(self._by_process)

    def since_ms(self, subject: str) -> int | None:
        present = self._subjects.get(subject)
        return None if present is None else present.since_ms

    # --- what processes say ------------------------------------------------------------------------

    def put(self, process: str, attendances: Attendances) -> None:
        """The process says this of these subjects."""
        said = self._by_process.setdefault(process, {})
        for subject, attendance in attendances.items():
            if said.get(subject) != attendance:
                if attendance is None:
                    del said[subject]
                else:
                    said[subject] = attendance
                self._count(subject)

    def replace(self, process: str, attendances: Mapping[str, Attendance]) -> None:
        """The process says this, and nothing of others."""
        gone = self._by_process.get(process, {}).keys() - attendances.keys()
        self.put(process, dict.fromkeys(gone))
        self.put(process, attendances)

    def forget(self, process: str, now_s: float) -> None:
        """The process is no more. Its clients have had the time to come back."""
        self.settle(now_s)
        self.replace(process, {})
        del self._by_process[process]
        self.settle(now_s - LINGER_S)
        self.settle(now_s)

    def settle(self, now_s: float) -> None:
        """What was put is so from now on. The anonymous who have not come back by now count no more."""
        shown = self.anonymous
        self._anonymous.set(self._connected_anonymous, now_s)
        self._anonymous.fall(now_s)
        if self.anonymous != shown:
            self._listing = None

    def _count(self, subject: str) -> None:
        found = [said[subject] for said in self._by_process.values() if subject in said]
        self._listing = None
        connections = sum(each.connections for each in found)
        if subject == ANONYMOUS:
            self._connected_anonymous = connections
            return
        present = self._subjects.get(subject)
        if not found:
            del self._subjects[subject]
            self.flips.append(subject)
            self._order = None
            return
        if present is None:
            present = self._subjects[subject] = _Subject()
            self.flips.append(subject)
        since_ms = min(each.since_ms for each in found)
        if present.since_ms != since_ms:
            present.since_ms = since_ms
            self._order = None
        present.connections = connections
        present.entry = None

    # --- the list ----------------------------------------------------------------------------------

    def listing(self, *, is_whole: bool = False) -> bytes:
        """The list as a subscriber gets it; a whole one has everybody, however many they are."""
        if is_whole and not self.is_listed:
            return self._made(self._in_order())
        if self._listing is None:
            self._listing = self._made(self._in_order() if self.is_listed else None)
        return self._listing

    def entries(self, subjects: set[str] | None = None) -> Raw:
        """The JSON of these, or of all, in the order in which they came; some may not be present."""
        order = self._in_order()
        return self._array(order if subjects is None else [each for each in order if each in subjects])

    def _made(self, subjects: list[str] | None) -> bytes:
        present = UNSET if subjects is None else self._array(subjects)
        return dumps(PresenceList(present=present, anonymous=self.anonymous, total=self.total))

    def _array(self, subjects: list[str]) -> Raw:
        return Raw(b"[" + b",".join([self._entry(each) for each in subjects]) + b"]")

    def _entry(self, subject: str) -> bytes:
        found = self._subjects[subject]
        if found.entry is None:
            since = iso(found.since_ms)
            assert since is not None
            found.entry = dumps(Present(subject=subject, connections=found.connections, since=since))
        return found.entry

    def _in_order(self) -> list[str]:
        if self._order is None or len(self._order) != len(self._subjects):
            present = self._subjects
            self._order = sorted(present, key=lambda each: (present[each].since_ms, each))
        return self._order
