"""The JSON form of a session: what it begins with, what is absent, what is null, how instants are written."""

import json
from itertools import product
from typing import Any

import pytest
import ujson
from msgspec.structs import replace

from lockstep.rules import state, state_json
from lockstep.rules.state import Mode, OnTimeout, Session, Status
from lockstep.wire import heads
from tests.support import settled_rules as engine
from tests.support.sessions_under_test import DAY, EPOCH, SESSION, T0, A, B, pending, running

ALWAYS = {
    "session_id",
    "epoch",
    "version",
    "commit",
    "deadline_ms",
    "sync_mode",
    "status",
    "participants",
    "active_participant_id",
    "total_time_ms",
    "time_per_cycle_ms",
    "increment_ms",
    "clock",
    "on_timeout",
    "cycle_started_at",
    "session_started_at",
    "session_completed_at",
    "created_at",
    "updated_at",
    "metadata",
}
IN_EVERY_PARTICIPANT = {
    "participant_id",
    "participant_index",
    "budget_ms",
    "total_time_ms",
    "time_remaining_ms",
    "time_used_ms",
    "cycle_count",
    "is_active",
    "has_expired",
}


def a_session_of(mode: Mode, **fields: Any) -> Session:
    groups = ("red", "blue") if mode is Mode.PER_GROUP else None
    fields = {"total_time_ms": 60_000, "time_per_cycle_ms": 60_000} | fields
    return pending(60_000, 60_000, mode=mode, groups=groups, **fields)


def read(session: Session) -> dict[str, Any]:
    """As anybody's parser reads it."""
    data: dict[str, Any] = json.loads(state_json.to_json(session))
    return data


# --- the beginning -------------------------------------------------------------------------------


def test_a_state_begins_with_what_identifies_it_and_its_deadline() -> None:
    session = replace(running(60_000, 60_000), commit="aB3_-xyz")
    assert state_json.to_json(session).startswith(
        f'{{"session_id":"{SESSION}","epoch":"{EPOCH}","version":2,"commit":"aB3_-xyz",'
        f'"deadline_ms":{T0 + 60_000},"'.encode()
    )


def test_a_state_without_a_deadline_begins_with_null() -> None:
    session = replace(pending(60_000), commit="aB3_-xyz")
    assert state_json.to_json(session).startswith(
        f'{{"session_id":"{SESSION}","epoch":"{EPOCH}","version":1,"commit":"aB3_-xyz","deadline_ms":null,"'.encode()
    )


@pytest.mark.parametrize("mode", list(Mode))
def test_the_first_seven_keys_are_the_same_in_every_mode(mode: Mode) -> None:
    first = ["session_id", "epoch", "version", "commit", "deadline_ms", "sync_mode", "status"]
    for session in (a_session_of(mode), engine.start(a_session_of(mode), T0).session):
        assert list(read(session))[:7] == first
        assert list(read(replace(session, presence=True)))[:8] == [*first, "presence"]


@pytest.mark.parametrize("mode", list(Mode))
def test_the_beginning_of_a_state_tells_its_status_and_whether_it_has_presence(mode: Mode) -> None:
    longest = replace(a_session_of(mode), version=10**15 - 1, commit="aB3_-xyz")
    for status, presence in product(Status, (True, False)):
        raw = state_json.to_json(replace(longest, status=status, presence=presence))
        beginning = raw[: heads.BEGINNING_BYTES]
        assert heads.read_status(beginning) is status
        assert heads.has_presence(beginning) is presence


@pytest.mark.parametrize("junk", [b"", b"{}", b'{"presence":true,', b'"status":"pending","presence":true,'])
def test_what_is_no_state_has_no_presence(junk: bytes) -> None:
    assert not heads.has_presence(junk)


def test_metadata_cannot_give_a_session_presence() -> None:
    assert not heads.has_presence(state_json.to_json(pending(60_000, metadata={"presence": True})))


