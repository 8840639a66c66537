"""clients/js: what its clocks show, worked by hand; order of states, time; its connection.

What concerns the connection runs with servers of both protocols.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from playwright.sync_api import Page

from tests.support.browser import chromium
from tests.support.processes import ServerProcess
from tests.support.tabs import Tab, older, opened

T0 = 1_704_110_400_000  # 2024-01-01T12:00:00.000Z
A, B, C = "a", "b", "c"


@pytest.fixture(scope="module")
def page(server_process: ServerProcess) -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server_process.url)
        page.evaluate("async () => { window.client = await import('/client/index.js'); }")
        yield page


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def participant(id_: str, left_ms: int | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "participant_id": id_,
        "total_time_ms": left_ms,
        "time_remaining_ms": left_ms,
        "time_used_ms": 0,
        "is_active": False,
        "has_expired": False,
        **changes,
    }


def state(
    mode: str, clock: dict[str, Any] | None, /, *participants: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """A state that has been running since T0, unless told otherwise."""
    active = [each["participant_id"] for each in participants if each["is_active"]]
    return {
        "epoch": "0lquvc000k3f9",
        "version": 2,
        "sync_mode": mode,
        "status": "running",
        "clock": clock,
        "cycle_started_at": iso(T0),
        "active_participant_id": active[0] if active else None,
        "participants": participants,
        "lap_count": 0,
        **changes,
    }


def clock(page: Page, of: dict[str, Any], at_ms: float) -> Any:
    return page.evaluate("([state, nowMs]) => client.sessionClock(state, nowMs)", [of, at_ms])


def left(page: Page, of: dict[str, Any], at_ms: float) -> Any:
    """What each participant has left, in their order."""
    return page.evaluate(
        "([state, nowMs]) => state.participants.map((each) => client.remainingMs(state, each, nowMs))",
        [of, at_ms],
    )


def lap(page: Page, of: dict[str, Any], at_ms: float) -> Any:
    return page.evaluate("([state, nowMs]) => client.currentLap(state, nowMs)", [of, at_ms])


# ---- per_participant ----


def chess(left_ms: int = 60_000, **changes: Any) -> dict[str, Any]:
    white = participant(A, left_ms, is_active=True, time_used_ms=5_000)
    return state(
        "per_participant",
        {"kind": "participant", "remaining_ms": left_ms},
        white,
        participant(B, 50_000),
        **changes,
    )


def test_only_the_active_bank_is_spent_while_running(page: Page) -> None:
    assert left(page, chess(), T0 + 12_345) == [47_655, 50_000]
    assert clock(page, chess(), T0 + 12_345) == {"kind": "participant", "ms": 47_655}


def test_a_bank_that_ran_out_stays_at_zero_until_the_server_says_more(page: Page) -> None:
    assert left(page, chess(), T0 + 60_000) == [0, 50_000]
    assert left(page, chess(), T0 + 61_500) == [0, 50_000]
    assert clock(page, chess(), T0 + 61_500)["ms"] == 0


def test_a_flagged_bank_shows_zero_and_its_turn_is_still_used(page: Page) -> None:
    flagged = chess(0)
    flagged["participants"][0]["has_expired"] = True
    assert left(page, flagged, T0 + 3_000) == [0, 50_000]
    used = page.evaluate(
        "([state, nowMs]) => state.participants.map((each) => client.usedMs(state, each, nowMs))",
        [flagged, T0 + 3_000],
    )
    assert used == [8_000, 0]


def test_an_instant_before_the_turn_gives_no_time_back(page: Page) -> None:
    assert left(page, chess(), T0 - 700) == [60_000, 50_000]


def test_nothing_runs_while_paused(page: Page) -> None:
    paused = chess(41_000, status="paused", cycle_started_at=None)
    assert left(page, paused, T0 + 9_000) == [41_000, 50_000]
    assert clock(page, paused, T0 + 9_000) == {"kind": "participant", "ms": 41_000}


def test_nothing_runs_before_the_start(page: Page) -> None:
    pending = state(
        "per_participant",
        {"kind": "participant", "remaining_ms": 60_000},
        participant(A, 60_000),
        participant(B, 60_000),
        status="pending",
        cycle_started_at=None,
    )
    assert left(page, pending, T0 + 9_000) == [60_000, 60_000]
    assert clock(page, pending, T0 + 9_000)["ms"] == 60_000


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_a_session_that_is_over_keeps_its_banks_and_has_no_clock(page: Page, status: str) -> None:
    over = state(
        "per_participant",
        None,
        participant(A, 41_000),
        participant(B, 0),
        status=status,
        cycle_started_at=None,
    )
    assert left(page, over, T0 + 9_000) == [41_000, 0]
    assert clock(page, over, T0 + 9_000) is None


# ---- per_group ----


def debate(**changes: Any) -> dict[str, Any]:
    return state(
        "per_group",
        {"kind": "group", "remaining_ms": 90_000},
        participant(A, 90_000, group_id="g", is_active=True),
        participant(B, 80_000, group_id="h"),
        participant(C, 90_000, group_id="g"),
        **changes,
    )


def test_all_of_the_active_group_show_the_bank_they_share(page: Page) -> None:
    assert left(page, debate(), T0 + 10_001) == [79_999, 80_000, 79_999]
    assert clock(page, debate(), T0 + 10_001) == {"kind": "group", "ms": 79_999}


def test_no_group_spends_anything_while_paused(page: Page) -> None:
    assert left(page, debate(status="paused", cycle_started_at=None), T0 + 10_001) == [90_000, 80_000, 90_000]


def test_without_an_active_participant_no_group_spends_anything(page: Page) -> None:
    over = debate(status="completed", clock=None, active_participant_id=None, cycle_started_at=None)
    assert left(page, over, T0 + 10_001) == [90_000, 80_000, 90_000]


# ---- per_cycle ----


def quiz(**changes: Any) -> dict[str, Any]:
    people = participant(A), participant(B, is_active=True)
    return state(
        "per_cycle", {"kind": "cycle", "remaining_ms": 30_000}, *people, time_per_cycle_ms=30_000, **changes
    )


def test_the_cycle_is_the_clock_of_whose_turn_it_is(page: Page) -> None:
    assert clock(page, quiz(), T0 + 29_999) == {"kind": "cycle", "ms": 1}
    assert left(page, quiz(), T0 + 29_999) == [None, 1]


def test_a_cycle_that_ran_out_shows_zero_until_the_next_begins(page: Page) -> None:
    assert left(page, quiz(), T0 + 30_010) == [None, 0]


def test_a_paused_cycle_stands_still(page: Page) -> None:
    assert clock(page, quiz(status="paused", cycle_started_at=None), T0 + 9_000)["ms"] == 30_000


# ---- global ----


def exam(**changes: Any) -> dict[str, Any]:
    return state(
        "global", {"kind": "session", "remaining_ms": 3_600_000}, participant(A), participant(B), **changes
    )


def test_the_one_clock_of_an_exam_is_everybodys(page: Page) -> None:
    assert clock(page, exam(), T0 + 61_000) == {"kind": "session", "ms": 3_539_000}
    assert left(page, exam(), T0 + 61_000) == [3_539_000, 3_539_000]


def test_a_flagged_exam_stays_at_zero(page: Page) -> None:
    flagged = exam(clock={"kind": "session", "remaining_ms": 0}, is_flagged=True)
    assert clock(page, flagged, T0 + 5_000)["ms"] == 0


def test_an_exam_that_is_over_has_no_clock(page: Page) -> None:
    over = exam(status="expired", clock=None, cycle_started_at=None)
    assert clock(page, over, T0) is None
    assert left(page, over, T0) == [None, None]


# ---- count_up ----


def run(**changes: Any) -> dict[str, Any]:
    """100 s had passed at T0, 20 s of them in the third lap."""
    runner = participant(A, is_active=True, time_used_ms=100_000)
    return state(
        "count_up",
        {"kind": "elapsed", "elapsed_ms": 100_000},
        runner,
        **{"lap_count": 2, "lap_elapsed_ms": 20_000, **changes},
    )


def test_a_stopwatch_counts_up_and_so_does_its_lap(page: Page) -> None:
    assert clock(page, run(), T0 + 1_234) == {"kind": "elapsed", "ms": 101_234}
    assert lap(page, run(), T0 + 1_234) == {"number": 3, "ms": 21_234}
    assert left(page, run(), T0 + 1_234) == [None]


def test_a_stopwatch_stops_at_its_limit_and_so_does_its_lap(page: Page) -> None:
    limited = run(max_time_ms=105_000)
    assert clock(page, limited, T0 + 9_000)["ms"] == 105_000
    assert lap(page, limited, T0 + 9_000)["ms"] == 25_000


def test_a_paused_stopwatch_keeps_its_lap(page: Page) -> None:
    paused = run(status="paused", cycle_started_at=None)
    assert clock(page, paused, T0 + 9_000)["ms"] == 100_000
    assert lap(page, paused, T0 + 9_000) == {"number": 3, "ms": 20_000}


def test_a_stopwatch_without_participants_counts_all_the_same(page: Page) -> None:
    alone = state("count_up", {"kind": "elapsed", "elapsed_ms": 0}, lap_elapsed_ms=0)
    assert clock(page, alone, T0 + 50)["ms"] == 50
    assert lap(page, alone, T0 + 50) == {"number": 1, "ms": 50}


def test_there_is_no_lap_when_it_is_over_or_in_another_mode(page: Page) -> None:
    assert lap(page, run(status="completed", clock=None, cycle_started_at=None), T0) is None
    assert lap(page, chess(), T0) is None


# ---- The face ----


@pytest.mark.parametrize(
    ("ms", "options", "face"),
    [
        (0, {}, "0:00"),
        (1, {}, "0:01"),
        (59_001, {}, "1:00"),
        (299_999.6, {}, "5:00"),
        (3_599_000, {}, "59:59"),
        (3_599_001, {}, "1:00:00"),
        (86_400_000, {}, "24:00:00"),
        (9_301, {"decimals": 1}, "0:09.4"),
        (9_300, {"decimals": 1}, "0:09.3"),
        (19_999, {"decimals": 1}, "0:20.0"),
        (999, {"up": True}, "0:00"),
        (61_239.9, {"up": True, "decimals": 2}, "1:01.23"),
        (59_999, {"up": True, "decimals": 2}, "0:59.99"),
    ],
)
def test_a_face_reaches_zero_only_with_the_clock(
    page: Page, ms: float, options: dict[str, Any], face: str
) -> None:
    assert page.evaluate("([ms, options]) => client.formatClock(ms, options)", [ms, options]) == face


# ---- The order of states ----


@pytest.mark.parametrize(
    ("state_at", "shown_at", "is_newer"),
    [
        (("0lquvc000k3f9", 3), ("0lquvc000k3f9", 2), True),
        (("0lquvc000k3f9", 10), ("0lquvc000k3f9", 9), True),
        (("0lquvc000k3f9", 2), ("0lquvc000k3f9", 2), False),
        (("0lquvc000k3f9", 1), ("0lquvc000k3f9", 2), False),
        (("0lquvc001aaaa", 1), ("0lquvc000zzzz", 40), True),
        (("0lquvc000zzzz", 40), ("0lquvc001aaaa", 1), False),
    ],
)
def test_states_are_ordered_by_epoch_and_then_by_version(
    page: Page, state_at: tuple[str, int], shown_at: tuple[str, int], is_newer: bool
) -> None:
    of, than = ({"epoch": epoch, "version": version} for epoch, version in (state_at, shown_at))
    assert page.evaluate("([state, than]) => client.isNewer(state, than)", [of, than]) is is_newer


def test_the_first_state_is_newer_than_none(page: Page) -> None:
    assert page.evaluate("client.isNewer({epoch: '0lquvc000k3f9', version: 1}, null)") is True


# ---- Coming back ----


def test_the_limit_of_the_wait_doubles_up_to_fifteen_seconds(page: Page) -> None:
    limits = page.evaluate(
        "[0, 1, 2, 3, 4, 5, 6, 60, 2000].map((attempt) => client.backoffMs(attempt, () => 1))"
    )
    assert limits == [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000, 15_000]


def test_the_wait_is_anything_up_to_the_limit(page: Page) -> None:
    assert page.evaluate("[0, 0.25, 0.5].map((random) => client.backoffMs(3, () => random))") == [
        0,
        1_000,
        2_000,
    ]
    waits = page.evaluate("Array.from({length: 400}, () => client.backoffMs(5))")
    assert min(waits) < 3_000
    assert max(waits) > 12_000
    assert all(0 <= wait < 15_000 for wait in waits)


@pytest.mark.parametrize(
    ("codes", "fate"),
    [
        ([1000, 1001, 1005, 1006, 1011, 1012, 1013, 4000, 4001, 4499, 4501], "retry"),
        ([1008, 4500, 4502, 4503, 4999], "refused"),
    ],
)
def test_a_close_code_says_whether_to_come_back(page: Page, codes: list[int], fate: str) -> None:
    assert page.evaluate("(codes) => codes.map(client.afterClose)", codes) == [fate] * len(codes)


# ---- Server time ----


def server_time(page: Page, answers: list[tuple[float, float, int]], at_ms: float) -> Any:
    """[now, error] at local `at_ms`, after answers (sent, received, timestamp)."""
    script = """([answers, atMs]) => {
        const time = new client.ServerTime(() => atMs);
        for (const [sentMs, receivedMs, timestamp] of answers) time.learn(sentMs, receivedMs, timestamp);
        return [time.now(), time.errorMs];
    }"""
    return page.evaluate(script, [answers, at_ms])


def test_the_answer_lies_in_the_middle_of_its_round_trip(page: Page) -> None:
    # Sent at 100, back at 120: the server said T0 at about 110, and had floored it.
    assert server_time(page, [(100, 120, T0)], 200) == [T0 + 90.5, 10]


def test_the_best_round_trip_counts_whenever_it_came(page: Page) -> None:
    slow, quick, slower = (0, 90, T0), (200, 202, T0 + 155), (300, 500, T0 + 300)
    assert server_time(page, [slow, quick, slower], 1_000) == [T0 + 155 + 799.5, 1]


def test_an_answer_that_contradicts_the_earlier_ones_replaces_them(page: Page) -> None:
    # The machine slept for 60 s, in which its monotonic clock stood still.
    before, after = (200, 202, T0), (300, 320, T0 + 60_100)
    assert server_time(page, [before, after], 310) == [T0 + 60_100.5, 10]


def test_a_step_of_the_wall_clock_does_not_move_the_servers_time(page: Page) -> None:
    drift = page.evaluate("""() => {
        const time = new client.ServerTime(), real = Date.now, sentMs = performance.now();
        time.learn(sentMs, sentMs, 1704110400000);
        const before = time.now();
        Date.now = () => real() - 3_600_000;
        const after = time.now();
        Date.now = real;
        return after - before;
    }""")
    assert 0 <= drift < 1_000


@pytest.mark.parametrize("jump_ms", [-3_600_000, -300, 300, 3_600_000])
def test_server_time_is_unknown_from_a_jump_of_the_clocks_to_the_next_answer(
    page: Page, jump_ms: int
) -> None:
    # The machine slept while the monotonic clock stood still, or the wall clock was set: nobody can tell.
    errors = page.evaluate(
        """([jumpMs, timestamp]) => {
            let localMs = 100, wallMs = 5_000;
            const time = new client.ServerTime(() => localMs, () => wallMs), errors = [];
            const learn = (ms) => time.learn(localMs - ms, localMs, timestamp + localMs);
            learn(20);
            errors.push(time.errorMs);
            wallMs += jumpMs;
            errors.push(String(time.errorMs));
            learn(30);
            errors.push(time.errorMs);
            return errors;
        }""",
        [jump_ms, T0],
    )
    assert errors == [10, "Infinity", 15]


def test_clocks_that_drift_apart_slowly_leave_server_time_as_it_is(page: Page) -> None:
    # An hour of answers, between which one clock gains 10 ms on the other each time.
    errors = page.evaluate(
        """(timestamp) => {
            let localMs = 0, wallMs = 0;
            const time = new client.ServerTime(() => localMs, () => wallMs), errors = new Set();
            for (let i = 0; i < 720; i++) {
                localMs += 5_000, wallMs += 5_010;
                if (i) errors.add(time.errorMs);
                time.learn(localMs - 20, localMs, timestamp + localMs);
            }
            return [...errors];
        }""",
        T0,
    )
    assert errors == [10]


# ---- The connection ----

SECRET = "a secret of more than thirty-two bytes, for tests only"
OTHER_SESSION = "00000000-0000-4000-8000-000000000001"


@pytest.fixture(params=["v2", pytest.param("v1", marks=pytest.mark.long)])
def spoken(request: pytest.FixtureRequest) -> str:
    """The protocol: v1 with a server that does not know v2."""
    return str(request.param)


either = pytest.mark.parametrize("spoken", ["v2"], indirect=True)
"""Before a protocol is chosen there is nothing to compare."""


@pytest.fixture
def tab(page: Page, server_process: ServerProcess, spoken: str) -> Iterator[Tab]:
    yield from tab_at(page, server_process, spoken)


def tab_at(page: Page, server: ServerProcess, spoken: str) -> Iterator[Tab]:
    assert page.context.browser is not None
    with ExitStack() as stack:
        url = stack.enter_context(older(server.port)).url if spoken == "v1" else server.url
        yield stack.enter_context(opened(page.context.browser, url))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants tokens."""
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    server = ServerProcess(f"--jwt-secret-file={secret}")
    yield server
    server.stop()


