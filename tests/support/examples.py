"""Examples as people start them: `python -m examples.chess`."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import ROOT

READY = re.compile(r"is ready at (http://\S+)")


@contextmanager
def example(module: str, *options: str | Path) -> Iterator[str]:
    """An example, on a free port, and its Lockstep: the example's address. Both have to end, and well."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--port=0", *map(str, options)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = READY.search(process.stdout.readline())
        assert ready, "it did not start"
        [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield ready[1]
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
    assert code == 0
    assert not Path(f"/proc/{child}").exists(), "its Lockstep is still there"
