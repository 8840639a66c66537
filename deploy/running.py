"""What `up` started: supervisord and its children, found again by later commands."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

from deploy.cluster import NODES, url_of
from deploy.config import ROOT, Failure, Stack, find_program, settings_of
from lockstep.config import Settings

# nginx and Redis may take this long after the processes: supervisord.conf gives Redis a minute to save.
OTHERS_STOP_TIMEOUT_S = 75.0
KILL_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 3.0
OF_ANOTHER_VERSION = "it was started by another version of deploy/stack.py: make down up"


def supervisor_environ(stack: Stack) -> dict[str, str]:
    """The environment that supervisord.conf is read with. Raises Failure where a program is missing."""
    return dict(os.environ) | {
        "STACK_RUN": stack.run,
        "STACK_USER": str(os.getuid()),
        "STACK_FDS": str(stack.descriptors),
        "STACK_PROCESSES": str(stack.processes),
        "STACK_PYTHON": sys.executable,
        "STACK_NGINX": find_program("nginx"),
        "STACK_REDIS": "redis-server" if stack.redis_url else find_program("redis-server"),
        "STACK_OWN_REDIS": "false" if stack.redis_url or stack.cluster else "true",
        "STACK_OWN_CLUSTER": "true" if stack.cluster else "false",
        "STACK_CLUSTER_PORT": str(stack.cluster_port),
        "STACK_NODES": str(NODES),
        "STACK_DRAIN_S": str(stack.drain_s),
        "STACK_STOP_S": str(stack.stop_timeout_s),
        "STACK_SAID_BROKER": os.environ.get("LOCKSTEP_BROKER", ""),
        "LOCKSTEP_BROKER": stack.redis_url
        or (url_of(stack) if stack.cluster else f"unix://{stack.folder / 'redis.sock'}?db=0"),
    }


def supervisor_command(program: str, *arguments: str) -> list[str]:
    """supervisord or supervisorctl, with our supervisord.conf."""
    return [sys.executable, "-m", f"supervisor.{program}", "-c", str(ROOT / "supervisord.conf"), *arguments]


class RunningStack:
    """A stack that was started. Its processes are one session of the system, led by supervisord."""

    def __init__(self, stack: Stack, session: int, *, is_of_another_version: bool = False) -> None:
        self.stack = stack
        self.session = session
        self.is_of_another_version = is_of_another_version

    @classmethod
    def start(cls, stack: Stack, environ: dict[str, str]) -> "tuple[RunningStack, subprocess.Popen[bytes]]":
        with open(stack.folder / "supervisord.out", "wb") as out:
            supervisord = subprocess.Popen(
                supervisor_command("supervisord"),
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return cls(stack, supervisord.pid), supervisord

    @classmethod
    def read(cls, run: Path) -> "RunningStack | None":
        try:
            kept = json.loads((run / "stack.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise Failure(
                f"{run / 'stack.json'} cannot be read: end what still runs, and remove it"
            ) from None
        known = {field.name for field in fields(Stack)}
        told = {name: value for name, value in kept["stack"].items() if name in known}
        return cls(Stack(**told), kept["session"], is_of_another_version=kept["stack"].keys() != known)

    def write(self) -> None:
        kept = {"stack": asdict(self.stack), "session": self.session}
        path = self.stack.folder / "stack.json"
        path.touch(mode=0o600)  # the URL of Redis may hold a password
        path.write_text(json.dumps(kept, indent=2) + "\n")

    def pids(self) -> list[int]:
        """All that live. The system may reuse the session's number, so only those in our folders count."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" or int(fields[3]) != self.session:
                    continue
                folder = Path(os.readlink(entry / "cwd"))
            except OSError:
                continue  # it has ended, or belongs to another user
            if folder == ROOT or folder.is_relative_to(self.stack.folder):
                found.append(int(entry.name))
        return found

    @property
    def environ(self) -> dict[str, str]:
        """What supervisord was started with, and so each process, whenever it is started."""
        raw = Path(f"/proc/{self.session}/environ").read_bytes()
        pairs = (os.fsdecode(each).partition("=") for each in raw.split(b"\0") if each)
        return {name: value for name, _, value in pairs}

    @property
    def settings(self) -> Settings:
        """What the variables of `up` say, and its file as it is now. Raises Failure."""
        environ = self.environ
        broker = environ.get("STACK_SAID_BROKER", self.stack.redis_url)
        environ.pop("LOCKSTEP_BROKER", None)
        return settings_of(environ | ({"LOCKSTEP_BROKER": broker} if broker else {}))

    @property
    def supervisor(self) -> Any:
        """supervisord's XML-RPC interface."""
        from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

        path = self.stack.folder / "supervisor.sock"
        return ServerProxy(
            "http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{path}")
        ).supervisor

    def is_up(self) -> bool:
        return self.session in self.pids()

    def stop(self) -> None:
        """supervisord stops the others in order; what outlives it is ended by its own pid."""
        in_order_s = self.stack.stop_timeout_s + OTHERS_STOP_TIMEOUT_S
        for number, timeout_s in ((signal.SIGTERM, in_order_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
            pids = self.pids()
            for pid in [self.session] if self.session in pids and number == signal.SIGTERM else pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if wait_until(lambda: not self.pids(), timeout_s):
                (self.stack.folder / "stack.json").unlink(missing_ok=True)
                return
        raise Failure(f"processes {self.pids()} do not end")


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


class UnixConnection(http.client.HTTPConnection):
    """HTTP at a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ASK_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def connection_to_nginx(stack: Stack) -> http.client.HTTPConnection:
    host, _, port = stack.listen.rpartition(":")
    host = "127.0.0.1" if host in ("0.0.0.0", "*") else host.strip("[]")
    if not stack.certificate:
        return http.client.HTTPConnection(host, int(port), timeout=ASK_TIMEOUT_S)
    # The certificate need not be one for this address: only clients check that.
    context = ssl._create_unverified_context()
    return http.client.HTTPSConnection(host, int(port), timeout=ASK_TIMEOUT_S, context=context)


def why_not_ready(stack: Stack, name: str) -> str:
    """Why GET /ready of a process, or through "nginx", does not answer 200; empty if it does."""
    link = connection_to_nginx(stack) if name == "nginx" else UnixConnection(stack.socket_of(name))
    try:
        link.request("GET", "/ready")
        answer = link.getresponse()
        text = answer.read().decode(errors="replace")
        return "" if answer.status == 200 else text[:200] or str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        link.close()


def last_log_line(run: Path, name: str) -> str:
    """Where a process says why it ended, if it does."""
    with contextlib.suppress(OSError):
        lines = (run / f"{name}.log").read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:500]
    return "it said nothing"
