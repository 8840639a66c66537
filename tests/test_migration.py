"""`lockstep migrate`: all that has to survive gets from one Redis to another, or nothing is said to have."""

import asyncio
import contextlib
import functools
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

import broker as brokers
from broker import migration_ends
from cli import run_command
from lockstep.changes import NOBODY
from lockstep.contract import Broker, EpochTooLow, IdempotencyRecord
from lockstep.idempotency import Idempotent, Replay
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.rules import state_json
from lockstep.rules.state import Mode
from lockstep.rules.steps import Rule
from lockstep.sessions import Sessions
from lockstep.setting import SettingsError
from tests.support import settled_rules as engine
from tests.support.brokers import Ears, started
from tests.support.commits import applied, created, creation, fell_due, new_id, spec
from tests.support.load import chess
from tests.support.migrations import End, assert_same, migrate_command, slowed
from tests.support.processes import ServerProcess, rss_bytes, running
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer

HISTORY_BYTES = 2**26


@pytest.fixture(scope="module")
def other_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


WAYS = {
    "redis_to_redis": ("redis_server", "other_redis"),
    "redis_to_cluster": ("redis_server", "redis_cluster"),
    "cluster_to_redis": ("redis_cluster", "redis_server"),
}


@pytest.fixture(params=WAYS)
def ends(request: pytest.FixtureRequest) -> tuple[End, End]:
    prefix = f"{uuid.uuid4()}-"
    source, target = (End(request.getfixturevalue(name), prefix) for name in WAYS[request.param])
    return source, target


async def move(source: End, target: End) -> list[str]:
    """What it says, line by line."""
    said: list[str] = []
    await brokers.migrate(source.url, target.url, source.prefix, said.append)
    return said


async def refused(source: End, target: End) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as failure:
        await move(source, target)
    return str(failure.value)


async def switched(broker: Broker, times: int, bank_ms: int = 600_000, **fields: Any) -> str:
    """A running session that was switched so many times."""
    session = await created(broker, new_id(), bank_ms=bank_ms, **fields)
    session = await applied(broker, session, engine.start)
    for _ in range(times):
        session = await applied(broker, session, engine.switch)
    return session.session_id


def noted(size_bytes: int) -> Rule:
    return functools.partial(engine.annotate, metadata={"text": "x" * size_bytes})


# --- what is carried -----------------------------------------------------------------------------


