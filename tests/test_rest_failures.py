"""REST when the broker fails, or the server does."""

import asyncio
import logging

import pytest

from broker.memory import MemoryBroker
from lockstep.contract import Commit, Outcome
from lockstep.errors import BrokerUnavailable
from tests.support.api import body_of, error_of, serving


class Failing(MemoryBroker):
    """Does what it is told to at each commit, and is fine before that."""

    failure: Exception | Outcome | None = None
    reasons: list[str] = []
    parts: list[str] = []

    async def commit(self, commit: Commit) -> Outcome:
        await asyncio.sleep(0.001)
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure or await super().commit(commit)

    def not_ready(self) -> list[str]:
        return self.reasons

    def not_served(self) -> list[str]:
        return self.parts


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    broker = Failing()
    monkeypatch.setattr("server.open_broker", lambda *_: broker)
    return broker


@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
async def test_a_broker_that_is_away_is_503_and_says_what_became_of_it(
    failing: Failing, outcome: str
) -> None:
    async with serving() as api:
        session = await api.running()
        failing.failure = BrokerUnavailable(outcome)
        for answer in (
            await api.command(session["session_id"], "switch"),
            await api("POST", "/v1/sessions", body_of()),
        ):
            error = error_of(answer, 503, "BROKER_UNAVAILABLE")
            assert error["details"] == {"outcome": outcome}
            assert int(answer.headers["retry-after"]) == error["retry_after_seconds"] >= 1
        assert (await api("GET", "/health")).status == 200


async def test_a_session_that_others_keep_changing_is_busy(failing: Failing) -> None:
    async with serving() as api:
        session = await api.running()
        failing.failure = Outcome.CONFLICT
        answer = await api.command(session["session_id"], "switch")
        error = error_of(answer, 503, "SESSION_BUSY")
        assert int(answer.headers["retry-after"]) == error["retry_after_seconds"] >= 1
        failing.failure = None
        assert await api.read(session["session_id"]) == session


async def test_a_bug_is_logged_once_and_shown_as_an_internal_error(
    failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as api:
        session = await api.running()
        failing.failure = RuntimeError("the cause")
        answer = await api.command(session["session_id"], "switch", X_Request_ID="the-request")
        assert "the cause" not in answer.raw.decode()
        assert set(error_of(answer, 500, "INTERNAL_ERROR")) == {"code", "message"}
        failing.failure = None
        assert await api.read(session["session_id"]) == session
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert record.exc_info is not None
    assert vars(record)["request_id"] == "the-request"


async def test_a_stored_state_that_cannot_be_read_is_told(failing: Failing) -> None:
    async with serving() as api:
        session_id = (await api.running())["session_id"]
        failing.load = lambda ids: asyncio.sleep(0, [b"garbage" for _ in ids])  # type: ignore[method-assign]
        error_of(await api("GET", f"/v1/sessions/{session_id}"), 500, "STATE_CORRUPT")
        error_of(await api.command(session_id, "switch"), 500, "STATE_CORRUPT")


async def test_a_process_that_is_not_ready_says_why(failing: Failing) -> None:
    async with serving() as api:
        assert (await api("GET", "/ready")).body == {"status": "ready"}
        failing.reasons = ["the store is away"]
        answer = await api("GET", "/ready")
        assert answer.status == 503
        assert answer.body == {"status": "not_ready", "reasons": ["the store is away"]}
        assert (await api("GET", "/health")).body == {"status": "ok"}


async def test_a_process_without_a_part_of_its_store_is_ready_and_names_the_part(failing: Failing) -> None:
    async with serving() as api:
        failing.parts = ["partitions 0, 3: Redis is away"]
        answer = await api("GET", "/ready")
        assert answer.status == 200
        assert answer.body == {"status": "ready", "not_served": ["partitions 0, 3: Redis is away"]}
