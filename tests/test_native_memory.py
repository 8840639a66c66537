"""The extension in C under tools that see each access to memory."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.long

SANITIZERS = "-fsanitize=address,undefined"
# Slow, closing and leaving clients, descriptors in use again, whatever is mixed; pings and pongs.
EXERCISES = (
    *("tests/test_fanout.py", "tests/test_audience.py", "tests/test_poller.py", "tests/test_heartbeat.py"),
    *("tests/test_websocket.py", "tests/test_twin.py"),
)
# What takes a minute at a fiftieth of the speed.
SOME = "again or middle or several_rooms or refuse or takes_nothing_else"
# Else Python hands out memory itself, and no tool learns when it is given back.
SEEN = {"PYTHONMALLOC": "malloc", "LOCKSTEP_TWIN": "0"}


def built(folder: Path, cflags: str, ldflags: str = "") -> Path:
    """A copy of the code with an extension of its own, compiled so."""
    left_out = shutil.ignore_patterns(".*", "*.so", "__pycache__", "node_modules", "build", "run")
    shutil.copytree(ROOT, folder, ignore=left_out)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env=os.environ | {"CFLAGS": cflags, "LDFLAGS": ldflags},
        check=True,
        capture_output=True,
    )
    assert list((folder / "handlers").glob("_native*.so")), "it was not compiled"
    return folder


def run_tests(folder: Path, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> None:
    command = [*before, sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    # The copy is found first.
    where = {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | SEEN | where | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def library(name: str) -> str:
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(found).is_absolute(), f"{name} is missing: it comes with gcc"
    return found


def test_no_address_is_used_that_is_not_ours(tmp_path: Path) -> None:
    folder = built(tmp_path / "copy", f"{SANITIZERS} -fno-sanitize-recover=all -g -O1", SANITIZERS)
    run_tests(
        folder,
        *EXERCISES,
        # Python itself leaks at its end; valgrind says whether we do.
        ASAN_OPTIONS="detect_leaks=0",
        LD_PRELOAD=f"{library('libasan.so')} {library('libubsan.so')}",
    )


def test_nothing_is_leaked_or_read_before_it_is_written(tmp_path: Path) -> None:
    folder = built(tmp_path / "copy", "-g -O1")
    report = tmp_path / "valgrind.xml"
    valgrind = ("valgrind", "--leak-check=full", "--xml=yes", f"--xml-file={report}")
    run_tests(folder, "tests/test_fanout.py", f"-k={SOME}", before=valgrind)
    # Python and other extensions have complaints of their own. What the types are made of lives to the end.
    ours = [
        ElementTree.tostring(error, encoding="unicode")
        for error in ElementTree.parse(report).iter("error")
        if any("/handlers/_native" in (path.text or "") for path in error.iter("obj"))
        and error.findtext("kind") not in ("Leak_StillReachable", "Leak_PossiblyLost")
    ]
    assert not ours, ours[0]
