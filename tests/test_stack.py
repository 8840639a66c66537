"""What `make up` starts, with the real nginx, supervisord and Redis: what is renewed or dies fails nobody."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4
from xmlrpc.client import ServerProxy

import pytest
import redis
import ujson
from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

from deploy.checks import check
from deploy.config import Failure
from deploy.config import Stack as StackOptions
from deploy.running import RunningStack
from deploy.stack import read_arguments
from lockstep.config import Settings
from tests.support.event_source import EventSource, ReturningStream, StreamView, stream_url
from tests.support.load import chess, data, eventually, rest
from tests.support.processes import Answer, parse_answer, request, wait_until
from tests.support.redis_server import RedisServer
from tests.support.stack import Stack, cluster_ports, free_ports, loaded
from tests.support.ws_client import WsClient

# On this machine, but not the address from which nginx asks.
BALANCER = "127.0.0.7"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


def owned(stack: Stack) -> list[int]:
    """All processes of the session that `up` began, by the system's account."""
    session = json.loads((stack.run / "stack.json").read_text())["session"]
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(stat.parent.name))
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("run"))
    started = stack.up()
    assert started.returncode == 0, started.stderr
    yield stack
    assert stack.command("down").returncode == 0


# --- up and down ---------------------------------------------------------------------------------


def test_up_starts_everything_and_down_leaves_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    started = stack.up()
    try:
        assert started.returncode == 0, started.stderr
        assert stack.url in started.stdout
        assert set(stack.pids()) == {"nginx", "redis", *stack.names}
        ours = owned(stack)
        assert set(stack.pids().values()) < set(ours)
        again = stack.up()
        assert (again.returncode, again.stdout.split(":")[0]) == (0, "already up")
        assert sorted(owned(stack)) == sorted(ours)
    finally:
        stopped = stack.command("down")
    assert stopped.returncode == 0, stopped.stderr
    assert not [pid for pid in ours if is_alive(pid)]
    assert stack.command("down").returncode == 0
    # What Redis kept is there again.
    assert list((tmp_path / "redis").rglob("*.aof*"))


@pytest.mark.long
async def test_a_cluster_is_started_kept_and_ended_with_the_rest(tmp_path: Path) -> None:
    first = cluster_ports()
    stack = Stack(tmp_path, "--cluster", f"--cluster-port={first}")
    started = stack.up()
    try:
        assert started.returncode == 0, started.stderr
        nodes = {f"redis-{port}" for port in range(first, first + 6)}
        assert set(stack.pids()) == {"nginx", *nodes, *stack.names}
        examined = stack.command("doctor")
        assert examined.returncode == 0, examined.stdout
        assert "slots: 3 masters have all 16,384" in examined.stdout
        # Nobody without the password gets in, and it stands in no command line.
        password = (tmp_path / "cluster.password").read_text()
        assert not [pid for pid in owned(stack) if password.encode() in command_line(pid)]
        with pytest.raises(redis.AuthenticationError), redis.Redis(port=first) as client:
            client.ping()
        session = data(await rest(f"{stack.url}/v1/sessions", chess()))
        async with loaded(stack, clients=20, workers=4) as load:
            rolled = await stack.roll()
            assert rolled.returncode == 0, rolled.stderr
            assert set(load.statuses) == {200}
    finally:
        stopped = stack.command("down")
    assert stopped.returncode == 0, stopped.stderr
    # What the nodes kept is there again, and they are one cluster again.
    assert stack.up().returncode == 0
    try:
        path = f"{stack.url}/v1/sessions/{session['session_id']}"
        assert data(await rest(path, method="GET")) == session
    finally:
        stack.command("down")


def test_a_cluster_beside_another_redis_is_refused(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "--cluster")
    line = refused(stack, env={"LOCKSTEP_BROKER": "redis://:hush@127.0.0.1:1"})
    assert "--cluster starts a Redis Cluster, and redis://***@127.0.0.1:1 is named" in line


