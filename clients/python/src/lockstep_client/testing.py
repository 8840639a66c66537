"""For tests of applications: a server whose time stands still until the test moves it.

```python
@pytest.fixture(scope="session")
def server():
    with virtual_server() as server:
        yield server

def test_a_flag_falls_after_ten_minutes(server):
    with Lockstep(server.url) as lockstep:
        game = lockstep.create_session(
            {"sync_mode": "per_participant", "participants": [{"total_time_ms": 600_000}]}
        )
        lockstep.command(game["session_id"], "start")
        server.advance(600_000)
        assert lockstep.session(game["session_id"])["participants"][0]["has_expired"]
```
"""

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from lockstep_client import calls
from lockstep_client.async_client import AsyncLockstep
from lockstep_client.errors import LockstepError
from lockstep_client.senders import Sender
from lockstep_client.tokens import TokenSource

START_WITHIN_S = 30.0
STOP_WITHIN_S = 15.0
TOLD_WITHIN_S = 10.0
TIMEOUT_S = 120.0
"""A day of a busy session has many deadlines."""
_READY = re.compile(rb"ready at (http://\S+)")


def advance(url: str, ms: int, token: TokenSource | None = None) -> int:
    """Move the time of a server that was started with `--virtual-time=yes`; what it is then, in epoch ms.

    Whatever falls due has happened, in order, each at its own instant, and is on its way to those who
    follow. `ms` is 1 to 86,400,000. `token` is needed where the server has keys, of scope admin. Raises
    LockstepError, NOT_FOUND where the server's time is not virtual.
    """
    with closing(Sender(url, token, TIMEOUT_S)) as sender:
        return sender.do(calls.advance(ms))


async def advance_async(
    url: str, ms: int, token: TokenSource | None = None, clients: Sequence[AsyncLockstep] = ()
) -> int:
    """The same for asyncio; when it returns, `clients`, connected to that server, know what happened.

    What they follow has been given all of it, and their `time` is the server's. What they have just begun to
    follow is waited for first.
    """
    await asyncio.sleep(0)  # who has just been started begins to follow
    await _until(lambda: all(map(_is_settled, clients)))
    now_ms = await asyncio.to_thread(advance, url, ms, token)
    await _until(lambda: all(each.time.now_ms() >= now_ms for each in clients if each.followed))
    return now_ms


def _is_settled(client: AsyncLockstep) -> bool:
    followed = client.followed
    return all(map(client.is_current, followed)) and (client.time.error_ms == 0 or not followed)


async def _until(holds: Callable[[], bool]) -> None:
    ends_at_s = time.monotonic() + TOLD_WITHIN_S
    while not holds():
        if time.monotonic() > ends_at_s:
            raise LockstepError("UNREACHABLE", "A client is not told of the server's time")
        await asyncio.sleep(0.002)


@dataclass(frozen=True, slots=True)
class VirtualServer:
    """A server on virtual time."""

    url: str

    def advance(self, ms: int, token: TokenSource | None = None) -> int:
        """See `advance`."""
        return advance(self.url, ms, token)

    async def advance_async(
        self, ms: int, token: TokenSource | None = None, clients: Sequence[AsyncLockstep] = ()
    ) -> int:
        """See `advance_async`."""
        return await advance_async(self.url, ms, token, clients)


@contextmanager
def virtual_server(command: Sequence[str] = ("lockstep",), *settings: str) -> Iterator[VirtualServer]:
    """A server on virtual time, on a free port of this machine, until the block ends; with no sessions in it.

    `command` starts one, `settings` are added to it (`"--jwt-secret-file=..."`). What the environment says of
    Lockstep's settings does not count. Raises RuntimeError where it does not start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*command, "--port=0", "--virtual-time=yes", *settings],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            yield VirtualServer(_ready_url(process, output.fileno()))
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready_url(process: "subprocess.Popen[bytes]", output: int) -> str:
    ends_at_s = time.monotonic() + START_WITHIN_S
    while True:
        has_ended = process.poll() is not None
        said = os.pread(output, 65_536, 0)
        found = _READY.search(said)
        if found is not None and b"\n" in said[found.end() :]:
            return found[1].decode()
        if has_ended or time.monotonic() > ends_at_s:
            raise RuntimeError(f"the server did not start: {said.decode(errors='replace')}")
        time.sleep(0.01)
