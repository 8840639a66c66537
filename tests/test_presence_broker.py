"""Processes on one Redis know of each other who is connected, whatever becomes of them and of it."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from broker import presence as broker_presence
from broker.presence import KEPT_S
from broker.redis import RedisBroker
from broker.resp import LinkDown
from lockstep.contract import Attendance, Broker
from lockstep.metrics import Metrics
from tests.support.attending_process import AttendingProcess
from tests.support.brokers import Ears, comes_true, started
from tests.support.commits import created, new_id
from tests.support.redis_faults import depose, fill, lose_its_replicas
from tests.support.redis_server import Proxy, RedisServer
from tests.support.shifted_redis import ShiftedRedis

ONE = Attendance(1, 1_700_000_000_000)
TWO = Attendance(2, 1_700_000_000_000)


@pytest.fixture(params=["all", "targeted"])
def routing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """One to be spoilt."""
    server = RedisServer()
    yield server
    server.close()


def new_broker(url: str, routing: str = "all") -> RedisBroker:
    return RedisBroker(url, prefix="", routing=routing, allow_eviction=False, metrics=Metrics())


@asynccontextmanager
async def processes(
    redis: RedisServer, *session_ids: str, number: int = 2, routing: str = "all"
) -> AsyncIterator[list[tuple[RedisBroker, Ears]]]:
    async with AsyncExitStack() as stack:
        brokers = [new_broker(redis.url, routing) for _ in range(number)]
        yield [(each, await stack.enter_async_context(started(each, *session_ids))) for each in brokers]


def kept(redis: RedisServer) -> dict[str, Any]:
    """What Redis has of who is present, but for which processes say so."""
    with redis.client as client:
        keys = [key for key in client.keys("presence*") if key != b"presence-processes"]
        return {key.decode(): client.hgetall(key) for key in keys}


def settled(redis: RedisServer) -> int:
    """How many processes have said all."""
    with redis.client as client:
        return sum(not mark.startswith(b"-") for mark in client.hvals("presence-processes"))


class Held:
    """A script: what it is asked of one session fails at once, and of another waits until it may go on."""

    def __init__(self, script: Any, failing: str, held: str) -> None:
        self.script, self.failing, self.held = script, failing, held
        self.failed, self.may_go_on, self.is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, link: Any, keys: list[str], session_id: str, *rest: Any) -> Any:
        if session_id == self.failing and not self.failed.is_set():
            self.failed.set()
            raise LinkDown(sent=False, why="TRYAGAIN")
        if session_id == self.held and not self.may_go_on.is_set():
            self.held = ""  # the others are not
            await self.may_go_on.wait()
            reply = await self.script(link, keys, session_id, *rest)
            self.is_over.set()
            return reply
        return await self.script(link, keys, session_id, *rest)


# --- what is said is heard -----------------------------------------------------------------------


async def test_each_process_hears_what_the_others_say_and_not_itself(
    redis: RedisServer, routing: str
) -> None:
    session_id = new_id()
    async with processes(redis, session_id, number=3, routing=routing) as running:
        said = [{"ann": TWO, "": Attendance(7, 1)}, {"ben": ONE}, {"ann": ONE}]
        for (broker, _), attendances in zip(running, said, strict=True):
            for subject, attendance in attendances.items():
                broker.attend(session_id, subject, attendance)
        for index, (broker, ears) in enumerate(running):
            others = said[:index] + said[index + 1 :]
            await ears.until_present(session_id, *others)
            await comes_true(lambda: settled(redis) == 3)
            present = await broker.present(session_id)
            assert present == ears.present(session_id)
            assert len(present) == 2


async def test_who_has_left_is_told_and_is_no_longer_present(redis: RedisServer, routing: str) -> None:
    session_id = new_id()
    async with processes(redis, session_id, routing=routing) as [(one, _), (other, ears)]:
        one.attend(session_id, "ann", TWO)
        one.attend(session_id, "ben", ONE)
        await ears.until_present(session_id, {"ann": TWO, "ben": ONE})
        one.attend(session_id, "ann", None)
        await ears.until_present(session_id, {"ben": ONE})
        ((_, there),) = (await other.present(session_id)).items()
        assert there == {"ben": ONE}
        one.attend(session_id, "ben", None)
        await ears.until_present(session_id)
        # A process that has nobody there is known all the same.
        assert list((await other.present(session_id)).values()) == [{}]
        assert kept(redis) == {}


async def test_what_is_said_of_a_subject_comes_in_order_and_the_last_stays(redis: RedisServer) -> None:
    session_id = new_id()
    async with processes(redis, session_id) as [(one, _), (_, ears)]:
        for connections in range(1, 100, 2):
            one.attend(session_id, "ann", Attendance(connections, 1))
            one.attend(session_id, "ann", Attendance(connections + 1, 1))
            await asyncio.sleep(0.003)
            if connections == 49:
                await ears.until(lambda ears: ears.presence)
        await ears.until_present(session_id, {"ann": Attendance(100, 1)})
        heard = [attendances["ann"].connections for _, _, attendances in ears.presence]
        assert heard == sorted(heard)
        assert 1 < len(heard) <= 50


async def test_what_happens_at_once_is_told_together(redis: RedisServer) -> None:
    session_id = new_id()
    everybody = {f"subject {number}": Attendance(number, 1) for number in range(150)}
    async with processes(redis, session_id) as [(one, _), (_, ears)]:
        for subject, attendance in everybody.items():
            one.attend(session_id, subject, ONE)
            one.attend(session_id, subject, attendance)
        await ears.until_present(session_id, everybody)
        assert len(ears.presence) == 1


async def test_who_comes_back_at_once_is_not_told_to_have_left(redis: RedisServer) -> None:
    session_id = new_id()
    async with processes(redis, session_id) as [(one, _), (_, ears)]:
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        one.attend(session_id, "ann", None)
        one.attend(session_id, "ann", TWO)
        await ears.until_present(session_id, {"ann": TWO})
        assert [attendances for _, _, attendances in ears.presence] == [{"ann": ONE}, {"ann": TWO}]


SUBJECTS = ["", " ", "two words", " a ", '"', "\\", "\x00", "\n", "Zoë", "日本", "😀", "*[a]?", "x" * 1024]
SUBJECTS += [f"{number}{'é' * 400}" for number in range(300)]


async def test_a_subject_may_be_any_text(redis: RedisServer) -> None:
    session_id = new_id()
    everybody = dict.fromkeys(SUBJECTS, ONE)
    async with processes(redis, session_id) as [(one, _), (other, ears)]:
        for subject in SUBJECTS:
            one.attend(session_id, subject, ONE)
        await ears.until_present(session_id, everybody)
        await comes_true(lambda: settled(redis) == 1)
        assert list((await other.present(session_id)).values()) == [everybody]
        one._presence.doubt()  # what is stored of them is found to be what is so
        told = len(ears.presence)
        await comes_true(lambda: one._presence._is_settled)
        assert len(ears.presence) == told
        for subject in SUBJECTS:
            one.attend(session_id, subject, None)
        await ears.until_present(session_id)
        assert kept(redis) == {}


async def test_a_session_that_is_forgotten_has_nobody_and_may_begin_anew(redis: RedisServer) -> None:
    session_id, another = new_id(), new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        for subject in ("ann", "ben"):
            one.attend(session_id, subject, ONE)
            one.attend(another, subject, ONE)
        await ears.until_present(session_id, {"ann": ONE, "ben": ONE})
        one.forget_session(session_id)
        one.forget_session(new_id())
        await ears.until_present(session_id)
        assert kept(redis).keys() == {f"presence:{another}", f"presence-of:{one._presence._process}"}
        assert ears.present(another)
        one.attend(session_id, "ann", TWO)
        one.forget_session(session_id)
        one.attend(session_id, "ben", TWO)
        await ears.until_present(session_id, {"ben": TWO})
        assert list((await other.present(session_id)).values()) == [{"ben": TWO}]


@pytest.mark.parametrize("how", ["deleted", "lapsed"])
async def test_a_session_that_ends_takes_who_was_present_with_it(redis: RedisServer, how: str) -> None:
    session_id = new_id()
    async with processes(redis) as [(one, _), (_, ears)]:
        await created(one, session_id, lapses_in_ms=0)
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        assert await (one.delete(session_id) if how == "deleted" else one.lapse(10))
        assert f"presence:{session_id}" not in kept(redis)
        one.forget_session(session_id)
        await comes_true(lambda: kept(redis) == {})


# --- what the store does not know ----------------------------------------------------------------


@pytest.fixture
def in_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says all again is not waited for."""
    monkeypatch.setattr(broker_presence, "READ_AGAIN_TIMES", 0)


