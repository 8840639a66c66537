"""The table of docs/protocol-v2.md: each message of a client, in each state, has the one answer it says."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.asyncapi import faults
from tests.support.documents import table_under
from tests.support.followers import BY_ENCODING
from tests.support.metrics import figures
from tests.support.processes import ROOT, Answer, ServerProcess
from tests.support.redis_server import Proxy, RedisServer
from tests.support.sockets import new_id
from tests.support.tokens import SECRET, token
from tests.support.ws_client import Closed, WsClient

DOC = (ROOT / "docs" / "protocol-v2.md").read_text()
HEADING = "Every message in every state"
COLUMNS = ["unsubscribed", "waiting", "current", "foreign", "deleted", "broker away", "slow"]
TABLE = {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in table_under(DOC, HEADING)}
ASKED = "the request"
TIMEOUT_S = 30.0


def messages(session_id: str, earlier: str) -> dict[str, Any]:
    """What the rows of the table are; `earlier` is a position that the session has left."""
    about = {"id": ASKED, "sessionId": session_id}
    return {
        "SUBSCRIBE": {"type": "SUBSCRIBE", **about},
        "SUBSCRIBE position": {"type": "SUBSCRIBE", **about, "position": earlier},
        "UNSUBSCRIBE": {"type": "UNSUBSCRIBE", **about},
        "SYNC": {"type": "SYNC", **about},
        "COMMAND": {"type": "COMMAND", **about, "command": "annotate", "body": {"metadata": {"n": 1}}},
        "REAUTH": {"type": "REAUTH", "id": ASKED, "token": token("control", sub="anna")},
        "PING": {"type": "PING", "id": ASKED},
        "of no known type": {"type": "SWITCH", **about},
        "without a session": {"type": "SYNC", "id": ASKED},
    }


def kind_of(answer: Any) -> str:
    """An answer, as the cells of the table name it."""
    type_ = answer["type"]
    if type_ == "SUBSCRIBED":
        if "updates" in answer:
            return "SUBSCRIBED updates"
        assert (answer["state"] is None) == (answer["position"] is None)
        return "SUBSCRIBED null" if answer["state"] is None else "SUBSCRIBED state"
    more = {"SNAPSHOT": "reason", "ERROR": "code"}.get(type_)
    return type_ if more is None else f"{type_} {answer[more]}"


def waits_for_others(row: str) -> bool:
    """Is it answered behind what was asked of the session before?"""
    return row in ("SUBSCRIBE", "SUBSCRIBE position", "UNSUBSCRIBE", "SYNC", "COMMAND")


class Scene:
    """A session that runs at a server, and a client that stands to it as a column says."""

    def __init__(self, server: ServerProcess, encoding: str) -> None:
        self.server = server
        self._protocol = BY_ENCODING[encoding]["Sec-WebSocket-Protocol"]
        self.session_id = new_id()
        self.earlier = ""
        self.heard: list[Any] = []
        self._client: WsClient | None = None

    @property
    def client(self) -> WsClient:
        assert self._client is not None
        return self._client

    @property
    def path(self) -> str:
        return f"/v1/sessions/{self.session_id}"

    async def rest(self, method: str, path: str, body: Any = None) -> Answer:
        answer = await self.server.call(method, path, body, {"Authorization": f"Bearer {token()}"})
        assert answer.status < 300, answer.raw
        return answer

    async def begin(self, seats: int = 2) -> None:
        participants = [{"total_time_ms": 3_600_000}] * seats
        body = {"session_id": self.session_id, "sync_mode": "per_participant", "participants": participants}
        self.earlier = (await self.rest("POST", "/v1/sessions", body)).headers["etag"].strip('"')
        await self.rest("POST", f"{self.path}/start")

    async def annotate(self, **metadata: Any) -> None:
        await self.rest("POST", f"{self.path}/annotate", {"metadata": metadata})

    async def connect(self, **how: Any) -> None:
        headers = {"Sec-WebSocket-Protocol": f"{self._protocol}, bearer.{token('control', sub='anna')}"}
        self._client = await WsClient.connect(f"{self.server.ws_url}/ws", headers=headers, **how)
        await self.until("WELCOME")

    async def until(self, type_: str, **fields: Any) -> Any:
        """What has come before it is kept in `heard`, and so is this."""
        wanted = {"type": type_, **fields}
        async with asyncio.timeout(TIMEOUT_S):
            while not wanted.items() <= (message := await self._hear()).items():
                pass
        return message

    async def until_it_shows(self, name: str) -> None:
        """Until the metadata has this."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                message = await self._hear()
                if name in message.get("changes", message.get("state") or {}).get("metadata", {}):
                    return

    async def follow(self) -> None:
        await self.client.send(self.subscribe)
        await self.until("SUBSCRIBED", id="first")

    @property
    def subscribe(self) -> Any:
        return {"type": "SUBSCRIBE", "id": "first", "sessionId": self.session_id}

    async def ask(self, row: str) -> None:
        await self.client.send(messages(self.session_id, self.earlier)[row])

    async def answers(self) -> list[Any]:
        """All that it has been answered, when what was asked behind it is answered, too."""
        await self.client.send({"type": "SYNC", "id": "fence", "sessionId": self.session_id})
        async with asyncio.timeout(TIMEOUT_S):
            while not any(each.get("id") == "fence" for each in self.heard):
                await self._hear()
            while not any(each.get("id") == ASKED for each in self.heard):
                await self._hear()
        await self.client.send({"type": "PING", "id": "fence behind it"})
        await self.until("PONG", id="fence behind it")
        return [each for each in self.heard if each.get("id") == ASKED]

    async def _hear(self) -> Any:
        message = await self.client.recv(TIMEOUT_S)
        assert not isinstance(message, Closed), (message, self.heard[-3:])
        assert faults("v2", message) == []
        self.heard.append(message)
        return message

    def place_of(self, id_: str) -> int:
        return next(place for place, each in enumerate(self.heard) if each.get("id") == id_)

    async def has_the_one_answer(self, row: str, column: str) -> None:
        assert [kind_of(each) for each in await self.answers()] == [TABLE[row][column]], self.heard
        (answer,) = (each for each in self.heard if each.get("id") == ASKED)
        if answer["type"] == "ERROR" and answer["code"] == "BROKER_UNAVAILABLE":
            assert answer["retryAfterMs"] > 0
        if waits_for_others(row):
            assert answer["sessionId"] == self.session_id
        if answer["type"] == "SUBSCRIBED" and "updates" in answer:
            assert [each["from"] for each in answer["updates"]] == [self.earlier]


