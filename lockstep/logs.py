"""Log lines: one JSON object each, or plain text on a terminal."""

import logging
import math
import os
import select
import sys
import threading
import time
from collections import deque

from lockstep.rules.state_json import dumps, iso

FIELDS = (
    *("session_id", "request_id", "method", "path", "status", "duration_ms", "close_code"),
    *("left_out", "lines_dropped"),
)
"""What a line may carry beside its message, given as `extra`."""

ACCESS_FIELDS = ("duration_ms", "close_code")
"""Only the one line of each request and of each connection's end has one of these."""
MAX_KINDS = 1000
# Lines that a slow reader of the log has not read yet; more are dropped.
MAX_WAITING_BYTES = 1_048_576
# Lines that come within this time are written together: fewer system calls, and fewer wake-ups.
GATHER_S = 0.02
# How long the end of the process waits until its last lines are written.
FLUSH_TIMEOUT_S = 1.0
# A write of this size to a pipe is never mixed with another process's (pipe(7)).
ATOMIC_BYTES = 4096


class RepeatFilter(logging.Filter):
    """Lets one line of a kind pass in a second; the next one says how many were left out.

    The lines of requests and of connections all pass: a higher level leaves them out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if any(name in vars(record) for name in ACCESS_FIELDS):
            return True
        kind = record.name, str(record.msg)
        passed_at_s, left_out = self._kinds.get(kind, (-math.inf, 0))
        # A line from before the last one that passed is let through: the machine's clock was set back.
        if 0 <= record.created - passed_at_s < 1:
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


class NonBlockingHandler(logging.Handler):
    """Writes lines to a descriptor from a thread of its own, so that the caller never waits for the reader.

    While nobody reads, up to 1 MiB is kept. Lines beyond it are dropped and counted, and the next one that
    is kept says how many. The descriptor stays blocking: its mode is shared with the process that started us.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped_since_last_line = 0
        self._lines: deque[bytes] = deque()
        # Each is changed by one side only: by the caller, who holds the handler's lock, or by the thread.
        self._dropped = self._unwritable = 0
        self._kept_bytes = self._written_bytes = 0
        self._has_lines = threading.Event()
        threading.Thread(target=self._write_forever, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """How many lines were lost."""
        return self._dropped + self._unwritable

    def emit(self, record: logging.LogRecord) -> None:
        if self._kept_bytes - self._written_bytes > MAX_WAITING_BYTES:
            self._dropped += 1
            self._dropped_since_last_line += 1
            return
        if self._dropped_since_last_line:
            record.lines_dropped = self._dropped_since_last_line
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception:
            self.handleError(record)
            return
        self._dropped_since_last_line = 0
        self._kept_bytes += len(line)
        self._lines.append(line)
        if not self._has_lines.is_set():
            self._has_lines.set()

    def flush(self) -> None:
        """Wait until what was logged is written; not for long, as there may be no reader."""
        end_s = time.monotonic() + FLUSH_TIMEOUT_S
        while self._written_bytes != self._kept_bytes and time.monotonic() < end_s:
            time.sleep(GATHER_S / 4)

    def _write_forever(self) -> None:
        while True:
            self._has_lines.wait()
            self._has_lines.clear()
            while self._lines:
                piece = self._lines.popleft()
                while self._lines and len(piece) + len(self._lines[0]) <= ATOMIC_BYTES:
                    piece += self._lines.popleft()
                self._write(piece)
                self._written_bytes += len(piece)
            time.sleep(GATHER_S)

    def _write(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])  # a process that shares it has made it non-blocking
            except OSError:
                self._unwritable += piece.count(b"\n")
                return  # the reader is gone, or the disk is full: there is nowhere to report it


def dropped_lines() -> int:
    """How many lines of this process were dropped."""
    return sum(each.dropped for each in logging.getLogger().handlers if isinstance(each, NonBlockingHandler))


def configure(level: str) -> None:
    """Send everything to standard error, from `level` on."""
    handler = NonBlockingHandler(sys.stderr.fileno())
    handler.addFilter(RepeatFilter())
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each request has a line of our own; Tornado's other lines stay.
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: vars(record)[name] for name in FIELDS if vars(record).get(name) is not None}
