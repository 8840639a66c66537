"""What protocol v2 makes of bad input: an error or a close code; nothing is lost, others notice nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest

from lockstep.commands import MAX_DATA_BYTES
from lockstep.rules.state import MAX_METADATA_BYTES
from tests.support.api import SOME_ID
from tests.support.asyncapi import faults
from tests.support.followers import V2, V2_MSGPACK
from tests.support.processes import Answer, ServerProcess, read_answer
from tests.support.redis_server import RedisServer
from tests.support.sockets import command, create, new_id
from tests.support.tokens import SECRET, token
from tests.support.ws_client import BINARY, TEXT, Closed, WsClient, encode


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--log-level=warning", "--rate-limit-switch=0")
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


class Talk:
    """A client that says what it should not, and one that follows the same session meanwhile."""

    def __init__(self, session: dict[str, Any], client: WsClient, bystander: WsClient) -> None:
        self.session = session
        self.session_id: str = session["session_id"]
        self.client = client
        self._bystander = bystander
        self._has_changed = False

    @property
    def about(self) -> dict[str, Any]:
        return {"id": 1, "sessionId": self.session_id}

    async def ask(self, message: Any) -> Any:
        await self.client.send(message)
        return await self.answer()

    async def answer(self) -> Any:
        """The next message that is no UPDATE."""
        while True:
            message = await self.client.recv()
            if isinstance(message, Closed):
                return message
            assert faults("v2", message) == []
            if message["type"] != "UPDATE":
                return message

    async def refuses(self, message: Any, code: str, *fields: str) -> Any:
        """It is an ERROR with this code, and with violations of these fields."""
        error = await self.ask(message)
        assert (error["type"], error["code"]) == ("ERROR", code), error
        if fields:
            assert tuple(each["field"] for each in error["details"]) == fields
        return error

    async def nothing_has_happened(self) -> None:
        """Both go on; of the session nobody has been told anything."""
        await self.client.fence()
        await self._bystander.fence()

    async def once(self, type_: str) -> None:
        """Exactly one change has come to the other one, of this type."""
        update = await self._bystander.recv()
        assert [each["type"] for each in update["events"]] == [type_]
        await self._bystander.fence()


async def connect(server: ServerProcess, query: str = "", headers: dict[str, str] | None = None) -> WsClient:
    client = await WsClient.connect(f"{server.ws_url}/ws{query}", headers=V2 | (headers or {}), limit=2**20)
    welcome = await client.recv()
    assert welcome["type"] == "WELCOME", welcome
    return client


@asynccontextmanager
async def talking(server: ServerProcess, headers: dict[str, str] | None = None) -> AsyncIterator[Talk]:
    session = await create(server)
    session = await command(server, session["session_id"], "start")
    async with (
        await connect(server, headers=headers) as client,
        await connect(server, f"?sessionId={session['session_id']}") as bystander,
    ):
        assert (await bystander.recv())["state"]["version"] == 2
        yield Talk(session, client, bystander)


# --- the handshake -------------------------------------------------------------------------------


async def shake(server: ServerProcess, protocols: str, query: str = "") -> Answer:
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = {
        "Host": parts.netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": protocols,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    try:
        writer.write(f"GET /ws{query} HTTP/1.1\r\n{lines}\r\n".encode())
        async with asyncio.timeout(10):
            return await read_answer(reader)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "protocols",
    [
        *(
            "lockstep.v3.json",
            "lockstep.",
            "lockstep.v2",
            "lockstep.v2.JSON, bearer.abc",
            "lockstep.v9, chat",
        ),
        *("lockstep.v1.msgpack", "lockstep.v2.msgpack.", "lockstep.v2.MSGPACK"),
    ],
)
async def test_a_protocol_of_ours_that_is_unknown_is_refused(server: ServerProcess, protocols: str) -> None:
    answer = await shake(server, protocols)
    assert answer.status == 400
    error = answer.body["error"]
    assert error["code"] == "UNSUPPORTED_PROTOCOL"
    assert error["details"] == {"supported": ["lockstep.v1.json", "lockstep.v2.json", "lockstep.v2.msgpack"]}


@pytest.mark.parametrize(
    ("protocols", "chosen"),
    [
        ("lockstep.v3.json, lockstep.v2.json, lockstep.v1.json", "lockstep.v2.json"),
        ("lockstep.v1.json, lockstep.v2.json", "lockstep.v1.json"),
        ("lockstep.v2.msgpack, lockstep.v2.json, lockstep.v1.json", "lockstep.v2.msgpack"),
        ("lockstep.v2.json, lockstep.v2.msgpack", "lockstep.v2.json"),
        ("chat, bearer.abc", None),
    ],
)
async def test_the_first_protocol_that_is_known_is_taken(
    server: ServerProcess, protocols: str, chosen: str | None
) -> None:
    answer = await shake(server, protocols, f"?sessionId={SOME_ID}")
    assert (answer.status, answer.headers.get("sec-websocket-protocol")) == (101, chosen)


@pytest.mark.parametrize(
    "query",
    [
        "?sessionId=",
        "?sessionId=junk",
        f"?sessionId={SOME_ID}0",
        f"?sessionId={{{SOME_ID}}}",
        f"?sessionId={SOME_ID}&sessionId={SOME_ID}",
        "?sessionId=%ff",
        "?sessionId=" + "x" * 4000,
    ],
)
async def test_a_bad_session_in_the_url_ends_the_connection(server: ServerProcess, query: str) -> None:
    async with await WsClient.connect(f"{server.ws_url}/ws{query}", headers=V2) as client:
        assert await client.recv() == Closed(1008, "Invalid sessionId format")


@pytest.mark.parametrize("position", ["", "junk", "%ff", "%00", quote('"'), quote("é€"), "x" * 4000])
async def test_a_bad_position_in_the_url_gets_the_state(server: ServerProcess, position: str) -> None:
    async with talking(server) as talk:
        query = f"?sessionId={talk.session_id}&position={position}"
        async with await connect(server, query) as client:
            subscribed = await client.recv()
            assert subscribed["state"] == talk.session
            await client.fence()
        await talk.nothing_has_happened()


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"PING"',
        b"{}",
        b'{"type":7}',
        b'{"type":"PING"}{}',
        b'{"type":"PING","type":"PING"}',
        b'{"type":"PING","id":NaN}',
        b'{"type":"PING","id":"\\ud800"}',
        b"[" * 5000,
    ],
)
async def test_what_is_no_message_is_answered_as_such(server: ServerProcess, payload: bytes) -> None:
    async with talking(server) as talk:
        await talk.client.send_frame(TEXT, payload)
        error = await talk.answer()
        assert (error["type"], error["code"], "id" in error) == ("ERROR", "INVALID_MESSAGE", False)
        await talk.nothing_has_happened()


async def test_a_binary_frame_is_no_message(server: ServerProcess) -> None:
    async with talking(server) as talk:
        await talk.client.send_frame(BINARY, json.dumps({"type": "PING", "id": 1}).encode())
        error = await talk.answer()
        assert (error["type"], error["code"], "id" in error) == ("ERROR", "INVALID_MESSAGE", False)
        await talk.nothing_has_happened()


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "it ends too early"),
        (b"\xc0", "A message is an object with a type"),
        (b"\x81\xa4type\x07", "A message is an object with a type"),
        (msgspec.msgpack.encode({"type": "PING", "id": 1}) + b"\xc0", "something comes behind the value"),
        (msgspec.msgpack.encode({"type": "PING", "id": 1})[:-1], "it ends too early"),
        (msgspec.msgpack.encode({"type": "PING", "id": b"x"}), "binary data"),
        (msgspec.msgpack.encode({"type": "PING", "id": float("nan")}), "NaN or infinity"),
        (msgspec.msgpack.encode({"type": "PING", 1: 1}), "a key that is not a string"),
        (msgspec.msgpack.encode({"type": "PING", "at": datetime.now(UTC)}), "an extension type"),
        (b"\x82\xa4type\xa4PING\xa4type\xa4PING", "duplicate key"),
        (b"\x82\xa4type\xa4PING\xa2id\xa3\xed\xa0\x80", "invalid UTF-8"),
        (b"\x91" * 5000, "nested too deeply"),
        (b"\xdc\x3f\x00" + b"\x01" * 0x3F00, "too many values"),
        (b"\xdf\xff\xff\xff\xff\xa4type\xa4PING", "it ends too early"),
        (b'{"type":"PING","id":1}', "something comes behind the value"),
    ],
    ids=lambda each: each if isinstance(each, str) else each[:9].hex(),
)
async def test_what_is_no_message_in_msgpack_is_answered_as_such(
    server: ServerProcess, payload: bytes, complaint: str
) -> None:
    async with talking(server, V2_MSGPACK) as talk:
        await talk.client.send_frame(BINARY, payload)
        error = await talk.answer()
        assert (error["type"], error["code"], "id" in error) == ("ERROR", "INVALID_MESSAGE", False)
        assert complaint in error["message"]
        assert "JSON" not in error["message"]
        await talk.nothing_has_happened()


async def test_a_text_frame_is_no_message_in_msgpack(server: ServerProcess) -> None:
    async with talking(server, V2_MSGPACK) as talk:
        await talk.client.send_frame(TEXT, json.dumps({"type": "PING", "id": 1}).encode())
        error = await talk.answer()
        assert (error["code"], error["message"]) == ("INVALID_MESSAGE", "Text messages are not understood")
        await talk.nothing_has_happened()


async def test_who_goes_on_with_what_is_no_message_in_msgpack_is_sent_away(server: ServerProcess) -> None:
    async with talking(server, V2_MSGPACK) as talk:
        for _ in range(10):
            await talk.client.send_frame(BINARY, b"\xc1")
            assert (await talk.answer())["code"] == "INVALID_MESSAGE"
        assert await talk.answer() == Closed(1008, "Too many invalid messages")


@pytest.mark.parametrize("id_", ["", "x" * 64, "é" * 64, 0, -1, 2**53 + 1, 2**64 - 1, -(2**63)])
async def test_an_id_comes_back_in_msgpack_as_it_is(server: ServerProcess, id_: Any) -> None:
    async with talking(server, V2_MSGPACK) as talk:
        for message in ({"type": "PING", "id": id_}, {"type": "SYNC", **talk.about, "id": id_}):
            answer = await talk.ask(message)
            assert (answer["id"], type(answer["id"])) == (id_, type(id_))
        for bad in (1.0, None, True, [], "x" * 65):
            assert "id" not in await talk.refuses({"type": "PING", "id": bad}, "INVALID_MESSAGE")


async def test_a_command_in_msgpack_does_what_json_says(server: ServerProcess) -> None:
    """Of numbers, too: what is sent as a double is one, and a whole one beyond 64 bits comes as such."""
    async with talking(server, V2_MSGPACK) as talk:
        about = {"type": "COMMAND", **talk.about}
        await talk.refuses(
            about | {"command": "adjust", "body": {"delta_ms": 1.5}}, "VALIDATION_ERROR", "delta_ms"
        )
        metadata = {"z": 1.0, "a": [1, -0.0, 2**64 - 1, None], "ü": {"y": "\u2028𝄞", "x": False}}
        assert (await talk.ask(about | {"command": "annotate", "body": {"metadata": metadata}}))[
            "type"
        ] == "RESULT"
        stored = (await server.call("GET", f"/v1/sessions/{talk.session_id}")).data["metadata"]
        assert json.dumps(stored) == json.dumps(metadata)
        assert (
            await server.call("POST", f"/v1/sessions/{talk.session_id}/annotate", {"metadata": {"n": 2**70}})
        ).status == 200
        subscribed = await talk.ask({"type": "SUBSCRIBE", **talk.about})
        assert json.dumps(subscribed["state"]["metadata"]) == json.dumps(metadata | {"n": float(2**70)})


BAD_IDS = [
    *("null", "true", "1.5", "[]", "{}", f'"{"x" * 65}"', f'"{"é" * 65}"'),
    *(f"1{'0' * 64}", f"-1{'0' * 63}", f"1{'0' * 5000}", "1e3"),
]
"""As JSON."""


@pytest.mark.parametrize("id_", BAD_IDS, ids=lambda text: text[:9])
@pytest.mark.parametrize("type_", ["SUBSCRIBE", "COMMAND", "PING", "NOPE"])
async def test_an_id_that_is_none_is_refused_and_not_echoed(
    server: ServerProcess, type_: str, id_: str
) -> None:
    async with talking(server) as talk:
        message = f'{{"type":"{type_}","id":{id_},"sessionId":"{talk.session_id}","command":"pause"}}'
        await talk.client.send_frame(TEXT, message.encode())
        error = await talk.answer()
        assert (error["type"], error["code"], "id" in error) == ("ERROR", "INVALID_MESSAGE", False)
        await talk.nothing_has_happened()


@pytest.mark.parametrize("id_", ["", "x" * 64, "é" * 64, 0, -1, 2**53 + 1, 2**64, 10**64 - 1, -(10**63) + 1])
async def test_an_id_within_the_limit_comes_back_as_it_is(server: ServerProcess, id_: Any) -> None:
    async with talking(server) as talk:
        for message in (
            {"type": "PING", "id": id_},
            {"type": "SUBSCRIBE", "id": id_, "sessionId": talk.session_id},
            {"type": "SYNC", "id": id_, "sessionId": talk.session_id},
            {"type": "COMMAND", "id": id_, "sessionId": talk.session_id, "command": "fly"},
            {"type": "NOPE", "id": id_},
        ):
            answer = await talk.ask(message)
            assert (answer["id"], type(answer["id"])) == (id_, type(id_))
        await talk.nothing_has_happened()


@pytest.mark.parametrize("type_", ["SUBSCRIBE", "UNSUBSCRIBE", "SYNC", "COMMAND"])
async def test_a_request_without_an_id_is_refused(server: ServerProcess, type_: str) -> None:
    async with talking(server) as talk:
        error = await talk.refuses(
            {"type": type_, "sessionId": talk.session_id, "command": "pause"}, "INVALID_MESSAGE"
        )
        assert "id" in error["message"]
        await talk.nothing_has_happened()


@pytest.mark.parametrize(
    "session_id",
    [
        *("", "junk", SOME_ID[:-1], SOME_ID + "0", SOME_ID.replace("-", ""), f"{{{SOME_ID}}}"),
        *(f"urn:uuid:{SOME_ID}", SOME_ID + "\n", " " + SOME_ID, SOME_ID.replace("0", "\u0660"), "x" * 9000),
        *(None, 7, [], {}, [SOME_ID], True),
    ],
)
@pytest.mark.parametrize("type_", ["SUBSCRIBE", "UNSUBSCRIBE", "SYNC", "COMMAND"])
async def test_a_session_id_that_is_none_is_refused(
    server: ServerProcess, type_: str, session_id: Any
) -> None:
    async with talking(server) as talk:
        message = {"type": type_, "id": 5, "sessionId": session_id, "command": "pause"}
        assert (await talk.refuses(message, "INVALID_MESSAGE"))["id"] == 5
        await talk.nothing_has_happened()


async def test_a_session_id_in_capitals_is_the_same_session(server: ServerProcess) -> None:
    async with talking(server) as talk:
        upper = talk.session_id.upper()
        answer = await talk.ask({"type": "SUBSCRIBE", "id": 1, "sessionId": upper})
        assert (answer["sessionId"], answer["state"]) == (talk.session_id, talk.session)
        assert (await talk.ask({"type": "SYNC", **talk.about}))["state"] == talk.session
        await talk.nothing_has_happened()


# --- positions -----------------------------------------------------------------------------------


async def test_a_position_that_the_session_never_had_gets_the_state(server: ServerProcess) -> None:
    """Junk, another epoch's, the future's, and whatever else is not one of its own."""
    async with talking(server) as talk:
        changed = await command(server, talk.session_id, "pause")
        epoch, commit = changed["epoch"], changed["commit"]
        before = f"{epoch}-2-{talk.session['commit']}"
        now = f"{epoch}-3-{commit}"
        never = [
            *("", "-", "--", "junk", '"', "\\", "\x00", "é€😀", "null", "x" * 200),
            *(f"0000000000000-3-{commit}", f"zzzzzzzzzzzzz-3-{commit}"),
            *(f"{epoch}-4-{commit}", f"{epoch}-999999999999-{commit}", f"{epoch}-{10**30}-{commit}"),
            *(f"{epoch}-3-xxxxxxxx", f"{epoch}-2-{commit}", f"{epoch}-2", epoch, f"{epoch}-2-"),
            *(before.upper(), f" {before}", f"{before} ", f'"{before}"', before[:-1], f"{before}x"),
            *(f'{before}","position":"{now}', f"{epoch}--2-{commit}", f"{epoch}-02-{commit}"),
        ]
        for position in never:
            answer = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": position})
            assert answer.get("state") == changed, position
            assert answer["position"] == now
            await talk.ask({"type": "UNSUBSCRIBE", **talk.about})
        answer = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": before})
        assert [each["position"] for each in answer["updates"]] == [now]
        await talk.once("paused")


async def test_a_position_of_a_session_before_this_one_gets_the_state(server: ServerProcess) -> None:
    async with talking(server) as talk:
        old = f"{talk.session['epoch']}-2-{talk.session['commit']}"
        answer = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": old})
        assert answer["updates"] == []
        await talk.ask({"type": "UNSUBSCRIBE", **talk.about})
        await server.call("DELETE", f"/v1/sessions/{talk.session_id}")
        answer = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": old})
        assert (answer["position"], answer["state"]) == (None, None)
        await talk.ask({"type": "UNSUBSCRIBE", **talk.about})
        anew = await create(server, talk.session_id)
        answer = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": old})
        assert answer["state"] == anew


@pytest.mark.parametrize("position", [7, 1.5, True, [], {}, "x" * 201])
async def test_a_position_of_another_form_is_refused(server: ServerProcess, position: Any) -> None:
    async with talking(server) as talk:
        await talk.refuses({"type": "SUBSCRIBE", **talk.about, "position": position}, "INVALID_MESSAGE")
        await talk.refuses({"type": "SYNC", **talk.about}, "NOT_SUBSCRIBED")
        await talk.nothing_has_happened()


# --- subscriptions -------------------------------------------------------------------------------


async def test_who_subscribes_twice_is_told_the_state_and_each_change_once(server: ServerProcess) -> None:
    async with talking(server) as talk:
        position = f"{talk.session['epoch']}-2-{talk.session['commit']}"
        first = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": position})
        assert first["updates"] == []
        second = await talk.ask({"type": "SUBSCRIBE", **talk.about, "position": position})
        assert (second["position"], second["state"]) == (position, talk.session)
        await command(server, talk.session_id, "pause")
        update = await talk.client.recv()
        assert (update["type"], update["from"]) == ("UPDATE", position)
        await talk.client.fence()
        await talk.ask({"type": "UNSUBSCRIBE", **talk.about})
        await talk.refuses({"type": "UNSUBSCRIBE", **talk.about}, "NOT_SUBSCRIBED")
        await command(server, talk.session_id, "resume")
        await talk.client.fence()


async def test_one_subscription_too_many_is_refused_and_the_others_go_on(server: ServerProcess) -> None:
    async with talking(server) as talk:
        others = [new_id() for _ in range(100)]
        for number, session_id in enumerate(others):
            answer = await talk.ask({"type": "SUBSCRIBE", "id": number, "sessionId": session_id})
            assert (answer["type"], answer["id"]) == ("SUBSCRIBED", number)
        error = await talk.refuses({"type": "SUBSCRIBE", **talk.about}, "TOO_MANY_SUBSCRIPTIONS")
        assert error["sessionId"] == talk.session_id
        again = await talk.ask({"type": "SUBSCRIBE", "id": 1, "sessionId": others[0]})
        assert again["type"] == "SUBSCRIBED", "it is one of the hundred"
        await talk.nothing_has_happened()
        await create(server, others[-1])
        assert (await talk.answer())["reason"] == "created"
        await talk.ask({"type": "UNSUBSCRIBE", "id": 1, "sessionId": others[0]})
        assert (await talk.ask({"type": "SUBSCRIBE", **talk.about}))["state"] == talk.session


# --- while a subscription waits for the store ----------------------------------------------------


@pytest.fixture(scope="module")
def frozen_redis() -> Iterator[RedisServer]:
    """One that stands still when a test says so."""
    redis = RedisServer()
    yield redis
    redis.close()


@pytest.fixture(scope="module")
def on_redis(frozen_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    how = (f"--jwt-secret-file={secret}", f"--broker={frozen_redis.url}", "--log-level=error")
    process = ServerProcess(*how, "--max-share-per-caller=1")
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


async def test_subscriptions_that_are_asked_for_at_once_are_no_more_than_allowed(
    on_redis: ServerProcess,
) -> None:
    bearer = {"Authorization": f"Bearer {token('view', sub='anna')}"}
    async with await connect(on_redis, headers=bearer) as client:
        said = [{"type": "SUBSCRIBE", "id": number, "sessionId": new_id()} for number in range(130)]
        await client.send_raw(b"".join(encode(TEXT, json.dumps(each).encode()) for each in said))
        answers = [await client.recv() for _ in said]
        assert sorted(each["id"] for each in answers) == [*range(130)]
        codes = [each.get("code", each["type"]) for each in answers]
        assert (codes.count("SUBSCRIBED"), codes.count("TOO_MANY_SUBSCRIPTIONS")) == (100, 30)
        await client.fence()


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_token_that_comes_while_a_subscription_waits_counts_for_it(
    on_redis: ServerProcess, frozen_redis: RedisServer, comes_back: bool
) -> None:
    """There is one answer, and what the last token forbids is not told."""
    session_id, other = new_id(), new_id()
    good, bad = token("view", session_id, sub="anna"), token("view", other, sub="anna")
    async with await connect(on_redis, headers={"Authorization": f"Bearer {good}"}) as client:
        frozen_redis.freeze()
        try:
            await client.send({"type": "SUBSCRIBE", "id": "s", "sessionId": session_id})
            for _ in range(2):
                await client.fence()  # by the second one it has begun to be answered
            for each in [bad, good] if comes_back else [bad]:
                await client.send({"type": "REAUTH", "id": "r", "token": each})
                while (answer := await client.recv())["type"] != "REAUTHENTICATED":
                    assert answer["type"] == "UNSUBSCRIBED"
        finally:
            frozen_redis.thaw()
        answer = await client.recv()
        assert answer["id"] == "s"
        if not comes_back:
            assert (answer["type"], answer["code"]) == ("ERROR", "FORBIDDEN")
        is_subscribed = answer["type"] == "SUBSCRIBED"
        await client.send({"type": "UNSUBSCRIBE", "id": "u", "sessionId": session_id})
        assert ((await client.recv())["type"] == "UNSUBSCRIBED") is is_subscribed
        await client.fence()


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "fly", "START", "create", "delete", "messages", "__class__", "x" * 9000]
)
async def test_an_unknown_command_is_refused(server: ServerProcess, name: str) -> None:
    async with talking(server) as talk:
        error = await talk.refuses(
            {"type": "COMMAND", **talk.about, "command": name}, "VALIDATION_ERROR", "command"
        )
        assert len(json.dumps(error)) < 1000
        await talk.nothing_has_happened()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"command": None},
        {"command": 7},
        {"command": ["pause"]},
        {"command": "pause", "body": []},
        {"command": "pause", "body": "{}"},
        {"command": "pause", "body": 7},
        {"command": "pause", "idempotencyKey": 7},
        {"command": "pause", "idempotencyKey": {}},
    ],
)
async def test_a_command_of_another_form_is_refused(server: ServerProcess, fields: Any) -> None:
    async with talking(server) as talk:
        await talk.refuses({"type": "COMMAND", **talk.about, **fields}, "INVALID_MESSAGE")
        await talk.nothing_has_happened()


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("pause", {"unknown": 1}, "unknown"),
        ("pause", {"expected_version": "2"}, "expected_version"),
        ("pause", {"expected_version": 0}, "expected_version"),
        ("pause", {"data": []}, "data"),
        ("pause", {"data": {"k": "x" * (MAX_DATA_BYTES - 7)}}, "data"),
        ("start", {"participant_id": "junk"}, "participant_id"),
        ("switch", {"next_participant_id": SOME_ID}, "next_participant_id"),
        ("adjust", None, "delta_ms"),
        ("adjust", {"delta_ms": 0}, "delta_ms"),
        ("unseat", {}, "participant_id"),
        ("unseat", {"participant_id": SOME_ID}, "participant_id"),
        ("seat", {"participants": []}, "participants"),
        ("seat", {"participants": [{}]}, "participants.0.total_time_ms"),
        ("annotate", {"metadata": []}, "metadata"),
        ("annotate", {"metadata": {"k": "x" * (MAX_METADATA_BYTES - 7)}}, "metadata"),
    ],
)
async def test_a_command_whose_body_is_wrong_is_told_where(
    server: ServerProcess, name: str, body: Any, field: str
) -> None:
    async with talking(server) as talk:
        said = {"type": "COMMAND", **talk.about, "command": name, "body": body}
        await talk.refuses(said, "VALIDATION_ERROR", field)
        await talk.nothing_has_happened()


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "a\nb", "a\x00b", "é", "x ", "😀"])
async def test_an_idempotency_key_that_rest_would_refuse_is_refused(server: ServerProcess, key: str) -> None:
    async with talking(server) as talk:
        said = {"type": "COMMAND", **talk.about, "command": "pause", "idempotencyKey": key}
        await talk.refuses(said, "VALIDATION_ERROR", "Idempotency-Key")
        await talk.nothing_has_happened()


async def test_data_of_a_kib_is_kept_and_a_byte_more_is_refused(server: ServerProcess) -> None:
    async with talking(server) as talk:
        for size, is_good in ((MAX_DATA_BYTES + 1, False), (MAX_DATA_BYTES, True)):
            data = {"k": "x" * (size - len('{"k":""}'))}
            said = {"type": "COMMAND", **talk.about, "command": "pause", "body": {"data": data}}
            assert (await talk.ask(said))["type"] == ("RESULT" if is_good else "ERROR")
        await talk.once("paused")


async def test_a_patch_is_refused_where_its_result_is_too_large(server: ServerProcess) -> None:
    """Two that fit each by itself, but not together."""
    half = "x" * (MAX_METADATA_BYTES // 2)
    async with talking(server) as talk:
        said = {"type": "COMMAND", **talk.about, "command": "annotate"}
        assert (await talk.ask(said | {"body": {"metadata": {"a": half}}}))["type"] == "RESULT"
        await talk.once("annotated")
        await talk.refuses(said | {"body": {"metadata": {"b": half}}}, "VALIDATION_ERROR", "metadata")
        state = (await server.call("GET", f"/v1/sessions/{talk.session_id}")).data
        assert (state["version"], state["metadata"]) == (3, {"a": half})
        await talk.nothing_has_happened()


async def test_nobody_is_seated_twice(server: ServerProcess) -> None:
    async with talking(server) as talk:
        said = {"type": "COMMAND", **talk.about, "command": "seat"}
        newcomer = {"participant_id": new_id(), "total_time_ms": 5000}
        seated = newcomer | {"participant_id": talk.session["participants"][0]["participant_id"]}
        twice = said | {"body": {"participants": [newcomer, newcomer]}}
        await talk.refuses(twice, "VALIDATION_ERROR", "participants.1.participant_id")
        error = await talk.refuses(said | {"body": {"participants": [newcomer, seated]}}, "CONFLICT")
        epoch, commit = talk.session["epoch"], talk.session["commit"]
        assert error["details"] == {"position": f"{epoch}-2-{commit}"}
        await talk.nothing_has_happened()


async def test_a_command_of_what_is_not_there_is_told_so(server: ServerProcess) -> None:
    async with talking(server) as talk:
        said = {"type": "COMMAND", "id": 1, "sessionId": new_id(), "command": "pause"}
        await talk.refuses(said, "SESSION_NOT_FOUND")
        await talk.nothing_has_happened()


async def test_one_key_for_two_requests_is_refused(server: ServerProcess) -> None:
    async with talking(server) as talk:
        said = {"type": "COMMAND", **talk.about, "command": "pause", "idempotencyKey": "key"}
        assert (await talk.ask(said))["type"] == "RESULT"
        await talk.once("paused")
        await talk.refuses(said | {"body": {"data": {}}}, "IDEMPOTENCY_KEY_REUSED")
        assert (await talk.ask(said))["replayed"] is True
        await talk.nothing_has_happened()


# --- rights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    secret = tmp_path_factory.mktemp("keys") / "secret"
    secret.write_text(SECRET)
    process = ServerProcess("--log-level=warning", f"--jwt-secret-file={secret}")
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


async def test_who_may_not_command_is_refused_and_nothing_changes(keyed: ServerProcess) -> None:
    admin = {"Authorization": f"Bearer {token()}"}
    players = [new_id(), new_id()]
    seats = [{"participant_id": each, "total_time_ms": 60_000} for each in players]
    body = {"session_id": new_id(), "sync_mode": "per_participant", "participants": seats}
    session_id = body["session_id"]
    assert (await keyed.call("POST", "/v1/sessions", body, admin)).status == 201
    started = await keyed.call("POST", f"/v1/sessions/{session_id}/start", None, admin)
    other = new_id()
    refused: list[tuple[str, str, dict[str, Any], str, str]] = [
        ("view", session_id, {"command": "switch"}, session_id, "scope"),
        ("view", session_id, {"command": "fly"}, session_id, ""),
        ("play", session_id, {"command": "pause"}, session_id, "scope"),
        ("play", session_id, {"command": "switch"}, session_id, "turn"),
        (
            "play",
            session_id,
            {"command": "switch", "body": {"next_participant_id": players[0]}},
            session_id,
            "scope",
        ),
        ("control", other, {"command": "pause"}, session_id, "session"),
        ("control", session_id, {"command": "pause", "body": {"unknown": 1}}, other, "session"),
    ]
    for scope, sid, said, about, reason in refused:
        bearer = {"Authorization": f"Bearer {token(scope, sid, sub=players[1])}"}
        async with await connect(keyed, headers=bearer) as client:
            await client.send({"type": "COMMAND", "id": 1, "sessionId": about, **said})
            error = await client.recv()
            assert faults("v2", error) == []
            if reason:
                assert (error["code"], error["details"]["reason"]) == ("FORBIDDEN", reason), said
            else:
                assert error["code"] == "VALIDATION_ERROR"
            await client.fence()
    state = await keyed.call("GET", f"/v1/sessions/{session_id}", None, admin)
    assert state.body == started.body


@pytest.mark.parametrize("bad", ["", "junk", "a.b.c", "x" * 9000, "é"])
async def test_a_token_that_is_none_is_refused_and_the_one_before_counts_on(
    keyed: ServerProcess, bad: str
) -> None:
    session_id = new_id()
    bearer = {"Authorization": f"Bearer {token('view', session_id, sub='anna')}"}
    async with await connect(keyed, f"?sessionId={session_id}", headers=bearer) as client:
        assert (await client.recv())["type"] == "SUBSCRIBED"
        for each in (
            bad,
            token("admin", "*", sub="bert"),
            token("admin", "*"),
            token(ttl_s=-100, sub="anna"),
        ):
            await client.send({"type": "REAUTH", "id": 1, "token": each})
            error = await client.recv()
            assert (error["type"], error["code"], error["id"]) == ("ERROR", "UNAUTHORIZED", 1)
        await client.send({"type": "SYNC", "id": 2, "sessionId": session_id})
        assert (await client.recv())["code"] == "SESSION_NOT_FOUND", "it is subscribed"
        await client.send({"type": "SUBSCRIBE", "id": 3, "sessionId": new_id()})
        assert (await client.recv())["code"] == "FORBIDDEN"
        await client.fence()


# --- too much ------------------------------------------------------------------------------------


async def test_a_message_over_the_limit_ends_the_connection(server: ServerProcess) -> None:
    async with talking(server) as talk:
        await talk.client.send_frame(TEXT, b'{"type":"PING","id":"%b"}' % (b"x" * 16_384))
        assert await talk.answer() == Closed(1009, "Message over 16384 bytes")


async def test_text_that_is_none_ends_the_connection(server: ServerProcess) -> None:
    async with talking(server) as talk:
        await talk.client.send_frame(TEXT, b'{"type":"PING","id":"\xff"}')
        assert await talk.answer() == Closed(1007, "Invalid UTF-8")


async def test_who_goes_on_with_what_is_no_message_is_sent_away(server: ServerProcess) -> None:
    async with talking(server) as talk:
        for number in range(10):
            message = {"type": "NOPE", "id": number} if number % 2 else {"type": "SYNC", "id": number}
            assert (await talk.ask(message))["type"] == "ERROR"
        assert await talk.answer() == Closed(1008, "Too many invalid messages")


async def test_who_is_refused_otherwise_may_go_on(server: ServerProcess) -> None:
    """Only what is not understood counts: a refusal may be nobody's fault."""
    async with talking(server) as talk:
        for number in range(30):
            said = {"type": "COMMAND", "id": number, "sessionId": talk.session_id, "command": "resume"}
            await talk.refuses(said, "INVALID_STATE_TRANSITION")
            await talk.refuses({"type": "SYNC", "id": number, "sessionId": talk.session_id}, "NOT_SUBSCRIBED")
        await talk.nothing_has_happened()


async def test_many_requests_at_once_are_all_answered_in_their_order(server: ServerProcess) -> None:
    async with talking(server) as talk:
        sessions = [talk.session_id, *(new_id() for _ in range(4))]
        said = [
            {
                "type": "SUBSCRIBE" if number % 3 else "UNSUBSCRIBE",
                "id": number,
                "sessionId": sessions[number % 5],
            }
            for number in range(600)
        ]
        await talk.client.send_raw(b"".join(encode(TEXT, json.dumps(each).encode()) for each in said))
        answered: dict[str, list[int]] = {each: [] for each in sessions}
        for _ in said:
            answer = await talk.answer()
            answered[answer["sessionId"]].append(answer["id"])
        for place, session_id in enumerate(sessions):
            assert answered[session_id] == [*range(place, 600, 5)]
        await talk.nothing_has_happened()
