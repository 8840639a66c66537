#!/usr/bin/env python3
"""Lockstep on one machine: Redis, a process per port and nginx under supervisord, all in one folder.

    deploy/stack.py up [--processes=4 ...]   start, and return when everything answers
    deploy/stack.py roll                     restart the processes one after the other, unnoticed
    deploy/stack.py reload                   nginx takes its configuration and certificate anew
    deploy/stack.py doctor                   look at what runs; each line is ok or says what to do
    deploy/stack.py down                     stop what `up` started, and only that
    deploy/stack.py ctl ARGUMENTS            supervisorctl: status, tail -f NAME, ...

What is the processes' own is set by LOCKSTEP_* variables, or in the file that LOCKSTEP_CONFIG names; `broker`
is a Redis other than our own.
`up` writes down what it was told, so that the others need only the folder.
"""

import argparse
import asyncio
import contextlib
import fcntl
import http.client
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

try:
    from broker import examine
    from lockstep.config import Settings, SettingsError, masked, read_settings
except ModuleNotFoundError as missing:
    sys.exit(f"stack: {missing.name} is missing: make up, or .venv/bin/python {' '.join(sys.argv)}")

# What supervisord.conf says to each process, whatever else is set. It says, too, that nginx is to be trusted:
# the setting trusted_proxies is for nginx here, which passes on who the caller is.
OWN_FLAGS = ("--address=127.0.0.1",)
# What `up` takes unless it is told otherwise.
DEFAULTS = {
    "listen": "127.0.0.1:8080",
    "processes": 4,
    "base_port": 8001,
    "connections": 4000,
    "certificate": "",
    "key": "",
}
START_WITHIN_S = 30.0
# So much longer than drain_s has a process before it is killed: only one that hangs is.
SPARE_TO_STOP_S = 5
# nginx and Redis may take so long after them; supervisord gives Redis the longest, to write what it has.
OTHERS_STOP_WITHIN_S = 75.0
# Clients who were sent away are back by then, before the next ones go.
SETTLE_S = 1.0
# nginx ends a WebSocket that is silent for so much longer than a dead one is kept by Lockstep.
SPARE_S = 3.0
# nginx keeps a connection to a process for this part of the time that the process keeps it.
KEEPS_ALIVE_FOR = 0.8
MAX_SOCKET_PATH = 100
# Of the open files that a process may have; beyond it the doctor says so.
FULL_AT = 0.9
# One or several names before the rest of a host, as in lockstep's own check of a wildcard.
SUBDOMAIN = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"


LISTEN = re.compile(r"(\[[^\s\[\]]+\]|[^\s:\[\]]+):(\d{1,5})", re.ASCII)


class Failure(Exception):
    """One line that says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Stack:
    """What `up` was told."""

    run: str
    listen: str
    processes: int
    base_port: int
    connections: int
    certificate: str
    key: str
    # Of the settings: all processes must have one Redis, and supervisord must know how long a stop may take.
    redis_url: str = ""
    drain_s: float = 10.0

    @property
    def folder(self) -> Path:
        return Path(self.run)

    @property
    def ports(self) -> list[int]:
        return [self.base_port + n for n in range(self.processes)]

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.listen}"

    @property
    def descriptors(self) -> int:
        """In nginx a client takes two; and all may be with one worker."""
        return 2 * self.connections + 512

    @property
    def stop_s(self) -> int:
        return math.ceil(self.drain_s) + SPARE_TO_STOP_S

    @property
    def environment(self) -> dict[str, str]:
        """What supervisord.conf leaves open."""
        ours = {
            "STACK_RUN": self.run,
            "STACK_USER": str(os.getuid()),
            "STACK_FDS": str(self.descriptors),
            "STACK_PROCESSES": str(self.processes),
            "STACK_BASE_PORT": str(self.base_port),
            "STACK_PYTHON": sys.executable,
            "STACK_NGINX": program("nginx"),
            "STACK_REDIS": program("redis-server") if not self.redis_url else "redis-server",
            "STACK_OWN_REDIS": "false" if self.redis_url else "true",
            "STACK_DRAIN_S": str(self.drain_s),
            "STACK_STOP_S": str(self.stop_s),
            "STACK_SAID_BROKER": os.environ.get("LOCKSTEP_BROKER", ""),
            "LOCKSTEP_BROKER": self.redis_url or f"unix://{self.folder / 'redis.sock'}?db=0",
        }
        return dict(os.environ) | ours

    def nginx_conf(self, settings: Settings) -> str:
        """nginx's configuration beside processes with these settings."""

        def servers(how: str) -> str:
            return "\n".join(f"        server 127.0.0.1:{port} {how};" for port in self.ports)

        words = {
            # Without it the workers of a root's nginx are somebody who may not read the folder.
            "user": "user root;" if os.getuid() == 0 else "",
            "fds": str(self.descriptors),
            "servers": servers("max_fails=1 fail_timeout=1s"),
            "backups": servers("max_fails=0 backup"),
            "socket_servers": servers("max_fails=0"),
            "listen": f"{self.listen} backlog=1024" + (" ssl" if self.certificate else ""),
            "tls": "",
            "real_ip": real_ip(settings.proxies.networks),
            "origins": origins_map(settings.allowed_origins),
            "vary": "Origin" if settings.allowed_origins - {"*"} else "",
            # Whoever is alive says something within the interval; some more, so that only the dead are ended.
            "socket_timeout": in_ms(settings.ping_interval_s + settings.ping_timeout_s + SPARE_S),
            "keep_alive": in_ms(KEEPS_ALIVE_FOR * settings.keep_alive_s),
        }
        if self.certificate:
            words["tls"] = (
                f'        ssl_certificate "{self.certificate}";\n'
                f'        ssl_certificate_key "{self.key}";\n'
                "        ssl_protocols TLSv1.2 TLSv1.3;\n"
                "        ssl_session_cache shared:tls:10m;"
            )
        template = (ROOT / "deploy" / "nginx.conf").read_text()
        return re.sub(r"@(\w+)@", lambda found: words[found[1]], template)


