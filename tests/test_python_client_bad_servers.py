"""The Python client and servers that break the contract, are something else, or end connections."""

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from lockstep_client import AsyncLockstep, LockstepError
from lockstep_client import conversation as conversations

from tests.support.followed import Followed, following
from tests.support.python_clients import http_answer, scripted
from tests.support.scripted_socket import WELCOME, Peer, SocketScript, position_of, scripted_socket


@pytest.fixture(autouse=True)
def _no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No task of which nobody knows how it ended, and nothing else that asyncio complains about."""
    yield
    gc.collect()
    assert not [each.getMessage() for each in caplog.records if each.name == "asyncio"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lost connections are replaced at once. The attempts that were waited for."""
    attempts: list[int] = []

    def backoff_ms(attempt: int) -> float:
        attempts.append(attempt)
        return 1

    monkeypatch.setattr("lockstep_client.line.backoff_ms", backoff_ms)
    monkeypatch.setattr("lockstep_client.carried.backoff_ms", backoff_ms)
    monkeypatch.setattr("lockstep_client.pending_commands.backoff_ms", backoff_ms)
    return attempts


ID = "5e000000-0000-4000-8000-000000000001"


def state_at(version: int, **fields: Any) -> dict[str, Any]:
    state = {"session_id": ID, "epoch": "0000000000000", "version": version, "commit": f"c{version:07}"}
    return state | {"participants": []} | fields


def update(version: int, **fields: Any) -> dict[str, Any]:
    """From the version before."""
    after = state_at(version)
    message = {
        "type": "UPDATE",
        "sessionId": ID,
        "timestamp": version,
        "from": position_of(state_at(version - 1)),
        "position": position_of(after),
        "changes": {"version": version, "commit": after["commit"]},
        "events": [{"version": version, "type": "switched", "at": "x"}],
    }
    return message | fields


async def forever(peer: Peer) -> None:
    await peer.socket.wait_closed()


@contextlib.asynccontextmanager
async def scripted_following(
    script: Callable[[Peer], Awaitable[None]],
) -> AsyncIterator[tuple[SocketScript, Followed]]:
    async with (
        scripted_socket(script) as server,
        AsyncLockstep(server.url) as lockstep,
        following(lockstep, ID) as followed,
    ):
        yield server, followed


# --- what no server should say ---------------------------------------------------------------------------

