"""What Redis must let a process do, and what must not be in its way: looked at before it starts."""

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import hiredis

from broker.link import LinkDown
from broker.subscriber import Routing, escaped

LUA = (Path(__file__).parent / "lua" / "rights.lua").read_bytes()

Ask = Callable[..., Awaitable[Any]]
"""Sends a command to Redis; its reply, also where that is an error."""


class Need(NamedTuple):
    """A call that does nothing where it is made, and what an ACL must name of a key or channel for it."""

    call: tuple[str, ...]
    pattern: str


def needs(prefix: str, routing: Routing) -> list[Need]:
    """Every command of ours, on every kind of key and channel that it is used on."""
    glob = escaped(prefix)
    nobody = "00000000-0000-4000-8000-000000000000"
    # Both of them at once are an error, which comes after the look at the rights.
    no_set = ("", "XX", "NX")

    def of_keys(name: str, *calls: tuple[str, ...]) -> list[Need]:
        key, pattern = (name + nobody, name + "*") if name.endswith(":") else (name, name)
        return [Need((call[0], prefix + key, *call[1:]), f"~{glob}{pattern}") for call in calls]

    sorted_set = (
        ("ZSCORE", nobody),
        ("ZADD", "XX", "1", nobody),
        ("ZREM", nobody),
        ("ZRANGEBYSCORE", "1", "0"),
        ("TYPE",),
    )
    session = (("MGET",), ("GETRANGE", "0", "0"), ("EXISTS",), ("SET", *no_set), ("DEL",))
    events = (
        ("XADD", "NOMKSTREAM", "1-0", "event", ""),
        ("XRANGE", "-", "+", "COUNT", "1"),
        ("EXISTS",),
        ("PEXPIREAT", "1"),
        ("DEL",),
    )
    inside = (
        ("HGETALL",),
        ("HINCRBY", nobody, "no number"),
        ("HSET", nobody, "0", "a field without a value"),
        ("HDEL", nobody),
        ("EXPIRE", "1"),
    )
    updates, messages = routing.channels_of(nobody)
    deleted = json.dumps({"sessionId": nobody, "deleted": True})
    listening = [("SUBSCRIBE", routing.updates), ("SUBSCRIBE", f"{prefix}probe:{nobody}")]
    listening += [("SUBSCRIBE", updates), ("SUBSCRIBE", messages), ("UNSUBSCRIBE", updates)]
    if routing.pattern is not None:
        listening = [*listening[:2], ("PSUBSCRIBE", routing.pattern)]
    return [
        *(Need(call, "") for call in (("TIME",), ("PING",), ("ECHO", ""))),
        *of_keys("session:", *session),
        *of_keys("events:", *events),
        Need(("XINFO", "STREAM", f"{prefix}events:{nobody}"), f"~{glob}events:*"),
        *of_keys("deadlines", *sorted_set),
        *of_keys("sessions", *sorted_set),
        *of_keys("idempotency:", ("GET",), ("MGET",), ("SET", *no_set)),
        *of_keys("rl:", ("GET",), ("PTTL",), ("SET", *no_set), ("INCRBY", "no number")),
        *of_keys("inside:", *inside),
        *of_keys("process:", ("GETEX",), ("PTTL",), ("PEXPIRE", "1"), ("SET", *no_set)),
        *of_keys("routing", ("GET",), ("TYPE",), ("SET", *no_set)),
        *of_keys("epoch", ("GET",), ("TYPE",), ("SET", *no_set)),
        Need(("PUBLISH", updates, deleted), f"&{glob}session-updates*"),
        Need(("PUBLISH", messages, '{"type":"PROBE"}'), f"&{glob}ws:*"),
        Need(("PUBLISH", f"{prefix}probe:{nobody}", ""), f"&{glob}probe:*"),
        *(
            Need(call, "&" + (name if call[0] == "PSUBSCRIBE" else escaped(name).replace(nobody, "*")))
            for call in listening
            for name in call[1:]
        ),
    ]


async def missing(ask: Ask, user: str, prefix: str, routing: Routing) -> str | None:
    """One line that names the rights which the user lacks, or None."""
    lacked: dict[str, None] = {}
    example = ""
    for need in await _refused(ask, needs(prefix, routing)):
        # Made by itself it is refused as well, and Redis says why.
        lacks_command = "to run the" in str(await ask(*need.call))
        lacked["+" + need.call[0].lower() if lacks_command else need.pattern] = None
        example = example or f"{need.call[0]} {need.pattern[1:]}".rstrip()
    if not lacked:
        return None
    return f"Redis user {user} may not {example}: give it {' '.join(lacked)}"


async def _refused(ask: Ask, wanted: list[Need]) -> list[Need]:
    for need in (Need(("EVALSHA", "0" * 40, "0"), ""), Need(("EVAL", "return 1", "0"), "")):
        if str(await ask(*need.call)).startswith("NOPERM"):
            return [need]
    reply = await ask("EVAL", LUA, 0, json.dumps([need.call for need in wanted]))
    if isinstance(reply, hiredis.ReplyError):
        raise LinkDown(sent=False, why=str(reply))
    return [wanted[place - 1] for place in reply]


# As in lua/commit.lua: an epoch, and not one of a time so far away that there is no room above it.
LAST_EPOCH = re.compile(rb"[0-9a-y][0-9a-z]{12}")
_KINDS = {"sessions": "zset", "deadlines": "zset", "routing": "string", "epoch": "string"}


async def in_the_way(ask: Ask, prefix: str) -> str | None:
    """One line that names a key which somebody else uses, or None."""
    for name, kind in _KINDS.items():
        found = await ask("TYPE", prefix + name)
        if found not in (kind.encode(), b"none") and not isinstance(found, hiredis.ReplyError):
            found, kind = (each.replace("zset", "sorted set") for each in (found.decode(), kind))
            return f"the key {prefix}{name} of Redis is a {found}, not a {kind}: choose another --prefix"
    routing = await ask("GET", prefix + "routing")
    if isinstance(routing, bytes) and (mode := routing.decode("utf-8", "replace")) not in Routing.MODES:
        modes = " or ".join(Routing.MODES)
        return f"the key {prefix}routing of Redis is {mode[:40]!r}, not {modes}: choose another --prefix"
    last = await ask("GET", prefix + "epoch")
    if isinstance(last, bytes) and not LAST_EPOCH.fullmatch(last):
        # The first creation would overwrite it.
        text = last.decode("utf-8", "replace")[:40]
        return f"the key {prefix}epoch of Redis is {text!r}, no epoch: choose another --prefix, or delete it"
    return None