def test_a_port_of_the_cluster_that_is_in_use_is_named(tmp_path: Path) -> None:
    first = cluster_ports()
    stack = Stack(tmp_path, "--cluster", f"--cluster-port={first}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 10_005))
        line = refused(stack)
    assert f"port {first + 10_005} cannot be had" in line
    assert "--cluster-port" in line


@pytest.mark.long
def test_down_ends_what_a_killed_supervisord_left(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    assert stack.up().returncode == 0
    ours = owned(stack)
    supervisord = json.loads((tmp_path / "stack.json").read_text())["session"]
    os.kill(supervisord, signal.SIGKILL)
    wait_until(lambda: not is_alive(supervisord), what="the end of supervisord")
    refused = stack.up()
    assert refused.returncode != 0
    assert "make down ends them" in refused.stderr
    assert stack.command("down").returncode == 0
    assert not [pid for pid in ours if is_alive(pid)]


@pytest.mark.long
async def test_nginx_speaks_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    openssl = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    made = await asyncio.create_subprocess_exec(*openssl, *files, stderr=subprocess.DEVNULL)
    assert await made.wait() == 0
    stack = Stack(tmp_path / "run", f"--certificate={certificate}", f"--key={key}")
    started = await asyncio.to_thread(stack.up)
    try:
        assert started.returncode == 0, started.stderr
        assert f"https://{stack.listen}" in started.stdout
        context = ssl.create_default_context(cafile=certificate)
        session_id = chess()["session_id"]
        async with await WsClient.connect(
            f"wss://{stack.listen}/ws?sessionId={session_id}", tls=context
        ) as client:
            assert (await client.recv())["type"] == "CONNECTED"
    finally:
        await asyncio.to_thread(stack.command, "down")


def refused(stack: Stack, **how: Any) -> str:
    """The one line with which it does not start; nothing is left half started."""
    began = stack.up(**how)
    assert began.returncode != 0
    assert not (stack.run / "stack.json").exists()
    for port in (stack.metrics_port, int(stack.listen.rpartition(":")[2])):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not list(stack.run.glob("*.sock"))
    lines = began.stderr.strip().splitlines()
    assert len(lines) == 1, began.stderr
    return lines[0]


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stack.metrics_port))
        line = refused(stack)
    assert f"port {stack.metrics_port} cannot be had" in line
    assert "--metrics-port" in line


def test_a_port_of_all_addresses_is_looked_at_and_no_name() -> None:
    base = free_ports(2)
    asked = StackOptions("run", f"*:{base + 1}", processes=1, metrics_port=base, connections=100)
    settings = Settings(insecure=True)
    check(asked, settings)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 1))
        with pytest.raises(Failure, match=f"port {base + 1} cannot be had .Address already in use"):
            check(asked, settings)


@pytest.mark.parametrize(
    "listen", [":8080", "8080", "127.0.0.1", "::1:8080", "127.0.0.1:0", "127.0.0.1:65536"]
)
def test_where_to_listen_is_a_host_and_a_port(tmp_path: Path, listen: str) -> None:
    began = Stack(tmp_path / "run").command("up", f"--listen={listen}")
    assert (began.returncode, (tmp_path / "run").exists()) == (2, False)
    assert "--listen is ADDRESS:PORT" in began.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--processes=0", "--processes is 1 to 64"),
        ("--processes=some", "argument --processes: invalid int value: 'some'"),
        ("--hash-by-session=maybe", "argument --hash-by-session: invalid choice: 'maybe'"),
        ("--process=2", "unknown: --process=2"),
        ("--certificate=cert.pem", "--certificate and --key go together"),
    ],
)
def test_an_option_that_cannot_be_used_ends_it_with_one_line(
    capfd: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(["up", option])
    (line,) = capfd.readouterr().err.splitlines()
    assert (ended.value.code, line.startswith(f"stack: {said}")) == (2, True), line


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "redis-server is missing: install it" in refused(Stack(tmp_path), env={"PATH": str(tmp_path)})


def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert "LOCKSTEP_ROUTING: 'nonsense'" in refused(Stack(tmp_path), env={"LOCKSTEP_ROUTING": "nonsense"})


def test_an_nginx_configuration_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.pem"
    assert str(nowhere) in refused(Stack(tmp_path / "run", f"--certificate={nowhere}", f"--key={nowhere}"))


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "*"])
def test_without_keys_nobody_else_is_let_in_through_nginx_by_mistake(tmp_path: Path, host: str) -> None:
    stack = Stack(tmp_path, f"--listen={host}:{free_ports(1)}")
    line = refused(stack)
    assert f"--listen={host}:" in line
    assert "LOCKSTEP_JWT_SECRET_FILE" in line
    assert "LOCKSTEP_INSECURE=yes" in line
    # With keys, or said so, it is what comes next that is missing.
    for name, value in (("JWT_SECRET_FILE", "secret"), ("INSECURE", "yes")):
        line = refused(stack, env={f"LOCKSTEP_{name}": value, "PATH": str(tmp_path)})
        assert "is missing: install it" in line
    config = tmp_path / "lockstep.toml"
    config.write_text('jwt_public_key_file = "keys.pem"\n')
    line = refused(stack, env={"LOCKSTEP_CONFIG": str(config), "PATH": str(tmp_path)})
    assert "is missing: install it" in line


