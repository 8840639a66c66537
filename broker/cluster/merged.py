"""What all partitions have, put together in one order."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
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


async def load(
    partition_of: Callable[[str], Partition], session_ids: list[str], at_most_bytes: int | None
) -> list[bytes | None]:
    """As ``Store.load``."""
    groups = _groups(partition_of, session_ids)
    if at_most_bytes is not None and len(groups) > 1:
        # Each partition would give as much as there may be of all: it is asked only for those that fit.
        sized = await asyncio.gather(*(each.store.sizes(ids) for each, ids in groups.items()))
        sizes = _joined(groups, sized)
        totals = accumulate(sizes[each] for each in session_ids)
        session_ids = session_ids[: max(1, sum(total <= at_most_bytes for total in totals))]
        groups = _groups(partition_of, session_ids)
    loaded = await asyncio.gather(*(each.store.load(ids, at_most_bytes) for each, ids in groups.items()))
    found = _joined(groups, loaded)
    # Some may have grown meanwhile; what is missing is too much.
    states, size = list[bytes | None](), 0
    for session_id in session_ids:
        if session_id not in found:
            break
        state = found[session_id]
        size += len(state) if state else 0
        if at_most_bytes is not None and states and size > at_most_bytes:
            break
        states.append(state)
    return states


def _groups(partition_of: Callable[[str], Partition], session_ids: list[str]) -> dict[Partition, list[str]]:
    groups = defaultdict[Partition, list[str]](list)
    for session_id in dict.fromkeys(session_ids):
        groups[partition_of(session_id)].append(session_id)
    return groups


def _joined(groups: dict[Partition, list[str]], answers: Sequence[Sequence[T]]) -> dict[str, T]:
    """What each partition has answered for its sessions, or for the first of them."""
    return {
        session_id: answer
        for ids, some in zip(groups.values(), answers, strict=True)
        for session_id, answer in zip(ids, some, strict=False)
    }


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
