"""Redis's clock is set ahead and back: commands go on, and no clock loses or gains time by it."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from broker.counters import LIFE_SIGN_S
from broker.redis import RedisBroker
from lockstep.contract import Affected, Attendance, Charge
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.requests.bodies import spec as read_spec
from lockstep.sessions import Sessions
from tests.support import settled_rules as engine
from tests.support.commits import creation, new_id
from tests.support.load import chess, data, rest
from tests.support.processes import ServerProcess
from tests.support.redis_server import Proxy
from tests.support.shifted_redis import ShiftedRedis
from tests.support.variants import first_of
from tests.support.ws_client import WsClient, abort_all

SHIFTS_S = (60.0, 2.5, 3600.0)
DAY_MS = 86_400_000
# How long a machine with other things to do may take over a handful of requests.
SLOW_MS = 20_000
# An error of the time: half of what the best of some round trips takes, also on a machine that is slow.
SMALL_MS = 30


@pytest.fixture
def redis() -> Iterator[ShiftedRedis]:
    server = ShiftedRedis()
    yield server
    server.close()


class Deaf:
    """A listener that nothing is done with."""

    def on_published(self, payload: bytes) -> None: ...

    def on_relayed(self, session_id: str, payload: bytes) -> None: ...

    def on_presence(
        self, session_id: str, process: str, attendances: dict[str, Attendance | None] | None
    ) -> None: ...

    def on_gap(self, affected: Affected | None = None) -> None: ...


@contextlib.asynccontextmanager
async def brokers(redis: ShiftedRedis, count: int = 1) -> AsyncIterator[list[RedisBroker]]:
    """Processes as Redis sees them, but without anybody who sweeps."""
    started = [RedisBroker(redis.url, "", "all", False, Metrics()) for _ in range(count)]
    for broker in started:
        await broker.start(Deaf())
    try:
        yield started
    finally:
        for broker in started:
            await broker.close()


@contextlib.asynccontextmanager
async def servers(redis: ShiftedRedis, count: int = 2) -> AsyncIterator[list[ServerProcess]]:
    options = (f"--broker={redis.url}", "--rate-limit-switch=0")
    started = [await asyncio.to_thread(ServerProcess, *options) for _ in range(count)]
    try:
        yield started
    finally:
        abort_all()
        for process in started:
            await asyncio.to_thread(process.stop)


def sessions_of(broker: RedisBroker) -> Sessions:
    return Sessions(broker, Lifetimes(), Metrics())


async def running(process: ServerProcess, **fields: Any) -> dict[str, Any]:
    session_id = data(await rest(f"{process.url}/v1/sessions", chess(**fields)))["session_id"]
    started: dict[str, Any] = data(await rest(f"{process.url}/v1/sessions/{session_id}/start"))
    return started


async def read(process: ServerProcess, session_id: str) -> dict[str, Any]:
    state: dict[str, Any] = data(await rest(f"{process.url}/v1/sessions/{session_id}", method="GET"))
    return state


async def shown_ms(process: ServerProcess) -> int:
    answer = await process.call("GET", "/v1/time")
    return int(answer.body["timestamp_ms"])


async def until_all_follow(redis: ShiftedRedis, processes: list[ServerProcess]) -> None:
    """Until every process shows Redis's time."""

    async def follow() -> bool:
        return all([abs(await shown_ms(each) - redis.now_ms()) < 1000 for each in processes])

    async with asyncio.timeout(60):
        while not await follow():
            await asyncio.sleep(0.05)


# --- commands go on ------------------------------------------------------------------------------


