"""One end of a move of sessions: what is where, in one Redis or in the partitions of a Cluster."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import hiredis

from broker.keys import PARTITIONS, Keys, glob_escaped, partition_of
from broker.link import CommandLink
from broker.resp import Argument, LinkDown
from broker.rights import LAST_EPOCH
from lockstep.wire import heads

SCAN_COUNT = 500
# What stands for the reply where a key is of another type than ours are.
FOREIGN = object()


class MigrationFailed(ValueError):
    """One line that says why sessions cannot be moved, or not on."""


class Name(NamedTuple):
    """What a key is the key of: a session, a record of a request or the sign of life of a process."""

    kind: str
    partition: int | None
    name: str


class Side:
    """FROM or TO. A single Redis is one partition, whose number is None."""

    def __init__(
        self,
        name: str,
        shown: str,
        prefix: str,
        partitions: Mapping[int | None, CommandLink],
        masters: Sequence[CommandLink],
    ) -> None:
        """`partitions` lead to the keys of each, `masters` to all keys that there are."""
        self.name = name
        self.shown = shown
        self.prefix = prefix
        self._links = partitions
        self._masters = masters
        self._keys = {partition: Keys(prefix, partition) for partition in partitions}
        self._is_cluster = None not in partitions
        # What a key begins with, before a name that has no colon in it.
        self._kinds = {
            begins.encode(): (kind, partition)
            for partition, keys in self._keys.items()
            for kind, begins in (
                ("session", keys.state("")),
                ("record", keys.record("")),
                ("process", keys.life_sign("")),
            )
        }

    def partition_of(self, name: str) -> int | None:
        return partition_of(name) if self._is_cluster else None

    def keys(self, session_id: str) -> Keys:
        """The names of what belongs to the session."""
        return self._keys[self.partition_of(session_id)]

    async def ask(self, session_id: str, *command: Argument) -> Any:
        """The reply of the session's partition, or FOREIGN. Raises MigrationFailed."""
        return await self._ask(self._links[self.partition_of(session_id)], *command)

    async def _ask(self, link: CommandLink, *command: Argument) -> Any:
        try:
            reply = await link.call(*command)
        except LinkDown as down:
            raise MigrationFailed(f"{self.name} ({self.shown}) does not answer: {down}") from None
        if not isinstance(reply, hiredis.ReplyError):
            return reply
        if str(reply).startswith("WRONGTYPE"):
            return FOREIGN
        raise MigrationFailed(f"{self.name} ({self.shown}) refuses {command[0]!s}: {reply}")

    # --- all that is there -----------------------------------------------------------------------

    async def names(self, *kinds: str) -> AsyncIterator[list[Name]]:
        """What there is of these kinds, some at a time. What is there all the while comes at least once."""
        pattern = f"{glob_escaped(self.prefix)}*"
        for master in self._masters:
            cursor: Argument = 0
            while True:
                cursor, keys = await self._ask(master, "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
                found = [self._name_of(key) for key in keys]
                yield [each for each in found if each is not None and each.kind in kinds]
                if int(cursor) == 0:
                    break

    def _name_of(self, key: bytes) -> Name | None:
        at = key.rfind(b":") + 1
        kind, partition = self._kinds.get(key[:at], ("", None))
        name = key[at:].decode("utf-8", "replace")
        # A session is looked for in its own partition alone.
        if kind == "session" and (self.partition_of(name) != partition or not heads.UUID.fullmatch(name)):
            return None
        return Name(kind, partition, name) if kind else None

    async def count_sessions(self) -> int:
        counts = await self._ask_each("ZCARD", {each: keys.sessions for each, keys in self._keys.items()})
        if FOREIGN in counts:
            raise MigrationFailed(f"a key of {self.name} has the name of our list of sessions, and is none")
        return sum(counts)

    async def life_signs(self) -> dict[Name, int]:
        """For how many ms more each sign of life lasts."""
        lefts: dict[Name, int] = {}
        async for names in self.names("process"):
            replies = await asyncio.gather(
                *(self._ask(self._links[at], "PTTL", self._keys[at].life_sign(name)) for _, at, name in names)
            )
            lefts |= {name: left_ms for name, left_ms in zip(names, replies, strict=True) if left_ms != -2}
        return lefts

    # --- a session, a record ---------------------------------------------------------------------

    async def entries(self, session_id: str) -> tuple[bytes | None, bytes | None]:
        """When it lapses and when it falls due, in ms, as far as that is known."""
        keys = self.keys(session_id)
        lapse, deadline = await asyncio.gather(
            self.ask(session_id, "ZSCORE", keys.sessions, session_id),
            self.ask(session_id, "ZSCORE", keys.deadlines, session_id),
        )
        return lapse, deadline

    async def fingerprint(self, session_id: str) -> tuple[Any, ...] | None:
        """What has to be the same of a session at both ends; None where there is none."""
        keys = self.keys(session_id)
        state, events = keys.state(session_id), keys.events(session_id)
        head, length, count, last, entries = await asyncio.gather(
            self.ask(session_id, "GETRANGE", state, 0, heads.BEGINNING_BYTES - 1),
            self.ask(session_id, "STRLEN", state),
            self.ask(session_id, "XLEN", events),
            self.ask(session_id, "XREVRANGE", events, "+", "-", "COUNT", 1),
            self.entries(session_id),
        )
        history = (0, []) if count is FOREIGN else (count, last)  # what is no stream is not carried
        return (head, length, *history, entries) if isinstance(head, bytes) and length else None

    async def remove(self, session_id: str) -> None:
        keys = self.keys(session_id)
        await self.ask(session_id, "DEL", keys.state(session_id), keys.events(session_id))
        for key in (keys.sessions, keys.deadlines):
            await self.ask(session_id, "ZREM", key, session_id)

    async def record(self, at: Name) -> tuple[Any, int]:
        """What is kept of a request, None or FOREIGN; and for how many ms more."""
        key, link = self._keys[at.partition].record(at.name), self._links[at.partition]
        kept, left_ms = await asyncio.gather(self._ask(link, "GET", key), self._ask(link, "PTTL", key))
        return kept, left_ms

    # --- what all sessions have in common --------------------------------------------------------

    async def routing(self) -> bytes:
        """How the processes route, or that a move is under way; empty where nothing is said."""
        ((key, link),) = self._first("routing")
        said = await self._ask(link, "GET", key)
        return said if isinstance(said, bytes) else b""

    async def set_routing(self, routing: bytes) -> None:
        ((key, link),) = self._first("routing")
        await self._ask(link, *(("SET", key, routing) if routing else ("DEL", key)))

    async def record_partitions(self) -> None:
        """Raises MigrationFailed where another number of partitions is recorded than ours."""
        if self._is_cluster:
            ((key, link),) = self._first("partitions")
            await self._ask(link, "SET", key, PARTITIONS, "NX")
            recorded = await self._ask(link, "GET", key)
            if recorded != b"%d" % PARTITIONS:
                raise MigrationFailed(
                    f"{self.name} has {recorded!r} partitions, and this version {PARTITIONS}"
                )

    async def greatest_epoch(self) -> str:
        epochs = await self._ask_each("GET", {each: keys.epoch for each, keys in self._keys.items()})
        # What is none, and another program's, would stand above all.
        found = [each for each in epochs if isinstance(each, bytes) and LAST_EPOCH.fullmatch(each)]
        return max(found, default=b"").decode()

    async def set_epoch(self, epoch: str) -> None:
        """In each partition: a session has to come after all of its id that there ever were."""
        if epoch:
            await self._ask_each("SET", {each: keys.epoch for each, keys in self._keys.items()}, epoch)

    async def clock_ms(self) -> float:
        seconds, microseconds = await self._ask(self._masters[0], "TIME")
        return int(seconds) * 1000 + int(microseconds) / 1000

    def _first(self, kind: str) -> list[tuple[str, CommandLink]]:
        first = 0 if self._is_cluster else None
        return [(getattr(self._keys[first], kind), self._links[first])]

    async def _ask_each(self, command: str, keys: Mapping[int | None, str], *rest: Argument) -> list[Any]:
        return await asyncio.gather(
            *(self._ask(self._links[each], command, key, *rest) for each, key in keys.items())
        )