@pytest.fixture
def guarded_tab(page: Page, guarded: ServerProcess, spoken: str) -> Iterator[Tab]:
    yield from tab_at(page, guarded, spoken)


def token(sid: str = "*", ttl_s: float = 600) -> str:
    claims = {"sid": sid, "scope": "view", "sub": "u1", "exp": int(time.time() + ttl_s)}
    return jwt.encode(claims, SECRET, algorithm="HS256")


# ---- The connection: tokens ----


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("{ token: args[0] }", "online"),
        ("{ token: () => args[0] }", "online"),
        ("{ token: async () => args[0] }", "online"),
        ("{ token: args[0] + 'x' }", "refused"),
        ("{ token: null }", "refused"),
        ("{}", "refused"),
    ],
    ids=["token", "function", "async function", "forged", "null", "none"],
)
def test_who_has_a_token_is_let_in_and_who_has_none_does_not_come_back(
    guarded_tab: Tab, options: str, status: str
) -> None:
    ended = guarded_tab.run(
        f"""(await follow({options})).connect();
        await until(() => log.length);
        return [link.status, sockets.length];""",
        token(),
    )
    assert ended == [status, 1]


@pytest.mark.parametrize("kind", ["", "async "])
def test_a_token_function_is_asked_anew_for_each_connection(guarded_tab: Tab, kind: str) -> None:
    outcome = guarded_tab.run(
        f"""let asked = 0;
        (await follow({{ token: {kind}() => (asked++, args[0]) }})).connect();
        await until(() => link.status === "online");
        sockets[0].close(4000);
        await until(() => statuses().length === 3);
        return [asked, statuses()];""",
        token(),
    )
    assert outcome == [2, ["online", "offline", "online"]]


