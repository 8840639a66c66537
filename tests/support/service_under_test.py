"""The product's service on the embedded broker, asked one thing after another on a clock that is set."""

import asyncio
import json
from dataclasses import dataclass

from broker.memory import MemoryBroker
from lockstep.access import Access, Scope
from lockstep.commands import COMMANDS
from lockstep.contract import Commit, Outcome
from lockstep.errors import LockstepError, SessionNotFound
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.perform import Change, Performer
from lockstep.sessions import Sessions
from tests.support.modelled_histories import SESSION_ID, Asked
from tests.support.session_model import Request

CENTURY_MS = 100 * 366 * 86_400_000
NOTHING_LAPSES = Lifetimes(*[CENTURY_MS] * 5)


class SetBroker(MemoryBroker):
    """Its time is what it was set to. It remembers what was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.at_ms = 0
        self.committed: list[Commit] = []

    def now_ms(self, session_id: str | None = None) -> int:
        return self.at_ms

    async def commit(self, commit: Commit) -> Outcome:
        outcome = await super().commit(commit)
        assert outcome is Outcome.APPLIED or not commit.expected
        if outcome is Outcome.APPLIED:
            self.committed.append(commit)
        return outcome


@dataclass(frozen=True)
class Done:
    """What came of one request: the commits, the refusal, if it was refused, and the state afterwards."""

    asked: Asked
    commits: list[Commit]
    refusal: LockstepError | None
    state: bytes | None


def run(history: tuple[Asked, ...]) -> list[Done]:
    return asyncio.run(_run(history))


async def _run(history: tuple[Asked, ...]) -> list[Done]:
    broker = SetBroker()
    sessions = Sessions(broker, NOTHING_LAPSES, Metrics())
    performer = Performer(sessions)
    run = []
    for asked in history:
        broker.at_ms = asked.request.at_ms
        refusal = None
        try:
            await _ask(performer, asked.request)
        except LockstepError as error:
            refusal = error
        try:
            # As a sweep does; also for what is due by the session's own time only, which is ahead of the
            # broker's where that was set back.
            await sessions.settle(SESSION_ID)
            state = await sessions.read(SESSION_ID)
        except SessionNotFound:
            state = None
        run.append(Done(asked, broker.committed[:], refusal, state))
        broker.committed.clear()
    return run


async def _ask(performer: Performer, request: Request) -> None:
    change = Change(
        access=Access(Scope.ADMIN),
        request_id=None,
        method="POST",
        path="",
        body=b"" if request.body is None else json.dumps(request.body).encode(),
    )
    if request.name == "create":
        await performer.create(change)
    elif request.name == "delete":
        await performer.delete(SESSION_ID, change)
    else:
        await performer.command(COMMANDS[request.name], SESSION_ID, change)