def test_a_state_is_compact_whatever_is_in_it() -> None:
    session = replace(running(60_000, 60_000), metadata={})
    raw = state_json.to_json(session)
    assert raw == json.dumps(json.loads(raw), separators=(",", ":")).encode()


# --- what is there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "extra"),
    [
        (Mode.PER_PARTICIPANT, set()),
        (Mode.PER_GROUP, set()),
        (Mode.PER_CYCLE, set()),
        (Mode.GLOBAL, {"is_flagged"}),
        (Mode.COUNT_UP, {"lap_count", "lap_elapsed_ms"}),
    ],
)
def test_a_state_has_these_fields_and_no_other(mode: Mode, extra: set[str]) -> None:
    session = a_session_of(mode)
    for each in (session, engine.start(session, T0).session, engine.complete(session, T0).session):
        assert set(read(each)) == ALWAYS | extra
        assert set(read(replace(each, presence=True))) == ALWAYS | extra | {"presence"}


def test_a_participant_has_these_fields_and_no_other() -> None:
    for participant in read(pending(60_000, 60_000))["participants"]:
        assert set(participant) == IN_EVERY_PARTICIPANT
    for participant in read(a_session_of(Mode.PER_GROUP))["participants"]:
        assert set(participant) == IN_EVERY_PARTICIPANT | {"group_id"}


def test_an_optional_field_that_was_not_given_is_absent() -> None:
    bare = read(pending(mode=Mode.COUNT_UP))
    assert "max_time_ms" not in bare
    assert read(pending(mode=Mode.COUNT_UP, max_time_ms=5_000))["max_time_ms"] == 5_000


def test_an_unset_field_is_null_or_zero_as_the_contract_says() -> None:
    data = read(pending(None, mode=Mode.COUNT_UP))
    for key in (
        "active_participant_id",
        "total_time_ms",
        "time_per_cycle_ms",
        "deadline_ms",
        "cycle_started_at",
        "session_started_at",
        "session_completed_at",
    ):
        assert data[key] is None
    assert (data["increment_ms"], data["metadata"], data["lap_count"]) == (0, {}, 0)
    participant = data["participants"][0]
    assert (participant["budget_ms"], participant["total_time_ms"], participant["time_remaining_ms"]) == (
        None,
        None,
        None,
    )


def test_the_words_are_those_of_the_contract() -> None:
    data = read(engine.start(a_session_of(Mode.PER_GROUP, on_timeout=OnTimeout.ADVANCE), T0).session)
    assert (data["sync_mode"], data["status"], data["on_timeout"]) == ("per_group", "running", "advance")
    assert [mode.value for mode in Mode] == [
        "per_participant",
        "per_cycle",
        "per_group",
        "global",
        "count_up",
    ]
    assert [policy.value for policy in OnTimeout] == ["flag", "advance", "expire"]
    assert {status.value for status in state.Status} == {
        "pending",
        "running",
        "paused",
        "expired",
        "completed",
        "cancelled",
    }


def test_a_participant_shows_its_budget_what_is_left_and_what_was_used() -> None:
    session = engine.switch(running(60_000, 30_000), T0 + 4_000).session
    assert read(session)["participants"] == [
        {
            "participant_id": A,
            "participant_index": 0,
            "budget_ms": 60_000,
            "total_time_ms": 56_000,
            "time_remaining_ms": 56_000,
            "time_used_ms": 4_000,
            "cycle_count": 1,
            "is_active": False,
            "has_expired": False,
        },
        {
            "participant_id": B,
            "participant_index": 1,
            "budget_ms": 30_000,
            "total_time_ms": 30_000,
            "time_remaining_ms": 30_000,
            "time_used_ms": 0,
            "cycle_count": 0,
            "is_active": True,
            "has_expired": False,
        },
    ]


def test_participants_stand_in_the_order_given_and_not_in_that_of_their_turns() -> None:
    data = read(running(60_000, 60_000, order=(9, 2)))
    assert [participant["participant_index"] for participant in data["participants"]] == [9, 2]
    assert data["active_participant_id"] == B