def test_a_token_that_ran_out_is_followed_by_another(guarded_tab: Tab) -> None:
    asked = guarded_tab.run(
        """let asked = 0;
        (await follow({ token: async () => args[asked++] ?? args[1] })).connect();
        await until(() => log.some(({ code }) => code === 4501));
        await until(() => link.status === "online");
        return asked;""",
        token(ttl_s=-3),  # with the server's leeway it lasts for two seconds more
        token(),
    )
    assert asked == 2


@pytest.mark.parametrize("kind", ["none", "expired"])
def test_a_token_function_without_a_good_token_is_asked_again_and_again(guarded_tab: Tab, kind: str) -> None:
    codes = guarded_tab.run(
        """(await follow({ token: () => args[0] })).connect();
        await until(() => log.length >= 3);
        return [link.status, ...log.map(({ code }) => code)];""",
        token(ttl_s=-60) if kind == "expired" else "",
    )
    assert codes == ["offline", 4501, 4501, 4501]


def test_a_token_for_another_session_ends_it(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        """let asked = 0;
        (await follow({ token: () => (asked++, args[0]) })).connect();
        await until(() => log.length);
        return [asked, link.status, log[0].code, timers.size];""",
        token(sid=OTHER_SESSION),
    )
    assert outcome == [1, "refused", 4503, 0]


