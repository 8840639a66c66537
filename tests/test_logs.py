"""Log lines: what is written once, and what is left out."""

import ast
import asyncio
import fcntl
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lockstep import logs
from lockstep.logs import JsonFormatter, NonBlockingHandler, RepeatFilter
from tests.support.processes import ROOT, ServerProcess, wait_until

# What these are called in the code says nothing to whoever runs a server.
OUR_WORDS = re.compile(
    r"\b(link|wire|keeper|subscriber|hub|peers?|rooms?|broker|lapse|agenda|store|sweep|resp|_\w+)\b", re.I
)


class Log:
    """A logger whose clock stands where the test puts it."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        self._handler = logging.StreamHandler(self._out)
        self._handler.setFormatter(JsonFormatter())
        self._handler.addFilter(RepeatFilter())

    def say(self, at_s: float, message: str, *arguments: object, **extra: object) -> None:
        record = logging.LogRecord("lockstep", logging.WARNING, "", 0, message, arguments, None)
        record.created = at_s
        vars(record).update(extra)
        self._handler.handle(record)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.getvalue().splitlines()]


def test_each_kind_of_line_is_written_once_a_second_and_the_rest_counted() -> None:
    log = Log()
    for at_s in (100.0, 100.1, 100.9):
        log.say(at_s, "%s was refused", at_s)
    log.say(100.5, "something else")
    log.say(101.0, "%s was refused", "the last")
    assert [line["message"] for line in log.lines] == [
        "100.0 was refused",
        "something else",
        "the last was refused",
    ]
    assert [line.get("left_out") for line in log.lines] == [None, None, 2]


def test_the_first_line_after_the_clock_was_set_back_is_written() -> None:
    log = Log()
    for at_s in (10_000.0, 6_400.0, 6_400.5, 6_401.0):
        log.say(at_s, "%s was refused", at_s)
    assert [line["message"] for line in log.lines] == [
        "10000.0 was refused",
        "6400.0 was refused",
        "6401.0 was refused",
    ]


@pytest.mark.parametrize("account", [{"duration_ms": 0.1}, {"close_code": None}], ids=str)
def test_each_request_and_each_connection_has_its_line(account: dict[str, object]) -> None:
    log = Log()
    for _ in range(3):
        log.say(100.0, "it is over", **account)
    assert len(log.lines) == 3


def logged_texts() -> dict[str, list[str]]:
    """The messages of all calls of a logger, by file."""
    found: dict[str, list[str]] = {}
    root = Path(ROOT)
    folders = ("lockstep", "handlers", "broker")
    for path in [root / "server.py", *(path for each in folders for path in (root / each).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
                and node.func.attr in ("info", "warning", "error", "exception")
            ):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: a text of its own"
                found.setdefault(path.name, []).append(node.args[0].value)
    return found


def test_every_line_that_operations_explains_is_one_that_is_logged() -> None:
    section = (Path(ROOT) / "docs" / "operations.md").read_text().split("\n## Logs\n")[1].split("\n## ")[0]
    told = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(told) > 5
    logged = [
        re.sub(r"%[\d.]*[sdfg]", ".+", re.escape(text).replace("%\\.", "%."))
        for texts in logged_texts().values()
        for text in texts
    ]
    for line in told:
        assert [pattern for pattern in logged if re.fullmatch(pattern, line)], line


def test_a_log_line_names_things_as_users_know_them() -> None:
    texts = logged_texts()
    assert len(texts) > 5, "the lines are looked for where they are"
    assert [text for each in texts.values() for text in each if OUR_WORDS.search(text)] == []


# --- nobody reads ------------------------------------------------------------------------------------


@contextmanager
def a_narrow_pipe() -> Iterator[tuple[int, int]]:
    """As small as a pipe can be, so that it is full soon."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


class Unread:
    """A logger to a pipe, of which the test reads when it wants to."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._read = b""
        self.handler = NonBlockingHandler(writer)
        self.handler.setFormatter(JsonFormatter())

    def say(self, message: str) -> None:
        self.handler.handle(logging.LogRecord("lockstep", logging.WARNING, "", 0, message, (), None))

    def lines_until(self, message: str) -> list[dict[str, Any]]:
        def lines() -> list[dict[str, Any]] | None:
            try:
                self._read += os.read(self._reader, 65_536)
            except BlockingIOError:
                return None
            told = [json.loads(line) for line in self._read.splitlines() if line.endswith(b"}")]
            return told if any(line["message"] == message for line in told) else None

        told: list[dict[str, Any]] = wait_until(lines, what=f"the line {message!r}")
        return told


def test_unread_lines_are_dropped_and_counted_in_the_next_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING_BYTES", 20_000)
    with a_narrow_pipe() as pipe:
        os.write(pipe[1], b"\n" * 4096)  # it is full: of what is said none gets through meanwhile
        log = Unread(*pipe)
        for number in range(1000):
            log.say(f"line {number}")
        dropped = log.handler.dropped
        assert 0 < dropped < 1000
        kept = [f"line {number}" for number in range(1000 - dropped)]
        assert [line["message"] for line in log.lines_until(kept[-1])] == kept
        log.say("somebody reads again")
        *_, last = log.lines_until("somebody reads again")
        assert last["lines_dropped"] == dropped
        log.say("all is well")
        *_, last = log.lines_until("all is well")
        assert "lines_dropped" not in last
        assert log.handler.dropped == dropped


def test_lines_of_processes_that_share_a_pipe_are_not_mixed() -> None:
    with a_narrow_pipe() as (reader, writer):
        first, second = Unread(reader, writer), Unread(reader, writer)
        for number in range(500):
            first.say(f"first {number} " + "x" * 300)
            second.say(f"second {number}")
        first.say("the end")
        told = first.lines_until("the end")  # parses each
        assert len({line["message"] for line in told}) > 500


def test_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    reader, writer = os.pipe()
    handler = NonBlockingHandler(writer)
    os.close(reader)
    handler.handle(logging.LogRecord("lockstep", logging.WARNING, "", 0, "heard by nobody", (), None))
    handler.flush()
    assert handler.dropped == 1
    os.close(writer)


def test_the_last_lines_of_a_process_are_written() -> None:
    script = (
        "import logging; from lockstep import logs; logs.configure('info'); "
        "[logging.info(f'line {n}') for n in range(2000)]"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, check=True)
    assert [json.loads(line)["message"] for line in ended.stderr.splitlines()][-1] == "line 1999"


async def test_a_log_that_nobody_reads_stops_no_process() -> None:
    with a_narrow_pipe() as (_, writer):
        server = await asyncio.to_thread(ServerProcess, stderr=writer)
        try:
            # The path and the id are in the line: the pipe is full soon, and then what is kept.
            asked = f"GET /{'x' * 200} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {'y' * 128}\r\n"
            reading, writing = await asyncio.open_connection("127.0.0.1", server.port)
            writing.write(f"{asked}\r\n".encode() * 2999 + f"{asked}Connection: close\r\n\r\n".encode())
            async with asyncio.timeout(60):
                assert (await reading.read()).count(b"HTTP/1.1 404") == 3000
            writing.close()
            text = (await server.call("GET", "/metrics")).raw.decode()
            dropped = re.search(r"^lockstep_log_lines_dropped_total (\S+)$", text, re.MULTILINE)
            assert dropped is not None
            assert float(dropped[1]) > 0
        finally:
            assert await asyncio.to_thread(server.stop) == 0
