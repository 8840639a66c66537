"""Time that stands still until it is moved: what falls due on the way has happened, in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lockstep.config import read_settings
from lockstep.live.virtual_time import VirtualClock
from lockstep.setting import SettingsError
from tests.support.api import Api, error_of, fields_of, instant_ms, serving
from tests.support.followers import V2
from tests.support.tokens import SECRET, token
from tests.support.ws_client import WsClient, abort_all

MINUTE_MS = 60_000
DAY_MS = 86_400_000


@asynccontextmanager
async def on_virtual_time(**settings: Any) -> AsyncIterator[Api]:
    async with serving(virtual_time=True, **settings) as api:
        try:
            yield api
        finally:
            abort_all()


async def now(api: Api) -> int:
    timestamp_ms: int = (await api("GET", "/v1/time")).body["timestamp_ms"]
    return timestamp_ms


async def advance(api: Api, ms: int, **headers: str) -> int:
    answer = await api("POST", "/v1/time/advance", {"ms": ms}, **headers)
    assert answer.status == 200, answer.raw
    assert list(answer.body) == ["timestamp_ms"]
    timestamp_ms: int = answer.body["timestamp_ms"]
    return timestamp_ms


async def follower(api: Api, *session_ids: str, headers: dict[str, str] | None = None) -> WsClient:
    """A client of protocol v2 that follows these; what it was told until now has been received."""
    client = await WsClient.connect(api.url.replace("http", "ws") + "/ws", headers=V2 | (headers or {}))
    assert (await client.recv())["timestamp"] == await now(api)
    for session_id in session_ids:
        await client.send({"type": "SUBSCRIBE", "id": session_id, "sessionId": session_id})
        assert (await client.recv_type("SUBSCRIBED"))["id"] == session_id
    return client


async def told(client: WsClient) -> list[dict[str, Any]]:
    """What it has been sent until now, except for the time."""
    await client.send({"type": "PING", "id": "so far"})
    messages = []
    while (message := await client.recv()).get("id") != "so far":
        if message["type"] != "PONG":
            messages.append(message)
    return messages


# ---- The clock ----


def test_the_clock_stands_at_exactly_the_ms_that_it_was_moved_to() -> None:
    clock = VirtualClock()
    began_s = clock.time()
    assert began_s == int(began_s)
    moved_ms = 0
    for ms in (0, 1, 2, 9, 333, 999, 1, 1_000, 599_999, 86_399_999, 10 * 365 * DAY_MS + 7):
        clock.move(ms)
        moved_ms += ms
        offset_s = clock.time() - clock.monotonic()
        assert offset_s == began_s
        assert int((clock.monotonic() * 1000 + offset_s * 1000) * 1000) // 1000 == began_s * 1000 + moved_ms
        before_s = clock.monotonic()
        clock.move(60_000)
        assert clock.monotonic() == before_s + 60
        clock.move(-60_000)


async def test_time_stands_still_and_moves_by_what_it_is_told() -> None:
    async with on_virtual_time() as api:
        began_ms = await now(api)
        created = await api.create()
        assert instant_ms(created["created_at"]) == began_ms
        client = await follower(api, created["session_id"])
        await client.send({"type": "PING", "id": 1})
        pong = await client.recv()
        assert int(pong["receivedAt"]) == int(pong["timestamp"]) == began_ms
        assert pong["errorMs"] < 0.1
        assert pong["standsStill"] is True
        for ms in (1, 999, 80_000_000, 7):
            began_ms += ms
            assert await advance(api, ms) == await now(api) == began_ms
            pong = await client.recv()
            assert (int(pong["timestamp"]), pong["standsStill"], "id" in pong) == (began_ms, True, False)
        assert instant_ms((await api.done(created["session_id"], "start"))["updated_at"]) == began_ms


# ---- What falls due ----


async def test_a_flag_after_ten_minutes_is_told_and_dated_at_its_instant() -> None:
    async with on_virtual_time() as api:
        session = await api.running(participants=[{"total_time_ms": 10 * MINUTE_MS}] * 2)
        session_id, deadline_ms = session["session_id"], session["deadline_ms"]
        client = await follower(api, session_id)
        old = await WsClient.connect(api.url.replace("http", "ws") + f"/ws?sessionId={session_id}")
        await old.recv_type("CONNECTED")
        await advance(api, 10 * MINUTE_MS - 1)
        assert await told(client) == []
        assert (await api.read(session_id))["participants"][0]["has_expired"] is False
        assert await advance(api, 1) == deadline_ms
        (update,) = await told(client)
        (event,) = update["events"]
        assert (update["timestamp"], instant_ms(event["at"]), event["type"]) == (
            deadline_ms,
            deadline_ms,
            "flagged",
        )
        (update,) = await told(old)
        assert (update["timestamp"], update["state"]["participants"][0]["has_expired"]) == (deadline_ms, True)
        await advance(api, MINUTE_MS)
        assert (await told(client), await told(old)) == ([], [])
        *_, last = await api.events(session_id)
        assert (last["type"], instant_ms(last["at"])) == ("flagged", deadline_ms)
        switched = await api.done(session_id, "switch")
        assert switched["participants"][0]["time_used_ms"] == 11 * MINUTE_MS


async def test_what_falls_due_in_several_sessions_is_told_in_order() -> None:
    async with on_virtual_time() as api:
        cycles = await api.running("per_cycle", 2, time_per_cycle_ms=7_000)
        once = [await api.running(participants=[{"total_time_ms": ms}]) for ms in (20_000, 21_000, 35_001)]
        client = await follower(api, cycles["session_id"], *[each["session_id"] for each in once])
        began_ms = await now(api)
        await advance(api, 36_000)
        updates = await told(client)
        assert [len(each["events"]) for each in updates] == [1] * 8
        # What is due at the same instant comes in any order.
        instants = [each["timestamp"] - began_ms for each in updates]
        assert instants == [7_000, 14_000, 20_000, 21_000, 21_000, 28_000, 35_000, 35_001]
        assert [instant_ms(each["events"][0]["at"]) - began_ms for each in updates] == instants
        advanced = [each for each in updates if each["sessionId"] == cycles["session_id"]]
        assert [each["events"][0]["version"] for each in advanced] == [3, 4, 5, 6, 7]
        assert [each["from"] for each in advanced[1:]] == [each["position"] for each in advanced[:-1]]


async def test_a_session_that_nobody_follows_has_its_history_too() -> None:
    async with on_virtual_time() as api:
        session = await api.running("per_cycle", 2, time_per_cycle_ms=1_000)
        began_ms = await now(api)
        await advance(api, 90_500)
        events = (await api.events(session["session_id"]))[2:]
        assert [instant_ms(each["at"]) - began_ms for each in events] == [1_000 * n for n in range(1, 91)]


async def test_a_session_lapses_and_its_end_is_told_in_order() -> None:
    async with on_virtual_time(keep_terminal_s=60, keep_pending_s=30) as api:
        expiring = await api.running("global", 0, total_time_ms=10_000)
        pending = await api.create()
        other = await api.running(participants=[{"total_time_ms": 50_000}])
        ids = [each["session_id"] for each in (expiring, pending, other)]
        client = await follower(api, *ids)
        began_ms = await now(api)
        await advance(api, 69_999)
        assert (await api.read(ids[0]))["status"] == "expired"
        await advance(api, 1)
        heard = [
            (each["type"], each["timestamp"] - began_ms, ids.index(each["sessionId"]))
            for each in await told(client)
        ]
        assert heard == [
            ("UPDATE", 10_000, 0),
            ("DELETED", 30_000, 1),
            ("UPDATE", 50_000, 2),
            ("DELETED", 70_000, 0),
        ]
        error_of(await api("GET", f"/v1/sessions/{ids[0]}"), 404, "SESSION_NOT_FOUND")


async def test_an_adjusted_clock_and_one_that_is_paused_are_due_when_they_say() -> None:
    async with on_virtual_time() as api:
        session = await api.running("global", 0, total_time_ms=10_000)
        session_id = session["session_id"]
        await advance(api, 4_000)
        await api.done(session_id, "pause")
        await advance(api, DAY_MS)
        await api.done(session_id, "resume")
        adjusted = await api.done(session_id, "adjust", {"delta_ms": -5_000})
        assert adjusted["deadline_ms"] == await now(api) + 1_000
        await advance(api, 999)
        assert (await api.read(session_id))["status"] == "running"
        await advance(api, 1)
        assert (await api.read(session_id))["status"] == "expired"
        assert await now(api) == adjusted["deadline_ms"]


async def test_who_left_is_told_after_the_time_that_a_reload_is_given(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    admin = {"Authorization": f"Bearer {token()}"}
    async with on_virtual_time(jwt_secret_file=str(secret)) as api:
        body = {"sync_mode": "global", "total_time_ms": DAY_MS, "presence": True}
        session_id = (await api("POST", "/v1/sessions", body, **admin)).data["session_id"]
        path = f"/v1/sessions/{session_id}/presence"

        def as_subject(name: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {token('view', sub=name)}"}

        client = await follower(api, session_id, headers=as_subject("anna"))
        bert = await follower(api, session_id, headers=as_subject("bert"))
        assert [each["subject"] for each in (await client.recv_type("PRESENCE"))["joined"]] == ["bert"]
        await bert.close()
        async with asyncio.timeout(10):
            while (await api("GET", path, **admin)).data["present"][1]["connections"]:
                await asyncio.sleep(0.01)
        began_ms = await now(api)
        await advance(api, 5_000, **admin)
        (presence,) = await told(client)
        assert [each["subject"] for each in presence["left"]] == ["bert"]
        assert 0 < presence["timestamp"] - began_ms <= 3_000
        assert (await api("GET", path, **admin)).data["total"] == 1


async def test_keys_of_requests_and_windows_of_limits_go_by_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    admin = {"Authorization": f"Bearer {token()}"}
    control = {"Authorization": f"Bearer {token('control')}"}
    settings = {"jwt_secret_file": str(secret), "rate_limit_general": "3/60", "rate_limit_switch": "1/1"}
    async with on_virtual_time(**settings) as api:
        body = {"sync_mode": "count_up", "participants": [{}, {}]}
        create = {"Idempotency_Key": "once"} | admin
        first = (await api("POST", "/v1/sessions", body, **create)).data["session_id"]
        assert (await api("POST", "/v1/sessions", body, **create)).data["session_id"] == first
        await api.done(first, "start", **admin)
        assert [(await api.command(first, "switch", **control)).status for _ in range(4)] == [
            200,
            429,
            429,
            429,
        ]
        await advance(api, 59_999, **admin)
        assert (await api.command(first, "switch", **control)).status == 429
        await advance(api, 1, **admin)
        assert (await api.command(first, "switch", **control)).status == 200
        await advance(api, DAY_MS - 60_000, **admin)
        assert (await api("POST", "/v1/sessions", body, **create)).data["session_id"] != first


async def test_advances_follow_one_upon_the_other_and_requests_are_answered_between() -> None:
    async with on_virtual_time() as api:
        session = await api.running("per_cycle", 2, time_per_cycle_ms=1_000)
        began_ms = await now(api)
        advances = [asyncio.create_task(advance(api, ms)) for ms in (600_000, 300_000)]
        seen = {await now(api)}
        while not all(each.done() for each in advances):
            seen.add(await now(api))
        assert sorted(await asyncio.gather(*advances))[1] == await now(api) == began_ms + 900_000
        assert len(seen) > 2
        events = [*await api.events(session["session_id"], "?since=800")]
        assert events[-1]["version"] == 902
        assert (await api.read(session["session_id"]))["version"] == 902


# ---- Who may, and where ----


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (None, {"ms"}),
        ({}, {"ms"}),
        ([], {"body"}),
        ({"ms": None}, {"ms"}),
        ({"ms": 0}, {"ms"}),
        ({"ms": -1}, {"ms"}),
        ({"ms": DAY_MS + 1}, {"ms"}),
        ({"ms": 1.5}, {"ms"}),
        ({"ms": "1000"}, {"ms"}),
        ({"ms": True}, {"ms"}),
        ({"s": 1}, {"ms", "s"}),
    ],
)
async def test_what_cannot_pass_is_named_and_nothing_passes(body: Any, fields: set[str]) -> None:
    async with on_virtual_time() as api:
        began_ms = await now(api)
        assert fields_of(await api("POST", "/v1/time/advance", body)) == fields
        assert await now(api) == began_ms


async def test_it_is_a_route_like_the_others() -> None:
    async with on_virtual_time(jwt_secret_file="") as api:
        error_of(await api("POST", "/v1/time/advance", b"{"), 400, "MALFORMED_JSON")
        error_of(
            await api("POST", "/v1/time/advance", b"{}", Content_Type="text/plain"),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        )
        error_of(await api("GET", "/v1/time/advance"), 405, "METHOD_NOT_ALLOWED")
        for headers in ({"Origin": "https://other.example"}, {"Host": "other.example"}):
            error_of(await api("POST", "/v1/time/advance", {"ms": 1}, **headers), 403, "FORBIDDEN")


async def test_where_time_passes_by_itself_there_is_no_such_route() -> None:
    async with serving() as api:
        error_of(await api("POST", "/v1/time/advance", {"ms": 1}), 404, "NOT_FOUND")
        client = await WsClient.connect(api.url.replace("http", "ws") + "/ws", headers=V2)
        await client.send({"type": "PING"})
        assert "standsStill" not in await client.recv_type("PONG")
        client.abort()


async def test_with_keys_it_takes_an_admin_of_all_sessions(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    async with on_virtual_time(jwt_secret_file=str(secret)) as api:

        async def status(bearer: str | None) -> int:
            headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
            return (await api("POST", "/v1/time/advance", {"ms": 1}, **headers)).status

        one = "5e000000-0000-4000-8000-000000000000"
        tokens = [None, token("control"), token("admin", sid=one), token("admin")]
        assert [await status(each) for each in tokens] == [401, 403, 403, 200]


@pytest.mark.parametrize(
    "other",
    ["--broker=redis://127.0.0.1:1/0", "--address=0.0.0.0", "--address=127.0.0.1,192.0.2.1", "--address=::"],
)
def test_a_start_where_others_would_share_the_time_ends_with_a_line_that_names_it(other: str) -> None:
    with pytest.raises(SettingsError, match=r"^--virtual-time: .*memory://.*this machine") as refusal:
        read_settings(["--virtual-time=yes", "--insecure=yes", other], {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.0.0.1,::1"])
def test_it_may_be_had_on_every_loopback_address(address: str) -> None:
    assert read_settings([f"--address={address}"], {"LOCKSTEP_VIRTUAL_TIME": "yes"}).virtual_time