@pytest.mark.parametrize(
    "fails",
    [
        "() => { throw new Error('no refresh: offline'); }",
        "async () => { throw new Error('no refresh: offline'); }",
        "() => Promise.reject()",
        "() => { throw Symbol('odd'); }",
        "() => { throw Object.create(null); }",
        "() => ({ no: 'string' })",
        "() => ({ then: () => { throw 1; } })",
        "() => 'two words'",
    ],
)
def test_a_token_function_that_fails_costs_one_attempt(guarded_tab: Tab, fails: str) -> None:
    outcome = guarded_tab.run(
        f"""let asked = 0;
        const fails = {fails};
        (await follow({{ token: () => (++asked % 2 ? fails() : args[0]) }})).connect();
        await until(() => link.status === "online");
        sockets[0].close(4000);
        await until(() => statuses().length === 5);
        return [asked, statuses(), log[0].reason];""",
        token(),
    )
    assert outcome == [4, ["offline", "online", "offline", "offline", "online"], "No token"]


@either
def test_a_token_that_never_comes_costs_one_attempt(guarded_tab: Tab) -> None:
    guarded_tab.page.clock.install()
    guarded_tab.run(
        """const asked = window.asked = [];
        const token = () => new Promise((resolve) => asked.push(resolve));
        (await follow({ token })).connect();""",
    )
    guarded_tab.page.clock.run_for(2_000)
    assert guarded_tab.run("return [asked.length, log.length]") == [1, 0]
    guarded_tab.page.clock.run_for(8_000)
    assert guarded_tab.run("return log.map(({ status, reason }) => [status, reason])") == [
        ["offline", "No token"]
    ]
    guarded_tab.page.clock.run_for(500)
    outcome = guarded_tab.run(
        """asked[0](args[0]);  // too late, and no longer wanted
        await 0;
        const before = sockets.length;
        asked[1](args[0]);
        await until(() => link.status === "online");
        return [before, sockets.length, asked.length];""",
        token(),
    )
    assert outcome == [0, 1, 2]


