"""A subject is sent away from a session: every connection of its, on every process, and no other."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from lockstep.rules.state_json import dumps
from lockstep.wire import payloads
from tests.support.api import Api, body_of, error_of, fields_of, serving
from tests.support.event_source import EventSource, stream_url
from tests.support.followers import V2, V2_MSGPACK
from tests.support.processes import Answer, ServerProcess
from tests.support.redis_server import RedisServer
from tests.support.tokens import SECRET, token
from tests.support.ws_client import DEFLATE, Closed, WsClient, abort_all

ADMIN = {"Authorization": f"Bearer {token()}"}
SENT_AWAY = Closed(4504, "Disconnected")


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "secret"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module", params=["memory", "all", "targeted"])
def servers(
    request: pytest.FixtureRequest, secret: Path, redis_server: RedisServer
) -> Iterator[list[ServerProcess]]:
    """Three processes that share a Redis; on the embedded broker there is one."""
    options, count = [f"--jwt-secret-file={secret}", "--log-level=warning"], 1
    if request.param != "memory":
        count = 3
        options += [
            f"--broker={redis_server.url}",
            f"--prefix=away-{request.param}-",
            f"--routing={request.param}",
        ]
    started = [ServerProcess(*options) for _ in range(count)]
    yield started
    for server in started:
        server.stop()


async def created(server: ServerProcess, **fields: Any) -> str:
    answer = await server.call("POST", "/v1/sessions", body_of(**fields), ADMIN)
    return str(answer.data["session_id"])


async def post(server: ServerProcess, session_id: str, name: str, body: Any = None, **headers: str) -> Answer:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return await server.call("POST", f"/v1/sessions/{session_id}/{name}", body, ADMIN | named)


def of(subject: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token('view', sub=subject)}"}


async def watcher(server: ServerProcess, session_id: str, subject: str | None) -> WsClient:
    """One of protocol v1."""
    url = f"{server.ws_url}/ws?sessionId={session_id}"
    client = await WsClient.connect(url, headers=of(subject), limit=2**20)
    assert (await client.recv())["type"] == "CONNECTED"
    return client


KINDS = cycle([V2, V2_MSGPACK, V2 | DEFLATE, V2_MSGPACK | DEFLATE])


async def follower(server: ServerProcess, subject: str | None, *session_ids: str) -> WsClient:
    """One of protocol v2, each in another encoding than the one before it."""
    headers = next(KINDS) | of(subject)
    client = await WsClient.connect(f"{server.ws_url}/ws", headers=headers, limit=2**20)
    assert (await client.recv())["type"] == "WELCOME"
    for number, session_id in enumerate(session_ids):
        await client.send({"type": "SUBSCRIBE", "id": number, "sessionId": session_id})
        assert (await client.recv())["type"] == "SUBSCRIBED"
    return client


async def stream(server: ServerProcess, session_id: str, subject: str | None) -> EventSource:
    query = f"?token={token('view', sub=subject)}"
    source = await EventSource.connect(stream_url(server.url, session_id, query))
    assert await source.next()
    return source


async def streamed(source: EventSource) -> Any:
    """The next event that does not tell who is connected: its name and what it says."""
    while (event := await source.next()) is not None and event.name == "presence":
        pass
    assert event is not None, "the stream has ended"
    return event.name, event.json


async def heard(client: WsClient) -> Any:
    """The next message that does not tell who is connected."""
    while isinstance(message := await client.recv(), dict) and message["type"] == "PRESENCE":
        pass
    return message


async def fence(client: WsClient) -> None:
    """Nothing but who is connected has been told until now."""
    mark = uuid4().hex
    await client.send({"type": "PING", "id": mark})
    message = await heard(client)
    assert (message["type"], message.get("id")) == ("PONG", mark), message


def unsubscribed(session_id: str) -> dict[str, str]:
    return {
        "type": "UNSUBSCRIBED",
        "sessionId": session_id,
        "code": "DISCONNECTED",
        "message": "Disconnected",
    }


# --- whom it reaches -----------------------------------------------------------------------------


@pytest.mark.parametrize("presence", [False, True])
async def test_every_connection_of_the_subject_ends_and_no_other(
    servers: list[ServerProcess], presence: bool
) -> None:
    session_id, other_id = [await created(servers[0], presence=presence) for _ in range(2)]
    everywhere = servers * 2
    gone_v1 = [await watcher(each, session_id, "anna") for each in everywhere]
    gone_v2 = [await follower(each, "anna", session_id, other_id) for each in everywhere]
    gone_streams = [await stream(each, session_id, "anna") for each in everywhere]
    of_others = ["bert", "Anna", "anna ", None]
    stays_v1 = [await watcher(each, session_id, who) for each in servers for who in of_others]
    stays_v1 += [await watcher(each, other_id, "anna") for each in servers]
    stays_v2 = [await follower(each, who, session_id, other_id) for each in servers for who in of_others]
    stays_v2 += [await follower(each, "anna", other_id) for each in servers]
    stays_streams = [await stream(each, session_id, "bert") for each in servers]

    answer = await post(servers[-1], session_id.upper(), "disconnect", {"subject": "anna"})
    assert (answer.status, answer.data) == (202, {"session_id": session_id})
    for client in gone_v1:
        assert await client.recv() == SENT_AWAY
    for client in gone_v2:
        assert await heard(client) == unsubscribed(session_id)
    for source in gone_streams:
        assert await streamed(source) == ("unsubscribed", unsubscribed(session_id))
        await source.ended()
    for client in gone_v2 + stays_v1 + stays_v2:
        await fence(client)

    # From here on nothing of that session reaches who was sent away, and everything reaches the others.
    for each in (session_id, other_id):
        assert (await post(servers[0], each, "start")).status == 200
    for client in stays_v1:
        assert (await client.recv())["state"]["version"] == 2
    for client in gone_v2:
        assert (await heard(client))["sessionId"] == other_id
        await fence(client)
    for client in stays_v2[: -len(servers)]:
        told = [await heard(client), await heard(client)]
        assert {(each["type"], each["sessionId"]) for each in told} == {
            ("UPDATE", session_id),
            ("UPDATE", other_id),
        }
    for client in stays_v2[-len(servers) :]:
        assert (await heard(client))["sessionId"] == other_id
    for source in stays_streams:
        assert (await streamed(source))[0] == "update"
        source.abort()


async def test_nothing_but_its_token_keeps_a_subject_out(servers: list[ServerProcess]) -> None:
    session_id = await created(servers[0])
    client = await follower(servers[0], "anna", session_id)
    old = await watcher(servers[0], session_id, "anna")
    assert (await post(servers[0], session_id, "disconnect", {"subject": "anna"})).status == 202
    assert await client.recv() == unsubscribed(session_id)
    assert await old.recv() == SENT_AWAY
    await client.send({"type": "SYNC", "id": 1, "sessionId": session_id})
    assert (await client.recv())["code"] == "NOT_SUBSCRIBED"
    await client.send({"type": "SUBSCRIBE", "id": 2, "sessionId": session_id})
    assert (await client.recv())["type"] == "SUBSCRIBED"
    again = await watcher(servers[0], session_id, "anna")
    await post(servers[0], session_id, "start")
    assert (await client.recv())["type"] == "UPDATE"
    assert (await again.recv())["type"] == "STATE_UPDATE"


async def test_a_disconnect_sent_again_with_its_key_sends_nobody_away_again(
    servers: list[ServerProcess],
) -> None:
    session_id, key = await created(servers[0]), uuid4().hex
    client = await watcher(servers[0], session_id, "anna")
    first = await post(servers[0], session_id, "disconnect", {"subject": "anna"}, Idempotency_Key=key)
    assert await client.recv() == SENT_AWAY
    back = await watcher(servers[0], session_id, "anna")
    for server in servers:
        again = await post(server, session_id, "disconnect", {"subject": "anna"}, Idempotency_Key=key)
        assert (again.status, again.raw) == (202, first.raw)
        assert again.headers["idempotent-replayed"] == "true"
    await post(servers[0], session_id, "start")
    assert (await back.recv())["type"] == "STATE_UPDATE", "what came before has been heard"
    other = await post(servers[0], session_id, "disconnect", {"subject": "bert"}, Idempotency_Key=key)
    assert (other.status, other.body["error"]["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    "subject", [" ", "ü \u2028 𝄞", '"\\/\x00\x1f', "x" * 5_000], ids=lambda text: text[:9]
)
async def test_a_subject_is_compared_as_its_token_has_it(servers: list[ServerProcess], subject: str) -> None:
    session_id = await created(servers[0])
    gone, stays = [await watcher(servers[-1], session_id, each) for each in (subject, subject + "x")]
    assert (await post(servers[0], session_id, "disconnect", {"subject": subject})).status == 202
    assert await gone.recv() == SENT_AWAY
    await stays.fence()


async def test_what_was_sent_before_it_arrives_before_it(servers: list[ServerProcess]) -> None:
    session_id = await created(servers[0])
    client, following = (
        await watcher(servers[0], session_id, "anna"),
        await follower(servers[0], "anna", session_id),
    )
    assert (await post(servers[0], session_id, "start")).status == 200
    assert (await post(servers[0], session_id, "disconnect", {"subject": "anna"})).status == 202
    assert (await client.recv())["type"] == "STATE_UPDATE"
    assert await client.recv() == SENT_AWAY
    assert (await following.recv())["type"] == "UPDATE"
    assert await following.recv() == unsubscribed(session_id)


# --- who is being let in -------------------------------------------------------------------------


@asynccontextmanager
async def held(api: Api, name: str) -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """Calls of this method of the broker wait: (one has come, let them go on)."""
    broker: Any = api.server.broker
    has_come, may_go = asyncio.Event(), asyncio.Event()
    call = getattr(broker, name)

    async def waiting(*args: Any) -> Any:
        has_come.set()
        await may_go.wait()
        return await call(*args)

    setattr(broker, name, waiting)
    try:
        yield has_come, may_go
    finally:
        may_go.set()
        setattr(broker, name, call)


async def served_session(api: Api) -> str:
    return str((await api("POST", "/v1/sessions", body_of(presence=True), **ADMIN)).data["session_id"])


async def present(api: Api, session_id: str) -> list[str]:
    """The subjects that are said to be there, those included that have left just now."""
    told = (await api("GET", f"/v1/sessions/{session_id}/presence", **ADMIN)).data
    return [each["subject"] for each in told["present"]]


async def sent_away(api: Api, session_id: str, subject: str = "anna") -> None:
    """Handed to the hub: what it sends at once is under way."""
    path = f"/v1/sessions/{session_id}/disconnect"
    assert (await api("POST", path, {"subject": subject}, **ADMIN)).status == 202


async def test_a_subscription_under_way_ends_and_its_request_has_one_answer(secret: Path) -> None:
    async with serving(jwt_secret_file=str(secret)) as api, held(api, "recent") as (has_come, may_go):
        session_id = await served_session(api)
        ws_url = api.url.replace("http", "ws")
        gone, stays = [
            await WsClient.connect(f"{ws_url}/ws", headers=V2 | of(each)) for each in ("anna", "bert")
        ]
        for client in (gone, stays):
            assert (await client.recv())["type"] == "WELCOME"
            await client.send({"type": "SUBSCRIBE", "id": 1, "sessionId": session_id})
        await has_come.wait()
        await gone.fence()
        await sent_away(api, session_id)
        assert await gone.recv() == unsubscribed(session_id)
        await gone.fence()
        may_go.set()
        refused = await gone.recv()
        assert (refused["type"], refused["id"], refused["code"]) == ("ERROR", 1, "NOT_SUBSCRIBED")
        assert (await stays.recv())["type"] == "SUBSCRIBED"
        await api("POST", f"/v1/sessions/{session_id}/start", **ADMIN)
        assert (await stays.recv())["type"] == "UPDATE"
        await gone.fence()
        (room,) = api.server.hub.rooms.values()
        assert [peer.subject for peer in room.peers] == ["bert"]
        assert await present(api, session_id) == ["bert"]
        abort_all()


async def test_a_connection_that_is_being_let_in_closes_and_is_told_nothing_else(secret: Path) -> None:
    async with serving(jwt_secret_file=str(secret)) as api, held(api, "hear") as (has_come, may_go):
        session_id = await served_session(api)
        url = f"{api.url.replace('http', 'ws')}/ws?sessionId={session_id}"
        gone = await WsClient.connect(url, headers=of("anna"))
        await has_come.wait()
        await sent_away(api, session_id)
        assert await gone.recv() == SENT_AWAY
        may_go.set()
        stays = await WsClient.connect(url, headers=of("bert"))
        assert (await stays.recv())["type"] == "CONNECTED"
        (room,) = api.server.hub.rooms.values()
        assert [peer.subject for peer in room.peers] == ["bert"]
        assert await present(api, session_id) == ["bert"]
        abort_all()


# --- bad input -----------------------------------------------------------------------------------

WRONG: list[tuple[Any, list[str]]] = [
    (None, ["body"]),
    ([], ["body"]),
    ("anna", ["body"]),
    ({}, ["subject"]),
    ({"subject": None}, ["subject"]),
    ({"subject": ""}, ["subject"]),
    ({"subject": 7}, ["subject"]),
    ({"subject": True}, ["subject"]),
    ({"subject": ["anna"]}, ["subject"]),
    ({"subject": {"sub": "anna"}}, ["subject"]),
    ({"subject": "x" * 16_385}, ["subject"]),
    ({"subject": "anna", "reason": "x"}, ["reason"]),
    ({"sub": "anna"}, ["sub", "subject"]),
]


@pytest.mark.parametrize(("body", "fields"), WRONG, ids=lambda each: str(each)[:30])
async def test_what_names_no_subject_is_refused_and_sends_nobody_away(
    servers: list[ServerProcess], body: Any, fields: list[str]
) -> None:
    session_id = await created(servers[0])
    client = await watcher(servers[0], session_id, "anna")
    assert fields_of(await post(servers[0], session_id, "disconnect", body)) == set(fields)
    await client.fence()


@pytest.mark.parametrize(
    "raw", [b"{", b'{"subject":"anna","subject":"bert"}', b'{"subject":"\\ud800"}', b'{"subject":"\xff"}']
)
async def test_what_is_not_json_is_refused(servers: list[ServerProcess], raw: bytes) -> None:
    session_id = await created(servers[0])
    error_of(await post(servers[0], session_id, "disconnect", raw), 400, "MALFORMED_JSON")


async def test_the_longest_subject_is_taken_and_a_longer_body_is_not_read(
    servers: list[ServerProcess],
) -> None:
    session_id = await created(servers[0])
    longest = {"subject": "𝄞" * 16_384}
    assert (await post(servers[0], session_id, "disconnect", longest)).status == 202
    too_long = b'{"subject":"anna"}'.ljust(1_048_577)
    error_of(await post(servers[0], session_id, "disconnect", too_long), 413, "PAYLOAD_TOO_LARGE")


async def test_of_a_session_that_is_not_there_nobody_is_sent_away(servers: list[ServerProcess]) -> None:
    session_id = str(uuid4())
    client = await watcher(servers[0], session_id, "anna")
    answer = await post(servers[0], session_id, "disconnect", {"subject": "anna"})
    error_of(answer, 404, "SESSION_NOT_FOUND")
    assert fields_of(await post(servers[0], "nothing", "disconnect", {})) == {"id", "subject"}
    await client.fence()


@pytest.mark.parametrize("scope", ["view", "play", "control", "admin of another"])
async def test_who_may_not_sends_nobody_away(servers: list[ServerProcess], scope: str) -> None:
    session_id = await created(servers[0])
    client = await watcher(servers[0], session_id, "anna")
    sid = str(uuid4()) if " " in scope else "*"
    headers = {"Authorization": f"Bearer {token(scope.split()[0], sid, sub='anna')}"}
    path = f"/v1/sessions/{session_id}/disconnect"
    refused = await servers[0].call("POST", path, {"subject": "anna"}, headers)
    error_of(refused, 403, "FORBIDDEN")
    error_of(await servers[0].call("POST", path, {"subject": "anna"}), 401, "UNAUTHORIZED")
    await client.fence()


# --- between processes ---------------------------------------------------------------------------

SOME_ID = "00000000-0000-4000-8000-00000000005e"


def test_what_is_published_of_it_is_read_back() -> None:
    notice = payloads.Disconnect(session_id=SOME_ID, subject='"ü\u2028')
    raw = dumps(notice)
    assert raw.startswith(b'{"type":"DISCONNECT","sessionId":"' + SOME_ID.encode())
    assert payloads.read_published(raw, 0) == notice


@pytest.mark.parametrize(
    "raw",
    [
        '{"type":"DISCONNECT","sessionId":"ID"}',
        '{"type":"DISCONNECT","sessionId":"ID","subject":""}',
        '{"type":"DISCONNECT","sessionId":"ID","subject":null}',
        '{"type":"DISCONNECT","sessionId":"ID","subject":7}',
        '{"type":"DISCONNECT","sessionId":"ID","subject":"anna"',
        '{"type":"DISCONNECT","sessionId":"ID","subject":"anna"}x',
        '{"type":"DISCONNECT","sessionId":"IDx","subject":"anna"}',
        '{"type":"DISCONNECT","sessionId":"","subject":"anna"}',
        '{"type":"DISCONNECT","subject":"anna"}',
        '{"type":"DISCONNECT",' + "[" * 100_000,
        '{"type":"DISCONNECTED","sessionId":"ID","subject":"anna"}',
        '{"type":"disconnect","sessionId":"ID","subject":"anna"}',
    ],
    ids=lambda raw: raw[:60],
)
def test_what_is_not_quite_that_is_junk(raw: str) -> None:
    assert payloads.read_published(raw.replace("ID", SOME_ID).encode(), 0) is None
