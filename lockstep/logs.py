"""Log lines: one JSON object each, or plain text on a terminal."""

import logging
import math
import sys

from lockstep.state import dumps, iso

FIELDS = ("session_id", "request_id", "method", "path", "status", "duration_ms", "close_code", "left_out")
"""What a line may carry beside its message, given as `extra`."""


ACCOUNTS = ("duration_ms", "close_code")
"""What marks the one line of each request and of each connection's end."""
MAX_KINDS = 1000


class Sparing(logging.Filter):
    """Lets one line of a kind pass in a second; the next one says how many were left out.

    Only requests and connections have a line each, and who does not want those raises the level.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if any(name in vars(record) for name in ACCOUNTS):
            return True
        kind = record.name, str(record.msg)
        passed_at_s, left_out = self._kinds.get(kind, (-math.inf, 0))
        if record.created - passed_at_s < 1:
            self._kinds[kind] = passed_at_s, left_out + 1
            return False
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = record.created, 0
        if left_out:
            record.left_out = left_out
        return True


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": iso(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _extra(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return dumps(line).decode()


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        level = record.levelname.lower()
        text = f"{self.formatTime(record, '%H:%M:%S')} {level:7} {record.getMessage()} {extra}"
        return (
            f"{text.rstrip()}\n{self.formatException(record.exc_info)}" if record.exc_info else text.rstrip()
        )


def configure(level: str) -> None:
    """Send everything to standard error, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Sparing())
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Told by our own lines; asyncio and Tornado say only what we cannot.
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: vars(record)[name] for name in FIELDS if vars(record).get(name) is not None}