@either
@pytest.mark.parametrize("settle", ["resolve(args[0])", "reject(new Error('too late'))"])
def test_to_close_while_a_token_is_awaited_leaves_nothing_behind(guarded_tab: Tab, settle: str) -> None:
    outcome = guarded_tab.run(
        f"""let resolve, reject;
        const token = () => new Promise((...both) => ([resolve, reject] = both));
        (await follow({{ token }})).connect();
        link.close();
        {settle};
        dispatchEvent(new Event("online"));
        await new Promise(requestAnimationFrame);
        return [statuses(), sockets.length, timers.size];""",
        token(),
    )
    assert outcome == [["closed"], 0, 0]


@either
def test_a_token_function_may_close(guarded_tab: Tab) -> None:
    outcome = guarded_tab.run(
        """(await follow({ token: () => { link.close(); return args[0]; } })).connect();
        await new Promise(requestAnimationFrame);
        return [statuses(), sockets.length, timers.size];""",
        token(),
    )
    assert outcome == [["closed"], 0, 0]


@either
@pytest.mark.parametrize("wrong", ["Promise.resolve('x')", "{}", "'Bearer x'"])
def test_what_cannot_be_a_token_is_refused_at_once(tab: Tab, wrong: str) -> None:
    thrown = tab.run(f"return await follow({{ token: {wrong} }}).catch((error) => error.message)")
    assert thrown == "token is neither a JWT nor a function that gives one"