def options(folder: Path) -> list[str]:
    secret = folder / "secret"
    secret.write_text(SECRET)
    return [f"--jwt-secret-file={secret}", "--log-level=warning", "--max-share-per-caller=1"]


@pytest.fixture(params=BY_ENCODING)
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module", params=["memory", "redis"])
def server(
    request: pytest.FixtureRequest, folder: Path, redis_server: RedisServer
) -> Iterator[ServerProcess]:
    broker = [f"--broker={redis_server.url}", "--prefix=table:"] if request.param == "redis" else []
    process = ServerProcess(*options(folder), *broker)
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


@pytest.fixture(scope="module")
def on_redis(folder: Path, redis_server: RedisServer) -> Iterator[ServerProcess]:
    process = ServerProcess(*options(folder), f"--broker={redis_server.url}", "--prefix=foreign:")
    yield process
    assert process.stop() == 0


def test_the_table_has_every_state_and_every_message() -> None:
    head = DOC.split(f"\n## {HEADING}\n")[1].split("| message |")[1].splitlines()[0]
    assert [cell.strip() for cell in head.strip(" |").split("|")] == COLUMNS
    assert list(TABLE) == list(messages("", ""))
    described = re.findall(r"^\* \*([\w ]+)\*: ", DOC.split(f"\n## {HEADING}\n")[1], re.MULTILINE)
    assert described == COLUMNS


@asynccontextmanager
async def scene(server: ServerProcess, encoding: str) -> AsyncIterator[Scene]:
    played = Scene(server, encoding)
    try:
        yield played
    finally:
        if played.heard:
            played.client.abort()


@pytest.mark.parametrize("row", TABLE)
async def test_who_is_not_subscribed_has_the_answer_of_the_table(
    server: ServerProcess, encoding: str, row: str
) -> None:
    async with scene(server, encoding) as played:
        await played.begin()
        await played.connect()
        await played.ask(row)
        await played.has_the_one_answer(row, "unsubscribed")


@pytest.mark.parametrize("row", TABLE)
async def test_who_waits_for_a_subscription_has_the_answer_of_the_table(
    server: ServerProcess, encoding: str, row: str
) -> None:
    """Both are in one piece: the second has come when the first begins to be answered."""
    async with scene(server, encoding) as played:
        await played.begin()
        await played.connect()
        asked = messages(played.session_id, played.earlier)[row]
        frames = [played.client.frame_of(each) for each in (played.subscribe, asked)]
        await played.client.send_raw(b"".join(frames))
        await played.has_the_one_answer(row, "waiting")
        is_behind = played.place_of("first") < played.place_of(ASKED)
        assert is_behind is waits_for_others(row)


