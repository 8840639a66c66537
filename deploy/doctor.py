"""What the doctor finds in a stack that runs: each finding is ok, or says what to do."""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from broker import examine
from deploy.config import Stack, settings_of
from deploy.running import OF_ANOTHER_VERSION, RunningStack, last_log_line, why_not_ready

# The doctor complains when a process has opened this part of the files that it may open.
FULL_SHARE = 0.9

Finding = tuple[bool, str]


def findings_of(running: RunningStack | None) -> list[Finding]:
    if running is None or not running.is_up():
        return [(False, "it is not up: make up starts it")]
    if running.is_of_another_version:
        return [(False, OF_ANOTHER_VERSION)]
    findings = [*look_at_processes(running), look_at_nginx(running), look_at_open_files(running)]
    return findings + asyncio.run(examine(settings_of(running.environ)))


def unused_groups(stack: Stack) -> set[str]:
    """What supervisord.conf has, and this stack does not start."""
    if stack.redis_url:
        return {"redis", "cluster"}
    return {"redis" if stack.cluster else "cluster"}


def look_at_processes(running: RunningStack) -> Iterator[Finding]:
    unused = unused_groups(running.stack)
    for info in running.supervisor.getAllProcessInfo():
        name, state = info["name"], info["statename"]
        if info["group"] in unused:
            continue  # the processes use another Redis
        if state != "RUNNING":
            said = last_log_line(running.stack.folder, name)
            start = f".venv/bin/python deploy/stack.py ctl start {info['group']}:{name}"
            yield False, f"{name}: {state}: {said}; mend that, then {start}"
        elif info["group"] != "lockstep":
            yield True, f"{name}: {info['description']}"
        elif why := why_not_ready(running.stack, name):
            log = running.stack.folder / f"{name}.log"
            yield False, f"{name}: {info['description']}, but not ready: {why}; see {log}"
        else:
            yield True, f"{name}: {info['description']}, ready"


def look_at_nginx(running: RunningStack) -> Finding:
    stack = running.stack
    why = why_not_ready(stack, "nginx")
    if not why:
        return True, f"through nginx: {stack.url} answers"
    return False, f"through nginx: {stack.url}/ready does not answer 200: {why}; see {stack.run}/nginx.log"


def look_at_open_files(running: RunningStack) -> Finding:
    fullest, used, allowed = 0.0, 0, 0
    for pid in running.pids():
        with contextlib.suppress(OSError):  # it has ended since
            limits = Path(f"/proc/{pid}/limits").read_text()
            soft = re.search(r"^Max open files +(\d+)", limits, re.MULTILINE)
            has = len(os.listdir(f"/proc/{pid}/fd"))
            if soft is not None and has / int(soft[1]) >= fullest:
                fullest, used, allowed = has / int(soft[1]), has, int(soft[1])
    text = f"open files: {used} of {allowed} in the process that has most"
    if fullest < FULL_SHARE:
        return True, text
    return False, f"{text}; make down up with more --connections, or more --processes"
