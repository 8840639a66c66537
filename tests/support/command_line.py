"""`server.py` with arguments, for what ends by itself: without a process of its own."""

import contextlib
import io
import os
import subprocess
import sys
from unittest.mock import patch

import server


def lockstep(*args: str) -> "subprocess.CompletedProcess[str]":
    """What `server.py` with these arguments prints and how it ends, in an empty environment."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch.dict(os.environ, clear=True):
        try:
            server.main(args)
        except SystemExit as end:
            if isinstance(end.code, str):  # as Python does it
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())
