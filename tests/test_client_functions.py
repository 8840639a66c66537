"""What clients calculate: clocks, worked by hand; the order of states; when to come back. In both of them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.client_languages import LANGUAGES, Always, ClientFunctions, functions_of

T0 = 1_704_110_400_000  # 2024-01-01T12:00:00.000Z
A, B, C = "a", "b", "c"
USUAL_POLICY = {"per_cycle": "advance", "global": "expire", "count_up": "expire"}


@pytest.fixture(scope="module", params=LANGUAGES)
def functions(request: pytest.FixtureRequest) -> Iterator[ClientFunctions]:
    with functions_of(request.param) as functions:
        yield functions


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
    given = {
        "epoch": "0lquvc000k3f9",
        "version": 2,
        "sync_mode": mode,
        "status": "running",
        "clock": clock,
        "on_timeout": USUAL_POLICY.get(mode, "flag"),
        "cycle_started_at": iso(T0),
        "active_participant_id": active[0] if active else None,
        "participants": participants,
        "lap_count": 0,
        **changes,
    }
    if clock is None or given["status"] != "running":
        lasts_ms = None
    elif mode == "count_up":
        lasts_ms = given["max_time_ms"] - clock["elapsed_ms"] if "max_time_ms" in given else None
    else:
        lasts_ms = clock["remaining_ms"]
    return {"deadline_ms": None if lasts_ms is None else T0 + lasts_ms, **given}


def clock(functions: ClientFunctions, of: dict[str, Any], at_ms: float) -> Any:
    return functions("session_clock", of, at_ms)


def left(functions: ClientFunctions, of: dict[str, Any], at_ms: float) -> Any:
    """What each participant has left, in their order."""
    return functions.batch(("remaining_ms", of, each, at_ms) for each in of["participants"])


def used(functions: ClientFunctions, of: dict[str, Any], at_ms: float) -> Any:
    return functions.batch(("used_ms", of, each, at_ms) for each in of["participants"])


def over(functions: ClientFunctions, of: dict[str, Any], at_ms: float) -> Any:
    return functions("over_ms", of, at_ms)


def lap(functions: ClientFunctions, of: dict[str, Any], at_ms: float) -> Any:
    return functions("current_lap", of, at_ms)


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


def test_only_the_active_bank_is_spent_while_running(functions: ClientFunctions) -> None:
    assert left(functions, chess(), T0 + 12_345) == [47_655, 50_000]
    assert clock(functions, chess(), T0 + 12_345) == {"kind": "participant", "ms": 47_655}


def test_a_bank_that_ran_out_stays_at_zero_until_the_server_says_more(functions: ClientFunctions) -> None:
    assert left(functions, chess(), T0 + 60_000) == [0, 50_000]
    assert left(functions, chess(), T0 + 61_500) == [0, 50_000]
    assert clock(functions, chess(), T0 + 61_500)["ms"] == 0


def test_a_flagged_bank_shows_zero_and_its_turn_is_still_used(functions: ClientFunctions) -> None:
    flagged = chess(0)
    flagged["participants"][0]["has_expired"] = True
    assert left(functions, flagged, T0 + 3_000) == [0, 50_000]
    assert used(functions, flagged, T0 + 3_000) == [8_000, 0]


def test_a_clock_is_over_from_its_end_on_while_the_turn_goes_on(functions: ClientFunctions) -> None:
    assert over(functions, chess(), T0 + 60_000) == 0
    assert over(functions, chess(), T0 + 61_500) == 1_500  # the server has not said so yet
    flagged = chess(0, deadline_ms=None)
    assert over(functions, flagged, T0 + 3_000) == 3_000
    assert over(functions, chess(0, status="paused", cycle_started_at=None), T0 + 3_000) == 0


@pytest.mark.parametrize("on_timeout", ["advance", "expire"])
def test_a_turn_that_ends_with_its_clock_is_never_over_and_uses_no_more(
    functions: ClientFunctions, on_timeout: str
) -> None:
    ended = chess(on_timeout=on_timeout)
    assert over(functions, ended, T0 + 61_500) == 0
    assert used(functions, ended, T0 + 61_500) == [65_000, 0]
    assert left(functions, ended, T0 + 61_500) == [0, 50_000]


def test_an_instant_before_the_turn_gives_no_time_back(functions: ClientFunctions) -> None:
    assert left(functions, chess(), T0 - 700) == [60_000, 50_000]


def test_nothing_runs_while_paused(functions: ClientFunctions) -> None:
    paused = chess(41_000, status="paused", cycle_started_at=None)
    assert left(functions, paused, T0 + 9_000) == [41_000, 50_000]
    assert clock(functions, paused, T0 + 9_000) == {"kind": "participant", "ms": 41_000}


def test_nothing_runs_before_the_start(functions: ClientFunctions) -> None:
    pending = state(
        "per_participant",
        {"kind": "participant", "remaining_ms": 60_000},
        participant(A, 60_000),
        participant(B, 60_000),
        status="pending",
        cycle_started_at=None,
    )
    assert left(functions, pending, T0 + 9_000) == [60_000, 60_000]
    assert clock(functions, pending, T0 + 9_000)["ms"] == 60_000


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_a_session_that_is_over_keeps_its_banks_and_has_no_clock(
    functions: ClientFunctions, status: str
) -> None:
    over = state(
        "per_participant",
        None,
        participant(A, 41_000),
        participant(B, 0),
        status=status,
        cycle_started_at=None,
    )
    assert left(functions, over, T0 + 9_000) == [41_000, 0]
    assert clock(functions, over, T0 + 9_000) is None


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


def test_all_of_the_active_group_show_the_bank_they_share(functions: ClientFunctions) -> None:
    assert left(functions, debate(), T0 + 10_001) == [79_999, 80_000, 79_999]
    assert clock(functions, debate(), T0 + 10_001) == {"kind": "group", "ms": 79_999}


def test_no_group_spends_anything_while_paused(functions: ClientFunctions) -> None:
    assert left(functions, debate(status="paused", cycle_started_at=None), T0 + 10_001) == [
        90_000,
        80_000,
        90_000,
    ]


def test_without_an_active_participant_no_group_spends_anything(functions: ClientFunctions) -> None:
    over = debate(status="completed", clock=None, active_participant_id=None, cycle_started_at=None)
    assert left(functions, over, T0 + 10_001) == [90_000, 80_000, 90_000]


# ---- per_cycle ----


def quiz(**changes: Any) -> dict[str, Any]:
    people = participant(A), participant(B, is_active=True)
    return state(
        "per_cycle", {"kind": "cycle", "remaining_ms": 30_000}, *people, time_per_cycle_ms=30_000, **changes
    )


def test_the_cycle_is_the_clock_of_whose_turn_it_is(functions: ClientFunctions) -> None:
    assert clock(functions, quiz(), T0 + 29_999) == {"kind": "cycle", "ms": 1}
    assert left(functions, quiz(), T0 + 29_999) == [None, 1]


def test_a_cycle_that_ran_out_shows_zero_until_the_next_begins(functions: ClientFunctions) -> None:
    assert left(functions, quiz(), T0 + 30_010) == [None, 0]


def test_a_paused_cycle_stands_still(functions: ClientFunctions) -> None:
    assert clock(functions, quiz(status="paused", cycle_started_at=None), T0 + 9_000)["ms"] == 30_000


# ---- global ----


def exam(**changes: Any) -> dict[str, Any]:
    return state(
        "global", {"kind": "session", "remaining_ms": 3_600_000}, participant(A), participant(B), **changes
    )


def test_the_one_clock_of_an_exam_is_everybodys(functions: ClientFunctions) -> None:
    assert clock(functions, exam(), T0 + 61_000) == {"kind": "session", "ms": 3_539_000}
    assert left(functions, exam(), T0 + 61_000) == [3_539_000, 3_539_000]


def test_a_flagged_exam_stays_at_zero_and_says_for_how_long(functions: ClientFunctions) -> None:
    flagged = exam(clock={"kind": "session", "remaining_ms": 0}, on_timeout="flag", is_flagged=True)
    assert clock(functions, flagged, T0 + 5_000)["ms"] == 0
    assert over(functions, flagged, T0 + 5_000) == 5_000


def test_an_exam_that_is_over_has_no_clock(functions: ClientFunctions) -> None:
    over = exam(status="expired", clock=None, cycle_started_at=None)
    assert clock(functions, over, T0) is None
    assert left(functions, over, T0) == [None, None]


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


def test_a_stopwatch_counts_up_and_so_does_its_lap(functions: ClientFunctions) -> None:
    assert clock(functions, run(), T0 + 1_234) == {"kind": "elapsed", "ms": 101_234}
    assert lap(functions, run(), T0 + 1_234) == {"number": 3, "ms": 21_234}
    assert left(functions, run(), T0 + 1_234) == [None]


def test_a_stopwatch_stops_at_its_limit_and_so_does_its_lap(functions: ClientFunctions) -> None:
    limited = run(max_time_ms=105_000)
    assert clock(functions, limited, T0 + 9_000)["ms"] == 105_000
    assert lap(functions, limited, T0 + 9_000)["ms"] == 25_000


def test_a_paused_stopwatch_keeps_its_lap(functions: ClientFunctions) -> None:
    paused = run(status="paused", cycle_started_at=None)
    assert clock(functions, paused, T0 + 9_000)["ms"] == 100_000
    assert lap(functions, paused, T0 + 9_000) == {"number": 3, "ms": 20_000}


def test_a_stopwatch_without_participants_counts_all_the_same(functions: ClientFunctions) -> None:
    alone = state("count_up", {"kind": "elapsed", "elapsed_ms": 0}, lap_elapsed_ms=0)
    assert clock(functions, alone, T0 + 50)["ms"] == 50
    assert lap(functions, alone, T0 + 50) == {"number": 1, "ms": 50}


def test_there_is_no_lap_when_it_is_over_or_in_another_mode(functions: ClientFunctions) -> None:
    assert lap(functions, run(status="completed", clock=None, cycle_started_at=None), T0) is None
    assert lap(functions, chess(), T0) is None


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
        (3_661_500, {}, "1:01:02"),
        (9_301, {"decimals": 1}, "0:09.4"),
        (9_300, {"decimals": 1}, "0:09.3"),
        (19_999, {"decimals": 1}, "0:20.0"),
        (999, {"up": True}, "0:00"),
        (61_239.9, {"up": True, "decimals": 2}, "1:01.23"),
        (59_999, {"up": True, "decimals": 2}, "0:59.99"),
        (7, {"up": True, "decimals": 3}, "0:00.007"),
    ],
)
def test_a_face_reaches_zero_only_with_the_clock(
    functions: ClientFunctions, ms: float, options: dict[str, Any], face: str
) -> None:
    assert functions("format_clock", ms, options) == face


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
    functions: ClientFunctions, state_at: tuple[str, int], shown_at: tuple[str, int], is_newer: bool
) -> None:
    of, than = ({"epoch": epoch, "version": version} for epoch, version in (state_at, shown_at))
    assert functions("is_newer", of, than) is is_newer


def test_the_first_state_is_newer_than_none(functions: ClientFunctions) -> None:
    assert functions("is_newer", {"epoch": "0lquvc000k3f9", "version": 1}, None) is True


def test_what_carries_no_version_is_taken_as_it_comes(functions: ClientFunctions) -> None:
    known = {"epoch": "0lquvc000k3f9", "version": 3}
    assert functions("is_newer", {"status": "running"}, known) is True
    assert functions("is_newer", known, {"status": "running"}) is True


# ---- Coming back ----


def test_the_limit_of_the_wait_doubles_up_to_fifteen_seconds(functions: ClientFunctions) -> None:
    attempts = (0, 1, 2, 3, 4, 5, 6, 60, 2_000)
    limits = functions.batch(("backoff_ms", attempt, Always(1)) for attempt in attempts)
    assert limits == [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000, 15_000]


def test_the_wait_is_anything_up_to_the_limit(functions: ClientFunctions) -> None:
    waits = functions.batch(("backoff_ms", 3, Always(random)) for random in (0, 0.25, 0.5))
    assert waits == [0, 1_000, 2_000]
    waits = functions.batch(("backoff_ms", 5) for _ in range(400))
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
def test_a_close_code_says_whether_to_come_back(
    functions: ClientFunctions, codes: list[int], fate: str
) -> None:
    assert functions.batch(("after_close", code) for code in codes) == [fate] * len(codes)
