"""The steps that Redis takes in one go, as Lua scripts, and what its replies mean."""

import hashlib
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import hiredis

from broker.link import REFUSED, Argument, Link
from lockstep.errors import BrokerUnavailable

log = logging.getLogger(__name__)

LUA = Path(__file__).parent / "lua"


class Script:
    """A Lua script: by its hash, or whole where Redis does not know it yet.

    It changes nothing before all that can fail has not failed: see lua/all_or_nothing.lua.
    """

    def __init__(self, name: str) -> None:
        frame, own = ((LUA / f"{each}.lua").read_text() for each in ("all_or_nothing", name))
        self.load(frame.replace("  -- the script\n", own))

    def load(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()

    def __call__(self, link: Link, keys: list[str], *arguments: Argument) -> Awaitable[Any]:
        """Its reply; like a `link.call`, on its way when this returns."""
        told = (len(keys), *keys, *arguments)
        return self._reply(link.call("EVALSHA", self.sha, *told), link, told)

    async def _reply(self, asked: Awaitable[Any], link: Link, told: tuple[Argument, ...]) -> Any:
        reply = await asked
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await link.call("EVAL", self.source, *told)
        return reply


def checked(reply: Any) -> Any:
    """The reply; an error that Redis gives (out of memory, say) raises BrokerUnavailable.

    A command that is refused did nothing, and neither did a script that was not begun or that refused. Only
    an error that names its place in a script comes from the midst of it.
    """
    if isinstance(reply, hiredis.ReplyError):
        # That it starts, and reads its data, passes by itself.
        level = logging.WARNING if str(reply).startswith("LOADING") else logging.ERROR
        log.log(level, "Redis refused: %s", str(reply).removeprefix(REFUSED))
        # Redis 6.2 says in other words that it was in the midst of one.
        is_within = any(words in str(reply) for words in ("user_script", "running script"))
        is_within = is_within and not str(reply).startswith(REFUSED)
        raise BrokerUnavailable("unknown" if is_within else "not_applied")
    return reply
