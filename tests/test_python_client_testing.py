"""What the Python client gives to tests of applications; and what is in its package, built and installed."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4
from zipfile import ZipFile

import pytest
from lockstep_client import AsyncLockstep, Lockstep, LockstepError, mint_token
from lockstep_client.clocks import session_clock
from lockstep_client.testing import VirtualServer, advance, virtual_server

from tests.support.api import body_of
from tests.support.followed import following
from tests.support.processes import ROOT, ServerProcess
from tests.support.python_clients import http_answer, scripted
from tests.support.tokens import SECRET, token

PACKAGE = ROOT / "clients" / "python"
COMMAND = (sys.executable, str(ROOT / "server.py"))
SNIPPETS = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S)


@pytest.fixture(scope="module")
def virtual() -> Iterator[VirtualServer]:
    with virtual_server(COMMAND) as server:
        yield server


def test_a_day_passes_at_once(virtual: VirtualServer) -> None:
    with Lockstep(virtual.url) as lockstep:
        before_ms = lockstep.read_time()["timestamp_ms"]
        assert lockstep.read_time()["timestamp_ms"] == before_ms
        assert virtual.advance(86_400_000) == before_ms + 86_400_000
        assert lockstep.read_time()["timestamp_ms"] == before_ms + 86_400_000


async def test_whoever_follows_is_told_all_that_falls_due(virtual: VirtualServer) -> None:
    async with AsyncLockstep(virtual.url) as lockstep:
        body = body_of("per_cycle", 3)
        state = await lockstep.create_session(body)  # type: ignore[arg-type]  # of a test's plain dict
        session_id = state["session_id"]
        await lockstep.command(session_id, "start")
        async with following(lockstep, session_id) as followed:
            # It waits until the client follows, and then until it knows.
            now_ms = await virtual.advance_async(10_000 * 100 + 5_000, clients=[lockstep])
            assert (lockstep.time.now_ms(), lockstep.time.error_ms) == (now_ms, 0)
            await followed.until_version(102)
            clock = session_clock(followed.last.state, lockstep.time.now_ms())  # type: ignore[arg-type]
            assert clock == ("cycle", 5_000)
            told = [event for update in followed.updates for event in update.events]
            assert [event["version"] for event in told] == list(range(3, 103))
            assert {event["type"] for event in told} == {"advanced"}
            assert followed.last.state == await lockstep.session(session_id)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    with virtual_server(COMMAND, f"--jwt-secret-file={secret}") as server:
        yield server


def test_time_is_advanced_with_a_token_where_there_are_keys(guarded: VirtualServer) -> None:
    assert guarded.advance(1, token()) > 0
    for wrong in (None, token(scope="control")):
        with pytest.raises(LockstepError) as caught:
            guarded.advance(1, wrong)
        assert caught.value.code == ("UNAUTHORIZED" if wrong is None else "FORBIDDEN")


async def test_a_client_that_is_not_told_of_the_time_is_an_error(
    virtual: VirtualServer, rest_process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep_client.testing.TOLD_WITHIN_S", 0.1)
    async with AsyncLockstep(virtual.url) as unused, AsyncLockstep(rest_process.url) as elsewhere:
        await virtual.advance_async(1, clients=[unused])
        async with following(elsewhere, str(uuid4())) as followed:
            await followed.count(1)
            with pytest.raises(LockstepError, match="not told"):
                await virtual.advance_async(1, clients=[elsewhere])


async def test_tokens_run_out_in_real_time(guarded: VirtualServer) -> None:
    asked = []

    def source() -> str:
        asked.append(1)
        return mint_token(SECRET, scope="admin", lifetime_s=60)

    guarded.advance(86_400_000, token())
    async with AsyncLockstep(guarded.url, token=source) as lockstep:
        async for update in lockstep.follow(str(uuid4())):
            assert update.reason == "missing"
            await asyncio.sleep(1.5)  # a token that is taken for one that has run out is renewed by then
            assert asked == [1]
            break


def test_what_is_no_span_of_time_is_refused(virtual: VirtualServer) -> None:
    for ms in (0, -1, 86_400_001):
        with pytest.raises(LockstepError) as caught:
            virtual.advance(ms)
        assert caught.value.code == "VALIDATION_ERROR"


def test_real_time_cannot_be_advanced(rest_process: ServerProcess) -> None:
    with pytest.raises(LockstepError) as caught:
        advance(rest_process.url, 1)
    assert caught.value.code == "NOT_FOUND"


async def test_time_is_not_advanced_twice_where_the_answer_is_lost() -> None:
    for answer in (b"", http_answer(503, "")):
        async with scripted([answer]) as server:
            with pytest.raises(LockstepError):
                await asyncio.to_thread(advance, server.url, 1)
            assert len(server.heads) == 1


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-setting"), virtual_server(COMMAND, "--no-such-setting=1"):
        pass
    with pytest.raises(RuntimeError, match="did not start"), virtual_server(["true"]):
        pass
    with pytest.raises(FileNotFoundError), virtual_server(["/no/such/command"]):
        pass


def test_settings_of_the_environment_do_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_BROKER", "redis://127.0.0.1:1/0")
    with virtual_server(COMMAND) as server:
        assert server.advance(1) > 0


# --- the readme, and the package ---------------------------------------------------------------------------


def run_snippet(python: str | Path, snippet: str, url: str, folder: Path, **environment: str) -> str:
    """As it is written, but for where the server is."""
    assert "http://127.0.0.1:8080" in snippet
    path = folder / "example.py"
    path.write_text(snippet.replace("http://127.0.0.1:8080", url))
    ran = subprocess.run(
        [python, path], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    return ran.stdout


def check_output(output: str) -> None:
    lines = output.splitlines()
    assert [line for line in lines if line[0].isdigit()] == [
        "3 switched {'move': 'e2e4'}",
        "4 switched {'move': 'e2e4'}",
        "5 completed None",
    ]
    assert re.fullmatch(r"running \d:\d\d\.\d", lines[0])


def test_the_readmes_example_runs_as_it_is_written(rest_process: ServerProcess, tmp_path: Path) -> None:
    path = f"{PACKAGE / 'src'}"
    check_output(run_snippet(sys.executable, SNIPPETS[0], rest_process.url, tmp_path, PYTHONPATH=path))


def test_the_readmes_test_passes_as_it_is_written(virtual: VirtualServer) -> None:
    names: dict[str, object] = {}
    exec(SNIPPETS[1], names)
    names["test_a_flag_falls_after_ten_minutes"](virtual)  # type: ignore[operator]


@pytest.mark.long
def test_the_package_is_built_installed_and_typed(rest_process: ServerProcess, tmp_path: Path) -> None:
    """From the sources to a wheel, and from that to a clean environment that has nothing else of ours."""
    ignored = shutil.ignore_patterns("*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "source", ignore=ignored)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)

    def environment_at(name: str, *packages: str | Path) -> Path:
        venv.create(tmp_path / name, with_pip=True)
        python = tmp_path / name / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", *packages)
        return python

    run(environment_at("building", "build"), "-m", "build", "source", "--outdir", "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    modules = {path.name for path in (PACKAGE / "src" / "lockstep_client").iterdir() if path.is_file()}
    with ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert {f"lockstep_client/{name}" for name in modules} == {
        name for name in packed if ".dist-info/" not in name
    }
    python = environment_at("using", wheel, "mypy")
    check_output(run_snippet(python, SNIPPETS[0], rest_process.url, tmp_path))
    # Whoever is strict with types is told all of them.
    run(python, "-m", "mypy", "--strict", "example.py")