@pytest.mark.parametrize("row", TABLE)
async def test_who_is_current_has_the_answer_of_the_table(
    server: ServerProcess, encoding: str, row: str
) -> None:
    async with scene(server, encoding) as played:
        await played.begin()
        await played.connect()
        await played.follow()
        await played.annotate(more="of it")
        await played.until("UPDATE")
        await played.ask(row)
        await played.has_the_one_answer(row, "current")


@pytest.mark.parametrize("row", TABLE)
async def test_who_was_sent_a_foreign_state_has_the_answer_of_the_table(
    on_redis: ServerProcess, redis_server: RedisServer, encoding: str, row: str
) -> None:
    async with scene(on_redis, encoding) as played:
        await played.begin()
        await played.connect()
        await played.follow()
        foreign = {"sessionId": played.session_id, "state": {"session_id": played.session_id, "a": [1]}}
        with redis_server.client as client:
            client.publish("foreign:session-updates", json.dumps(foreign))
        snapshot = await played.until("SNAPSHOT", reason="foreign")
        assert (snapshot["position"], snapshot["state"]) == (None, foreign["state"])
        await played.ask(row)
        await played.has_the_one_answer(row, "foreign")


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("row", TABLE)
async def test_who_follows_what_is_not_there_has_the_answer_of_the_table(
    server: ServerProcess, encoding: str, row: str, was_there: bool
) -> None:
    async with scene(server, encoding) as played:
        if was_there:
            await played.begin()
        else:
            played.earlier = "0lquvc000k3f9-1-q7Rw_x0A"
        await played.connect()
        await played.follow()
        if was_there:
            await played.rest("DELETE", played.path)
            await played.until("DELETED")
        await played.ask(row)
        await played.has_the_one_answer(row, "deleted")


@pytest.mark.long
async def test_who_is_at_a_server_without_its_store_has_the_answer_of_the_table(
    folder: Path, redis_server: RedisServer, encoding: str
) -> None:
    """Whether or not it has subscribed, SUBSCRIBE is refused; who has goes on when the store is back."""
    async with Proxy(redis_server.port) as cable:
        how = [*options(folder), f"--broker={cable.url}", "--prefix=away:"]
        server = await asyncio.to_thread(ServerProcess, *how)
        try:
            scenes = {row: Scene(server, encoding) for row in TABLE}
            strangers = [Scene(server, encoding), Scene(server, encoding)]
            everybody = [*scenes.values(), *strangers]
            await asyncio.gather(*(played.begin() for played in everybody))
            await asyncio.gather(*(played.connect() for played in everybody))
            await asyncio.gather(*(played.follow() for played in scenes.values()))
            cable.refuses = True
            cable.cut()
            await until_ready_is(server, 503)
            asked = [*scenes, "SUBSCRIBE", "SUBSCRIBE position"]
            for row, played in zip(asked, everybody, strict=True):
                await played.ask(row)
            for row, played in zip(asked, everybody, strict=True):
                await played.has_the_one_answer(row, "broker away")
            for played in strangers:
                assert any(each.get("code") == "NOT_SUBSCRIBED" for each in played.heard)
            cable.refuses = False
            await until_ready_is(server, 200)
            for row, played in scenes.items():
                if row != "UNSUBSCRIBE":
                    await played.annotate(back=True)
                    await played.until_it_shows("back")
        finally:
            await asyncio.to_thread(server.stop)


async def until_ready_is(server: ServerProcess, status: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await server.call("GET", "/ready")).status != status:
            await asyncio.sleep(0.02)


# --- slow ----------------------------------------------------------------------------------------

SEATS = 1000


@pytest.mark.parametrize("server", ["memory"], indirect=True)
@pytest.mark.parametrize("row", TABLE)
async def test_who_does_not_read_has_the_answer_of_the_table_when_it_does(
    server: ServerProcess, encoding: str, row: str
) -> None:
    """States of a quarter of a MB fill what the kernel takes, until changes are dropped."""
    async with scene(server, encoding) as played:
        await played.begin(SEATS)
        await played.connect(rcvbuf=4096, limit=4096)
        await played.client.send(played.subscribe)
        asked = 0
        before = await changes_dropped(server)
        while await changes_dropped(server) == before:
            asked += 1
            assert asked < 100, "it does not get slow"
            await played.client.send({"type": "SYNC", "id": asked, "sessionId": played.session_id})
            await played.annotate(asked=asked)
            await played.annotate(asked=-asked)
        await played.ask(row)
        await played.has_the_one_answer(row, "slow")
        assert [each["id"] for each in played.heard if type(each.get("id")) is int] == [*range(1, asked + 1)]
        assert sum(each["type"] == "UPDATE" for each in played.heard) < 2 * asked, "it was not slow"


async def changes_dropped(server: ServerProcess) -> float:
    return (await figures(server.url))["lockstep_conflated_states_total"]
