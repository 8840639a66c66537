"""Real server processes for the tests."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ujson

from lockstep.logs import GATHER_S
from tests.support.environment import without_settings
from tests.support.ws_client import abort_all

ROOT = Path(__file__).parents[2]
START_LINE = re.compile(r"Lockstep is ready at ((?:http://|unix:)\S+)")


@dataclass(frozen=True)
class Answer:
    """What came back for one HTTP request; header names in lower case, `body` as parsed JSON if it is."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw) if self.raw else None

    @property
    def data(self) -> Any:
        assert self.status < 300, self.raw
        return self.body["data"]


async def request(
    url: str,
    method: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    timeout_s: float = 20.0,
    unix_socket: Path | None = None,
) -> Answer:
    """One HTTP request on a connection of its own; `body` as JSON, or bytes as they are."""
    parts = urlsplit(url)
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": parts.netloc, "Connection": "close", "Content-Length": str(len(raw))}
    if raw:
        lines["Content-Type"] = "application/json"
    head = "".join(f"{name}: {value}\r\n" for name, value in (lines | (headers or {})).items())
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    if unix_socket is None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    else:
        reader, writer = await asyncio.open_unix_connection(unix_socket)
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + raw)
            answer = await reader.read(-1)
    finally:
        writer.transport.abort()
    return parse_answer(answer)


def parse_answer(answer: bytes) -> Answer:
    """An HTTP answer that is complete, from its bytes."""
    head, _, raw = answer.partition(b"\r\n\r\n")
    parsed = _answer(head, raw)
    assert len(raw) == int(parsed.headers.get("content-length", len(raw))), "the answer is cut short"
    return parsed


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    """The next answer on a connection that may stay; that to a HEAD has no body, whatever length it names."""
    head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
    length = 0 if method == "HEAD" else int(_answer(head, b"").headers.get("content-length", 0))
    return _answer(head, await reader.readexactly(length))


def _answer(head: bytes, raw: bytes) -> Answer:
    first, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Answer(int(first.split()[1]), headers, raw)


class ServerProcess:
    """One `server.py` on a free port of its own, or at a Unix socket, ended by its own pid."""

    def __init__(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        wait: bool = True,
        stderr: int = subprocess.PIPE,
    ) -> None:
        """`stderr`: a descriptor for its log, which then is not kept here.

        It is patient with clients whose pongs are late, unless a test says otherwise: a client of the
        tests answers pings while somebody receives, and a busy test may not for seconds.
        """
        if not any(arg.startswith("--ping-") for arg in args):
            args = ("--ping-interval-s=300", "--ping-timeout-s=200", *args)
        if not any(arg.startswith(("--port=", "--unix-socket=")) for arg in args):
            args = ("--port=0", *args)
        self.process = subprocess.Popen(
            [sys.executable, "server.py", *args],
            cwd=ROOT,
            env=without_settings() | (env or {}),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        self.pid = self.process.pid
        self.url = ""
        self.unix_socket: Path | None = None
        self.start_line = ""
        self.prefix = ""
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = START_LINE.search(line.decode())
            if found:
                self.url, self.start_line = found[1], line.decode()
                if self.url.startswith("unix:"):
                    self.unix_socket, self.url = Path(self.url.removeprefix("unix:")), "http://localhost"
                break
        else:
            told = b"" if self.process.stderr is None else self.process.stderr.read()
            raise AssertionError(f"the server did not start: {told.decode()}")
        self._log_lines: list[str] = []
        if self.process.stderr is None:
            return
        # Log lines are kept, and read so that the pipe never fills.
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log_lines.append(line.decode().rstrip())

    @property
    def ws_url(self) -> str:
        return self.url.replace("http://", "ws://")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        return await request(self.url + path, method, body, headers, unix_socket=self.unix_socket)

    @property
    def log_lines(self) -> list[str]:
        """The lines of whatever was answered before this is asked for."""
        # They are written behind the answer. Many short waits: if all stands still it is in one of them.
        for _ in range(20):
            time.sleep(GATHER_S / 5)
        return self._log_lines

    def log(self) -> list[dict[str, object]]:
        return [ujson.loads(line) for line in self.log_lines if line.startswith("{")]

    def rss_bytes(self) -> int:
        return rss_bytes(self.pid)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 15.0) -> int:
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.terminate()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._close_pipes()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        if hasattr(self, "_log_reader"):
            self._log_reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"{pid} has ended, and was not waited for yet")


def wait_until(condition, timeout_s: float = 10.0, what: str = "the condition"):  # type: ignore[no-untyped-def]
    """Poll for what no event tells."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"{what} did not hold within {timeout_s} s")


def lockstep(*args: str) -> "subprocess.CompletedProcess[str]":
    """`server.py` with these arguments, for what ends by itself."""
    command = [sys.executable, "server.py", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def running(server: ServerProcess) -> Iterator[ServerProcess]:
    """Stopped at the end."""
    try:
        yield server
    finally:
        abort_all()
        server.stop()
