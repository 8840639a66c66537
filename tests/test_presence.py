"""Who is connected to a session, over real servers: one on the embedded broker, several on one Redis."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.presence import TELL_AFTER_S
from lockstep.live.presence_tracker import TELL_INTERVAL_S
from tests.support.api import error_of, instant_ms
from tests.support.followers import V2_MSGPACK
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.tokens import SECRET, token
from tests.support.visitors import ADMIN, a_scene, created, delete, eventually, started

LINGER_MS = 3_000
# What processes show of Redis's time may differ by, where it was hard to measure.
CLOCKS_APART_MS = 1_000


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def several(secret: Path, redis: RedisServer) -> Iterator[list[ServerProcess]]:
    servers = [started(secret, f"--broker={redis.url}") for _ in range(3)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def alone(secret: Path) -> Iterator[list[ServerProcess]]:
    server = started(secret)
    yield [server] * 3
    server.stop()


@pytest.fixture(params=["alone", "several"])
def servers(request: pytest.FixtureRequest) -> list[ServerProcess]:
    """Three doors to the same sessions."""
    found: list[ServerProcess] = request.getfixturevalue(request.param)
    return found


# --- coming and going ----------------------------------------------------------------------------------


def test_who_comes_is_kept_back_for_well_under_the_500_ms_within_which_it_is_told() -> None:
    """For others that come at about the same time: by its own process, and by those that hear of it."""
    assert 1000 * (TELL_AFTER_S + TELL_INTERVAL_S) <= 300


async def test_who_comes_is_told_at_every_process(servers: list[ServerProcess]) -> None:
    async with a_scene(servers) as scene:
        there = [await scene.visitor(f"watcher {door}", door) for door in range(3)]
        watchers = [f"watcher {door}" for door in range(3)]
        for visitor in there:
            await visitor.hears(*watchers)
        anna = await scene.visitor("anna", 2)
        assert anna.presence.subjects == {*watchers, "anna"}
        for visitor in there:
            await visitor.hears(*watchers, "anna")
            assert visitor.presence.told[-1] == (["anna"], [])
            message = visitor.presence.last
            assert instant_ms(message["joined"][0]["since"]) <= message["timestamp"] + CLOCKS_APART_MS
        assert anna.presence.told == []


async def test_who_leaves_is_told_3_s_later_at_every_process(servers: list[ServerProcess]) -> None:
    async with a_scene(servers) as scene:
        there = [await scene.visitor("anna", 0), await scene.visitor("anna", 2)]
        bob = await scene.visitor("bob", 1)
        for visitor in there:
            await visitor.hears("anna", "bob")
        left_ms = time.time() * 1000
        await bob.leave()
        for visitor in there:
            await visitor.hears("anna")
            assert visitor.presence.told[-1] == ([], ["bob"])
            assert visitor.presence.last["timestamp"] - left_ms >= LINGER_MS - 50


async def test_a_page_that_is_reloaded_tells_nobody_anything(servers: list[ServerProcess]) -> None:
    """Also where it comes back to another process."""
    async with a_scene(servers) as scene:
        anna = await scene.visitor("anna")
        bob = await scene.visitor("bob", 1)
        await anna.hears("anna", "bob")
        told, away_s = len(anna.presence.told), list[float]()
        for door in (2, 1, 0):
            left_s = time.monotonic()
            await bob.leave()
            bob = await scene.visitor("bob", door)
            away_s.append(time.monotonic() - left_s)
            await bob.hears("anna", "bob")
        await eventually(({"anna": 1, "bob": 1}, 0), scene.listing)
        carl = await scene.visitor("carl")  # who is told last: what was to be told before is told
        await anna.hears("anna", "bob", "carl")
        await carl.leave()
        await anna.hears("anna", "bob")
        # A machine on which a reload takes 3 s shows nothing of it.
        if max(away_s) < LINGER_MS / 1000:
            assert anna.presence.told[told:] == [(["carl"], []), ([], ["carl"])]


async def test_every_client_counts_whatever_it_speaks(servers: list[ServerProcess]) -> None:
    async with a_scene(servers) as scene:
        packed = await scene.visitor("anna", 1, **V2_MSGPACK)
        old = await scene.old_client("anna", 2)
        nobody = await scene.old_client(None)
        bob = await scene.visitor("bob")
        for visitor in (packed, bob):
            await visitor.hears("anna", "bob", anonymous=1)
        for door in range(3):
            await eventually(({"anna": 2, "bob": 1}, 1), lambda door=door: scene.listing(door))
        nobody.abort()
        await packed.hears("anna", "bob", anonymous=0)
        await old.fence()


async def test_another_token_of_the_same_subject_changes_nothing(servers: list[ServerProcess]) -> None:
    async with a_scene(servers) as scene:
        anna, bob = await scene.visitor("anna"), await scene.visitor("bob")
        await anna.hears("anna", "bob")
        answer = await bob.ask("REAUTH", token=token("view", sub="bob"))
        assert answer["type"] == "REAUTHENTICATED"
        assert (await bob.ask("UNSUBSCRIBE", scene.session_id))["type"] == "UNSUBSCRIBED"
        await anna.hears("anna")


# --- sessions ------------------------------------------------------------------------------------------


async def test_presence_lasts_as_long_as_its_session(servers: list[ServerProcess]) -> None:
    async with a_scene(servers) as scene:
        visitors = [await scene.visitor(f"visitor {door}", door) for door in range(3)]
        subjects = [f"visitor {door}" for door in range(3)]
        for visitor in visitors:
            await visitor.hears(*subjects)
        await delete(servers[0], scene.session_id)
        for visitor in visitors:
            await visitor.until(lambda visitor=visitor: visitor.view.told[-1] == "DELETED")
            assert visitor.view.presence is None
        path = f"/v1/sessions/{scene.session_id}/presence"
        error_of(await servers[1].call("GET", path, None, ADMIN), 404, "SESSION_NOT_FOUND")
        await created(servers[2], session_id=scene.session_id)
        for visitor in visitors:
            await visitor.hears(*subjects)
        await delete(servers[0], scene.session_id)
        await created(servers[1], session_id=scene.session_id, presence=False)
        for visitor in visitors:
            await visitor.until(lambda visitor=visitor: visitor.view.told[-4:] == ["DELETED", "created"] * 2)
            assert visitor.view.presence is None
        error_of(await servers[1].call("GET", path, None, ADMIN), 409, "CONFLICT")


async def test_the_list_needs_the_right_to_view_the_session(servers: list[ServerProcess]) -> None:
    session_id = await created(servers[0])
    path = f"/v1/sessions/{session_id}/presence"
    error_of(await servers[0].call("GET", path), 401, "UNAUTHORIZED")
    other = {"Authorization": f"Bearer {token('admin', [await created(servers[0])])}"}
    error_of(await servers[0].call("GET", path, None, other), 403, "FORBIDDEN")
    own = {"Authorization": f"Bearer {token('view', [session_id])}"}
    answer = await servers[0].call("GET", path, None, own)
    assert (answer.status, answer.data) == (200, {"present": [], "anonymous": 0, "total": 0})
    for bad in ("not-an-id", session_id[:-1]):
        error_of(
            await servers[0].call("GET", f"/v1/sessions/{bad}/presence", None, ADMIN), 400, "VALIDATION_ERROR"
        )


async def test_more_than_200_subjects_are_counted_and_listed_by_rest(servers: list[ServerProcess]) -> None:
    async with a_scene(servers) as scene:
        anna = await scene.visitor("anna")
        crowd = [await scene.old_client(f"subject {number}", number % 3) for number in range(199)]
        await anna.until(lambda: anna.presence.total == 200)
        assert len(anna.presence.subjects or ()) == 200
        last = await scene.visitor("the last", 1)
        await anna.until(lambda: anna.presence.total == 201)
        assert (anna.presence.subjects, last.presence.subjects) == (None, None)
        for door in range(3):
            assert len((await scene.listing(door))[0]) == 201
        crowd[0].abort()
        for visitor in (anna, last):
            await visitor.until(lambda visitor=visitor: visitor.presence.total == 200)
            assert visitor.presence.subjects is not None
            assert "subject 0" not in visitor.presence.subjects


# --- processes and stores that fail --------------------------------------------------------------------


@pytest.fixture
def doomed(secret: Path) -> Iterator[tuple[list[ServerProcess], RedisServer]]:
    """Three processes and a Redis of their own, which a test may harm."""
    redis = RedisServer()
    servers = [started(secret, f"--broker={redis.url}") for _ in range(3)]
    yield servers, redis
    for server in servers:
        if server.process.poll() is None:
            server.stop()
    redis.close()


@pytest.mark.long
async def test_clients_of_a_killed_process_leave_within_15_s_but_those_who_come_back(
    doomed: tuple[list[ServerProcess], RedisServer],
) -> None:
    servers, _ = doomed
    async with a_scene(servers) as scene:
        anna = await scene.visitor("anna")
        bob, carl = await scene.visitor("bob", 1), await scene.visitor("carl", 1)
        await anna.hears("anna", "bob", "carl")
        anna.presence.told.clear()
        servers[1].kill()
        killed_s = time.monotonic()
        await bob.leave()
        await carl.leave()
        bob = await scene.visitor("bob", 2)
        assert bob.presence.subjects == {"anna", "bob", "carl"}
        for visitor in (anna, bob):
            await visitor.hears("anna", "bob")
            assert visitor.presence.told == [([], ["carl"])]
        assert time.monotonic() - killed_s < 17
        assert await scene.listing(2) == ({"anna": 1, "bob": 1}, 0)


@pytest.mark.long
async def test_a_rolling_restart_tells_nobody_anything(
    doomed: tuple[list[ServerProcess], RedisServer], secret: Path
) -> None:
    servers, redis = doomed
    async with a_scene(servers) as scene:
        visitors = [await scene.visitor(f"visitor {door}", door) for door in range(3)]
        watcher = await scene.visitor("watcher", 2)
        subjects = ["watcher", *(f"visitor {door}" for door in range(3))]
        await watcher.hears(*subjects)
        watcher.presence.told.clear()
        for door in (0, 1):
            servers[door].stop()
            servers[door] = started(secret, f"--broker={redis.url}")
            await visitors[door].leave()
            visitors[door] = await scene.visitor(f"visitor {door}", door)
            assert visitors[door].presence.subjects == set(subjects)
        # What the processes before had said lapses.
        await eventually((dict.fromkeys(subjects, 1), 0), scene.listing)
        assert watcher.presence.told == []


async def test_lists_stay_while_redis_is_frozen(doomed: tuple[list[ServerProcess], RedisServer]) -> None:
    servers, redis = doomed
    async with a_scene(servers) as scene:
        visitors = [await scene.visitor(f"visitor {door}", door) for door in range(3)]
        subjects = [f"visitor {door}" for door in range(3)]
        leaver = await scene.visitor("leaver", 1)
        for visitor in visitors:
            await visitor.hears(*subjects, "leaver")
            visitor.presence.told.clear()
        redis.freeze()
        await leaver.leave()
        await visitors[1].hears(*subjects)  # of its own process, which needs no store for it
        redis.thaw()
        for visitor in visitors:
            await visitor.hears(*subjects)
        for door in range(3):
            await eventually((dict.fromkeys(subjects, 1), 0), lambda door=door: scene.listing(door))
        assert [visitor.presence.told for visitor in visitors] == [[([], ["leaver"])]] * 3


async def test_what_redis_has_lost_of_presence_is_said_again_and_nobody_is_told(
    doomed: tuple[list[ServerProcess], RedisServer],
) -> None:
    servers, redis = doomed
    async with a_scene(servers) as scene:
        visitors = [await scene.visitor(f"visitor {door}", door) for door in range(2)]
        subjects = [f"visitor {door}" for door in range(2)]
        for visitor in visitors:
            await visitor.hears(*subjects)
            visitor.presence.told.clear()
        redis.client.delete(*redis.client.scan_iter("*presence*"))
        last = await scene.visitor("the last", 2)
        for visitor in (*visitors, last):
            await visitor.hears(*subjects, "the last")
        for door in range(3):
            expected = dict.fromkeys([*subjects, "the last"], 1), 0
            await eventually(expected, lambda door=door: scene.listing(door))
        assert [visitor.presence.told for visitor in visitors] == [[(["the last"], [])]] * 2


async def test_no_key_is_left_behind(several: list[ServerProcess], redis: RedisServer) -> None:
    async with a_scene(several) as scene:
        session_ids = [scene.session_id, await created(several[0])]

        async def lists() -> list[str]:
            keys = [key.decode() for key in redis.client.scan_iter("*presence:*")]
            return [each for each in session_ids if any(each in key for key in keys)]

        visitors = [await scene.visitor(f"visitor {door}", door) for door in range(3)]
        for visitor in visitors:
            await visitor.follow(session_ids[1])
        await eventually(session_ids, lists)
        await delete(several[1], session_ids[1])
        await eventually(session_ids[:1], lists)
        for visitor in visitors:
            await visitor.leave()
        await eventually([], lists)