# ---- The connection: callbacks ----


def test_listeners_that_throw_do_not_keep_it_from_coming_back(tab: Tab) -> None:
    tab.tolerated = {"of the application"}  # which hears of them, from the browser
    outcome = tab.run("""
        await follow();
        for (const type of ["status", "missing"]) {
            link.addEventListener(type, () => { throw new Error("of the application"); });
        }
        link.connect();
        await until(measured);
        sockets[0].close(4000);
        await until(() => sockets.length === 2 && measured());
        return statuses();""")
    assert outcome == ["online", "offline", "online"]


@pytest.mark.parametrize("type_", ["online", "offline", "missing"])
def test_a_listener_may_close(tab: Tab, type_: str) -> None:
    outcome = tab.run(
        """await follow();
        for (const type of ["status", "missing"]) {
            link.addEventListener(type, ({ detail }) => (detail.status ?? type) === args[0] && link.close());
        }
        link.connect();
        await until(() => link.status !== "connecting");
        if (args[0] === "offline") sockets[0].close(4000);
        await until(() => link.status === "closed");
        return [statuses().filter((status) => status === "closed"), sockets.length, timers.size];""",
        type_,
    )
    assert outcome == [["closed"], 1, 0]


def test_what_was_closed_can_be_connected_again(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow()).connect();
        await until(measured);
        link.close();
        link.connect();
        await until(measured);
        return statuses();""")
    assert outcome == ["online", "closed", "connecting", "online"]


# ---- The connection: how it ends ----


def test_a_session_that_is_deleted_is_gone(tab: Tab, spoken: str) -> None:
    outcome = tab.run(
        """(await follow({}, location.origin + "/ws", args[0])).connect();
        await until(measured);
        await fetch("/v1/sessions", { method: "POST", headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ session_id: args[0], sync_mode: "count_up", participants: [] }) });
        await until(() => link.state);
        await fetch("/v1/sessions/" + args[0], { method: "DELETE" });
        await until(() => link.status === "gone");
        return [log.map(({ event, status }) => event ?? status), link.state, timers.size === 0];""",
        str(uuid.uuid4()),
    )
    # In protocol v2 the subscription stays: the session may be created anew.
    assert outcome == [["online", "missing", "state", "deleted", "gone"], None, spoken == "v1"]


def test_a_close_of_1000_alone_is_a_lost_connection(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow()).connect();
        await until(measured);
        sockets[0].close(1000);  // as a proxy may do
        await until(() => statuses().length === 3);
        return [statuses(), log.find(({ status }) => status === "offline").code];""")
    assert outcome == [["online", "offline", "online"], 1000]