def in_ms(seconds: float) -> str:
    """As nginx reads it."""
    return f"{max(1, round(1000 * seconds))}ms"


def real_ip(networks: Iterable[object]) -> str:
    """By what nginx takes callers for those whom these proxies name, as the processes would."""
    lines = [f"    set_real_ip_from {each};" for each in networks]
    if lines:
        lines += ["    real_ip_header X-Forwarded-For;", "    real_ip_recursive on;"]
    return "\n".join(lines)


def origins_map(origins: Iterable[str]) -> str:
    """The lines of nginx's map from an Origin to what Access-Control-Allow-Origin says."""
    if "*" in origins:
        return '        default "*";'
    lines = ['        default "";']
    for each in sorted(origins):
        before, wildcard, behind = each.partition("*")
        if wildcard:
            each = f"~^{re.escape(before)}{SUBDOMAIN}{re.escape(behind)}$"
        lines.append(f'        "{each}" $http_origin;')
    return "\n".join(lines)


def settings_of(environ: Mapping[str, str]) -> Settings:
    """What the processes make of this environment. Raises Failure."""
    try:
        return read_settings(OWN_FLAGS, environ)
    except SettingsError as error:
        raise Failure(str(error)) from None


def broker_of(settings: Settings) -> str:
    """The Redis that is named; empty: a Redis of the stack's own, since several processes share no memory."""
    return "" if settings.broker == Settings().broker else settings.broker


