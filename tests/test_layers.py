"""The arrows of the architecture: who may import whom, and what has to be pure."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KNOWS = {
    "lockstep": {"ujson", "msgspec", "prometheus_client"},
    "handlers": {"lockstep", "tornado", "jwt", "cryptography"},
    "broker": {"lockstep", "redis", "hiredis"},
}
PURE = {"state", "engine", "modes", "validation", "messages", "errors", "frames", "access"}
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


def imported(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("package", KNOWS)
def test_a_package_imports_only_what_it_may_know(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 3
    for path in paths:
        unknown = {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names
        assert unknown <= KNOWS[package] | {package}, path.relative_to(ROOT)


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_should_be_pure_is_pure(name: str) -> None:
    path = ROOT / "lockstep" / f"{name}.py"
    assert not {module.partition(".")[0] for module in imported(path)} & IMPURE
    own = {module.split(".")[1] for module in imported(path) if module.startswith("lockstep.")}
    assert own <= PURE, "pure code calls only pure code"
    named = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not named & {"now", "utcnow", "today", "environ"}