async def test_states_histories_deadlines_and_lapses_are_the_same_after_a_move(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        ids = [await switched(broker, times) for times in (0, 1, 30)]
        ids.append((await created(broker, new_id(), lapses_in_ms=100_000)).session_id)
        ids.append((await created(broker, new_id(), metadata={"text": "Zoë \x00 " * 5_000})).session_id)
        histories = [await broker.history(each, 0, HISTORY_BYTES) for each in ids]
        states = await broker.load(ids)
    said = await move(source, target)
    assert said[0] == "moving 5 sessions"
    assert "verified 5 sessions: " in said[-2]
    assert_same(source, target, ids)
    async with target.opened() as broker:
        assert await broker.load(ids) == states
        assert [await broker.history(each, 0, HISTORY_BYTES) for each in ids] == histories
        listed = await broker.page((0, ""), 10)
        assert {session_id for _, session_id in listed} == set(ids)


async def test_a_history_of_many_pages_arrives_whole(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session = await applied(broker, await created(broker, new_id()), engine.start)
        for size in (10, 4_000, 4_000) * 60:
            session = await applied(broker, session, noted(size))
    await move(source, target)
    assert_same(source, target, [session.session_id])
    assert len(target.look(session.session_id)[1]) == 182


async def test_a_request_that_was_done_before_the_move_is_done_after_it(ends: tuple[End, End]) -> None:
    source, target = ends
    key = uuid.uuid4().hex
    async with source.opened() as broker:
        session_id = new_id()
        content = b'{"body":"b","status":200,"session_id":"%b","tag":"","commit":"c","is_kept":true}\n{}'
        record = IdempotencyRecord(key, content % session_id.encode(), 500_000, None)
        commit, _ = creation(broker, session_id)
        await broker.commit(structs.replace(commit, record=record))
    await move(source, target)
    async with target.opened() as broker:
        assert await broker.recall(session_id, key) == [commit.state, record.content]
    left_ms = target.client.pttl(target.keys(session_id).record(key))
    assert 400_000 < left_ms <= 500_000


async def test_a_creation_without_an_id_is_not_made_again_after_the_move(ends: tuple[End, End]) -> None:
    source, target = ends
    unnamed = structs.replace(spec(new_id(), Mode.GLOBAL, total_time_ms=1_000), session_id="")
    names = [("POST", "/v1/sessions", "", f"key {number}") for number in range(5)]
    contexts = [
        structs.replace(NOBODY, idempotent=Idempotent.of(name, name, b"{}", {}, 600)) for name in names
    ]
    async with source.opened() as broker:
        service = Sessions(broker, Lifetimes(), Metrics())
        made = [(await service.create(unnamed, each)).session.session_id for each in contexts]
    await move(source, target)
    async with target.opened() as broker:
        service = Sessions(broker, Lifetimes(), Metrics())
        for session_id, context in zip(made, contexts, strict=True):
            with pytest.raises(Replay) as again:
                await service.create(unnamed, context)
            assert again.value.record.session_id == session_id


async def test_a_deadline_falls_due_after_the_move(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session = await fell_due(broker, new_id())
    await move(source, target)
    async with target.opened() as broker:
        assert await broker.due(0, 10) == [(session.deadline_ms, session.session_id)]


async def test_no_creation_after_the_move_is_dated_before_one_that_was(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        early, _ = creation(broker, new_id())
        await created(broker, new_id())
        deleted = await created(broker, early.session_id)
        assert await broker.delete(deleted.session_id)
    await move(source, target)
    async with target.opened() as broker:
        with pytest.raises(EpochTooLow):
            await broker.commit(early)


async def test_how_the_processes_route_is_carried(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        await created(broker, new_id())
    source.client.set(source.first_keys.routing, "targeted")
    await move(source, target)
    assert target.routing() == b"targeted"


async def test_a_session_without_an_expiry_keeps_none(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session_id = await switched(broker, 2)
    source.client.persist(source.keys(session_id).state(session_id))
    await move(source, target)
    assert target.client.ttl(target.keys(session_id).state(session_id)) == -1


async def test_what_is_named_like_ours_and_is_none_of_ours_is_left_behind(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session_id = await switched(broker, 2)
    odd = new_id()
    source.client.hset(source.keys(odd).state(odd), "a", "b")
    source.client.set(source.keys(odd).record("f" * 40), "no record")
    source.client.set(f"another-{source.prefix}session:{new_id()}", "x")
    said = await move(source, target)
    assert "left behind: 2 keys that have names of ours and are none of ours" in said
    assert target.client.exists(target.keys(odd).state(odd)) == 0
    assert_same(source, target, [session_id])


async def test_a_history_that_is_none_of_ours_is_left_behind_and_its_session_moved(
    ends: tuple[End, End],
) -> None:
    source, target = ends
    async with source.opened() as broker:
        session_id = await switched(broker, 2)
    events = source.keys(session_id).events(session_id)
    source.client.delete(events)
    source.client.set(events, "no stream")
    said = await move(source, target)
    assert "left behind: 1 keys that have names of ours and are none of ours" in said
    state = [end.client.get(end.keys(session_id).state(session_id)) for end in ends]
    assert state[0] == state[1]
    assert target.client.exists(target.keys(session_id).events(session_id)) == 0


# --- what is refused -----------------------------------------------------------------------------


async def test_a_move_is_refused_while_a_process_is_on_either_end(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session_id = await switched(broker, 1)
        async with asyncio.timeout(10):
            assert await refused(source, target) == "FROM is used by 1 process: stop all first"
    async with target.opened():
        assert await refused(source, target) == "TO is used by 1 process: stop all first"
    assert target.client.exists(target.keys(session_id).state(session_id)) == 0


async def test_a_process_that_has_ended_is_waited_for(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session_id = await switched(broker, 1)
    life_sign = source.keys(session_id).life_sign(new_id())
    source.client.set(life_sign, 1, ex=600)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        source.client.delete(life_sign)

    async with asyncio.timeout(60):
        await brokers.migrate(source.url, target.url, source.prefix, say)
    assert said[0].startswith("waiting until no process is on FROM")
    assert_same(source, target, [session_id])


async def test_a_process_that_comes_during_the_move_undoes_it(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        session_id = await switched(broker, 1)

    async def one_comes() -> None:
        async with started(source.broker()):
            await asyncio.sleep(3600)

    coming: list[asyncio.Task[None]] = []

    def say(line: str) -> None:
        if line.startswith("copied"):
            source.client.set(source.keys(session_id).life_sign(new_id()), 1, ex=600)
            coming.append(asyncio.create_task(one_comes()))

    with pytest.raises(ValueError, match="FROM is used by 1 process: one came while"):
        await brokers.migrate(source.url, target.url, source.prefix, say)
    coming[0].cancel()
    await asyncio.wait(coming)
    assert (target.routing() or b"").startswith(b"migrating from ")


async def test_an_end_that_has_sessions_is_not_moved_to(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        await switched(broker, 1)
    async with target.opened() as broker:
        session_id = await switched(broker, 1)
    before = target.look(session_id)
    assert (await refused(source, target)).startswith("TO has 1 sessions already")
    assert (await refused(source, source)).startswith("TO has 1 sessions already")
    assert target.look(session_id)[:4] == before[:4]


async def test_an_end_without_sessions_is_not_moved_from(ends: tuple[End, End]) -> None:
    source, target = ends
    assert (await refused(source, target)).startswith("FROM has no sessions")


async def test_a_part_of_other_sessions_is_neither_moved_nor_moved_to(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        await switched(broker, 1)
    target.client.set(target.first_keys.routing, "migrating from redis://10.0.0.1:6379")
    said = "TO has a part of other sessions: it is migrating from redis://10.0.0.1:6379"
    assert await refused(source, target) == said
    target.client.delete(target.first_keys.routing)
    source.client.set(source.first_keys.routing, "migrating from redis://10.0.0.1:6379")
    assert (await refused(source, target)).startswith("FROM has only a part of its sessions")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the URLs of two Redis are needed: lockstep migrate FROM TO"),
        (["redis://127.0.0.1:1"], "the URLs of two Redis are needed: lockstep migrate FROM TO"),
        (["--prefix=a", "redis://127.0.0.1:1"], "the URLs of two Redis are needed"),
        (["redis://127.0.0.1:1", "redis://127.0.0.1:2", "x"], "x: options are given as --name=value"),
        (["redis://127.0.0.1:1", "redis://127.0.0.1:2", "--prefxi=a"], "did you mean --prefix?"),
        (["memory://", "redis://127.0.0.1:2"], "migrate: what is in memory:// ends with its process"),
        (["redis://:hush@127.0.0.1:1", "memory://x"], "migrate: broker: 'memory://x' cannot be used"),
        (["redis://:hush@127.0.0.1:1", "redis://b"], "FROM (redis://***@127.0.0.1:1): [Errno 111] Connect"),
    ],
)
def test_what_cannot_be_moved_is_said_in_one_line(args: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=r"\A[^\n]+\Z") as refusal:
        run_command(["migrate", *args])
    assert said in str(refusal.value)
    assert "hush" not in str(refusal.value)


async def test_an_end_that_does_not_answer_is_named(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_ends, "START_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        with pytest.raises(ValueError, match=rf"\AFROM \({url}\): it does not answer\Z"):
            await brokers.migrate(url, redis_server.url, "", print)


async def test_a_prefix_that_a_cluster_gives_a_meaning_is_not_moved(
    redis_server: RedisServer, redis_cluster: RedisCluster
) -> None:
    source, target = End(redis_server, "my{own}-"), End(redis_cluster, "my{own}-")
    assert "TO: Redis Cluster gives { a meaning in names" in await refused(source, target)


async def test_an_end_that_may_evict_sessions_is_not_moved_to(redis_server: RedisServer) -> None:
    prefix = f"{uuid.uuid4()}-"
    source, own = End(redis_server, prefix), RedisServer("--maxmemory-policy", "allkeys-lru")
    try:
        async with source.opened() as broker:
            await switched(broker, 1)
        assert "maxmemory-policy is allkeys-lru" in await refused(source, End(own, prefix))
    finally:
        own.close()


# --- what is interrupted -------------------------------------------------------------------------


async def is_under_way(target: End, sessions: int) -> None:
    async with asyncio.timeout(30):
        while sum(target.client.zcard(keys.sessions) for keys in target.all_keys()) < sessions:
            await asyncio.sleep(0.01)


async def test_what_was_interrupted_goes_on_with_what_has_changed_since(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        ids = [(await created(broker, new_id())).session_id for _ in range(200)]
    async with slowed(source) as url:
        moving = asyncio.create_task(brokers.migrate(url, target.url, source.prefix, lambda _: None))
        await is_under_way(target, 40)
        moving.cancel()
        await asyncio.wait((moving,))
        # No process starts on a part of the sessions.
        in_vain = target.broker()
        with pytest.raises(ValueError, match="not all sessions are there, Redis is migrating from"):
            await in_vain.start(Ears())
        await in_vain.close()
        target.forget_processes()
        # Those of FROM go on meanwhile.
        async with source.opened() as broker:
            there = [each for each in ids if target.look(each)[0]]
            assert 0 < len(there) < len(ids)
            assert await broker.delete(there[0])
            for each in there[1:3]:
                (state,) = await broker.load([each])
                assert state is not None
                await applied(broker, state_json.from_json(state), engine.start)
            ids.append(await switched(broker, 3))
        ids.remove(there[0])
        said: list[str] = []
        await brokers.migrate(url, target.url, source.prefix, said.append)
    assert said[0] == "going on with 200 sessions"
    assert any("had been before" in line for line in said)
    assert any("1 removed at TO that FROM has no more" in line for line in said)
    assert_same(source, target, ids)
    assert target.look(there[0])[:4] == (None, [], None, None)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
async def test_a_command_that_was_ended_can_be_given_again(
    ends: tuple[End, End], number: signal.Signals
) -> None:
    source, target = ends
    async with source.opened() as broker:
        ids = [(await created(broker, new_id())).session_id for _ in range(200)]
    async with slowed(source) as url:
        command = await migrate_command(url, target.url, f"--prefix={source.prefix}")
        await is_under_way(target, 40)
        command.send_signal(number)
        _, err = await command.communicate()
        if number == signal.SIGINT:
            said = "lockstep: migrate: interrupted; begun again it goes on where it was\n"
            assert (command.returncode, err.decode()) == (1, said)
        again = await migrate_command(url, target.url, f"--prefix={source.prefix}")
        out, err = await again.communicate()
    assert (again.returncode, err) == (0, b"")
    assert out.decode().startswith("going on with 200 sessions\n")
    assert_same(source, target, ids)


# --- with processes ------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["redis_to_cluster"], indirect=True)
async def test_a_game_goes_on_after_the_move_where_it_was(ends: tuple[End, End]) -> None:
    source, target = ends
    game, key = chess(), uuid.uuid4().hex
    path = f"/v1/sessions/{game['session_id']}"
    with running(ServerProcess(f"--broker={source.url}", f"--prefix={source.prefix}")) as server:
        assert (await server.call("POST", "/v1/sessions", game)).status == 201
        await server.call("POST", f"{path}/start")
        switch = await server.call("POST", f"{path}/switch", headers={"Idempotency-Key": key})
        assert switch.status == 200
        before = (await server.call("GET", path)).data
        events = (await server.call("GET", f"{path}/events")).data
    source.forget_processes()
    await move(source, target)
    with running(ServerProcess(f"--broker={target.url}", f"--prefix={target.prefix}")) as server:
        assert (await server.call("GET", path)).data == before
        assert (await server.call("GET", f"{path}/events")).data == events
        again = await server.call("POST", f"{path}/switch", headers={"Idempotency-Key": key})
        assert (again.status, again.raw) == (200, switch.raw)
        assert (await server.call("POST", f"{path}/switch")).data["version"] == before["version"] + 1
        (listed,) = (await server.call("GET", "/v1/sessions")).data["sessions"]
        assert listed["session_id"] == game["session_id"]


# --- many ----------------------------------------------------------------------------------------


@pytest.mark.long
async def test_ten_thousand_sessions_are_moved_in_bounded_memory(ends: tuple[End, End]) -> None:
    source, target = ends
    async with source.opened() as broker:
        ids = []
        for _ in range(100):
            ids += await asyncio.gather(*(switched(broker, 2) for _ in range(100)))
        big = await applied(broker, await created(broker, new_id()), engine.start)
        for _ in range(200):
            big = await applied(broker, big, noted(4_000))
        ids.append(big.session_id)
    began_s = time.monotonic()
    command = await migrate_command(source.url, target.url, f"--prefix={source.prefix}")
    peak_bytes = 0
    ended = asyncio.create_task(command.wait())
    try:
        while not ended.done():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                peak_bytes = max(peak_bytes, rss_bytes(command.pid))
            await asyncio.wait((ended,), timeout=0.05)
    finally:
        if command.returncode is None:
            command.kill()
            await ended
    out = (await command.communicate())[0].decode()
    assert command.returncode == 0, out
    assert "verified 10,001 sessions: " in out
    assert peak_bytes < 128 * 2**20
    print(f"{time.monotonic() - began_s:.1f} s, {peak_bytes / 2**20:.0f} MiB")
    assert_same(source, target, ids)
