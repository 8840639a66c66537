"""The list of all sessions, a page at a time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from lockstep.contract import Agenda, Store
from lockstep.rules import state_json
from lockstep.rules.state import Status
from lockstep.wire import heads

# For one page: so many sessions are looked at, at a time and in all; those of which the status fits
# are loaded few at a time. States of 1,000 participants are large, and nobody else is served meanwhile.
SCANNED_AT_ONCE = 100
MAX_SCANNED = 2000
LOADED_AT_ONCE = 16
MAX_LISTED_BYTES = 262_144

Place = tuple[int, str]
"""Where a session stands in the list of all: (instant of lapse in ms, id)."""


class ListedStore(Store, Agenda, Protocol):
    """What the list asks of a broker."""


class SessionList:
    """All sessions, as they are stored, in the order in which they lapse."""

    def __init__(self, store: ListedStore) -> None:
        self._store = store

    async def page(self, status: Status | None, limit: int, after: Place) -> tuple[list[bytes], Place | None]:
        """Up to `limit` states as stored, and where to go on; None at the end.

        There may be fewer before the end: no more than `MAX_SCANNED` are looked at for one page, and it has
        no more than `MAX_LISTED_BYTES`, except where the first state alone has.
        """
        found: list[bytes] = []
        found_bytes = 0
        for _ in range(MAX_SCANNED // SCANNED_AT_ONCE):
            page = await self._store.page(after, SCANNED_AT_ONCE)
            beginnings = await self._store.beginnings([session_id for _, session_id in page])
            fitting = [
                place
                for place, beginning in zip(page, beginnings, strict=True)
                if beginning is not None
                and (is_of := heads.read_status(beginning)) is not None
                and status in (None, is_of)
            ]
            async for place, raw in self._loaded(fitting):
                if _has_status(raw, status):
                    found_bytes += len(raw) + 1
                    if found and found_bytes > MAX_LISTED_BYTES:
                        return found, after
                    found.append(raw)
                after = place
                if len(found) == limit:
                    return found, after
            if len(page) < SCANNED_AT_ONCE:
                return found, None
            after = page[-1]
            await asyncio.sleep(0)
        return found, after

    async def _loaded(self, places: Sequence[Place]) -> AsyncIterator[tuple[Place, bytes]]:
        """The states that are still there: few at first, since most of them may not be wanted any more."""
        count = 1
        while places:
            some, places = places[:count], places[count:]
            states = await self._store.load([session_id for _, session_id in some])
            for place, raw in zip(some, states, strict=True):
                if raw is not None:
                    yield place, raw
            count = min(2 * count, LOADED_AT_ONCE)


def _has_status(raw: bytes, status: Status | None) -> bool:
    try:
        return status in (None, state_json.from_json(raw).status)
    except ValueError:
        return False  # whoever asks for it alone is told that it is corrupt
