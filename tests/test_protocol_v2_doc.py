"""docs/protocol-v2.md tells the truth: its story is replayed, its tables are compared, its example is run."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lockstep import errors
from lockstep.commands import COMMANDS
from lockstep.config import Settings
from lockstep.requests.asyncapi_messages import ERRORS_V2
from lockstep.rules.state import OnTimeout
from lockstep.wire import encodings, protocol_v2, strict_json, strict_msgpack
from tests.support import settled_rules as engine
from tests.support.asyncapi import faults
from tests.support.client_model import apply_changes
from tests.support.documents import ANYTHING, POSITION, Block, assert_alike, blocks_of, filled, table_under
from tests.support.event_source import EventParser, EventSource
from tests.support.processes import ROOT, Answer, ServerProcess
from tests.support.sessions_under_test import T0, pending, running
from tests.support.tokens import SECRET, token
from tests.support.ws_client import Closed, WsClient

DOC = (ROOT / "docs" / "protocol-v2.md").read_text()
BLOCKS = blocks_of(DOC)
SESSION = "7f3c1f6e-2f6b-4b0e-9a51-0d6f3c1d2e3f"
OF_EVENTS = re.compile(r"Types are ([\w, \n]+); ([\w, \n]+) happen by themselves")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    process = ServerProcess(f"--jwt-secret-file={secret}", "--log-level=warning")
    yield process
    process.stop()


class Storyteller:
    """Plays the document against a real server, as its client and as its back end."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._client: WsClient | None = None
        self._ben: WsClient | None = None
        self._source: EventSource | None = None
        self._answer: Answer | None = None
        # What stands in the document for what this server has really made.
        self._real: dict[str, str] = {
            "bearer.TOKEN": "bearer." + token("control", SESSION_AND_OTHER, sub="anna"),
            "Bearer TOKEN": "Bearer " + token("view", SESSION_AND_OTHER, sub="anna"),
            "bearer.BENS_TOKEN": "bearer." + token("view", SESSION_AND_OTHER, sub="ben"),
            '"NEXT_TOKEN"': f'"{token("view", SESSION_AND_OTHER, sub="anna")}"',
            '"TOKEN_OF_ANOTHER_SESSION"': f'"{token("view", OTHER, sub="anna")}"',
        }
        self.states: dict[str, Any] = {}
        """As the client of the document has them, by position."""

    @property
    def client(self) -> WsClient:
        assert self._client is not None
        return self._client

    async def play(self, story: list[Block]) -> None:
        for block in gathered(story):
            if isinstance(block, list):
                await self._hear([each.json for each in block])
            elif block.language == "http" and block.text.startswith("GET /ws"):
                if "BENS_TOKEN" in block.text:
                    self._ben = await self._connected(self._ben, self._truly(block.text))
                else:
                    self._client = await self._connected(self._client, self._truly(block.text))
            elif block.language == "http" and "/stream\n" in block.text:
                await self._open_stream(self._truly(block.text))
            elif block.language == "events":
                await self._hear_events(block.text)
            elif block.language == "http":
                first, _, body = block.text.partition("\n")
                method, path = first.split()
                bearer = {"Authorization": f"Bearer {token()}"}
                self._answer = await self._server.call(method, path, body.encode() or None, bearer)
            elif block.role == "client":
                await self.client.send(json.loads(self._truly(block.text)))
            elif block.language == "json":
                assert self._answer is not None
                assert self._answer.status == int(block.role), self._answer.raw
                assert_alike(block.json, self._answer.body)

    async def _connected(self, before: WsClient | None, request: str) -> WsClient:
        if before is not None:
            before.abort()  # the line breaks
        first, *lines = request.splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        client = await WsClient.connect(self._server.ws_url + first.split()[1], headers=headers)
        assert f"Sec-WebSocket-Protocol: {protocol_v2.SUBPROTOCOL}" in client.response.replace(
            "Websocket", "WebSocket"
        )
        return client

    async def _hear(self, told: list[Any]) -> None:
        """So many messages, each of a type of its own, come in any order: RESULT may overtake UPDATE."""
        if told == [GOING_AWAY]:
            self._server.terminate()
        heard = {}
        for _ in told:
            message = await self.client.recv()
            assert not isinstance(message, Closed), (message, told)
            heard[message["type"]] = message
        for each in told:
            real = heard[each["type"]]
            assert_alike(each, real)
            self._pair(each, real)
            assert faults("v2", real) == []
            assert faults("v2", filled(each, real)) == []
            self._apply(real)

    async def _open_stream(self, request: str) -> None:
        self.end_stream()
        first, *lines = request.splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        self._source = await EventSource.connect(self._server.url + first.split()[1], headers=headers)

    def end_stream(self) -> None:
        if self._source is not None:
            self._source.abort()

    async def _hear_events(self, text: str) -> None:
        assert self._source is not None
        parser = EventParser()
        for told in parser.feed(text.encode() + b"\n"):
            event = await self._source.next()
            assert event is not None
            assert event.name == told.name
            assert_alike(told.json, event.json)
            self._pair(told.json, event.json)
            assert event.last_id == self._truly(told.last_id) == event.json["position"]
            assert faults("stream", event.json) == faults("stream", filled(told.json, event.json)) == []
            self._apply(event.json)
        assert parser.retry_ms is None or 1000 <= parser.retry_ms <= 3000

    def _pair(self, told: Any, real: Any) -> None:
        """Positions in the document stand for real ones, everywhere the same."""
        if isinstance(told, dict):
            for name in told.keys() & real.keys():
                self._pair(told[name], real[name])
        elif isinstance(told, list):
            for one, other in zip(told, real, strict=True):
                self._pair(one, other)
        elif isinstance(told, str) and POSITION.fullmatch(told):
            assert self._real.setdefault(told, real) == real, told

    def _truly(self, text: str) -> str:
        for told, real in self._real.items():
            text = text.replace(told, real)
        return text

    def _apply(self, message: Any) -> None:
        """By the example of the document, and by the tests' own model."""
        for update in message.get("updates", [message] if message["type"] == "UPDATE" else []):
            before, changes = self.states[update["from"]], update["changes"]
            after = EXAMPLE["apply"](before, changes)
            assert after == apply_changes(before, changes)
            position = f"{after['epoch']}-{after['version']}-{after['commit']}"
            assert position == update["position"]
            self.states[position] = after
        if message["type"] == "SNAPSHOT":
            earlier = self.states.setdefault(message["position"], message["state"])
            assert earlier == message["state"]


