"""The Redis broker: any number of processes, one truth."""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis

from broker import rights
from broker.clock import RedisClock
from broker.endpoint import parse
from broker.link import Argument, Link, LinkDown, Refused, Wire
from broker.occupancy import KEPT_S, LIFE_SIGN_S, Occupancy
from broker.script import Script, checked
from broker.sentinel import Address
from broker.subscriber import Routing, Subscriber
from lockstep.contract import (
    KEPT_EVENTS,
    AlreadyDone,
    Broker,
    Charge,
    Commit,
    EpochTooLow,
    History,
    IdempotencyRecord,
    Listener,
    Outcome,
)
from lockstep.errors import BrokerUnavailable
from lockstep.metrics import Metrics
from lockstep.tasks import Tasks
from lockstep.wire import heads

log = logging.getLogger(__name__)

# A lapsed session is announced by whoever sweeps first; its key outlives that a little.
LAPSE_GRACE_MS = 60_000
PROBE_INTERVAL_S = 1.0
FOLLOW_INTERVAL_S = 1.0
PROBE_TOO_OLD_S = 5.0
OLDEST_REDIS = (6, 2)
# A Redis that is full, a replica, without replicas or without a disk: it takes no changes, but can be read.
NO_CHANGES = ("OOM ", "READONLY ", "NOREPLICAS ", "MISCONF ")


