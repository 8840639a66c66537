"""clients/js/lockstep.js: what its clocks show, worked by hand; order of states, backoff, server time."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.sync_api import Page

from tests.browser import chromium
from tests.processes import ServerProcess

T0 = 1_704_110_400_000  # 2024-01-01T12:00:00.000Z
A, B, C = "a", "b", "c"


@pytest.fixture(scope="module")
def page(server_process: ServerProcess) -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server_process.url)
        page.evaluate("async () => { window.client = await import('/lockstep.js'); }")
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
        ([1000], "gone"),
        ([1001, 1005, 1006, 1011, 1012, 1013, 4000, 4001, 4499], "retry"),
        ([1008, 4500, 4999], "refused"),
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


def test_a_step_of_the_wall_clock_changes_nothing(page: Page) -> None:
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


# ---- Tokens ----


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("{ token: '%s' }", "online"),
        ("{ token: () => '%s' }", "online"),
        ("{ token: '%sx' }", "refused"),
        ("{}", "refused"),
    ],
    ids=["token", "function", "forged", "none"],
)
def test_who_has_a_token_is_let_in_and_who_has_none_does_not_come_back(
    page: Page, options: str, status: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of more than thirty-two bytes, for tests only")
    claims = {"sid": "*", "scope": "view", "exp": int(time.time()) + 600}
    token = jwt.encode(claims, secret.read_text(), algorithm="HS256")
    server = ServerProcess(f"--jwt-secret-file={secret}")
    script = """async () => {
        const { Lockstep } = await import('/lockstep.js');
        const link = new Lockstep(location.origin + '/ws', crypto.randomUUID(), OPTIONS);
        link.connect();
        while (link.status === 'connecting') await new Promise((done) => setTimeout(done, 10));
        return link.status;
    }"""
    given = options % token if "%s" in options else options
    assert page.context.browser is not None
    with page.context.browser.new_context() as context:
        try:
            tab = context.new_page()
            tab.goto(server.url)
            assert tab.evaluate(script.replace("OPTIONS", given)) == status
        finally:
            server.stop()
