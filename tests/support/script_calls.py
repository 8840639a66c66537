"""Each call of each Lua script, on a broker that runs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from msgspec import structs
from redis import Redis
from redis.client import PubSub

from broker.calls import at_most_once
from broker.redis import RedisBroker
from lockstep.contract import Charge, Commit, IdempotencyRecord, Outcome
from lockstep.errors import BrokerUnavailable
from lockstep.rules.state import Mode
from lockstep.wire import heads
from tests.support import settled_rules as engine
from tests.support.commits import applied, commit_of, created, creation, fell_due, new_id
from tests.support.redis_server import RedisServer


def empty(redis: RedisServer) -> None:
    """Leave what the process that runs would miss."""
    with redis.client as client:
        keys = [key for key in client.scan_iter() if not key.startswith((b"process:", b"routing"))]
        if keys:
            client.delete(*keys)


def store(client: Redis) -> dict[bytes, tuple[Any, Any]]:
    """All that is kept, and until when; a process's sign of life is renewed all the time."""
    keys = [key for key in client.scan_iter() if not key.startswith(b"process:")]
    with client.pipeline(transaction=False) as asked:
        for key in keys:
            asked.dump(key)
            asked.pexpiretime(key)
        told = asked.execute()
    return dict(zip(keys, zip(told[::2], told[1::2], strict=True), strict=True))


@dataclass
class Trial:
    """A running broker, its Redis, and somebody who hears all that is published there."""

    broker: RedisBroker
    redis: RedisServer
    client: Redis
    ears: PubSub

    def heard(self) -> int:
        """How many publications there were since this was asked last."""
        marker = uuid4().hex.encode()
        self.client.publish("session-updates", marker)
        count = 0
        while (message := self.ears.get_message(timeout=5)) is None or message["data"] != marker:
            assert message is not None, "nothing is heard any more"
            count += message["type"].endswith("message")
        return count

    async def outcome(self, call: Callable[[], Awaitable[Any]]) -> str:
        """What the caller of `call` is told; where that is "not_applied" or "conflict", it is true."""
        self.heard()
        before = store(self.client)
        try:
            made = await call()
            told = "conflict" if made is Outcome.CONFLICT else "done"
        except BrokerUnavailable as error:
            told = str(error.details["outcome"])
        if told in ("not_applied", "conflict"):
            assert store(self.client) == before, "not applied, but something is stored"
            assert self.heard() == 0, "not applied, but published"
        return told


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
        # Redis takes what was decided just now, which on a slow machine the preparation is not.
        outcome = await trial.broker.commit(structs.replace(commit, now_ms=trial.broker.now_ms()))
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


async def changing_with_its_update(trial: Trial) -> Call:
    return committing(trial, structs.replace(await change_of(trial), update=b'{"type":"UPDATE"}'))


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


def entering_by(trial: Trial, *others: str) -> Call:
    counters, link = trial.broker._counters, trial.broker._link
    signs = [f"process:{other}" for other in others]
    return lambda: at_most_once(counters._enter(link, ["inside:room", *signs], "me", 9, *others))


