"""Who hears what a broker brings."""

from collections.abc import Callable
from typing import Protocol

from lockstep.attendance import Attendance

Affected = Callable[[str], bool]
"""Whether payloads of the session with this id may have been lost."""


class Listener(Protocol):
    """Hears what the broker brings: the hub. Nothing here waits, and nothing here raises."""

    def on_published(self, payload: bytes) -> None:
        """A payload of `session-updates`, as it was published."""

    def on_relayed(self, session_id: str, payload: bytes) -> None:
        """A payload of `ws:<session_id>`, as it was published."""

    def on_presence(
        self, session_id: str, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None:
        """What another process says of its clients of the session: see ``Presence``.

        Each value replaces what was said of that subject before; None: it is not there any more. None for
        all: that process is no more. Never called for what this process says itself.
        """

    def on_gap(self, affected: Affected | None = None) -> None:
        """Payloads may have been lost of these sessions (None: of all); from now on they are heard again."""
