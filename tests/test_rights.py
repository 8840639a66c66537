"""What a process may not do in Redis, or what is in its way there, is said when it starts."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker import migrate
from broker.doctor import examine_redis
from broker.redis import RedisBroker
from lockstep.config import Settings
from lockstep.contract import Attendance, Charge
from lockstep.metrics import Metrics
from tests.support.brokers import started
from tests.support.commits import created, new_id
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.script_calls import ALL_CALLS, Trial

DOCS = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
PREFIX = "lockstep-"


def documented() -> list[str]:
    """The line of the docs, word by word, without who it is for."""
    (line,) = re.findall(r"^    ACL SETUSER lockstep (.*)$", DOCS, re.MULTILINE)
    return str(line).replace(">PASSWORD", ">pw").split()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def give(redis: RedisServer, *rules: str) -> None:
    with redis.client as client:
        client.execute_command("ACL", "SETUSER", "lockstep", "reset", *rules)


def broker_of(redis: RedisServer, prefix: str = "", routing: str = "all") -> RedisBroker:
    url = redis.url.replace("redis://", "redis://lockstep:pw@")
    return RedisBroker(url, prefix=prefix, routing=routing, allow_eviction=False, metrics=Metrics())


async def complaint(broker: RedisBroker) -> str:
    """Why it does not start; empty if it does."""
    try:
        async with started(broker):
            return ""
    except ValueError as error:
        return str(error)


@asynccontextmanager
async def trial(redis: RedisServer, broker: RedisBroker) -> AsyncIterator[Trial]:
    async with started(broker):
        with redis.client as client, client.pubsub() as ears:
            ears.subscribe("session-updates")
            yield Trial(broker, redis, client, ears)


@pytest.mark.parametrize("routing", ["all", "targeted"])
async def test_the_rights_of_the_docs_suffice(redis: RedisServer, routing: str) -> None:
    give(redis, *[word.replace(PREFIX, "") for word in documented()])
    async with trial(redis, broker_of(redis, routing=routing)) as on:
        for asked in ALL_CALLS:
            call = await asked(on)
            await call()
        broker = on.broker
        session = await created(broker, new_id())
        session_id = session.session_id
        assert await broker.hear(session_id)
        broker.unhear(session_id)
        assert len(await broker.load([session_id])) == len(await broker.beginnings([session_id]))
        assert (await broker.recall(session_id, "key"))[0] is not None
        assert await broker.page((0, ""), 10)
        assert await broker.enter("room", 9)
        assert await broker.enter("room", 9)
        broker.leave("room", 9)
        broker._link.reset("to tell it all anew")
        assert await broker.spend([Charge("a", 1, 1_000)])
        await broker._look()
        broker.leave("room", 9)
        await broker._counters.keep()
        broker.attend(session_id, "ann", Attendance(1, 1))
        broker.attend(session_id, "ben", Attendance(1, 1))
        await broker._presence._say()
        with redis.client as client:
            client.hset("presence-of:dead", session_id, "")
            client.hset("presence-processes", "dead", "1")
            client.hset(f"presence:{session_id}", "dead ann", "1 1")
        await broker._presence._sweep._sweep("dead")
        broker.attend(session_id, "ann", None)
        await broker._presence.keep()
        await broker._presence._say()
        assert await broker.present(session_id) == {}
        await broker._look()
        if routing == "targeted":
            broker._topic._leave_session(session_id)
    with redis.client as client:
        assert client.execute_command("ACL", "LOG") == []


async def test_each_right_of_the_docs_is_missed_when_a_process_starts(redis: RedisServer) -> None:
    rules = [word for word in documented() if word.startswith(("~", "&", "+"))]
    for right in rules:
        if right in ("+info", "+client|setname", "+unsubscribe"):
            continue  # the first two are not needed, the last only where a process has begun
        give(redis, *[word for word in documented() if word != right])
        told = await complaint(broker_of(redis, PREFIX))
        if right != "+psubscribe":
            assert told.startswith("broker: Redis user lockstep may not "), right
            assert right in told.partition(": give it ")[2].split(), right
        assert told
    give(redis, *documented())
    assert await complaint(broker_of(redis, PREFIX)) == ""


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        # What those meet who come from Redis 6: there a user with all commands and keys may publish.
        (
            ["on", ">pw", "~*", "+@all", "resetchannels"],
            "lockstep: broker: Redis user lockstep may not PUBLISH session-updates*: "
            "give it &session-updates* &ws:* &probe:* &session-updates",
        ),
        (
            ["on", ">pw", "~*", "&*", "+@all", "-evalsha"],
            "lockstep: broker: Redis user lockstep may not EVALSHA: give it +evalsha",
        ),
    ],
)
async def test_a_missing_right_ends_the_process_with_one_line(
    redis: RedisServer, rules: list[str], complaint: str
) -> None:
    give(redis, *rules)
    url = redis.url.replace("redis://", "redis://lockstep:pw@")
    refused = ServerProcess(f"--broker={url}", wait=False)
    _, told = await asyncio.to_thread(refused.process.communicate, timeout=15)
    assert refused.process.returncode == 1
    assert told.decode().splitlines() == [complaint]


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("sessions", "the key sessions of Redis is a hash, not a sorted set: choose another --prefix"),
        ("deadlines", "the key deadlines of Redis is a hash, not a sorted set: choose another --prefix"),
        ("epoch", "the key epoch of Redis is a hash, not a string: choose another --prefix"),
        ("routing", "the key routing of Redis is a hash, not a string: choose another --prefix"),
    ],
)
async def test_a_key_that_somebody_else_uses_ends_the_process_with_one_line(
    redis: RedisServer, key: str, complaint: str
) -> None:
    with redis.client as client:
        client.hset(key, "somebody", "else")
    refused = ServerProcess(f"--broker={redis.url}", wait=False)
    _, told = await asyncio.to_thread(refused.process.communicate, timeout=15)
    assert refused.process.returncode == 1
    assert told.decode().splitlines() == [f"lockstep: broker: {complaint}"]
    assert (False, f"rights and keys: {complaint}") in await examine_redis(Settings(broker=redis.url))
    with redis.client as client:
        assert client.hgetall(key) == {b"somebody": b"else"}


@pytest.mark.parametrize(
    ("value", "shown"), [(b"/home", "'/home'"), (b"\xff", "'\ufffd'")], ids=["text", "no text"]
)
async def test_a_routing_that_somebody_else_wrote_ends_the_process_with_one_line(
    redis: RedisServer, value: bytes, shown: str
) -> None:
    give(redis, *[word.replace(PREFIX, "") for word in documented()])
    with redis.client as client:
        client.set("routing", value)
    complaint = f"the key routing of Redis is {shown}, not all or targeted: choose another --prefix"
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match=f"^broker: {re.escape(complaint)}$"):
            async with started(broker_of(redis)):
                pass
    assert (False, f"rights and keys: {complaint}") in await examine_redis(Settings(broker=redis.url))


async def test_processes_of_presence_that_are_somebody_elses_key_end_it_with_one_line(
    redis: RedisServer,
) -> None:
    give(redis, *[word.replace(PREFIX, "") for word in documented()])
    with redis.client as client:
        client.set("presence-processes", "somebody else's")
        line = "the key presence-processes of Redis is a string, not a hash: choose another --prefix"
        assert await complaint(broker_of(redis)) == f"broker: {line}"
        assert (False, f"rights and keys: {line}") in await examine_redis(Settings(broker=redis.url))
        assert client.get("presence-processes") == b"somebody else's"


async def test_a_user_who_may_not_name_connections_starts(redis: RedisServer) -> None:
    give(redis, *[word for word in documented() if word != "+client|setname"])
    assert await complaint(broker_of(redis, PREFIX)) == ""


@pytest.mark.parametrize("value", ["7", "", "/home", "zzzzzzzzzzzzz"])
async def test_a_last_epoch_that_is_none_ends_the_process_with_one_line(
    redis: RedisServer, value: str
) -> None:
    give(redis, *[word.replace(PREFIX, "") for word in documented()])
    complaint = f"the key epoch of Redis is {value!r}, no epoch: choose another --prefix, or delete it"
    with redis.client as client:
        client.set("epoch", value)
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match=f"^broker: {re.escape(complaint)}$"):
            async with started(broker_of(redis)):
                pass
    assert (False, f"rights and keys: {complaint}") in await examine_redis(Settings(broker=redis.url))
    with redis.client as client:
        assert client.get("epoch") == value.encode()


async def test_the_look_at_the_rights_leaves_nothing(redis: RedisServer) -> None:
    give(redis, *documented())
    with redis.client as client, client.pubsub() as ears:
        ears.psubscribe("*")
        assert ears.get_message(timeout=5)["type"] == "psubscribe"
        settings = Settings(broker=redis.url.replace("//", "//lockstep:pw@"), prefix=PREFIX)
        assert (True, "rights and keys: all that is needed") in await examine_redis(settings)
        assert client.keys() == []
        while (message := ears.get_message(timeout=0.1)) is not None:
            assert message["channel"].startswith(b"lockstep-probe:")


async def test_a_user_with_the_documented_rights_can_move_sessions(redis: RedisServer) -> None:
    (more,) = re.findall(r"besides the rights of a process, `([^`]+)`", DOCS)
    give(redis, *documented(), *more.split(), "+select")
    source = redis.url.replace("redis://", "redis://lockstep:pw@")
    target = source.removesuffix("0") + "1"
    there = broker_of(redis, PREFIX)
    async with started(there):
        session = await created(there, new_id())
    with redis.client as client:
        for key in client.scan_iter(f"{PREFIX}process:*"):
            client.delete(key)
    said: list[str] = []
    await migrate(source, target, PREFIX, said.append)
    assert any(line.startswith("verified 1 sessions") for line in said)
    there = RedisBroker(target, prefix=PREFIX, routing="all", allow_eviction=False, metrics=Metrics())
    async with started(there):
        assert await there.load([session.session_id]) != [None]
