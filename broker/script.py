"""The steps that Redis takes in one go, as Lua scripts, and what its replies mean."""

import hashlib
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import hiredis

from broker.link import Argument, Link
from lockstep.errors import BrokerUnavailable

log = logging.getLogger(__name__)


class Script:
    """A Lua script: by its hash, or whole where Redis does not know it yet."""

    def __init__(self, name: str) -> None:
        self.source = (Path(__file__).parent / "lua" / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source).hexdigest()

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
    """The reply; an error that Redis gives (out of memory, say) means that nothing was done."""
    if isinstance(reply, hiredis.ReplyError):
        # That it starts, and reads its data, passes by itself.
        level = logging.WARNING if str(reply).startswith("LOADING") else logging.ERROR
        log.log(level, "Redis refused: %s", reply)
        raise BrokerUnavailable("not_applied")
    return reply
