"""Fixtures shared by all tests."""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import ServerProcess


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Run `async def` tests each on a loop of its own (those of pytest-tornado bring theirs)."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function) or pyfuncitem.get_closest_marker("gen_test"):
        return None
    names = inspect.signature(function).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    asyncio.run(asyncio.wait_for(function(**arguments), 120))
    return True


@pytest.fixture(scope="session")
def server_process() -> Iterator[ServerProcess]:
    """A server on the embedded broker, shared by the tests that leave it as it was."""
    server = ServerProcess("--log-level=warning")
    yield server
    server.stop()