def program(name: str) -> str:
    """Where it is; /usr/sbin is not on everybody's PATH."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        package = {"redis-server": "redis-server", "nginx": "nginx"}[name]
        raise Failure(f"{name} is missing: install it (on Debian: apt-get install {package})")
    return path


# --- what runs -----------------------------------------------------------------------------------


class Running:
    """What an earlier `up` started: supervisord and its children, which are one session of the system."""

    def __init__(self, stack: Stack, session: int) -> None:
        self.stack = stack
        self.session = session

    @classmethod
    def read(cls, run: Path) -> "Running | None":
        try:
            kept = json.loads((run / "stack.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise Failure(
                f"{run / 'stack.json'} cannot be read: end what still runs, and remove it"
            ) from None
        return cls(Stack(**kept["stack"]), kept["session"])

    def write(self) -> None:
        kept = {"stack": asdict(self.stack), "session": self.session}
        path = self.stack.folder / "stack.json"
        path.touch(mode=0o600)  # the URL of Redis may hold a password
        path.write_text(json.dumps(kept, indent=2) + "\n")

    def pids(self) -> list[int]:
        """All that live. A number may be used again by the system: ours are in our folders, too."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" or int(fields[3]) != self.session:
                    continue
                where = Path(os.readlink(entry / "cwd"))
            except OSError:
                continue  # it has ended, or is somebody else's
            if where == ROOT or where.is_relative_to(self.stack.folder):
                found.append(int(entry.name))
        return found

    @property
    def environ(self) -> dict[str, str]:
        """What supervisord was started with, and so each process, whenever it is started."""
        raw = Path(f"/proc/{self.session}/environ").read_bytes()
        pairs = (os.fsdecode(each).partition("=") for each in raw.split(b"\0") if each)
        return {name: value for name, _, value in pairs}

    @property
    def told(self) -> Settings:
        """What the variables of `up` say, and its file as it is now. Raises Failure."""
        environ = self.environ
        said = environ.get("STACK_SAID_BROKER", self.stack.redis_url)
        environ.pop("LOCKSTEP_BROKER", None)
        return settings_of(environ | ({"LOCKSTEP_BROKER": said} if said else {}))

    @property
    def supervisor(self) -> Any:
        from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

        path = self.stack.folder / "supervisor.sock"
        return ServerProxy(
            "http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{path}")
        ).supervisor

    def is_up(self) -> bool:
        return self.session in self.pids()

    def stop(self) -> None:
        """In order by supervisord; what it leaves behind, or has left when it was killed, by its own pid."""
        in_order_s = self.stack.stop_s + OTHERS_STOP_WITHIN_S
        for number, patience_s in ((signal.SIGTERM, in_order_s), (signal.SIGKILL, 10.0)):
            pids = self.pids()
            for pid in [self.session] if self.session in pids and number == signal.SIGTERM else pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if wait_until(lambda: not self.pids(), patience_s):
                (self.stack.folder / "stack.json").unlink(missing_ok=True)
                return
        raise Failure(f"processes {self.pids()} do not end")


def wait_until(condition: Callable[[], bool], within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


def not_ready(address: str, tls: bool = False) -> str:
    """Why GET /ready does not answer 200; empty if it does."""
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host in ("0.0.0.0", "*") else host.strip("[]")
    if tls:
        # Whether the certificate is one for this address is not asked here.
        link: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, int(port), timeout=3, context=ssl._create_unverified_context()
        )
    else:
        link = http.client.HTTPConnection(host, int(port), timeout=3)
    try:
        link.request("GET", "/ready")
        answer = link.getresponse()
        said = answer.read().decode(errors="replace")
        return "" if answer.status == 200 else said[:200] or str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        link.close()


def last_words(run: Path, name: str) -> str:
    """Why it ended, if it has said so."""
    with contextlib.suppress(OSError):
        lines = (run / f"{name}.log").read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:500]
    return "it said nothing"


# --- what can be wrong before anything is started ------------------------------------------------


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check(stack: Stack, settings: Settings) -> None:
    # The processes themselves are on loopback, and cannot know who reaches them through nginx.
    if not (is_loopback(stack.listen.rpartition(":")[0]) or settings.has_keys or settings.insecure):
        raise Failure(
            f"--listen={stack.listen} can be reached by others, who could do everything: set "
            "LOCKSTEP_JWT_SECRET_FILE or LOCKSTEP_JWT_PUBLIC_KEY_FILE (or LOCKSTEP_INSECURE=yes)"
        )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = stack.descriptors
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Failure(
            f"the limit of open files is {hard}, and {stack.connections} connections need {needed}: "
            f"raise it (ulimit -n, LimitNOFILE=) or set --connections={max((hard - 512) // 2, 1)}"
        )
    if len(os.fsencode(stack.folder / "supervisor.sock")) > MAX_SOCKET_PATH:
        raise Failure(f"--run={stack.run} is too long for the sockets in it: choose a shorter path")
    listen_host, _, listen_port = stack.listen.rpartition(":")
    wanted = [("127.0.0.1", port, "--base-port") for port in stack.ports]
    # `*` is nginx's word for it, and no name.
    wanted.append(
        ("0.0.0.0" if listen_host == "*" else listen_host.strip("[]"), int(listen_port), "--listen")
    )
    for host, port, option in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise Failure(
                    f"port {port} cannot be had ({error.strerror}): end what uses it, or choose by {option}"
                ) from None