def test_the_active_participant_stays_active_while_paused() -> None:
    data = read(engine.pause(running(60_000, 60_000), T0 + 1_000).session)
    assert data["active_participant_id"] == A
    assert [participant["is_active"] for participant in data["participants"]] == [True, False]


@pytest.mark.parametrize(
    ("mode", "clock"),
    [
        (Mode.PER_PARTICIPANT, {"kind": "participant", "remaining_ms": 60_000}),
        (Mode.PER_GROUP, {"kind": "group", "remaining_ms": 60_000}),
        (Mode.PER_CYCLE, {"kind": "cycle", "remaining_ms": 60_000}),
        (Mode.GLOBAL, {"kind": "session", "remaining_ms": 60_000}),
        (Mode.COUNT_UP, {"kind": "elapsed", "elapsed_ms": 0}),
    ],
)
def test_the_clock_is_what_runs_or_stands_still_and_null_at_the_end(
    mode: Mode, clock: dict[str, Any]
) -> None:
    session = a_session_of(mode)
    assert read(session)["clock"] == clock
    session = engine.start(session, T0).session
    assert read(session)["clock"] == clock
    session = engine.pause(session, T0 + 4_000).session
    reading = "elapsed_ms" if mode is Mode.COUNT_UP else "remaining_ms"
    assert read(session)["clock"] == clock | {reading: 4_000 if mode is Mode.COUNT_UP else 56_000}
    assert read(engine.complete(session, T0 + 5_000).session)["clock"] is None


def test_numbers_are_integers_and_truths_are_booleans() -> None:
    session = engine.adjust(running(60_000, DAY), T0 + 1, delta_ms=7, target=A).session
    data = read(session)
    for key in ("version", "deadline_ms", "increment_ms"):
        assert type(data[key]) is int
    for participant in data["participants"]:
        for key in (
            "participant_index",
            "budget_ms",
            "total_time_ms",
            "time_remaining_ms",
            "time_used_ms",
            "cycle_count",
        ):
            assert type(participant[key]) is int
        assert (type(participant["is_active"]), type(participant["has_expired"])) == (bool, bool)


