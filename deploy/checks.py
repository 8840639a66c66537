"""What `up` checks before it starts anything, and what a later command names that does not count."""

import os
import resource
import socket
from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_address

from deploy.cluster import BUS_OFFSET, ports_of
from deploy.config import Failure, Stack, redis_url_of
from deploy.running import RunningStack
from lockstep.config import Settings, masked

# Less than a path may have: supervisord makes its own under a longer name first.
MAX_SOCKET_PATH_BYTES = 100


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check(stack: Stack, settings: Settings) -> None:
    """Raises Failure where the stack could not start, or would be open to everybody."""
    # The processes cannot know who reaches them through nginx.
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
    if len(os.fsencode(stack.folder / "supervisor.sock")) > MAX_SOCKET_PATH_BYTES:
        raise Failure(f"--run={stack.run} is too long for the sockets in it: choose a shorter path")
    if stack.cluster and stack.redis_url:
        raise Failure(
            f"--cluster starts a Redis Cluster, and {masked('broker', stack.redis_url)} is named: "
            "give one of both"
        )
    check_port("127.0.0.1", stack.metrics_port, "--metrics-port")
    for port in ports_of(stack):
        check_port("127.0.0.1", port, "--cluster-port")
        check_port("127.0.0.1", port + BUS_OFFSET, "--cluster-port")
    host, _, listen_port = stack.listen.rpartition(":")
    # `*` is nginx's word for all addresses; a socket does not know it.
    check_port("0.0.0.0" if host == "*" else host.strip("[]"), int(listen_port), "--listen")


def check_port(host: str, port: int, option: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Failure(
                f"port {port} cannot be had ({error.strerror}): end what uses it, or choose by {option}"
            ) from None


def ignored(
    running: RunningStack, asked: Stack, given: Collection[str], environ: Mapping[str, str]
) -> Iterator[str]:
    """Each given option of `asked`, and each setting, that differs from what the stack was started with."""
    for name in vars(asked):
        has, wanted = getattr(running.stack, name), getattr(asked, name)
        if name in given and wanted != has:
            yield f"--{name.replace('_', '-')}={shown(wanted)} (it runs with {shown(has) or 'none'})"
    started_with = running.environ
    if not running.stack.redis_url:
        started_with.pop("LOCKSTEP_BROKER", None)  # the stack set it, to its own Redis
    for name, value in sorted(environ.items()):
        if name.startswith("LOCKSTEP_") and started_with.get(name) != value:
            key = name.removeprefix("LOCKSTEP_").lower()
            has = f"{masked(key, started_with[name])!r}" if name in started_with else "none"
            yield f"{name}={masked(key, value)} (it runs with {has})"
    yield from ignored_of_file(running)


def shown(value: object) -> str:
    """An option's value, as it is given."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def ignored_of_file(running: RunningStack) -> Iterator[str]:
    """What the file of LOCKSTEP_CONFIG says differently since `up`, and a roll does not take."""
    path, stack = running.environ.get("LOCKSTEP_CONFIG"), running.stack
    if path is None:
        return
    try:
        settings = running.settings
    except Failure:
        return  # a roll says so itself, and nothing else needs the file
    if redis_url_of(settings) != stack.redis_url:
        has = masked("broker", stack.redis_url) or "its own Redis"
        yield f"broker={masked('broker', settings.broker)} in {path} (it runs with {has})"
    if settings.drain_s != stack.drain_s:
        yield f"drain_s={settings.drain_s:g} in {path} (it runs with {stack.drain_s:g})"