async def test_a_process_of_which_not_all_is_stored_is_left_out(
    redis: RedisServer, in_one_look: None
) -> None:
    session_id = new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        assert await other.present(session_id) == {}
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        await comes_true(lambda: settled(redis) == 1)
        process = one._presence._process
        assert await other.present(new_id()) == {process: {}}
        with redis.client as client:
            # Not all that it says is there, or something was lost while it was read.
            client.hset("presence-processes", process, "-9")
            assert await other.present(session_id) == {}
            client.hset("presence-processes", process, "5")
            client.hset(f"presence:{session_id}", mapping={f"{process} odd": "x", "odd": "1 5", " ": "1 1"})
            assert await other.present(session_id) == {process: {"ann": ONE}}
            client.delete("presence-processes")
            assert await other.present(session_id) == {}
        await comes_true(lambda: settled(redis) == 1)
        assert await other.present(session_id) == {process: {"ann": ONE}}


async def test_who_says_all_again_just_now_is_waited_for(redis: RedisServer) -> None:
    session_id = new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        process = one._presence._process
        marks, looks = other._presence._marks, 0

        async def marks_then() -> dict[str, bytes]:
            """Before its third read it has said all."""
            nonlocal looks
            looks += 1
            with redis.client as client:
                client.hset("presence-processes", process, "-9" if looks <= 4 else "10")
            return await marks()

        other._presence._marks = marks_then
        assert await other.present(session_id) == {process: {"ann": ONE}}
        assert looks >= 6


