"""REST: what fell due before a request is settled first, and dated at its deadline."""

import asyncio

from tests.support.api import DAY_MS, Api, error_of, ids, instant_ms


async def test_a_deadline_is_settled_by_whoever_reads_next(api: Api) -> None:
    session = await api.running()
    session_id, first = session["session_id"], ids(session)[0]
    adjusted = await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    deadline_ms = adjusted["deadline_ms"]
    assert adjusted["version"] == 3
    assert deadline_ms == instant_ms(adjusted["cycle_started_at"])
    read = await api.read(session_id)
    assert (read["version"], read["status"], read["deadline_ms"]) == (4, "running", None)
    assert (read["participants"][0]["has_expired"], read["participants"][0]["is_active"]) == (True, True)
    flagged = (await api.events(session_id))[-1]
    assert (flagged["type"], flagged["version"], instant_ms(flagged["at"])) == ("flagged", 4, deadline_ms)
    assert await api.read(session_id) == read


async def test_an_expiry_is_dated_at_its_deadline_however_late_it_is_noticed(api: Api) -> None:
    session = await api.running("global")
    session_id = session["session_id"]
    deadline_ms = (await api.done(session_id, "adjust", {"delta_ms": -59_900}))["deadline_ms"]
    async with asyncio.timeout(10):
        while (state := await api.read(session_id))["status"] == "running":
            assert state["version"] == 3
            await asyncio.sleep(0.02)
    assert (state["status"], state["version"]) == ("expired", 4)
    assert instant_ms(state["session_completed_at"]) == deadline_ms
    refused = await api.command(session_id, "switch")
    error = error_of(refused, 400, "INVALID_STATE_TRANSITION")
    assert error["message"] == f"Session {session_id} not running (current status: expired)"


async def test_a_switch_tells_whose_clock_had_run_out(api: Api) -> None:
    session = await api.running()
    session_id, (first, second) = session["session_id"], ids(session)
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    switched = await api.done(session_id, "switch")
    # The flag came first, with a version of its own.
    assert (switched["expired_participant_id"], switched["version"]) == (first, 5)
    assert (switched["active_participant_id"], switched["status"]) == (second, "running")
    again = await api.done(session_id, "switch")
    assert again["active_participant_id"] == second
    assert "expired_participant_id" not in again


async def test_a_switch_that_finds_nobody_with_time_left_ends_the_session_with_200(api: Api) -> None:
    session = await api.running()
    session_id, (first, second) = session["session_id"], ids(session)
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    await api.done(session_id, "switch")
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": second})
    over = await api.done(session_id, "switch")
    assert (over["status"], over["active_participant_id"]) == ("expired", None)
    assert over["expired_participant_id"] == second


async def test_what_fell_due_is_kept_though_the_command_is_refused(api: Api) -> None:
    session = await api.running(on_timeout="expire")
    session_id, first = session["session_id"], ids(session)[0]
    await api.done(session_id, "adjust", {"delta_ms": -DAY_MS, "target": first})
    refused = await api.command(session_id, "switch")
    assert "(current status: expired)" in error_of(refused, 400, "INVALID_STATE_TRANSITION")["message"]
    state = await api.read(session_id)
    assert (state["status"], state["version"]) == ("expired", 4)


async def test_the_next_turn_begins_at_the_deadline(api: Api) -> None:
    session = await api.running("per_cycle")
    session_id = session["session_id"]
    adjusted = await api.done(session_id, "adjust", {"delta_ms": -DAY_MS})
    read = await api.read(session_id)
    assert (read["version"], read["active_participant_id"]) == (4, ids(session)[1])
    assert instant_ms(read["cycle_started_at"]) == adjusted["deadline_ms"]
    assert read["deadline_ms"] == adjusted["deadline_ms"] + 10_000
    stale = await api.command(session_id, "switch", {"expected_participant_id": ids(session)[0]})
    assert error_of(stale, 409, "CONFLICT")["details"] == {"state": read}
