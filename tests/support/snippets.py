"""What a page of docs tells its reader to do, done: its shell lines, its Python, its JavaScript.

The blocks of a page are run from the top to the bottom, as a reader would:

    sh        typed in a terminal that stays the same; whatever is answered with an error must be shown
    python    goes on in one program for the whole page; what has a `def test_` is run by pytest
    js        a module of its own, run by Node
    ... &     goes on while the reader does what follows, once it has printed its first line
    http      a request, as it is written: POST /v1/...
    json      what the block above was answered last; "…" stands for anything; `json 409`: with this status
    text      what the block above printed; after `text js` what the program that goes on has printed since
    console   not run: what starts a server, downloads, or stands for the reader's own
    html, jsx, tsx: pages and components, which have tests of their own. Without a language: a picture
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.documents import assert_alike
from tests.support.environment import without_settings
from tests.support.node import NODE
from tests.support.processes import ROOT

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_CHROMIUM = {"html", "jsx", "tsx"}
LANGUAGES = {"sh", "python", "js", "http", "json", "text", "console", ""} | IN_CHROMIUM
DONE_WITHIN_S = 20
DRIVER = Path(__file__).with_name("snippet_driver.py")


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language, the word behind it, its text, and the line it begins at."""

    language: str
    role: str
    text: str
    line: int

    @property
    def goes_on(self) -> bool:
        return self.role == "&"


def snippets_of(document: str) -> list[Snippet]:
    return [
        Snippet(found[1], found[2].strip(), found[3], document[: found.start()].count("\n") + 2)
        for found in FENCE.finditer(document)
    ]


