"""Every clock that runs out is told once, never early, whatever becomes of the process that saw it."""

import uuid
from collections.abc import Iterator

import pytest

from lockstep.rules.state_json import from_iso
from tests.support.expiries import p99_lateness_ms
from tests.support.load import chess, data, rest
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer

# 250 ms on an idle machine, see bench/expiry.py; this one may be busy.
P99_LATENESS_MS = 400


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.mark.long
@pytest.mark.parametrize("sessions", [200, 1000, 5000])
async def test_every_expiry_fires_once_and_none_early_though_a_process_is_killed(
    redis: RedisServer, sessions: int
) -> None:
    assert await p99_lateness_ms(redis, sessions) <= P99_LATENESS_MS


async def test_a_session_nobody_watches_is_settled_by_whoever_reads_it(redis: RedisServer) -> None:
    server = ServerProcess(f"--broker={redis.url}", "--log-level=warning")
    try:
        spec = chess(str(uuid.uuid4()), budget_ms=1000)
        data(await rest(f"{server.url}/v1/sessions", spec))
        started = data(await rest(f"{server.url}/v1/sessions/{spec['session_id']}/start"))
        while True:
            state = data(await rest(f"{server.url}/v1/sessions/{spec['session_id']}", method="GET"))
            if state["version"] > started["version"]:
                break
        assert from_iso(state["updated_at"]) == started["deadline_ms"], "dated when it was noticed"
    finally:
        server.stop()
