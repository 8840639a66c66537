"""Log lines: what is written once, and what is left out."""

import ast
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from lockstep.logs import JsonFormatter, Sparing
from tests.processes import ROOT

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
        self._handler.addFilter(Sparing())

    def say(self, at_s: float, message: str, *arguments: object, **extra: object) -> None:
        record = logging.LogRecord("lockstep", logging.WARNING, "", 0, message, arguments, None)
        record.created = at_s
        vars(record).update(extra)
        self._handler.handle(record)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.getvalue().splitlines()]


def test_of_a_kind_one_line_a_second_is_written_and_the_next_says_how_many_were_not() -> None:
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


def test_a_log_line_names_things_as_users_know_them() -> None:
    texts = logged_texts()
    assert len(texts) > 5, "the lines are looked for where they are"
    assert [text for each in texts.values() for text in each if OUR_WORDS.search(text)] == []
