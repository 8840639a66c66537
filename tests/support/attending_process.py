"""A process that says who is connected, and nothing else, until it is killed.

python -m tests.support.attending_process URL PREFIX ROUTING, and on its input one JSON list after the other:
[session_id, subject, connections], where 0 connections are none.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Self

from broker.redis import RedisBroker
from lockstep.contract import Attendance
from lockstep.metrics import Metrics
from tests.support.brokers import started
from tests.support.processes import ROOT


class AttendingProcess:
    """Such a process, ended by its own id."""

    def __init__(self, url: str, prefix: str = "", routing: str = "all") -> None:
        command = [sys.executable, "-m", "tests.support.attending_process", url, prefix, routing]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def attend(self, session_id: str, *subjects: str, connections: int = 1) -> None:
        assert self._process.stdin is not None
        for subject in subjects:
            self._process.stdin.write(json.dumps([session_id, subject, connections]).encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()


async def main(url: str, prefix: str, routing: str) -> None:
    broker = RedisBroker(url, prefix=prefix, routing=routing, allow_eviction=False, metrics=Metrics())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with started(broker):
        while line := await lines.readline():
            session_id, subject, connections = json.loads(line)
            there = Attendance(connections, broker.now_ms()) if connections else None
            broker.attend(session_id, subject, there)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