def write_nginx_conf(stack: Stack, settings: Settings) -> bool:
    """False where it is as it was. Raises Failure with nginx's own words, and leaves what was there."""
    path, new = stack.folder / "nginx.conf", stack.folder / "nginx.conf.new"
    text = stack.nginx_conf(settings)
    if path.exists() and path.read_text() == text:
        new = path
    else:
        new.write_text(text)
    command = [program("nginx"), "-t", "-q", "-p", stack.run, "-c", new.name, "-e", "nginx-error.log"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=stack.environment)
    if told.returncode:
        lines = [line for line in told.stderr.splitlines() if "[emerg]" in line] or [told.stderr.strip()]
        raise Failure(f"nginx refuses deploy/nginx.conf: {lines[0]}")
    new.replace(path)
    return new != path


# --- what is said and does not count -------------------------------------------------------------


def ignored(running: Running, options: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    """Each option and setting given now that differs from what the stack was started with."""
    found = []
    for name, given in asdict(as_told(options)).items():
        if name in DEFAULTS and getattr(options, name) is not None:
            has = getattr(running.stack, name)
            if given != has:
                found.append(f"--{name.replace('_', '-')}={given} (it runs with {has or 'none'})")
    started_with = running.environ
    if not running.stack.redis_url:
        started_with.pop("LOCKSTEP_BROKER", None)  # our own: nobody had set it
    for name, given in sorted(environ.items()):
        if name.startswith("LOCKSTEP_") and started_with.get(name) != given:
            key = name.removeprefix("LOCKSTEP_").lower()
            has = f"{masked(key, started_with[name])!r}" if name in started_with else "none"
            found.append(f"{name}={masked(key, given)} (it runs with {has})")
    return [*found, *ignored_of_file(running)]


def ignored_of_file(running: Running) -> Iterator[str]:
    """What the file of LOCKSTEP_CONFIG says otherwise since `up`, and a roll does not take."""
    path, stack = running.environ.get("LOCKSTEP_CONFIG"), running.stack
    if path is None:
        return
    try:
        told = running.told
    except Failure:
        return  # a roll says so itself, and nothing else needs the file
    if broker_of(told) != stack.redis_url:
        has = masked("broker", stack.redis_url) or "its own Redis"
        yield f"broker={masked('broker', told.broker)} in {path} (it runs with {has})"
    if told.drain_s != stack.drain_s:
        yield f"drain_s={told.drain_s:g} in {path} (it runs with {stack.drain_s:g})"


def tell_ignored(running: Running, options: argparse.Namespace) -> None:
    if found := ignored(running, options, os.environ):
        print(f"ignored, since it runs already: {', '.join(found)}; make down up takes them", flush=True)


# --- the commands --------------------------------------------------------------------------------


def up(options: argparse.Namespace) -> None:
    stack = as_told(options)
    running = Running.read(stack.folder)
    if running is not None and running.is_up():
        print(f"already up: {running.stack.url} (make roll renews it, make down ends it)")
        tell_ignored(running, options)
        return
    if running is not None and (pids := running.pids()):
        raise Failure(f"processes {pids} of an earlier start still run: make down ends them")
    settings = settings_of(os.environ)
    stack = replace(stack, redis_url=broker_of(settings), drain_s=settings.drain_s)
    environment = stack.environment
    check(stack, settings)
    (stack.folder / "redis").mkdir(exist_ok=True)
    (stack.folder / "nginx-temp").mkdir(exist_ok=True)
    write_nginx_conf(stack, settings)
    targets = [{"targets": [f"127.0.0.1:{port}" for port in stack.ports]}]
    (stack.folder / "targets.json").write_text(json.dumps(targets) + "\n")
    with open(stack.folder / "supervisord.out", "wb") as out:
        supervisord = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(ROOT / "supervisord.conf")],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    running = Running(stack, supervisord.pid)
    try:
        running.write()
        wait_until_ready(running, supervisord)
    except BaseException:
        running.stop()
        raise
    print(
        f"Lockstep is up at {stack.url}\n"
        f"processes: {', '.join(f'http://127.0.0.1:{port}' for port in stack.ports)}\n"
        f"logs and pids: {stack.run}"
    )