def test_too_few_open_files_are_named(tmp_path: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))

    line = refused(Stack(tmp_path), preexec_fn=few)
    assert "the limit of open files is 1000" in line
    assert "--connections=244" in line


# --- through nginx -------------------------------------------------------------------------------


async def test_a_session_is_the_same_through_all_processes(stack: Stack) -> None:
    session_id = data(await rest(f"{stack.url}/v1/sessions", chess()))["session_id"]
    names = [f"{session_id}-{n}" for n in range(24)]
    clients = [
        await WsClient.connect(f"{stack.ws_url}/ws?sessionId={session_id}", headers={"X-Request-ID": name})
        for name in names
    ]
    for client in clients:
        assert (await client.recv())["type"] == "CONNECTED"
    data(await rest(f"{stack.url}/v1/sessions/{session_id}/start"))
    for turn in range(8):
        assert data(await rest(f"{stack.url}/v1/sessions/{session_id}/switch"))["version"] == 3 + turn
    for client in clients:
        assert [(await client.recv())["state"]["version"] for _ in range(9)] == list(range(2, 11))
    for client in clients:
        client.abort()
    # Every process had its share.
    assert set(await processes_of(stack, names)) == {f"unix:{stack.socket_of(name)}" for name in stack.names}


async def access_log(stack: Stack, *wanted: str) -> str:
    """What nginx has logged, when all of this is in it."""

    async def complaint() -> str:
        found = (stack.run / "nginx-access.log").read_text()
        return next((f"no {each}" for each in wanted if f'"{each}"' not in found), "")

    await eventually(complaint, 10, "nginx does not log")
    return (stack.run / "nginx-access.log").read_text()


async def processes_of(stack: Stack, request_ids: list[str]) -> list[str]:
    """Which process served each of these requests, which are over."""
    log = [ujson.loads(line) for line in (await access_log(stack, *request_ids)).splitlines()]
    # Of several that were tried the last one did.
    served = {line["request_id"]: line["upstream"].split(", ")[-1] for line in log}
    return [served[each] for each in request_ids]


async def test_no_token_is_logged(stack: Stack) -> None:
    await rest(f"{stack.url}/v1/time?token=secret1", method="GET")
    await rest(f"{stack.url}/nowhere?token=secret2", method="GET")
    async with await WsClient.connect(f"{stack.ws_url}/ws?token=secret3") as client:
        assert (await client.recv()).code == 1008
    await access_log(stack, "/nowhere", "/ws")
    for log in stack.run.glob("*.log"):
        assert "secret" not in log.read_text()


async def test_metrics_are_not_public(stack: Stack) -> None:
    for path in ("/metrics", "//metrics", "/%6detrics", "/./metrics", "/metrics?x=1"):
        answer = await request(stack.url + path, "GET")
        assert (answer.status, answer.body["error"]["code"]) == (404, "NOT_FOUND")


