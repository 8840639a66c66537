"""The Python client, told what to do by lines of JSON, as contract_client.mjs is; it tells what happens."""

import asyncio
import json
import os
import sys
from contextlib import suppress
from typing import Any

from lockstep_client import AsyncLockstep, LockstepError

following: dict[str, asyncio.Task[None]] = {}
latest: dict[str, Any] = {}


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def follow(lockstep: AsyncLockstep, session_id: str) -> None:
    async for update in lockstep.follow(session_id):
        latest[session_id] = update
        versions = [event["version"] for event in update.events]
        tell(
            {
                "session": session_id,
                "state": update.state,
                "position": update.position,
                "versions": versions,
                # A creation is the beginning, whatever was there before.
                "sync": update.sync or update.reason in ("created", "deleted"),
            }
        )


def open_sockets() -> int:
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that by which they are listed
            count += "socket:" in os.readlink(f"/proc/self/fd/{fd}")
    return count


class Deeds:
    def __init__(self) -> None:
        self.lockstep: AsyncLockstep | None = None
        self.own_sockets = open_sockets()  # of the event loop

    async def open(self, url: str, sessions: list[str]) -> None:
        self.lockstep = AsyncLockstep(url)
        for each in sessions:
            following[each] = asyncio.create_task(follow(self.lockstep, each))

    async def probe(self) -> None:
        assert self.lockstep is not None
        self.lockstep.probe()

    async def look(self) -> dict[str, Any]:
        assert self.lockstep is not None
        return {
            session_id: {
                "isCurrent": self.lockstep.is_current(session_id),
                "position": update.position,
                "state": update.state,
            }
            for session_id, update in latest.items()
        }

    async def command(self, session: str, name: Any, body: Any, key: str) -> dict[str, Any]:
        assert self.lockstep is not None
        result = await self.lockstep.send_command(session, name, body, idempotency_key=key)
        return {"position": result["position"], "replayed": result.get("replayed", False)}

    async def time(self) -> dict[str, Any]:
        assert self.lockstep is not None
        return {"now": self.lockstep.time.now_ms(), "errorMs": self.lockstep.time.error_ms}

    async def left(self) -> dict[str, int]:
        """What is open in this process besides the lines of JSON."""
        # A task reads the lines, and one does this deed.
        return {"timers": len(asyncio.all_tasks()) - 2, "sockets": open_sockets() - self.own_sockets}

    async def close(self) -> None:
        assert self.lockstep is not None
        await self.lockstep.close()
        await asyncio.gather(*following.values())


async def main() -> None:
    deeds = Deeds()
    running: set[asyncio.Task[None]] = set()
    reader = asyncio.StreamReader(limit=2**22)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )

    async def do(id: int, deed: str, **args: Any) -> None:
        try:
            tell({"id": id, "answer": await getattr(deeds, deed)(**args) or {}})
        except LockstepError as error:
            tell({"id": id, "refused": error.code})

    while line := await reader.readline():
        task = asyncio.create_task(do(**json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)


asyncio.run(main())
