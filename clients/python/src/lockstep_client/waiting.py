"""Waiting: for the first of several, for no longer than so long."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress


async def first_of(*coroutines: Coroutine[None, None, None]) -> None:
    """Run them until one returns or raises; what it raises is raised when all others have ended, too."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()


async def within(seconds: float, event: asyncio.Event) -> None:
    """Wait for the event, but no longer than that. It can be set again afterwards."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
