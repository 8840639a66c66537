"""Where a process listens: at addresses, all on one port, or at a Unix socket."""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tornado.netutil import bind_sockets

# As many as the kernel allows (net.core.somaxconn): at a Unix socket whose queue is full the next is refused.
LISTEN_BACKLOG = 65_535
# Who may connect is said by the rights of the socket's folder, as a proxy runs as a user of its own.
SOCKET_MODE = 0o666
LOCK_TIMEOUT_S = 2.0


class UnixListener(socket.socket):
    """Listens at a path, which it takes over from a process that is dead, and gives back when it is closed.

    It never takes the path of one that lives, nor what is no socket of this user.
    """

    def __init__(self, path: str) -> None:
        """Raises OSError, whose `strerror` says why the path is not to be had."""
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        self._place: tuple[int, int] | None = None
        try:
            with _only_one_in(os.path.dirname(path) or "."):
                _remove_if_dead(path)
                self.bind(path)
                self._place = _place_of(os.lstat(path))
                os.chmod(path, SOCKET_MODE)
                self.listen(LISTEN_BACKLOG)
        except BaseException:
            self.close()
            raise
        self.setblocking(False)

    def unlink(self) -> None:
        """Let nobody else connect; who has connected is in the queue.

        While this socket is open no other file can have its inode: that tells whether the path is still ours.
        """
        place, self._place = self._place, None
        if place is not None:
            with suppress(OSError):  # it is gone already, or its folder is another's now
                if _place_of(os.lstat(self._path)) == place:
                    os.unlink(self._path)

    def close(self) -> None:
        self.unlink()
        super().close()


def _place_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@contextmanager
def _only_one_in(folder: str) -> Iterator[None]:
    """Of several that start at once, each looks at what is there when the one before listens.

    Raises OSError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise OSError(errno.ENOENT, f"there is no folder {folder}") from None
    try:
        end_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    raise OSError(errno.EAGAIN, f"another process keeps a lock on {folder}") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _remove_if_dead(path: str) -> None:
    """Remove a socket of ours at which nobody listens any more. Raises OSError if something else is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "what is there is no socket; remove it, or choose another path")
    if found.st_uid != os.geteuid():
        raise OSError(errno.EEXIST, f"the socket there is another user's (uid {found.st_uid})")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue is an answer, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "taken, a process listens there")


def listen(addresses: Sequence[str], port: int, unix_socket: str = "") -> list[socket.socket]:
    """Sockets that listen: at a path if one is given, else all on one port.

    Raises OSError, and then none does.
    """
    if unix_socket:
        try:
            return [UnixListener(unix_socket)]
        except OSError as error:
            raise OSError(error.errno, f"cannot listen at {unix_socket}: {error.strerror}") from None
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            # One socket for each family: a shared one would show callers by IPv4 with addresses of IPv6.
            everywhere = None if address == "::" else address
            sockets += bind_sockets(port, everywhere, backlog=LISTEN_BACKLOG)
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for each in sockets:
            each.close()
        raise OSError(error.errno, f"cannot listen on {address}:{port}: {error.strerror or error}") from None
    return sockets


def url_of(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
