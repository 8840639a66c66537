"""REST: the commands, where each is allowed and what it answers."""

import asyncio
from uuid import uuid4

import pytest

from tests.support.api import COMMANDS, DAY_MS, LEAST_BODIES, Api, error_of, fields_of, ids

ALLOWED = {
    "start": {"pending"},
    "switch": {"running"},
    "pause": {"running"},
    "resume": {"paused"},
    "adjust": {"pending", "running", "paused"},
    "complete": {"pending", "running", "paused", "completed"},
    "cancel": {"pending"},
    "seat": {"pending", "running", "paused"},
    "unseat": {"pending", "running", "paused"},
    "annotate": {"pending", "running", "paused", "completed", "cancelled", "expired"},
}
COMPLAINTS = {
    "start": "cannot be started",
    "switch": "not running",
    "pause": "cannot be paused",
    "resume": "cannot be resumed",
    "seat": "cannot seat anybody",
    "unseat": "cannot unseat anybody",
}
ROADS = {
    "pending": [],
    "running": ["start"],
    "paused": ["start", "pause"],
    "completed": ["start", "complete"],
    "cancelled": ["cancel"],
    "expired": ["start", "adjust"],
}


@pytest.mark.parametrize("status", ROADS)
async def test_a_command_is_allowed_where_the_table_says_so(api: Api, status: str) -> None:
    for name in COMMANDS:
        session = await api.create("global")
        session_id = session["session_id"]
        for step in ROADS[status]:
            session = await api.done(session_id, step, {"delta_ms": -DAY_MS} if step == "adjust" else None)
        session = await api.read(session_id)
        assert session["status"] == status
        body = {"participant_id": ids(session)[1]} if name == "unseat" else LEAST_BODIES.get(name)
        answer = await api.command(session_id, name, body)
        if status in ALLOWED[name]:
            assert answer.status == 200, (name, answer.raw)
            moved = 0 if (name, status) == ("complete", "completed") else 1
            assert answer.data["version"] == session["version"] + moved
        else:
            error = error_of(answer, 400, "INVALID_STATE_TRANSITION")
            assert f"(current status: {status})" in error["message"]
            if name in COMPLAINTS:
                complaint = f"Session {session_id} {COMPLAINTS[name]} (current status: {status})"
                assert error["message"] == complaint
            assert await api.read(session_id) == session


async def test_completing_twice_changes_nothing(api: Api) -> None:
    session = await api.running()
    first = await api.done(session["session_id"], "complete")
    second = await api.done(session["session_id"], "complete")
    assert second == first
    assert len(await api.events(session["session_id"])) == 3


async def test_switch_answers_who_is_active_now(api: Api) -> None:
    session = await api.running(increment_ms=1_000)
    answer = await api.done(session["session_id"], "switch")
    assert set(answer) == {
        "session_id",
        "active_participant_id",
        "cycle_started_at",
        "participants",
        "status",
        "version",
    }
    assert (answer["session_id"], answer["version"]) == (session["session_id"], 3)
    assert (answer["active_participant_id"], answer["status"]) == (ids(session)[1], "running")
    state = await api.read(session["session_id"])
    assert {name: state[name] for name in answer} == answer
    first = answer["participants"][0]
    assert first["time_remaining_ms"] == first["budget_ms"] + 1_000 - first["time_used_ms"]
    assert (first["cycle_count"], first["is_active"]) == (1, False)


async def test_any_participant_with_time_left_may_be_next(api: Api) -> None:
    session = await api.running(seats=4)
    for place in (2, 2, 0, 3):
        answer = await api.done(session["session_id"], "switch", {"next_participant_id": ids(session)[place]})
        assert answer["active_participant_id"] == ids(session)[place]
    assert (await api.done(session["session_id"], "switch"))["active_participant_id"] == ids(session)[0]


async def test_a_stranger_can_be_neither_first_nor_next_nor_expected(api: Api) -> None:
    session, stranger = await api.create(), str(uuid4())
    session_id = session["session_id"]
    assert fields_of(await api.command(session_id, "start", {"participant_id": stranger})) == {
        "participant_id"
    }
    session = await api.done(session_id, "start")
    next_one = await api.command(session_id, "switch", {"next_participant_id": stranger})
    assert fields_of(next_one) == {"next_participant_id"}
    expected = await api.command(session_id, "switch", {"expected_participant_id": stranger})
    assert expected.status in (400, 409)
    assert await api.read(session_id) == session


async def test_a_lap_tells_its_time(api: Api) -> None:
    session = await api.running("count_up", seats=0)
    await asyncio.sleep(0.03)
    lap = await api.done(session["session_id"], "switch")
    assert lap["lap_ms"] >= 20
    assert lap["active_participant_id"] is None
    again = await api.done(session["session_id"], "switch")
    state, events = await api.read(session["session_id"]), await api.events(session["session_id"])
    assert [event["lap_ms"] for event in events[2:]] == [lap["lap_ms"], again["lap_ms"]]
    assert (state["lap_count"], state["clock"]["elapsed_ms"]) == (2, lap["lap_ms"] + again["lap_ms"])


async def test_without_participants_a_global_session_has_nothing_to_switch(api: Api) -> None:
    session = await api.running("global", seats=0)
    error_of(await api.command(session["session_id"], "switch"), 400, "VALIDATION_ERROR")
    assert await api.read(session["session_id"]) == session


async def test_adjust_gives_and_takes_what_its_mode_has(api: Api) -> None:
    session = await api.create()
    first, second = ids(session)
    adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": 5_000, "target": second.upper()})
    assert [each["time_remaining_ms"] for each in adjusted["participants"]] == [60_000, 65_000]
    adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": DAY_MS, "target": first})
    assert adjusted["participants"][0]["time_remaining_ms"] == DAY_MS
    assert fields_of(await api.command(session["session_id"], "adjust", {"delta_ms": 1})) == {"target"}
    unknown = {"delta_ms": 1, "target": str(uuid4())}
    assert fields_of(await api.command(session["session_id"], "adjust", unknown)) == {"target"}

    grouped = await api.create("per_group")
    for target in ("red", ids(grouped)[1]):
        adjusted = await api.done(grouped["session_id"], "adjust", {"delta_ms": -1_000, "target": target})
    assert [each["time_remaining_ms"] for each in adjusted["participants"]] == [58_000, 58_000]

    for mode in ("global", "per_cycle"):
        session = await api.create(mode)
        adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": 1_000})
        assert adjusted["clock"]["remaining_ms"] == session["clock"]["remaining_ms"] + 1_000
        refused = await api.command(
            session["session_id"], "adjust", {"delta_ms": 1, "target": ids(session)[0]}
        )
        assert fields_of(refused) == {"target"}

    session = await api.create("count_up")
    error_of(await api.command(session["session_id"], "adjust", {"delta_ms": 1}), 400, "VALIDATION_ERROR")


async def test_fifty_switches_at_once_are_fifty_versions(api: Api) -> None:
    session = await api.running(seats=3)
    session_id = session["session_id"]
    answers = await asyncio.gather(*(api.command(session_id, "switch") for _ in range(50)))
    assert [answer.status for answer in answers] == [200] * 50
    assert sorted(answer.data["version"] for answer in answers) == list(range(3, 53))
    after = await api.read(session_id)
    assert after["version"] == 52
    assert sum(each["cycle_count"] for each in after["participants"]) == 50
    events = await api.events(session_id)
    assert [event["version"] for event in events] == list(range(1, 53))
    for answer in answers:
        changes = events[answer.data["version"] - 1]["changes"]
        assert changes["active_participant_id"] == answer.data["active_participant_id"]
