"""requirements.lock: what a deployment installs, to the version and the byte."""

import re
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def wanted() -> list[Requirement]:
    """What the server and its deployment need, as setup.cfg says."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = "\n".join((config["options"]["install_requires"], extras["fast"], extras["deploy"])).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Each library with its hashes, by its name."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    libraries = {}
    for entry in entries:
        head, *hashes = entry.replace("\\\n", "\n").split("\n")
        requirement = Requirement(head)
        libraries[canonicalize_name(requirement.name)] = requirement, [line.strip() for line in hashes]
    return libraries


def test_each_library_is_locked_in_a_version_that_is_allowed() -> None:
    lock = locked()
    for requirement in wanted():
        (pin,) = lock[canonicalize_name(requirement.name)][0].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_each_locked_file_is_known_by_its_hash() -> None:
    for name, (_, hashes) in locked().items():
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), name


def test_what_is_tested_is_what_is_locked() -> None:
    for name, (requirement, _) in locked().items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(name)), name
