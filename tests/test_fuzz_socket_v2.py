"""Any frames at protocol v2: each request is answered once, or the connection closed; others are in step."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.commands import COMMANDS
from tests.support.api import SOME_ID
from tests.support.asyncapi import DOCUMENT, faults
from tests.support.followers import V2, View
from tests.support.fuzzing import answers_to, examples, frames_of, json_values
from tests.support.processes import ServerProcess
from tests.support.sockets import command, create
from tests.support.ws_client import Closed, WsClient

SESSION = "f0000000-0000-4000-8000-000000000000"
# They stand for the positions that it has had, which differ from one example to the next.
CREATED, STARTED = "<created>", "<started>"
TYPES = ["SUBSCRIBE", "UNSUBSCRIBE", "SYNC", "COMMAND", "REAUTH", "PING", "NOPE"]
UNASKED = {"WELCOME", "UPDATE", "DELETED", "MESSAGE"}
MAX_MESSAGES = 9
"""With ten that are not understood the connection would end."""

session_ids = st.sampled_from([SESSION, SESSION, SESSION, SESSION.upper(), SOME_ID]) | json_values
positions = st.sampled_from([CREATED, STARTED, STARTED, "junk"]) | json_values
bodies = st.one_of(
    st.none(),
    json_values,
    st.fixed_dictionaries(
        {},
        optional={
            "data": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
            "metadata": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
            "delta_ms": st.sampled_from([1000, -1000, 0]),
            "participants": st.lists(st.just({"total_time_ms": 5000}), max_size=2),
            "expected_version": st.integers(0, 4),
        },
    ),
)


def of(type_: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A message of this type about the session, with some of these fields."""
    about = {"type": st.just(type_), "sessionId": st.sampled_from([SESSION, SESSION, SESSION.upper()])}
    return st.fixed_dictionaries(about | {"id": st.integers(0, 9)}, optional=fields)


good = st.one_of(
    of("SUBSCRIBE"),
    of("SUBSCRIBE", position=st.sampled_from([CREATED, STARTED, "junk"])),
    of("UNSUBSCRIBE"),
    of("SYNC"),
    of("PING"),
    of("REAUTH", token=st.text(max_size=5)),
    *(
        of("COMMAND", body=bodies, idempotencyKey=st.sampled_from(["a", "b"])).map(
            lambda each, name=name: each | {"command": name}
        )
        for name in ("switch", "pause", "resume", "adjust", "seat", "annotate", "complete")
    ),
)
odd = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES), "sessionId": session_ids},
        optional={
            "id": json_values,
            "position": positions,
            "command": st.sampled_from([*COMMANDS, "fly"]) | json_values,
            "body": bodies,
            "token": json_values,
            "idempotencyKey": json_values,
        },
    ),
    json_values,
)
said = st.one_of(good, good, odd)


class Scene:
    """A session, and a client that follows it by its changes while another says anything."""

    def __init__(self, server: ServerProcess, client: WsClient, states: list[dict[str, Any]]) -> None:
        self.server = server
        self.states = {f"{each['epoch']}-{each['version']}-{each['commit']}": each for each in states}
        self._client = client
        self._view = View(SESSION)

    def truly(self, text: bytes) -> bytes:
        """With the session's positions in place of what stands for them."""
        created, started = self.states
        return text.replace(CREATED.encode(), created.encode()).replace(STARTED.encode(), started.encode())

    async def is_in_step(self) -> None:
        """The other one has what is stored."""
        stored = (await self.server.call("GET", f"/v1/sessions/{SESSION}")).data
        async with asyncio.timeout(10):
            while self._view.state is None or self._view.state["version"] < stored["version"]:
                message = await self._client.recv()
                assert not isinstance(message, Closed)
                assert self._view.take(message)
        assert self._view.state == stored
        await self._client.fence()


@asynccontextmanager
async def scene(server: ServerProcess) -> AsyncIterator[Scene]:
    await server.call("DELETE", f"/v1/sessions/{SESSION}")
    created = await create(server, SESSION)
    started = await command(server, SESSION, "start")
    url = f"{server.ws_url}/ws?sessionId={SESSION}"
    async with await WsClient.connect(url, headers=V2, limit=2**20) as bystander:
        assert (await bystander.recv())["type"] == "WELCOME"
        yield Scene(server, bystander, [created, started])


