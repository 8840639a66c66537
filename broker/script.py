"""The steps that Redis takes in one go, as Lua scripts."""

import hashlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import hiredis

from broker.link import Link
from broker.resp import Argument

LUA = Path(__file__).parent / "lua"


class Script:
    """A Lua script, called by its hash, or sent whole where Redis does not know it yet.

    It changes nothing before all that can fail has not failed: see lua/all_or_nothing.lua.
    """

    def __init__(self, name: str, **constants: int) -> None:
        """`constants` are numbers that Python and Lua must agree on: locals of the script, by their names."""
        frame, own = ((LUA / f"{each}.lua").read_text() for each in ("all_or_nothing", name))
        given = "".join(f"  local {constant} = {value}\n" for constant, value in constants.items())
        self.load(frame.replace("  -- the script\n", given + own))

    def load(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()

    def __call__(self, link: Link, keys: list[str], *arguments: Argument) -> Awaitable[Any]:
        """Its reply; like a `link.call`, on its way when this returns."""
        rest = (len(keys), *keys, *arguments)
        return self._reply(link.call("EVALSHA", self.sha, *rest), link, rest)

    async def _reply(self, called: Awaitable[Any], link: Link, rest: tuple[Argument, ...]) -> Any:
        reply = await called
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await link.call("EVAL", self.source, *rest)
        return reply