class RedisBroker(Broker):
    """Keeps the promise with one Lua script for each atomic step.

    Two connections: one for commands, whose replies come in the order of the requests, and one
    that hears. Neither is ever waited for longer than its timeout.
    """

    def __init__(self, url: str, prefix: str, routing: str, allow_eviction: bool, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.watch(metrics.probe_age, self._probe_age_s)
        self._endpoint = endpoint = parse(url)
        self._prefix = prefix
        self._routing = Routing(routing, prefix)
        self._allow_eviction = allow_eviction
        self._user = endpoint.username or "default"
        self._is_checked = False
        self._clock = RedisClock()
        self._process = str(uuid.uuid4())
        self._probe_channel = f"{prefix}probe:{self._process}"
        self._life_sign = f"{prefix}process:{self._process}"
        self._has_life_sign = False
        self._renewed_at_s = 0.0
        # Clients may have been told states while there was no sign that would have gone with them.
        self._was_unwatched = False
        self._has_recorded_routing = False
        self._takes_changes = True
        self._last_master: Address | None = None
        self._listener: Listener | None = None
        self._link = Link(endpoint, "commands", self._prepare, metrics)
        self._subscriber = Subscriber(endpoint, self._routing, self._probe_channel, metrics)
        self._tasks = Tasks()
        self._commit = Script("commit")
        self._end = Script("end")
        self._due = Script("due")
        self._load = Script("load")
        self._history = Script("history")
        self._publish = Script("publish")
        self._spend = Script("spend")
        self._occupancy = Occupancy(self._link, prefix, self._process)

    # --- start and end ---------------------------------------------------------------------------

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        try:
            await self._link.start()
            await self._subscriber.start(listener)
        except Refused as error:
            raise ValueError(f"broker: {error}") from None
        self._tasks.repeat(
            self._probe, lambda: PROBE_INTERVAL_S * random.uniform(0.8, 1.0), "the look at Redis"
        )
        if self._endpoint.sentinels:
            self._tasks.repeat(
                self._follow, lambda: FOLLOW_INTERVAL_S * random.uniform(0.8, 1.2), "asking Sentinel"
            )
        self._tasks.repeat(self._occupancy.keep, lambda: KEPT_S / 4, "counting WebSockets in Redis")

    async def close(self) -> None:
        await self._tasks.close()
        await self._subscriber.close()
        await self._link.close()

    async def _prepare(self, wire: Wire) -> None:
        """Check a new connection's Redis, and measure its clock."""
        server, memory, cluster = await asyncio.gather(
            *(wire.call("INFO", section) for section in ("server", "memory", "cluster"))
        )
        info = _info(server)
        if why := wrong_mode(info, _info(cluster)):
            raise Refused(why)
        version = tuple(int(part) for part in info.get("redis_version", "0").split(".")[:2])
        if version < OLDEST_REDIS:
            raise Refused(f"Redis is {info.get('redis_version')}, 6.2 or newer is needed")
        policy = _info(memory).get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not self._allow_eviction:
            raise Refused(
                f"Redis may evict sessions (maxmemory-policy is {policy}): "
                "set it to noeviction, or give --allow-eviction=yes"
            )
        await self._check(wire)
        await self._record_routing(wire)
        for _ in range(5):
            sent_at_s = time.monotonic()
            self._sample(sent_at_s, await wire.ask("TIME"))
        if not self._has_life_sign:
            # Before anybody can be told a state, so that no loss goes unnoticed.
            await self._leave_life_sign(wire)
        await self._occupancy.tell_all(wire)
        if self._last_master not in (None, self._link.master) and self._listener is not None:
            # What clients were told came from another one.
            asyncio.get_running_loop().call_soon(self._listener.on_gap)
        self._last_master = self._link.master

    async def _follow(self) -> None:
        """Go where Sentinel points: who was cut off from it may be master for itself alone."""
        try:
            master = await self._endpoint.master()
        except OSError as error:
            log.debug("Sentinel was asked in vain: %s", error)  # whoever connects complains
            return
        self._link.follow(master)
        self._subscriber.follow(master)

    async def _record_routing(self, wire: Wire) -> None:
        """Raises Refused where other processes route otherwise. Where nothing can be written: next time."""
        mode, key = self._routing.mode.encode(), self._prefix + "routing"
        recorded = await wire.ask("GET", key)  # asked first: a Redis that takes no changes can be read
        if recorded is None and await self._write(wire, "SET", key, mode, "NX"):
            recorded = await wire.ask("GET", key)
        if recorded is not None and recorded != mode:
            mode_of_others = recorded.decode("utf-8", "replace")
            raise Refused(f"other processes route {mode_of_others}: --routing must be the same")
        self._has_recorded_routing = recorded is not None

    async def _leave_life_sign(self, wire: Wire) -> None:
        """Where nothing can be written now it is left later; what is lost until then is looked for then."""
        if await self._write(wire, "SET", self._life_sign, 1, "EX", LIFE_SIGN_S):
            self._has_life_sign = True
            self._renewed_at_s = time.monotonic()
            if self._was_unwatched and self._listener is not None:
                asyncio.get_running_loop().call_soon(self._listener.on_gap)
            self._was_unwatched = False
        else:
            self._was_unwatched = True

    async def _write(self, wire: Wire, *arguments: Argument) -> bool:
        """False where this Redis takes no changes now."""
        reply = await wire.call(*arguments)
        if isinstance(reply, hiredis.ReplyError):
            self._on_refused(reply)
            return False
        self._on_taken()
        return True

    def _on_refused(self, reply: hiredis.ReplyError) -> None:
        if not str(reply).startswith(NO_CHANGES):
            raise LinkDown(sent=False, why=str(reply))
        if self._takes_changes:
            self._takes_changes = False
            log.warning("Redis takes no changes now, what it has can be read: %s", reply)
        if str(reply).startswith("READONLY"):
            self._link.look_for_master()

    def _on_taken(self) -> None:
        if not self._takes_changes:
            self._takes_changes = True
            log.warning("Redis takes changes again")

    async def _check(self, wire: Wire) -> None:
        """Refuse to start where something could not be done later. What goes missing later is met then."""
        if self._is_checked:
            return
        complaint = await rights.missing(wire.call, self._user, self._prefix, self._routing)
        complaint = complaint or await rights.in_the_way(wire.call, self._prefix)
        if complaint is not None:
            raise Refused(complaint)
        self._is_checked = True

    def _sample(self, sent_at_s: float, reply: Any) -> None:
        seconds, microseconds = reply
        redis_us = int(seconds) * 1_000_000 + int(microseconds)
        step_ms = self._clock.sample(sent_at_s, time.monotonic(), redis_us)
        if step_ms:
            self._metrics.clock_steps.inc()
            log.warning("the clock of Redis was set by %+.1f s (or this machine slept)", step_ms / 1000)

    async def _probe(self) -> None:
        """Publish to ourselves, through Redis; `not_ready` tells when that stops coming back.

        And leave a sign of life in the store. When it is gone before its time, so may be all else:
        a flushed Redis answers and publishes as if nothing had happened.
        """
        if self._subscriber.is_up and self._probe_age_s() > PROBE_TOO_OLD_S:
            self._subscriber.reset("what this process publishes does not come back")
        sent_at_s, wire = time.monotonic(), self._link.wire
        # Not by SET, so that a Redis without memory does not let it lapse.
        renewed = wire.call("GETEX", self._life_sign, "EX", LIFE_SIGN_S) if wire is not None else None
        _, instant = await asyncio.gather(self._ask("PUBLISH", self._probe_channel, ""), self._ask("TIME"))
        self._sample(sent_at_s, instant)
        if wire is not None and renewed is not None:
            try:
                await self._look_at_life_sign(wire, await renewed)
            except LinkDown as down:
                log.warning("the sign of life of this process is put off: %s", down)
        self._occupancy.tell()

    async def _look_at_life_sign(self, wire: Wire, reply: Any) -> None:
        assert self._listener is not None
        try:
            if not self._has_recorded_routing:
                await self._record_routing(wire)
            if not self._has_life_sign:
                if self._link.wire is wire:  # else the master is looked for, and gets it there
                    await self._leave_life_sign(wire)
                return
        except Refused as refused:
            self._link.reset(str(refused))
            return
        if isinstance(reply, hiredis.ReplyError):
            self._on_refused(reply)
            return
        self._on_taken()
        now_s = time.monotonic()
        if reply is None:
            # It lapses by itself where it could not be renewed: then nobody knows.
            has_lapsed = now_s - self._renewed_at_s > LIFE_SIGN_S - 1
            self._has_life_sign = False
            self._link.reset("what was lost is looked for" if has_lapsed else "Redis has lost data")
            self._listener.on_gap()
        self._renewed_at_s = now_s

    def _probe_age_s(self) -> float:
        return time.monotonic() - self._subscriber.probe_heard_at_s

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def shown_ms(self) -> int:
        return self._clock.shown_ms()

    def not_ready(self) -> list[str]:
        reasons = []
        if not self._link.is_up:
            reasons.append("Redis does not answer")
        if not self._subscriber.is_up:
            reasons.append("the subscription is down")
        elif self._probe_age_s() > PROBE_TOO_OLD_S:
            reasons.append(f"no publication has come back for {self._probe_age_s():.0f} s")
        return reasons

    # --- sessions --------------------------------------------------------------------------------

    async def hear(self, session_id: str) -> bool:
        return await self._subscriber.hear(session_id)

    def unhear(self, session_id: str) -> None:
        self._subscriber.unhear(session_id)

    async def load(self, session_ids: list[str]) -> list[bytes | None]:
        if not session_ids:
            return []
        states = await self._ask("MGET", *(self._state_key(session_id) for session_id in session_ids))
        return list(states)

    async def load_some(self, session_ids: list[str], at_most_bytes: int) -> list[bytes | None]:
        keys = [self._state_key(session_id) for session_id in session_ids]
        return list(checked(await self._twice(lambda: self._load(self._link, keys, at_most_bytes))))

    async def recall(self, session_id: str, *keys: str) -> list[bytes | None]:
        return list(await self._ask("MGET", self._state_key(session_id), *map(self._done_key, keys)))

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        return await asyncio.gather(*map(self._beginning, session_ids))

    async def _beginning(self, session_id: str) -> bytes | None:
        key = self._state_key(session_id)
        reply = await self._twice(lambda: self._link.call("GETRANGE", key, 0, heads.BEGINNING_BYTES - 1))
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("WRONGTYPE"):
            # A key of another type is no session, as MGET has it. Nobody else, asked for along with it, is to
            # wait for that to be mended.
            return None
        return checked(reply) or None

    async def commit(self, commit: Commit) -> Outcome:
        outcome = await self._try_commit(commit)
        if outcome is None:
            # Sent, and not answered. The script recognises what it has applied, so asking once more is safe.
            outcome = await self._try_commit(commit, is_retry=True)
        if outcome is None:
            raise BrokerUnavailable("unknown")
        return outcome

    async def _try_commit(
        self, commit: Commit, is_retry: bool = False, has_leftovers: bool = False
    ) -> Outcome | None:
        """The outcome; None where it is not known."""
        sent_at_s = time.monotonic()
        try:
            reply = await self._commit(
                self._link,
                [
                    *self._keys(commit.session_id),
                    f"{self._prefix}epoch",
                    *self._done_keys(commit.record),
                    *self._window_keys(commit.charge),
                ],
                commit.session_id,
                commit.expected,
                commit.beginning,
                commit.state,
                commit.now_ms,
                "" if commit.due_ms is None else commit.due_ms,
                "" if commit.deadline_ms is None else commit.deadline_ms,
                commit.lapses_at_ms,
                int(commit.prolongs),
                commit.first_version,
                self._routing.update_channel(commit.session_id),
                int(is_retry),
                int(has_leftovers),
                LAPSE_GRACE_MS,
                KEPT_EVENTS,
                *_record(commit.record),
                *((commit.charge.limit, commit.charge.window_ms) if commit.charge else (0, 0)),
                commit.not_before_ms,
                *commit.events,
            )
        except LinkDown as down:
            if down.sent or is_retry:
                return None
            raise BrokerUnavailable("not_applied") from None
        if isinstance(reply, hiredis.ReplyError):
            if is_retry:
                return None  # nobody says what became of the first attempt
            if "specified in XADD" in str(reply) and not has_leftovers:
                # The history that is stored goes on beyond this change: let the script look at it.
                return await self._try_commit(commit, has_leftovers=True)
        outcome, seconds, microseconds, *extra = checked(reply)
        self._sample(sent_at_s, (seconds, microseconds))
        if outcome == b"done":
            raise AlreadyDone(extra[0])
        if outcome == b"epoch_too_low":
            raise EpochTooLow(extra[0].decode())
        if extra and commit.on_counted is not None:
            commit.on_counted(*extra)
        return None if outcome == b"unknown" else Outcome(outcome.decode())

    async def delete(
        self, session_id: str, expected: bytes | None = None, record: IdempotencyRecord | None = None
    ) -> bool:
        if expected is None:
            expected = heads.beginning_of(session_id)
        return await self._end_session(session_id, "deleted", expected, record)

    async def _end_session(
        self, session_id: str, how: str, expected: bytes, record: IdempotencyRecord | None
    ) -> bool:
        keys = [*self._keys(session_id), *self._done_keys(record)]
        channel = self._routing.update_channel(session_id)
        reply = await self._once(
            self._end(self._link, keys, session_id, channel, how, expected, *_record(record), LAPSE_GRACE_MS)
        )
        if isinstance(reply, bytes):
            raise AlreadyDone(reply)
        return bool(reply)

    async def publish(self, session_id: str, message: bytes, record: IdempotencyRecord | None = None) -> bool:
        keys = [self._state_key(session_id), *self._done_keys(record)]
        channel = self._routing.message_channel(session_id)
        reply = await self._once(self._publish(self._link, keys, channel, message, *_record(record)))
        if isinstance(reply, bytes):
            raise AlreadyDone(reply)
        return bool(reply)

    def spend(self, charges: Sequence[Charge]) -> Awaitable[list[tuple[int, int]]]:
        keys = self._window_keys(*charges)
        limits = [number for charge in charges for number in (charge.limit, charge.window_ms)]
        return self._counts(self._spend(self._link, keys, *limits))

    async def _counts(self, asked: Awaitable[Any]) -> list[tuple[int, int]]:
        reply = await self._once(asked)
        return list(zip(reply[::2], reply[1::2], strict=True))

    async def enter(self, key: str, limit: int) -> bool:
        return await self._occupancy.enter(key, limit)

    def leave(self, key: str, limit: int) -> None:
        self._occupancy.leave(key, limit)

    async def history(self, session_id: str, since: int, max_bytes: int) -> History | None:
        state_key, events_key, *_ = self._keys(session_id)
        beginning, entries = checked(
            await self._twice(
                lambda: self._history(
                    self._link, [state_key, events_key], heads.BEGINNING_BYTES, since + 1, max_bytes
                )
            )
        )
        head = heads.read_head(beginning)
        if head is None:
            return None
        epoch, version = head.position
        first_version = int(entries[0][0].partition(b"-")[0]) if entries else version + 1
        return History(epoch, version, first_version, [fields[1] for _, fields in entries])

    async def page(self, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        score = after[0]
        found: list[tuple[int, str]] = []
        offset = 0
        key = f"{self._prefix}sessions"
        while len(found) < limit:
            reply = await self._ask(
                "ZRANGEBYSCORE",
                key,
                score,
                "+inf",
                "WITHSCORES",
                "LIMIT",
                offset,
                limit,
            )
            places = [(_instant(reply[i + 1]), _text(reply[i])) for i in range(0, len(reply), 2)]
            # Of those that lapse at the very same instant, some were on the page before.
            found += [place for place in places if place > after]
            offset += len(places)
            if len(places) < limit:
                break
        return found[:limit]

    async def due(self, ahead_ms: int, limit: int) -> list[tuple[int, str]]:
        key, prefix = f"{self._prefix}deadlines", self._state_key("")
        while True:
            reply = await self._twice(lambda: self._due(self._link, [key], ahead_ms, limit, prefix))
            put_right, *found = checked(reply)
            if not put_right or put_right + len(found) // 2 < limit:
                return [(int(found[i + 1]), _text(found[i])) for i in range(0, len(found), 2)]
            # Entries that were not their states' own stood in the way of others.

    async def forget_deadline(self, session_id: str) -> None:
        await self._ask("ZREM", f"{self._prefix}deadlines", session_id)

    async def lapse(self, limit: int) -> int:
        key = self._prefix + "sessions"
        ended = 0
        for member in await self._ask("ZRANGEBYSCORE", key, "-inf", self.now_ms(), "LIMIT", 0, limit):
            session_id = _text(member)
            if heads.UUID.fullmatch(session_id):
                ended += await self._end_session(session_id, "lapsed", b"", None)
            else:
                await self._ask("ZREM", key, member)  # not of ours
        return ended

    # --- asking ----------------------------------------------------------------------------------

    def _state_key(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"

    def _done_key(self, key: str) -> str:
        return f"{self._prefix}idempotency:{key}"

    def _done_keys(self, record: IdempotencyRecord | None) -> list[str]:
        if record is None:
            return []
        names = (record.key,) if record.former_key is None else (record.key, record.former_key)
        return [self._done_key(name) for name in names]

    def _window_keys(self, *charges: Charge | None) -> list[str]:
        return [f"{self._prefix}rl:{charge.key}" for charge in charges if charge is not None]

    def _keys(self, session_id: str) -> list[str]:
        prefix = self._prefix
        return [
            self._state_key(session_id),
            f"{prefix}events:{session_id}",
            f"{prefix}deadlines",
            f"{prefix}sessions",
        ]

    async def _ask(self, *arguments: Argument) -> Any:
        """The reply to a command that changes nothing, or may be given twice."""
        return checked(await self._twice(lambda: self._link.call(*arguments)))

    async def _once(self, asked: Awaitable[Any]) -> Any:
        """The reply to what must not be asked again."""
        try:
            return checked(await asked)
        except LinkDown as down:
            raise BrokerUnavailable("unknown" if down.sent else "not_applied") from None

    async def _twice(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The reply, asked for again where the connection was lost on the way."""
        try:
            try:
                return await ask()
            except LinkDown as down:
                if not down.sent:
                    raise
                return await ask()
        except LinkDown:
            raise BrokerUnavailable from None


def _record(record: IdempotencyRecord | None) -> tuple[bytes, int]:
    return (b"", 0) if record is None else (record.content, record.kept_ms)


def _text(member: bytes) -> str:
    """A session id; also where somebody else left behind what is none."""
    return member.decode("utf-8", "replace")


def _instant(score: bytes) -> int:
    """A score in ms; also where somebody else left behind what is no instant."""
    return int(min(max(float(score), 0.0), 2.0**53))


def wrong_mode(server: dict[str, str], cluster: dict[str, str]) -> str | None:
    """Why what answers cannot be used, by its INFO, though it speaks as Redis does; None if it can."""
    mode = "cluster" if cluster.get("cluster_enabled") == "1" else server.get("redis_mode")
    if mode == "cluster":
        return "this is a Redis Cluster, which is not supported: one Redis, or Sentinel, is needed"
    if mode == "sentinel":
        return "this is a Sentinel: name it as redis+sentinel://host:port/service/db"
    return None


def _info(reply: Any) -> dict[str, str]:
    """INFO's lines. Where INFO is forbidden nothing is known."""
    if not isinstance(reply, bytes):
        return {"redis_version": "6.2"}
    # The server names files of its own there, in whatever encoding.
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}
