"""Both clients, each in a process of its own, asked in the same way; what they tell is checked."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.node import NODE

PROGRAMS = {
    "javascript": (str(NODE), str(Path(__file__).with_name("contract_client.mjs"))),
    "python": (sys.executable, str(Path(__file__).with_name("contract_client.py"))),
}
ANSWER_WITHIN_S = 30


class ContractClient:
    """A client of some sessions. `complaints` are what it told that the contract does not allow."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._shown: dict[str, dict[str, Any] | None] = {}
        self.complaints: list[str] = []
        self.versions: dict[str, list[int]] = {}
        """By session, the versions that were told as events, in the order in which they came."""
        self._reading = asyncio.create_task(self._read())

    async def do(self, deed: str, **args: Any) -> dict[str, Any]:
        """The answer; of what was refused, {"refused": code}."""
        id_ = next(self._ids)
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id_, "deed": deed, **args}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await answer

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            if "session" in told:
                self._hear(**told)
            elif "id" in told:
                self._answers.pop(told["id"]).set_result(told.get("answer", told))
            else:
                self.complaints.append(str(told))

    def _hear(
        self,
        session: str,
        state: dict[str, Any] | None,
        position: str | None,
        versions: list[int],
        sync: bool,
    ) -> None:
        before = self._shown.get(session)
        self._shown[session] = state
        self.versions.setdefault(session, []).extend(versions)
        if state is None or sync:
            return
        assert state is not None
        first = before["version"] + 1 if before else 1
        if versions != list(range(first, state["version"] + 1)):
            self.complaints.append(f"{session} from {first - 1} to {state['version']} by {versions}")
        if position != "-".join(str(state[name]) for name in ("epoch", "version", "commit")):
            self.complaints.append(f"{session}: {position} is not its state's")

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def contract_client(language: str) -> AsyncIterator[ContractClient]:
    """It has to tell nothing that the contract does not allow."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAMS[language], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**22
    )
    client = ContractClient(process)
    try:
        yield client
    finally:
        await client.end()
    assert client.complaints == []
