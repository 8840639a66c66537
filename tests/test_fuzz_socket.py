"""Any frames at the WebSocket: each is answered or the connection is closed; never an exception."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.api import SOME_ID
from tests.support.fuzzing import examples, json_values
from tests.support.processes import ServerProcess
from tests.support.sockets import create, watch_url, watching
from tests.support.ws_client import BINARY, CLOSE, PING, PONG, TEXT, Closed, WsClient, encode

ANSWERS = {"CONNECTED", "STATE_SYNC", "PONG", "ERROR"}
CLOSES = {None, 1002, 1007, 1008, 1009, *range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}

said = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["PING", "RECONNECT", "PING", "RECONNECT", "NOPE"])},
        optional={"id": json_values},
    ),
    json_values,
)
texts = st.one_of(said.map(lambda each: json.dumps(each).encode()), st.binary(max_size=200))
good_frames = st.one_of(
    st.builds(encode, st.sampled_from([TEXT, TEXT, BINARY]), texts),
    st.builds(encode, st.sampled_from([PING, PONG]), st.binary(max_size=125)),
    st.builds(lambda a, b: encode(TEXT, a, fin=False) + encode(PING, b"") + encode(0, b), texts, texts),
)
any_frames = st.one_of(
    good_frames,
    good_frames,
    st.builds(
        encode,
        st.integers(0, 15),
        st.binary(max_size=300),
        fin=st.booleans(),
        masked=st.sampled_from([True, True, True, False]),
        rsv=st.sampled_from([0, 0, 0, 0x10, 0x40]),
    ),
    st.builds(encode, st.just(CLOSE), st.binary(max_size=10)),
    st.binary(max_size=50),
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--log-level=warning")
    yield process
    assert process.stop() == 0
    assert process.log_lines == []


async def converse(server: ServerProcess, session_id: str, data: bytes, cuts: list[int]) -> None:
    """Say this, in these pieces, and then a close; all that comes back are answers, and a close."""
    async with await WsClient.connect(watch_url(server, session_id), limit=2**20) as client:
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        with suppress(OSError):  # the server may have ended it before
            for start, end in pairwise(places):
                client.writer.write(data[start:end])
                await asyncio.sleep(0)
            # Where the data ends within a frame this is its payload, and the end of the stream must do.
            client.writer.write(encode(CLOSE, b""))
            client.writer.write_eof()
        async with asyncio.timeout(10):
            try:
                while True:
                    opcode, payload = await client.recv_frame()
                    assert opcode in (TEXT, PING, PONG, CLOSE)
                    if opcode == TEXT:
                        assert json.loads(payload)["type"] in ANSWERS
                    elif opcode == CLOSE:
                        code = int.from_bytes(payload[:2], "big") if payload else None
                        assert code in CLOSES
                        assert await client.reader.read() == b"", "nothing comes behind a close"
                        return
            except (asyncio.IncompleteReadError, ConnectionError):
                return


async def is_well(server: ServerProcess, session_id: str) -> None:
    async with watching(server, session_id) as [client]:
        await client.send({"type": "RECONNECT"})
        assert (await client.recv_type("STATE_SYNC"))["state"]["session_id"] == session_id
        await client.fence()


@pytest.fixture(scope="module")
def session_id(server: ServerProcess) -> str:
    state = asyncio.run(create(server))
    return str(state["session_id"])


@examples(300)
@given(
    frames=st.lists(any_frames, max_size=12),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
    exists=st.booleans(),
)
def test_whatever_a_client_sends_it_is_answered_or_closed(
    server: ServerProcess, session_id: str, frames: list[bytes], cuts: list[int], exists: bool
) -> None:
    asyncio.run(converse(server, session_id if exists else SOME_ID, b"".join(frames), cuts))
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