def gathered(story: list[Block]) -> list[Any]:
    """The blocks, with what the server says in one go in a list of its own."""
    told: list[Any] = []
    for block in story:
        if block.language == "python":
            continue
        if (block.language, block.role) != ("json", "server"):
            told.append(block)
        elif isinstance(told[-1], list) and not {told[-1][-1].json["type"], block.json["type"]} & ALONE:
            told[-1].append(block)
        else:
            told.append([block])
    return told


OTHER = "0b6f5f0e-6d0c-4f5a-8a56-1f1d3e5b7c90"
SESSION_AND_OTHER = [SESSION, OTHER]
GOING_AWAY = next(block.json for block in BLOCKS if block.role == "server" and "GOING_AWAY" in block.text)
# These come in their order.
ALONE = {"WELCOME", "SUBSCRIBED", "UNSUBSCRIBED", "GOING_AWAY"}
EXAMPLE: dict[str, Any] = {}
exec(next(block.text for block in BLOCKS if block.language == "python"), EXAMPLE)


@asynccontextmanager
async def told(server: ServerProcess) -> AsyncIterator[Storyteller]:
    storyteller = Storyteller(server)
    try:
        await storyteller.play(BLOCKS)
        yield storyteller
    finally:
        storyteller.client.abort()
        storyteller.end_stream()


async def test_the_story_happens_as_it_is_written(server: ServerProcess) -> None:
    async with told(server) as storyteller:
        assert await storyteller.client.recv() == Closed(1001, "Server shutting down")
        versions = [state["version"] for state in storyteller.states.values()]
        assert versions == [1, 2, 3, 4, 5]
        last = [*storyteller.states.values()][-1]
        assert (last["status"], last["metadata"]) == ("running", {})


def test_every_example_is_part_of_the_story() -> None:
    assert len(BLOCKS) == DOC.count("```") / 2
    for block in BLOCKS:
        assert block.language in ("http", "python", "events") or (
            block.language == "json" and (block.role in ("client", "server") or block.role.isdigit())
        ), block


