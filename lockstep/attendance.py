"""Who is connected to a session: what processes say of it, and what a broker promises of that."""

import abc
from typing import Annotated, Protocol

from msgspec import Meta, Struct


class Attendance(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How many connections to a session a subject has at one process, and since when (the broker's time)."""

    connections: Annotated[int, Meta(ge=0)]
    since_ms: int


class Presence(Protocol):
    """Who is connected to a session, as each process says of its own clients.

    What a process says stays until it says otherwise, or has died or stopped: then it is withdrawn for it
    within 15 s. It is said again where the store has lost it. What is said comes in order for each session,
    by ``Listener.on_presence``; whoever begins to listen, or may have missed something (``on_gap``), asks
    ``present``.
    """

    @abc.abstractmethod
    def attend(self, session_id: str, subject: str, attendance: Attendance | None) -> None:
        """Say of this process's clients of that subject what is so from now on; None: there are none.

        The subject may be any text; "" stands for all who have none. It is told to all soon, with other
        changes of that while; where the store is away, when it is back. Nothing is raised.
        """

    @abc.abstractmethod
    def forget_session(self, session_id: str) -> None:
        """The session is over: withdraw all that this process has said of it."""

    @abc.abstractmethod
    async def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        """What the other processes say, by process and subject.

        One that has nobody there is there with {}. One that the store does not know, or not all of, is
        left out: that says nothing of its clients. What is heard between the call and its answer is as new
        as the answer, or newer. Raises BrokerUnavailable as ``Store`` does.
        """
