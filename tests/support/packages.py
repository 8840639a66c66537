"""clients/js as people get it: packed, installed into an empty folder, built into a page of theirs."""

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.bundles import JS_CLIENT, NODE_MODULES, node_environment

NPM_TIMEOUT_S = 120


def run(folder: Path, *command: str) -> str:
    """What a program of npm or Node says, which must succeed."""
    environment = node_environment()
    environment.pop("NODE_PATH")  # nothing may be found that was not installed
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=NPM_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pack(to: Path) -> Path:
    """The tarball of `npm pack`, made of a copy: its types are generated there."""
    source = to / "client"
    shutil.copytree(JS_CLIENT, source, ignore=shutil.ignore_patterns("node_modules", "types"))
    (source / "node_modules").symlink_to(NODE_MODULES.resolve())
    # What prepack says comes before the name.
    *_, name = run(source, "npm", "pack", "--silent", f"--pack-destination={to}").split()
    return to / name


def locked(*packages: str) -> dict[str, str]:
    """The versions that clients/js is developed with, which npm has in its cache."""
    lock = json.loads((JS_CLIENT / "package-lock.json").read_text())
    return {name: lock["packages"][f"node_modules/{name}"]["version"] for name in packages}


def install(project: Path, tarball: Path, *packages: str) -> None:
    """Into a folder that has nothing but its sources."""
    manifest: dict[str, Any] = {"private": True, "type": "module"}
    manifest["dependencies"] = {"lockstep-client": f"file:{tarball}"} | locked(*packages)
    (project / "package.json").write_text(json.dumps(manifest))
    run(project, "npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error")


class Site:
    """A folder of files at an address of its own, as of an application's back end, and tokens at /token."""

    def __init__(self, folder: Path, mint: Callable[[float], str]) -> None:
        """`mint`: a token that lasts for so many seconds; how many were given is `minted`."""
        self.minted = 0
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if url.path != "/token":
                    return super().do_GET()
                site.minted += 1
                body = mint(float(parse_qs(url.query)["ttl_s"][0])).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
