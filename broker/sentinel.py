"""Asks Redis Sentinel where the master is."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import hiredis

Address = tuple[str, int]
Command = tuple[str, ...]

ANSWER_TIMEOUT_S = 0.3
# Error replies of Redis, or Sentinel, to a user without the right password or without a permission.
REFUSALS = ("WRONGPASS", "NOAUTH", "NOPERM", "ERR invalid password", "ERR AUTH", "ERR Client sent AUTH")


class SentinelRefuses(ConnectionError):
    """Sentinel answers, but not us: a password is wrong or missing."""


class Named(NamedTuple):
    """What one Sentinel says: the master, of which configuration, and whether it sees it alive."""

    address: Address
    epoch: int
    is_down: bool


async def ask_for_master(
    sentinels: Sequence[Address], service: str, at_least: int = 1, greeting: Sequence[Command] = ()
) -> Address:
    """The master that the Sentinels name, asked all at once; each is first sent the greeting.

    Where they disagree the most recent configuration counts: a Sentinel that is cut off from the others, and
    names the master from before a failover, cannot lead back there. Raises OSError where fewer than
    `at_least` answer, or the master is down.
    """
    answers = await asyncio.gather(
        *(_ask(address, service, greeting) for address in sentinels), return_exceptions=True
    )
    named = [answer for answer in answers if isinstance(answer, Named)]
    if len(named) < at_least:
        if not named and (refusals := [each for each in answers if isinstance(each, SentinelRefuses)]):
            raise refusals[0]
        complaints = [str(answer) or "timed out" for answer in answers if isinstance(answer, Exception)]
        raise ConnectionError(f"{len(named)} of {len(sentinels)} Sentinels answer: {complaints[0]}")
    latest = max(each.epoch for each in named)
    alive = Counter(each.address for each in named if each.epoch == latest and not each.is_down)
    if not alive:
        raise ConnectionError("Sentinel says that the master is down")
    return alive.most_common(1)[0][0]


async def _ask(sentinel: Address, service: str, greeting: Sequence[Command]) -> Named:
    """Raises OSError."""
    commands = [*greeting, ("SENTINEL", "MASTER", service)]
    replies: list[Any] = []
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(*sentinel)
        try:
            writer.write(b"".join(hiredis.pack_command(command) for command in commands))  # type: ignore[arg-type]
            parser = hiredis.Reader(encoding="utf-8", errors="replace")
            while len(replies) < len(commands):
                data = await reader.read(65_536)
                if not data:
                    raise ConnectionError("Sentinel closed the connection")
                parser.feed(data)
                while (reply := parser.gets()) is not False:
                    replies.append(reply)
        finally:
            writer.transport.abort()
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            refuses = str(reply).startswith(REFUSALS)
            raise SentinelRefuses(f"Sentinel: {reply}") if refuses else ConnectionError(str(reply))
    return _read(replies[-1])


def _read(reply: Any) -> Named:
    try:
        fields = dict(zip(reply[::2], reply[1::2], strict=True))
        flags = fields["flags"].split(",")
        return Named(
            (fields["ip"], int(fields["port"])),
            int(fields["config-epoch"]),
            "master" not in flags or "s_down" in flags or "o_down" in flags,
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ConnectionError("what answers is no Sentinel") from None
