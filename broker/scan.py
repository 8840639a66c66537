"""The fields of a hash, page by page, so that neither Redis nor this process stands still for a large one."""

from collections.abc import AsyncIterator
from typing import Any

import hiredis

from broker.calls import checked, retried
from broker.link import CommandLink

FIELDS_IN_PAGE = 500


async def pages(link: CommandLink, key: str, pattern: str = "*") -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """Each field that is there all the while, with its value; one that comes or goes meanwhile, or not.

    A field may come twice, with its newest value last. A key of another type has none. Raises
    BrokerUnavailable.
    """
    cursor: Any = 0
    while True:
        reply = await retried(
            lambda: link.call("HSCAN", key, cursor, "MATCH", pattern, "COUNT", FIELDS_IN_PAGE)  # noqa: B023
        )
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("WRONGTYPE"):
            return
        cursor, flat = checked(reply)
        yield list(zip(flat[::2], flat[1::2], strict=True))
        if int(cursor) == 0:
            return