async def entering(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset("inside:room", mapping={"somebody who died": 5, "another": 2})
    return entering_by(trial, "another", "somebody who died")


async def entering_beside_a_sign_of_life_that_lasts_too_long(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset("inside:room", "one of before", 2)
        client.set("process:one of before", 1, px=3_600_000)
    return entering_by(trial, "one of before")


async def reading_the_history(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.history(session.session_id, 0, 1_000)


async def loading_some(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.load([session.session_id], 1_000)


async def asking_how_large_some_are(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    return lambda: trial.broker.sizes([session.session_id])


async def reading_what_is_recent(trial: Trial) -> Call:
    session = await applied(trial.broker, await created(trial.broker, new_id()), engine.start)
    return lambda: trial.broker.recent(session.session_id, 10, 10_000)


async def looking_for_what_is_due(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.zadd("deadlines", {"somebody gone": 1})
    return lambda: trial.broker.due(1_000, 10)


async def looking_for_what_is_due_where_several_were_left(trial: Trial) -> Call:
    session = await created(trial.broker, new_id())
    with trial.redis.client as client:
        client.zadd("deadlines", {"somebody gone": 1, session.session_id: 2, "another": 3})
    return lambda: trial.broker.due(1_000, 10)


SESSION = "5f0f0f6e-0000-4000-8000-000000000001"
HERE = (f"presence:{SESSION}", "presence-of:me", "presence-processes")
SAYS = (SESSION, "me", "session-updates", b'{"type":"PRESENCE"}')


def attending_by(trial: Trial, *arguments: str | int) -> Call:
    presence = trial.broker._presence
    return lambda: at_most_once(presence._attend(trial.broker._link, [*HERE], *SAYS, *arguments))


async def saying_first_who_is_there(trial: Trial) -> Call:
    return attending_by(trial, "there", 1, "me a", "1 5", "me b", "2 7")


async def saying_who_is_there(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset("presence-processes", "me", "3")
    return attending_by(trial, "there", 1, "me a", "1 5")


async def saying_who_is_gone(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset(HERE[0], mapping={"me a": "1 5", "me b": "1 5"})
    return attending_by(trial, "gone", 1, "me a")


async def saying_that_all_are_gone(trial: Trial) -> Call:
    with trial.redis.client as client:
        client.hset(HERE[0], "me a", "1 5")
        client.hset(HERE[1], SESSION, "")
        client.hset(HERE[2], "me", "3")
    return attending_by(trial, "gone", 0, "me a")


def settled_by(trial: Trial, mark_before: str | None, expected: str, mark: str) -> Call:
    if mark_before is not None:
        with trial.redis.client as client:
            client.hset(HERE[2], "me", mark_before)
    presence = trial.broker._presence
    return lambda: at_most_once(presence._settled(trial.broker._link, [HERE[2]], "me", expected, mark))


async def entering_a_process(trial: Trial) -> Call:
    return settled_by(trial, None, "", "-7")


async def entering_a_process_that_was_not_done(trial: Trial) -> Call:
    return settled_by(trial, "-", "", "-7")


async def entering_a_process_that_is_settled(trial: Trial) -> Call:
    return settled_by(trial, "5", "", "-7")


async def noting_that_all_is_said(trial: Trial) -> Call:
    return settled_by(trial, "-7", "-7", "7")


async def noting_that_all_is_said_where_it_was_lost(trial: Trial) -> Call:
    return settled_by(trial, "-", "-7", "7")


def sweeping_by(trial: Trial, *arguments: str | int, life_sign_ms: int | None = None) -> Call:
    # The processes are kept under another name, for the broker that runs not to sweep this one.
    keys = ["process:dead", "presence-of:dead", "presence-of:all", HERE[0]]
    with trial.redis.client as client:
        client.hset(HERE[0], mapping={"dead a": "1 5", "dead b": "1 5", "me a": "1 5"})
        client.hset("presence-of:dead", SESSION, "")
        client.hset("presence-of:all", "dead", "3")
        client.delete("process:dead")
        if life_sign_ms is not None:
            client.set("process:dead", 1, px=life_sign_ms)
    sweep = trial.broker._presence._sweep
    return lambda: at_most_once(sweep._script(trial.broker._link, keys, "dead", *arguments))


WITHDRAWN = ("session-updates", '{"type":"PRESENCE"}', "dead a", "dead b")


async def withdrawing(trial: Trial) -> Call:
    return sweeping_by(trial, SESSION, 1, *WITHDRAWN, life_sign_ms=1_999)


async def withdrawing_a_part(trial: Trial) -> Call:
    return sweeping_by(trial, SESSION, 0, *WITHDRAWN)


async def withdrawing_for_one_that_lives(trial: Trial) -> Call:
    return sweeping_by(trial, SESSION, 1, *WITHDRAWN, life_sign_ms=14_000)


async def withdrawing_for_one_whose_sign_lasts_too_long(trial: Trial) -> Call:
    return sweeping_by(trial, SESSION, 1, *WITHDRAWN, life_sign_ms=3_600_000)


async def forgetting_a_process(trial: Trial) -> Call:
    call = sweeping_by(trial, "", 1, "", "")
    with trial.redis.client as client:
        client.delete("presence-of:dead")
    return call


async def forgetting_a_process_that_has_sessions(trial: Trial) -> Call:
    return sweeping_by(trial, "", 1, "", "")


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
        changing_with_its_update: "SET PEXPIREAT ZADD ZADD PUBLISH",
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
        deleting: "DEL DEL ZREM ZREM PUBLISH",
        deleting_with_a_key: "DEL DEL ZREM ZREM SET PUBLISH",
        deleting_none_with_a_key: "DEL DEL ZREM ZREM SET",
        deleting_one_of_before_with_a_key: "",
        lapsing: "DEL DEL ZREM ZREM PUBLISH",
    },
    "spend": {counting_first: "SET", counting_on: "INCRBY", counting_too_much: ""},
    "enter": {
        entering: "EXPIRE HDEL HDEL",
        entering_beside_a_sign_of_life_that_lasts_too_long: "EXPIRE PEXPIRE",
    },
    "attend": {
        saying_first_who_is_there: "HSET HSET EXPIRE EXPIRE EXPIRE PUBLISH",
        saying_who_is_there: "HSET EXPIRE EXPIRE EXPIRE PUBLISH",
        saying_who_is_gone: "EXPIRE EXPIRE EXPIRE PUBLISH",
        saying_that_all_are_gone: "HDEL EXPIRE EXPIRE EXPIRE PUBLISH",
    },
    "settled": {
        entering_a_process: "EXPIRE",
        entering_a_process_that_was_not_done: "EXPIRE",
        entering_a_process_that_is_settled: "",
        noting_that_all_is_said: "EXPIRE",
        noting_that_all_is_said_where_it_was_lost: "",
    },
    "sweep": {
        withdrawing: "HDEL PUBLISH DEL",
        withdrawing_a_part: "DEL",
        withdrawing_for_one_that_lives: "",
        withdrawing_for_one_whose_sign_lasts_too_long: "",
        forgetting_a_process: "DEL",
        forgetting_a_process_that_has_sessions: "",
    },
    "history": {reading_the_history: ""},
    "load": {loading_some: "", asking_how_large_some_are: ""},
    "recent": {reading_what_is_recent: ""},
    "due": {looking_for_what_is_due: "", looking_for_what_is_due_where_several_were_left: ""},
}
ALL_CALLS = [asked for by_call in CALLS.values() for asked in by_call]