async def test_the_first_that_a_process_says_counts_at_once(redis: RedisServer) -> None:
    """Nothing of it can have been lost."""
    session_id = new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        one.attend(session_id, "ann", ONE)
        await ears.until(lambda ears: ears.presence)
        assert settled(redis) == 1
        assert list((await other.present(session_id)).values()) == [{"ann": ONE}]


async def test_what_is_lost_while_it_is_read_passes_for_nobodys_departure(
    redis: RedisServer, in_one_look: None
) -> None:
    """Between the first look at the processes and the last another mark was set."""
    session_id = new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        await comes_true(lambda: settled(redis) == 1)
        marks, asked = other._presence._marks, []

        async def marks_then() -> dict[str, bytes]:
            if asked:
                with redis.client as client:
                    client.hset("presence-processes", one._presence._process, "77")
            asked.append(True)
            return await marks()

        other._presence._marks = marks_then
        assert await other.present(session_id) == {}
        assert len(asked) == 2


@pytest.mark.parametrize("loss", ["flushall", "restart"])
async def test_what_redis_has_lost_is_said_again(redis: RedisServer, loss: str) -> None:
    session_id, another = new_id(), new_id()
    async with processes(redis, number=2) as running:
        (one, _), (other, other_ears) = running
        one.attend(session_id, "ann", ONE)
        one.attend(another, "ann", ONE)
        other.attend(session_id, "ben", TWO)
        await other_ears.until_present(session_id, {"ann": ONE})
        await comes_true(lambda: settled(redis) == 2)
        if loss == "flushall":
            redis.client.flushall()
        else:
            redis.kill()
            redis.forget()
            one.attend(session_id, "ann", None)
            one.attend(session_id, "cat", ONE)
            redis.start()
        expected = {"ann": ONE} if loss == "flushall" else {"cat": ONE}
        if loss == "flushall":
            await comes_true(lambda: settled(redis) == 2)
            await other_ears.until_present(session_id, expected)
        else:  # what was said before it was heard again was missed, which is a gap
            await other_ears.until(lambda ears: ears.gaps > 1)
            await comes_true(lambda: settled(redis) == 2)
        assert await other.present(session_id) == {one._presence._process: expected}
        assert await other.present(another) == {one._presence._process: {"ann": ONE}}
        assert await one.present(session_id) == {other._presence._process: {"ben": TWO}}


