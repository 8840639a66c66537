"""The Redis Cluster of a stack: three masters and three replicas on loopback."""

import os
import secrets
import subprocess
import time
from collections.abc import Callable

from deploy.config import Failure, Stack, find_program

NODES = 6
REPLICAS = 1
# The ports by which the nodes speak to each other are Redis's own choice.
BUS_OFFSET = 10_000
START_TIMEOUT_S = 30.0
CLI_TIMEOUT_S = 30.0
# The settings that docs/operations.md asks of a Redis Cluster; supervisord.conf gives each node its port.
CONF = """# deploy/stack.py writes this file.
bind 127.0.0.1
requirepass {password}
masterauth {password}
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout 5000
cluster-require-full-coverage no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
client-output-buffer-limit pubsub 64mb 16mb 30
"""


def ports_of(stack: Stack) -> list[int]:
    return [stack.cluster_port + n for n in range(NODES)] if stack.cluster else []


def url_of(stack: Stack) -> str:
    nodes = ",".join(f"127.0.0.1:{port}" for port in ports_of(stack))
    return f"redis+cluster://:{_password(stack)}@{nodes}"


def write_cluster_conf(stack: Stack) -> None:
    """What the nodes start with; on loopback every user of the machine can reach them, so with a password."""
    path = stack.folder / "cluster.conf"
    path.touch(mode=0o600)
    path.write_text(CONF.format(password=_password(stack)))
    for port in ports_of(stack):
        (stack.folder / f"redis-{port}").mkdir(exist_ok=True)


def _password(stack: Stack) -> str:
    """Made once: the nodes of an earlier start have it, too."""
    path = stack.folder / "cluster.password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(24))
    return path.read_text()


def join_cluster(stack: Stack, look: Callable[[], object]) -> None:
    """Make the nodes one cluster, unless they are; returns when all slots are served, and replicas in step.

    `look` raises Failure where a node has ended. Raises Failure.
    """
    ports, end_s = ports_of(stack), time.monotonic() + START_TIMEOUT_S
    waiting = list(ports)
    while waiting:
        waiting = [port for port in waiting if "PONG" not in _ask(stack, port, "ping")]
        _wait(end_s, look, f"the Redis at port {waiting[0]} does not answer" if waiting else "")
    # What was one before is so again by itself: each node keeps in its folder what it knows of the others.
    if "cluster_known_nodes:1\n" in _ask(stack, ports[0], "cluster", "info"):
        nodes = [f"127.0.0.1:{port}" for port in ports]
        options = ("--cluster-replicas", str(REPLICAS), "--cluster-yes")
        said = _ask(stack, ports[0], "--cluster", "create", *nodes, *options)
        if "[OK] All 16384 slots covered" not in said:
            why = next((line for line in said.splitlines() if "ERR" in line), "see run/redis-*.log")
            raise Failure(f"the Redis Cluster cannot be made: {why}")
    while not (all(_is_whole(stack, port) for port in ports) and _replicas_in_step(stack, ports)):
        _wait(end_s, look, "the Redis Cluster is not whole; deploy/stack.py doctor says more")


def _is_whole(stack: Stack, port: int) -> bool:
    said = _ask(stack, port, "cluster", "info")
    return "cluster_state:ok" in said and f"cluster_known_nodes:{NODES}" in said


def _replicas_in_step(stack: Stack, ports: list[int]) -> bool:
    """By what the masters say, each of its own."""
    count = sum(_ask(stack, port, "info", "replication").count("state=online") for port in ports)
    return count == NODES - NODES // (REPLICAS + 1)


def _wait(end_s: float, look: Callable[[], object], complaint: str) -> None:
    look()
    if complaint and time.monotonic() > end_s:
        raise Failure(complaint)
    time.sleep(0.05)


def _ask(stack: Stack, port: int, *words: str) -> str:
    """What redis-cli is told, or tells."""
    command = [find_program("redis-cli"), "-p", str(port), *words]
    environ = os.environ | {"REDISCLI_AUTH": _password(stack)}  # by the command line everybody could read it
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CLI_TIMEOUT_S, env=environ, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout + done.stderr
