"""What all partitions have, put together in one order."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from broker.cluster.partition import Partition
from lockstep.errors import BrokerUnavailable

Entry = tuple[int, str]
"""An instant in ms, and the id of a session."""

# A partition is first asked for so many entries at least, and for twice its share of the page.
LEAST_SHARE = 8

T = TypeVar("T")


async def page(partitions: Sequence[Partition], after: Entry, limit: int) -> list[Entry]:
    """The first entries beyond `after` of them all: as of one sorted set."""
    share = min(limit, max(LEAST_SHARE, 2 * limit // len(partitions)))
    found: list[Entry] = []
    # Where each of those that may have more goes on.
    places = dict.fromkeys(partitions, after)
    while places:
        pages = await asyncio.gather(*(each.store.page(place, share) for each, place in places.items()))
        found = sorted([*found, *(entry for some in pages for entry in some)])
        places = {each: some[-1] for each, some in zip(places, pages, strict=True) if len(some) == share}
        if len(found) >= limit:
            # Beyond that place nobody's entries matter any more.
            places = {each: place for each, place in places.items() if place < found[limit - 1]}
        share = limit
    return found[:limit]


async def of_those_that_answer(asked: Sequence[Awaitable[T]]) -> list[T]:
    """What hinders one does not hinder the others. Raises BrokerUnavailable where nobody answers."""
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    answers: list[T] = []
    hindered: BaseException | None = None
    for outcome in outcomes:
        if not isinstance(outcome, BaseException):
            answers.append(outcome)
        elif isinstance(outcome, BrokerUnavailable):
            hindered = outcome
        else:
            raise outcome
    if hindered is not None and not answers:
        raise hindered
    return answers
