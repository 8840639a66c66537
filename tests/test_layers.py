"""The arrows of the architecture: who may import whom, and what has to be pure."""

import ast
import configparser
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KNOWS = {
    "lockstep": {"ujson", "msgspec", "prometheus_client"},
    "handlers": {"lockstep", "tornado", "msgspec", "jwt", "cryptography"},
    "broker": {"lockstep", "redis", "hiredis"},
    "deploy": {"lockstep", "broker", "supervisor"},
}
PATHS = sorted(path for package in KNOWS for path in (ROOT / package).rglob("*.py"))
# The pure rooms, and pure files beside them: what each may import of ours.
PURE = {
    "lockstep.errors": set(),
    "lockstep.attendance": set(),
    "lockstep.rules": {"lockstep.errors", "lockstep.rules"},
    "lockstep.wire": {"lockstep.attendance", "lockstep.errors", "lockstep.rules", "lockstep.wire"},
    "lockstep.access": {"lockstep.errors", "lockstep.rules"},
    "lockstep.requests": {
        "lockstep",
        "lockstep.errors",
        "lockstep.rules",
        "lockstep.wire",
        "lockstep.access",
        "lockstep.commands",
        "lockstep.requests",
    },
    "lockstep.commands": {"lockstep.access", "lockstep.requests", "lockstep.rules", "lockstep.wire"},
}
# Clocks, chance, the system and its loop: what gives another answer tomorrow.
IMPURE = {
    "asyncio",
    "time",
    "random",
    "secrets",
    "uuid",
    "os",
    "io",
    "pathlib",
    "socket",
    "threading",
    "subprocess",
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports_of(path: Path) -> tuple[tuple[str, str], ...]:
    """Every import of the file, wherever in it, as (module, name); without a name as (module, "")."""
    return tuple(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)


MODULES = {module_of(path) for path in PATHS}


def imported_modules(path: Path) -> set[str]:
    """The modules that it imports: of `from lockstep.rules import engine` that is `lockstep.rules.engine`."""
    return {
        f"{module}.{name}" if f"{module}.{name}" in MODULES else module for module, name in imports_of(path)
    }


def room_of(module: str) -> str:
    """`lockstep.rules` of `lockstep.rules.engine`; a file beside the rooms stands for itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", KNOWS)
def test_a_package_imports_only_what_it_may_know(package: str) -> None:
    paths = [path for path in PATHS if path.is_relative_to(ROOT / package)]
    assert len(paths) > 3
    for path in paths:
        unknown = {module.partition(".")[0] for module in imported_modules(path)} - sys.stdlib_module_names
        assert unknown <= KNOWS[package] | {package}, path.relative_to(ROOT)


@pytest.mark.parametrize("room", PURE)
def test_what_should_be_pure_is_pure(room: str) -> None:
    paths = [path for path in PATHS if room_of(module_of(path)) == room]
    assert paths
    for path in paths:
        modules = imported_modules(path)
        assert not {module.partition(".")[0] for module in modules} & IMPURE, path
        ours = {room_of(module) for module in modules if module.partition(".")[0] in KNOWS}
        assert ours <= PURE[room], path
        tree = ast.parse(path.read_text())
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not named & {"now", "utcnow", "today", "environ"}, path


def test_what_is_installed_is_complete() -> None:
    """An editable install, as the tests have it, would not miss a package that setup.cfg forgets."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = set(setup["options"]["packages"].split())
    assert {module_of(path) for path in PATHS if path.name == "__init__.py"} - {"deploy"} <= packages
    modules = {path.stem for path in ROOT.glob("*.py")} - {"setup"}
    assert set(setup["options"]["py_modules"].split()) == modules


def test_no_file_imports_what_is_private_to_another() -> None:
    for path in PATHS:
        private = [
            f"{module}.{name}"
            for module, name in imports_of(path)
            if name.startswith("_") and not name.startswith("__") and module.partition(".")[0] in KNOWS
        ]
        assert not private, path


def test_no_test_is_imported_by_another_file() -> None:
    paths = [path for folder in ("tests", "bench", "docs") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 50
    for path in paths:
        if not re.search(r"\btests\b(?!\.support\b)", path.read_text()):
            continue  # parsed only where it may be: there are hundreds
        modules = {module for module, _ in imports_of(path) if module.partition(".")[0] == "tests"}
        elsewhere = {module for module in modules if not module.startswith("tests.support")}
        assert not elsewhere, f"{path.relative_to(ROOT)}: what several need is in tests/support/"


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {module_of(path): imported_modules(path) & MODULES for path in PATHS}
    while arrows:
        leaves = {module for module, targets in arrows.items() if not targets & arrows.keys() - {module}}
        assert leaves, f"in a circle, or behind one: {sorted(arrows)}"
        for module in leaves:
            del arrows[module]


def test_keys_and_channels_are_spelled_in_one_file() -> None:
    parts = (
        "session:",
        "events:",
        "idempotency:",
        "rl:",
        "inside:",
        "presence:",
        "presence-",
        "process:",
        "probe:",
        "ws:",
        "session-updates",
    )
    for path in (ROOT / "broker").rglob("*.py"):
        if path.name != "keys.py":
            constants = [
                node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
            ]
            assert not [text for text in constants if isinstance(text, str) and text.startswith(parts)], path
    for path in (ROOT / "broker" / "lua").glob("*.lua"):
        code = "".join(line.partition("--")[0] for line in path.read_text().splitlines())
        assert not [part for part in parts if part in code], path
