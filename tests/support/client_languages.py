"""What both clients calculate, called in either: the same functions with the same arguments."""

import json
import math
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockstep_client import backoff, changes, clocks
from lockstep_client.server_time import ServerTime

from tests.support.node import NODE

LANGUAGES = ("python", "javascript")
_CALLS = Path(__file__).with_name("client_calls.mjs")


class Always(float):
    """In place of a function without arguments: one that always gives this number. It comes last."""

    def __call__(self) -> float:
        return float(self)


TimeEvent = Sequence[Any]
"""`learn`, `stand`, `forget` or `look`; what the monotonic and the wall clock show then; what is learned."""


def shown_times(resolution_ms: float, events: Sequence[TimeEvent]) -> list[tuple[float, float | None]]:
    """(now, error) whenever somebody looks. No bound is None, as JSON has it; the server's error too."""
    at = events[0]
    time = ServerTime(lambda: float(at[1]), lambda: float(at[2]), resolution_ms)
    shown = []
    for at in events:
        if at[0] == "look":
            error_ms = time.error_ms
            shown.append((time.now_ms(), error_ms if math.isfinite(error_ms) else None))
        elif at[0] == "forget":
            time.forget()
        elif at[0] == "stand":
            time.stand(at[3])
        else:
            answer = [*at[3]]
            answer[4] = math.inf if answer[4] is None else answer[4]
            time.learn(*answer)
    return shown


class ClientFunctions:
    """The functions of a client, by their names in Python. What they give is as JSON has it.

    Options are a dict that comes last. `shown_times` is what a ServerTime shows.
    """

    _functions = {**vars(backoff), **vars(changes), **vars(clocks), "shown_times": shown_times}

    def __call__(self, name: str, *args: Any) -> Any:
        return self.batch([(name, *args)])[0]

    def batch(self, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [self._call(*call) for call in calls]

    def _call(self, name: str, *args: Any) -> Any:
        options = args[-1] if name == "format_clock" else {}
        result = self._functions[name](*args[:-1] if options is args[-1] else args, **options)
        return result._asdict() if hasattr(result, "_asdict") else result


class JavaScriptFunctions(ClientFunctions):
    """They run in a Node of their own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(NODE), str(_CALLS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self._process.communicate()

    def batch(self, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = []
        for name, *args in calls:
            constants = [args.pop()] if isinstance(args[-1], Always) else []
            told.append([_camel_case(name), args, constants])
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        results: list[Any] = json.loads(self._process.stdout.readline())
        return results


def _camel_case(name: str) -> str:
    return re.sub("_(.)", lambda found: found[1].upper(), name)


@contextmanager
def functions_of(language: str) -> Iterator[ClientFunctions]:
    if language == "python":
        yield ClientFunctions()
        return
    functions = JavaScriptFunctions()
    try:
        yield functions
    finally:
        functions.close()
