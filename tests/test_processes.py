"""Several server processes, one Redis: a change made at any of them reaches every client of all."""

import asyncio
import contextlib
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import ujson

from tests.support.followers import V2, V2_MSGPACK, Follower
from tests.support.load import PROTOCOLS, Watcher, chess, data, eventually, history, identity, rest, watching
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.ws_client import Closed, WsClient


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture(scope="module", params=["all", "targeted"])
def servers(request: pytest.FixtureRequest, redis: RedisServer) -> Iterator[list[ServerProcess]]:
    # A prefix each, since one Redis has one mode of routing.
    options = (f"--broker={redis.url}", f"--prefix={request.param}-", f"--routing={request.param}")
    started = [ServerProcess(*options, "--log-level=warning") for _ in range(3)]
    for server in started:
        server.prefix = f"{request.param}-"
    yield started
    for server in started:
        server.stop()


async def created(server: ServerProcess, **fields: Any) -> str:
    return str(data(await rest(f"{server.url}/v1/sessions", chess(**fields)))["session_id"])


async def command(server: ServerProcess, session_id: str, name: str, body: Any = None, **headers: str) -> Any:
    """SESSION_BUSY says that nothing was applied: it is sent again, as often as a slow machine needs it."""
    async with asyncio.timeout(60):
        while True:
            answer = await rest(f"{server.url}/v1/sessions/{session_id}/{name}", body, **headers)
            if answer.code != 503 or outcome(answer) != "SESSION_BUSY":
                return answer


async def said_until_not_busy(follower: Follower, session_id: str, name: str) -> Any:
    """The same over a socket."""
    async with asyncio.timeout(60):
        while (answer := await follower.command(session_id, name)).get("code") == "SESSION_BUSY":
            pass
        return answer