def wait_until_ready(running: Running, supervisord: "subprocess.Popen[bytes]") -> None:
    stack, end_s = running.stack, time.monotonic() + START_WITHIN_S
    waiting = {f"lockstep-{port}": f"127.0.0.1:{port}" for port in stack.ports} | {"nginx": stack.listen}
    is_starting = True
    while waiting or is_starting:
        if supervisord.poll() is not None:
            # What it says of itself comes first, its usage after it.
            said = (stack.folder / "supervisord.out").read_text().strip()
            raise Failure(
                f"supervisord does not start: {said.partition(chr(10))[0] or 'see supervisord.log'}"
            )
        with contextlib.suppress(OSError, http.client.HTTPException):
            infos = running.supervisor.getAllProcessInfo()
            # Not before it counts as started: roll and ctl find it as they expect it.
            is_starting = any(each["statename"] == "STARTING" for each in infos)
            for each in infos:
                if each["statename"] in ("BACKOFF", "FATAL", "EXITED"):
                    raise Failure(f"{each['name']} does not start: {last_words(stack.folder, each['name'])}")
        for name, address in list(waiting.items()):
            if why := not_ready(address, tls=name == "nginx" and bool(stack.certificate)):
                if time.monotonic() > end_s:
                    raise Failure(f"{name} is not ready within {START_WITHIN_S:g} s: {why}")
            else:
                del waiting[name]
        time.sleep(0.05)


def roll(running: Running) -> None:
    """Each process is ready, and is the new one, before the next one is touched."""
    # Before, so that what cannot be used costs nobody his process; and so that the WebSockets that nginx's
    # old workers carry are those which the roll sends away in any case.
    reload(running, only_if_it_differs=True)
    supervisor = running.supervisor
    for port in running.stack.ports:
        name = f"lockstep:lockstep-{port}"
        began_s = time.monotonic()
        before = supervisor.getProcessInfo(name)["pid"]
        with contextlib.suppress(Fault):  # it was not running: so much the sooner
            supervisor.stopProcess(name)
        if before and Path(f"/proc/{before}/cwd").exists():
            raise Failure(f"{name} (pid {before}) does not end: the others were left as they are")
        supervisor.startProcess(name, False)
        started_s = time.monotonic()
        while True:
            is_answering = not not_ready(f"127.0.0.1:{port}")
            # Asked after: what answered is this very process, since nobody else can have the port.
            info = supervisor.getProcessInfo(name)
            if info["statename"] == "RUNNING" and info["pid"] != before and is_answering:
                break
            has_ended = info["statename"] in ("BACKOFF", "FATAL", "EXITED")
            if has_ended or time.monotonic() - started_s > 2 * START_WITHIN_S:
                why = last_words(running.stack.folder, f"lockstep-{port}")
                raise Failure(f"the new {name} is not ready, the rest was left as it is: {why}")
            time.sleep(0.05)
        print(f"lockstep-{port}: {before} -> {info['pid']} in {time.monotonic() - began_s:.1f} s", flush=True)
        if port != running.stack.ports[-1]:
            time.sleep(SETTLE_S)


def reload(running: Running, only_if_it_differs: bool = False) -> None:
    differs = write_nginx_conf(running.stack, settings_of(running.environ))
    if differs or not only_if_it_differs:
        running.supervisor.signalProcess("nginx", "HUP")


Finding = tuple[bool, str]


def doctor(running: Running | None) -> None:
    """Look at what runs. Exits with 1 where anything is to be mended."""
    if running is None or not running.is_up():
        findings = [(False, "it is not up: make up starts it")]
    else:
        findings = [*look_at_processes(running), look_at_nginx(running), look_at_open_files(running)]
        findings += asyncio.run(examine(settings_of(running.environ)))
    for is_ok, text in findings:
        print(("ok    " if is_ok else "MEND  ") + text)
    if not all(is_ok for is_ok, _ in findings):
        sys.exit(1)


def look_at_processes(running: Running) -> Iterator[Finding]:
    for info in running.supervisor.getAllProcessInfo():
        name, state = info["name"], info["statename"]
        if name == "redis" and running.stack.redis_url:
            continue  # another one is used
        if state != "RUNNING":
            said = last_words(running.stack.folder, name)
            start = f".venv/bin/python deploy/stack.py ctl start {info['group']}:{name}"
            yield False, f"{name}: {state}: {said}; mend that, then {start}"
        elif info["group"] != "lockstep":
            yield True, f"{name}: {info['description']}"
        elif why := not_ready(f"127.0.0.1:{name.rpartition('-')[2]}"):
            log = running.stack.folder / f"{name}.log"
            yield False, f"{name}: {info['description']}, but not ready: {why}; see {log}"
        else:
            yield True, f"{name}: {info['description']}, ready"