class Judge:
    """Holds what comes to one client against the document for machines, and against what was sent before."""

    def __init__(self, states: dict[str, dict[str, Any]], asked: dict[Any, Any]) -> None:
        self.answers: list[Any] = []
        self._states = states
        self._asked = asked
        self._views: dict[str, View] = {}

    def take(self, message: Any) -> None:
        assert faults("v2", message) == []
        session_id = message.get("sessionId")
        if message["type"] == "SUBSCRIBED":
            view = self._views.setdefault(session_id, View(session_id))
            if "updates" in message:
                position = self._asked[message["id"]]["position"]
                view.position, view.state = position, self._states[position]
            view.take(message)
        elif message["type"] in ("UPDATE", "SNAPSHOT", "DELETED"):
            assert self._views[session_id].take(message), "nothing comes without a subscription"
        elif message["type"] == "UNSUBSCRIBED":
            del self._views[session_id]
        if message["type"] not in UNASKED and (message["type"] != "SNAPSHOT" or "id" in message):
            self.answers.append(message)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--log-level=error")
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


texts = st.one_of(said.map(lambda each: json.dumps(each).encode()), st.binary(max_size=200))


@examples(40)
@given(
    frames=st.lists(frames_of(texts), max_size=12),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    query=st.sampled_from(
        ["", f"?sessionId={SOME_ID}", "?sessionId=junk", f"?sessionId={SOME_ID}&position=x"]
    ),
)
def test_whatever_a_client_of_v2_sends_it_is_answered_or_closed(
    server: ServerProcess, frames: list[bytes], cuts: list[int], query: str
) -> None:
    async def talk() -> None:
        async with (
            scene(server) as played,
            await WsClient.connect(f"{server.ws_url}/ws{query}", headers=V2, limit=2**20) as client,
        ):
            async for message in answers_to(client, b"".join(frames), cuts):
                assert faults("v2", message) == []
            await played.is_in_step()

    asyncio.run(talk())
    assert server.process.poll() is None


@examples(40)
@given(messages=st.lists(said, max_size=MAX_MESSAGES))
def test_each_request_of_v2_has_one_answer(server: ServerProcess, messages: list[Any]) -> None:
    """Those that may have an id have one of their own here, by which their answer is known."""

    async def talk() -> None:
        async with (
            scene(server) as played,
            await WsClient.connect(f"{server.ws_url}/ws", headers=V2, limit=2**20) as client,
        ):
            asked: dict[Any, Any] = {}
            for number, each in enumerate(messages):
                if isinstance(each, dict) and isinstance(each.get("type"), str):
                    each = each | {"id": number}
                truly = json.loads(played.truly(json.dumps(each).encode()))
                if isinstance(truly, dict) and isinstance(truly.get("type"), str):
                    asked[number] = truly
                await client.send(truly)
            judge = Judge(played.states, asked)
            while len(judge.answers) < len(messages):
                message = await client.recv()
                assert not isinstance(message, Closed), message
                judge.take(message)
            await client.send({"type": "PING", "id": "the last"})
            while not judge.answers or judge.answers[-1].get("id") != "the last":
                judge.take(await client.recv())
            counts = Counter(each.get("id") for each in judge.answers[:-1])
            assert counts.pop(None, 0) == len(messages) - len(asked)
            assert counts == dict.fromkeys(asked, 1)
            for each in judge.answers[:-1]:
                if "id" in each:
                    assert each["type"] in allowed(asked[each["id"]]["type"])
            await played.is_in_step()

    asyncio.run(talk())


def allowed(type_: str) -> set[str]:
    """What the document for machines lets a message of this type be answered."""
    operation = DOCUMENT["operations"].get(f"v2.{type_}")
    if operation is None:
        return {"ERROR"}
    return {each["$ref"].rsplit("/", 1)[1] for each in operation["reply"]["messages"]}