NO_STATE = {"type": "SNAPSHOT", "sessionId": ID, "timestamp": 1, "position": "p", "reason": "repair"}
JUNK: list[Any] = [
    "junk",
    b"\x00",
    "[]",
    "{}",
    "[" * 100_000,
    '{"type": 7}',
    "NaN",
    WELCOME,
    NO_STATE,
    NO_STATE | {"state": []},
    NO_STATE | {"state": {}, "position": 7},
    update(2, changes=[]),
    update(2, changes={"participants": [7]}),
    update(2, changes={"participants": [{"removed": True}]}),
    update(2, events=None),
    update(2, **{"from": None}),
    update(2, position=None),
    update(2, timestamp="soon"),
    update(2, timestamp=float("inf")),
    update(2, timestamp=10**400),
    {"type": "SUBSCRIBED", "id": 1, "sessionId": ID, "timestamp": 1},
    {"type": "SUBSCRIBED", "id": 1, "sessionId": ID, "timestamp": 1, "updates": [7]},
    {"type": "RESULT", "id": 1},
    {"type": "ERROR"},
    {"type": "PONG", "id": 1, "receivedAt": None, "timestamp": 1, "errorMs": 0},
    {"type": "PONG", "id": 1, "receivedAt": float("inf"), "timestamp": float("inf"), "errorMs": 0},
    {"type": "GOING_AWAY"},
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda each: str(each)[:40])
async def test_after_junk_the_state_is_asked_for_anew(junk: Any, quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        request = await peer.subscribed(state_at(peer.number))
        # In full: what the junk was to say may be missing.
        assert "position" not in request
        if peer.number < 3:
            await peer.say(junk)
        await forever(peer)

    async with scripted_following(script) as (server, followed):
        assert (await followed.count(3)).state == state_at(3)
        assert server.connections == 3
        assert quick == [0, 1]


async def test_a_state_that_is_none_does_not_stay(quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        if peer.number == 1:
            await peer.subscribed({"epoch": "0000000000000", "version": 1, "commit": "c0000001"})
            await peer.say(update(2, changes={"participants": [{"participant_id": "x"}]}))
        else:
            assert "position" not in await peer.subscribed(state_at(7))
        await forever(peer)

    async with scripted_following(script) as (_, followed):
        assert (await followed.until_version(7)).state == state_at(7)


@pytest.mark.parametrize(
    "first", ["junk", {"type": "PONG", "receivedAt": 1, "timestamp": 1}, {"type": "HELLO"}]
)
async def test_what_does_not_begin_with_welcome_is_left_and_tried_again(first: Any, quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        if peer.number < 4:
            await peer.say(first)
        else:
            await peer.say(WELCOME)
            await peer.subscribed(None)
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        assert (await anext(lockstep.follow(ID))).reason == "missing"
        assert quick == [0, 1, 2]


async def test_a_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch, quick: list[int]) -> None:
    monkeypatch.setattr(conversations, "CONNECT_WITHIN_S", 0.5)

    async def script(peer: Peer) -> None:
        if peer.number > 1:
            await peer.say(WELCOME)
            await peer.subscribed(None)
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        assert (await anext(lockstep.follow(ID))).reason == "missing"
        assert server.connections >= 2  # more where the machine is slow


async def test_junk_without_end_is_no_loop_without_end() -> None:
    async def script(peer: Peer) -> None:
        await peer.say("junk")

    async with scripted_socket(script) as server, AsyncLockstep(server.url, timeout_s=3) as lockstep:
        with pytest.raises(LockstepError) as caught:
            await lockstep.send_command(ID, "start")
        assert caught.value.code == "UNREACHABLE"
        assert "the server sent" in str(caught.value)
        assert server.connections < 20


async def test_messages_and_types_of_later_servers_are_passed_over(quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME | {"more": 1})
        await peer.say({"type": "NEWS", "x": 1})
        await peer.subscribed(state_at(1))
        await peer.say({"type": "MESSAGE", "sessionId": ID, "timestamp": 1, "message": {}})
        await peer.say({"type": "PRESENCE", "sessionId": ID, "timestamp": 1, "total": 1})
        await peer.say(
            update(2, sessionId=str(uuid4())), {"type": "PONG", "id": "x", "receivedAt": 1, "timestamp": 1}
        )
        await peer.say({"type": "ERROR", "code": "INVALID_MESSAGE", "message": "what?"})
        await peer.say(
            {"type": "SNAPSHOT", "sessionId": ID, "timestamp": 1, "position": "p", "reason": "new"}
            | {"state": {}}
        )
        await forever(peer)

    async with scripted_following(script) as (_, followed):
        assert ((await followed.count(2)).reason, followed.last.state) == ("repair", {})
        assert quick == []


# --- what does not fit -----------------------------------------------------------------------------------


async def test_an_update_that_does_not_fit_is_not_applied_and_the_state_is_asked_for() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        await peer.subscribed(state_at(1))
        await peer.say(update(3), update(4), update(5))
        request = await peer.hear("SYNC")
        await peer.say(update(6))
        snapshot = {
            "type": "SNAPSHOT",
            "id": request["id"],
            "sessionId": ID,
            "timestamp": 1,
            "reason": "requested",
        }
        await peer.say(snapshot | {"position": position_of(state_at(6)), "state": state_at(6)})
        await peer.say(update(7))
        await forever(peer)

    async with scripted_following(script) as (server, followed):
        await followed.until_version(7)
        assert [each.state and each.state["version"] for each in followed.updates] == [1, 6, 7]
        assert [each.sync for each in followed.updates] == [True, True, False]
        assert server.connections == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [("SESSION_NOT_FOUND", "missing"), ("NOT_SUBSCRIBED", None), ("BROKER_UNAVAILABLE", None)],
)
async def test_a_sync_that_is_refused_is_asked_again(code: str, reason: str | None, quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        await peer.subscribed(state_at(1))
        await peer.say(update(3))
        request = await peer.hear("SYNC")
        await peer.say({"type": "ERROR", "id": request["id"], "sessionId": ID, "code": code, "message": "no"})
        if code == "NOT_SUBSCRIBED":
            await peer.subscribed(state_at(3))
        elif code == "BROKER_UNAVAILABLE":
            request = await peer.hear("SYNC")
            snapshot = {"type": "SNAPSHOT", "id": request["id"], "sessionId": ID, "timestamp": 1}
            await peer.say(snapshot | {"position": "p", "reason": "requested", "state": state_at(3)})
        await forever(peer)

    async with scripted_following(script) as (_, followed):
        last = await followed.count(2)
        assert last.reason == (reason or "requested")
        assert last.state == (None if reason else state_at(3))


async def test_updates_that_nobody_asked_for_are_not_believed() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        request = await peer.hear("SUBSCRIBE")
        answer = {
            "type": "SUBSCRIBED",
            "id": request["id"],
            "sessionId": ID,
            "timestamp": 1,
            "updates": [update(2)],
        }
        await peer.say(update(2), answer)
        request = await peer.hear("SYNC")
        await peer.say({"type": "ERROR", "id": request["id"], "code": "SESSION_NOT_FOUND", "message": "no"})
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        assert (await anext(lockstep.follow(ID))).state is None


async def test_a_subscribe_that_cannot_be_answered_now_is_sent_again(quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        for code in ("BROKER_UNAVAILABLE", "SESSION_FULL", "INTERNAL_ERROR", "STATE_CORRUPT"):
            request = await peer.hear("SUBSCRIBE")
            error = {"type": "ERROR", "id": request["id"], "code": code, "message": "no", "retryAfterMs": 1}
            await peer.say(error)
        await peer.subscribed(state_at(1))
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        assert (await anext(lockstep.follow(ID))).state == state_at(1)
        assert quick == [0, 1, 2, 3]


# --- subscriptions ---------------------------------------------------------------------------------------


async def test_who_follow_one_session_share_a_subscription_that_the_last_one_ends() -> None:
    was_left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        await peer.subscribed(state_at(1))
        request = await peer.hear("UNSUBSCRIBE")
        await peer.say(update(2))
        await peer.say({"type": "UNSUBSCRIBED", "id": request["id"], "sessionId": ID})
        await peer.subscribed(state_at(3))
        request = await peer.hear("UNSUBSCRIBE")
        await peer.say({"type": "UNSUBSCRIBED", "id": request["id"], "sessionId": ID})
        await peer.subscribed(state_at(4))
        await peer.hear("UNSUBSCRIBE")
        was_left.set()
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        async with following(lockstep, ID) as one:
            await one.count(1)
            async with following(lockstep, ID) as other:
                await other.count(1)
            assert one.last.state == state_at(1)
        # By leaving the loop,
        async with contextlib.aclosing(lockstep.follow(ID)) as updates:
            async for each in updates:
                assert each.state == state_at(3)
                break
        # and by forgetting the iterator.
        async for each in lockstep.follow(ID):
            assert each.state == state_at(4)
            break
        await asyncio.wait_for(was_left.wait(), 10)
        assert server.connections == 1


async def test_who_leaves_before_anything_came_leaves_nothing() -> None:
    heard: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        request = await peer.hear("SUBSCRIBE")
        heard.append(request)
        request = await peer.hear("UNSUBSCRIBE")
        heard.append(request)
        await peer.say({"type": "ERROR", "id": request["id"], "code": "NOT_SUBSCRIBED", "message": "no"})
        await peer.subscribed(None)
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        async with following(lockstep, ID):
            while not heard:
                await asyncio.sleep(0.01)
        assert (await anext(lockstep.follow(ID))).state is None
        assert [each["type"] for each in heard] == ["SUBSCRIBE", "UNSUBSCRIBE"]


async def test_a_subscription_that_the_token_no_longer_allows_ends() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        await peer.subscribed(state_at(1))
        await peer.say(
            {"type": "UNSUBSCRIBED", "sessionId": ID, "code": "FORBIDDEN", "message": "not for this"}
        )
        await forever(peer)

    async with scripted_following(script) as (_, followed):
        error = await followed.fails()
        assert str(error) == "FORBIDDEN: not for this"
        assert followed.updates[0].state == state_at(1)


# --- ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 4001, 4003])
async def test_after_these_close_codes_it_comes_back(code: int, quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        request = await peer.subscribed(state_at(1))
        assert request.get("position") == (None if peer.number == 1 else position_of(state_at(1)))
        if peer.number == 1 and code == 1006:
            peer.socket.transport.abort()
        elif peer.number == 1:
            await peer.socket.close(code)
        else:
            await peer.say(update(2))
        await forever(peer)

    async with scripted_following(script) as (_, followed):
        await followed.until_version(2)
        # The state that came again was known already.
        assert len(followed.updates) == 2


@pytest.mark.parametrize(
    ("code", "expected"), [(1008, "REFUSED"), (4500, "REFUSED"), (4501, "UNAUTHORIZED"), (4503, "FORBIDDEN")]
)
async def test_after_these_close_codes_it_does_not_come_back(code: int, expected: str) -> None:
    async def script(peer: Peer) -> None:
        if peer.number == 1:
            await peer.say(WELCOME)
            await peer.hear("SUBSCRIBE")
        await peer.socket.close(code, "go away")

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        with pytest.raises(LockstepError, match="go away") as caught:
            await anext(lockstep.follow(ID))
        assert caught.value.code == expected
        assert server.connections == 1
        # Who asks once more is not told what was so before.
        with pytest.raises(LockstepError):
            await lockstep.send_command(ID, "start")
        assert server.connections == 2


async def test_a_server_that_goes_away_says_when_to_come_back(quick: list[int]) -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        await peer.subscribed(state_at(peer.number))
        if peer.number < 4:
            await peer.say({"type": "GOING_AWAY", "reconnectAfterMs": 50})
            await peer.socket.close(1001)
        await forever(peer)

    async with scripted_following(script) as (_, followed):
        began_s = asyncio.get_running_loop().time()
        await followed.until_version(4)
        assert asyncio.get_running_loop().time() - began_s >= 0.15
        assert set(quick) <= {0}


@pytest.mark.parametrize("delay_ms", [0, -1, 10**12])
async def test_a_server_that_only_sends_away_is_not_asked_again_and_again(
    delay_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep_client.line.MAX_WAIT_MS", 20)
    waits: list[int] = []
    gives_up = asyncio.Event()

    def backoff_ms(attempt: int) -> float:
        waits.append(attempt)
        if len(waits) == 3:
            gives_up.set()
        return 1

    monkeypatch.setattr("lockstep_client.line.backoff_ms", backoff_ms)

    async def script(peer: Peer) -> None:
        await peer.say(WELCOME, {"type": "GOING_AWAY", "reconnectAfterMs": delay_ms})

    async with scripted_following(script) as (server, _):
        await asyncio.wait_for(gives_up.wait(), 20)
        assert waits == [0, 1, 2]
        assert server.connections >= 12


async def test_requests_under_way_stay_few_enough_for_pings_to_be_read(quick: list[int]) -> None:
    most = 0

    async def script(peer: Peer) -> None:
        nonlocal most
        await peer.say(WELCOME)
        waiting: list[dict[str, Any]] = []
        for _ in range(40):
            try:
                while True:
                    async with asyncio.timeout(0.03 if waiting else 10):
                        waiting.append(await peer.request())
            except TimeoutError:
                pass
            most = max(most, len(waiting))
            request = waiting.pop(0)
            if request["type"] == "SUBSCRIBE":
                answer = {"type": "SUBSCRIBED", "sessionId": request["sessionId"], "state": None}
            else:
                answer = {"type": "RESULT", "position": "p"}
            await peer.say(answer | {"id": request["id"], "timestamp": 1})
        await forever(peer)

    async with (
        scripted_socket(script) as server,
        AsyncLockstep(server.url) as lockstep,
        contextlib.AsyncExitStack() as stack,
    ):
        followers = [await stack.enter_async_context(following(lockstep, str(uuid4()))) for _ in range(20)]
        commands = [lockstep.send_command(ID, "pause") for _ in range(20)]
        await asyncio.gather(*commands)
        for each in followers:
            await each.count(1)
        assert 10 < most < 16


async def test_a_command_that_would_have_to_wait_for_too_long_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        request = await peer.hear("COMMAND")
        error = {"type": "ERROR", "id": request["id"], "code": "RATE_LIMIT_EXCEEDED", "message": "slow down"}
        await peer.say(error | {"retryAfterMs": 30_000})
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        with pytest.raises(LockstepError) as caught:
            await lockstep.send_command(ID, "start")
        assert (caught.value.code, caught.value.retry_after_ms) == ("RATE_LIMIT_EXCEEDED", 30_000)


async def test_a_command_that_cannot_be_done_now_is_sent_again_in_its_order(quick: list[int]) -> None:
    keys = []

    async def script(peer: Peer) -> None:
        await peer.say(WELCOME)
        for number in range(4):
            request = await peer.hear("COMMAND")
            keys.append(request["idempotencyKey"])
            if number < 2:
                error = {"type": "ERROR", "id": request["id"], "code": "SESSION_BUSY", "message": "busy"}
                await peer.say(error | {"retryAfterMs": 1})
            else:
                await peer.say(
                    {"type": "RESULT", "id": request["id"], "timestamp": 1, "position": f"p{number}"}
                )
        await forever(peer)

    async with scripted_socket(script) as server, AsyncLockstep(server.url) as lockstep:
        first = asyncio.create_task(lockstep.send_command(ID, "start", idempotency_key="a"))
        assert (await first)["position"] == "p2"
        assert (await lockstep.send_command(ID, "pause", idempotency_key="b"))["position"] == "p3"
        assert keys == ["a", "a", "a", "b"]


# --- what is no server of protocol v2 --------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", ["lockstep.v1.json", None])
async def test_a_server_of_v1_is_an_unsupported_protocol(subprotocol: str | None) -> None:
    async with (
        scripted_socket(forever, subprotocol=subprotocol) as server,
        AsyncLockstep(server.url) as lockstep,
    ):
        with pytest.raises(LockstepError) as caught:
            await anext(lockstep.follow(ID))
        assert caught.value.code == "UNSUPPORTED_PROTOCOL"
        with pytest.raises(LockstepError) as caught:
            await lockstep.send_command(ID, "start")
        assert caught.value.code == "UNSUPPORTED_PROTOCOL"


UNSUPPORTED = json.dumps(
    {"error": {"code": "UNSUPPORTED_PROTOCOL", "message": "None is known", "details": {}}}
)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http_answer(200, "<html>Log in</html>", Content_Type="text/html"), "INVALID_ANSWER"),
        (http_answer(404, "<html>Nothing here</html>"), "INVALID_ANSWER"),
        (http_answer(403, '{"error": {"code": "FORBIDDEN", "message": "Not from there"}}'), "FORBIDDEN"),
        (http_answer(400, UNSUPPORTED), "UNSUPPORTED_PROTOCOL"),
        (http_answer(401, "<html>Who are you?</html>"), "UNAUTHORIZED"),
    ],
)
async def test_a_handshake_that_is_answered_otherwise_is_a_typed_error(answer: bytes, code: str) -> None:
    async with scripted([answer]) as server, AsyncLockstep(server.url) as lockstep:
        with pytest.raises(LockstepError) as caught:
            await anext(lockstep.follow(ID))
        assert caught.value.code == code
        assert len(server.heads) == 1


@pytest.mark.parametrize(
    "answer", [http_answer(502, "<html>"), http_answer(429, ""), b"", b"SSH-2.0-x\r\n\r\n"]
)
async def test_a_server_that_cannot_now_is_waited_for(answer: bytes, quick: list[int]) -> None:
    async with (
        scripted([answer]) as server,
        AsyncLockstep(server.url) as lockstep,
        following(lockstep, ID) as followed,
    ):
        while len(server.heads) < 5:
            await asyncio.sleep(0.01)
        assert followed.error is None
        assert quick[:4] == [0, 1, 2, 3]
