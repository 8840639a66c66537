"""What stands between clients and processes: python -m bench.nginx

nginx as `make up` configures it, at the core of the load. First one session with many clients, at one process
that nginx asks by TCP, as it did before, or at its Unix socket: the process's CPU time for a message is what
differs. Then sessions of two at one process and at several, which subscribe to their own sessions only: where
chance spreads the clients, and with `--hash-by-session=yes`, where nginx keeps those of a session together.
"""

import argparse
import functools
import http.client
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from bench import contest, contestants, machine
from bench.contest import Table, median, number, paired_text, spread
from bench.contestants import Contestant, Load, Servers, lockstep, notes, per_cpu_s, started
from deploy.config import Stack, find_program
from deploy.nginx import nginx_conf
from deploy.running import UnixConnection
from lockstep.config import Settings

TITLE = "Behind nginx"
ROUNDS = 5
DIRECT, BY_TCP, BY_UNIX = "no nginx", "nginx, TCP", "nginx, Unix sockets"
START_TIMEOUT_S = 20.0
# Of sessions of two: each process has as much to do as one that is alone.
IN_FLIGHT_EACH = 64


def behind_nginx(
    contestant: Contestant,
    processes: int,
    redis: machine.Redis,
    stack: ExitStack,
    *,
    clients: int,
    is_by_tcp: bool = False,
    hash_by_session: bool = False,
) -> Servers:
    """Lockstep's processes, each at a Unix socket, and the port of an nginx in front of them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-bench-")))
    deployed = Stack(
        str(folder),
        f"127.0.0.1:{machine.free_port()}",
        processes=processes,
        metrics_port=machine.free_port(),
        connections=clients,
        hash_by_session=hash_by_session,
    )
    conf = nginx_conf(deployed, Settings())
    if is_by_tcp:
        servers = started(contestant, processes, redis, stack)
        for name, port in zip(deployed.names, servers.ports, strict=True):
            conf = conf.replace(f'"unix:{deployed.socket_of(name)}"', f"127.0.0.1:{port}")
        pids = servers.pids
    else:
        pids = [at_socket(contestant, deployed.socket_of(name), redis, stack) for name in deployed.names]
    (folder / "nginx-temp").mkdir()
    (folder / "nginx.conf").write_text(conf)
    command = [find_program("nginx"), "-p", str(folder), "-c", "nginx.conf", "-e", "nginx-error.log"]
    nginx = stack.enter_context(machine.Process(command, machine.LOAD_CORE))
    port = int(deployed.listen.rpartition(":")[2])
    nginx.wait_for_port(port)
    contestants.wait_until_ready(f"{deployed.url}/ready")
    return Servers([port], pids, tuple(machine.children(nginx.pid)))


def at_socket(contestant: Contestant, path: Path, redis: machine.Redis, stack: ExitStack) -> int:
    """The pid of a process that is ready there."""
    command = [
        f"--unix-socket={path}" if str(each).startswith("--port=") else each
        for each in contestant.command(0, redis)
    ]
    server = stack.enter_context(machine.Process(command, cwd=contestant.cwd, env=contestant.env))
    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        connection = UnixConnection(path)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return server.pid
        connection.close()
        if time.monotonic() > end_s:
            raise RuntimeError(f"no process is ready at {path}: {server.log()}")
        time.sleep(0.02)


def server_us(load: Load) -> float:
    """CPU time of the processes per message."""
    return 1e6 / load.per_cpu_s


def upstreams(options: argparse.Namespace) -> list[Table]:
    clients, server = options.clients, lockstep(options.checkout)
    behind = functools.partial(behind_nginx, clients=clients)
    ways = {DIRECT: started, BY_TCP: functools.partial(behind, is_by_tcp=True), BY_UNIX: behind}
    tables = []
    for in_flight in options.in_flight:
        turns: dict[str, Callable[[], Load]] = {
            name: contestants.measure(
                server,
                f"--in-flight={in_flight}",
                clients=clients,
                seconds=options.seconds,
                warm_up=options.warm_up,
                start=start,
            )
            for name, start in ways.items()
        }
        what = f"{clients:,} clients, {in_flight} in flight"
        outcomes = contest.interleaved(turns, options, f"{TITLE}, {what}")
        rows = [
            [
                name,
                f"{median(map(server_us, loads)):.2f}",
                spread([*map(server_us, loads)]),
                paired_text(outcomes, name, BY_TCP, server_us),
                f"{median(each.front_us for each in loads):.2f}" if name != DIRECT else "-",
                *(
                    f"{median(values):.2f}"
                    for values in zip(*((e.p50_ms, e.p99_ms) for e in loads), strict=True)
                ),
            ]
            for name, loads in outcomes.items()
        ]
        columns = ["way", "server's CPU us per message", "rounds", "to TCP", "nginx's", "p50 ms", "p99 ms"]
        ratios = contest.ratios(
            f"{what}, behind nginx, CPU us per message (less is better)",
            outcomes,
            BY_UNIX,
            [BY_TCP],
            server_us,
            lambda us: f"{us:.2f} us",
        )
        text = "One process, one session, messages of 1 KB."
        tables.append(Table(f"{TITLE}: {what}", columns, rows, text, notes(outcomes), ratios=ratios))
    return tables


def processes(options: argparse.Namespace) -> Table:
    server = lockstep(options.checkout, "--routing=targeted")
    one = "1 process"
    ways: dict[str, tuple[int, bool]] = {one: (1, False)}
    for count in options.processes:
        ways[f"{count} processes, anywhere"] = count, False
        ways[f"{count} processes, --hash-by-session=yes"] = count, True
    turns: dict[str, Callable[[], Load]] = {
        name: contestants.measure(
            server,
            f"--in-flight={IN_FLIGHT_EACH * count}",
            clients=options.small_clients,
            rooms=options.small_clients // 2,
            processes=count,
            seconds=options.seconds,
            warm_up=options.warm_up,
            start=functools.partial(behind_nginx, clients=options.small_clients, hash_by_session=is_hashed),
        )
        for name, (count, is_hashed) in ways.items()
    }
    outcomes = contest.interleaved(turns, options, f"{TITLE}, processes")
    rows = [
        [
            name,
            number(median(map(per_cpu_s, loads))),
            spread([*map(per_cpu_s, loads)]),
            paired_text(outcomes, name, one, per_cpu_s),
            f"{median(each.front_us for each in loads):.2f}",
        ]
        for name, loads in outcomes.items()
    ]
    columns = ["processes", "messages per CPU-s", "rounds", "to 1 process", "nginx's CPU us per message"]
    ratios = [
        each
        for name in outcomes
        if name != one
        for each in contest.ratios(
            f"{name}, behind nginx, messages per CPU-s", outcomes, name, [one], per_cpu_s
        )
    ]
    text = (
        f"{options.small_clients:,} clients, two in each session, `--routing=targeted`, "
        f"{IN_FLIGHT_EACH} messages in flight for each process. They share a core; CPU time is that of all."
    )
    return Table(f"{TITLE}: sessions of two", columns, rows, text, notes(outcomes), ratios=ratios)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=1000, help="of the one session")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--small-clients", type=int, default=5000, help="in sessions of two")
    parser.add_argument("--processes", type=int, nargs="+", default=[4])


def run(options: argparse.Namespace) -> list[Table]:
    return [*upstreams(options), processes(options)]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
