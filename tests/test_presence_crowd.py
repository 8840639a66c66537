"""A crowd over three processes whose lists are held against the truth, whatever fails: takes minutes."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.tokens import SECRET
from tests.support.visitors import Visitor, created, eventually, listing, started

VISITORS, SUBJECTS = 300, 40
# A departure is told 3 s later, an arrival within 500 ms; the machine of the tests may be busy.
LEFT_WITHIN_S, LAPSED_WITHIN_S = 3.5 + 5, 15 + 5


class Crowd:
    """Visitors of one session: who is here, and by which door."""

    def __init__(self, servers: list[ServerProcess], session_id: str, luck: random.Random) -> None:
        self.servers = servers
        self.session_id = session_id
        self.luck = luck
        self.here: list[Visitor] = []

    async def come(self, subject: str | None, door: int) -> None:
        visitor = Visitor(self.servers[door], self.session_id, subject)
        await visitor.connect()
        await visitor.follow(self.session_id)
        self.here.append(visitor)

    async def leave(self, visitor: Visitor) -> None:
        self.here.remove(visitor)
        await visitor.leave()

    async def move(self, visitors: list[Visitor], doors: list[int]) -> None:
        """They come back by one of these doors."""
        for visitor in visitors:
            await self.leave(visitor)
        for visitor in visitors:
            await self.come(visitor.subject, self.luck.choice(doors))

    def at(self, server: ServerProcess) -> list[Visitor]:
        return [visitor for visitor in self.here if visitor.ws_url == server.ws_url]

    @property
    def truth(self) -> tuple[dict[str, int], int]:
        """Connections by subject, and how many are anonymous."""
        counts = Counter(visitor.subject for visitor in self.here)
        anonymous = counts.pop(None, 0)
        return {str(subject): count for subject, count in counts.items()}, anonymous

    async def all_know(self, within_s: float) -> None:
        """Everybody here is told the truth, and REST says it at every process."""
        subjects, anonymous = set(self.truth[0]), self.truth[1]

        def behind() -> list[str]:
            return [
                f"{visitor.subject}: {visitor.presence.subjects and visitor.presence.subjects ^ subjects},"
                f" {visitor.presence.anonymous} of {anonymous}"
                for visitor in self.here
                if (visitor.presence.subjects, visitor.presence.anonymous) != (subjects, anonymous)
            ]

        try:
            async with asyncio.timeout(within_s):
                while behind():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(behind()[:5]) from None
        for visitor in self.here:
            visitor.check()
        for server in self.servers:
            await eventually(self.truth, _listing_of(server, self.session_id))

    def told_of_the_end_of(self) -> set[str]:
        """Of whom anybody here has been told that they left, since this was asked last."""
        left: set[str] = set()
        for visitor in self.here:
            for _, gone in visitor.presence.told:
                left.update(gone or ())
            visitor.presence.told.clear()
        return left


def _listing_of(server: ServerProcess, session_id: str) -> Callable[[], object]:
    return lambda: listing(server, session_id)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
async def test_a_crowd_knows_who_is_there_whatever_fails(seed: int, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    luck = random.Random(seed)
    async with AsyncExitStack() as stack:
        redis = RedisServer()
        stack.callback(redis.close)

        def start() -> ServerProcess:
            server = started(secret, f"--broker={redis.url}")
            stack.callback(lambda: server.stop() if server.process.poll() is None else None)
            return server

        servers = [start() for _ in range(3)]
        crowd = Crowd(servers, await created(servers[0]), luck)
        subjects = [f"subject {number}" for number in range(SUBJECTS)]
        for number in range(VISITORS):
            subject = subjects[number % SUBJECTS] if number % 10 else None
            await crowd.come(subject, luck.randrange(3))
        await crowd.all_know(LEFT_WITHIN_S)
        assert crowd.told_of_the_end_of() == set()

        # Reloads tell nobody anything.
        await crowd.move(luck.sample(crowd.here, 100), [0, 1, 2])
        await crowd.all_know(LEFT_WITHIN_S)
        assert crowd.told_of_the_end_of() == set()

        # Some leave for good, and others come.
        gone = set(luck.sample(subjects, 8))
        for visitor in [each for each in crowd.here if each.subject in gone]:
            await crowd.leave(visitor)
        await crowd.come("somebody new", 1)
        await crowd.all_know(LEFT_WITHIN_S)
        assert crowd.told_of_the_end_of() == gone & {
            f"subject {n % SUBJECTS}" for n in range(VISITORS) if n % 10
        }

        # A process dies; of its clients some come back.
        before = set(crowd.truth[0])
        lost = crowd.at(servers[1])
        servers[1].kill()
        for visitor in lost:
            await crowd.leave(visitor)
        del servers[1]
        for visitor in lost[::2]:
            await crowd.come(visitor.subject, luck.randrange(2))
        await crowd.all_know(LAPSED_WITHIN_S)
        assert crowd.told_of_the_end_of() == before - set(crowd.truth[0])

        # All are replaced, one after the other.
        servers.append(start())
        for place in range(2):
            moving = crowd.at(servers[place])
            servers[place].terminate()
            others = [each for each in range(3) if each != place]
            await crowd.move(moving, others)
            servers[place].stop()
            servers[place] = start()
        await crowd.all_know(LAPSED_WITHIN_S + 5)
        assert crowd.told_of_the_end_of() == set()

        # Redis stands still for 3 s, and some leave meanwhile.
        leaving = luck.choice(sorted(crowd.truth[0]))
        redis.freeze()
        for visitor in [each for each in crowd.here if each.subject == leaving]:
            await crowd.leave(visitor)
        await asyncio.sleep(3)
        redis.thaw()
        await crowd.all_know(LEFT_WITHIN_S)
        assert crowd.told_of_the_end_of() == {leaving}

        for visitor in list(crowd.here):
            await crowd.leave(visitor)

        async def lists() -> list[bytes]:
            return list(redis.client.scan_iter("*presence:*"))

        await eventually([], lists)
