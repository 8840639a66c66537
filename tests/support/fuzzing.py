"""How many examples the fuzzing takes: some in make test, as many as FUZZ says in make fuzz; any frames."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.ws_client import (
    BINARY,
    CLOSE,
    DEFLATED,
    PING,
    PONG,
    TEXT,
    WsClient,
    compressed,
    encode,
    parsed,
)

BOMB = compressed(bytes(10_000_000), 9)
CLOSES = {None, 1002, 1007, 1008, 1009, *range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def examples(some: int) -> settings:
    """So many, always the same ones; or FUZZ many, others each time."""
    many = int(os.environ.get("FUZZ", "0"))
    return settings(
        max_examples=many or some,
        derandomize=not many,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # which JSON has not
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def spoilt(payload: bytes, places: list[tuple[int, int]], size: int) -> bytes:
    """The payload with other bytes at these places, and cut there."""
    changed = bytearray(payload)
    for place, byte in places:
        changed[place % len(changed)] = byte
    return bytes(changed[:size])


def frames_of(messages: st.SearchStrategy[bytes], opcode: int = TEXT) -> st.SearchStrategy[bytes]:
    """Frames, most of them good ones of these messages, and bytes that are none."""
    payloads = st.builds(compressed, messages, st.sampled_from([0, 1, 9]))
    good = st.one_of(
        st.builds(encode, st.sampled_from([opcode, opcode, TEXT, BINARY]), messages),
        st.builds(encode, st.sampled_from([PING, PONG]), st.binary(max_size=125)),
        st.builds(
            lambda a, b: encode(opcode, a, fin=False) + encode(PING, b"") + encode(0, b), messages, messages
        ),
    )
    return st.one_of(
        good,
        good,
        st.builds(
            encode,
            st.integers(0, 15),
            st.binary(max_size=300),
            fin=st.booleans(),
            masked=st.sampled_from([True, True, True, False]),
            rsv=st.sampled_from([0, 0, 0, 0x10, 0x40]),
        ),
        # Good where compression was agreed upon.
        st.builds(encode, st.just(opcode), payloads, rsv=st.just(DEFLATED)),
        st.builds(
            lambda payload, at: (
                encode(opcode, payload[:at], fin=False, rsv=DEFLATED) + encode(0, payload[at:])
            ),
            payloads,
            st.integers(0, 100),
        ),
        # Not so good, or a bomb.
        st.builds(
            encode,
            st.sampled_from([TEXT, BINARY]),
            st.builds(
                spoilt,
                payloads,
                st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=2),
                st.integers(0, 300),
            )
            | st.just(BOMB),
            rsv=st.just(DEFLATED),
        ),
        st.builds(encode, st.just(CLOSE), st.binary(max_size=10)),
        st.binary(max_size=50),
    )


async def answers_to(client: WsClient, data: bytes, cuts: list[int]) -> AsyncIterator[Any]:
    """Say this, in these pieces, and then a close. The messages that come back, up to the end."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with suppress(OSError):  # the server may have ended it before
        for start, end in pairwise(places):
            client.writer.write(data[start:end])
            await asyncio.sleep(0)
        # Where the data ends within a frame this is its payload, and the end of the stream must do.
        client.writer.write(encode(CLOSE, b""))
        client.writer.write_eof()
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            async with asyncio.timeout(10):
                opcode, payload = await client.recv_frame()
            told = BINARY if client.is_msgpack else TEXT
            assert opcode in (told, PING, PONG, CLOSE)
            if opcode == told:
                yield parsed(opcode, payload)
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else None
                assert code in CLOSES
                assert await client.reader.read() == b"", "nothing comes behind a close"
                return
