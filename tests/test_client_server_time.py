"""What time clients take it to be at the server: by hand; on simulated paths they never claim too much."""

import asyncio
import math
import subprocess
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from lockstep_client import AsyncLockstep

from tests.support.client_languages import LANGUAGES, ClientFunctions, functions_of
from tests.support.node import NODE
from tests.support.processes import ServerProcess
from tests.support.time_paths import PATHS, Event, Path, events_of

T0 = 1_704_110_400_000
EXACTLY = 0.02
"""ms; what rounding adds to an error."""
STARTED_WITHIN_MS = 20
"""Between the two clocks that a server reads when it starts; by so much it may be off the wall clock."""
WALL_MS = 1_700_000_000_000


@pytest.fixture(scope="module", params=LANGUAGES)
def functions(request: pytest.FixtureRequest) -> Iterator[ClientFunctions]:
    with functions_of(request.param) as functions:
        yield functions


# ---- By hand ----


def learn(
    sent_ms: float,
    received_ms: float,
    timestamp_ms: float,
    received_at_ms: float | None = None,
    error_ms: float | None = 0,
    wall_ms: float = WALL_MS,
) -> list[Any]:
    """The answer comes. The wall clock leads the other by `wall_ms`."""
    answer = [sent_ms, received_ms, timestamp_ms, received_at_ms, error_ms]
    return ["learn", received_ms, wall_ms + received_ms, answer]


def look(local_ms: float, wall_ms: float = WALL_MS) -> list[Any]:
    return ["look", local_ms, wall_ms + local_ms]


def forget(local_ms: float, wall_ms: float = WALL_MS) -> list[Any]:
    return ["forget", local_ms, wall_ms + local_ms]


def stand(local_ms: float, timestamp_ms: float, wall_ms: float = WALL_MS) -> list[Any]:
    return ["stand", local_ms, wall_ms + local_ms, timestamp_ms]


def shown(functions: ClientFunctions, *events: list[Any], resolution_ms: float = 0) -> list[Any]:
    return [tuple(each) for each in functions("shown_times", resolution_ms, [look(0), *events])[1:]]


def about(ms: float) -> Any:
    return pytest.approx(ms, abs=EXACTLY)


def test_time_that_stands_still_is_exact_until_it_is_forgotten_or_runs(functions: ClientFunctions) -> None:
    jumped = WALL_MS + 400
    times = shown(
        functions,
        *[learn(0, 20, T0, T0), stand(30, 5_000), look(40), stand(50, 6_000), look(5_000)],
        *[look(5_000, jumped), forget(5_000), look(5_000), stand(5_000, 6_000), look(5_000)],
        *[learn(5_010, 5_030, T0, T0), look(5_030)],
    )
    assert times[:5] == [(5_000, 0), (6_000, 0), (6_000, None), (6_000, None), (6_000, 0)]
    assert times[5] == (about(T0 + 10), about(10.03))


def test_before_the_first_answer_the_wall_clock_is_the_best_guess(functions: ClientFunctions) -> None:
    assert shown(functions, look(500)) == [(WALL_MS + 500, None)]


def test_the_answer_lies_in_the_middle_of_its_round_trip(functions: ClientFunctions) -> None:
    # Sent at 100, back at 120: the server said T0 at about 110, and had floored it.
    assert shown(functions, learn(100, 120, T0), look(120)) == [(T0 + 10.5, about(10.5 + 20 * 0.0015))]


def test_time_spent_at_the_server_is_none_of_the_way(functions: ClientFunctions) -> None:
    # There at 1100, answered at 1110: ten of the 20 ms were the way.
    answer = learn(100, 120, 1_110.25, 1_100.25, 0.5)
    assert shown(functions, answer, look(120)) == [(about(1_115.25), about(5.5 + 0.03))]


def test_the_quickest_ways_there_and_back_count_whenever_they_came(functions: ClientFunctions) -> None:
    # The offset is T0: 1 ms there and 50 back, then 40 there and 3 back.
    answers = learn(0, 51, T0 + 1, T0 + 1), learn(60, 103, T0 + 100, T0 + 100)
    [(now_ms, error_ms)] = shown(functions, *answers, look(200))
    assert now_ms == about(T0 + 200 - 1)
    assert error_ms == about(2 + 200 * 0.0015)


def test_the_error_grows_by_one_and_a_half_ms_a_second(functions: ClientFunctions) -> None:
    looks = look(20), look(1_020), look(60_020)
    errors = [error for _, error in shown(functions, learn(0, 20, T0 + 10, T0 + 10), *looks)]
    assert errors == [about(10.03), about(11.53), about(100.03)]


