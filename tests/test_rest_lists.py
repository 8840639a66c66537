"""REST: the list of sessions and the events of one, page by page."""

from typing import Any
from uuid import uuid4

import pytest

from tests.support import settled_rules as engine
from tests.support.api import INSTANT, Api, error_of, fields_of, ids, serving


async def test_the_list_goes_on_by_its_cursor() -> None:
    async with serving() as api:
        assert (await api("GET", "/v1/sessions")).data == {"sessions": [], "next_cursor": None}
        sessions = [await api.create() for _ in range(5)] + [await api.running() for _ in range(4)]
        states = {session["session_id"]: session for session in sessions}
        for status, expected in (
            (None, states),
            ("running", {key: state for key, state in states.items() if state["status"] == "running"}),
            ("paused", {}),
        ):
            for limit in (1, 2, 100, None):
                found: list[dict[str, Any]] = []
                cursor = None
                while True:
                    given = {"status": status, "limit": limit, "cursor": cursor}
                    query = "&".join(f"{name}={value}" for name, value in given.items() if value is not None)
                    page = (await api("GET", f"/v1/sessions?{query}")).data
                    found += page["sessions"]
                    assert len(page["sessions"]) <= (limit or 100)
                    cursor = page["next_cursor"]
                    if cursor is None:
                        break
                assert len(found) == len(expected)
                assert {session["session_id"]: session for session in found} == expected


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", {"limit"}),
        ("limit=-1", {"limit"}),
        ("limit=1.5", {"limit"}),
        ("limit=x&status=gone&cursor=x", {"limit", "status", "cursor"}),
        ("status=Running", {"status"}),
        ("page=2", {"page"}),
        ("limit=1&limit=2", {"limit"}),
        ("cursor=%ff", {"cursor"}),
    ],
)
async def test_a_list_that_cannot_be_given_is_refused(api: Api, query: str, fields: set[str]) -> None:
    assert fields_of(await api("GET", f"/v1/sessions?{query}")) == fields


async def test_events_tell_each_version_since(api: Api) -> None:
    session = await api.create()
    session_id, epoch = session["session_id"], session["epoch"]
    await api.done(session_id, "start", X_Request_ID="req-2")
    await api.done(session_id, "switch")
    answer = await api("GET", f"/v1/sessions/{session_id}/events")
    assert set(answer.data) == {"epoch", "next_since", "events"}
    assert (answer.data["epoch"], answer.data["next_since"]) == (epoch, None)
    created, started, switched = answer.data["events"]
    assert [event["type"] for event in (created, started, switched)] == ["created", "started", "switched"]
    assert started["request_id"] == "req-2"
    for event in answer.data["events"]:
        assert {"version", "type", "at", "changes"} <= set(event)
        assert INSTANT.fullmatch(event["at"])
    for query, versions in (
        ("?since=0", [1, 2, 3]),
        (f"?since=1&epoch={epoch}", [2, 3]),
        ("?since=3", []),
        (f"?epoch={epoch}", [1, 2, 3]),
    ):
        assert [event["version"] for event in await api.events(session_id, query)] == versions


async def test_changes_are_of_the_fields_that_moved(api: Api) -> None:
    session = await api.running(seats=3)
    first, second, _ = ids(session)
    await api.done(session["session_id"], "switch", {"next_participant_id": second})
    changes = (await api.events(session["session_id"]))[-1]["changes"]
    moved = {each["participant_id"]: each for each in changes["participants"]}
    assert set(moved) == {first, second}
    assert moved[second] == {"participant_id": second, "is_active": True}
    assert (moved[first]["is_active"], moved[first]["cycle_count"]) == (False, 1)
    assert changes["active_participant_id"] == second
    assert not {"session_id", "epoch", "sync_mode", "status", "metadata", "created_at"} & set(changes)


async def test_events_of_another_epoch_or_older_than_kept_are_gone() -> None:
    async with serving() as api:
        session = await api.running("count_up", seats=0)
        session_id = session["session_id"]
        error_of(
            await api("GET", f"/v1/sessions/{session_id}/events?epoch=0000000000000"), 410, "EVENTS_GONE"
        )
        for _ in range(1_000):
            await api.server.sessions.apply(session_id, engine.switch)
        error_of(await api("GET", f"/v1/sessions/{session_id}/events?since=1"), 410, "EVENTS_GONE")
        assert len(await api.events(session_id, "?since=2")) == 1_000
        assert [event["version"] for event in await api.events(session_id)] == list(range(3, 1_003))


async def test_events_of_a_thousand_participants_come_in_pages_and_the_largest_alone(api: Api) -> None:
    crowd = [
        {"participant_id": str(uuid4()), "total_time_ms": 60_000, "group_id": "♫" * 100} for _ in range(1000)
    ]
    session = await api.create("per_group", participants=crowd)
    session_id = session["session_id"]
    await api.done(session_id, "start")
    for _ in range(9):
        await api.done(session_id, "switch")
    pages = []
    since: int | None = 0
    while since is not None:
        answer = await api("GET", f"/v1/sessions/{session_id}/events?since={since}")
        pages.append([event["version"] for event in answer.data["events"]])
        since = answer.data["next_since"]
        assert since == (pages[-1][-1] if pages[-1][-1] < 11 else None)
        assert len(answer.raw) <= 262_144 or len(pages[-1]) == 1
    assert pages[0] == [1]
    assert len(pages) > 2
    assert [version for page in pages for version in page] == list(range(1, 12))


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("since=abc", {"since"}),
        ("since=-1", {"since"}),
        ("since=1.0", {"since"}),
        ("since=" + "9" * 400, {"since"}),
        ("epoch=x", {"epoch"}),
        ("since=x&epoch=X&until=3", {"since", "epoch", "until"}),
    ],
)
async def test_events_that_cannot_be_told_are_refused(api: Api, query: str, fields: set[str]) -> None:
    session = await api.create()
    answer = await api("GET", f"/v1/sessions/{session['session_id']}/events?{query}")
    assert fields_of(answer) == fields