async def versions_in_history(server: ServerProcess, session_id: str) -> list[int]:
    return [event["version"] for event in await history(server.url, session_id)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_change_at_any_process_reaches_every_client_of_all_in_order(
    servers: list[ServerProcess], protocol: type[Watcher]
) -> None:
    session_id = await created(servers[0])
    async with watching(servers, [session_id], 9, [protocol]) as watchers:
        data(await command(servers[0], session_id, "start"))
        for turn in range(60):
            data(await command(servers[turn % 3], session_id, "switch"))
        stored = data(await rest(f"{servers[0].url}/v1/sessions/{session_id}", method="GET"))

        async def complaint() -> str:
            return "" if all(watcher.state == stored for watcher in watchers) else "some are behind"

        await eventually(complaint, 30, "clients have not converged")
        for watcher in watchers:
            # The creation itself may have been on its way when the client came.
            versions = [version for _, version in watcher.updates if version > 1]
            assert versions == list(range(2, 63))
    assert await versions_in_history(servers[1], session_id) == list(range(1, 63))


async def test_every_client_gets_the_very_bytes_that_were_published(
    servers: list[ServerProcess], redis: RedisServer
) -> None:
    session_id = await created(servers[0])
    urls = [f"{server.ws_url}/ws?sessionId={session_id}" for server in servers]
    clients = [await WsClient.connect(url) for url in urls]
    followers = [await WsClient.connect(url, headers=V2) for url in urls]
    for client in (*clients, *followers, *followers):
        await client.recv_frame()
    with redis.client as client_of_redis:
        pubsub = client_of_redis.pubsub()
        pubsub.psubscribe(f"{servers[0].prefix}session-updates*")
        pubsub.get_message(timeout=5)
        data(await command(servers[0], session_id, "start"))
        published = pubsub.get_message(timeout=5)["data"]
        pubsub.close()
    stored = redis.client.get(f"{servers[0].prefix}session:{session_id}")
    update = bytes(published[: -len(',"updateBytes":"00000000"}')].partition(b',"update":')[2])
    assert published.endswith(b',"update":%b,"updateBytes":"%08d"}' % (update, len(update)))
    state_update = published[: published.index(b',"update":')] + b"}"
    assert state_update.startswith(
        b'{"type":"STATE_UPDATE","sessionId":"%s","timestamp":' % session_id.encode()
    )
    assert state_update.endswith(b',"state":' + stored + b"}")
    for client in clients:
        assert (await client.recv_frame())[1] == state_update
    for follower in followers:
        assert (await follower.recv_frame())[1] == update


async def test_a_message_published_with_redis_cli_reaches_the_sessions_clients_and_nobody_else(
    servers: list[ServerProcess], redis: RedisServer
) -> None:
    session_id, other = await created(servers[0]), await created(servers[0])
    clients = [await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}") for server in servers]
    stranger = await WsClient.connect(f"{servers[0].ws_url}/ws?sessionId={other}")
    for client in (*clients, stranger):
        await client.recv()
    channel = f"{servers[0].prefix}ws:{session_id}"
    for payload in ('{"type":"HELLO"}', ujson.dumps({"sessionId": session_id, "message": {"type": "INNER"}})):
        publish = ["redis-cli", "-p", str(redis.port), "PUBLISH", channel, payload]
        await asyncio.to_thread(subprocess.run, publish, check=True, stdout=subprocess.DEVNULL)
    for client in clients:
        assert await client.recv() == {"type": "HELLO"}
        assert await client.recv() == {"type": "INNER"}
    await stranger.send({"type": "PING"})
    assert (await stranger.recv())["type"] == "PONG", "the stranger heard something"


async def test_a_message_by_rest_reaches_clients_of_every_process(servers: list[ServerProcess]) -> None:
    session_id = await created(servers[0])
    clients = [await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}") for server in servers]
    for client in clients:
        await client.recv()
    assert (await command(servers[2], session_id, "messages", {"type": "CHEER", "n": 1})).code == 202
    for client in clients:
        assert await client.recv() == {"type": "CHEER", "n": 1}


async def test_foreign_updates_are_relayed_and_junk_is_dropped(
    servers: list[ServerProcess], redis: RedisServer
) -> None:
    session_id = str(uuid.uuid4())
    client = await WsClient.connect(f"{servers[0].ws_url}/ws?sessionId={session_id}")
    await client.recv()
    channel = f"{servers[0].prefix}session-updates"
    for payload in (
        "junk",
        "[1]",
        "x" * 5 * 1024 * 1024,
        ujson.dumps({"sessionId": session_id, "state": {"much": "x" * 5 * 1024 * 1024}}),
        ujson.dumps({"sessionId": session_id, "state": 7}),
        ujson.dumps({"sessionId": session_id, "state": {"a": 1}}),
        ujson.dumps({"sessionId": session_id, "state": ujson.dumps({"a": 2})}),
    ):
        redis.client.publish(channel, payload)
    assert (await client.recv())["state"] == {"a": 1}
    assert (await client.recv())["state"] == {"a": 2}
    redis.client.publish(channel, ujson.dumps({"sessionId": session_id, "state": None}))
    assert (await client.recv())["type"] == "SESSION_DELETED"
    assert await client.recv() == Closed(1000, "Session deleted")


async def test_fifty_parallel_switches_at_two_processes_are_each_applied_once(
    servers: list[ServerProcess],
) -> None:
    session_id = await created(servers[0])
    data(await command(servers[0], session_id, "start"))
    acknowledged = []
    for _ in range(8):
        answers = await asyncio.gather(*(command(servers[n % 2], session_id, "switch") for n in range(50)))
        acknowledged += [data(answer)["version"] for answer in answers]
    assert sorted(acknowledged) == list(range(3, 403))
    assert (await versions_in_history(servers[0], session_id))[-1] == 402


async def test_fifty_parallel_switches_over_sockets_of_three_processes_are_fifty_versions(
    servers: list[ServerProcess],
) -> None:
    session_id = await created(servers[0])
    data(await command(servers[0], session_id, "start"))
    async with contextlib.AsyncExitStack() as stack:
        encodings = [V2, V2_MSGPACK]
        followers = [
            await stack.enter_async_context(Follower(servers[n % 3].ws_url, encodings[n % 2]))
            for n in range(50)
        ]
        views = [await follower.follow(session_id) for follower in followers[:10]]
        results = await asyncio.gather(
            *(said_until_not_busy(each, session_id, "switch") for each in followers)
        )
        assert {result["type"] for result in results} == {"RESULT"}
        positions = sorted(int(result["position"].split("-")[1]) for result in results)
        assert positions == list(range(3, 53))
        for follower, view in zip(followers, views, strict=False):
            await follower.until(lambda view=view: view.state["version"] == 52)  # type: ignore[misc]
            assert [version for _, version in view.events] == positions
            assert {result["position"] for result in results} < set(view.states)
    assert await versions_in_history(servers[1], session_id) == list(range(1, 53))


@pytest.mark.parametrize("first_by", ["socket", "rest"])
async def test_what_was_sent_before_a_line_broke_is_done_once_by_whichever_door_it_comes_again(
    servers: list[ServerProcess], first_by: str
) -> None:
    session_id = await created(servers[0])
    data(await command(servers[0], session_id, "start"))
    body = {"data": {"move": "e4"}}
    async with Follower(servers[2].ws_url) as other:
        for turn in range(40):
            key = uuid.uuid4().hex
            said = {"type": "COMMAND", "id": 1, "sessionId": session_id, "command": "switch", "body": body}
            if first_by == "socket":
                async with await WsClient.connect(f"{servers[0].ws_url}/ws", headers=V2) as client:
                    await client.recv()
                    await client.send(said | {"idempotencyKey": key})
                    await asyncio.sleep(turn % 10 * 0.001)  # cut off before, while and after it is done
            else:
                path = f"/v1/sessions/{session_id}/switch"
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: {key}\r\n"
                raw = ujson.dumps(body).encode()
                _, writer = await asyncio.open_connection("127.0.0.1", servers[0].port)
                length = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
                writer.write((head + length).encode() + raw)
                await asyncio.sleep(turn % 10 * 0.001)
                writer.transport.abort()
            position = set()
            for _ in range(2):
                if first_by == "socket":
                    answer = await command(servers[1], session_id, "switch", body, Idempotency_Key=key)
                    assert data(answer)["version"] == 3 + turn
                    position.add(answer.headers["ETag"].strip('"'))
                again = await other.command(session_id, "switch", body, idempotencyKey=key)
                assert again["type"] == "RESULT"
                position.add(again["position"])
            assert again["replayed"] is True
            assert len(position) == 1
    assert await versions_in_history(servers[1], session_id) == list(range(1, 43))


def outcome(answer: Any) -> str:
    if answer.code < 300:
        return "ok"
    return str(ujson.loads(answer.body)["error"]["code"])


@pytest.mark.parametrize(
    ("first", "second", "possible"),
    [
        # What two commands at once may have answered, had they come one after the other.
        ("start", "start", {("ok", "INVALID_STATE_TRANSITION"), ("INVALID_STATE_TRANSITION", "ok")}),
        ("switch", "pause", {("ok", "ok"), ("INVALID_STATE_TRANSITION", "ok")}),
        ("switch", "complete", {("ok", "ok"), ("INVALID_STATE_TRANSITION", "ok")}),
        ("pause", "delete", {("ok", "ok"), ("SESSION_NOT_FOUND", "ok")}),
        ("create", "create", {("ok", "SESSION_EXISTS"), ("SESSION_EXISTS", "ok")}),
    ],
)
async def test_two_commands_at_once_answer_as_if_one_came_after_the_other(
    servers: list[ServerProcess], first: str, second: str, possible: set[tuple[str, str]]
) -> None:
    async def send(server: ServerProcess, session_id: str, name: str) -> Any:
        if name == "create":
            return await rest(f"{server.url}/v1/sessions", chess(session_id))
        if name == "delete":
            return await rest(f"{server.url}/v1/sessions/{session_id}", method="DELETE")
        return await command(server, session_id, name)

    seen = set()
    for turn in range(40):
        session_id = str(uuid.uuid4())
        if first != "create":
            await created(servers[0], session_id=session_id)
            if first != "start":
                data(await command(servers[0], session_id, "start"))
        one, other = (servers[0], servers[1]) if turn % 2 else (servers[1], servers[0])
        answers = await asyncio.gather(send(one, session_id, first), send(other, session_id, second))
        pair = (outcome(answers[0]), outcome(answers[1]))
        assert pair in possible
        seen.add(pair)
        stored = await rest(f"{servers[2].url}/v1/sessions/{session_id}", method="GET")
        if second == "delete":
            assert stored.code == 404
        else:
            applied = sum(each == "ok" for each in pair)
            before = {"create": 0, "start": 1}.get(first, 2)
            assert data(stored)["version"] == before + applied


async def test_clients_that_come_and_go_at_all_processes_end_with_the_latest_state(
    servers: list[ServerProcess],
) -> None:
    session_ids = [await created(servers[0]) for _ in range(5)]
    async with watching(servers, session_ids, 60) as watchers:
        for session_id in session_ids:
            data(await command(servers[1], session_id, "start"))
        for turn in range(50):
            data(await command(servers[turn % 3], session_ids[turn % 5], "switch"))

        async def complaint() -> str:
            stored = {
                each: identity(data(await rest(f"{servers[2].url}/v1/sessions/{each}", method="GET")))
                for each in session_ids
            }
            behind = [watcher for watcher in watchers if watcher.identity != stored[watcher.session_id]]
            return f"{len(behind)} are behind" if behind else ""

        await eventually(complaint, 30, "clients have not converged")


async def test_a_process_that_would_route_otherwise_does_not_start(
    servers: list[ServerProcess], redis: RedisServer
) -> None:
    other = "targeted" if servers[0].prefix == "all-" else "all"
    refused = ServerProcess(
        f"--broker={redis.url}", f"--prefix={servers[0].prefix}", f"--routing={other}", wait=False
    )
    _, complaint = await asyncio.to_thread(refused.process.communicate, timeout=15)
    assert refused.process.returncode != 0
    assert "--routing must be the same" in complaint.decode()
