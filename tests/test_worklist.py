"""Sessions of which something has to be read, where the store or a part of it is away."""

import asyncio

from lockstep.errors import BrokerUnavailable
from lockstep.live.worklist import Worklist
from lockstep.tasks import Tasks


class Parts:
    """A store in parts, some of which are away."""

    def __init__(self, *away: str) -> None:
        self.away = set(away)
        self.done: set[str] = set()

    async def work(self, session_ids: list[str]) -> None:
        await asyncio.sleep(0)
        if any(each[0] in self.away for each in session_ids):
            raise BrokerUnavailable
        self.done.update(session_ids)

    async def until_done(self, session_ids: set[str]) -> None:
        async with asyncio.timeout(5):
            while self.done != session_ids:
                await asyncio.sleep(0.01)


async def test_sessions_of_a_part_that_is_away_do_not_keep_the_others_waiting() -> None:
    parts, tasks, complaints = Parts("a"), Tasks(), list[BrokerUnavailable]()
    worklist = Worklist(tasks, parts.work, complaints.append)
    others = {f"b{number}" for number in range(150)}
    all_of_them = others | {f"a{number}" for number in range(150)}
    worklist.add(all_of_them)
    await parts.until_done(others)
    assert complaints
    parts.away.clear()
    await parts.until_done(all_of_them)
    await tasks.close()
