"""What a client of protocol v2 makes of SUBSCRIBED's `presence` and of PRESENCE, and holds the server to."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PresenceView:
    """Who is present as a client has it; `subjects` is None where it has no list. What cannot be raises."""

    subjects: set[str] | None = None
    anonymous: int = 0
    total: int = 0
    told: list[Any] = field(default_factory=list)
    """What came by PRESENCE, as (joined, left), each sorted; (None, None) where there was no list."""
    last: Any = None
    """The last PRESENCE."""

    def subscribe(self, presence: Any) -> None:
        present = presence.get("present")
        assert set(presence) == {"anonymous", "total"} | (set() if present is None else {"present"})
        if present is None:
            self.subjects = None
        else:
            entries = [(each["since"], each["subject"]) for each in present]
            assert entries == sorted(entries)
            self.subjects = {subject for _, subject in entries}
            assert len(self.subjects) == len(present)
        self._count(presence)

    def take(self, message: Any) -> None:
        assert message["type"] == "PRESENCE"
        self.last = message
        assert ("joined" in message) == ("left" in message)
        if "joined" not in message:
            self.subjects = None
            self.told.append((None, None))
        else:
            joined = {each["subject"] for each in message["joined"]}
            left = {each["subject"] for each in message["left"]}
            before = self.subjects or set()
            assert not joined & before, f"told again of {joined & before}"
            assert left <= before, f"told of the end of {left - before}"
            self.subjects = before - left | joined
            self.told.append((sorted(joined), sorted(left)))
        self._count(message)

    def _count(self, said: Any) -> None:
        self.anonymous, self.total = said["anonymous"], said["total"]
        assert self.anonymous >= 0
        if self.subjects is not None:
            assert self.total == len(self.subjects) + self.anonymous
