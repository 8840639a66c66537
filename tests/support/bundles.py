"""JavaScript for a page, bundled by esbuild with the client as it is."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

JS_CLIENT = ROOT / "clients" / "js"
NODE_MODULES = JS_CLIENT / "node_modules"


def node_environment() -> dict[str, str]:
    """With Node, which stands beside Python, and its packages for what is not below clients/js."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "NODE_PATH": str(NODE_MODULES)}


def bundle(entry: Path, *options: str) -> str:
    """One script that a page can run, with React as it is while one develops, which complains of more."""
    command = [
        *(str(NODE_MODULES / ".bin" / "esbuild"), str(entry)),
        *("--bundle", "--format=iife", "--jsx=automatic", "--log-level=warning"),
        *options,
    ]
    done = subprocess.run(command, env=node_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
