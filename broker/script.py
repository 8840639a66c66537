"""The steps that Redis takes in one go, as Lua scripts."""

import functools
import hashlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import hiredis

from broker.link import CommandLink
from broker.resp import Argument

LUA = Path(__file__).parent / "lua"


class Script:
    """A Lua script, called by its hash, or sent whole where Redis does not know it yet.

    It changes nothing before all that can fail has not failed: see lua/all_or_nothing.lua.
    """

    def __init__(self, name: str, **constants: int | str) -> None:
        """`constants` are what Python and Lua must agree on: locals of the script, by their names."""
        self.load(_source(name, tuple(constants.items())))

    def load(self, source: str) -> None:
        self.source = source
        self.sha = _sha(source)

    def __call__(self, link: CommandLink, keys: list[str], *arguments: Argument) -> Awaitable[Any]:
        """Its reply; like a `link.call`, on its way when this returns."""
        rest = (len(keys), *keys, *arguments)
        return self._reply(link.call("EVALSHA", self.sha, *rest), link, rest)

    async def _reply(self, called: Awaitable[Any], link: CommandLink, rest: tuple[Argument, ...]) -> Any:
        reply = await called
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await link.call("EVAL", self.source, *rest)
        return reply


# Each partition has scripts of its own, with the same texts.
@functools.cache
def _source(name: str, constants: tuple[tuple[str, int | str], ...]) -> str:
    frame, own = ((LUA / f"{each}.lua").read_text() for each in ("all_or_nothing", name))
    given = "".join(
        f"  local {constant} = {value}\n" if isinstance(value, int) else f"  local {constant} = '{value}'\n"
        for constant, value in constants
    )
    return frame.replace("  -- the script\n", given + own)


@functools.cache
def _sha(source: str) -> str:
    return hashlib.sha1(source.encode()).hexdigest()
