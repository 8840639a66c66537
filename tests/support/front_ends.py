"""Front ends of the examples, built without installing anything."""

import shutil
import subprocess
from pathlib import Path

from tests.support.processes import ROOT

CLIENT = ROOT / "clients" / "js"


def built(sources: Path, folder: Path) -> Path:
    """Build a copy of a front end in `folder`, with vite as its package.json says: where its index.html is.

    Its packages are those that clients/js has installed, and lockstep-client is the one of this tree.
    """
    project = folder / "project"
    shutil.copytree(sources, project, ignore=shutil.ignore_patterns("node_modules", "dist"))
    modules = project / "node_modules"
    modules.mkdir()
    for package in (CLIENT / "node_modules").iterdir():
        (modules / package.name).symlink_to(package.resolve())
    (modules / "lockstep-client").symlink_to(CLIENT)
    build = subprocess.run(
        ["npm", "run", "build"], cwd=project, capture_output=True, text=True, timeout=120, check=False
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return project / "dist"
