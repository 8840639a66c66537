"""The console script: its commands, its help, and one line for a mistake.

What both doors do, and how a start ends, is asked of processes; what a command says, of its function.
"""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import jwt
import pytest

from cli import COMMANDS, OPTIONS
from lockstep import __version__
from lockstep.access import Scope
from lockstep.config import Settings
from tests.support.command_line import lockstep
from tests.support.processes import ROOT

SESSION = "7f3c1f6e-2f6b-4b0e-9a51-0d6f3c1d2e3f"
PLAYER = "11111111-1111-4111-8111-111111111111"
# The two doors: the file in a checkout, and what an installation puts on the PATH.
DOORS = ([sys.executable, "server.py"], [str(Path(sys.executable).parent / "lockstep")])


def through(door: list[str], *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*door, *args], cwd=ROOT, env={}, capture_output=True, text=True, timeout=30, check=False
    )


def complaint(*args: str) -> str:
    """The one line with which it ends."""
    return line_of(lockstep(*args))


def line_of(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef" * 4 + "\n")
    return path


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chek-config"], "chek-config: no such command; did you mean check-config?"),
        (["docter", "--port=1"], "docter: no such command; did you mean doctor?"),
        (
            ["serve"],
            "serve: no such command; there are check-config, doctor, token, links, migrate; "
            "without one it serves",
        ),
        (["--port=1", "doctor"], "doctor: a command comes first: lockstep doctor --SETTING=VALUE"),
        (["check-config", "--drain=1"], "--drain: no such setting; did you mean --drain-s?"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest_one(args: list[str], said: str) -> None:
    assert complaint(*args) == f"lockstep: {said}"


@pytest.mark.parametrize(
    "url", ["redis:/x", "http://127.0.0.1/0", "", "redis://127.0.0.1:99999", "localhost:6379"]
)
@pytest.mark.parametrize("command", ["", "check-config", "doctor"])
def test_an_impossible_broker_url_ends_the_start_with_examples(command: str, url: str) -> None:
    settings = ("--port=0", f"--broker={url}")
    said = complaint(command, *settings) if command else line_of(through(DOORS[0], *settings))
    assert said.startswith("lockstep: broker: ")
    assert "a broker looks like memory://, redis://127.0.0.1:6379/0" in said


@pytest.mark.parametrize("door", DOORS, ids=["server.py", "lockstep"])
def test_version_is_that_of_the_package(door: list[str]) -> None:
    assert through(door, "--version").stdout == f"lockstep {__version__}\n"


def test_a_flag_may_be_given_in_two_words() -> None:
    assert "port = 8001\n" in lockstep("check-config", "--port", "8001").stdout


def test_help_lists_every_command_and_every_setting() -> None:
    for args in (["--help"], ["-h"]):
        said = lockstep(*args).stdout
        for command in COMMANDS:
            assert f"\nlockstep {command} " in said
        for field in fields(Settings):
            assert f"--{field.name.replace('_', '-')}=" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_lists_what_it_takes(command: str) -> None:
    done = lockstep(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: lockstep {command} ")
    names = OPTIONS.get(command) or [field.name for field in fields(Settings)]
    for name in names:
        assert f"--{name.replace('_', '-')}" in done.stdout
    if command == "token":
        for scope in Scope:
            assert scope.name.lower() in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--scope=view"], "--sid is needed: ID|ID,ID|*"),
        (["--sid=*"], "--scope is needed: "),
        (["--sid=7f3c1f6e", "--scope=view"], "--sid: '7f3c1f6e' is no session id (a UUID), nor *"),
        ([f"--sid={SESSION},", "--scope=view"], "--sid: '' is no session id"),
        ([f"--sid={SESSION},*", "--scope=view"], "--sid: '*' is no session id"),
        (["--sid=*", "--scope=root"], "--scope: 'root' is none of view, "),
        (["--sid=*", "--scope=view", "--ttl=0"], "--ttl: '0' is not a number of seconds"),
        (["--sid=*", "--scope=view", "--ttl=1h"], "--ttl: '1h' is not a number of seconds"),
        (["--sid=*", "--scope=view", "--ttl=" + "9" * 30], "is not a number of seconds"),
        (["--sid=*", "--scpe=view"], "--scpe: no such option of token; did you mean --scope?"),
        (["--sid=*", "--scope=view", "--sub"], "--sub: options are given as --name=value"),
        (["--sid=*", "--scope=view"], "--jwt-secret-file or --jwt-private-key-file is needed"),
    ],
)
def test_a_token_that_no_server_would_accept_is_not_made(args: list[str], said: str) -> None:
    assert said in complaint("token", *args)


@pytest.mark.parametrize("door", DOORS, ids=["server.py", "lockstep"])
def test_both_doors_make_a_token_with_what_was_asked(door: list[str], secret: Path) -> None:
    done = through(
        door,
        *("token", f"--sid={SESSION.upper()}", "--scope=view", f"--sub={PLAYER}", "--ttl=60"),
        f"--jwt-secret-file={secret}",
    )
    assert done.returncode == 0, done.stderr
    claims = jwt.decode(done.stdout.strip(), secret.read_bytes().strip(), algorithms=["HS256"])
    assert (claims["sid"], claims["scope"], claims["sub"]) == (SESSION.upper(), "view", PLAYER)
    assert claims["exp"] - claims["iat"] == 60


@pytest.mark.parametrize("sub", [[], ["--sub=anna"]])
def test_a_token_to_play_names_the_participant(sub: list[str], secret: Path) -> None:
    said = complaint("token", f"--sid={SESSION}", "--scope=play", f"--jwt-secret-file={secret}", *sub)
    assert said.startswith("lockstep: --sub: the scope play is a participant's")


@pytest.mark.parametrize("script", ["server.py", "deploy/stack.py"])
def test_a_python_without_the_packages_names_the_one_that_has_them(script: str) -> None:
    # -S: as the system's own Python, which knows nothing of .venv.
    done = subprocess.run(
        [sys.executable, "-S", script, "doctor"],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert f".venv/bin/python {script} doctor" in done.stderr
