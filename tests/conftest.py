"""Fixtures shared by all tests."""

import asyncio
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

# Hundreds of processes are started, each of which would compile all of its modules anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Without it a bare assert in there says nothing of the values it compared.
pytest.register_assert_rewrite("tests.support")

from tests.support.api import Api  # noqa: E402
from tests.support.browser import chromium  # noqa: E402
from tests.support.processes import ServerProcess  # noqa: E402
from tests.support.profiles import Profiles  # noqa: E402
from tests.support.redis_cluster import RedisCluster  # noqa: E402
from tests.support.redis_server import RedisServer  # noqa: E402
from tests.support.tabs import NodeTab, in_node  # noqa: E402
from tests.support.tokens import SECRET  # noqa: E402
from tests.support.ws_client import abort_all  # noqa: E402

TEST_TIMEOUT_S = 150


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Read the files. What that leaves stays, and no collection of garbage looks at it, then or later.

    Each worker reads a share of the files before all of them: each file is compiled by one worker.
    """
    gc.disable()
    worker = getattr(session.config, "workerinput", None)
    if worker is not None:
        files = sorted(file for folder in session.config.args for file in Path(folder).glob("test_*.py"))
        for file in files[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
            with suppress(Exception):  # it is told when all are collected
                importlib.import_module(f"tests.{file.stem}")
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module alone: playwright's loop and those of `async def` tests do not run at once."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def profiles(browser: Browser, server_process: ServerProcess) -> Profiles:
    return Profiles(browser, f"{server_process.url}/health")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis shared by the tests that keep to a prefix of their own and do it no harm."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """A Redis Cluster shared in the same way; no replica takes over because the machine is busy."""
    cluster = RedisCluster(node_timeout_ms=15_000)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def server_process() -> Iterator[ServerProcess]:
    """A server on the embedded broker, shared by the tests that leave it as it was."""
    server = ServerProcess("--log-level=warning")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rest_process() -> Iterator[ServerProcess]:
    """A server on the embedded broker, shared by the tests that leave sessions behind in it."""
    server = ServerProcess("--log-level=info")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def guarded_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the embedded broker that wants tokens, shared by the tests that leave it as it was."""
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    server = ServerProcess(f"--jwt-secret-file={secret}", "--log-level=warning")
    yield server
    server.stop()


@pytest.fixture
def node(server_process: ServerProcess) -> Iterator[NodeTab]:
    """Where clients/js runs, at the server that is shared."""
    with in_node(server_process.url) as tab:
        yield tab


@pytest.fixture
def guarded_node(guarded_process: ServerProcess) -> Iterator[NodeTab]:
    with in_node(guarded_process.url) as tab:
        yield tab


@pytest.fixture
def api(rest_process: ServerProcess) -> Api:
    return Api(rest_process.url)
