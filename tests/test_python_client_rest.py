"""The Python client by REST: the same of both of its forms, on a real server and on what is none."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from lockstep_client import AsyncLockstep, Lockstep, LockstepError, mint_token

from tests.support.api import body_of, ids, tag
from tests.support.processes import ServerProcess
from tests.support.python_clients import Either, either, http_answer, scripted
from tests.support.redis_server import Proxy
from tests.support.tokens import SECRET

pytestmark = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants tokens."""
    secret: Path = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET + "\n")
    server = ServerProcess("--log-level=warning", f"--jwt-secret-file={secret}")
    yield server
    server.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again at once."""
    monkeypatch.setattr("lockstep_client.exchange.backoff_ms", lambda attempt: 1)


@pytest.fixture(scope="module")
def crowd(rest_process: ServerProcess) -> Iterator[list[str]]:
    """More sessions than are listed at once, of which the first has a history longer than a page."""
    with Lockstep(rest_process.url) as lockstep:
        made = [lockstep.create_session({"sync_mode": "count_up"})["session_id"] for _ in range(101)]
        for number in range(300):
            lockstep.command(made[0], "annotate", {"metadata": {}, "data": {"x": f"{number:0900}"}})
        yield made
        for each in made:
            lockstep.delete(each)


async def created(lockstep: Either, *args: Any, **fields: Any) -> dict[str, Any]:
    state: dict[str, Any] = await lockstep.create_session(body_of(*args, **fields))
    return state


async def refused(coroutine: Any) -> LockstepError:
    with pytest.raises(LockstepError) as caught:
        await coroutine
    return caught.value


# --- what it does ----------------------------------------------------------------------------------------


async def test_a_session_lives_from_create_to_delete(kind: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url) as lockstep:
        state = await created(lockstep, metadata={"title": "Final"})
        session_id, (first, second) = state["session_id"], ids(state)
        assert (state["version"], state["status"]) == (1, "pending")
        started = await lockstep.command(session_id, "start", {"data": {"by": "hand"}})
        assert (started["version"], started["active_participant_id"]) == (2, first)
        switched = await lockstep.command(session_id, "switch", {"expected_participant_id": first})
        assert (switched["version"], switched["active_participant_id"]) == (3, second)
        paused = await lockstep.command(session_id, "pause")
        assert await lockstep.session(session_id) == paused
        history = await lockstep.events(session_id)
        assert [event["type"] for event in history] == ["created", "started", "switched", "paused"]
        assert history[1]["data"] == {"by": "hand"}
        assert [event["version"] for event in await lockstep.events(session_id, since=3)] == [4]
        assert session_id in [each["session_id"] async for each in _sessions(lockstep, "paused")]
        await lockstep.delete(session_id)
        await lockstep.delete(session_id)
        assert (await refused(lockstep.session(session_id))).code == "SESSION_NOT_FOUND"


async def _sessions(lockstep: Either, status: str) -> Any:
    for each in await lockstep.sessions(status):
        yield each


async def test_lists_and_histories_are_read_to_their_end(
    kind: str, crowd: list[str], rest_process: ServerProcess
) -> None:
    async with either(kind, rest_process.url) as lockstep:
        assert set(crowd) <= {each["session_id"] for each in await lockstep.sessions("pending")}
        history = await lockstep.events(crowd[0])
        assert [event["version"] for event in history] == list(range(1, 302))
        assert len({event["data"]["x"] for event in history[1:]}) == 300


async def test_messages_presence_and_time_are_told(kind: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url + "/") as lockstep:
        session_id = (await created(lockstep, presence=True))["session_id"]
        await lockstep.publish(session_id, {"type": "CHEER"})
        assert await lockstep.presence(session_id) == {"present": [], "anonymous": 0, "total": 0}
        await lockstep.disconnect(session_id, "anna")
        told = await lockstep.read_time()
        assert abs(told["timestamp_ms"] - time.time() * 1000) < 5_000


# --- what is refused -------------------------------------------------------------------------------------


async def test_errors_have_the_servers_code_and_details(kind: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url) as lockstep:
        session_id = (state := await created(lockstep))["session_id"]
        invalid = await refused(lockstep.create_session({"sync_mode": "sideways", "participants": []}))
        assert (invalid.code, invalid.status) == ("VALIDATION_ERROR", 400)
        assert [each["field"] for each in invalid.details] == ["sync_mode"]  # type: ignore[union-attr, index]
        early = await refused(lockstep.command(session_id, "switch"))
        assert early.code == "INVALID_STATE_TRANSITION"
        assert "not running" in str(early)
        exists = await refused(lockstep.create_session(body_of(session_id=session_id)))
        assert (exists.code, exists.status) == ("SESSION_EXISTS", 409)
        position = tag(state).strip('"')
        await lockstep.command(session_id, "start", if_match=position)
        late = await refused(lockstep.command(session_id, "switch", if_match=position))
        assert (late.code, late.status) == ("CONFLICT", 412)
        assert late.details["state"]["version"] == 2  # type: ignore[index, call-overload]
        gone = await refused(lockstep.events(session_id, epoch="0000000000000"))
        assert gone.code == "EVENTS_GONE"


@pytest.mark.parametrize(
    "session_id", ["", "..", "x/../y", "5e000000", "5e000000-0000-4000-8000-000000000000\n"]
)
async def test_what_is_no_id_is_refused(kind: str, session_id: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url) as lockstep:
        for call in (lockstep.session, lockstep.delete, lockstep.presence, lockstep.events):
            assert (await refused(call(session_id))).code == "VALIDATION_ERROR"


async def test_keys_that_no_header_can_have_are_refused(kind: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url) as lockstep:
        for key in ("", " ", "ü", "a\nb", "x" * 256):
            error = await refused(lockstep.create_session(body_of(), idempotency_key=key))
            assert error.code == "VALIDATION_ERROR"
        error = await refused(lockstep.delete(str(uuid4()), if_match='a"\r\nX: y'))
        assert error.code == "VALIDATION_ERROR"


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host", "http://", "/v1"])
async def test_what_is_no_address_is_refused(kind: str, url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        (Lockstep if kind == "sync" else AsyncLockstep)(url)


async def test_a_closed_client_says_so(kind: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url) as lockstep:
        await lockstep.read_time()
        await lockstep.close()
        assert (await refused(lockstep.read_time())).code == "CLOSED"


# --- tried again -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_a_change_whose_answer_is_lost_is_made_once(kind: str, rest_process: ServerProcess) -> None:
    async with Proxy(rest_process.port) as proxy, either(kind, f"http://127.0.0.1:{proxy.port}") as lockstep:
        lost = 0

        def lose(data: bytes) -> bytes | None:
            nonlocal lost
            lost += 1
            return None if lost % 2 else data

        proxy.on_reply = lose
        state = await created(lockstep, "count_up", 1)
        session_id = state["session_id"]
        assert (await lockstep.command(session_id, "start"))["version"] == 2
        for number in range(3, 8):
            assert (await lockstep.command(session_id, "switch"))["version"] == number
        assert (await lockstep.session(session_id))["lap_count"] == 5
        await lockstep.delete(session_id)
        assert lost >= 16


async def test_the_same_key_asked_again_changes_nothing(kind: str, rest_process: ServerProcess) -> None:
    async with either(kind, rest_process.url) as lockstep:
        body = body_of("count_up", 1)
        first = await lockstep.create_session(body, idempotency_key=(key := str(uuid4())))
        assert await lockstep.create_session(body, idempotency_key=key) == first
        other = await refused(lockstep.create_session(body_of("count_up", 1), idempotency_key=key))
        assert other.code == "IDEMPOTENCY_KEY_REUSED"


GOOD_TIME = http_answer(200, '{"timestamp_ms": 1, "server_version": "0", "drift_tolerance_ms": 50}')
BUSY = http_answer(503, '{"error": {"code": "SESSION_BUSY", "message": "busy", "retry_after_seconds": 1}}')
LIMITED = http_answer(
    429,
    '{"error": {"code": "RATE_LIMIT_EXCEEDED", "message": "slow down", "retry_after_seconds": 30}}',
    Retry_After="30",
)
HTML = http_answer(502, "<html>Bad gateway</html>", Content_Type="text/html")


@pytest.mark.usefixtures("quick")
async def test_it_comes_again_when_the_server_says(kind: str) -> None:
    answers = [BUSY, http_answer(429, "<p>slow down", Retry_After="0"), b"", GOOD_TIME]
    async with scripted(answers) as server, either(kind, server.url) as lockstep:
        began_s = time.monotonic()
        assert (await lockstep.read_time())["timestamp_ms"] == 1
        assert time.monotonic() - began_s >= 1
        assert len(server.heads) == 4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("wait", ["Infinity", "1e999", "NaN", "-1", '"soon"'])
async def test_a_wait_that_is_none_is_not_waited_for(kind: str, wait: str) -> None:
    busy = f'{{"error": {{"code": "SESSION_BUSY", "message": "busy", "retry_after_seconds": {wait}}}}}'
    answers = [http_answer(503, busy), GOOD_TIME]
    async with scripted(answers) as server, either(kind, server.url) as lockstep:
        assert (await lockstep.read_time())["timestamp_ms"] == 1
        assert len(server.heads) == 2


@pytest.mark.usefixtures("quick")
async def test_a_change_keeps_its_key_when_it_comes_again(kind: str) -> None:
    answers = [HTML, b"", http_answer(204, "")]
    async with scripted(answers) as server, either(kind, server.url) as lockstep:
        await lockstep.delete(str(uuid4()))
        await lockstep.delete(str(uuid4()))
        first, second, third, other = server.header("idempotency-key")
        assert first == second == third != other != ""


async def test_it_does_not_wait_longer_than_its_timeout(kind: str) -> None:
    async with scripted([LIMITED]) as server, either(kind, server.url, timeout_s=5) as lockstep:
        error = await refused(lockstep.read_time())
        assert (error.code, error.status, error.retry_after_ms) == ("RATE_LIMIT_EXCEEDED", 429, 30_000)
        assert len(server.heads) == 1


# --- what is no server of ours ---------------------------------------------------------------------------


async def test_a_server_that_is_away_is_unreachable(kind: str) -> None:
    async with scripted([b""]) as server:
        pass
    async with either(kind, server.url, timeout_s=0.5) as lockstep:
        assert (await refused(lockstep.read_time())).code == "UNREACHABLE"


async def test_a_server_that_says_nothing_is_asked_twice_and_given_up(kind: str) -> None:
    async with scripted([None]) as server, either(kind, server.url, timeout_s=1) as lockstep:
        assert (await refused(lockstep.read_time())).code == "UNREACHABLE"
        async with asyncio.timeout(10):
            while not server.heads:  # what it asked may be read only now
                await asyncio.sleep(0.01)
        assert len(server.heads) <= 3


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(200, "<html>Log in</html>", Content_Type="text/html"),
        http_answer(302, "", Location="/login"),
        http_answer(404, "<html>Not found</html>"),
        http_answer(400, "[]"),
        http_answer(400, '{"error": {"code": 7, "message": null}}'),
        http_answer(200, '{"data": []}'),
        http_answer(200, "[" * 100_000),
        http_answer(200, '{"data": {"session_id": "x"}}'),
        http_answer(204, ""),
        http_answer(200, "junk", Content_Encoding="gzip"),
    ],
)
async def test_a_page_is_an_invalid_answer_and_is_not_asked_for_again(kind: str, answer: bytes) -> None:
    async with scripted([answer]) as server, either(kind, server.url, timeout_s=3) as lockstep:
        error = await refused(lockstep.session(str(uuid4())))
        assert error.code == "INVALID_ANSWER"
        assert error.status is None or len(server.heads) == 1


@pytest.mark.parametrize(
    "answer", [HTML, b"\x00\xff" * 50, b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n{"]
)
async def test_junk_ends_with_a_typed_error(kind: str, answer: bytes) -> None:
    async with scripted([answer]) as server, either(kind, server.url, timeout_s=0.3) as lockstep:
        error = await refused(lockstep.session(str(uuid4())))
        assert error.code in ("UNREACHABLE", "INVALID_ANSWER")
        assert len(server.heads) < 20


async def test_pages_that_lead_nowhere_are_an_invalid_answer(kind: str) -> None:
    page = json.dumps({"data": {"sessions": [], "next_cursor": "1-x"}})
    async with scripted([http_answer(200, page)]) as server, either(kind, server.url) as lockstep:
        assert (await refused(lockstep.sessions())).code == "INVALID_ANSWER"
    page = json.dumps({"data": {"epoch": "0", "next_since": 5, "events": []}})
    async with scripted([http_answer(200, page)]) as server, either(kind, server.url) as lockstep:
        assert (await refused(lockstep.events(str(uuid4()), since=5))).code == "INVALID_ANSWER"


# --- tokens ----------------------------------------------------------------------------------------------


async def test_a_minted_token_allows_what_its_scope_says(kind: str, guarded: ServerProcess) -> None:
    async with either(kind, guarded.url, token=mint_token(SECRET, scope="admin")) as lockstep:
        state = await created(lockstep, "count_up", 1)
        session_id, player = state["session_id"], ids(state)[0]
        await lockstep.command(session_id, "start")
    token = mint_token(f"{SECRET}\n".encode(), session_ids=[session_id], scope="play", subject=player)
    async with either(kind, guarded.url, token=token) as lockstep:
        assert (await lockstep.command(session_id, "switch"))["version"] == 3
        assert (await refused(lockstep.command(session_id, "pause"))).code == "FORBIDDEN"
        assert (await refused(lockstep.session(str(uuid4())))).details["reason"] == "session"  # type: ignore[index, call-overload]
    async with either(kind, guarded.url) as lockstep:
        assert (await refused(lockstep.session(session_id))).code == "UNAUTHORIZED"


async def test_a_static_token_that_has_run_out_is_refused_at_once(kind: str, guarded: ServerProcess) -> None:
    async with either(kind, guarded.url, token=mint_token(SECRET, scope="admin", lifetime_s=-60)) as lockstep:
        error = await refused(lockstep.create_session(body_of()))
        assert (error.code, error.status) == ("UNAUTHORIZED", 401)
        assert error.details == {"reason": "expired"}


async def test_a_token_function_is_asked_when_it_is_time(kind: str, guarded: ServerProcess) -> None:
    asked = []

    def token() -> str:
        # The server takes the first for 5 s more. The second it refuses, and the third is asked for.
        asked.append(lifetime_s := [-1, -60, 600][len(asked)])
        return mint_token(SECRET, scope="admin", lifetime_s=lifetime_s)

    async with either(kind, guarded.url, token=token) as lockstep:
        await created(lockstep)
        assert asked == [-1]
        await created(lockstep)
        await created(lockstep)
        assert asked == [-1, -60, 600]


async def test_a_token_function_that_has_no_good_one_is_asked_twice(
    kind: str, guarded: ServerProcess
) -> None:
    asked = []

    def token() -> str:
        asked.append(1)
        return mint_token("another secret of more than 32 bytes", scope="admin")

    async with either(kind, guarded.url, token=token) as lockstep:
        assert (await refused(lockstep.create_session(body_of()))).code == "UNAUTHORIZED"
        assert len(asked) == 2


async def test_what_a_token_function_raises_is_raised(kind: str, guarded: ServerProcess) -> None:
    def token() -> str:
        raise LookupError("no vault")

    async with either(kind, guarded.url, token=token) as lockstep:
        with pytest.raises(LookupError, match="no vault"):
            await lockstep.read_time()
    for wrong in ("", "a b", "a\r\nX: y", None, 7):
        async with either(kind, guarded.url, token=lambda wrong=wrong: wrong) as lockstep:
            with pytest.raises(ValueError, match="JWT"):
                await lockstep.read_time()


async def test_what_is_no_token_is_refused(kind: str, guarded: ServerProcess) -> None:
    with pytest.raises(ValueError, match="JWT"):
        (Lockstep if kind == "sync" else AsyncLockstep)(guarded.url, token="a b")
    with pytest.raises(ValueError, match="32 bytes"):
        mint_token("short")
