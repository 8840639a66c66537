"""Any frames at the WebSocket: each is answered or the connection is closed; never an exception."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.api import SOME_ID
from tests.support.fuzzing import answers_to, examples, frames_of, json_values
from tests.support.processes import ServerProcess
from tests.support.sockets import create, watch_url, watching
from tests.support.ws_client import DEFLATE, Closed, WsClient

ANSWERS = {"CONNECTED", "STATE_SYNC", "PONG", "ERROR"}

said = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["PING", "RECONNECT", "PING", "RECONNECT", "NOPE"])},
        optional={"id": json_values},
    ),
    json_values,
)
texts = st.one_of(said.map(lambda each: json.dumps(each).encode()), st.binary(max_size=200))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--log-level=warning")
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


async def converse(
    server: ServerProcess, session_id: str, data: bytes, cuts: list[int], headers: dict[str, str]
) -> None:
    async with await WsClient.connect(watch_url(server, session_id), headers=headers, limit=2**20) as client:
        async for message in answers_to(client, data, cuts):
            assert message["type"] in ANSWERS


async def is_well(server: ServerProcess, session_id: str) -> None:
    async with watching(server, session_id) as [client]:
        await client.send({"type": "RECONNECT"})
        assert (await client.recv_type("STATE_SYNC"))["state"]["session_id"] == session_id
        await client.fence()


@pytest.fixture(scope="module")
def session_id(server: ServerProcess) -> str:
    state = asyncio.run(create(server))
    return str(state["session_id"])


@examples(150)
@given(
    frames=st.lists(frames_of(texts), max_size=12),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
    exists=st.booleans(),
    headers=st.sampled_from([{}, DEFLATE]),
)
def test_whatever_a_client_sends_it_is_answered_or_closed(
    server: ServerProcess,
    session_id: str,
    frames: list[bytes],
    cuts: list[int],
    exists: bool,
    headers: dict[str, str],
) -> None:
    asyncio.run(converse(server, session_id if exists else SOME_ID, b"".join(frames), cuts, headers))
    assert server.process.poll() is None


@examples(60)
@given(messages=st.lists(said, max_size=9))
def test_each_message_has_its_answer_in_order(
    server: ServerProcess, session_id: str, messages: list[object]
) -> None:
    """Up to nine: with the tenth that is refused the connection ends."""

    async def talk() -> None:
        async with watching(server, session_id) as [client]:
            for message in messages:
                await client.send(message)
            for message in messages:
                answer = await client.recv()
                assert not isinstance(answer, Closed)
                type_ = message.get("type") if isinstance(message, dict) else None
                expected = (
                    {"PING": "PONG", "RECONNECT": "STATE_SYNC"}.get(type_, "ERROR")
                    if isinstance(type_, str)
                    else "ERROR"
                )
                assert answer["type"] == expected
            await client.fence()

    asyncio.run(talk())


def test_the_server_is_well_afterwards(server: ServerProcess, session_id: str) -> None:
    asyncio.run(is_well(server, session_id))