def test_a_correction_is_slewed_and_counts_until_it_is_done(functions: ClientFunctions) -> None:
    # The first answer was 90 ms on its way back, which nobody could know.
    poor, good = learn(0, 100, T0 + 10, T0 + 10), learn(200, 202, T0 + 201, T0 + 201)
    instants = (202, 203, 222, 282, 300)
    times = shown(functions, poor, *[look(at) for at in (100, 202)], good, *[look(at) for at in instants])
    assert [now - T0 - at for (now, _), at in zip(times, (100, 202, *instants), strict=True)] == [
        *[about(-40), about(-40), about(-40), about(-39.5), about(-30), about(0), about(0)]
    ]
    assert [error for _, error in times[2:]] == [about(ms) for ms in (41, 40.5, 31.03, 1.12, 1.15)]
    ahead, behind = learn(0, 100, T0 + 90, T0 + 90), learn(200, 202, T0 + 201, T0 + 201)
    times = shown(functions, ahead, *[look(at) for at in (100, 202)], behind, *[look(at) for at in instants])
    assert all(then <= later for (then, _), (later, _) in pairwise(times))


def test_an_answer_that_contradicts_the_earlier_ones_replaces_them(functions: ClientFunctions) -> None:
    # The server's clock was set back by a minute.
    before, after = learn(200, 202, T0), learn(300, 320, T0 - 60_000)
    assert shown(functions, before, after, look(320)) == [(T0 - 60_000 + 10.5, about(10.53))]


def test_the_error_that_the_server_states_is_part_of_it(functions: ClientFunctions) -> None:
    assert shown(functions, learn(0, 20, T0, T0, 7), look(20)) == [(about(T0 + 10), about(17.03))]


def test_a_server_that_knows_no_bound_gives_a_guess_and_no_bound(functions: ClientFunctions) -> None:
    unsure, sure = learn(0, 20, T0, T0, None), learn(30, 50, T0 + 100, T0 + 100)
    times = shown(functions, unsure, look(20), sure, look(50), learn(60, 80, T0, T0, None), look(80))
    assert times[:2] == [(about(T0 + 10), None), (about(T0 + 110), about(10.03))]
    assert times[2] == (about(T0 + 140), about(10.03 + 30 * 0.0015))  # which takes nothing away


def test_a_coarse_clock_counts_where_it_is_read(functions: ClientFunctions) -> None:
    # Once when the question left or the answer came, once when somebody looks.
    answer = learn(0, 20, T0 + 10, T0 + 10)
    assert shown(functions, answer, look(20), resolution_ms=1)[0][1] == about(10.03 + 2)


@pytest.mark.parametrize(
    "junk",
    [
        learn(100, 120, T0 + 900, T0),  # answered longer after it came than the way took
        learn(120, 100, T0, T0),  # came before it was sent
    ],
)
def test_an_answer_that_cannot_be_changes_nothing(functions: ClientFunctions, junk: list[Any]) -> None:
    known = learn(0, 20, T0, T0)
    assert shown(functions, known, junk, look(200)) == shown(functions, known, look(200))


def test_a_wall_clock_that_is_set_does_not_move_the_servers_time(functions: ClientFunctions) -> None:
    answer, steps = learn(0, 20, T0, T0), [0, -3_600_000, -200, 86_400_000]
    times = shown(functions, answer, *[look(20, WALL_MS + step) for step in steps])
    assert [now for now, _ in times] == [about(T0 + 10)] * len(steps)


@pytest.mark.parametrize("jump_ms", [-3_600_000, -300, 300, 3_600_000])
def test_server_time_is_unknown_from_a_jump_to_the_answer_to_a_later_question(
    functions: ClientFunctions, jump_ms: int
) -> None:
    # The machine slept while the monotonic clock stood still, or the wall clock was set: nobody can tell.
    wall_ms = WALL_MS + jump_ms
    times = shown(
        functions,
        learn(0, 20, T0, T0),
        look(40, wall_ms),
        learn(30, 50, T0 + jump_ms, T0 + jump_ms, wall_ms=wall_ms),  # asked before
        look(50, wall_ms),
        learn(60, 90, T0 + jump_ms, T0 + jump_ms, wall_ms=wall_ms),
        look(90, wall_ms),
    )
    assert [error for _, error in times] == [None, None, about(15.045)]
    assert times[2][0] == about(T0 + jump_ms + 15)


def test_less_than_a_jump_may_have_been_a_sleep(functions: ClientFunctions) -> None:
    times = shown(functions, learn(0, 20, T0, T0), look(20, WALL_MS + 200), look(20, WALL_MS + 1))
    assert [error for _, error in times] == [about(10.03 + 200 + 2), about(10.03)]


