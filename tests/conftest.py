"""Fixtures shared by all tests."""

import asyncio
import inspect
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.processes import ServerProcess
from tests.redis_server import RedisServer
from tests.ws_client import abort_all

TEST_TIMEOUT_S = 150


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Run `async def` tests each on a loop of its own (those of pytest-tornado bring theirs)."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function) or pyfuncitem.get_closest_marker("gen_test"):
        return None
    names = inspect.signature(function).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    asyncio.run(_run(function(**arguments)))
    return True


async def _run(test: Coroutine[Any, Any, None]) -> None:
    try:
        await asyncio.wait_for(test, TEST_TIMEOUT_S)
    finally:
        # What a test leaves open ends with it.
        abort_all()
        await asyncio.sleep(0)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis shared by the tests that keep to a prefix of their own and do it no harm."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def server_process() -> Iterator[ServerProcess]:
    """A server on the embedded broker, shared by the tests that leave it as it was."""
    server = ServerProcess("--log-level=warning")
    yield server
    server.stop()
