"""A Redis under a clock that the test sets ahead and back."""

import functools
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer


@functools.cache
def shim(name: str) -> Path:
    """What is put before a program's own library, compiled once for all tests of this process."""
    if shutil.which("gcc") is None:
        pytest.fail("gcc is missing: install Debian's package gcc", pytrace=False)
    library = Path(tempfile.mkdtemp(prefix="lockstep-shim-")) / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


class ShiftedClock:
    """The wall clock of a program with this `env`: the machine's, plus what `shift` said last.

    Its monotonic clock stays as it is.
    """

    def __init__(self, by_s: float = 0.0) -> None:
        descriptor, name = tempfile.mkstemp(prefix="lockstep-shift-")
        os.close(descriptor)
        self._file = Path(name)
        self._file.write_bytes(struct.pack("q", round(by_s * 1_000_000)))
        self.env = {"LD_PRELOAD": str(shim("shifted_time")), "SHIFT_FILE": name}

    def shift(self, by_s: float) -> None:
        """From now on it differs from the machine's by so much."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", round(by_s * 1_000_000)))

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


class ShiftedRedis(RedisServer):
    """A Redis that goes by a clock of its own."""

    def __init__(self, *options: str) -> None:
        self._clock = ShiftedClock()
        self.shift = self._clock.shift
        super().__init__(*options, env=self._clock.env)

    def now_ms(self) -> int:
        with self.client as client:
            seconds, microseconds = client.time()
        return seconds * 1000 + microseconds // 1000

    def close(self) -> None:
        super().close()
        self._clock.close()
