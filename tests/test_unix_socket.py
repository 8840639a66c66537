"""A process that listens at a Unix socket: whose path it takes, and who its callers are."""

import os
import signal
import socket
import stat
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from handlers.listeners import UnixListener, listen
from lockstep.config import MAX_SOCKET_PATH_BYTES, read_settings
from lockstep.setting import SettingsError
from tests.support.event_source import EventParser
from tests.support.processes import Answer, ServerProcess, lockstep, request, wait_until
from tests.support.ws_client import Closed, WsClient

NOBODY = 65_534


# --- the path ------------------------------------------------------------------------------------


def dead(path: Path) -> Path:
    """The socket that a process leaves which was killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    return path


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def refusal(path: Path) -> str:
    """Why it cannot be listened at, which leaves what is there as it is."""
    before = os.lstat(path) if os.path.lexists(path) else None
    with pytest.raises(OSError, match=r".") as raised:
        listen([], 0, str(path))
    after = os.lstat(path) if os.path.lexists(path) else None
    assert (before and before.st_ino) == (after and after.st_ino)
    told = raised.value.strerror
    assert told is not None
    assert told.startswith(f"cannot listen at {path}: ")
    assert "\n" not in told
    return told


@contextmanager
def without_rights() -> Iterator[None]:
    """As another user, where this one may do everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_every_user_of_the_machine_who_may_enter_the_folder_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    before = os.umask(0o077)
    try:
        (listener,) = listen([], 0, str(path))
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert can_connect(path)


def test_the_socket_of_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = dead(tmp_path / "a.sock")
    with UnixListener(str(path)):
        assert can_connect(path)
    assert not path.exists()


def test_a_path_at_which_somebody_listens_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with UnixListener(str(path)):
        assert "taken" in refusal(path)
        assert can_connect(path)


def test_a_path_is_taken_also_where_the_queue_there_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = []
        with suppress(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(path))
        assert "taken" in refusal(path)
        for each in waiting:
            each.close()


def test_of_many_that_start_at_once_one_gets_the_path(tmp_path: Path) -> None:
    path = dead(tmp_path / "a.sock")

    def start(_: int) -> UnixListener | None:
        try:
            return UnixListener(str(path))
        except OSError:
            return None

    with ThreadPoolExecutor(8) as pool:
        listeners = [each for each in pool.map(start, range(8)) if each is not None]
    assert len(listeners) == 1
    assert can_connect(path)
    listeners[0].close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sock"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(dead(tmp_path / "b.sock"))
    assert "is no socket" in refusal(path)


def test_a_dead_socket_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dead(tmp_path / "a.sock")
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert f"another user's (uid {uid})" in refusal(path)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'nowhere'}" in refusal(tmp_path / "nowhere" / "a.sock")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"no folder {tmp_path / 'file'}" in refusal(tmp_path / "file" / "a.sock")


def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with without_rights():
        assert "Permission denied" in refusal(folder / "a.sock")


def test_another_socket_at_its_path_is_left_there_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with UnixListener(str(path)):
        path.unlink()
        with UnixListener(str(path)) as second:
            pass
        second = UnixListener(str(path))
    assert can_connect(path)
    second.close()
    assert not path.exists()


# --- settings ------------------------------------------------------------------------------------