def test_what_the_client_of_the_story_says_is_what_the_document_for_machines_has() -> None:
    bad = 0
    for block, answer in pairwise(BLOCKS):
        if block.role == "client":
            is_bad = answer.json.get("code") in protocol_v2.BAD_MESSAGES
            is_bad = is_bad or answer.json.get("code") == errors.ValidationError.code
            assert bool(faults("v2", block.json)) is is_bad, block
            bad += is_bad
    assert bad == 3


def test_every_message_has_an_example() -> None:
    said = {role: set() for role in ("client", "server")}
    for block in BLOCKS:
        if block.role in said and isinstance(block.json, dict):
            said[block.role].add(block.json["type"])
    assert said["server"] == {each.__struct_config__.tag for each in protocol_v2.SERVER_MESSAGES}
    assert said["client"] >= set(protocol_v2.CLIENT_MESSAGES)


def test_every_reason_of_a_snapshot_is_documented() -> None:
    assert [row[0].strip("`") for row in table_under(DOC, "Following a session")] == [
        "created",
        "requested",
        "skipped",
        "repair",
        "foreign",
    ]
    assert set(protocol_v2.Reason.__args__) == {  # type: ignore[attr-defined]
        row[0].strip("`") for row in table_under(DOC, "Following a session")
    }


def test_every_type_of_event_is_documented() -> None:
    found = OF_EVENTS.search(DOC)
    assert found is not None
    seated, going = pending(60_000, 60_000), running(5_000, 5_000)
    newcomer = {"participant_id": "n", "participant_index": 2, "total_time_ms": 1_000, "group_id": None}
    steps = [
        engine.start(seated, T0),
        engine.switch(going, T0),
        engine.pause(going, T0),
        engine.resume(engine.pause(going, T0).session, T0),
        engine.adjust(going, T0, delta_ms=1, target=going.participants[0].participant_id),
        engine.complete(going, T0),
        engine.cancel(seated, T0),
        engine.seat(seated, T0, participants=[newcomer]),
        engine.unseat(seated, T0, participant_id=seated.participants[0].participant_id),
        engine.annotate(seated, T0, metadata={}),
        *(engine.settled(running(5_000, 5_000, on_timeout=policy), T0 + 6_000)[0] for policy in OnTimeout),
    ]
    types = [step.transitions[0].type for step in steps]
    assert re.findall(r"\w+", found[1]) == types[: len(COMMANDS)]
    assert set(re.findall(r"\w+", found[2])) - {"and"} == set(types[len(COMMANDS) :])


def test_every_error_is_documented() -> None:
    assert sorted(row[0] for row in table_under(DOC, "Errors")) == ERRORS_V2


def test_the_limits_are_those_documented() -> None:
    limits = {row[1]: row[0] for row in table_under(DOC, "Rights and limits")}
    settings = Settings()
    assert limits["a client's message"] == f"{settings.max_message_bytes // 1024} KiB"
    assert limits["an `id`"] == f"{protocol_v2.MAX_ID_LENGTH} characters"
    assert limits["subscriptions of a connection"] == str(settings.max_subscriptions)
    with pytest.raises(protocol_v2.BadMessage):
        protocol_v2.read_message({"type": "SUBSCRIBE", "id": 1, "sessionId": SESSION, "position": "x" * 201})
    protocol_v2.read_message({"type": "SUBSCRIBE", "id": 1, "sessionId": SESSION, "position": "x" * 200})
    assert limits["a `position`"] == "200 characters"


def test_the_example_in_msgpack_is_the_message_beside_it() -> None:
    found = re.search(r"^ {4}((?:[0-9A-F]{2} )+) +(\{.*\})$", DOC, re.MULTILINE)
    assert found is not None
    payload, message = bytes.fromhex(found[1]), found[2]
    assert encodings.MSGPACK.decode(payload, is_binary=True) == json.loads(message)
    assert encodings.MSGPACK.encode(message.encode()).endswith(payload)
    assert f"nested at most {strict_json.MAX_DEPTH} deep" in DOC
    assert f"at most {strict_msgpack.MAX_VALUES:,} values" in DOC


def test_everything_of_v1_has_its_place_in_v2() -> None:
    told = " ".join(row[0] for row in table_under(DOC, "Moving from v1"))
    for type_ in ("CONNECTED", "STATE_UPDATE", "STATE_SYNC", "SESSION_DELETED", "PONG", "RECONNECT"):
        assert type_ in told
    assert ANYTHING not in told
