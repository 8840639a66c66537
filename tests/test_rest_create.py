"""REST: creating, reading and deleting a session, and what may be created."""

import asyncio
import re
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.api import COMMANDS, DAY_MS, INSTANT, LEAST_BODIES, Api, body_of, error_of, fields_of, ids


async def test_create_answers_201_with_the_state(api: Api) -> None:
    body = body_of(seats=3, increment_ms=2_000, metadata={"round": 1})
    answer = await api("POST", "/v1/sessions", body)
    assert answer.status == 201
    assert list(answer.body) == ["data"]
    assert answer.headers["content-type"].startswith("application/json")
    session = answer.data
    assert UUID(session["session_id"]).version == 4
    assert re.fullmatch("[0-9a-z]{13}", session["epoch"])
    assert (session["version"], session["status"], session["sync_mode"]) == (1, "pending", "per_participant")
    assert ids(session) == [each["participant_id"] for each in body["participants"]]
    assert [each["participant_index"] for each in session["participants"]] == [0, 1, 2]
    assert (session["increment_ms"], session["metadata"]) == (2_000, {"round": 1})
    assert (session["time_per_cycle_ms"], session["deadline_ms"]) == (None, None)
    assert "max_time_ms" not in session
    assert session["created_at"] == session["updated_at"]
    assert INSTANT.fullmatch(session["created_at"])
    assert session["clock"] == {"kind": "participant", "remaining_ms": 60_000}
    head = '{{"session_id":"{}","epoch":"{}","version":1,"commit":"{}","deadline_ms":null,'.format(
        session["session_id"], session["epoch"], session["commit"]
    )
    assert answer.raw.startswith(b'{"data":' + head.encode())
    assert (await api.read(session["session_id"])) == session


@pytest.mark.parametrize("mode", ["per_participant", "per_cycle", "per_group", "global", "count_up"])
async def test_each_mode_runs_from_create_to_complete(api: Api, mode: str) -> None:
    session = await api.create(mode)
    session_id = session["session_id"]
    assert (await api.done(session_id, "start"))["status"] == "running"
    assert (await api.done(session_id, "switch"))["active_participant_id"] == ids(session)[1]
    assert (await api.done(session_id, "pause"))["cycle_started_at"] is None
    assert (await api.done(session_id, "resume"))["status"] == "running"
    done = await api.done(session_id, "complete")
    assert (done["status"], done["version"], done["clock"]) == ("completed", 6, None)
    assert (done["active_participant_id"], done["deadline_ms"]) == (None, None)
    assert not any(each["is_active"] for each in done["participants"])


async def test_a_second_create_answers_409_and_leaves_the_first_untouched(api: Api) -> None:
    session = await api.running()
    session_id = session["session_id"]
    for same in (session_id, session_id.upper()):
        second = await api("POST", "/v1/sessions", body_of(session_id=same))
        error_of(second, 409, "SESSION_EXISTS")
    assert await api.read(session_id) == session
    assert len(await api.events(session_id)) == 2


async def test_of_many_creates_of_an_id_one_wins(api: Api) -> None:
    session_id = str(uuid4())
    answers = await asyncio.gather(
        *(api("POST", "/v1/sessions", body_of(session_id=session_id)) for _ in range(20))
    )
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19
    (won,) = (answer.data for answer in answers if answer.status == 201)
    assert await api.read(session_id) == won


async def test_ids_are_the_same_in_upper_case(api: Api) -> None:
    session_id, participant_id = str(uuid4()), str(uuid4())
    body = body_of(session_id=session_id.upper(), seats=1)
    body["participants"].append({"participant_id": participant_id.upper(), "total_time_ms": 5_000})
    session = (await api("POST", "/v1/sessions", body)).data
    assert (session["session_id"], ids(session)[1]) == (session_id, participant_id)
    upper = session_id.upper()
    assert await api.read(upper) == session
    started = await api.done(upper, "start", {"participant_id": participant_id.upper()})
    assert (started["session_id"], started["active_participant_id"]) == (session_id, participant_id)
    switched = await api.done(upper, "switch", {"expected_participant_id": participant_id.upper()})
    assert switched["version"] == 3
    assert len(await api.events(upper)) == 3
    assert (await api("POST", f"/v1/sessions/{upper}/messages", {"type": "X"})).status == 202
    assert (await api("DELETE", f"/v1/sessions/{upper}")).status == 204
    error_of(await api("GET", f"/v1/sessions/{session_id}"), 404, "SESSION_NOT_FOUND")


async def test_a_session_created_with_presence_has_it_for_life_and_no_other_has_it(api: Api) -> None:
    session_id = (await api.create(presence=True))["session_id"]
    await api.done(session_id, "start")
    states = [await api.read(session_id), await api.done(session_id, "complete")]
    assert [list(each)[6:8] for each in states] == [["status", "presence"]] * 2
    assert all(each["presence"] is True for each in states)
    told = [event["changes"] for event in await api.events(session_id)]
    assert ["presence" in changes for changes in told] == [True, False, False]
    assert "presence" not in await api.create(presence=False)
    assert "presence" not in await api.create()


async def test_null_means_absent(api: Api) -> None:
    body = body_of(
        session_id=None,
        increment_ms=None,
        max_time_ms=None,
        total_time_ms=None,
        metadata=None,
        on_timeout=None,
        presence=None,
    )
    body["participants"][0] |= {"participant_index": None, "group_id": None}
    session = (await api("POST", "/v1/sessions", body)).data
    assert (session["increment_ms"], session["metadata"], session["on_timeout"]) == (0, {}, "flag")
    assert not {"max_time_ms", "presence"} & session.keys()
    assert "group_id" not in session["participants"][0]
    started = await api.done(
        session["session_id"], "start", {"participant_id": None, "expected_version": None}
    )
    assert started["active_participant_id"] == ids(session)[0]
    nulls = {"next_participant_id": None, "expected_participant_id": None, "expected_version": None}
    assert (await api.done(session["session_id"], "switch", nulls))["version"] == 3


