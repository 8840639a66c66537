"""Runs an example on this machine: Lockstep as a child process, the example's API and pages beside it."""

import argparse
import asyncio
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, StaticFileHandler

ROOT = Path(__file__).parent.parent
ADDRESS = "127.0.0.1"
# Where `npm run dev` shows a page that is being changed: vite's own port.
DEVELOPED_AT = "http://localhost:5173"
READY = re.compile(r"Lockstep is ready at (http://\S+)")


@dataclass(frozen=True)
class Setup:
    """What an example is started with."""

    lockstep_url: str
    secret: str
    """Signs tokens (HS256). Lockstep believes them, and the example alone can make them."""
    pages: Path
    """The folder with its index.html."""


MakeApplication = Callable[[Setup], AbstractAsyncContextManager[Application]]


class Pages(StaticFileHandler):
    """Files of a folder; a browser asks each time whether they have changed."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")


def run(name: str, application: MakeApplication, pages: Path, args: Sequence[str] | None = None) -> None:
    """Run an example until ctrl-C, SIGTERM or the end of its Lockstep, and end all that it started.

    It prints `<name> is ready at <address>`. Options that it does not know are settings of Lockstep.
    """
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000, help="of the example; 0 takes a free one")
    parser.add_argument("--pages", type=Path, default=pages, help="the folder with its index.html")
    parser.add_argument("--secret-file", type=Path, help="signs tokens; a new secret unless given")
    options, settings = parser.parse_known_args(args)
    try:
        sockets = bind_sockets(options.port, ADDRESS)
    except OSError as error:
        sys.exit(f"{name}: port {options.port}: {error.strerror}; another one: --port=8001")
    sys.exit(asyncio.run(_run(name, application, options, sockets, settings)))


async def _run(
    name: str,
    application: MakeApplication,
    options: argparse.Namespace,
    sockets: list[socket.socket],
    settings: Sequence[str],
) -> str | None:
    """Why it ended, if nobody asked for it."""
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    port = sockets[0].getsockname()[1]
    with TemporaryDirectory(prefix=f"{name}-") as folder:
        secret_file = options.secret_file or _new_secret(Path(folder))
        origins = f"http://{ADDRESS}:{port},http://localhost:{port},{DEVELOPED_AT}"
        async with _lockstep(
            f"--jwt-secret-file={secret_file.resolve()}", f"--origins={origins}", *settings
        ) as (url, ended):
            ended.add_done_callback(lambda _: over.set())
            async with application(Setup(url, secret_file.read_text().strip(), options.pages)) as app:
                server = HTTPServer(app)
                server.add_sockets(sockets)
                print(f"{name} is ready at http://{ADDRESS}:{port} (ctrl-C ends it)", flush=True)
                await over.wait()
                server.stop()
                await server.close_all_connections()
            return f"{name}: Lockstep ended by itself" if ended.done() else None


def _new_secret(folder: Path) -> Path:
    path = folder / "secret"
    path.touch(mode=0o600)
    path.write_text(secrets.token_urlsafe(48))
    return path


@asynccontextmanager
async def _lockstep(*settings: str) -> AsyncIterator[tuple[str, asyncio.Task[int]]]:
    """A server on a free port, with its sessions in memory: its URL, and when it has ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "server.py", "--port=0", "--log-level=warning", *settings),
        cwd=ROOT,
        # What the shell says of another Lockstep is not meant for this one.
        env={name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")},
        stdout=asyncio.subprocess.PIPE,
        # A ctrl-C is for this process alone, which then ends its child.
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        ready = READY.search((await process.stdout.readline()).decode())
        if ready is None:
            sys.exit("Lockstep did not start")
        yield ready[1], asyncio.create_task(process.wait())
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