async def test_a_store_that_was_put_back_is_put_right(redis: RedisServer) -> None:
    """As after a failover that has lost what was said last."""
    session_id, ended, unlisted = new_id(), new_id(), new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        process = one._presence._process
        for subject in ("ann", "ben", "cat"):
            one.attend(session_id, subject, ONE)
        one.attend(unlisted, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE, "ben": ONE, "cat": ONE})
        await comes_true(lambda: settled(redis) == 1)
        with redis.client as client:
            client.hdel(f"presence:{session_id}", f"{process} ann")
            client.hset(f"presence:{session_id}", f"{process} ben", "9 9")
            client.hset(f"presence:{session_id}", f"{process} gone", "1 1")
            client.hset(f"presence:{session_id}", "another ann", "1 1")
            client.hset(f"presence-of:{process}", ended, "")
            client.hset(f"presence:{ended}", f"{process} gone", "1 1")
            client.hset(f"presence-of:{process}", new_id(), "")
            client.hdel(f"presence-of:{process}", unlisted)
        told = len(ears.presence)
        one._link.reset("to another one")
        await comes_true(lambda: one._presence._is_settled and one._presence._mark != b"2")
        await ears.until(lambda ears: len(ears.presence) >= told + 5)
        assert await other.present(session_id) == {process: {"ann": ONE, "ben": ONE, "cat": ONE}}
        assert await other.present(ended) == {process: {}}
        with redis.client as client:
            assert client.hget(f"presence:{session_id}", "another ann") == b"1 1"
            assert set(client.hkeys(f"presence-of:{process}")) == {session_id.encode(), unlisted.encode()}
        # What was right is not said again.
        assert all("cat" not in (attendances or {}) for _, _, attendances in ears.presence[told:])


async def test_what_happens_while_the_link_is_cut_is_told_when_it_is_back(redis: RedisServer) -> None:
    session_id, another = new_id(), new_id()
    async with Proxy(redis.port) as proxy, processes(redis) as [(_, ears), _]:
        one = new_broker(proxy.url)
        async with started(one):
            for subject in ("ann", "ben"):
                one.attend(session_id, subject, ONE)
            one.attend(another, "ann", ONE)
            await ears.until_present(session_id, {"ann": ONE, "ben": ONE})
            proxy.refuses = True
            proxy.cut()
            one.attend(session_id, "ann", None)
            one.attend(session_id, "ben", TWO)
            one.attend(session_id, "cat", ONE)
            await comes_true(lambda: one._presence._is_put_off)
            one.attend(session_id, "dan", ONE)
            one.forget_session(another)
            proxy.refuses = False
            await ears.until_present(session_id, {"ben": TWO, "cat": ONE, "dan": ONE})
            await ears.until_present(another)