@pytest.mark.parametrize("shift_s", first_of(SHIFTS_S))
@pytest.mark.parametrize("is_back_from_ahead", [False, True], ids=["back", "ahead and back"])
async def test_commands_go_on_when_the_clock_was_set_back(
    redis: ShiftedRedis, shift_s: float, is_back_from_ahead: bool
) -> None:
    async with servers(redis) as processes:
        session = await running(processes[0], budget_ms=DAY_MS)
        url = f"/v1/sessions/{session['session_id']}"
        if is_back_from_ahead:
            redis.shift(shift_s)
            await until_all_follow(redis, processes)
        # The session has been changed at an instant that is to come.
        data(await rest(f"{processes[0].url}{url}/switch"))
        redis.shift(0 if is_back_from_ahead else -shift_s)
        commands = ["switch", "pause", "resume", "switch", "switch", "complete"]
        states = []
        for turn, command in enumerate(commands):
            answer = await rest(f"{processes[turn % 2].url}{url}/{command}")
            assert answer.code == 200, (command, answer.body)
            states.append(await read(processes[(turn + 1) % 2], session["session_id"]))
        assert [state["version"] for state in states] == [4, 5, 6, 7, 8, 9]
        instants = [state["updated_at"] for state in states]
        assert instants == sorted(instants), "time ran backwards"
        for seat in states[-1]["participants"]:
            assert seat["time_remaining_ms"] + seat["time_used_ms"] == DAY_MS, "time was given or lost"


@pytest.mark.parametrize("shift_s", first_of(SHIFTS_S))
async def test_a_clock_adjusted_to_0_runs_out_though_redis_is_behind(
    redis: ShiftedRedis, shift_s: float
) -> None:
    async with servers(redis) as processes:
        session = await running(processes[0])
        url = f"{processes[1].url}/v1/sessions/{session['session_id']}"
        first, second = (seat["participant_id"] for seat in session["participants"])
        redis.shift(-shift_s)
        adjusted = data(await rest(f"{url}/adjust", {"delta_ms": -86_400_000, "target": first}))
        assert adjusted["version"] == 3
        # Nobody is connected and nobody asks: it is flagged all the same.
        async with asyncio.timeout(10):
            while (flagged := await read(processes[0], session["session_id"]))["version"] == 3:
                await asyncio.sleep(0.02)
        assert [seat["has_expired"] for seat in flagged["participants"]] == [True, False]
        switched = data(await rest(f"{url}/switch"))
        assert switched["active_participant_id"] == second
        assert switched["expired_participant_id"] == first


# --- no clock loses time -------------------------------------------------------------------------


@pytest.mark.parametrize("shift_s", first_of(SHIFTS_S))
async def test_a_clock_that_nobody_touched_has_lost_nothing_when_time_is_back(
    redis: ShiftedRedis, shift_s: float
) -> None:
    async with servers(redis) as processes:
        began_ms = redis.now_ms()
        session = await running(processes[0], budget_ms=7_200_000)
        redis.shift(shift_s)
        await until_all_follow(redis, processes)
        assert (await read(processes[0], session["session_id"]))["version"] == 2
        redis.shift(0)
        url = f"{processes[0].url}/v1/sessions/{session['session_id']}"
        paused = data(await rest(f"{url}/pause"))
        passed_ms = redis.now_ms() - began_ms
        used_ms = [seat["time_used_ms"] for seat in paused["participants"]]
        assert used_ms[0] <= passed_ms + SLOW_MS // 20
        assert used_ms[1] == 0


@pytest.mark.parametrize("shift_s", [60.0, 3600.0])
async def test_what_did_not_fall_due_while_time_stood_ahead_does_not_fall_due_by_it(
    redis: ShiftedRedis, shift_s: float
) -> None:
    async with brokers(redis) as (broker,):
        sessions = sessions_of(broker)
        step = await sessions.create(read_spec(chess(budget_ms=30_000)))
        session_id = step.session.session_id
        await sessions.apply(session_id, engine.start)
        redis.shift(shift_s)
        await broker.load([session_id])
        async with asyncio.timeout(5):
            while broker.now_ms() < redis.now_ms() - 1000:
                await asyncio.sleep(0.05)
        redis.shift(0)
        # This process still believes that the clock has run out.
        assert broker.now_ms() > (step.session.updated_at_ms + 30_000)
        assert b'"version":2,' in await sessions.read(session_id)
        paused = await sessions.apply(session_id, engine.pause)
        assert paused.session.participants[0].has_expired is False
        assert paused.session.participants[0].remaining_ms > 30_000 - SLOW_MS