def look_at_nginx(running: Running) -> Finding:
    stack = running.stack
    why = not_ready(stack.listen, tls=bool(stack.certificate))
    if why:
        return (
            False,
            f"through nginx: {stack.url}/ready does not answer 200: {why}; see {stack.run}/nginx.log",
        )
    return True, f"through nginx: {stack.url} answers"


def look_at_open_files(running: Running) -> Finding:
    fullest, used, allowed = 0.0, 0, 0
    for pid in running.pids():
        with contextlib.suppress(OSError):  # it has ended since
            limits = Path(f"/proc/{pid}/limits").read_text()
            soft = re.search(r"^Max open files +(\d+)", limits, re.MULTILINE)
            has = len(os.listdir(f"/proc/{pid}/fd"))
            if soft is not None and has / int(soft[1]) >= fullest:
                fullest, used, allowed = has / int(soft[1]), has, int(soft[1])
    text = f"open files: {used} of {allowed} in the process that has most"
    if fullest < FULL_AT:
        return True, text
    return False, f"{text}; make down up with more --connections, or more --processes"


def down(running: Running | None) -> None:
    if running is None:
        print("it is not up")
        return
    running.stop()
    print("Lockstep is down")


def ctl(running: Running, arguments: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "supervisor.supervisorctl",
        "-c",
        str(ROOT / "supervisord.conf"),
        *arguments,
    ]
    os.execve(sys.executable, command, running.stack.environment)


def arguments_of(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=("up", "roll", "reload", "doctor", "down", "ctl"))
    parser.add_argument(
        "--run", default=str(ROOT / "run"), help="folder for sockets, logs, pids and Redis's data"
    )
    # None: it was not given.
    parser.add_argument("--listen", help="where nginx listens (127.0.0.1:8080)")
    parser.add_argument("--processes", type=int, help="so many (4)")
    parser.add_argument("--base-port", type=int, help="the first process's port; one each (8001)")
    parser.add_argument("--connections", type=int, help="so many clients must fit (4000)")
    parser.add_argument("--certificate", help="PEM file: nginx then speaks TLS")
    parser.add_argument("--key", help="PEM file of its key")
    options, rest = parser.parse_known_args(args)
    if rest and options.command != "ctl":
        parser.error(f"unknown: {' '.join(rest)}")
    options.rest = rest
    told = as_told(options)
    found = LISTEN.fullmatch(told.listen)
    if not found or not 0 < int(found[2]) <= 65_535:
        parser.error(
            "--listen is ADDRESS:PORT, such as 127.0.0.1:8080, [::1]:8080, or *:8080 for all of IPv4"
        )
    if not 1 <= told.processes <= 64 or not 0 < told.base_port <= 65_535 - told.processes:
        parser.error("--processes is 1 to 64, and their ports end at 65535")
    if bool(told.certificate) != bool(told.key):
        parser.error("--certificate and --key go together")
    return options


def as_told(options: argparse.Namespace) -> Stack:
    given = {name: getattr(options, name) for name in DEFAULTS}
    told: dict[str, Any] = DEFAULTS | {name: value for name, value in given.items() if value is not None}
    for name in ("certificate", "key"):
        told[name] = told[name] and str(Path(told[name]).resolve())
    return Stack(run=str(Path(options.run).resolve()), **told)


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Nobody else starts, renews or stops the same stack at the same time."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise Failure(f"{run} cannot be used ({error.strerror}): choose another folder by --run") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another deploy/stack.py is at work in {run}: wait for it") from None
        yield


def main() -> None:
    options = arguments_of(sys.argv[1:])
    run = Path(options.run).resolve()
    try:
        if options.command == "ctl":
            running = Running.read(run)
            if running is None or not running.is_up():
                raise Failure("it is not up: make up starts it")
            ctl(running, options.rest)
        with alone(run):
            if options.command == "up":
                up(options)
                return
            running = Running.read(run)
            if options.command == "doctor":
                doctor(running)
                return
            if options.command == "down":
                down(running)
                return
            if running is None or not running.is_up():
                raise Failure("it is not up: make up starts it")
            tell_ignored(running, options)
            (roll if options.command == "roll" else reload)(running)
    except Failure as failure:
        sys.exit(f"stack: {failure}")
    except Fault as fault:
        sys.exit(f"stack: supervisord: {fault.faultString}")
    except KeyboardInterrupt:
        sys.exit("stack: interrupted")


if __name__ == "__main__":
    main()