@pytest.mark.parametrize("body", [None, {}, b""])
async def test_a_commands_body_may_be_missing_or_empty(api: Api, body: Any) -> None:
    session_id = (await api.create())["session_id"]
    for name in ("start", "switch", "pause", "resume", "complete"):
        await api.done(session_id, name, body)
    await api.done((await api.create())["session_id"], "cancel", body)


async def test_metadata_comes_back_as_it_was_given(api: Api) -> None:
    metadata = {
        "": None,
        "text": 'né / \\ " \u2028 \x00 \U0001f600',
        "numbers": [0, -1, 2**53, 2**64, -(10**30), 0.1, 1.5e-7, 1e22],
        "deep": [[[[{"a": {"b": [True, False, None, {}, []]}}]]]],
    }
    session = await api.create(metadata=metadata)
    assert session["metadata"] == metadata
    assert (await api.running(metadata=metadata))["metadata"] == metadata


async def test_reading_what_is_not_there_is_404(api: Api) -> None:
    session_id = str(uuid4())
    for method, path, body in [
        ("GET", "", None),
        ("GET", "/events", None),
        ("POST", "/messages", {"type": "X"}),
        *(("POST", f"/{name}", LEAST_BODIES.get(name)) for name in COMMANDS),
    ]:
        answer = await api(method, f"/v1/sessions/{session_id}{path}", body)
        error = error_of(answer, 404, "SESSION_NOT_FOUND")
        assert error == {"code": "SESSION_NOT_FOUND", "message": f"Session {session_id} not found"}


def with_bank(time_ms: int) -> dict[str, Any]:
    return body_of() | {"participants": [{"participant_id": str(uuid4()), "total_time_ms": time_ms}]}


def metadata_of(size: int) -> dict[str, str]:
    return {"k": "x" * (size - len('{"k":""}'))}


TIMES = [(999, False), (1_000, True), (DAY_MS, True), (DAY_MS + 1, False)]
LIMITS = [
    *((with_bank(ms), "participants.0.total_time_ms", fits) for ms, fits in TIMES),
    *(
        (body_of(mode, **{field: ms}), field, fits)
        for mode, field in (
            ("per_cycle", "time_per_cycle_ms"),
            ("global", "total_time_ms"),
            ("count_up", "max_time_ms"),
        )
        for ms, fits in TIMES
    ),
    *((body_of(increment_ms=ms), "increment_ms", 0 <= ms <= 60_000) for ms in (-1, 0, 60_000, 60_001)),
    *((body_of(metadata=metadata_of(size)), "metadata", size <= 4096) for size in (4096, 4097)),
    *((body_of(mode, seats=1_000), "participants", True) for mode in ("per_group", "count_up")),
    *((body_of(mode, seats=1_001), "participants", False) for mode in ("per_participant", "global")),
    *((body_of(mode, seats=0), "participants", True) for mode in ("global", "count_up")),
    *((body_of(m, seats=0), "participants", False) for m in ("per_participant", "per_cycle", "per_group")),
]


@pytest.mark.parametrize(("body", "field", "fits"), LIMITS, ids=lambda value: str(value)[:40])
async def test_what_fits_the_limits_is_created_and_nothing_else(
    api: Api, body: dict[str, Any], field: str, fits: bool
) -> None:
    body = body | {"session_id": str(uuid4())}
    answer = await api("POST", "/v1/sessions", body)
    read = await api("GET", f"/v1/sessions/{body['session_id']}")
    if fits:
        assert (answer.status, read.status) == (201, 200)
    else:
        assert fields_of(answer) == {field}
        error_of(read, 404, "SESSION_NOT_FOUND")


async def test_all_violations_are_told_at_once(api: Api) -> None:
    body = body_of(increment_ms=-1, on_timeout="never", colour="red", session_id="x")
    body["participants"][1] |= {
        "total_time_ms": "60000",
        "participant_id": body["participants"][0]["participant_id"],
    }
    assert fields_of(await api("POST", "/v1/sessions", body)) == {
        "increment_ms",
        "on_timeout",
        "colour",
        "session_id",
        "participants.1.total_time_ms",
        "participants.1.participant_id",
    }


async def test_a_thousand_participants_take_their_turns(api: Api) -> None:
    session = await api.running("per_cycle", seats=1_000)
    switched = await api.done(session["session_id"], "switch")
    assert switched["active_participant_id"] == ids(session)[1]
    last = await api.done(session["session_id"], "switch", {"next_participant_id": ids(session)[999]})
    assert last["active_participant_id"] == ids(session)[999]
    assert (await api.done(session["session_id"], "switch"))["active_participant_id"] == ids(session)[0]


async def test_delete_answers_204_whether_there_was_one_or_not(api: Api) -> None:
    session_id = (await api.running())["session_id"]
    for _ in range(2):
        answer = await api("DELETE", f"/v1/sessions/{session_id}")
        assert (answer.status, answer.raw) == (204, b"")
        assert "content-type" not in answer.headers
        assert answer.headers.get("content-length", "0") == "0"
    error_of(await api("GET", f"/v1/sessions/{session_id}"), 404, "SESSION_NOT_FOUND")


async def test_a_deleted_id_may_be_created_again_with_a_greater_epoch(api: Api) -> None:
    first = await api.running()
    await api("DELETE", f"/v1/sessions/{first['session_id']}")
    second = await api.create(session_id=first["session_id"])
    assert second["epoch"] > first["epoch"]
    assert second["version"] == 1
    assert len(await api.events(first["session_id"])) == 1