@pytest.mark.parametrize("spoken", ["v1"], indirect=True)
def test_the_end_of_an_earlier_session_of_the_id_ends_nothing(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow()).connect();
        await until(measured);
        say(JSON.stringify({ type: "STATE_UPDATE", state: { epoch: "0lquvc001aaaa", version: 1 } }));
        say(JSON.stringify({ type: "SESSION_DELETED", epoch: "0lquvc000zzzz", deleted: true }));
        const kept = link.state.version;
        sockets[0].close(1000);
        await until(() => statuses().length === 3);
        return [statuses(), kept];""")
    assert outcome == [["online", "offline", "online"], 1]


def test_a_session_id_that_is_none_is_refused(tab: Tab) -> None:
    outcome = tab.run("""
        (await follow({}, location.origin + "/ws", "half-a-link")).connect();
        await until(() => log.length);
        return [link.status, log[0].code];""")
    assert outcome == ["refused", 1008]


# ---- The connection: what cannot be understood ----


JUNK = {
    "v1": [
        "",
        "<!doctype html><title>502 Bad Gateway</title>",
        '{"type":"STATE_UPDATE","state":{"session_id":"',
        "null",
        "5",
        "[]",
        "{}",
        '{"type":5}',
        '{"type":"STATE_UPDATE"}',
        '{"type":"STATE_UPDATE","state":null}',
        '{"type":"STATE_SYNC","state":"x"}',
        '{"type":"STATE_SYNC","state":[]}',
        '{"type":"PONG","id":PING_ID}',
        '{"type":"PONG","id":PING_ID,"timestamp":"soon"}',
    ],
    "v2": [
        "",
        "5",
        '{"type":5}',
        '{"type":"SNAPSHOT","position":"a"}',
        '{"type":"SNAPSHOT","position":"a","state":[]}',
        '{"type":"SUBSCRIBED"}',
        '{"type":"SUBSCRIBED","position":"a","state":"x"}',
        '{"type":"SUBSCRIBED","updates":{}}',
        '{"type":"SUBSCRIBED","updates":[{"type":"UPDATE"}]}',
        '{"type":"UPDATE","from":"a","position":"b","events":[]}',
        '{"type":"UPDATE","from":"a","position":"b","events":[],"changes":[]}',
        '{"type":"UPDATE","from":"a","position":"b","events":[null],"changes":{}}',
        '{"type":"UPDATE","from":"a","position":"b","events":[],"changes":{"participants":{}}}',
        '{"type":"UPDATE","from":"a","position":"b","events":[],"changes":{"participants":[null]}}',
        '{"type":"UPDATE","from":null,"position":"b","events":[],"changes":{}}',
        '{"type":"MESSAGE","message":"x"}',
        '{"type":"PONG","id":PING_ID,"timestamp":5}',
        '{"type":"PONG","id":PING_ID,"timestamp":5,"receivedAt":"soon"}',
    ],
}


@pytest.mark.parametrize(
    ("spoken", "junk"), [(spoken, junk) for spoken in JUNK for junk in JUNK[spoken]], indirect=["spoken"]
)
def test_junk_is_an_event_and_changes_nothing(tab: Tab, junk: str) -> None:
    outcome = tab.run(
        """const sent = [];
        await follow();
        const native = WebSocket.prototype.send;
        WebSocket.prototype.send = function (data) { sent.push(JSON.parse(data)); native.call(this, data); };
        link.connect();
        await until(() => sent.some(({ type }) => type === "PING"));
        say(args[0].replace("PING_ID", sent.at(-1).id ?? sent.at(-2).id));
        await until(measured);
        return [statuses(), link.state, Math.abs(link.time.now() - Date.now()) < 2_000,
            log.filter(({ event }) => event === "error").map(({ code }) => code)];""",
        junk,
    )
    assert outcome == [["online"], None, True, ["INVALID_MESSAGE"]]


@pytest.mark.parametrize("name", ["NEWS", "toString", "__proto__", "constructor"])
def test_a_message_of_the_application_is_handed_on(tab: Tab, spoken: str, name: str) -> None:
    outcome = tab.run(
        """(await follow()).connect();
        await until(measured);
        const message = { type: args[0], text: "hello" };
        say(JSON.stringify(args[1] === "v1" ? message : { type: "MESSAGE", message }));
        say('{"type":"PONG","id":1,"timestamp":5}');  // nobody asked
        await until(measured);
        const heard = log.filter(({ event, text }) => event === "message" && text === "hello");
        return [link.status, heard.length, Math.abs(link.time.now() - Date.now()) < 2_000];""",
        name,
        spoken,
    )
    assert outcome == ["online", 1, True]


# ---- The connection: a machine that slept ----


def test_a_sleep_in_which_the_monotonic_clock_stood_still_is_noticed(tab: Tab) -> None:
    # The server's clock has gone on: what it says from then on is an hour later.
    outcome = tab.run("""
        const real = Date.now, HOUR_MS = 3_600_000;
        let sleptMs = 0;
        window.WebSocket = class extends WebSocket {
            set onmessage(hear) {
                super.onmessage = hear && (({ data }) => {
                    const message = JSON.parse(data);
                    for (const field of ["timestamp", "receivedAt"]) {
                        if (message[field]) message[field] += sleptMs;
                    }
                    hear({ data: JSON.stringify(message) });
                });
            }
        };
        (await follow()).connect();
        await until(measured);
        Date.now = () => real() + (sleptMs = HOUR_MS);
        const errorMs = link.time.errorMs;  // in the very first frame, before any timer
        const seen = [];
        link.addEventListener("status", () => seen.push([link.status, String(link.time.errorMs)]));
        await until(() => seen.length === 2);
        const isRight = Math.abs(link.time.now() - (real() + HOUR_MS)) <= link.time.errorMs + 1_000;
        return [String(errorMs), seen[0], seen[1][0], link.time.errorMs < 5_000, isRight, sockets.length];""")
    assert outcome == ["Infinity", ["unsure", "Infinity"], "online", True, True, 1]


def test_a_sleep_in_which_the_monotonic_clock_ran_on_is_noticed(tab: Tab) -> None:
    tab.page.clock.install()
    tab.run("(await follow()).connect(); await until(measured);")
    tab.page.clock.fast_forward("01:00:00")
    outcome = tab.run("""
        await until(() => statuses().includes("unsure"));
        await until(measured);
        return statuses().slice(0, 2);""")
    assert outcome[:2] == ["online", "unsure"]


@pytest.mark.parametrize("step_ms", [-86_400_000, 86_400_000])
def test_a_wall_clock_that_is_set_costs_a_measurement_and_no_more(tab: Tab, step_ms: int) -> None:
    outcome = tab.run(
        """const real = Date.now;
        (await follow()).connect();
        await until(measured);
        Date.now = () => real() + args[0];
        await until(() => statuses().length === 3);
        return [statuses(), measured(), Math.abs(link.time.now() - real()) < 2_000, sockets.length];""",
        step_ms,
    )
    assert outcome == [["online", "unsure", "online"], True, True, 1]


def test_an_answer_from_before_a_sleep_is_not_believed(tab: Tab, spoken: str) -> None:
    # It waited in the socket: by the monotonic clock, which stood still, it was quick.
    outcome = tab.run(
        """const real = Date.now, native = WebSocket.prototype.send, sent = [];
        WebSocket.prototype.send = function (data) {
            const message = JSON.parse(data);
            sent.push(message);
            if (message.type !== "PING") native.call(this, data);
        };
        const pong = (id, ms) => {
            const more = args[0] === "v2" ? { receivedAt: ms, errorMs: 0 } : {};
            say(JSON.stringify({ type: "PONG", id, timestamp: ms, ...more }));
        };
        (await follow()).connect();
        await until(() => sent.some(({ type }) => type === "PING"));
        const ping = sent.find(({ type }) => type === "PING");
        Date.now = () => real() + 3_600_000;
        pong(ping.id, real());
        const errorMs = link.time.errorMs, again = sent.at(-1);
        pong(again.id, real() + 3_600_000);
        const isRight = Math.abs(link.time.now() - Date.now()) < 2_000;
        return [String(errorMs), again.type, again.id > ping.id, measured(), isRight];""",
        spoken,
    )
    assert outcome == ["Infinity", "PING", True, True, True]


def test_a_machine_that_slept_while_it_waited_to_come_back_comes_back_at_once(tab: Tab) -> None:
    outcome = tab.run("""
        const real = Date.now;
        Math.random = () => 100;  // the wait is as long as it can be
        (await follow()).connect();
        await until(measured);
        sockets[0].close(4000);
        await until(() => link.status === "offline");
        Date.now = () => real() + 3_600_000;
        await until(measured);  // within 20 s
        return log.find(({ status }) => status === "offline").retryMs;""")
    assert outcome == 50_000


# ---- The connection: addresses ----


@either
@pytest.mark.parametrize(
    ("url", "connects_to"),
    [
        ("/ws", "ws://HOST/ws?sessionId=ID"),
        ("ws", "ws://HOST/ws?sessionId=ID"),
        ("./ws?a=b#c", "ws://HOST/ws?a=b&sessionId=ID"),
        ("//HOST/ws", "ws://HOST/ws?sessionId=ID"),
        ("http://HOST/ws", "ws://HOST/ws?sessionId=ID"),
        ("ws://HOST/ws", "ws://HOST/ws?sessionId=ID"),
        ("https://HOST/ws", "wss://HOST/ws?sessionId=ID"),
        ("wss://HOST/ws", "wss://HOST/ws?sessionId=ID"),
    ],
)
def test_an_address_is_relative_to_the_page_and_of_either_scheme(
    tab: Tab, url: str, connects_to: str
) -> None:
    host = tab.url.removeprefix("http://")
    tab.page.evaluate("history.replaceState(null, '', '/?session=x#y')")
    address = tab.run(
        "(await follow({}, args[0], args[1])).connect(); link.close(); return sockets[0].url",
        url.replace("HOST", host),
        OTHER_SESSION,
    )
    assert address == connects_to.replace("HOST", host).replace("ID", OTHER_SESSION)


@either
@pytest.mark.parametrize("url", ["ftp://example.org/ws", "http://", "javascript:0"])
def test_an_address_that_cannot_be_one_is_refused_at_once(tab: Tab, url: str) -> None:
    assert (
        tab.run("return await follow({}, args[0]).then(() => null, (error) => error.name)", url)
        == "TypeError"
    )