async def test_a_watched_clock_runs_out_promptly_when_time_was_set_ahead(redis: ShiftedRedis) -> None:
    async with servers(redis, 1) as processes:
        session = await running(processes[0], budget_ms=600_000)
        client = await WsClient.connect(f"{processes[0].ws_url}/ws?sessionId={session['session_id']}")
        await client.recv_type("CONNECTED")
        # What arms the timer is a message: by the clock of before.
        data(await rest(f"{processes[0].url}/v1/sessions/{session['session_id']}/switch"))
        await client.recv_type("STATE_UPDATE")
        redis.shift(3600)
        update = await client.recv_type("STATE_UPDATE", timeout_s=20)
        assert [seat["has_expired"] for seat in update["state"]["participants"]] == [False, True]


# --- what clients are shown ----------------------------------------------------------------------


@pytest.mark.parametrize("shift_s", first_of(SHIFTS_S))
async def test_the_time_that_is_shown_comes_back_and_the_step_is_logged(
    redis: ShiftedRedis, shift_s: float
) -> None:
    async with servers(redis, 1) as processes:
        redis.shift(shift_s)
        await until_all_follow(redis, processes)
        redis.shift(0)
        await until_all_follow(redis, processes)
        told = [str(line["message"]) for line in processes[0].log() if "clock" in str(line["message"])]
        metrics = (await processes[0].call("GET", "/metrics")).raw.decode()
        assert told, "a step leaves no line"
        assert "lockstep_clock_steps_total 2.0" in metrics


@pytest.mark.long
async def test_a_small_correction_is_slewed_and_time_never_goes_back(redis: ShiftedRedis) -> None:
    async with servers(redis, 1) as processes:
        process = processes[0]
        redis.shift(-1.5)
        latest_ms = await shown_ms(process)
        async with asyncio.timeout(20):
            while abs(latest_ms - redis.now_ms()) > 300:
                before_ms, latest_ms = latest_ms, await shown_ms(process)
                assert latest_ms >= before_ms


# --- how far it may be off -----------------------------------------------------------------------


class Witness:
    """Asks Redis for the time, beside the broker, around what the broker shows."""

    def __init__(self, redis: ShiftedRedis, broker: RedisBroker) -> None:
        self.broker = broker
        self._client = redis.client

    def _redis_ms(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds * 1000 + microseconds / 1000)

    def assert_bound(self) -> float:
        """The time shown must be as near to Redis's as the broker says, which is returned."""
        before_ms = self._redis_ms()
        error_ms, shown_ms = self.broker.error_ms(), self.broker.shown_us() / 1000
        after_ms = self._redis_ms()
        assert before_ms - error_ms <= shown_ms <= after_ms + error_ms + 0.01
        return error_ms

    async def until(self, least_ms: float, most_ms: float, timeout_s: float) -> None:
        """Wait until the error is between these, while it holds all the time."""
        async with asyncio.timeout(timeout_s):
            while not least_ms <= self.assert_bound() <= most_ms:
                await asyncio.sleep(0.01)


async def test_the_error_bound_is_small_where_all_is_well(redis: ShiftedRedis) -> None:
    async with brokers(redis) as (broker,):
        await Witness(redis, broker).until(0, SMALL_MS, timeout_s=60)


@pytest.mark.parametrize("shift_s", [-1.5, 1.5, -60.0, 60.0])
async def test_the_error_bound_holds_once_a_step_is_known(redis: ShiftedRedis, shift_s: float) -> None:
    async with brokers(redis) as (broker,):
        witness = Witness(redis, broker)
        for by_s in (shift_s, 0, shift_s):
            redis.shift(by_s)
            commit, _ = creation(broker, new_id())
            await broker.commit(commit)  # whatever becomes of it, its answer carries the time
            for _ in range(20):
                witness.assert_bound()
                await asyncio.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("shift_s", [-1.5, 1.5])
