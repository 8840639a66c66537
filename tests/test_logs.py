"""Log lines: what is written once, and what is left out."""

import io
import json
import logging
from typing import Any

import pytest

from lockstep.logs import JsonFormatter, Sparing


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