class Program:
    """A process of ours whose output is read as it comes; it ends with its page, if not before."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._printed = ""
        self._has_ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._printed += line
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def take_until(self, pattern: str, what: str) -> str:
        """What it prints up to and with the pattern, which is taken from what it has printed."""
        end = time.monotonic() + DONE_WITHIN_S
        with self._changed:
            while not (found := re.search(pattern, self._printed, re.DOTALL)):
                left_s = end - time.monotonic()
                if left_s <= 0 or self._has_ended:
                    raise AssertionError(f"{what} did not come; printed:\n{self._printed}")
                self._changed.wait(left_s)
            taken, self._printed = self._printed[: found.end()], self._printed[found.end() :]
        return taken

    def wait(self) -> str:
        """What it has printed when it has ended by itself, and well."""
        code = self._process.wait(DONE_WITHIN_S)
        self._reader.join(DONE_WITHIN_S)
        assert code == 0, self._printed
        return self._printed

    def has_not_failed(self, what: str) -> None:
        """It goes on, or has ended well; and whatever it printed, nothing was thrown."""
        assert self._process.poll() in (None, 0), f"{what} has failed:\n{self._printed}"
        assert "Traceback" not in self._printed, f"{what} has failed:\n{self._printed}"

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Walk:
    """One page, gone through in a folder of its own; `addresses`: what stands for what the page names."""

    def __init__(self, folder: Path, addresses: dict[str, str], within_ms: int = 0) -> None:
        """`within_ms`: by how much times that run may differ from those told; 0 where time stands still."""
        self._folder = folder
        self._addresses = addresses
        self._within_ms = within_ms
        self._programs: list[Program] = []
        self._shell: Program | None = None
        self._python: Program | None = None
        self._going_on: dict[str, Program] = {}
        self._printed = ""
        self._status = 0
        self._variables: list[str] = []
        self._env = self._prepare()

    def __enter__(self) -> "Walk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in self._programs:
            program.end()

    def _prepare(self) -> dict[str, str]:
        """What a reader has in the folder: .venv, and the two packages."""
        bin_folder = self._folder / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        for name, script in (("python", ""), ("lockstep", f"{ROOT}/server.py")):
            path = bin_folder / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {script} "$@"\n')
            path.chmod(0o755)
        modules = self._folder / "node_modules"
        modules.mkdir()
        (modules / "lockstep-client").symlink_to(ROOT / "clients" / "js")
        (modules / "ws").symlink_to(ROOT / "clients" / "js" / "node_modules" / "ws")
        clean = without_settings()
        python_path = [*filter(None, [clean.get("PYTHONPATH")]), str(ROOT / "clients" / "python" / "src")]
        return clean | {
            "PATH": os.pathsep.join([str(bin_folder), clean["PATH"]]),
            "PYTHONPATH": os.pathsep.join(python_path),
            "PYTHONUNBUFFERED": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a reader has none of those that are needed here
        }

    def run(self, snippets: list[Snippet]) -> None:
        for place, snippet in enumerate(snippets):
            below = snippets[place + 1] if place + 1 < len(snippets) else None
            try:
                self._do(snippet, below)
            except AssertionError as error:
                raise AssertionError(f"line {snippet.line}, {snippet.language}: {error}") from error
        for language, program in self._going_on.items():
            program.has_not_failed(language)

    def _do(self, snippet: Snippet, below: Snippet | None) -> None:
        text = snippet.text
        for told, real in self._addresses.items():
            text = text.replace(told, real)
        match snippet.language:
            case "sh":
                self._printed = self._in_shell(text, snippet.goes_on)
                shows_it = below is not None and below.language == "json"
                if not snippet.goes_on and not (shows_it and below and '"error"' in below.text):
                    assert '{"error":' not in self._printed, self._printed
            case "python" if "def test_" in text:
                self._printed = self._in_pytest(text)
            case "python":
                self._printed = self._in_python(text, snippet.goes_on)
            case "js":
                self._printed = self._in_node(text, snippet)
            case "http":
                self._printed = self._asked(text)
            case "json":
                assert snippet.role in ("", str(self._status)), self._printed
                assert_alike(json.loads(text), last_json(self._printed), self._within_ms)
            case "text" if snippet.role in ("sh", "python", "js"):
                self._going_on[snippet.role].take_until(pattern_of(text), text)
            case "text" if snippet.role == "":
                assert re.search(pattern_of(text), self._printed), f"printed was:\n{self._printed}"

    def _started(self, command: list[str]) -> Program:
        program = Program(command, self._folder, self._env)
        self._programs.append(program)
        return program

    def _in_shell(self, text: str, goes_on: bool) -> str:
        if goes_on:
            # A second terminal, in which the reader has said what the first one knows.
            return self._left_to_go_on("sh", ["bash", "-ec", "".join(self._variables) + text])
        self._variables += re.findall(r"^[A-Z_]+=.*\n", text, re.MULTILINE)
        self._shell = self._shell or self._started(["bash", "-e"])
        self._shell.say(f"{text}\nprintf '\\n-- %s --\\n' done\n")
        return self._shell.take_until("\n-- done --\n", "the end of the shell's lines")

    def _in_python(self, text: str, goes_on: bool) -> str:
        self._python = self._python or self._started([sys.executable, str(DRIVER)])
        self._python.say(json.dumps({"source": text, "goes_on": goes_on}) + "\n")
        if goes_on:
            self._going_on["python"] = self._python
            return self._python.take_until("\n", "a first line")
        return self._python.take_until("-- done --\n", "the end of the block")

    def _in_pytest(self, text: str) -> str:
        file = self._folder / "test_of_a_page.py"
        file.write_text(text)
        return self._started([sys.executable, "-m", "pytest", "-q", "--no-header", str(file)]).wait()

    def _in_node(self, text: str, snippet: Snippet) -> str:
        module = self._folder / f"line-{snippet.line}.mjs"
        module.write_text(text)
        command = [str(NODE), str(module)]
        if snippet.goes_on:
            return self._left_to_go_on("js", command)
        return self._started(command).wait()

    def _asked(self, text: str) -> str:
        """The body that a request is answered, by the server that pages name first."""
        head, _, body = text.partition("\n")
        method, path = head.split()
        url = f"http://{self._addresses['127.0.0.1:8080']}{path}"
        headers = {"Content-Type": "application/json"} if body else {}
        request = urllib.request.Request(url, body.encode() or None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DONE_WITHIN_S) as answer:
                self._status = answer.status
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            self._status = error.code
            return error.read().decode()

    def _left_to_go_on(self, language: str, command: list[str]) -> str:
        self._going_on[language] = program = self._started(command)
        return program.take_until("\n", "a first line")


def pattern_of(told: str) -> str:
    """What a page says is printed: line by line, `…` standing for anything within one."""
    return "[^\n]*".join(re.escape(part) for part in told.strip().split("…"))


def last_json(printed: str) -> Any:
    """The last of the answers that curl has printed, one behind the other."""
    decoder, place, answer = json.JSONDecoder(), 0, None
    while (place := printed.find("{", place)) >= 0:
        answer, place = decoder.raw_decode(printed, place)
    assert answer is not None, f"there is no JSON in {printed!r}"
    return answer
