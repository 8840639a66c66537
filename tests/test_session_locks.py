"""Locks: one at a time, in order, and nobody is forgotten."""

import asyncio

import pytest

from lockstep.session_locks import SessionLocks

S, OTHER = "s", "other"


async def test_locks_are_taken_one_at_a_time_in_the_order_of_asking() -> None:
    locks = SessionLocks()
    seen: list[str] = []

    async def work(name: str) -> None:
        await locks.acquire(S, 10)
        seen.append(f"{name} begins")
        await asyncio.sleep(0)
        seen.append(f"{name} ends")
        locks.release(S)

    await asyncio.gather(*(work(name) for name in "abc"))
    assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_another_session_does_not_wait() -> None:
    locks = SessionLocks()
    await locks.acquire(S, 10)
    await asyncio.wait_for(locks.acquire(OTHER, 10), 10)


async def test_who_waits_too_long_is_told_and_those_behind_him_are_not_held_up() -> None:
    locks = SessionLocks()
    await locks.acquire(S, 10)
    impatient = asyncio.create_task(locks.acquire(S, 0.01))
    patient = asyncio.create_task(locks.acquire(S, 10))
    with pytest.raises(TimeoutError):
        await impatient
    locks.release(S)
    await asyncio.wait_for(patient, 10)


@pytest.mark.parametrize("has_been_given", [False, True])
async def test_who_leaves_while_waiting_passes_the_turn_on(has_been_given: bool) -> None:
    locks = SessionLocks()
    await locks.acquire(S, 10)
    leaving, staying = (asyncio.create_task(locks.acquire(S, 10)) for _ in range(2))
    await asyncio.sleep(0)
    if has_been_given:
        locks.release(S)
    leaving.cancel()
    if not has_been_given:
        await asyncio.sleep(0)
        locks.release(S)
    await asyncio.wait_for(staying, 10)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    locks.release(S)
    await asyncio.wait_for(locks.acquire(S, 10), 10)