def test_what_is_forgotten_is_measured_anew_and_shown_meanwhile(functions: ClientFunctions) -> None:
    times = shown(
        functions,
        *[learn(0, 20, T0, T0), forget(30), look(40)],
        *[learn(25, 45, T0, T0), look(45)],  # asked before
        *[learn(50, 70, T0 - 500, T0 - 500), look(70)],
    )
    assert times == [(about(T0 + 30), None), (about(T0 + 35), None), (about(T0 - 490), about(10.03))]


def test_a_clock_of_a_browser_is_taken_for_as_coarse_as_it_is() -> None:
    script = """
        const { ServerTime } = await import("./clients/js/src/server-time.js");
        const errors = [0.001, 1, 20].map((unitMs) => {
            let readings = 0;  // each takes 50 ns
            const time = new ServerTime(() => Math.floor((++readings * 50e-6) / unitMs) * unitMs);
            const sentMs = time.localMs();
            time.learn(sentMs, sentMs, 1e12, 1e12);
            return time.errorMs;
        });
        const seldom = new ServerTime(() => seldomMs);
        var seldomMs = 0;
        seldom.learn(0, 0, 1e12, 1e12);
        errors.push(seldom.errorMs);
        seldomMs = 20;  // it moves: by no more than this at once
        seldom.learn(20, 20, 1e12 + 20, 1e12 + 20);
        errors.push(seldom.errorMs);
        console.log(errors.join(" "));"""
    done = subprocess.run([str(NODE), "--input-type=module", "-e", script], capture_output=True, check=True)
    fine, ms, coarse, seldom, later = (float(each) for each in done.stdout.split())
    assert (fine, ms) == (about(0), about(2))
    assert coarse == about(200)  # it does not move at once, so it is taken for the coarsest
    assert (seldom, later) == (about(200), about(40))


# ---- On simulated paths ----


def check(path: Path, events: list[Event], times: list[Any]) -> None:
    """What is shown is never further off than it says, and goes back only where nothing was known."""
    looks = [event for event in events if event.name == "look"]
    assert len(looks) == len(times)
    for look, (now_ms, error_ms) in zip(looks, times, strict=True):
        assert error_ms is None or abs(now_ms - look.truth_ms) <= error_ms, (path.name, look)
    for (then_ms, error_ms), (now_ms, _) in pairwise(times):
        assert now_ms >= then_ms or error_ms is None, (path.name, then_ms)
    assert times[-1][1] is not None


def check_runs(functions: ClientFunctions, path: Path, count: int) -> None:
    for first in range(0, count, 50):
        runs = [events_of(path, seed) for seed in range(first, min(first + 50, count))]
        told = [("shown_times", path.resolution_ms, [event.seen for event in events]) for events in runs]
        for events, times in zip(runs, functions.batch(told), strict=True):
            check(path, events, times)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_bound_is_true_and_time_goes_forward(functions: ClientFunctions, path: Path) -> None:
    check_runs(functions, path, 5)


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_bound_is_true_and_time_goes_forward_in_a_thousand_runs(
    functions: ClientFunctions, path: Path
) -> None:
    check_runs(functions, path, 1_000)


# ---- At a real server ----


def check_beside_the_wall(before_ms: float, now_ms: float, error_ms: float, after_ms: float) -> None:
    """What was shown between two readings of the wall clock, which the server on the same machine follows."""
    assert error_ms < 5_000
    assert now_ms + error_ms >= before_ms - STARTED_WITHIN_MS
    assert now_ms - error_ms <= after_ms + STARTED_WITHIN_MS


async def test_python_on_the_servers_own_machine_shows_its_wall_clock(server_process: ServerProcess) -> None:
    async with AsyncLockstep(server_process.url) as lockstep, asyncio.timeout(20):
        updates = lockstep.follow(str(uuid.uuid4()))
        await anext(updates)
        while not math.isfinite(lockstep.time.error_ms):
            await asyncio.sleep(0.01)
        before_ms = time.time() * 1000
        shown = lockstep.time.now_ms(), lockstep.time.error_ms
        check_beside_the_wall(before_ms, *shown, time.time() * 1000)
        await updates.aclose()


def test_node_on_the_servers_own_machine_shows_its_wall_clock(server_process: ServerProcess) -> None:
    script = f"""
        const {{ Lockstep }} = await import("./clients/js/src/index.js");
        const lockstep = new Lockstep("{server_process.url}"), {{ time }} = lockstep;
        lockstep.connect();
        while (!Number.isFinite(time.errorMs)) await new Promise((done) => setTimeout(done, 10));
        console.log(Date.now(), time.now(), time.errorMs, Date.now() + 1);
        lockstep.close();"""
    told = subprocess.check_output([str(NODE), "--input-type=module", "-e", script], text=True, timeout=30)
    check_beside_the_wall(*map(float, told.split()))
