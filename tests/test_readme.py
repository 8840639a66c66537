"""README.md works as pasted: its shell lines, its page, its targets; those of other pages, too."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import ujson
from playwright.sync_api import Browser

from tests.support.processes import ROOT, ServerProcess

README = (Path(ROOT) / "README.md").read_text()
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (Path(ROOT) / "docs").rglob("*.md"))
TARGETS = set(re.findall(r"^([a-z-]+):", (Path(ROOT) / "Makefile").read_text(), re.MULTILINE))


def section(heading: str) -> str:
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def shell_lines(heading: str) -> list[str]:
    """The commands of a section, each with the lines that belong to it."""
    block = "\n".join(line[4:] for line in section(heading).splitlines() if line.startswith("    "))
    commands: list[str] = []
    for line in block.splitlines():
        # A command goes on while a quote is open.
        if commands and commands[-1].count("'") % 2:
            commands[-1] += "\n" + line
        else:
            commands.append(line)
    return commands


def page_of_ones_own() -> str:
    (page,) = re.findall(r"^```html\n(.*?)^```$", section("A page of your own"), re.MULTILINE | re.DOTALL)
    return str(page)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def own_page(tmp_path: Path) -> Iterator[str]:
    """Where the README's page is served."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))
    )
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


def of_the_minute(server: ServerProcess) -> list[str]:
    """The shell's lines, for this server."""
    lines = shell_lines("One minute")
    assert all("localhost:8080" in line for line in lines)
    return [line.replace("localhost:8080", server.url.removeprefix("http://")) for line in lines]


def run_the_minute(server: ServerProcess) -> list[dict[str, object]]:
    """What the curl lines are answered."""
    answers = []
    for command in of_the_minute(server):
        if command.startswith("curl -N"):
            continue  # it does not end
        done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(ujson.loads(done.stdout)["data"])
    return answers


def test_the_first_minute_creates_a_session_starts_it_and_switches() -> None:
    server = ServerProcess()
    try:
        answers = run_the_minute(server)
        assert [each["version"] for each in answers] == [1, 2, 3]
        assert [each["status"] for each in answers] == ["pending", "running", "running"]
    finally:
        server.stop()


def test_the_stream_of_the_first_minute_shows_the_session() -> None:
    server = ServerProcess()
    try:
        run_the_minute(server)
        (line,) = [each for each in of_the_minute(server) if each.startswith("curl -N")]
        curl = subprocess.Popen(line.split(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert curl.stdout is not None
        try:
            told = next(line for line in curl.stdout if line.startswith("data: "))
        finally:
            curl.kill()
            curl.wait()
            curl.stdout.close()
        shown = ujson.loads(told.removeprefix("data: "))
        assert (shown["type"], shown["state"]["version"]) == ("SNAPSHOT", 3)
    finally:
        server.stop()


def test_the_page_of_ones_own_shows_the_clock_once_its_origin_is_let_in(
    own_page: str, tmp_path: Path, browser: Browser
) -> None:
    """It is served by another port, as the README says; without the setting it never shows anything."""
    server = ServerProcess(env={"LOCKSTEP_ORIGINS": own_page})
    stranger = ServerProcess()
    try:
        for each, is_let_in in ((server, True), (stranger, False)):
            run_the_minute(each)
            page_text = page_of_ones_own()
            assert 'Lockstep("http://127.0.0.1:8080/")' in page_text
            (tmp_path / "index.html").write_text(page_text.replace("http://127.0.0.1:8080", each.url))
            page = browser.new_page()
            try:
                if is_let_in:
                    page.goto(own_page)
                    page.wait_for_function("/^1\\d\\d\\.\\d$/.test(document.title)", timeout=20_000)
                    first = page.title()
                    page.wait_for_function(f"document.title !== '{first}'", timeout=20_000)
                else:
                    with page.expect_event("console", lambda line: "403" in line.text, timeout=20_000):
                        page.goto(own_page)
                    assert page.title() == "-"
            finally:
                page.close()
    finally:
        server.stop()
        stranger.stop()


def test_the_commands_of_tokens_make_tokens_that_the_server_believes(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, command in (("python", ""), ("lockstep", f"{ROOT}/server.py")):
        script = tmp_path / ".venv" / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        script.chmod(0o755)
    lines = [line for line in shell_lines("Another port, a second device, tokens") if ".venv/bin/" in line]
    assert len(lines) == 3
    said = [
        subprocess.run(["sh", "-ec", line], cwd=tmp_path, capture_output=True, timeout=30, check=True).stdout
        for line in lines
    ]
    secret = tmp_path / "secret"
    assert secret.stat().st_mode & 0o077 == 0
    for token, scope in zip(said[1:], ("admin", "view"), strict=True):
        key = secret.read_bytes().strip()
        assert jwt.decode(token.decode().strip(), key, algorithms=["HS256"])["scope"] == scope
    server = ServerProcess(f"--jwt-secret-file={secret}")
    try:
        listed = subprocess.run(
            [
                "curl",
                "-s",
                f"{server.url}/v1/sessions",
                "-H",
                f"Authorization: Bearer {said[1].decode().strip()}",
            ],
            capture_output=True,
            timeout=20,
            check=True,
        )
        assert ujson.loads(listed.stdout)["data"]["sessions"] == []
    finally:
        server.stop()


def test_the_variables_of_the_readme_start_a_server(tmp_path: Path) -> None:
    """Each line that ends in `make run`, by the server that it runs, on a free port."""
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    lines = [
        line.split("#")[0].strip()
        for heading in ("A page of your own", "Another port, a second device, tokens")
        for line in shell_lines(heading)
        if "make run" in line
    ]
    assert len(lines) == 4
    for line in lines:
        *variables, make, run = line.split()
        assert (make, run) == ("make", "run")
        environ = dict(each.split("=", 1) for each in variables)
        if "LOCKSTEP_JWT_SECRET_FILE" in environ:
            environ["LOCKSTEP_JWT_SECRET_FILE"] = str(tmp_path / "secret")
        if "LOCKSTEP_ADDRESS" in environ:
            assert environ["LOCKSTEP_ADDRESS"] == "0.0.0.0"
        done = subprocess.run(
            [sys.executable, "server.py", "check-config"],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_every_target_that_is_told_is_there(path: str) -> None:
    text = (Path(ROOT) / path).read_text()
    told = re.findall(r"(?:^(?:    )?|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, re.MULTILINE)
    assert set(told) <= TARGETS, set(told) - TARGETS


def test_a_command_is_told_with_the_path_that_make_gives_it() -> None:
    """`lockstep` alone is not found in a shell that has not activated .venv."""
    for path in ("README.md", *PAGES):
        text = (Path(ROOT) / path).read_text()
        assert (
            re.findall(r"(?:^    |`)(lockstep (?:--?\w|check-config|doctor|token)\S*)", text, re.MULTILINE)
            == []
        ), path