async def test_prometheus_is_told_where_it_finds_each_process(stack: Stack) -> None:
    told = json.loads((stack.run / "targets.json").read_text())
    assert [each["labels"]["instance"] for each in told] == stack.names
    for each in told:
        (target,) = each["targets"]
        answer = await request(f"http://{target}{each['labels']['__metrics_path__']}", "GET")
        assert b"lockstep_ready 1.0" in answer.raw


async def test_what_is_far_too_large_is_refused_in_json(stack: Stack) -> None:
    answer = await rest(f"{stack.url}/v1/sessions", "x" * 5 * 2**20)
    assert (answer.code, ujson.loads(answer.body)["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


# --- under load, while something is renewed or dies -----------------------------------------------


async def check_roll(stack: Stack, clients: int, workers: int) -> None:
    async with loaded(stack, clients, workers) as load:
        before = stack.pids()
        rolled = await stack.roll()
        assert rolled.returncode == 0, rolled.stderr
        after = stack.pids()
        assert all(before[name] != after[name] for name in stack.names)
        assert (before["nginx"], before["redis"]) == (after["nginx"], after["redis"])
    assert set(load.statuses) == {200}, load.bodies[:3]
    assert {code for client in load.clients for code in client.closes} == {1001}
    assert all(client.away_s for client in load.clients)
    # Each by its first attempt: how long that takes is the machine's.
    assert not [client for client in load.clients if client.refused]
    assert max(load.away_s) <= 30.0
    await load.check_counted_once()


async def test_a_rolling_restart_fails_no_request_and_every_client_is_back(stack: Stack) -> None:
    await check_roll(stack, clients=40, workers=8)


@pytest.mark.long
async def test_a_rolling_restart_of_many_fails_no_request_and_every_client_is_back(stack: Stack) -> None:
    await check_roll(stack, clients=200, workers=30)


async def test_a_stream_is_told_of_each_change_as_it_comes(stack: Stack) -> None:
    created = data(await rest(f"{stack.url}/v1/sessions", chess()))
    shown = StreamView(created["session_id"])
    async with await EventSource.connect(stream_url(stack.url, created["session_id"])) as source:
        for name in ("start", *["switch"] * 8):
            event = await source.next()
            assert event is not None
            shown.take(event)
            data(await rest(f"{stack.url}/v1/sessions/{created['session_id']}/{name}"))
        event = await source.next()
        assert event is not None
        shown.take(event)
        assert source.is_chunked, "a client of nginx is told where the stream ends"
    assert shown.view.told == ["requested"] + ["UPDATE"] * 9


@pytest.mark.long
async def test_a_stream_misses_and_doubles_nothing_through_a_rolling_restart(stack: Stack) -> None:
    session_ids = [data(await rest(f"{stack.url}/v1/sessions", chess()))["session_id"] for _ in range(5)]
    for each in session_ids:
        data(await rest(f"{stack.url}/v1/sessions/{each}/start"))
    streams = [ReturningStream(stack.url, session_ids[n % 5]) for n in range(100)]
    following = [asyncio.create_task(each.run()) for each in streams]
    is_over = asyncio.Event()

    async def change(session_id: str) -> None:
        while not is_over.is_set():
            assert (await rest(f"{stack.url}/v1/sessions/{session_id}/switch", timeout_s=15)).code == 200
            await asyncio.sleep(0.1)

    async def all_follow() -> str:
        waiting = sum(not each.shown.view.told for each in streams)
        return f"{waiting} of them have nothing" if waiting else ""

    try:
        await eventually(all_follow, 20, "not all streams have begun")
        changing = [asyncio.create_task(change(each)) for each in session_ids]
        rolled = await stack.roll()
        assert rolled.returncode == 0, rolled.stderr
        is_over.set()
        await asyncio.gather(*changing)
        stored = {
            each: data(await rest(f"{stack.url}/v1/sessions/{each}", method="GET")) for each in session_ids
        }

        async def all_are_there() -> str:
            for task in following:
                if task.done():
                    task.result()
            behind = [each for each in streams if each.shown.view.state != stored[each.shown.view.session_id]]
            return f"{len(behind)} are behind" if behind else ""

        await eventually(all_are_there, 30, "streams have not converged")
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    for each in streams:
        # Each change was told once and in order, or the view would have complained.
        assert set(each.shown.view.told) == {"requested", "UPDATE"}
        assert each.shown.view.told.count("requested") == 1
        assert each.shown.view.events[-1][1] == stored[each.shown.view.session_id]["version"]
    assert min(each.connections for each in streams) >= 2, "every process was restarted"


@pytest.mark.long
def test_a_roll_to_what_does_not_start_stops_at_the_first(tmp_path: Path) -> None:
    stack, config, secret = Stack(tmp_path / "run"), tmp_path / "lockstep.toml", tmp_path / "secret"
    config.write_text("")
    assert stack.up(env={"LOCKSTEP_CONFIG": str(config)}).returncode == 0
    try:
        before = stack.pids()
        secret.write_text("short")
        config.write_text(f'jwt_secret_file = "{secret}"')
        rolled = stack.command("roll")
        assert rolled.returncode != 0
        assert "a secret needs 32 bytes or more" in rolled.stderr
        first = stack.names[0]
        # Supervisord goes on to try the first one, and on a slow machine takes it for running meanwhile.
        others = {name: pid for name, pid in stack.pids().items() if name != first}
        assert others == {name: pid for name, pid in before.items() if name != first}
        config.write_text("")
        wait_until(lambda: set(stack.pids()) == set(before), what="supervisord's next attempt")
    finally:
        stack.command("down")


# --- what an operator is told --------------------------------------------------------------------


@dataclass
class Configured:
    """A stack with a file of settings, and a variable that the file is overruled by."""

    stack: Stack
    config: Path
    environ: dict[str, str]

    async def nginx_admits(self, origin: str) -> bool:
        answer = await request(f"{self.stack.url}/metrics", "GET", headers={"Origin": origin})
        return answer.headers.get("access-control-allow-origin") == origin


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    folder = tmp_path_factory.mktemp("configured")
    config = folder / "lockstep.toml"
    config.write_text('origins = "https://a.example"')
    environ = {"LOCKSTEP_CONFIG": str(config), "LOCKSTEP_LOG_LEVEL": "warning"}
    stack = Stack(folder / "run")
    started = stack.up(env=environ)
    assert started.returncode == 0, started.stderr
    yield Configured(stack, config, environ)
    assert stack.command("down").returncode == 0


@pytest.mark.long
def test_up_says_which_settings_are_ignored_since_it_runs_already(configured: Configured) -> None:
    stack, environ = configured.stack, configured.environ
    assert stack.up(env=environ).stdout.count("\n") == 1, "nothing is ignored"
    assert stack.command("up").stdout.count("\n") == 1, "what is not given is not ignored"
    again = stack.command(
        *("up", "--processes=2", "--hash-by-session=yes", stack.options[0]),
        env=environ
        | {
            "LOCKSTEP_LOG_LEVEL": "debug",
            "LOCKSTEP_ORIGINS": "*",
            "LOCKSTEP_BROKER": "redis://user:geheim@elsewhere:1/0",
        },
    )
    assert again.returncode == 0, again.stderr
    already, said = again.stdout.splitlines()
    assert already.startswith("already up: ")
    assert said == (
        "ignored, since it runs already: --processes=2 (it runs with 4), "
        "--hash-by-session=yes (it runs with no), "
        "LOCKSTEP_BROKER=redis://user:***@elsewhere:1/0 (it runs with none), "
        "LOCKSTEP_LOG_LEVEL=debug (it runs with 'warning'), LOCKSTEP_ORIGINS=* (it runs with none); "
        "make down up takes them"
    )


@pytest.mark.long
async def test_a_roll_takes_the_file_anew_for_nginx_too_and_says_what_it_ignores(
    configured: Configured,
) -> None:
    stack = configured.stack
    assert await configured.nginx_admits("https://a.example")
    configured.config.write_text('origins = "https://b.example"')
    rolled = await asyncio.to_thread(
        stack.command, "roll", env=configured.environ | {"LOCKSTEP_ROUTING": "targeted"}
    )
    assert rolled.returncode == 0, rolled.stderr
    assert "LOCKSTEP_ROUTING=targeted (it runs with none)" in rolled.stdout.splitlines()[0]
    assert "LOCKSTEP_LOG_LEVEL" not in rolled.stdout
    for origin in ("https://a.example", "https://b.example"):
        answer = await request(f"{stack.url}/v1/time", "GET", headers={"Origin": origin})
        is_admitted = origin == "https://b.example"
        assert ("access-control-allow-origin" in answer.headers) is is_admitted

        async def complaint(origin: str = origin, wanted: bool = is_admitted) -> str:
            return "" if await configured.nginx_admits(origin) is wanted else "nginx has the old origins"

        await eventually(complaint, 10, "nginx does not reload")


def test_a_roll_to_a_setting_that_cannot_be_used_costs_nobody_a_process(configured: Configured) -> None:
    before, text = configured.stack.pids(), configured.config.read_text()
    configured.config.write_text("nonsense = 1")
    try:
        for command in ("roll", "reload"):
            refused = configured.stack.command(command)
            assert refused.returncode != 0
            assert (
                refused.stderr
                == f"stack: {configured.config}: nonsense: no such setting; lockstep --help lists them\n"
            )
        assert configured.stack.pids() == before
    finally:
        configured.config.write_text(text)


def test_a_stack_of_another_version_can_be_ended_and_no_more(configured: Configured) -> None:
    stack, kept = configured.stack, configured.stack.run / "stack.json"
    text, before = kept.read_text(), configured.stack.pids()
    told = json.loads(text)
    told["stack"] |= {"base_port": 8001}
    kept.write_text(json.dumps(told))
    try:
        for command in ("up", "roll", "reload"):
            began = stack.command(command)
            assert (began.returncode, began.stderr) == (
                1,
                "stack: it was started by another version of deploy/stack.py: make down up\n",
            )
        assert findings(stack) == (
            1,
            ["MEND  it was started by another version of deploy/stack.py: make down up"],
        )
        # RunningStack.read is all that `down` asks of it.
        assert RunningStack.read(stack.run)
        assert stack.pids() == before
    finally:
        kept.write_text(text)


@pytest.fixture(scope="module")
def behind_a_balancer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    """All of it said in the file: a Redis of its own, a proxy before nginx, and how long a stop may take.

    Sessions are kept together there.
    """
    folder = tmp_path_factory.mktemp("balanced")
    config = folder / "lockstep.toml"
    server = RedisServer()
    config.write_text(
        f'broker = "{server.url}"\ntrusted_proxies = "{BALANCER}"\ndrain_s = 30\n'
        'insecure = true\nrate_limit_general = "1/86400"\n'
    )
    environ = {"LOCKSTEP_CONFIG": str(config)}
    stack = Stack(folder / "run", "--processes=2", "--hash-by-session=yes")
    try:
        started = stack.up(env=environ)
        assert started.returncode == 0, started.stderr
        yield Configured(stack, config, environ)
        assert stack.command("down").returncode == 0
    finally:
        server.close()


async def through_balancer(stack: Stack, caller: str, method: str = "GET", body: Any = None) -> Answer:
    """The answer to a caller for whom the load balancer asks."""
    host, _, port = stack.listen.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(BALANCER, 0))
    path = "/v1/sessions" if method == "POST" else "/v1/time"
    raw = b"" if body is None else json.dumps(body).encode()
    try:
        async with asyncio.timeout(20):
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: {stack.listen}\r\nConnection: close\r\n"
                f"X-Forwarded-For: {caller}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(raw)}\r\n\r\n".encode()
                + raw
            )
            return parse_answer(await reader.read(-1))
    finally:
        writer.transport.abort()


