"""The Python client follows sessions: on a real server, over a line that can be cut, slowed and silenced."""

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from lockstep_client import AsyncLockstep, LockstepError, mint_token
from lockstep_client import conversation as conversations
from lockstep_client.updates import MAX_WAITING

from tests.support import random_histories
from tests.support.api import Api, body_of, ids
from tests.support.followed import Followed, following
from tests.support.metrics import figures
from tests.support.processes import ServerProcess
from tests.support.redis_server import Proxy, free_port
from tests.support.tokens import SECRET


@pytest.fixture(autouse=True)
def _no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No task of which nobody knows how it ended, and nothing else that asyncio complains about."""
    yield
    gc.collect()
    assert not [each.getMessage() for each in caplog.records if each.name == "asyncio"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost connections are replaced at once."""
    monkeypatch.setattr("lockstep_client.line.backoff_ms", lambda attempt: 1)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants tokens."""
    secret: Path = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    server = ServerProcess("--log-level=warning", f"--jwt-secret-file={secret}", "--rate-limit-switch=0/1")
    yield server
    server.stop()


@contextlib.asynccontextmanager
async def cuttable(server: ServerProcess, **options: Any) -> AsyncIterator[tuple[Proxy, AsyncLockstep]]:
    async with (
        Proxy(server.port) as proxy,
        AsyncLockstep(f"http://127.0.0.1:{proxy.port}", **options) as lockstep,
    ):
        yield proxy, lockstep


async def cut_off(proxy: Proxy, lockstep: AsyncLockstep, session_id: str) -> None:
    """The line is cut, the client has noticed, and there is no other."""
    proxy.refuses = True
    proxy.cut()
    while lockstep.is_current(session_id):
        await asyncio.sleep(0.001)


def versions(followed: Followed) -> list[int]:
    return [event["version"] for update in followed.updates for event in update.events]


# --- what comes ------------------------------------------------------------------------------------------


async def test_follow_tells_what_there_is_and_then_each_change(api: Api) -> None:
    session = await api.running("count_up", 1)
    session_id = session["session_id"]
    async with AsyncLockstep(api.url) as lockstep, following(lockstep, session_id) as followed:
        first = await followed.count(1)
        assert (first.state, first.sync, first.reason, first.events) == (session, True, "requested", ())
        for number in range(3, 9):
            await api.done(session_id, "switch", {"data": {"lap": number}})
        await followed.until_version(8)
        told = followed.updates[1:]
        assert [update.state["version"] for update in told if update.state] == [3, 4, 5, 6, 7, 8]
        assert [update.events[0]["data"] for update in told] == [{"lap": number} for number in range(3, 9)]
        assert not any(update.sync or update.reason for update in told)
        assert followed.last.state == await api.read(session_id)
        assert lockstep.is_current(session_id.upper())


async def test_a_session_may_come_go_and_come_again(api: Api) -> None:
    session_id = str(uuid4())
    async with AsyncLockstep(api.url) as lockstep, following(lockstep, session_id) as followed:
        first = await followed.count(1)
        assert (first.state, first.position, first.reason) == (None, None, "missing")
        for count in (2, 4):
            created = await api.create(session_id=session_id)
            update = await followed.count(count)
            assert (update.state, update.reason) == (created, "created")
            await api("DELETE", f"/v1/sessions/{session_id}")
            update = await followed.count(count + 1)
            assert (update.state, update.position, update.reason) == (None, None, "deleted")


async def test_who_follows_later_is_told_what_there_is_at_once(api: Api) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with AsyncLockstep(api.url) as lockstep, following(lockstep, session_id) as first:
        await first.count(1)
        await api.done(session_id, "switch")
        await first.until_version(3)
        async with following(lockstep, session_id) as second:
            assert (await second.count(1)).state == first.last.state
            await api.done(session_id, "switch")
            assert (await second.until_version(4)).state == (await first.until_version(4)).state


async def test_a_position_is_what_rest_takes_back(api: Api) -> None:
    session_id = (await api.create())["session_id"]
    async with AsyncLockstep(api.url) as lockstep, following(lockstep, session_id) as followed:
        position = (await followed.count(1)).position
        await lockstep.command(session_id, "start", if_match=position)
        with pytest.raises(LockstepError) as caught:
            await lockstep.command(session_id, "pause", if_match=position)
        assert caught.value.status == 412


async def test_a_slow_follower_gets_the_latest_state_in_place_of_the_rest(api: Api) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with (
        AsyncLockstep(api.url) as lockstep,
        following(lockstep, session_id) as quick,
        contextlib.aclosing(lockstep.follow(session_id)) as slow,
    ):
        await anext(slow)
        for _ in range(400):
            await lockstep.send_command(session_id, "annotate", {"metadata": {}})
        await quick.until_version(402)
        assert versions(quick) == list(range(3, 403))
        first = await anext(slow)
        assert (first.sync, first.reason, first.events) == (True, "skipped", ())
        taken = [first]
        while taken[-1].position != quick.last.position:
            taken.append(await anext(slow))
        assert len(taken) <= MAX_WAITING
        assert taken[-1].state == await api.read(session_id)
        told = [event["version"] for update in taken[1:] for event in update.events]
        assert first.state is not None
        assert told == list(range(first.state["version"] + 1, 403))


# --- a line that breaks ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_what_was_missed_comes_when_the_line_is_back(api: Api, rest_process: ServerProcess) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with cuttable(rest_process) as (proxy, lockstep), following(lockstep, session_id) as followed:
        await followed.count(1)
        await cut_off(proxy, lockstep, session_id)
        for _ in range(5):
            await api.done(session_id, "switch")
        assert len(followed.updates) == 1
        proxy.refuses = False
        await followed.until_version(7)
        assert versions(followed) == [3, 4, 5, 6, 7]
        assert [update.sync for update in followed.updates] == [True, *[False] * 5]
        assert lockstep.is_current(session_id)


@pytest.mark.usefixtures("quick")
async def test_what_was_missed_for_too_long_comes_as_the_latest_state(
    api: Api, rest_process: ServerProcess
) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with cuttable(rest_process) as (proxy, lockstep), following(lockstep, session_id) as followed:
        await followed.count(1)
        await cut_off(proxy, lockstep, session_id)
        for _ in range(101):
            await api.done(session_id, "annotate", {"metadata": {}})
        proxy.refuses = False
        update = await followed.until_version(103)
        assert (update.sync, update.reason) == (True, "requested")
        assert update.state == await api.read(session_id)


async def test_who_begins_to_follow_offline_is_told_when_it_is_known(
    api: Api, rest_process: ServerProcess
) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with cuttable(rest_process) as (proxy, lockstep), following(lockstep, session_id) as first:
        await first.count(1)
        await cut_off(proxy, lockstep, session_id)
        await api.done(session_id, "switch")
        async with following(lockstep, session_id) as second:
            proxy.refuses = False
            update = await second.count(1)
            # It is not told of what happened before it was told of a state.
            assert (update.sync, update.events) == (True, ())
            assert update.state == await api.read(session_id)
        assert (await first.until_version(3)).events[0]["type"] == "switched"


@pytest.mark.long
async def test_a_server_that_comes_up_later_is_followed_then(tmp_path: Path) -> None:
    port = free_port()
    session_id = str(uuid4())
    async with (
        AsyncLockstep(f"http://127.0.0.1:{port}") as lockstep,
        following(lockstep, session_id) as followed,
    ):
        await asyncio.sleep(0.1)
        assert not followed.updates
        server = await asyncio.to_thread(ServerProcess, "--log-level=warning", f"--port={port}")
        try:
            assert (await followed.count(1)).reason == "missing"
            state = await lockstep.create_session({"sync_mode": "count_up", "session_id": session_id})
            assert (await followed.count(2)).state == state
            await asyncio.to_thread(server.stop)  # it says GOING_AWAY, and takes what it had with it
            server = await asyncio.to_thread(ServerProcess, "--log-level=warning", f"--port={port}")
            gone = await followed.count(3)
            assert (gone.state, gone.reason, gone.sync) == (None, "missing", True)
        finally:
            await asyncio.to_thread(server.stop)


async def test_a_dead_line_is_noticed_though_nothing_closes_it(
    api: Api, rest_process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "PING_EVERY_S", 0.1)
    monkeypatch.setattr(conversations, "PONG_WITHIN_S", 1.0)
    session_id = (await api.running("count_up", 1))["session_id"]
    async with cuttable(rest_process) as (proxy, lockstep), following(lockstep, session_id) as followed:
        await followed.count(1)
        proxy.swallows_replies = True
        await api.done(session_id, "switch")
        while lockstep.is_current(session_id):
            await asyncio.sleep(0.01)
        proxy.swallows_replies = False
        await followed.until_version(3)
        assert versions(followed) == [3]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 40))]
)
async def test_every_state_is_one_that_rest_showed(seed: int, api: Api, rest_process: ServerProcess) -> None:
    """Random histories over a line that is cut, refused, slowed and silent at random."""
    rng = Random(seed)
    session_id = random_histories.uuid_of(rng)
    shown: dict[str, dict[str, Any]] = {}
    async with cuttable(rest_process) as (proxy, lockstep), following(lockstep, session_id) as followed:
        for _ in range(2):
            state = (await api("POST", "/v1/sessions", random_histories.creation(rng, session_id))).data
            for _ in range(40):
                shown[f"{state['epoch']}-{state['version']}-{state['commit']}"] = state
                name, body = random_histories.command(rng, state)
                await api.command(session_id, name, body)
                state = await api.read(session_id)
                if rng.random() < 0.15:
                    proxy.refuses = rng.random() < 0.5
                    proxy.swallows_replies = False
                    proxy.bytes_per_s = rng.choice([None, 20_000])
                    proxy.cut()
                elif rng.random() < 0.1:
                    proxy.swallows_replies = True  # until the client notices, or it is cut
                elif rng.random() < 0.3:
                    proxy.refuses = False
                    await asyncio.sleep(rng.random() * 0.05)
            proxy.refuses = proxy.swallows_replies = False
            proxy.bytes_per_s = None
            proxy.cut()
            shown[f"{state['epoch']}-{state['version']}-{state['commit']}"] = state
            await followed.until(lambda each: bool(each.updates) and each.last.state == state)  # noqa: B023
            await api("DELETE", f"/v1/sessions/{session_id}")
            await followed.until(lambda each: each.last.state is None)
        _check_history(followed, shown)


def _check_history(followed: Followed, shown: dict[str, dict[str, Any]]) -> None:
    """Each state is the one of its position, and each version is told once, or a `sync` stands for it."""
    before = None
    for update in followed.updates:
        if update.position in shown:
            assert update.state == shown[update.position]
        if update.state is not None and not update.sync and update.reason is None:
            assert before is not None
            told = [event["version"] for event in update.events]
            assert told == list(range(before["version"] + 1, update.state["version"] + 1))
        before = update.state


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("reconnects", [30, pytest.param(1_000, marks=pytest.mark.long)])
async def test_no_task_and_no_socket_is_left_after_many_reconnects(
    reconnects: int, api: Api, rest_process: ServerProcess
) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    descriptors = len(os.listdir("/proc/self/fd"))
    async with Proxy(rest_process.port) as proxy:
        own = len(asyncio.all_tasks())
        lockstep = AsyncLockstep(f"http://127.0.0.1:{proxy.port}")
        followed = Followed()
        taking = asyncio.create_task(followed.take_all(lockstep, session_id))
        await followed.count(1)
        busy = len(asyncio.all_tasks())
        for number in range(3, reconnects + 3):
            proxy.cut()
            await api.done(session_id, "annotate", {"metadata": {"number": number}})
            await followed.until_version(number)
        assert len(asyncio.all_tasks()) <= busy
        await lockstep.close()
        await taking
        assert followed.has_ended
        assert followed.error is None
        proxy.cut()
        async with asyncio.timeout(10):  # until the proxy's own have ended
            while len(asyncio.all_tasks()) > own or len(os.listdir("/proc/self/fd")) > descriptors + 1:
                await asyncio.sleep(0.01)


# --- coming and leaving ----------------------------------------------------------------------------------


async def test_closing_ends_all_that_is_followed(api: Api) -> None:
    lockstep = AsyncLockstep(api.url)
    async with following(lockstep, str(uuid4())) as one, following(lockstep, str(uuid4())) as other:
        await one.count(1)
        await other.count(1)
        await lockstep.close()
        await one.until(lambda each: each.has_ended)
        await other.until(lambda each: each.has_ended)
        assert one.error is None
        assert other.error is None
    for call in (
        lockstep.follow(str(uuid4())).__anext__,
        lambda: lockstep.send_command(str(uuid4()), "start"),
    ):
        with pytest.raises(LockstepError) as caught:
            await call()
        assert caught.value.code == "CLOSED"
    await lockstep.close()


async def test_a_client_that_was_not_used_can_be_closed(api: Api) -> None:
    async with AsyncLockstep(api.url):
        pass


async def test_what_is_no_id_cannot_be_followed(api: Api) -> None:
    async with AsyncLockstep(api.url) as lockstep:
        for session_id in ("", "x", f"{uuid4()}\n"):
            with pytest.raises(LockstepError) as caught:
                await anext(lockstep.follow(session_id))
            assert caught.value.code == "VALIDATION_ERROR"


# --- commands over the socket ----------------------------------------------------------------------------


async def test_commands_over_the_socket_are_answered_and_told(api: Api) -> None:
    session_id = (session := await api.create())["session_id"]
    async with AsyncLockstep(api.url) as lockstep, following(lockstep, session_id) as followed:
        await followed.count(1)
        result = await lockstep.send_command(session_id, "start", {"data": {"by": "hand"}})
        assert (await followed.count(2)).position == result["position"]
        body: Any = {"expected_participant_id": ids(session)[1]}
        with pytest.raises(LockstepError) as caught:
            await lockstep.send_command(session_id, "switch", body)
        assert caught.value.code == "CONFLICT"
        again = [await lockstep.send_command(session_id, "pause", idempotency_key="p") for _ in range(2)]
        assert again[0]["position"] == again[1]["position"]
        assert again[1]["replayed"] is True
        many = [lockstep.send_command(session_id, "annotate", {"metadata": {"n": n}}) for n in range(50)]
        positions = [each["position"] for each in await asyncio.gather(*many)]
        assert [int(each.split("-")[1]) for each in positions] == list(range(4, 54))


@pytest.mark.usefixtures("quick")
async def test_a_command_whose_answer_is_lost_is_applied_once(api: Api, rest_process: ServerProcess) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with cuttable(rest_process) as (proxy, lockstep), following(lockstep, session_id) as followed:
        await followed.count(1)
        for number in range(3, 8):
            proxy.swallows_replies = True
            command = asyncio.create_task(lockstep.send_command(session_id, "switch"))
            while (await api.read(session_id))["version"] < number:
                await asyncio.sleep(0.01)
            proxy.cut()
            proxy.swallows_replies = False
            result = await command
            assert result["replayed"] is True
            assert int(result["position"].split("-")[1]) == number
        await followed.until_version(7)
        assert versions(followed) == [3, 4, 5, 6, 7]


async def test_a_command_waits_for_the_connection_until_the_timeout(
    api: Api, rest_process: ServerProcess
) -> None:
    session_id = (await api.create())["session_id"]
    async with cuttable(rest_process, timeout_s=0.5) as (proxy, lockstep):
        proxy.refuses = True
        with pytest.raises(LockstepError) as caught:
            await lockstep.send_command(session_id, "start")
        assert caught.value.code == "UNREACHABLE"
    async with cuttable(rest_process) as (proxy, lockstep):
        proxy.refuses = True
        command = asyncio.create_task(lockstep.send_command(session_id, "start"))
        await asyncio.sleep(0.05)
        proxy.refuses = False
        await command
        assert (await api.read(session_id))["version"] == 2


async def test_who_does_not_wait_for_a_command_leaves_nothing_behind(api: Api) -> None:
    session_id = (await api.running("count_up", 1))["session_id"]
    async with AsyncLockstep(api.url) as lockstep:
        for _ in range(5):
            command = asyncio.create_task(lockstep.send_command(session_id, "pause"))
            await asyncio.sleep(0)
            command.cancel()
            await asyncio.gather(command, return_exceptions=True)
        await lockstep.send_command(session_id, "annotate", {"metadata": {}})


async def test_a_command_too_long_for_the_socket_says_so_and_the_others_are_done(api: Api) -> None:
    session_id = (await api.create("count_up", 1))["session_id"]
    async with AsyncLockstep(api.url) as lockstep, following(lockstep, session_id) as followed:
        await followed.count(1)
        body: Any = {"participants": [{"participant_id": str(uuid4())} for _ in range(400)]}
        long, short = await asyncio.gather(
            lockstep.send_command(session_id, "seat", body),
            lockstep.send_command(session_id, "start"),
            return_exceptions=True,
        )
        assert isinstance(long, LockstepError)
        assert long.code == "MESSAGE_TOO_BIG"
        assert not isinstance(short, BaseException)
        assert (await followed.until_version(2)).position == short["position"]
        assert len((await lockstep.command(session_id, "seat", body))["participants"]) == 401


# --- many sessions ---------------------------------------------------------------------------------------


async def test_more_sessions_than_one_connection_may_have_are_followed(tmp_path: Path) -> None:
    server = await asyncio.to_thread(ServerProcess, "--log-level=warning", "--max-subscriptions=3")
    try:
        api = Api(server.url)
        sessions = [(await api.create("count_up", 1))["session_id"] for _ in range(10)]
        async with AsyncLockstep(server.url) as lockstep, contextlib.AsyncExitStack() as stack:
            all_followed = {
                session_id: await stack.enter_async_context(following(lockstep, session_id))
                for session_id in sessions
            }
            for session_id, followed in all_followed.items():
                await followed.count(1)
                await lockstep.send_command(session_id, "start")
                assert (await followed.until_version(2)).events[0]["type"] == "started"
            assert {each.error for each in all_followed.values()} == {None}
    finally:
        await asyncio.to_thread(server.stop)


@pytest.mark.long
async def test_a_thousand_sessions_are_followed_over_ten_connections(api: Api) -> None:
    async with AsyncLockstep(api.url) as lockstep, contextlib.AsyncExitStack() as stack:
        before = (await figures(api.url))["lockstep_connections"]
        sessions = [(await api.create("count_up", 1))["session_id"] for _ in range(1_000)]
        all_followed = [await stack.enter_async_context(following(lockstep, each)) for each in sessions]
        for followed in all_followed:
            await followed.count(1)
        assert (await figures(api.url))["lockstep_connections"] - before == 10
        for session_id in sessions:
            await api.done(session_id, "start")
        for followed in all_followed:
            await followed.until_version(2)
            assert versions(followed) == [2]
        await stack.aclose()
        async with asyncio.timeout(10):  # one stays for what comes next
            while (await figures(api.url))["lockstep_connections"] - before > 1:
                await asyncio.sleep(0.1)


# --- rights ----------------------------------------------------------------------------------------------


def admin(**claims: Any) -> str:
    return mint_token(SECRET, scope="admin", **claims)


async def test_a_session_that_the_token_is_not_for_is_forbidden_alone(guarded: ServerProcess) -> None:
    mine, other = str(uuid4()), str(uuid4())
    token = mint_token(SECRET, session_ids=mine, scope="view")
    async with AsyncLockstep(guarded.url, token=token) as lockstep, following(lockstep, mine) as followed:
        await followed.count(1)
        with pytest.raises(LockstepError) as caught:
            await anext(lockstep.follow(other))
        assert caught.value.code == "FORBIDDEN"
        async with AsyncLockstep(guarded.url, token=admin()) as back_end:
            await back_end.create_session({"session_id": mine, "sync_mode": "count_up"})
        assert (await followed.count(2)).reason == "created"


async def test_who_is_sent_away_is_told_so_and_does_not_come_back(guarded: ServerProcess) -> None:
    token = admin(subject="anna")
    async with AsyncLockstep(guarded.url, token=token) as lockstep:
        state = await lockstep.create_session(body_of())
        session_id = state["session_id"]
        async with following(lockstep, session_id) as away, following(lockstep, str(uuid4())) as other:
            await away.count(1)
            await other.count(1)
            await lockstep.disconnect(session_id, "anna")
            error = await away.fails()
            assert isinstance(error, LockstepError)
            assert error.code == "DISCONNECTED"
            assert other.error is None
            async with following(lockstep, session_id) as again:
                assert (await again.count(1)).state == state


@pytest.mark.parametrize("lifetime_s", [-60, None])
async def test_a_static_token_that_is_refused_is_refused_for_good(
    guarded: ServerProcess, lifetime_s: float | None
) -> None:
    token = None if lifetime_s is None else mint_token(SECRET, lifetime_s=lifetime_s)
    async with AsyncLockstep(guarded.url, token=token) as lockstep:
        for _ in range(2):
            with pytest.raises(LockstepError) as caught:
                await anext(lockstep.follow(str(uuid4())))
            assert caught.value.code == "UNAUTHORIZED"
        with pytest.raises(LockstepError) as caught:
            await lockstep.send_command(str(uuid4()), "start")
        assert caught.value.code == "UNAUTHORIZED"


async def test_a_static_token_that_runs_out_ends_what_is_followed(guarded: ServerProcess) -> None:
    token = mint_token(SECRET, lifetime_s=2)
    async with (
        AsyncLockstep(guarded.url, token=token) as lockstep,
        following(lockstep, str(uuid4())) as followed,
    ):
        await followed.count(1)
        error = await followed.fails()
        assert isinstance(error, LockstepError)
        assert error.code == "UNAUTHORIZED"


async def test_a_token_function_is_asked_before_the_token_runs_out(guarded: ServerProcess) -> None:
    asked = []

    async def token() -> str:
        asked.append(1)
        return admin(lifetime_s=3, subject="anna") if len(asked) < 3 else admin(subject="anna")

    session_id = str(uuid4())
    async with (
        AsyncLockstep(guarded.url, token=token) as lockstep,
        following(lockstep, session_id) as followed,
    ):
        await followed.count(1)
        before = await figures(guarded.url)
        while len(asked) < 3:
            await asyncio.sleep(0.05)
        await lockstep.create_session({"session_id": session_id, "sync_mode": "count_up"})
        assert (await followed.count(2)).reason == "created"
        after = await figures(guarded.url)
        opened = "lockstep_connections_opened_total"
        assert after[opened] == before[opened], "the connection was to last"


async def test_a_token_function_that_has_no_good_token_is_an_error(guarded: ServerProcess) -> None:
    def token() -> str:
        return mint_token("another secret of more than 32 bytes")

    async with AsyncLockstep(guarded.url, token=token) as lockstep:
        with pytest.raises(LockstepError) as caught:
            await anext(lockstep.follow(str(uuid4())))
        assert caught.value.code == "UNAUTHORIZED"


async def test_a_token_function_that_fails_costs_an_attempt_no_more(guarded: ServerProcess) -> None:
    asked = []

    def token() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise LookupError("no vault")
        return admin()

    async with AsyncLockstep(guarded.url, token=token) as lockstep:
        assert (await anext(lockstep.follow(str(uuid4())))).reason == "missing"
