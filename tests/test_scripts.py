"""A script changes all or nothing: whatever in it fails, what is answered "not_applied" is nowhere.

Each call of each script is made to fail in turn, by a copy of it, on a real Redis; and what can fail for a
reason is made to fail for that reason.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import hiredis
import pytest
from msgspec import structs
from redis.client import PubSub

from broker.calls import at_most_once
from broker.link import REFUSED, Link
from broker.redis import RedisBroker
from broker.resp import Argument
from broker.script import Script
from lockstep.contract import Charge, Commit, IdempotencyRecord, Outcome
from lockstep.errors import BrokerUnavailable
from lockstep.metrics import Metrics
from lockstep.rules.state import Mode
from lockstep.wire import heads
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.support import settled_rules as engine
from tests.test_broker import applied, commit_of, created, creation, fell_due, new_id, started

# What comes after the first write, and why it cannot fail. All of it is looked at first: is it permitted?
CANNOT_FAIL = {
    "SET": "it takes the place of whatever is there, and its numbers were checked",
    "DEL": "it takes whatever is there",
    "XADD": "its key is gone, or has just taken the version before, or was asked for its last",
    "PEXPIREAT": "its number was checked",
    "ZADD": "its key was read as a sorted set, and its number checked",
    "ZREM": "its key was read as a sorted set",
    "INCRBY": "its key was read as a number",
    "EXPIRE": "its number is our own",
    "PEXPIRE": "its number was checked",
    "HDEL": "its key was read as a hash",
    "PUBLISH": "it needs nothing but the right",
}

MAKES_FAIL = """
local real, made, last = redis, {}, %d
local function fails(call)
  made[#made + 1] = call
  return #made == last
end
local redis = setmetatable({
  call = function(...)
    if fails((...)) then error({ err = 'ERR made to fail: ' .. (...) }) end
    return real.call(...)
  end,
  pcall = function(...)
    if fails((...)) then return { err = 'ERR made to fail: ' .. (...) } end
    return real.pcall(...)
  end,
  acl_check_cmd = real.acl_check_cmd and function(...)
    return not fails('acl_check_cmd') and real.acl_check_cmd(...)
  end,
}, { __index = real })
local function whole()
%s
end
local reply = whole()
if type(reply) == 'table' and reply.err then return reply end
return { reply, made }
"""


class Failing(Script):
    """A copy of a script in which one call fails: the first is 1, 0 is none."""

    def __init__(self, script: Script, place: int) -> None:
        self.load(MAKES_FAIL % (place, script.source))
        self.made: list[bytes] = []
        self.error = ""

    async def _reply(self, called: Awaitable[Any], link: Link, rest: tuple[Argument, ...]) -> Any:
        reply = await super()._reply(called, link, rest)
        if isinstance(reply, hiredis.ReplyError):
            self.error, self.made = str(reply), []
            return reply
        self.error = ""
        reply, self.made = reply
        return reply


def empty(redis: RedisServer) -> None:
    """Leave what the process that runs would miss."""
    with redis.client as client:
        for key in client.scan_iter():
            if not key.startswith((b"process:", b"routing")):
                client.delete(key)


def store(redis: RedisServer) -> dict[bytes, tuple[Any, Any]]:
    """All that is kept, and until when; a process's sign of life is renewed all the time."""
    with redis.client as client:
        keys = [key for key in client.scan_iter() if not key.startswith(b"process:")]
        return {key: (client.dump(key), client.pexpiretime(key)) for key in keys}


@dataclass
class Trial:
    """A running broker, its Redis, and somebody who hears all that is published there."""

    broker: RedisBroker
    redis: RedisServer
    ears: PubSub

    def heard(self) -> int:
        """How many publications there were since this was asked last."""
        marker = uuid4().hex.encode()
        with self.redis.client as client:
            client.publish("session-updates", marker)
        count = 0
        while (message := self.ears.get_message(timeout=5)) is None or message["data"] != marker:
            assert message is not None, "nothing is heard any more"
            count += message["type"].endswith("message")
        return count

    async def outcome(self, call: Callable[[], Awaitable[Any]]) -> str:
        """What the caller of `call` is told; where that is "not_applied" or "conflict", it is true."""
        self.heard()
        before = store(self.redis)
        try:
            made = await call()
            told = "conflict" if made is Outcome.CONFLICT else "done"
        except BrokerUnavailable as error:
            told = str(error.details["outcome"])
        if told in ("not_applied", "conflict"):
            assert store(self.redis) == before, "not applied, but something is stored"
            assert self.heard() == 0, "not applied, but published"
        return told


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """One to be spoilt."""
    server = RedisServer()
    yield server
    server.close()


@asynccontextmanager
async def trial(redis: RedisServer, url: str = "") -> AsyncIterator[Trial]:
    empty(redis)
    broker = RedisBroker(url or redis.url, prefix="", routing="all", allow_eviction=False, metrics=Metrics())
    async with started(broker):
        with redis.client as client, client.pubsub() as ears:
            ears.subscribe("session-updates")
            ears.psubscribe("ws:*")
            yield Trial(broker, redis, ears)


# --- what is asked of the scripts ----------------------------------------------------------------

Call = Callable[[], Awaitable[Any]]


async def change_of(trial: Trial, **how: Any) -> Commit:
    session = await applied(trial.broker, await created(trial.broker, new_id()), engine.start)
    commit, _ = commit_of(trial.broker, session, engine.switch(session, trial.broker.now_ms()), **how)
    return commit


def once() -> IdempotencyRecord:
    return IdempotencyRecord(uuid4().hex, b"record", 60_000)


def once_of_two_names() -> IdempotencyRecord:
    return structs.replace(once(), former_key=uuid4().hex)


def committing(trial: Trial, commit: Commit) -> Call:
    async def call() -> Outcome:
        outcome = await trial.broker.commit(commit)
        assert outcome in (Outcome.APPLIED, Outcome.CONFLICT)
        return outcome

    return call


async def creating(trial: Trial) -> Call:
    return committing(trial, creation(trial.broker, new_id())[0])


async def creating_with_a_key(trial: Trial) -> Call:
    return committing(trial, structs.replace(creation(trial.broker, new_id())[0], record=once()))


async def creating_where_a_history_was_left(trial: Trial) -> Call:
    commit, _ = creation(trial.broker, new_id())
    with trial.redis.client as client:
        client.xadd(f"events:{commit.session_id}", {"event": "old"}, id="7-0")
    return committing(trial, commit)


async def creating_where_something_else_was_left(trial: Trial) -> Call:
    commit, _ = creation(trial.broker, new_id())
    with trial.redis.client as client:
        client.hset(f"events:{commit.session_id}", "no", "stream")
    return committing(trial, commit)


async def changing(trial: Trial) -> Call:
    return committing(trial, await change_of(trial))


async def changing_with_a_key(trial: Trial) -> Call:
    return committing(trial, structs.replace(await change_of(trial), record=once()))


async def changing_with_a_key_of_two_names_within_a_window(trial: Trial) -> Call:
    charge = Charge("switch:a", 9, 60_000)
    return committing(
        trial, structs.replace(await change_of(trial), record=once_of_two_names(), charge=charge)
    )


async def changing_within_a_window(trial: Trial) -> Call:
    return committing(trial, structs.replace(await change_of(trial), charge=Charge("switch:a", 9, 60_000)))


async def pausing(trial: Trial) -> Call:
    session = await applied(trial.broker, await created(trial.broker, new_id()), engine.start)
    return committing(
        trial, commit_of(trial.broker, session, engine.pause(session, trial.broker.now_ms()))[0]
    )


async def settling_many(trial: Trial) -> Call:
    fields = {"mode": Mode.PER_CYCLE, "time_per_cycle_ms": 1_000}
    commit, session = creation(trial.broker, new_id(), ago_ms=1_900, **fields)
    assert await trial.broker.commit(commit) is Outcome.APPLIED
    session = await applied(trial.broker, session, engine.start, ago_ms=1_900)
    step = engine.settle(session, trial.broker.now_ms())
    settled = len(step.transitions)
    step = step.followed_by(engine.switch(step.session, trial.broker.now_ms()))
    assert len(step.transitions) == settled + 1 > 1
    return committing(trial, commit_of(trial.broker, session, step, settled=settled)[0])


async def firing_where_the_lapse_is_somebody_elses(trial: Trial) -> Call:
    session = await fell_due(trial.broker, new_id())
    with trial.redis.client as client:
        client.zadd("sessions", {session.session_id: -70_000.5})
    step = engine.settle(session, trial.broker.now_ms())
    return committing(trial, commit_of(trial.broker, session, step, settled=1)[0])


async def changing_where_another_history_goes_on(trial: Trial) -> Call:
    commit = await change_of(trial)
    with trial.redis.client as client:
        client.xadd(f"events:{commit.session_id}", {"event": "another's"}, id="70-0")
    return committing(trial, commit)


async def changing_where_another_history_went_on(trial: Trial) -> Call:
    commit = await change_of(trial)
    with trial.redis.client as client:  # restored by hand, and what came later taken out of it
        client.xadd(f"events:{commit.session_id}", {"event": "another's"}, id="70-0")
        client.xdel(f"events:{commit.session_id}", "70-0")
    return committing(trial, commit)


async def asking_again(trial: Trial) -> Call:
    commit = await change_of(trial)

    async def call() -> None:
        if await trial.broker._try_commit(commit, is_retry=True) is None:
            raise BrokerUnavailable("unknown")

    return call


async def asking_again_after_another(trial: Trial) -> Call:
    broker = trial.broker
    session = await applied(broker, await created(broker, new_id()), engine.start)
    commit, session = commit_of(broker, session, engine.switch(session, broker.now_ms()))
    assert await broker.commit(commit) is Outcome.APPLIED
    await applied(broker, session, engine.pause)

    async def call() -> None:
        if await broker._try_commit(commit, is_retry=True) is None:
            raise BrokerUnavailable("unknown")

    return call


async def telling(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.publish(session.session_id, b'{"type":"NOTE"}')


async def telling_with_a_key_of_two_names(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.publish(session.session_id, b'{"type":"NOTE"}', once_of_two_names())


async def telling_with_a_key(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.publish(session.session_id, b'{"type":"NOTE"}', once())


async def deleting(trial: Trial) -> Call:
    session = await applied(trial.broker, await created(trial.broker, new_id()), engine.start)
    return lambda: trial.broker.delete(session.session_id)


async def deleting_with_a_key(trial: Trial) -> Call:
    session = await applied(trial.broker, await created(trial.broker, new_id()), engine.start)
    return lambda: trial.broker.delete(session.session_id, heads.beginning(session), once())


async def deleting_none_with_a_key(trial: Trial) -> Call:
    return lambda: trial.broker.delete(new_id(), b"", once())


async def deleting_one_of_before_with_a_key(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.delete(session.session_id, b"", once())


async def lapsing(trial: Trial) -> Call:
    await created(trial.broker, new_id(), lapses_in_ms=0)
    return lambda: trial.broker.lapse(10)


async def counting_first(trial: Trial) -> Call:
    return lambda: trial.broker.spend([Charge("general:a", 9, 60_000), Charge("switch:a", 9, 1_000)])


async def counting_on(trial: Trial) -> Call:
    charges = [Charge("general:a", 9, 60_000), Charge("switch:a", 9, 60_000)]
    await trial.broker.spend(charges)
    return lambda: trial.broker.spend(charges)


async def counting_too_much(trial: Trial) -> Call:
    charges = [Charge("general:a", 0, 60_000), Charge("switch:a", 9, 60_000)]
    await trial.broker.spend(charges)
    return lambda: trial.broker.spend(charges)


def entering_by(trial: Trial) -> Call:
    counters, link = trial.broker._counters, trial.broker._link
    return lambda: at_most_once(counters._enter(link, ["inside:room"], "me", 9, "process:"))


async def entering(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset("inside:room", mapping={"somebody who died": 5, "another": 2})
    return entering_by(trial)


async def entering_beside_a_sign_of_life_that_lasts_too_long(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset("inside:room", "one of before", 2)
        client.set("process:one of before", 1, px=3_600_000)
    return entering_by(trial)


async def reading_the_history(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.history(session.session_id, 0, 1_000)


async def loading_some(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.load_some([session.session_id], 1_000)


async def looking_for_what_is_due(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.zadd("deadlines", {"somebody gone": 1})
    return lambda: trial.broker.due(1_000, 10)


async def looking_for_what_is_due_where_several_were_left(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    with trial.redis.client as client:
        client.zadd("deadlines", {"somebody gone": 1, session.session_id: 2, "another": 3})
    return lambda: trial.broker.due(1_000, 10)


CALLS: dict[str, dict[Callable[[Trial], Awaitable[Call]], str]] = {
    # For each script what is asked of it, and what it then does after its first write.
    "commit": {
        creating: "DEL XADD SET PEXPIREAT ZADD PUBLISH",
        creating_with_a_key: "DEL XADD SET SET PEXPIREAT ZADD PUBLISH",
        creating_where_a_history_was_left: "DEL XADD SET PEXPIREAT ZADD PUBLISH",
        creating_where_something_else_was_left: "DEL XADD SET PEXPIREAT ZADD PUBLISH",
        changing: "SET PEXPIREAT ZADD ZADD PUBLISH",
        changing_with_a_key: "SET SET PEXPIREAT ZADD ZADD PUBLISH",
        changing_with_a_key_of_two_names_within_a_window: "SET SET SET SET PEXPIREAT ZADD ZADD PUBLISH",
        changing_within_a_window: "SET SET PEXPIREAT ZADD ZADD PUBLISH",
        pausing: "SET PEXPIREAT ZADD ZREM PUBLISH",
        settling_many: "XADD SET PEXPIREAT ZADD ZADD PUBLISH",
        firing_where_the_lapse_is_somebody_elses: "SET PEXPIREAT ZADD ZREM PUBLISH",
        changing_where_another_history_goes_on: "DEL XADD PEXPIREAT ZADD ZADD PUBLISH",
        changing_where_another_history_went_on: "DEL XADD PEXPIREAT ZADD ZADD PUBLISH",
        asking_again: "SET PEXPIREAT ZADD ZADD PUBLISH",
        asking_again_after_another: "",
    },
    "publish": {telling: "", telling_with_a_key: "PUBLISH", telling_with_a_key_of_two_names: "SET PUBLISH"},
    "end": {
        deleting: "DEL ZREM ZREM PUBLISH",
        deleting_with_a_key: "DEL ZREM ZREM SET PUBLISH",
        deleting_none_with_a_key: "DEL ZREM ZREM SET",
        deleting_one_of_before_with_a_key: "",
        lapsing: "DEL ZREM ZREM PUBLISH",
    },
    "spend": {counting_first: "SET", counting_on: "INCRBY", counting_too_much: ""},
    "enter": {
        entering: "EXPIRE HDEL HDEL",
        entering_beside_a_sign_of_life_that_lasts_too_long: "EXPIRE PEXPIRE",
    },
    "history": {reading_the_history: ""},
    "load": {loading_some: ""},
    "due": {looking_for_what_is_due: "", looking_for_what_is_due_where_several_were_left: ""},
}
# Of these nobody says what became of the first attempt.
RETRIES = {asking_again, asking_again_after_another}
EACH = [
    pytest.param(name, asked, late.split(), id=f"{name}-{asked.__name__}")
    for name, by_call in CALLS.items()
    for asked, late in by_call.items()
]


def script_of(broker: RedisBroker, name: str) -> tuple[object, str]:
    return (broker._counters if name in ("enter", "spend") else broker), f"_{name}"


@pytest.mark.parametrize(("name", "asked", "late"), EACH)
async def test_a_call_that_fails_leaves_the_store_as_it_was_or_cannot_fail(
    redis: RedisServer, name: str, asked: Callable[[Trial], Awaitable[Call]], late: list[str]
) -> None:
    place, failed_late = 0, []
    async with trial(redis) as on:
        owner, attribute = script_of(on.broker, name)
        script = getattr(owner, attribute)
        while True:
            place += 1
            setattr(owner, attribute, script)
            empty(redis)
            call = await asked(on)
            failing = Failing(script, place)
            setattr(owner, attribute, failing)
            outcome = await on.outcome(call)
            if failing.error.startswith(REFUSED):
                assert outcome == "not_applied" or asked in RETRIES
            elif failing.error:
                failed_late.append(failing.error.partition("made to fail: ")[2].split()[0])
                assert outcome == "unknown"
            elif len(failing.made) < place:
                break  # there are no more of them
            else:
                assert failing.made[place - 1] == b"ZREM", "it failed, and nobody heard of it"
                assert name == "due", "it failed, and nobody heard of it"
    assert failed_late == late
    assert set(late) <= set(CANNOT_FAIL)


# --- what fails for a reason ---------------------------------------------------------------------

ALL_CALLS = [asked for by_call in CALLS.values() for asked in by_call]
READS = {asking_again_after_another, reading_the_history, loading_some, telling}
READS |= {looking_for_what_is_due, looking_for_what_is_due_where_several_were_left}
REMOVES = {deleting, deleting_with_a_key, deleting_none_with_a_key, lapsing}


def fill(redis: RedisServer) -> None:
    redis.client.config_set("maxmemory", 1)


def lose_its_disk(redis: RedisServer) -> None:
    with redis.client as client:
        client.config_set("save", "1 1")
        shutil.rmtree(redis.folder)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


def lose_its_replicas(redis: RedisServer) -> None:
    redis.client.config_set("min-replicas-to-write", 1)


def depose(redis: RedisServer) -> None:
    redis.client.replicaof("127.0.0.1", "1")


@pytest.mark.parametrize("trouble", [fill, lose_its_disk, lose_its_replicas, depose])
@pytest.mark.parametrize("asked", ALL_CALLS)
async def test_what_a_redis_refuses_is_nowhere_and_reads_go_on(
    own_redis: RedisServer,
    asked: Callable[[Trial], Awaitable[Call]],
    trouble: Callable[[RedisServer], None],
) -> None:
    async with trial(own_redis) as on:
        call = await asked(on)
        await asyncio.to_thread(trouble, own_redis)
        outcome = await on.outcome(call)
    if asked in READS or (asked in REMOVES and trouble is fill):
        assert outcome == "done"
    else:
        assert outcome == ("unknown" if asked is asking_again else "not_applied")


KEYS = ("session:", "events:", "idempotency:", "rl:", "inside:", "deadlines", "sessions", "epoch")


@pytest.mark.parametrize("asked", [asked for asked in ALL_CALLS if asked not in RETRIES])
async def test_a_key_of_another_type_is_met_before_anything_is_written(
    redis: RedisServer, asked: Callable[[Trial], Awaitable[Call]]
) -> None:
    async with trial(redis) as on:
        for name in KEYS:
            empty(redis)
            call = await asked(on)
            with redis.client as client:
                for key in client.keys(f"{name}*"):
                    client.delete(key)
                    client.geoadd(key, (1, 2, "place")) if name == "session:" else client.rpush(key, "no")
            # What stands where the state was, of whatever type, is another state than the expected one.
            told = ("done", "conflict") if name == "session:" else ("done", "not_applied")
            assert await on.outcome(call) in told


RIGHTS = [f"-{command.lower()}" for command in CANNOT_FAIL]
RIGHTS += ["-hincrby", "-get", "-getrange", "-zscore", "-time", "-evalsha", "resetchannels"]


@pytest.mark.parametrize(("name", "asked", "late"), EACH)
async def test_a_right_that_is_taken_away_is_missed_before_anything_is_written(
    redis: RedisServer, name: str, asked: Callable[[Trial], Awaitable[Call]], late: list[str]
) -> None:
    with redis.client as client:
        client.execute_command("ACL", "SETUSER", "lock", "reset", "on", ">pw", "~*", "&*", "+@all")
    refused = set()
    async with trial(redis, redis.url.replace("redis://", "redis://lock:pw@")) as on:
        for right in RIGHTS:
            empty(redis)
            call = await asked(on)
            with redis.client as client:
                client.execute_command("ACL", "SETUSER", "lock", right)
                try:
                    call_outcome = await on.outcome(call)
                finally:
                    client.execute_command("ACL", "SETUSER", "lock", "+@all", "&*")
            if call_outcome != "done":
                refused.add(right)
                assert call_outcome == "not_applied" or asked in RETRIES
    assert refused >= {f"-{command.lower()}" for command in late}
    assert ("-publish" in refused) == ("resetchannels" in refused)


NO_NUMBERS = ("", "x", "nan", "inf", "1e300", "-1", "1.5", str(2**63))


@pytest.mark.parametrize("no_number", NO_NUMBERS)
async def test_what_is_no_number_is_met_before_anything_is_written(
    redis: RedisServer, no_number: Any
) -> None:
    async with trial(redis) as on:
        session = await created(on.broker, new_id())
        for field in ("now_ms", "due_ms", "deadline_ms", "lapses_at_ms", "first_version", "record"):
            empty(redis)
            commit = await change_of(on)
            given = IdempotencyRecord("key", b"record", no_number) if field == "record" else no_number
            if (field, no_number) in (("due_ms", ""), ("deadline_ms", "")):
                continue  # there is none
            commit = structs.replace(commit, **{field: given})
            assert await on.outcome(committing(on, commit)) == "not_applied", field
        empty(redis)
        session = await created(on.broker, new_id())
        message = IdempotencyRecord("key", b"record", no_number)
        telling = on.broker.publish
        assert await on.outcome(lambda: telling(session.session_id, b"{}", message)) == "not_applied"
        for charge in (Charge("a", no_number, 1_000), Charge("a", 1, no_number)):
            charges = [Charge("b", 1, 1_000), charge]
            assert await on.outcome(lambda: on.broker.spend(charges)) == "not_applied"  # noqa: B023
