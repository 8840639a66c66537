"""Redis servers of the tests' own, and a link to them that can be broken."""

import asyncio
import contextlib
import inspect
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.listening import listening
from tests.support.processes import wait_until

# Newer redis-py reads for each client what version it is itself: longer than what a test asks of the client.
NAMELESS: dict[str, Any] = (
    {"driver_info": None} if "driver_info" in inspect.signature(redis.Redis).parameters else {}
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class RedisServer:
    """A redis-server on loopback with a folder of its own; started again, it has the same port."""

    def __init__(
        self,
        *options: str,
        aof: bool = False,
        program: str = "redis-server",
        port: int | None = None,
        wait: bool = True,
        env: dict[str, str] | None = None,
    ) -> None:
        if shutil.which(program) is None:
            pytest.fail("redis-server is missing: install Debian's package redis-server", pytrace=False)
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="lockstep-redis-"))
        persistence = ["--appendonly", "yes", "--appendfsync", "always"] if aof else []
        self._command = [
            program,
            *(["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]),
            *persistence,
            *options,
        ]
        self._environment = os.environ | (env or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.start(wait)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=5, **NAMELESS)

    def start(self, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._environment
        )
        if wait:
            self.wait_until_up()

    def wait_until_up(self, timeout_s: float = 10.0) -> None:
        end = time.monotonic() + timeout_s
        while True:
            try:
                with self.client as client:
                    client.ping()
                    return
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """What an empty start would find: nothing."""
        for file in self.folder.rglob("*"):
            if file.is_file():
                file.unlink()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.thaw()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """A TCP link to a server that can be made slow, silent or cut, in either direction.

    It runs on the test's own event loop: `async with Proxy(port) as proxy: ...`
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        # Bytes towards the server, and back, are swallowed while set.
        self.swallows_requests = False
        self.swallows_replies = False
        self.refuses = False
        # How much of either passes in a second; None: as much as comes.
        self.bytes_per_s: float | None = None
        # How long each piece is under way; and whether all are, as where nothing gets through for a while.
        self.delay_s = 0.0
        self.holds = False
        self._stack = contextlib.AsyncExitStack()
        self._writers: set[asyncio.StreamWriter] = set()
        # Called with each piece on its way; what it returns goes on (b"": nothing, None: the link is cut).
        self.on_request = lambda data: data
        self.on_reply = lambda data: data

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> "Proxy":
        listener = socket.create_server(("127.0.0.1", self.port))
        # So that it is not this link's buffers that take in what a slow one would not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        server = await self._stack.enter_async_context(listening(self._serve, listener))
        self.port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            # Always by a reset, whether or not the request has come: browsers word the two differently.
            ours = writer.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        self._writers |= {writer, up_writer}
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, up_writer, writer, towards_server=True))
                pumps.create_task(self._pump(up_reader, writer, up_writer, towards_server=False))
        finally:
            self._writers -= {writer, up_writer}
            up_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        towards_server: bool,
    ) -> None:
        try:
            while data := await reader.read(65_536):
                changed = self.on_request(data) if towards_server else self.on_reply(data)
                if changed is None:
                    break
                swallows = self.swallows_requests if towards_server else self.swallows_replies
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                while self.holds:
                    await asyncio.sleep(0.01)
                if not swallows and changed:
                    writer.write(changed)
                    await writer.drain()
                    if self.bytes_per_s is not None:
                        await asyncio.sleep(len(changed) / self.bytes_per_s)
        except OSError:
            pass  # the other side is gone, and so is this one
        finally:
            for each in (writer, other):
                each.transport.abort()


class Sentinels:
    """A master, a replica, and three Sentinels that watch them.

    Unless it is told sooner, the master stays what it is, however busy the machine.
    """

    def __init__(self, down_after_ms: int = 60_000) -> None:
        self.master = RedisServer(aof=True)
        self.replica = RedisServer("--replicaof", f"127.0.0.1 {self.master.port}", aof=True)
        self._sentinels = []
        self.ports = []
        for _ in range(3):
            port, folder = free_port(), Path(tempfile.mkdtemp(prefix="lockstep-sentinel-"))
            config = folder / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor lockstep 127.0.0.1 {self.master.port} 2\n"
                f"sentinel down-after-milliseconds lockstep {down_after_ms}\n"
                "sentinel failover-timeout lockstep 5000\n"
            )
            process = subprocess.Popen(
                ["redis-server", str(config), "--sentinel"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._sentinels.append((process, folder))
            self.ports.append(port)
        try:
            self._wait_until_linked()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/lockstep/0"

    def _wait_until_linked(self) -> None:
        """A failover needs a replica in step, and Sentinels that know each other."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                known = [
                    redis.Redis(port=port, **NAMELESS).sentinel_master("lockstep") for port in self.ports
                ]
                linked = self.replica.client.info("replication")["master_link_status"] == "up"
                counts = {(int(each["num-other-sentinels"]), int(each["num-slaves"])) for each in known}
                if linked and counts == {(2, 1)}:
                    return
            except (redis.RedisError, KeyError):
                pass
            time.sleep(0.05)
        raise AssertionError("Sentinel did not find its servers")

    def ask(self, port: int, *words: str) -> str:
        """One Sentinel, with redis-cli."""
        command = ["redis-cli", "-p", str(port), "sentinel", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout

    def depose(self, *lost: str) -> None:
        """As a partition leaves it: the old master lives, and nobody has told it.

        The new one does not have these keys when it is named.
        """
        for port in self.ports:
            self.ask(port, "remove", "lockstep")
        with self.replica.client as client:
            client.replicaof("no", "one")
            wait_until(lambda: client.role()[0] == b"master", what="the promotion")
            if lost:
                client.delete(*lost)
        for port in self.ports:
            self.ask(port, "monitor", "lockstep", "127.0.0.1", str(self.replica.port), "2")

    def close(self) -> None:
        for process, folder in self._sentinels:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
        self.master.close()
        self.replica.close()
