"""What a stack is made of: the options of `up`, and the settings that its processes read."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lockstep.config import Settings, read_settings
from lockstep.setting import SettingsError

ROOT = Path(__file__).resolve().parent.parent
# supervisord.conf gives each process a Unix socket to listen at, whatever else is set. It also tells each
# which proxies to trust: here the setting trusted_proxies is for nginx, which passes on the caller's address.
OWN_FLAGS = ("--unix-socket=run/lockstep-1.sock",)
# supervisord kills a process this long after drain_s, so that only one that hangs is killed.
STOP_MARGIN_S = 5


class Failure(Exception):
    """One line that says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Stack:
    """What `up` was told."""

    run: str
    listen: str = "127.0.0.1:8080"
    processes: int = 4
    metrics_port: int = 8001
    hash_by_session: bool = False
    connections: int = 4000
    certificate: str = ""
    key: str = ""
    cluster: bool = False
    cluster_port: int = 7001
    # Of the settings: all processes must share one Redis, and supervisord must know how long a stop may take.
    redis_url: str = ""
    drain_s: float = 10.0

    @property
    def folder(self) -> Path:
        return Path(self.run)

    @property
    def names(self) -> list[str]:
        """Of the processes, at supervisord."""
        return [f"lockstep-{n}" for n in range(1, self.processes + 1)]

    def socket_of(self, name: str) -> Path:
        """Where this process listens, as supervisord.conf has it."""
        return self.folder / f"{name}.sock"

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.listen}"

    @property
    def descriptors(self) -> int:
        """The open files that nginx needs: two for each client, and all clients may be with one worker."""
        return 2 * self.connections + 512

    @property
    def stop_timeout_s(self) -> int:
        return math.ceil(self.drain_s) + STOP_MARGIN_S


def settings_of(environ: Mapping[str, str]) -> Settings:
    """The settings that the processes read from this environment. Raises Failure."""
    try:
        return read_settings(OWN_FLAGS, environ)
    except SettingsError as error:
        raise Failure(str(error)) from None


def redis_url_of(settings: Settings) -> str:
    """The Redis that is named; empty for one of the stack's own, since several processes share no memory."""
    return "" if settings.broker == Settings().broker else settings.broker


def find_program(name: str) -> str:
    """Its path, also in /usr/sbin, which is not on everybody's PATH. Raises Failure."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        # Debian's packages have the same names.
        raise Failure(f"{name} is missing: install it (on Debian: apt-get install {name})")
    return path