# --- instants ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instant_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (T0, "2024-01-01T00:00:00.000Z"),
        (T0 - 1, "2023-12-31T23:59:59.999Z"),
        (T0 + 59 * DAY + 45_296_070, "2024-02-29T12:34:56.070Z"),
        (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_an_instant_is_written_to_the_millisecond_and_read_back(instant_ms: int, text: str) -> None:
    assert state_json.iso(instant_ms) == text
    assert state_json.from_iso(text) == instant_ms


def test_every_millisecond_of_a_second_is_read_back() -> None:
    assert all(state_json.from_iso(state_json.iso(T0 + ms)) == T0 + ms for ms in range(1_000))


def test_no_instant_is_null() -> None:
    assert state_json.iso(None) is None
    assert state_json.from_iso(None) is None


def test_a_state_shows_when_it_was_created_started_changed_and_ended() -> None:
    session = engine.start(pending(60_000), T0 + 1_500).session
    session = engine.complete(session, T0 + 2_750).session
    data = read(session)
    assert data["created_at"] == "2024-01-01T00:00:00.000Z"
    assert data["session_started_at"] == "2024-01-01T00:00:01.500Z"
    assert data["updated_at"] == data["session_completed_at"] == "2024-01-01T00:00:02.750Z"
    assert data["cycle_started_at"] is None


def test_a_deadline_is_an_instant_in_milliseconds() -> None:
    data = read(engine.start(pending(60_000), T0 + 1_500).session)
    assert (data["deadline_ms"], data["cycle_started_at"]) == (T0 + 61_500, "2024-01-01T00:00:01.500Z")


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_a_state_read_back_is_the_state_written(mode: Mode) -> None:
    session = replace(a_session_of(mode, max_time_ms=90_000, increment_ms=5), commit="aB3_-xyz")
    started = engine.start(session, T0 + 1).session
    paused = engine.pause(engine.switch(started, T0 + 3).session, T0 + 7).session
    for each in (session, started, paused, engine.complete(paused, T0 + 9).session):
        assert state_json.from_json(state_json.to_json(each)) == each
        with_presence = replace(each, presence=True)
        assert state_json.from_json(state_json.to_json(with_presence)) == with_presence


def test_a_flag_is_read_back() -> None:
    for session in (
        running(1_000, 1_000),
        running(None, mode=Mode.GLOBAL, total_time_ms=1_000, on_timeout=OnTimeout.FLAG),
        running(None, mode=Mode.PER_CYCLE, time_per_cycle_ms=1_000, on_timeout=OnTimeout.FLAG),
    ):
        flagged = engine.settle(session, T0 + 1_000).session
        assert flagged.has_run_out
        assert state_json.from_json(state_json.to_json(flagged)) == flagged
        assert state_json.from_json(state_json.to_json(flagged)).deadline_ms is None


METADATA = [
    {},
    {"": ""},
    {"nested": [1, [2, {"three": None}], True, False]},
    {"text": 'é 😀 \u2028 \x00\x1f \x7f "\\/ </script>'},
    {"naïve": "Zoë"},
    {"big": 2**70, "small": -(2**63), "exact": 9_007_199_254_740_993},
    {"floats": [0.1, 1.0, -0.0, 1e22, 5e-324, 1.7976931348623157e308]},
    {"z": 1, "a": 2, "m": 3},
]


@pytest.mark.parametrize("metadata", METADATA, ids=str)
def test_metadata_is_carried_as_it_was_given(metadata: dict[str, Any]) -> None:
    session = pending(60_000, metadata=metadata)
    raw = state_json.to_json(session)
    assert repr(json.loads(raw)["metadata"]) == repr(metadata)
    assert state_json.from_json(raw) == session
    assert state_json.to_json(state_json.from_json(raw)) == raw


def test_metadata_cannot_stand_in_for_a_field() -> None:
    session = pending(60_000, metadata={"version": 99, "status": "running", "deadline_ms": 1})
    assert (read(session)["version"], read(session)["status"]) == (1, "pending")
    assert state_json.from_json(state_json.to_json(session)) == session


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        state_json.to_json(pending(60_000)).replace(b'"per_participant"', b'"per_planet"'),
        state_json.to_json(pending(60_000)).replace(b'"pending"', b'"asleep"'),
        state_json.to_json(pending(60_000)).replace(
            b'"created_at":"2024-01-01T00:00:00.000Z"', b'"created_at":null'
        ),
        state_json.to_json(pending(60_000)).replace(b'"version"', b'"revision"'),
        state_json.to_json(pending(60_000)).replace(b'"version":1', b'"version":"1"'),
        state_json.to_json(pending(60_000)).replace(b'"metadata":{}', b'"metadata":' + b"[" * 100_000),
        state_json.to_json(pending(60_000)).replace(b"T00:00:00.000Z", b"T99:00:00.000Z"),
        state_json.to_json(pending(60_000)).replace(b"per_participant", b"\xff"),
        state_json.to_json(pending(None, mode=Mode.GLOBAL, total_time_ms=1)).replace(
            b'"remaining_ms"', b'"left_ms"'
        ),
    ],
)
def test_bytes_that_are_no_state_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        state_json.from_json(raw)


def test_the_tag_is_epoch_and_version_in_quotes() -> None:
    assert replace(running(60_000), commit="Zk8w_q1B").tag == f'"{EPOCH}-2-Zk8w_q1B"'


def test_the_dict_and_the_json_are_the_same() -> None:
    session = running(60_000, 60_000)
    assert ujson.loads(state_json.to_json(session)) == state_json.to_dict(session)
