#!/usr/bin/env python3
"""Lockstep on one machine: Redis, several processes and nginx under supervisord, all in one folder.

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
import contextlib
import fcntl
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn
from xmlrpc.client import Fault

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # as `python -m deploy.stack` has it; it is deploy/ for `python deploy/stack.py`

try:
    from deploy.checks import check, ignored
    from deploy.cluster import BUS_OFFSET, NODES, join_cluster, write_cluster_conf
    from deploy.config import Failure, Stack, redis_url_of, settings_of
    from deploy.doctor import findings_of
    from deploy.nginx import write_nginx_conf
    from deploy.running import (
        OF_ANOTHER_VERSION,
        RunningStack,
        last_log_line,
        supervisor_command,
        supervisor_environ,
        why_not_ready,
    )
except ModuleNotFoundError as missing:
    sys.exit(f"stack: {missing.name} is missing: make up, or .venv/bin/python {' '.join(sys.argv)}")

START_TIMEOUT_S = 30.0
# Clients whose process was restarted are back by then, and the next process may go.
ROLL_PAUSE_S = 1.0
# supervisord's words for a process that has ended by itself.
ENDED = ("BACKOFF", "FATAL", "EXITED")
LISTEN = re.compile(r"(\[[^\s\[\]]+\]|[^\s:\[\]]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Arguments:
    command: str
    stack: Stack
    # The names of the options that were given; the others have their defaults.
    given: frozenset[str]
    # What follows `ctl`, for supervisorctl.
    rest: list[str]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"stack: {message}; --help says what there is\n")


def read_arguments(args: list[str]) -> Arguments:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("command", choices=("up", "roll", "reload", "doctor", "down", "ctl"))
    parser.add_argument(
        "--run", default=str(ROOT / "run"), help="folder for sockets, logs, pids and Redis's data"
    )
    parser.add_argument("--listen", help="where nginx listens (127.0.0.1:8080)")
    parser.add_argument("--processes", type=int, help="so many (4)")
    parser.add_argument(
        "--metrics-port", type=int, help="port of loopback for Prometheus: each process's /metrics (8001)"
    )
    parser.add_argument(
        "--hash-by-session",
        choices=("yes", "no"),
        help="yes: clients of one session are with one process (no)",
    )
    parser.add_argument("--connections", type=int, help="so many clients must fit (4000)")
    parser.add_argument("--certificate", help="PEM file: nginx then speaks TLS")
    parser.add_argument("--key", help="PEM file of its key")
    parser.add_argument(
        "--cluster", action="store_true", help="a Redis Cluster of six nodes in place of one Redis"
    )
    parser.add_argument("--cluster-port", type=int, help="the first node's port; one each (7001)")
    options, rest = parser.parse_known_args(args)
    if rest and options.command != "ctl":
        parser.error(f"unknown: {' '.join(rest)}")
    given = vars(options).copy()
    command = given.pop("command")
    for name in {"run", "certificate", "key"} & given.keys():
        given[name] = given[name] and str(Path(given[name]).resolve())
    if "hash_by_session" in given:
        given["hash_by_session"] = given["hash_by_session"] == "yes"
    stack = Stack(**given)
    listen = LISTEN.fullmatch(stack.listen)
    if not listen or not 0 < int(listen[2]) <= 65_535:
        parser.error(
            "--listen is ADDRESS:PORT, such as 127.0.0.1:8080, [::1]:8080, or *:8080 for all of IPv4"
        )
    if not 1 <= stack.processes <= 64:
        parser.error("--processes is 1 to 64")
    if not 0 < stack.metrics_port <= 65_535 or stack.metrics_port == int(listen[2]):
        parser.error("--metrics-port is a port, and another one than that of --listen")
    if not 0 < stack.cluster_port <= 65_535 - NODES - BUS_OFFSET:
        parser.error(f"--cluster-port is a port to {65_535 - NODES - BUS_OFFSET}: others are 10,000 above")
    if bool(stack.certificate) != bool(stack.key):
        parser.error("--certificate and --key go together")
    return Arguments(command, stack, frozenset(given) - {"run"}, rest)


# --- the commands --------------------------------------------------------------------------------


def up(asked: Arguments, running: RunningStack | None) -> None:
    if running is not None and running.is_up():
        print(f"already up: {running.stack.url} (make roll renews it, make down ends it)")
        print_ignored(asked, running)
        return
    if running is not None and (pids := running.pids()):
        raise Failure(f"processes {pids} of an earlier start still run: make down ends them")
    settings = settings_of(os.environ)
    stack = replace(asked.stack, redis_url=redis_url_of(settings), drain_s=settings.drain_s)
    environ = supervisor_environ(stack)
    check(stack, settings)
    if stack.cluster:
        write_cluster_conf(stack)
    else:
        (stack.folder / "redis").mkdir(exist_ok=True)
    (stack.folder / "nginx-temp").mkdir(exist_ok=True)
    write_nginx_conf(stack, settings)
    targets = [
        {
            "targets": [f"127.0.0.1:{stack.metrics_port}"],
            "labels": {"__metrics_path__": f"/{name}/metrics", "instance": name},
        }
        for name in stack.names
    ]
    (stack.folder / "targets.json").write_text(json.dumps(targets) + "\n")
    running, supervisord = RunningStack.start(stack, environ)
    try:
        running.write()
        if stack.cluster:
            join_cluster(stack, lambda: is_starting(running, supervisord))
        wait_until_ready(running, supervisord)
    except BaseException:
        running.stop()
        raise
    print(
        f"Lockstep is up at {stack.url}\n"
        f"processes: {', '.join(str(stack.socket_of(name)) for name in stack.names)}\n"
        f"logs and pids: {stack.run}"
    )


def is_starting(running: RunningStack, supervisord: "subprocess.Popen[bytes]") -> bool:
    """Does supervisord still start something? Raises Failure where what it started has ended."""
    folder = running.stack.folder
    if supervisord.poll() is not None:
        # Its complaint comes first, then its usage.
        output = (folder / "supervisord.out").read_text().strip()
        raise Failure(f"supervisord does not start: {output.partition(chr(10))[0] or 'see supervisord.log'}")
    try:
        infos = running.supervisor.getAllProcessInfo()
    except (OSError, http.client.HTTPException):
        return True
    for each in infos:
        if each["statename"] in ENDED:
            raise Failure(f"{each['name']} does not start: {last_log_line(folder, each['name'])}")
    return any(each["statename"] == "STARTING" for each in infos)


def wait_until_ready(running: RunningStack, supervisord: "subprocess.Popen[bytes]") -> None:
    stack, end_s = running.stack, time.monotonic() + START_TIMEOUT_S
    waiting = [*stack.names, "nginx"]
    # Wait until supervisord calls each of them running, which roll and ctl rely on.
    while is_starting(running, supervisord) or waiting:
        for name in tuple(waiting):
            if why := why_not_ready(stack, name):
                if time.monotonic() > end_s:
                    raise Failure(f"{name} is not ready within {START_TIMEOUT_S:g} s: {why}")
            else:
                waiting.remove(name)
        time.sleep(0.05)


def roll(running: RunningStack) -> None:
    """Restart each process, and wait until the new one is ready before the next is touched."""
    # nginx comes first: settings that cannot be used then cost no process, and the WebSockets that its old
    # workers carry are those that the roll closes anyway.
    reload(running, only_if_it_differs=True)
    supervisor = running.supervisor
    for process in running.stack.names:
        name = f"lockstep:{process}"
        began_s = time.monotonic()
        before = supervisor.getProcessInfo(name)["pid"]
        with contextlib.suppress(Fault):  # it was not running
            supervisor.stopProcess(name)
        if before and Path(f"/proc/{before}/cwd").exists():
            raise Failure(f"{name} (pid {before}) does not end: the others were left as they are")
        supervisor.startProcess(name, False)
        started_s = time.monotonic()
        while True:
            is_answering = not why_not_ready(running.stack, process)
            # Asked after the answer, which then came from this very process: no other can have its socket.
            info = supervisor.getProcessInfo(name)
            if info["statename"] == "RUNNING" and info["pid"] != before and is_answering:
                break
            has_ended = info["statename"] in ENDED
            if has_ended or time.monotonic() - started_s > 2 * START_TIMEOUT_S:
                why = last_log_line(running.stack.folder, process)
                raise Failure(f"the new {name} is not ready, the rest was left as it is: {why}")
            time.sleep(0.05)
        print(f"{process}: {before} -> {info['pid']} in {time.monotonic() - began_s:.1f} s", flush=True)
        if process != running.stack.names[-1]:
            time.sleep(ROLL_PAUSE_S)


def reload(running: RunningStack, only_if_it_differs: bool = False) -> None:
    differs = write_nginx_conf(running.stack, settings_of(running.environ))
    if differs or not only_if_it_differs:
        running.supervisor.signalProcess("nginx", "HUP")


def doctor(running: RunningStack | None) -> None:
    findings = findings_of(running)
    for is_ok, text in findings:
        print(("ok    " if is_ok else "MEND  ") + text)
    if not all(is_ok for is_ok, _ in findings):
        sys.exit(1)


def down(running: RunningStack | None) -> None:
    if running is None:
        print("it is not up")
        return
    running.stop()
    print("Lockstep is down")


def ctl(running: RunningStack, arguments: list[str]) -> None:
    """Become supervisorctl."""
    os.execve(
        sys.executable, supervisor_command("supervisorctl", *arguments), supervisor_environ(running.stack)
    )


def print_ignored(asked: Arguments, running: RunningStack) -> None:
    if found := list(ignored(running, asked.stack, asked.given, os.environ)):
        print(f"ignored, since it runs already: {', '.join(found)}; make down up takes them", flush=True)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Only one command at a time starts, renews or stops the stack of a folder."""
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


def perform(asked: Arguments) -> None:
    # supervisorctl may stay for long (`ctl tail -f`), and locks nobody out.
    with contextlib.nullcontext() if asked.command == "ctl" else locked(asked.stack.folder):
        running = RunningStack.read(asked.stack.folder)
        if asked.command == "doctor":
            doctor(running)
        elif asked.command == "down":
            down(running)
        elif running is not None and running.is_of_another_version and asked.command != "ctl":
            raise Failure(OF_ANOTHER_VERSION)
        elif asked.command == "up":
            up(asked, running)
        elif running is None or not running.is_up():
            raise Failure("it is not up: make up starts it")
        elif asked.command == "ctl":
            ctl(running, asked.rest)
        else:
            print_ignored(asked, running)
            (roll if asked.command == "roll" else reload)(running)


def main() -> None:
    try:
        perform(read_arguments(sys.argv[1:]))
    except Failure as failure:
        sys.exit(f"stack: {failure}")
    except Fault as fault:
        sys.exit(f"stack: supervisord: {fault.faultString}")
    except KeyboardInterrupt:
        sys.exit("stack: interrupted")


if __name__ == "__main__":
    main()