async def test_callers_behind_a_load_balancer_are_told_apart(behind_a_balancer: Configured) -> None:
    stack = behind_a_balancer.stack
    callers = ("203.0.113.1", "203.0.113.1", "203.0.113.2")
    assert [(await through_balancer(stack, caller)).status for caller in callers] == [200, 429, 200]
    assert '"203.0.113.2"' in await access_log(stack, "203.0.113.2")


async def test_clients_of_a_session_are_at_one_process_where_sessions_are_kept_together(
    behind_a_balancer: Configured,
) -> None:
    stack = behind_a_balancer.stack
    names: dict[str, list[str]] = {}
    for _ in range(16):
        session_id = str(uuid4())
        names[session_id] = [f"{session_id}-{n}" for n in range(4)]
        for name in names[session_id]:
            url = f"{stack.ws_url}/ws?sessionId={session_id}"
            async with await WsClient.connect(url, headers={"X-Request-ID": name}) as client:
                assert (await client.recv())["type"] == "CONNECTED"
    used = [set(await processes_of(stack, each)) for each in names.values()]
    assert {len(each) for each in used} == {1}
    assert len(set.union(*used)) == 2


async def test_the_redis_that_the_file_names_is_the_one_that_is_used(behind_a_balancer: Configured) -> None:
    stack = behind_a_balancer.stack
    created = await through_balancer(stack, "203.0.113.3", "POST", chess())
    assert created.status == 201
    url = tomllib.loads(behind_a_balancer.config.read_text())["broker"]
    session_id = created.body["data"]["session_id"]
    assert redis.Redis.from_url(url, socket_timeout=5).exists(f"session:{session_id}")
    assert "redis" not in stack.pids()


