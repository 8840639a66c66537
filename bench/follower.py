"""A back end that follows many sessions, for bench/clients.py: python -m bench.follower URL < IDS

It says "ready" when it knows all of them. At "begin" it starts to count; at "end" it prints the delays of
what came since, in ms, and ends.
"""

import asyncio
import json
import sys
import time

from lockstep_client import AsyncLockstep


async def main(url: str, session_ids: list[str], commands: asyncio.StreamReader) -> None:
    delays_ms: list[float] = []
    known: set[str] = set()
    all_known = asyncio.Event()

    async def follow(lockstep: AsyncLockstep, session_id: str) -> None:
        async for update in lockstep.follow(session_id):
            delays_ms.append(time.time() * 1000 - update.at_ms)
            known.add(session_id)
            if len(known) == len(session_ids):
                all_known.set()

    async with AsyncLockstep(url) as lockstep, asyncio.TaskGroup() as tasks:
        followers = [tasks.create_task(follow(lockstep, each)) for each in session_ids]
        await all_known.wait()
        print("ready", flush=True)
        await commands.readline()
        delays_ms.clear()
        await commands.readline()
        print(json.dumps(sorted(delays_ms)), flush=True)
        for follower in followers:
            follower.cancel()


async def from_stdin() -> None:
    commands = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    session_ids = json.loads(await commands.readline())
    await main(sys.argv[1], session_ids, commands)


if __name__ == "__main__":
    asyncio.run(from_stdin())
