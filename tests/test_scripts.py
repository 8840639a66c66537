"""A script changes all or nothing: whatever in it fails, what is answered "not_applied" is nowhere.

Each call of each script is made to fail in turn, by a copy of it, on a real Redis; and what can fail for a
reason is made to fail for that reason.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import hiredis
import pytest
from msgspec import structs

from broker.link import REFUSED, Link
from broker.redis import RedisBroker
from broker.resp import Argument
from broker.script import Script
from lockstep.contract import Charge, IdempotencyRecord
from lockstep.metrics import Metrics
from tests.support.brokers import started
from tests.support.commits import created, new_id
from tests.support.redis_faults import depose, fill, lose_its_disk, lose_its_replicas
from tests.support.redis_server import RedisServer
from tests.support.script_calls import (
    ALL_CALLS,
    CALLS,
    Call,
    Trial,
    asking_again,
    asking_again_after_another,
    asking_how_large_some_are,
    change_of,
    deleting,
    deleting_none_with_a_key,
    deleting_with_a_key,
    empty,
    entering_a_process_that_is_settled,
    forgetting_a_process,
    forgetting_a_process_that_has_sessions,
    lapsing,
    loading_some,
    looking_for_what_is_due,
    looking_for_what_is_due_where_several_were_left,
    noting_that_all_is_said_where_it_was_lost,
    reading_the_history,
    reading_what_is_recent,
    saying_that_all_are_gone,
    saying_who_is_gone,
    telling,
    withdrawing,
    withdrawing_a_part,
    withdrawing_for_one_that_lives,
    withdrawing_for_one_whose_sign_lasts_too_long,
)

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
    "HSET": "its key was read as a hash",
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
            yield Trial(broker, redis, client, ears)


# --- each write is made to fail ------------------------------------------------------------------

# Of these nobody says what became of the first attempt.
RETRIES = {asking_again, asking_again_after_another}
EACH = [
    pytest.param(name, asked, late.split(), id=f"{name}-{asked.__name__}")
    for name, by_call in CALLS.items()
    for asked, late in by_call.items()
]


def script_of(broker: RedisBroker, name: str) -> tuple[object, str]:
    if name == "sweep":
        return broker._presence._sweep, "_script"
    presence, counters = broker._presence, broker._counters
    owners = {"enter": counters, "spend": counters, "attend": presence, "settled": presence}
    return owners.get(name, broker), f"_{name}"


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

READS = {asking_again_after_another, reading_the_history, reading_what_is_recent, loading_some, telling}
READS |= {asking_how_large_some_are, looking_for_what_is_due, looking_for_what_is_due_where_several_were_left}
READS |= {
    noting_that_all_is_said_where_it_was_lost,
    withdrawing_for_one_that_lives,
    forgetting_a_process_that_has_sessions,
}
REMOVES = {deleting, deleting_with_a_key, deleting_none_with_a_key, lapsing}
REMOVES |= {saying_who_is_gone, saying_that_all_are_gone, withdrawing, withdrawing_a_part}
REMOVES |= {forgetting_a_process, entering_a_process_that_is_settled}
REMOVES |= {withdrawing_for_one_whose_sign_lasts_too_long}


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


KEYS = ("session:", "events:", "idempotency:", "rl:", "inside:", "presence", "deadlines", "sessions", "epoch")


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
            assert await on.outcome(partial(on.broker.commit, commit)) == "not_applied", field
        empty(redis)
        session = await created(on.broker, new_id())
        message = IdempotencyRecord("key", b"record", no_number)
        telling = on.broker.publish
        assert await on.outcome(lambda: telling(session.session_id, b"{}", message)) == "not_applied"
        for charge in (Charge("a", no_number, 1_000), Charge("a", 1, no_number)):
            charges = [Charge("b", 1, 1_000), charge]
            assert await on.outcome(lambda: on.broker.spend(charges)) == "not_applied"  # noqa: B023