def test_a_process_is_given_the_time_to_stop_that_drain_s_says(behind_a_balancer: Configured) -> None:
    socket_path = behind_a_balancer.stack.run / "supervisor.sock"
    transport = SupervisorTransport(None, None, f"unix://{socket_path}")
    # By supervisord's own account, which is who would kill it.
    with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
        infos = [each for each in proxy.supervisor.getAllConfigInfo() if each["group"] == "lockstep"]
    assert infos
    for info in infos:
        assert info["stopwaitsecs"] > 30
    for name, pid in behind_a_balancer.stack.pids().items():
        if name.startswith("lockstep"):
            assert b"--drain-s=30.0" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


@pytest.mark.long
@pytest.mark.parametrize("command", ["up", "roll"])
def test_what_the_file_says_anew_and_a_roll_does_not_take_is_named(
    behind_a_balancer: Configured, command: str
) -> None:
    stack, config = behind_a_balancer.stack, behind_a_balancer.config
    text = config.read_text()
    (was,) = re.findall(r'"(redis://.+)"', text)
    try:
        assert "ignored" not in stack.command("up", env=behind_a_balancer.environ).stdout
        config.write_text(text.replace(was, "redis://user:geheim@elsewhere:1/0").replace("s = 30", "s = 3"))
        done = stack.command(command, env=behind_a_balancer.environ)
        assert done.returncode == 0, done.stderr
        assert (
            f"ignored, since it runs already: broker=redis://user:***@elsewhere:1/0 in {config} "
            f"(it runs with {was}), drain_s=3 in {config} (it runs with 30); make down up takes them\n"
        ) in done.stdout
    finally:
        config.write_text(text)


