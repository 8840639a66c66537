"""REST: what a caller expects of the session it changes or reads: versions, participants, ETags."""

import asyncio

import pytest

from tests.support.api import DAY_MS, LEAST_BODIES, Api, error_of, ids, tag


async def test_a_double_click_switches_once(api: Api) -> None:
    session = await api.running(seats=3)
    body = {"expected_participant_id": session["active_participant_id"]}
    answers = await asyncio.gather(*(api.command(session["session_id"], "switch", body) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
    state = await api.read(session["session_id"])
    assert (state["version"], state["active_participant_id"]) == (3, ids(session)[1])
    for answer in answers:
        if answer.status == 409:
            assert error_of(answer, 409, "CONFLICT")["details"] == {"state": state}


@pytest.mark.parametrize("name", ["pause", "switch", "complete", "adjust", "seat", "annotate"])
async def test_an_expected_version_must_hold(api: Api, name: str) -> None:
    session = await api.running("global")
    session_id = session["session_id"]
    least = LEAST_BODIES.get(name, {})
    for version in (1, 3):
        refused = await api.command(session_id, name, {"expected_version": version} | least)
        assert error_of(refused, 409, "CONFLICT")["details"] == {"state": session}
    assert (await api.done(session_id, name, {"expected_version": 2} | least))["version"] == 3


async def test_an_expected_version_of_a_pending_or_paused_session_must_hold(api: Api) -> None:
    session_id = (await api.create())["session_id"]
    error_of(await api.command(session_id, "start", {"expected_version": 2}), 409, "CONFLICT")
    error_of(await api.command(session_id, "cancel", {"expected_version": 2}), 409, "CONFLICT")
    await api.done(session_id, "start", {"expected_version": 1})
    await api.done(session_id, "pause")
    error_of(await api.command(session_id, "resume", {"expected_version": 2}), 409, "CONFLICT")
    await api.done(session_id, "resume", {"expected_version": 3})


async def test_if_match_must_hold(api: Api) -> None:
    session = await api.running("global")
    session_id = session["session_id"]
    epoch = session["epoch"]
    for stale in (
        f'"{epoch}-1"',
        '"0000000000000-2"',
        f"{epoch}-2",
        f'W/"{epoch}-2"',
        '"',
        f'"{epoch}-1", "x"',
        f'"{epoch}-2-00000000"',
        f'"{epoch}-2-"',
        f'"{epoch}-1-{session["commit"]}"',
        tag(session)[1:-1],
        f"W/{tag(session)}",
    ):
        refused = await api.command(session_id, "pause", If_Match=stale)
        assert error_of(refused, 412, "CONFLICT")["details"] == {"state": session}
    assert (await api.done(session_id, "pause", If_Match=f'"{epoch}-1", {tag(session)}'))["version"] == 3
    assert (await api.done(session_id, "resume", If_Match="*"))["version"] == 4
    assert (await api.done(session_id, "adjust", {"delta_ms": 5}, If_Match=f'"{epoch}-4"'))["version"] == 5


async def test_if_match_does_not_hold_for_another_epoch(api: Api) -> None:
    first = await api.create()
    assert (await api("DELETE", f"/v1/sessions/{first['session_id']}")).status == 204
    second = await api.create(session_id=first["session_id"])
    refused = await api.command(first["session_id"], "start", If_Match=tag(first))
    assert error_of(refused, 412, "CONFLICT")["details"] == {"state": second}
    await api.done(first["session_id"], "start", If_Match=tag(second))


async def test_a_participant_whose_clock_has_expired_cannot_be_next(api: Api) -> None:
    session = await api.running(seats=3)
    session_id, (first, second, _) = session["session_id"], ids(session)
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    await api.done(session_id, "switch")
    refused = await api.command(session_id, "switch", {"next_participant_id": first})
    current = await api.read(session_id)
    assert error_of(refused, 409, "CONFLICT")["details"] == {"state": current}
    assert current["active_participant_id"] == second


async def test_etag_and_if_none_match(api: Api) -> None:
    session = await api.running()
    path = f"/v1/sessions/{session['session_id']}"
    assert (await api("GET", path)).headers["etag"] == tag(session)
    for known in (tag(session), f"W/{tag(session)}", f'"x", {tag(session)}', "*"):
        answer = await api("GET", path, If_None_Match=known)
        assert (answer.status, answer.raw, answer.headers["etag"]) == (304, b"", tag(session))
    # The tags of before named epoch and version, which two states can share where data were lost.
    for other in ('"x"', tag(session)[1:-1], f'"{session["epoch"]}-1"', f'"{session["epoch"]}-2"'):
        assert (await api("GET", path, If_None_Match=other)).status == 200
    paused = await api.done(session["session_id"], "pause")
    answer = await api("GET", path, If_None_Match=tag(session))
    assert (answer.status, answer.headers["etag"]) == (200, tag(paused))


async def test_an_etag_is_of_the_settled_state(api: Api) -> None:
    session = await api.running("global")
    adjusted = await api.done(session["session_id"], "adjust", {"delta_ms": -DAY_MS})
    path = f"/v1/sessions/{session['session_id']}"
    answer = await api("GET", path, If_None_Match=tag(adjusted))
    assert answer.data["version"] == 4
    assert (answer.status, answer.headers["etag"]) == (200, tag(answer.data))