def test_a_path_has_107_bytes_at_most(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/"
    longest = prefix + "ü" * ((MAX_SOCKET_PATH_BYTES - len(prefix)) // 2)
    longest += "x" * (MAX_SOCKET_PATH_BYTES - len(longest.encode()))
    with UnixListener(read_settings([f"--unix-socket={longest}"], {}).unix_socket):
        assert can_connect(Path(longest))
    with pytest.raises(SettingsError, match=r"^--unix-socket: .* is not a path of at most 107 bytes$"):
        read_settings([f"--unix-socket={longest}x"], {})


@pytest.mark.parametrize(
    ("args", "environ"),
    [
        (["--unix-socket=a", "--port=1"], {}),
        (["--address=::1", "--unix-socket=a"], {}),
        ([], {"LOCKSTEP_UNIX_SOCKET": "a", "LOCKSTEP_PORT": "8080"}),
    ],
    ids=["port", "address", "variables"],
)
def test_a_socket_and_an_address_together_are_refused(args: list[str], environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="not at both") as raised:
        read_settings(args, environ)
    assert str(raised.value).startswith(("--unix-socket and --", "LOCKSTEP_UNIX_SOCKET and LOCKSTEP_PORT: "))


def test_where_to_listen_is_said_by_the_nearest_of_flags_environment_and_file(tmp_path: Path) -> None:
    config = tmp_path / "lockstep.toml"
    config.write_text('unix_socket = "file"\n')
    file = [f"--config={config}"]
    assert read_settings(file, {}).unix_socket == "file"
    by_port = read_settings(file, {"LOCKSTEP_PORT": "8001"})
    assert (by_port.unix_socket, by_port.port) == ("", 8001)
    assert read_settings([*file, "--address=::1"], {}).unix_socket == ""
    by_flag = read_settings([*file, "--unix-socket=flag"], {"LOCKSTEP_PORT": "8001"})
    assert (by_flag.unix_socket, by_flag.port) == ("flag", 8080)
    empty = read_settings([*file, "--unix-socket="], {"LOCKSTEP_PORT": "8001"})
    assert (empty.unix_socket, empty.port) == ("", 8001)


def test_a_socket_is_as_loopback_is(tmp_path: Path) -> None:
    settings = read_settings([f"--unix-socket={tmp_path}/a.sock"], {})
    assert settings.is_open_on_loopback
    assert not read_settings([f"--unix-socket={tmp_path}/a.sock", "--insecure=yes"], {}).is_open_on_loopback


# --- a process -----------------------------------------------------------------------------------


class AtSocket:
    """A process at a Unix socket, asked by whom a proxy says."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.server = ServerProcess(f"--unix-socket={path}", *options)

    async def call(self, target: str, method: str = "GET", body: Any = None, caller: str = "") -> Answer:
        headers = {"X-Forwarded-For": caller} if caller else {}
        return await self.server.call(method, target, body, headers)

    async def follow(self, caller: str = "") -> WsClient:
        headers = {"X-Forwarded-For": caller} if caller else {}
        url = f"ws://localhost/ws?sessionId={uuid.uuid4()}"
        return await WsClient.connect(url, headers=headers, unix_socket=self.path)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtSocket]:
    """One that is behind a proxy, and has limits."""
    path = tmp_path_factory.mktemp("process") / "lockstep.sock"
    options = ("--insecure=yes", "--rate-limit-general=2/86400", "--max-connections-per-ip=1")
    process = AtSocket(path, *options)
    yield process
    assert process.server.stop() == 0
    assert not path.exists()
    assert not [line for line in process.server.log() if line["level"] == "error" or "traceback" in line]


async def test_a_process_says_at_which_socket_it_is_ready_and_answers_there(process: AtSocket) -> None:
    assert process.server.start_line == f"Lockstep is ready at unix:{process.path}\n"
    assert (await process.call("/ready")).status == 200
    assert (await process.call("/health")).status == 200
    assert b"lockstep_ready 1" in (await process.call("/metrics")).raw


async def test_callers_are_told_apart_by_what_the_proxy_says(process: AtSocket) -> None:
    callers = ("203.0.113.1", "203.0.113.1", "203.0.113.1", "9.9.9.9, 203.0.113.2")
    assert [(await process.call("/v1/time", caller=each)).status for each in callers] == [200, 200, 429, 200]


async def test_who_asks_without_a_proxy_is_one_caller(process: AtSocket) -> None:
    assert [(await process.call("/v1/time")).status for _ in range(3)] == [200, 200, 429]


async def test_clients_are_counted_by_the_address_that_the_proxy_says(process: AtSocket) -> None:
    async with await process.follow("203.0.113.3") as first, await process.follow("203.0.113.4") as other:
        for client in (first, other):
            assert (await client.recv())["type"] == "CONNECTED"
        async with await process.follow("203.0.113.3") as second:
            assert (await second.recv()).code == 4004


async def test_a_page_of_another_site_may_not_call(process: AtSocket) -> None:
    url = f"http://localhost/v1/sessions/{uuid.uuid4()}/start"
    headers = {"Origin": "https://a.example", "X-Forwarded-For": "203.0.113.5"}
    answer = await request(url, "POST", {}, headers, unix_socket=process.path)
    assert (answer.status, answer.body["error"]["details"]["reason"]) == (403, "origin")


async def test_a_second_process_is_told_that_the_path_is_taken(process: AtSocket) -> None:
    ended = lockstep(f"--unix-socket={process.path}")
    assert ended.returncode == 1
    assert ended.stderr == f"lockstep: cannot listen at {process.path}: taken, a process listens there\n"
    assert (await process.call("/ready")).status == 200


async def test_a_change_reaches_sockets_and_streams(tmp_path: Path) -> None:
    process = AtSocket(tmp_path / "lockstep.sock")
    try:
        created = await process.call("/v1/sessions", "POST", {"sync_mode": "count_up"})
        session_id = created.data["session_id"]
        target = f"/v1/sessions/{session_id}/stream"
        url = f"ws://localhost/ws?sessionId={session_id}"
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(20)
        stream.connect(str(process.path))
        stream.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        parser, names = EventParser(), list[str]()
        with stream, stream.makefile("rb") as lines:
            while lines.readline().strip():
                pass
            async with await WsClient.connect(url, unix_socket=process.path) as client:
                assert (await client.recv())["type"] == "CONNECTED"
                assert (await process.call(f"/v1/sessions/{session_id}/start", "POST")).status == 200
                assert (await client.recv())["state"]["status"] == "running"
            while "update" not in names:
                names += [event.name for event in parser.feed(lines.readline())]
        assert names == ["snapshot", "update"]
    finally:
        assert process.server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_process_that_stops_says_so_and_takes_its_socket_away(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = AtSocket(tmp_path / "lockstep.sock")
    async with await process.follow() as client:
        assert (await client.recv())["type"] == "CONNECTED"
        os.kill(process.server.pid, number)
        assert await client.recv() == Closed(1001, "Server shutting down")
    assert process.server.wait() == 0
    assert not process.path.exists()
    process.server.stop()


async def test_a_process_takes_over_from_one_that_was_killed(tmp_path: Path) -> None:
    first = AtSocket(tmp_path / "lockstep.sock")
    first.server.kill()
    assert first.path.exists()
    second = AtSocket(first.path)
    assert (await second.call("/ready")).status == 200
    assert second.server.stop() == 0


def test_a_process_that_cannot_start_leaves_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "lockstep.sock"
    ended = lockstep(f"--unix-socket={path}", "--broker=nonsense://")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    wait_until(lambda: not path.exists(), what="the end of the socket")