def findings(stack: Stack) -> tuple[int, list[str]]:
    """The doctor's exit code and lines."""
    done = stack.command("doctor")
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_the_doctor_looks_at_the_stack_that_runs(configured: Configured) -> None:
    stack = configured.stack
    code, lines = findings(stack)
    assert (code, [line for line in lines if not line.startswith("ok ")]) == (0, []), lines
    for wanted in (
        *(f"{name}: pid " for name in stack.names),
        "nginx: pid ",
        "redis: pid ",
        f"through nginx: {stack.url} answers",
        "open files: ",
        "Redis version: ",
        "persistence: append-only file",
        "Pub/Sub: a publication came back",
    ):
        assert [line for line in lines if line.startswith(f"ok    {wanted}")], wanted


@pytest.mark.long
def test_the_doctor_says_which_process_is_ill_and_what_to_do(configured: Configured) -> None:
    stack = configured.stack
    pid, name = stack.pids()[stack.names[1]], f"lockstep:{stack.names[2]}"
    os.kill(pid, signal.SIGSTOP)
    assert stack.command("ctl", "stop", name).returncode == 0
    try:
        code, lines = findings(stack)
        hanging, stopped = (line for line in lines if line.startswith("MEND"))
        assert code == 1
        assert hanging.startswith(f"MEND  {stack.names[1]}: pid {pid}, ")
        assert "but not ready" in hanging
        assert stopped.startswith(f"MEND  {stack.names[2]}: STOPPED: ")
        assert stopped.endswith(f"ctl start {name}")
        assert f"ok    through nginx: {stack.url} answers" in lines
    finally:
        os.kill(pid, signal.SIGCONT)
        stack.command("ctl", "start", name)


