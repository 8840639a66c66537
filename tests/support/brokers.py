"""A broker that yields, and a listener that remembers what it heard."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker.memory import MemoryBroker
from lockstep.contract import Affected, Attendance, Broker, Commit, Outcome

PATIENCE_S = 60.0


async def comes_true(condition: Callable[[], object]) -> None:
    """Wait for what no event tells: what Redis has, or what a broker knows. It may have to be awaited."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await found if inspect.isawaitable(found := condition()) else found):
            await asyncio.sleep(0.01)


class YieldingBroker(MemoryBroker):
    """The embedded broker as one across a network: others have their turn between load and commit."""

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        loaded = await super().load(session_ids, at_most_bytes)
        await asyncio.sleep(0)
        return loaded

    async def recent(
        self, session_id: str, max_events: int, max_bytes: int
    ) -> tuple[bytes | None, list[bytes]]:
        found = await super().recent(session_id, max_events, max_bytes)
        await asyncio.sleep(0)
        return found

    async def commit(self, commit: Commit) -> Outcome:
        await asyncio.sleep(0)
        return await super().commit(commit)


@dataclass
class Ears:
    """A listener that remembers what it heard, and in which task (None: in no task at all)."""

    published: list[bytes] = field(default_factory=list)
    relayed: list[tuple[str, bytes]] = field(default_factory=list)
    presence: list[tuple[str, str, dict[str, Attendance | None] | None]] = field(default_factory=list)
    tasks: list[asyncio.Task[object] | None] = field(default_factory=list)
    gaps: int = 0
    # For each gap, which sessions it affects; None: all of them.
    gaps_of: list[Affected | None] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def on_published(self, payload: bytes) -> None:
        self.published.append(payload)
        self._heard()

    def on_relayed(self, session_id: str, payload: bytes) -> None:
        self.relayed.append((session_id, payload))
        self._heard()

    def on_presence(
        self, session_id: str, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None:
        self.presence.append((session_id, process, attendances))
        self._heard()

    def on_gap(self, affected: Affected | None = None) -> None:
        self.gaps += 1
        self.gaps_of.append(affected)
        self._heard()

    def present(self, session_id: str) -> dict[str, dict[str, Attendance]]:
        """Who is there at other processes, as far as it was told."""
        present: dict[str, dict[str, Attendance]] = {}
        for its_id, process, attendances in self.presence:
            if its_id == session_id and attendances is None:
                present.pop(process, None)
            elif its_id == session_id and attendances is not None:
                for subject, attendance in attendances.items():
                    if attendance is None:
                        present.get(process, {}).pop(subject, None)
                    else:
                        present.setdefault(process, {})[subject] = attendance
        return {process: subjects for process, subjects in present.items() if subjects}

    async def until_present(self, session_id: str, *expected: dict[str, Attendance]) -> None:
        """What it was told is `expected`, of each process that has somebody there, in any order."""

        def is_so(ears: Ears) -> bool:
            told = list(ears.present(session_id).values())
            return len(told) == len(expected) and all(each in told for each in expected)

        try:
            await self.until(is_so)
        except TimeoutError:
            raise AssertionError(f"told {self.present(session_id)}, not {expected}") from None

    def _heard(self) -> None:
        self.tasks.append(asyncio.current_task())
        self._moved.set()

    async def until(self, condition: Callable[["Ears"], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self):
                self._moved.clear()
                await self._moved.wait()

    async def until_published(self, count: int) -> list[bytes]:
        await self.until(lambda ears: len(ears.published) >= count)
        return self.published


@asynccontextmanager
async def started(broker: Broker, *session_ids: str) -> AsyncIterator[Ears]:
    """The broker between start and close, hearing these sessions."""
    ears = Ears()
    await broker.start(ears)
    try:
        for session_id in session_ids:
            assert await broker.hear(session_id)
        yield ears
    finally:
        await broker.close()
