"""The machine under a benchmark: programs in C, processes on chosen cores, CPU time, versions.

The server under test has one core, everything else the other, so that what a figure says of the server is not
said of the load generator. On a machine with one core both share it, and the figures say little.
"""

import functools
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tornado

from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parent.parent
BENCH = Path(__file__).parent
BUILD = ROOT / "build" / "bench"
PEERS = BENCH / "peers"
PYTHON = ROOT / ".venv" / "bin" / "python"

NODE_PEERS = ("ws", "ioredis", "socket.io", "@socket.io/redis-adapter", "express")
PYTHON_PEERS = ("websockets", "redis", "hiredis", "starlette", "uvicorn", "uvloop")

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0]
LOAD_CORE = CORES[-1]


def raise_file_limit() -> None:
    """As many sockets as the system lets us have; processes started later inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_limit() -> int:
    """As many files as a process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def compiled(name: str, *libraries: str) -> Path:
    """The program made of bench/NAME.c, compiled if it is older than its sources."""
    source, program = BENCH / f"{name}.c", BUILD / name
    changed_s = max(each.stat().st_mtime for each in (source, BENCH / "common.h"))
    if not program.exists() or program.stat().st_mtime < changed_s:
        BUILD.mkdir(parents=True, exist_ok=True)
        # Moved into place at the end: another run may be executing the old one.
        unfinished = program.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-O2", "-std=c11", "-Wall", "-o", str(unfinished), str(source)]
        subprocess.run([*command, *libraries], check=True)
        unfinished.replace(program)
    return program


@functools.cache
def built_by_go(name: str) -> Path | None:
    """The program of bench/peers/NAME; None, and one line that says why, where it cannot be built."""
    program = BUILD / name
    if shutil.which("go") is None:
        print(f"{name} is left out: there is no Go", file=sys.stderr)
        return None
    command = ["go", "build", "-o", str(program), "."]
    built = subprocess.run(command, cwd=PEERS / name, capture_output=True, text=True, check=False)
    if built.returncode:
        why = (built.stderr.strip().splitlines() or ["go build failed"])[-1]
        print(f"{name} is left out: {why}", file=sys.stderr)
        return None
    return program


@functools.cache
def node() -> str:
    """Node itself: what is called so on the path may be a script that starts it, as its own child."""
    return first_line("node", "--print", "process.execPath")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pin(pid: int, core: int) -> None:
    """Every thread that a process has by now; later ones inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond; /proc counts in hundredths of a second."""
    # The clock id of another process, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def busy_s(core: int) -> float:
    """How long a core has been busy with anything, the time that a hypervisor took from it included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, stolen, *_ = map(int, ticks)
            return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")
    raise ValueError(f"no core {core}")


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory")


class Process:
    """A program on one core, ended by its own pid; what it prints is kept for the case that it fails."""

    def __init__(
        self,
        command: Sequence[str | Path],
        core: int = SERVER_CORE,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        self._command = " ".join(map(str, command))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        # taskset becomes the program: the pid is the program's.
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), *map(str, command)],
            cwd=cwd,
            env=clean | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.pid = self.process.pid

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def wait_for_port(self, port: int, timeout_s: float = 20.0) -> None:
        end = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{self._command} does not listen: {self.log()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough: a benchmark's next contestant wants the core."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Redis:
    """A Redis of the benchmark's own, on the core of the load."""

    def __init__(self, core: int = LOAD_CORE) -> None:
        self._server = RedisServer()
        self.port = self._server.port
        self.url = self._server.url
        assert self._server.process is not None
        self.pid = self._server.process.pid
        pin(self.pid, core)

    @property
    def client(self) -> Any:
        return self._server.client

    def __enter__(self) -> "Redis":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()


def first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "missing"
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return (answer.stdout or answer.stderr).splitlines()[0].strip()


def processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.processor() or platform.machine()


def node_version(package: str) -> str:
    """The installed version of a Node package among the peers."""
    file = PEERS / "node_modules" / package / "package.json"
    found = re.search(r'"version":\s*"([^"]+)"', file.read_text()) if file.exists() else None
    return found[1] if found else "missing"


def go_version(module: str) -> str:
    """The version of a Go module that a peer is built with."""
    for file in PEERS.glob("*/go.mod"):
        if found := re.search(rf"{re.escape(module)} v(\S+)", file.read_text()):
            return found[1]
    return "missing"


def python_build() -> str:
    """How this Python was compiled: the same code is a seventh slower without what PGO and LTO do."""
    configured = f"{sysconfig.get_config_var('CONFIG_ARGS')} {sysconfig.get_config_var('CFLAGS')}"
    has_pgo = "--enable-optimizations" in configured
    has_lto = "--with-lto" in configured or "-flto" in configured
    with_ = [f"{'with' if has else 'without'} {name}" for name, has in (("PGO", has_pgo), ("LTO", has_lto))]
    return f"{platform.python_version()}, {platform.python_compiler()}, {', '.join(with_)}"


def commit(checkout: Path = ROOT) -> str:
    """The commit that is measured, and whether anything differs from it."""
    head = first_line("git", "-C", str(checkout), "log", "-1", "--format=%h of %cs")
    changes = subprocess.run(
        ["git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{head}, changed" if changes.stdout.strip() else head


def python_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def versions() -> dict[str, str]:
    """What a figure depends on besides the code."""
    redis = re.search(r"v=(\S+)", first_line("redis-server", "--version"))
    return {
        "CPU": f"{processor()}, {len(CORES)} cores",
        "kernel": platform.release(),
        "commit": commit(),
        "Python": python_build(),
        "Tornado": tornado.version,
        "Redis": redis[1] if redis else "missing",
        "Node": first_line(node(), "--version").removeprefix("v"),
        "Go": first_line("go", "env", "GOVERSION").removeprefix("go"),
        "gcc": first_line("gcc", "-dumpfullversion"),
        "peers": ", ".join(
            [f"{package} {node_version(package)}" for package in NODE_PEERS]
            + [f"{package} {python_version(package)}" for package in PYTHON_PEERS]
            + [f"centrifuge {go_version('github.com/centrifugal/centrifuge')}"]
        ),
    }
