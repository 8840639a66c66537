"""Any frames at protocol v2: each request is answered once, or the connection closed; others are in step.

In JSON and in MessagePack.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.commands import COMMANDS
from tests.support.api import SOME_ID
from tests.support.asyncapi import DOCUMENT, faults
from tests.support.followers import BY_ENCODING, V2_MSGPACK, View
from tests.support.fuzzing import answers_to, examples, frames_of, json_values
from tests.support.processes import ServerProcess
from tests.support.sockets import command, create
from tests.support.ws_client import BINARY, DEFLATE, TEXT, Closed, WsClient

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
async def scene(server: ServerProcess, headers: dict[str, str]) -> AsyncIterator[Scene]:
    await server.call("DELETE", f"/v1/sessions/{SESSION}")
    created = await create(server, SESSION)
    started = await command(server, SESSION, "start")
    url = f"{server.ws_url}/ws?sessionId={SESSION}"
    async with await WsClient.connect(url, headers=headers, limit=2**20) as bystander:
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


# --- any frames ----------------------------------------------------------------------------------


def within_64_bits(value: Any) -> Any:
    """The value as MessagePack can have it."""
    if isinstance(value, dict):
        return {name: within_64_bits(each) for name, each in value.items()}
    if isinstance(value, list):
        return [within_64_bits(each) for each in value]
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def changed(payload: bytes, changes: list[tuple[int, bytes, bool]]) -> bytes:
    """With other bytes at these places, in place of those there or in front of them."""
    mutable = bytearray(payload)
    for place, other, is_inserted in changes:
        at = place % (len(mutable) + 1)
        mutable[at : at if is_inserted else at + len(other)] = other
    return bytes(mutable)


mutations = st.lists(
    st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=5), st.booleans()), max_size=3
)
messages_in = {
    "json": said.map(lambda each: json.dumps(each).encode()),
    "msgpack": said.map(lambda each: msgspec.msgpack.encode(within_64_bits(each))),
}
payloads_in = {
    name: st.one_of(good, st.builds(changed, good, mutations), st.binary(max_size=200))
    for name, good in messages_in.items()
}
OPCODES = {"json": TEXT, "msgpack": BINARY}


@pytest.mark.parametrize("encoding", BY_ENCODING)
@examples(40)
@given(
    data=st.data(),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    query=st.sampled_from(
        ["", f"?sessionId={SOME_ID}", "?sessionId=junk", f"?sessionId={SOME_ID}&position=x"]
    ),
    extensions=st.sampled_from([{}, DEFLATE]),
)
def test_whatever_a_client_of_v2_sends_it_is_answered_or_closed(
    server: ServerProcess,
    encoding: str,
    data: st.DataObject,
    cuts: list[int],
    query: str,
    extensions: dict[str, str],
) -> None:
    frames = data.draw(st.lists(frames_of(payloads_in[encoding], OPCODES[encoding]), max_size=12))
    headers = BY_ENCODING[encoding]

    async def talk() -> None:
        async with (
            scene(server, headers) as played,
            await WsClient.connect(
                f"{server.ws_url}/ws{query}", headers=headers | extensions, limit=2**20
            ) as client,
        ):
            async for message in answers_to(client, b"".join(frames), cuts):
                assert faults("v2", message) == []
            await played.is_in_step()

    asyncio.run(talk())
    assert server.process.poll() is None


@pytest.mark.parametrize("encoding", BY_ENCODING)
@examples(40)
@given(messages=st.lists(said, max_size=MAX_MESSAGES))
def test_each_request_of_v2_has_one_answer(server: ServerProcess, encoding: str, messages: list[Any]) -> None:
    """Those that may have an id have one of their own here, by which their answer is known."""
    headers = BY_ENCODING[encoding]

    async def talk() -> None:
        async with (
            scene(server, headers) as played,
            await WsClient.connect(f"{server.ws_url}/ws", headers=headers, limit=2**20) as client,
        ):
            asked: dict[Any, Any] = {}
            for number, each in enumerate(messages):
                if isinstance(each, dict) and isinstance(each.get("type"), str):
                    each = each | {"id": number}
                truly = json.loads(played.truly(json.dumps(each).encode()))
                if isinstance(truly, dict) and isinstance(truly.get("type"), str):
                    asked[number] = truly
                await client.send(within_64_bits(truly) if client.is_msgpack else truly)
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


# What MessagePack has and JSON has not, anywhere in a message.
foreign = st.recursive(
    st.one_of(
        st.binary(max_size=20),
        st.datetimes(timezones=st.just(UTC)),
        st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=20)),
        st.sampled_from([float("nan"), float("inf"), float("-inf")]),
        st.dictionaries(st.integers(-9, 9) | st.none() | st.booleans(), json_values, min_size=1, max_size=2),
    ),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(st.text(max_size=5), inner, min_size=1, max_size=2)
    ),
    max_leaves=3,
)


@examples(40)
@given(
    messages=st.lists(
        st.tuples(good, st.sampled_from(["id", "sessionId", "body", "position", "more"]), foreign),
        min_size=1,
        max_size=MAX_MESSAGES,
    )
)
def test_what_json_has_not_is_refused_wherever_it_stands(
    server: ServerProcess, messages: list[tuple[Any, str, Any]]
) -> None:
    async def talk() -> None:
        async with (
            scene(server, V2_MSGPACK) as played,
            await WsClient.connect(f"{server.ws_url}/ws", headers=V2_MSGPACK) as client,
        ):
            assert (await client.recv())["type"] == "WELCOME"
            for message, name, value in messages:
                payload = msgspec.msgpack.encode(within_64_bits(message | {name: value}))
                await client.send_frame(BINARY, payload)
                error = await client.recv()
                assert (error["type"], error["code"], "id" in error) == ("ERROR", "INVALID_MESSAGE", False)
                assert error["message"].startswith("Not valid MessagePack: ")
            await client.fence()
            await played.is_in_step()

    asyncio.run(talk())


def allowed(type_: str) -> set[str]:
    """What the document for machines lets a message of this type be answered."""
    operation = DOCUMENT["operations"].get(f"v2.{type_}")
    if operation is None:
        return {"ERROR"}
    return {each["$ref"].rsplit("/", 1)[1] for each in operation["reply"]["messages"]}