async def test_the_error_bound_is_small_again_when_all_is_slewed(redis: ShiftedRedis, shift_s: float) -> None:
    async with brokers(redis) as (broker,):
        redis.shift(shift_s)
        commit, _ = creation(broker, new_id())
        await broker.commit(commit)
        witness = Witness(redis, broker)
        assert witness.assert_bound() > 500
        await witness.until(0, SMALL_MS, timeout_s=60)


async def test_the_error_bound_grows_while_the_link_is_stalled(redis: ShiftedRedis) -> None:
    async with Proxy(redis.port) as proxy:
        broker = RedisBroker(proxy.url, "", "all", False, Metrics())
        await broker.start(Deaf())
        try:
            witness = Witness(redis, broker)
            await witness.until(0, 50, timeout_s=20)
            proxy.swallows_replies = True
            known_ms = witness.assert_bound()
            await witness.until(known_ms + 1.5, float("inf"), timeout_s=20)
            proxy.swallows_replies = False
            grown_ms = witness.assert_bound()
            await witness.until(0, grown_ms - 1, timeout_s=20)
        finally:
            await broker.close()


# --- epochs, limits, signs of life ---------------------------------------------------------------


@pytest.mark.parametrize("shift_s", first_of(SHIFTS_S))
async def test_a_session_created_anew_is_later_though_the_clock_was_set_back(
    redis: ShiftedRedis, shift_s: float
) -> None:
    async with servers(redis) as processes:
        session_id, epochs = str(uuid.uuid4()), []
        for by_s in (0, -shift_s, -2 * shift_s):
            redis.shift(by_s)
            created = await rest(f"{processes[0].url}/v1/sessions", chess(session_id))
            assert created.code == 201, created.body
            epochs.append(data(created)["epoch"])
            client = await WsClient.connect(f"{processes[1].ws_url}/ws?sessionId={session_id}")
            await client.recv_type("CONNECTED")
            data(await rest(f"{processes[0].url}/v1/sessions/{session_id}/start"))
            assert (await client.recv_type("STATE_UPDATE"))["state"]["epoch"] == epochs[-1]
            assert (await rest(f"{processes[1].url}/v1/sessions/{session_id}", method="DELETE")).code == 204
            assert (await client.recv_type("SESSION_DELETED"))["epoch"] == epochs[-1]
        assert epochs == sorted(set(epochs))


@pytest.mark.parametrize("shift_s", first_of(SHIFTS_S))
async def test_a_limits_window_begins_anew_when_the_clock_was_set_back(
    redis: ShiftedRedis, shift_s: float
) -> None:
    async with brokers(redis) as (broker,):
        charge = Charge("general:somebody", 2, 60_000)
        for count in (1, 2, 3):
            ((counted, _),) = await broker.spend([charge])
            assert counted == count
        redis.shift(-shift_s)
        ((count, left_ms),) = await broker.spend([charge])
        assert (count, left_ms) == (1, 60_000)


async def test_the_dead_hold_their_places_no_longer_for_a_clock_set_back(redis: ShiftedRedis) -> None:
    async with brokers(redis, 2) as (dying, living):
        assert await dying.enter("session:s", 1)
        await dying.close()  # as if it had been killed: nothing is given back
        assert not await living.enter("session:s", 1)
        redis.shift(-3600)
        assert not await living.enter("session:s", 1)
        redis.shift(-3600 + LIFE_SIGN_S + 1)
        assert await living.enter("session:s", 1)


async def test_a_clock_set_ahead_takes_no_place_from_the_living(redis: ShiftedRedis) -> None:
    async with brokers(redis, 2) as (first, second):
        assert await first.enter("session:s", 1)
        redis.shift(3600)
        async with asyncio.timeout(10):
            # Its sign of life has lapsed at once; within a second it has another, and tells what it counts.
            while await second.enter("session:s", 1):
                second.leave("session:s", 1)
                await asyncio.sleep(0.05)
