"""How a call to Redis ends: with its reply, or with BrokerUnavailable and what is known of its outcome."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis

from broker.link import REFUSED, CommandLink
from broker.resp import Argument, LinkDown
from lockstep.errors import BrokerUnavailable

log = logging.getLogger(__name__)


def checked(reply: Any) -> Any:
    """The reply; an error that Redis gives (out of memory, say) raises BrokerUnavailable.

    A command that is refused did nothing, and neither did a script that was not begun or that refused. Only
    an error that names its place in a script comes from the midst of it.
    """
    if isinstance(reply, hiredis.ReplyError):
        # A Redis that starts, and reads its data, is no fault: that passes by itself.
        level = logging.WARNING if str(reply).startswith("LOADING") else logging.ERROR
        log.log(level, "Redis refused: %s", str(reply).removeprefix(REFUSED))
        # Redis 6.2 names the place in other words.
        is_within = any(words in str(reply) for words in ("user_script", "running script"))
        is_within = is_within and not str(reply).startswith(REFUSED)
        raise BrokerUnavailable("unknown" if is_within else "not_applied")
    return reply


async def at_most_once(called: Awaitable[Any]) -> Any:
    """The checked reply to a call that must not be repeated."""
    try:
        return checked(await called)
    except LinkDown as down:
        raise BrokerUnavailable("unknown" if down.sent else "not_applied") from None


async def retried(call: Callable[[], Awaitable[Any]]) -> Any:
    """The reply to what may be called twice: called again where the connection was lost on the way."""
    try:
        try:
            return await call()
        except LinkDown as down:
            if not down.sent:
                raise
            return await call()
    except LinkDown:
        raise BrokerUnavailable from None


async def execute(link: CommandLink, *arguments: Argument) -> Any:
    """The checked reply to a command that changes nothing, or may be given twice."""
    return checked(await retried(lambda: link.call(*arguments)))
