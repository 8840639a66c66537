"""Sessions in Redis: what is stored of them, and when something is to happen to them."""

import asyncio
import time
from typing import Any

import hiredis

from broker.calls import at_most_once, checked, execute, retried
from broker.clock import TimedByRedis
from broker.keys import Channels, Keys
from broker.link import CommandLink
from broker.resp import LinkDown
from broker.script import Script
from lockstep.contract import (
    KEPT_EVENTS,
    MAX_AHEAD_MS,
    MAX_BEHIND_MS,
    Agenda,
    AlreadyDone,
    Commit,
    EpochTooLow,
    History,
    IdempotencyRecord,
    Outcome,
    Store,
)
from lockstep.errors import BrokerUnavailable
from lockstep.wire import heads, payloads

# The process that sweeps first announces that a session has lapsed; the key outlives that a little.
LAPSE_GRACE_MS = 60_000
# What is due has been settled long before that, where it could be.
SETTLED_AFTER_MS = 5000


class RedisStore(Store, Agenda):
    """Keeps the promise with one Lua script for each atomic step."""

    def __init__(self, link: CommandLink, keys: Keys, channels: Channels, clock: TimedByRedis) -> None:
        self._link = link
        self._keys = keys
        self._channels = channels
        self._clock = clock
        self._commit = Script(
            "commit",
            KEPT_EVENTS=KEPT_EVENTS,
            MAX_AHEAD_MS=MAX_AHEAD_MS,
            MAX_BEHIND_MS=MAX_BEHIND_MS,
            LAPSE_GRACE_MS=LAPSE_GRACE_MS,
            PUBLISH=channels.publish,
        )
        self._end = Script(
            "end",
            BEGINNING_BYTES=heads.BEGINNING_BYTES,
            LAPSE_GRACE_MS=LAPSE_GRACE_MS,
            PUBLISH=channels.publish,
        )
        self._publish = Script("publish", BEGINNING_BYTES=heads.BEGINNING_BYTES, PUBLISH=channels.publish)
        self._due = Script("due", BEGINNING_BYTES=heads.BEGINNING_BYTES)
        self._load = Script("load")
        self._recent = Script("recent")
        self._history = Script("history", BEGINNING_BYTES=heads.BEGINNING_BYTES)

    # --- store -----------------------------------------------------------------------------------

    async def load(self, session_ids: list[str], at_most_bytes: int | None = None) -> list[bytes | None]:
        if not session_ids:
            return []
        keys = [self._keys.state(session_id) for session_id in session_ids]
        if at_most_bytes is None:
            return list(await execute(self._link, "MGET", *keys))
        return list(checked(await retried(lambda: self._load(self._link, keys, at_most_bytes))))

    async def sizes(self, session_ids: list[str]) -> list[int]:
        """How many bytes each stored state has; 0 where there is none."""
        keys = [self._keys.state(session_id) for session_id in session_ids]
        return list(checked(await retried(lambda: self._load(self._link, keys, ""))))

    async def recent(
        self, session_id: str, max_events: int, max_bytes: int
    ) -> tuple[bytes | None, list[bytes]]:
        keys = [self._keys.state(session_id), self._keys.events(session_id)]
        state, events = checked(
            await retried(lambda: self._recent(self._link, keys, session_id, max_events, max_bytes))
        )
        return state, events

    async def recall(self, session_id: str, *keys: str) -> list[bytes | None]:
        state_key, record_keys = self._keys.state(session_id), map(self._keys.record, keys)
        return list(await execute(self._link, "MGET", state_key, *record_keys))

    async def beginnings(self, session_ids: list[str]) -> list[bytes | None]:
        return await asyncio.gather(*map(self._beginning, session_ids))

    async def _beginning(self, session_id: str) -> bytes | None:
        key = self._keys.state(session_id)
        reply = await retried(lambda: self._link.call("GETRANGE", key, 0, heads.BEGINNING_BYTES - 1))
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("WRONGTYPE"):
            # A key of another type is no session, as MGET has it. The sessions that were asked for along with
            # it must not wait until that is mended.
            return None
        return checked(reply) or None

    async def commit(self, commit: Commit) -> Outcome:
        outcome = await self._try_commit(commit)
        if outcome is None:
            # Sent, and not answered. The script recognises what it has applied, so asking again is safe.
            outcome = await self._try_commit(commit, is_retry=True)
        if outcome is None:
            raise BrokerUnavailable("unknown")
        return outcome

    async def _try_commit(
        self, commit: Commit, is_retry: bool = False, has_leftovers: bool = False
    ) -> Outcome | None:
        """The outcome; None where it is not known."""
        sent_at_s = time.monotonic()
        keys, charge = self._keys, commit.charge
        try:
            reply = await self._commit(
                self._link,
                [
                    *keys.of_session(commit.session_id),
                    keys.epoch,
                    *keys.records(commit.record),
                    *((keys.window(charge),) if charge else ()),
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
                self._channels.update(commit.session_id),
                int(is_retry),
                int(has_leftovers),
                *content_and_time(commit.record),
                *((charge.limit, charge.window_ms) if charge else (0, 0)),
                commit.not_before_ms,
                commit.update,
                *commit.events,
            )
        except LinkDown as down:
            if down.sent or is_retry:
                return None
            raise BrokerUnavailable("not_applied") from None
        if isinstance(reply, hiredis.ReplyError):
            if is_retry:
                return None  # nobody knows what became of the first attempt
            if "specified in XADD" in str(reply) and not has_leftovers:
                # The history that is stored goes on beyond this change: let the script look at it.
                return await self._try_commit(commit, has_leftovers=True)
        outcome, seconds, microseconds, *extra = checked(reply)
        self._clock.measure(sent_at_s, (seconds, microseconds))
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
        self, session_id: str, how: str, expected: bytes = b"", record: IdempotencyRecord | None = None
    ) -> bool:
        keys = [
            *self._keys.of_session(session_id),
            self._keys.presence(session_id),
            *self._keys.records(record),
        ]
        channel = self._channels.update(session_id)
        reply = await at_most_once(
            self._end(self._link, keys, session_id, channel, how, expected, *content_and_time(record))
        )
        if isinstance(reply, bytes):
            raise AlreadyDone(reply)
        return bool(reply)

    async def history(self, session_id: str, since: int, max_bytes: int) -> History | None:
        keys = [self._keys.state(session_id), self._keys.events(session_id)]
        beginning, entries = checked(
            await retried(lambda: self._history(self._link, keys, since + 1, max_bytes))
        )
        head = heads.read_head(beginning)
        if head is None:
            return None
        epoch, version = head.order
        first_version = int(entries[0][0].partition(b"-")[0]) if entries else version + 1
        return History(epoch, version, first_version, [fields[1] for _, fields in entries])

    async def publish(
        self,
        session_id: str,
        message: bytes,
        record: IdempotencyRecord | None = None,
        *,
        is_notice: bool = False,
    ) -> bool:
        """As ``Bus.publish``."""
        keys = [self._keys.state(session_id), *self._keys.records(record)]
        channel = self._channels.update(session_id) if is_notice else self._channels.message(session_id)
        if self._channels.is_sharded and not is_notice:
            message = payloads.addressed(session_id, message)
        reply = await at_most_once(
            self._publish(self._link, keys, session_id, channel, message, *content_and_time(record))
        )
        if isinstance(reply, bytes):
            raise AlreadyDone(reply)
        return bool(reply)

    # --- agenda ----------------------------------------------------------------------------------

    async def page(self, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        key, offset = self._keys.sessions, 0
        found: list[tuple[int, str]] = []
        while len(found) < limit:
            reply = await execute(
                self._link, "ZRANGEBYSCORE", key, after[0], "+inf", "WITHSCORES", "LIMIT", offset, limit
            )
            entries = [(_instant(reply[i + 1]), _text(reply[i])) for i in range(0, len(reply), 2)]
            # Of those that lapse at the very same instant, some were on the page before.
            found += [entry for entry in entries if entry > after]
            offset += len(entries)
            if len(entries) < limit:
                break
        return found[:limit]

    async def due(self, ahead_ms: int, limit: int, turn: int | None = None) -> list[tuple[int, str]]:
        while True:
            now_ms = self._clock.now_ms()
            reply = await execute(
                self._link,
                *("ZRANGEBYSCORE", self._keys.deadlines, "-inf", now_ms + ahead_ms),
                *("WITHSCORES", "LIMIT", 0, limit),
            )
            entries = list(zip(reply[::2], map(float, reply[1::2]), strict=True))
            # An instant is a whole number.
            suspects = [id for id, at_ms in entries if at_ms < now_ms - SETTLED_AFTER_MS or at_ms % 1 != 0]
            put_right, *wrong = await self._put_right(suspects) if suspects else [0]
            if put_right and len(entries) >= limit:
                continue  # entries that were not their states' own stood in the way of others
            not_own = set(wrong)
            return [(int(at_ms), _text(id)) for id, at_ms in entries if id not in not_own]

    async def _put_right(self, members: list[bytes]) -> list[Any]:
        """How many of these deadlines were put right, and those that are not their states' own."""
        keys = [self._keys.deadlines, *(self._keys.state(_text(member)) for member in members)]
        return list(checked(await retried(lambda: self._due(self._link, keys, *members))))

    async def forget_deadline(self, session_id: str) -> None:
        await execute(self._link, "ZREM", self._keys.deadlines, session_id)

    async def lapse(self, limit: int, turn: int | None = None) -> int:
        return await self.end_lapsed(await self.lapsed(limit))

    async def lapsed(self, limit: int) -> list[bytes]:
        """The ids of sessions that were kept long enough, and of what else stands there."""
        key, now_ms = self._keys.sessions, self._clock.now_ms()
        return list(await execute(self._link, "ZRANGEBYSCORE", key, "-inf", now_ms, "LIMIT", 0, limit))

    async def end_lapsed(self, members: list[bytes]) -> int:
        """End these sessions, where they have lapsed; how many there were."""
        ended = 0
        for member in members:
            session_id = _text(member)
            if heads.UUID.fullmatch(session_id):
                ended += await self._end_session(session_id, "lapsed")
            else:
                await execute(self._link, "ZREM", self._keys.sessions, member)  # it is none of ours
        return ended


def content_and_time(record: IdempotencyRecord | None) -> tuple[bytes, int]:
    """What a script is given of a record: its content, empty where there is none, and for how long in ms."""
    return (b"", 0) if record is None else (record.content, record.kept_ms)


def _text(member: bytes) -> str:
    """A session id; also of an entry that another program left behind, and that is none."""
    return member.decode("utf-8", "replace")


def _instant(score: bytes) -> int:
    """A score in ms; also of an entry that another program left behind, whose score is no instant."""
    return int(min(max(float(score), 0.0), 2.0**53))