def test_the_doctor_of_what_is_not_up_says_so(tmp_path: Path) -> None:
    assert findings(Stack(tmp_path)) == (1, ["MEND  it is not up: make up starts it"])


@pytest.mark.long
async def test_a_killed_process_fails_no_request_and_costs_no_change(stack: Stack) -> None:
    """A request it died over is tried on another process, and its Idempotency-Key makes that safe."""
    async with loaded(stack, clients=40, workers=8) as load:
        # One after the other, as soon as the one before is back: nginx must not give up on all of them.
        for name in stack.names:
            os.kill(stack.pids()[name], signal.SIGKILL)
            await load.some_answers()
            await eventually(stack.all_ready, 20, "supervisord does not start it again")
            await load.everybody_is_back()
    assert set(load.statuses) == {200}, load.bodies[:3]
    await load.check_counted_once()


async def test_clients_of_the_other_processes_do_not_notice_a_killed_one(stack: Stack) -> None:
    killed = stack.names[3]
    async with loaded(stack, clients=40, workers=2) as load:
        os.kill(stack.pids()[killed], signal.SIGKILL)
        await load.some_answers()
        await eventually(stack.all_ready, 20, "supervisord does not start it again")
    at_first = await processes_of(stack, [f"{client.name}-0" for client in load.clients])
    upstream = f"unix:{stack.socket_of(killed)}"
    assert upstream in at_first
    for client, process in zip(load.clients, at_first, strict=True):
        assert len(client.closes) == (process == upstream)


async def test_of_a_crowd_that_comes_back_at_once_nobody_is_refused(stack: Stack) -> None:
    session_id = data(await rest(f"{stack.url}/v1/sessions", chess()))["session_id"]

    async def come() -> WsClient:
        client = await WsClient.connect(f"{stack.ws_url}/ws?sessionId={session_id}")
        assert (await client.recv(timeout_s=20))["type"] == "CONNECTED"
        return client

    for _ in range(2):
        crowd = await asyncio.gather(*(come() for _ in range(400)))
        for client in crowd:
            client.abort()


async def test_a_reload_of_nginx_fails_nobody(stack: Stack) -> None:
    async with loaded(stack, clients=40, workers=8) as load:
        workers = set(owned(stack))
        reloaded = await asyncio.to_thread(stack.command, "reload")
        assert reloaded.returncode == 0, reloaded.stderr
        await asyncio.to_thread(wait_until, lambda: set(owned(stack)) - workers, what="new workers")
        await load.some_answers(200)
    assert set(load.statuses) == {200}, load.bodies[:3]
    assert not [client for client in load.clients if client.closes]
    await load.check_counted_once()


async def test_a_restart_of_redis_is_a_503_with_retry_after_and_no_more(stack: Stack) -> None:
    async with loaded(stack, clients=40, workers=8) as load:
        os.kill(stack.pids()["redis"], signal.SIGTERM)
        await load.some_answers()
        await eventually(stack.all_ready, 30, "the processes do not find Redis again")
        await load.some_answers()
    assert set(load.statuses) <= {200, 503}, load.bodies[:3]
    assert load.without_retry_after == 0
    assert not [client for client in load.clients if client.closes]
    for each in load.session_ids:
        state = data(await rest(f"{stack.url}/v1/sessions/{each}", method="GET"))
        assert load.applied[each] <= state["version"] - 2 <= load.applied[each] + load.unknown
