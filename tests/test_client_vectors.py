"""clients/vectors: they are what is written today, and the engine and both clients agree with them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lockstep.rules import changes
from tests.support import client_vectors
from tests.support.client_languages import LANGUAGES, Always, ClientFunctions, functions_of


@pytest.fixture(scope="module", params=LANGUAGES)
def functions(request: pytest.FixtureRequest) -> Iterator[ClientFunctions]:
    with functions_of(request.param) as functions:
        yield functions


def text(value: Any) -> str:
    """By which 1 and true are two values, and the order of keys is none."""
    return json.dumps(value, sort_keys=True)


def test_the_vectors_are_what_is_written_today() -> None:
    written = client_vectors.files()
    assert {path.name for path in client_vectors.FOLDER.iterdir()} == set(written)
    assert sum(len(contents.encode()) for contents in written.values()) < 300_000
    for name, contents in written.items():
        assert (client_vectors.FOLDER / name).read_text() == contents, (
            f"{name} is out of date; if that is meant: python -m tests.support.client_vectors"
        )


# ---- Clocks ----


def shown_by_client(functions: ClientFunctions, state: dict[str, Any], at_ms: float) -> list[Any]:
    """As the vectors have it."""
    seats = state["participants"]
    clock, over_ms, lap, *each = functions.batch(
        [
            ("session_clock", state, at_ms),
            ("over_ms", state, at_ms),
            ("current_lap", state, at_ms),
            *(("remaining_ms", state, seat, at_ms) for seat in seats),
            *(("used_ms", state, seat, at_ms) for seat in seats),
        ]
    )
    assert (clock and clock["kind"]) == (state["clock"] and state["clock"]["kind"])
    left, used = each[: len(seats)], each[len(seats) :]
    return [clock and clock["ms"], over_ms, lap and [lap["number"], lap["ms"]], left, used]


def test_clients_show_what_the_engine_says(functions: ClientFunctions) -> None:
    for case in client_vectors.read("clocks.json")["cases"]:
        for at_ms, *shown in case["shown"]:
            assert shown_by_client(functions, case["state"], at_ms) == shown, (case["name"], at_ms)


def test_the_engine_says_it_of_states_as_they_are_sent() -> None:
    modes, statuses, is_over = set(), set(), False
    for case in client_vectors.read("clocks.json")["cases"]:
        session = client_vectors.session_of(case["state"])
        for at_ms, *shown in case["shown"]:
            assert client_vectors.shown_by_engine(session, at_ms) == shown, (case["name"], at_ms)
            is_over |= shown[1] > 0
        modes.add((session.mode, session.on_timeout))
        statuses.add(session.status)
    assert (len(modes), len(statuses), is_over) == (10, 6, True)


# ---- Changes ----


def steps_of(case: dict[str, Any], apply: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The state that `apply` makes of each step, and the step."""
    state = case["state"]
    for step in case["steps"]:
        before = text(state)
        state, old = apply(state, step["changes"]), state
        assert text(old) == before, "the state before has to stay as it is"
        yield state, step


def test_clients_apply_changes_as_the_engine_does(functions: ClientFunctions) -> None:
    def apply(state: Any, changed: Any) -> Any:
        return functions("apply_changes", state, changed)

    for case in client_vectors.read("changes.json")["cases"]:
        for state, step in steps_of(case, apply):
            assert "after" not in step or text(state) == text(step["after"]), case["name"]


def test_python_keeps_the_order_of_keys() -> None:
    with functions_of("python") as python:
        for case in client_vectors.read("changes.json")["cases"]:
            for state, step in steps_of(case, lambda state, changed: python("apply_changes", state, changed)):
                assert "after" not in step or json.dumps(state) == json.dumps(step["after"]), case["name"]


def test_the_engine_applies_changes_so_and_all_kinds_of_them_are_there() -> None:
    kinds = set()
    for case in client_vectors.read("changes.json")["cases"]:
        for state, step in steps_of(case, changes.applied):
            assert "after" not in step or json.dumps(state) == json.dumps(step["after"]), case["name"]
            kinds |= {f"{name} null" for name, value in step["changes"].items() if value is None}
            kinds |= step["changes"].keys()
            for moved in step["changes"].get("participants", ()):
                kinds.add("left" if "removed" in moved else "came" if "budget_ms" in moved else "moved")
    assert {"left", "came", "moved", "metadata", "lap_count", "clock null", "deadline_ms null"} <= kinds
    assert {"active_participant_id null", "cycle_started_at null"} <= kinds


# ---- Coming back ----


def test_clients_come_back_when_the_vectors_say_so(functions: ClientFunctions) -> None:
    vectors = client_vectors.read("backoff.json")
    for attempt, limit_ms in vectors["limits_ms"].items():
        for random in (0.0, 0.5, 1.0):
            assert functions("backoff_ms", int(attempt), Always(random)) == random * limit_ms
    for code, answer in vectors["close_codes"].items():
        assert functions("after_close", int(code)) == answer


# ---- Server time ----


def test_clients_make_the_same_of_the_servers_time_and_it_is_true(functions: ClientFunctions) -> None:
    for case in client_vectors.read("time.json")["cases"]:
        events = case["events"]
        looks = [event for event in events if event[0] == "look"]
        seen = [event[:3] if event[0] == "look" else event for event in events]
        shown = functions("shown_times", case["resolution_ms"], seen)
        for (now_ms, error_ms), look in zip(shown, looks, strict=True):
            _, local_ms, _, told_ms, told_error_ms, truth_ms = look
            # To the last bit: each language adds up the same numbers in the same order.
            assert (now_ms, error_ms) == (told_ms, told_error_ms), (case["name"], local_ms)
            # The truth was rounded when it was written.
            assert error_ms is None or abs(now_ms - truth_ms) <= error_ms + 0.001, (case["name"], local_ms)
