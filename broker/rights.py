"""What Redis must let a process do, and what must not be in its way: looked at before it starts."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hiredis

from broker.keys import Channels, Keys, glob_escaped
from broker.marks import MOVE_UNDER_WAY, Call, part_of_a_move
from broker.resp import LinkDown
from lockstep.contract import Charge

LUA = (Path(__file__).parent / "lua" / "rights.lua").read_bytes()
NOBODY = "00000000-0000-4000-8000-000000000000"


class Need(NamedTuple):
    """A call that does nothing where it is made, and what an ACL must name of a key or channel for it."""

    call: tuple[str, ...]
    pattern: str


def needs(prefix: str, routing: str, is_cluster: bool = False) -> list[Need]:
    """Every command of ours, on every kind of key and channel that it is used on."""
    partition, any_partition = (0, "*") if is_cluster else (None, None)
    keys, channels = Keys(prefix, partition), Channels(routing, prefix, partition)
    # The same names as patterns of an ACL: what is spelled in them stands for itself, but for the last part.
    key_patterns = Keys(glob_escaped(prefix), any_partition)
    channel_patterns = Channels(routing, glob_escaped(prefix), any_partition)
    # Both of them at once are an error, which comes after the look at the rights.
    no_set = ("", "XX", "NX")

    def of_key(key: str, pattern: str, *calls: tuple[str, ...]) -> list[Need]:
        return [Need((call[0], key, *call[1:]), f"~{pattern}") for call in calls]

    sorted_set = (
        ("ZSCORE", NOBODY),
        ("ZADD", "XX", "1", NOBODY),
        ("ZREM", NOBODY),
        ("ZRANGEBYSCORE", "1", "0"),
        ("TYPE",),
    )
    state = (("MGET",), ("GETRANGE", "0", "0"), ("EXISTS",), ("SET", *no_set), ("DEL",))
    events = (
        ("XADD", "NOMKSTREAM", "1-0", "event", ""),
        ("XRANGE", "-", "+", "COUNT", "1"),
        ("EXISTS",),
        ("PEXPIREAT", "1"),
        ("DEL",),
    )
    record = (("GET",), ("MGET",), ("SET", *no_set))
    window = (("GET",), ("PTTL",), ("SET", *no_set), ("INCRBY", "no number"))
    occupancy = (
        ("HGETALL",),
        ("HINCRBY", NOBODY, "no number"),
        ("HSET", NOBODY, "0", "a field without a value"),
        ("HDEL", NOBODY),
        ("EXPIRE", "1"),
    )
    life_sign = (("GETEX",), ("PTTL",), ("PEXPIRE", "1"), ("SET", *no_set), ("DEL",))
    # Those of presence.
    a_hash = (
        ("HGET", NOBODY),
        ("HEXISTS", NOBODY),
        ("HSET", NOBODY, "0", "a field without a value"),
        ("HDEL", NOBODY),
        ("HSCAN", "0"),
        ("EXPIRE", "no number"),
    )
    alone = (("GET",), ("TYPE",), ("SET", *no_set))
    client, any_client = Charge(NOBODY, 0, 0), Charge("*", 0, 0)
    deleted = json.dumps({"sessionId": NOBODY, "deleted": True})
    publish, message_pattern = channels.publish, channel_patterns.message("" if is_cluster else "*")
    return [
        *(Need(call, "") for call in (("TIME",), ("PING",), ("ECHO", ""))),
        *(Need(call, "") for call in CLUSTER if is_cluster),
        *of_key(keys.state(NOBODY), key_patterns.state("*"), *state),
        *of_key(keys.events(NOBODY), key_patterns.events("*"), *events),
        Need(("XINFO", "STREAM", keys.events(NOBODY)), f"~{key_patterns.events('*')}"),
        *of_key(keys.deadlines, key_patterns.deadlines, *sorted_set),
        *of_key(keys.sessions, key_patterns.sessions, *sorted_set),
        *of_key(keys.record(NOBODY), key_patterns.record("*"), *record),
        *of_key(keys.window(client), key_patterns.window(any_client), *window),
        *of_key(keys.occupancy(NOBODY), key_patterns.occupancy("*"), *occupancy),
        *of_key(keys.presence(NOBODY), key_patterns.presence("*"), *a_hash, ("DEL",)),
        *of_key(
            keys.presence_of(NOBODY),
            key_patterns.presence_of("*"),
            *a_hash,
            ("HRANDFIELD", "1"),
            ("EXISTS",),
        ),
        *of_key(keys.presence_processes, key_patterns.presence_processes, *a_hash, ("HGETALL",)),
        *of_key(keys.life_sign(NOBODY), key_patterns.life_sign("*"), *life_sign),
        *of_key(keys.routing, key_patterns.routing, *alone),
        *of_key(keys.epoch, key_patterns.epoch, *alone),
        *(of_key(keys.partitions, key_patterns.partitions, *alone) if is_cluster else ()),
        Need((publish, channels.update(NOBODY), deleted), f"&{channel_patterns.updates}*"),
        Need((publish, channels.message(NOBODY), '{"type":"PROBE"}'), f"&{message_pattern}"),
        Need((publish, channels.probe(NOBODY), ""), f"&{channel_patterns.probe('*')}"),
        *(Need(call, f"&{pattern}") for call, pattern in subscriptions(prefix, channels, channel_patterns)),
    ]


# What tells who has which partition, and what is said before a command whose slot is on its way.
CLUSTER = (("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"), ("ASKING",))


def subscriptions(
    prefix: str, channels: Channels, patterns: Channels
) -> Sequence[tuple[tuple[str, str], str]]:
    """What a subscriber sends, each with the pattern that allows it."""
    verb = "SSUBSCRIBE" if channels.is_sharded else "SUBSCRIBE"
    always = [
        ((verb, channels.updates), patterns.updates),
        ((verb, channels.probe(NOBODY)), patterns.probe("*")),
    ]
    if channels.is_sharded:
        # Beside their own, those on which others publish to the whole cluster.
        of_others, their_patterns = (Channels("all", each) for each in (prefix, glob_escaped(prefix)))
        return [
            *always,
            (("SSUBSCRIBE", channels.update(NOBODY)), patterns.update("*")),
            (("SSUBSCRIBE", channels.messages), patterns.messages),
            (("SUNSUBSCRIBE", channels.updates), patterns.updates),
            (("SUBSCRIBE", of_others.updates), their_patterns.updates),
            (("PSUBSCRIBE", their_patterns.messages + "*"), their_patterns.messages + "*"),
            (("UNSUBSCRIBE", of_others.updates), their_patterns.updates),
            (("PUNSUBSCRIBE", their_patterns.messages + "*"), their_patterns.messages + "*"),
        ]
    if channels.pattern is not None:
        # Redis compares it with the patterns of the ACL as text.
        return [*always, (("PSUBSCRIBE", channels.pattern), channels.pattern)]
    return [
        *always,
        (("SUBSCRIBE", channels.update(NOBODY)), patterns.update("*")),
        (("SUBSCRIBE", channels.message(NOBODY)), patterns.message("*")),
        (("UNSUBSCRIBE", channels.update(NOBODY)), patterns.update("*")),
    ]


async def missing(call: Call, user: str, prefix: str, routing: str, is_cluster: bool = False) -> str | None:
    """One line that names the rights which the user lacks, or None."""
    lacked: dict[str, None] = {}
    example = ""
    for need in await _refused(call, needs(prefix, routing, is_cluster)):
        # Called by itself it is refused as well, and then Redis says why.
        lacks_command = "to run the" in str(await call(*need.call))
        lacked["+" + _command(need) if lacks_command else need.pattern] = None
        example = example or f"{need.call[0]} {need.pattern[1:]}".rstrip()
    if not lacked:
        return None
    return f"Redis user {user} may not {example}: give it {' '.join(lacked)}"


def _command(need: Need) -> str:
    """As an ACL names it."""
    words = need.call[:2] if need.call[0] == "CLUSTER" else need.call[:1]
    return "|".join(words).lower()


async def _refused(call: Call, wanted: list[Need]) -> list[Need]:
    for need in (Need(("EVALSHA", "0" * 40, "0"), ""), Need(("EVAL", "return 1", "0"), "")):
        if str(await call(*need.call)).startswith("NOPERM"):
            return [need]
    reply = await call("EVAL", LUA, 0, json.dumps([need.call for need in wanted]))
    if isinstance(reply, hiredis.ReplyError):
        raise LinkDown(sent=False, why=str(reply))
    return [wanted[index - 1] for index in reply]


# As in lua/commit.lua: an epoch, and not one of a time so far away that there is no room above it.
LAST_EPOCH = re.compile(rb"[0-9a-y][0-9a-z]{12}")


async def in_the_way(call: Call, keys: Keys) -> str | None:
    """One line that names a key which somebody else uses, or None."""
    types = {
        keys.sessions: "zset",
        keys.deadlines: "zset",
        keys.presence_processes: "hash",
        keys.routing: "string",
        keys.epoch: "string",
    }
    for key, expected in types.items():
        found = await call("TYPE", key)
        if found not in (expected.encode(), b"none") and not isinstance(found, hiredis.ReplyError):
            found, expected = (each.replace("zset", "sorted set") for each in (found.decode(), expected))
            return f"the key {key} of Redis is a {found}, not a {expected}: choose another --prefix"
    routing = await call("GET", keys.routing)
    if isinstance(routing, bytes) and routing.startswith(MOVE_UNDER_WAY):
        return part_of_a_move(routing)
    if isinstance(routing, bytes) and (mode := routing.decode("utf-8", "replace")) not in Channels.MODES:
        modes = " or ".join(Channels.MODES)
        return f"the key {keys.routing} of Redis is {mode[:40]!r}, not {modes}: choose another --prefix"
    last = await call("GET", keys.epoch)
    if isinstance(last, bytes) and not LAST_EPOCH.fullmatch(last):
        # The first creation would overwrite it.
        text = last.decode("utf-8", "replace")[:40]
        return f"the key {keys.epoch} of Redis is {text!r}, no epoch: choose another --prefix, or delete it"
    return None