async def test_what_was_not_answered_is_said_again(redis: RedisServer) -> None:
    session_id = new_id()
    async with Proxy(redis.port) as proxy, processes(redis) as [(_, ears), _]:
        one = new_broker(proxy.url)
        async with started(one):
            one.attend(session_id, "cat", ONE)
            await ears.until_present(session_id, {"cat": ONE})
            await comes_true(lambda: one._presence._is_settled)
            proxy.swallows_replies = True
            one.attend(session_id, "cat", None)
            one.attend(session_id, "ann", ONE)
            await ears.until_present(session_id, {"ann": ONE})
            one.attend(session_id, "ann", None)
            proxy.cut()
            proxy.swallows_replies = False
            await ears.until_present(session_id)
            assert await one.present(session_id) == {}


@pytest.mark.parametrize("trouble", [fill, lose_its_replicas, depose])
async def test_what_redis_refuses_is_told_later(
    redis: RedisServer, trouble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = new_id()
    async with processes(redis) as [(one, _), (other, ears)]:
        for subject in ("ann", "ben", "cat"):
            one.attend(session_id, subject, ONE)
        await ears.until_present(session_id, {"ann": ONE, "ben": ONE, "cat": ONE})
        trouble(redis)
        one.attend(session_id, "ann", TWO)
        one.attend(session_id, "ben", None)
        await comes_true(lambda: one._presence._is_put_off)
        assert "who is present is told later" in caplog.text
        if trouble is fill:
            # It takes it that somebody has left.
            await ears.until_present(session_id, {"ann": ONE, "cat": ONE})
        one.attend(session_id, "cat", None)
        one.attend(session_id, "dan", ONE)
        with redis.client as client:
            if trouble is depose:
                client.replicaof("no", "one")
            client.config_set("maxmemory", 0)
            client.config_set("min-replicas-to-write", 0)
        await ears.until_present(session_id, {"ann": TWO, "dan": ONE})
        await comes_true(lambda: not one._presence._is_put_off)
        assert list((await other.present(session_id)).values()) == [{"ann": TWO, "dan": ONE}]


async def test_what_is_said_late_beside_a_failure_does_not_undo_what_was_said_since(
    redis: RedisServer,
) -> None:
    other_id, session_id = new_id(), new_id()
    async with processes(redis, session_id, number=1) as [(broker, _)]:
        presence = broker._presence
        presence._attend = script = Held(presence._attend, other_id, session_id)  # type: ignore[assignment]
        broker.attend(session_id, "ann", ONE)
        broker.attend(other_id, "ben", ONE)
        await script.failed.wait()
        broker.attend(session_id, "ann", None)
        # As long as it takes where what is on its way is not waited for.
        until_s = asyncio.get_running_loop().time() + 0.3
        while session_id in presence._unsaid and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(0.01)
        script.may_go_on.set()
        await script.is_over.wait()
        await comes_true(lambda: not presence._unsaid and not presence._is_saying)
        await comes_true(lambda: f"presence:{other_id}" in kept(redis))
        assert f"presence:{session_id}" not in kept(redis)


async def test_a_key_that_somebody_else_uses_holds_up_its_own_session_alone(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    taken, session_id = new_id(), new_id()
    redis.client.set(f"presence:{taken}", "another program's")
    async with processes(redis) as [(one, _), (other, ears)]:
        one.attend(taken, "ann", ONE)
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        await comes_true(lambda: settled(redis) == 1)
        assert list((await other.present(session_id)).values()) == [{"ann": ONE}]
        assert f"session {taken}: WRONGTYPE" in caplog.text
        redis.client.delete(f"presence:{taken}")
        await ears.until_present(taken, {"ann": ONE})


# --- the dead are swept --------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes take each other for dead as soon as they are, also after Redis was away."""
    monkeypatch.setattr(broker_presence, "RENEWED_AFTER_S", 0.0)


def process_with(redis: RedisServer, session_id: str) -> str:
    """The process that has somebody in this session."""
    with redis.client as client:
        found = {
            key.decode().removeprefix("presence-of:")
            for key in client.keys("presence-of:*")
            if client.hexists(key, session_id)
        }
    (process,) = found
    return process


def near_its_end(redis: RedisServer, process: str) -> None:
    """As if the process had been dead for 13 s."""
    redis.client.pexpire(f"process:{process}", 1_900)


def nulls(ears: Ears) -> list[str]:
    """The sessions of which it was told that a process is no more."""
    return [session_id for session_id, _, attendances in ears.presence if attendances is None]


async def test_what_a_killed_process_said_is_withdrawn_and_told_once(
    redis: RedisServer, routing: str, at_once: None
) -> None:
    session_id, other_session = new_id(), new_id()
    async with processes(redis, session_id, other_session, number=3, routing=routing) as running:
        (one, ears), _, (third, _) = running
        with AttendingProcess(redis.url, routing=routing) as killed:
            killed.attend(session_id, "ann", "ben", "")
            killed.attend(other_session, "ann")
            one.attend(session_id, "ann", ONE)
            await ears.until(lambda ears: ears.present(session_id) and ears.present(other_session))
            process = process_with(redis, other_session)
            killed.kill()
            near_its_end(redis, process)
            await ears.until_present(session_id)
            await ears.until_present(other_session)
        own = one._presence._process
        await comes_true(lambda: redis.client.hkeys("presence-processes") == [own.encode()])
        assert kept(redis).keys() == {f"presence:{session_id}", f"presence-of:{own}"}
        assert list(await third.present(session_id)) == [own]
        for _, each in running:
            await each.until(lambda ears: len(nulls(ears)) >= 2)
            assert sorted(nulls(each)) == sorted([session_id, other_session])


@pytest.mark.long
@pytest.mark.parametrize("number", range(3))
async def test_a_killed_process_is_gone_within_15_s(redis: RedisServer, number: int) -> None:
    session_id = new_id()
    loop = asyncio.get_running_loop()
    async with processes(redis, session_id) as [(_, ears), _]:
        with AttendingProcess(redis.url) as killed:
            killed.attend(session_id, "ann")
            await ears.until(lambda ears: ears.present(session_id))
            await asyncio.sleep(number * 0.3)
            killed.kill()
            killed_at_s = loop.time()
            await asyncio.sleep(10)
            assert ears.present(session_id)
            await ears.until(lambda ears: not ears.present(session_id))
            assert loop.time() - killed_at_s < 16


async def test_what_a_process_said_that_was_stopped_lapses(redis: RedisServer, at_once: None) -> None:
    session_id = new_id()
    async with processes(redis) as [(other, ears), _]:
        one = new_broker(redis.url)
        async with started(one):
            one.attend(session_id, "ann", ONE)
            await ears.until_present(session_id, {"ann": ONE})
            await comes_true(lambda: settled(redis) == 1)
        one.attend(session_id, "ann", None)  # what its clients do then is not told any more
        assert await other.present(session_id) == {one._presence._process: {"ann": ONE}}
        near_its_end(redis, one._presence._process)
        await ears.until_present(session_id)
        await comes_true(lambda: redis.client.keys("presence*") == [])
        assert [attendances for _, _, attendances in ears.presence] == [{"ann": ONE}, None]


async def test_a_process_that_was_taken_for_dead_says_everything_again(
    redis: RedisServer, at_once: None
) -> None:
    session_id, another = new_id(), new_id()
    async with processes(redis) as [(other, ears), _]:
        with AttendingProcess(redis.url) as frozen:
            frozen.attend(session_id, "ann", "ben")
            frozen.attend(another, "ann")
            await ears.until(lambda ears: ears.present(session_id) and ears.present(another))
            process = process_with(redis, another)
            frozen.signal(signal.SIGSTOP)
            near_its_end(redis, process)
            await ears.until(lambda ears: len(nulls(ears)) == 2)
            frozen.signal(signal.SIGCONT)
            await ears.until(
                lambda ears: len(ears.present(session_id).get(process, {})) == 2 and ears.present(another)
            )
            await comes_true(lambda: settled(redis) == 1)
            assert (await other.present(session_id))[process].keys() == {"ann", "ben"}
            assert (await other.present(another))[process].keys() == {"ann"}


async def test_a_large_session_is_swept_and_who_lives_stays(redis: RedisServer, at_once: None) -> None:
    session_id, dead = new_id(), str(uuid4())
    async with processes(redis) as [(one, _), (_, ears)]:
        one.attend(session_id, "ann", ONE)
        await ears.until_present(session_id, {"ann": ONE})
        with redis.client as client:
            fields = {f"{dead} {'é' * 20}{number}": "1 1" for number in range(2_500)}
            client.hset(f"presence:{session_id}", mapping=fields)
            many = {str(uuid4()): "" for _ in range(250)}
            client.hset(f"presence-of:{dead}", mapping=many | {session_id: ""})
            client.hset("presence-processes", dead, "3")
        await ears.until(lambda ears: len(nulls(ears)) == 251)
        await comes_true(lambda: not redis.client.exists(f"presence-of:{dead}"))
        assert redis.client.hkeys(f"presence:{session_id}") == [f"{one._presence._process} ann".encode()]
        assert set(nulls(ears)) == many.keys() | {session_id}
        assert ears.present(session_id) == {one._presence._process: {"ann": ONE}}


async def test_nobody_is_taken_for_dead_as_soon_as_redis_is_back(redis: RedisServer) -> None:
    """It was away for longer than a sign of life lasts, and each process renews its own."""
    session_id = new_id()
    async with processes(redis, number=3) as running:
        for broker, _ in running:
            broker.attend(session_id, "ann", ONE)
        for _, ears in running:
            await ears.until_present(session_id, {"ann": ONE}, {"ann": ONE})
        await comes_true(lambda: settled(redis) == 3)
        life_signs = [f"process:{broker._presence._process}" for broker, _ in running]
        redis.freeze()
        for broker, _ in running:
            await comes_true(lambda broker=broker: not broker._link.is_up)
        # It takes this up before what they send when it is back.
        with socket.create_connection(("127.0.0.1", redis.port)) as connection:
            connection.sendall(f"DEL {' '.join(life_signs)}\r\n".encode())
            redis.thaw()
            assert await asyncio.to_thread(connection.recv, 100) == b":3\r\n"
        await comes_true(lambda: redis.client.exists(*life_signs) == 3)
        await comes_true(lambda: all(broker._presence._is_settled for broker, _ in running))
        assert [nulls(ears) for _, ears in running] == [[], [], []]


@pytest.mark.parametrize("by_s", [7_200, -7_200])
async def test_nobody_is_taken_for_dead_where_the_clock_of_redis_was_set(by_s: int) -> None:
    """All signs of life are gone at once, and so is all else that lapses; or they have too much left."""
    session_id = new_id()
    redis = ShiftedRedis()
    try:
        async with processes(redis, number=3) as running:
            for broker, _ in running:
                broker.attend(session_id, "ann", ONE)
            for _, ears in running:
                await ears.until_present(session_id, {"ann": ONE}, {"ann": ONE})
            await asyncio.sleep(broker_presence.RENEWED_AFTER_S)
            redis.shift(by_s)
            life_signs = [f"process:{broker._presence._process}" for broker, _ in running]
            await comes_true(lambda: all(0 < redis.client.pttl(each) <= 15_000 for each in life_signs))
            await comes_true(lambda: settled(redis) == 3)
            for broker, ears in running:
                assert len(await broker.present(session_id)) == 2
                await ears.until_present(session_id, {"ann": ONE}, {"ann": ONE})
                assert nulls(ears) == []
    finally:
        redis.close()


async def test_a_sign_of_life_with_too_much_left_is_cut(redis: RedisServer, at_once: None) -> None:
    """It is from before the clock of Redis was set back."""
    dead = str(uuid4())
    async with processes(redis):
        with redis.client as client:
            client.set(f"process:{dead}", 1, px=3_600_000)
            client.hset("presence-processes", dead, "3")
            client.hset(f"presence-of:{dead}", new_id(), "")
            await comes_true(lambda: 0 < client.pttl(f"process:{dead}") <= 15_000)
            assert client.exists(f"presence-of:{dead}")


# --- what is kept, and for how long --------------------------------------------------------------


async def test_no_key_stays_for_ever_and_what_is_used_is_renewed(redis: RedisServer) -> None:
    session_id, another = new_id(), new_id()
    async with processes(redis) as [(one, _), (_, ears)]:
        for each in (session_id, another):
            one.attend(each, "ann", ONE)
            await ears.until_present(each, {"ann": ONE})
        await comes_true(lambda: settled(redis) == 1)
        with redis.client as client:
            keys = client.keys("presence*")
            assert len(keys) == 4
            assert all(KEPT_S - 60 < client.ttl(key) <= KEPT_S for key in keys)
            for key in keys:
                client.expire(key, 100)
            told = len(ears.presence)
            await one._presence.keep()
            await comes_true(lambda: all(client.ttl(key) > KEPT_S - 60 for key in keys))
        await comes_true(lambda: one._presence._is_settled)
        assert len(ears.presence) == told


async def test_nothing_is_said_where_nobody_has_presence(redis: RedisServer) -> None:
    async with processes(redis) as [(one, _), _]:
        await one._presence.keep()
        one._link.reset("to say it all again")
        await comes_true(lambda: one._link.is_up)
        await one._look()
        await one._look()
        assert redis.client.keys("presence*") == []


# --- what is no message of ours ------------------------------------------------------------------


async def test_what_is_no_message_of_ours_is_junk(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    session_id, process = new_id(), str(uuid4())
    head = f'{{"type":"PRESENCE","sessionId":"{session_id}","process":"{process}","attendances":'
    junk = [
        '{"type":"PRESENCE"}',
        f'{{"type":"PRESENCE","sessionId":"{session_id}","process":"{process}"}}',
        f'{{"type":"PRESENCE","sessionId":"{session_id}","process":"x","attendances":null}}',
        f'{{"type":"PRESENCE","sessionId":"{session_id.upper()}","process":"{process}","attendances":null}}',
        *(
            head + tail
            for tail in (
                "",
                "}",
                "null",
                "null,}",
                "[]}",
                "1}",
                '{"a":1}}',
                '{"a":[]}}',
                '{"a":[1]}}',
                '{"a":[1,2,3]}}',
                '{"a":[-1,2]}}',
                '{"a":[1.5,2]}}',
                '{"a":[true,2]}}',
                '{"a":["1",2]}}',
                '{"a":[1,2]}',
                '{"a":[1,2]},"b":1}',
                '{"\\ud800":[1,2]}}',
                '{"a":' * 5_000 + "}" * 5_001,
            )
        ),
    ]
    async with processes(redis, session_id) as [(_, ears), _]:
        with redis.client as client:
            for payload in junk:
                client.publish("session-updates", payload)
            client.publish("session-updates", head.encode() + b'{"\xff":null}}')
            client.publish("session-updates", head + '{"a":[1,2],"b":null}}')
        await ears.until(lambda ears: ears.presence)
        assert ears.presence == [(session_id, process, {"a": Attendance(1, 2), "b": None})]
        assert len(ears.published) == len(junk) + 1
        assert json.loads(junk[0]) == json.loads(ears.published[0])


async def test_a_broker_says_what_was_attended_before_it_had_clients(redis: RedisServer) -> None:
    """A process whose Redis is away when its first client comes says it when Redis is there."""
    session_id = new_id()
    one: Broker = new_broker(redis.url)
    async with started(one):
        redis.kill()
        one.attend(session_id, "ann", ONE)
        redis.start()
        async with started(new_broker(redis.url)) as ears:
            await ears.until(
                lambda ears: ears.present(session_id) or redis.client.exists(f"presence:{session_id}")
            )
