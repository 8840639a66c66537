"""What a follower of a session is given, and the queue it takes that from."""

import asyncio
import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lockstep_client.errors import LockstepError
from lockstep_client.types import Event, State

MAX_WAITING = 256
"""A follower that is so far behind gets the latest state in place of what it has not taken."""

Reason: TypeAlias = Literal["created", "requested", "skipped", "repair", "foreign", "deleted", "missing"]


@dataclass(frozen=True, slots=True)
class Update:
    """A session as it is from now on, for one who follows it.

    Either `events` have led from the state before to this `state`, each version once; or, where `sync` is
    true, this is to be shown in place of whatever was shown, and only the history (`events()`) tells what
    happened in between, if anything.
    """

    session_id: str
    state: State | None
    """None where there is no such session."""
    position: str | None
    """The server's name of this state, to be handed back (`if_match`); None where there is none to name."""
    events: Sequence[Event]
    """What happened, in order, with the `data` of the commands."""
    sync: bool
    reason: Reason | None
    """Why it came, where it is not for `events`.

    - `created`: the session has just been created
    - `requested`: this is what there was when following began, or when the connection came back
    - `missing`: the same, and there is no session
    - `deleted`: the session was deleted; should its id be used again, that comes as `created`
    - `skipped`: the follower, or the connection, was too slow for every version: this is the latest
    - `repair`: the server may have lost changes on their way
    - `foreign`: somebody who may write to the server's store says that this is the state
    """
    at_ms: float
    """When it was told, by the server's clock, in epoch ms."""


class Follower:
    """One who follows a session. What it has not taken waits here: not much, for the latest is enough."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.has_begun = False
        """Whether it was told what there is."""
        self._waiting: deque[Update] = deque()
        self._has_ended = False
        self._error: LockstepError | None = None
        self._wakeup: asyncio.Future[None] | None = None

    def give(self, update: Update) -> None:
        self.has_begun = True
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()
            update = Update(
                update.session_id, update.state, update.position, (), True, "skipped", update.at_ms
            )
        self._waiting.append(update)
        self._wake()

    def end(self, error: LockstepError | None) -> None:
        """Nothing more comes; behind what waits, the error is raised, if there is one."""
        self._has_ended = True
        self._error = error
        self._wake()

    async def next(self) -> Update | None:
        """None at the end. Raises LockstepError."""
        while not self._waiting:
            if self._error is not None:
                raise copy.copy(self._error)  # several may raise it
            if self._has_ended:
                return None
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        return self._waiting.popleft()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
