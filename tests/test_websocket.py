"""The WebSocket as a client meets it, at a real server process."""

import asyncio
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.api import serving
from tests.support.loop_time import LoopTime
from tests.support.processes import ServerProcess, wait_until
from tests.support.sockets import command, create, new_id, watch_url, watching
from tests.support.ws_client import BINARY, CLOSE, PING, PONG, TEXT, Closed, WsClient, encode

LIMIT = 16_384
CONTINUATION = 0x0
UPDATE_BEGINS = re.compile(
    rb'\{"type":"STATE_UPDATE","sessionId":"([0-9a-f-]{36})","timestamp":\d{13},"state":'
    rb'\{"session_id":"\1","epoch":"[0-9a-z]{13}","version":\d+,"commit":"[^"]{8}","deadline_ms":(\d+|null),'
)


def ms(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp() * 1000)


async def stored(server: ServerProcess, session_id: str) -> Any:
    return (await server.call("GET", f"/v1/sessions/{session_id}")).data


# --- connecting ----------------------------------------------------------------------------------


async def test_a_client_is_greeted_and_told_nothing_else(server_process: ServerProcess) -> None:
    session_id = (await create(server_process))["session_id"]
    before = (await server_process.call("GET", "/v1/time")).body["timestamp_ms"]
    async with await WsClient.connect(watch_url(server_process, session_id)) as client:
        greeting = await client.recv()
        after = (await server_process.call("GET", "/v1/time")).body["timestamp_ms"]
        assert before <= greeting.pop("timestamp") <= after
        assert greeting == {"type": "CONNECTED", "sessionId": session_id}
        await client.fence()


async def test_an_id_in_capitals_is_the_same_session(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with await WsClient.connect(watch_url(server_process, session_id.upper())) as client:
        assert (await client.recv())["sessionId"] == session_id
        await create(server_process, session_id.upper())
        assert (await client.recv())["sessionId"] == session_id


@pytest.mark.parametrize(
    "query",
    ["", "?", "?sessionId=", "?sessionId", "?sessionid=5e000000-0000-4000-8000-000000000000", "?id=1"],
)
async def test_a_missing_or_empty_session_id_is_refused(server_process: ServerProcess, query: str) -> None:
    async with await WsClient.connect(f"{server_process.ws_url}/ws{query}") as client:
        assert await client.recv() == Closed(1008, "Missing sessionId parameter")


GOOD = "5e000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    "query",
    [
        "sessionId=nonsense",
        f"sessionId={GOOD}&sessionId={GOOD}",
        f"sessionId={GOOD}&sessionId=5e000000-0000-4000-8000-000000000000",
        f"sessionId={GOOD.replace('-', '')}",
        f"sessionId={GOOD[:-1]}",
        f"sessionId={GOOD}0",
        f"sessionId={GOOD[:-1]}g",
        f"sessionId={GOOD}%0A",
        f"sessionId=%20{GOOD}",
        f"sessionId=%7B{GOOD}%7D",
        f"sessionId=urn:uuid:{GOOD}",
        "sessionId=%FF%FE",
        "sessionId=%00",
        "sessionId=" + "%EF%BC%91" * 8 + GOOD[8:],
    ],
)
async def test_what_is_not_one_uuid_is_refused(server_process: ServerProcess, query: str) -> None:
    async with await WsClient.connect(f"{server_process.ws_url}/ws?{query}") as client:
        assert await client.recv() == Closed(1008, "Invalid sessionId format")


# --- what is pushed ------------------------------------------------------------------------------


async def test_every_client_gets_every_change_as_rest_tells_it(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with watching(server_process, session_id, session_id) as [first, second]:

        async def both_hear() -> dict[str, Any]:
            message = await first.recv()
            assert message == await second.recv()
            assert message.keys() == {"type", "sessionId", "timestamp", "state"}
            assert (message["type"], message["sessionId"]) == ("STATE_UPDATE", session_id)
            assert message["timestamp"] == ms(message["state"]["updated_at"])
            assert message["state"] == await stored(server_process, session_id)
            return message["state"]

        created = await create(server_process, session_id)
        assert await both_hear() == created
        assert (created["version"], created["status"]) == (1, "pending")
        target = created["participants"][0]["participant_id"]
        for version, (name, body) in enumerate(
            [
                ("start", {}),
                ("switch", {}),
                ("adjust", {"delta_ms": 1000, "target": target}),
                ("pause", {}),
                ("resume", {}),
                ("complete", {}),
            ],
            start=2,
        ):
            answer = await command(server_process, session_id, name, **body)
            state = await both_hear()
            assert state["version"] == version
            assert {key: state[key] for key in answer} == answer
        for client in (first, second):
            await client.fence()


async def test_an_update_begins_so_that_it_can_be_sliced(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with watching(server_process, session_id) as [client]:
        await create(server_process, session_id, metadata={"title": "Größe / 大"})
        await command(server_process, session_id, "start")
        for _ in range(2):
            opcode, payload = await client.recv_frame()
            assert opcode == TEXT
            assert UPDATE_BEGINS.match(payload)
            assert (
                payload == json.dumps(json.loads(payload), separators=(",", ":"), ensure_ascii=False).encode()
            )


async def test_what_is_refused_or_changes_nothing_is_not_pushed(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with watching(server_process, session_id) as [client]:
        await create(server_process, session_id)
        await client.recv_type("STATE_UPDATE")
        path = f"/v1/sessions/{session_id}"
        assert (await server_process.call("POST", f"{path}/switch")).status == 400
        assert (await server_process.call("POST", f"{path}/start", {"expected_version": 9})).status == 409
        assert (await server_process.call("POST", "/v1/sessions", {"session_id": session_id})).status == 400
        await client.fence()
        await command(server_process, session_id, "complete")
        assert (await client.recv())["state"]["status"] == "completed"
        await command(server_process, session_id, "complete")
        await client.fence()


async def test_clients_of_other_sessions_hear_nothing(server_process: ServerProcess) -> None:
    mine, others = new_id(), new_id()
    async with watching(server_process, mine, others) as [client, other]:
        await create(server_process, mine)
        await command(server_process, mine, "start")
        await server_process.call("POST", f"/v1/sessions/{mine}/messages", {"type": "NOTE"})
        await server_process.call("DELETE", f"/v1/sessions/{mine}")
        assert [(await client.recv())["type"] for _ in range(4)][-1] == "SESSION_DELETED"
        await other.fence()


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"sync_mode": "global", "total_time_ms": 1000, "participants": []}, {"status": "expired"}),
        ({"sync_mode": "per_cycle", "time_per_cycle_ms": 1000}, {"status": "running"}),
    ],
    ids=["expire", "advance"],
)
async def test_an_expiry_is_pushed_without_anybody_asking(
    server_process: ServerProcess, fields: dict[str, Any], outcome: dict[str, Any]
) -> None:
    session_id = new_id()
    async with watching(server_process, session_id, session_id) as clients:
        await create(server_process, session_id, **fields)
        await command(server_process, session_id, "start")
        for client in clients:
            started = [(await client.recv())["state"] for _ in range(2)][1]
            expired = await client.recv_type("STATE_UPDATE")
            state = expired["state"]
            # On a slow machine more than one turn may have run out.
            turns = state["version"] - 2
            assert turns >= 1 if outcome["status"] == "running" else turns == 1
            assert {key: state[key] for key in outcome} == outcome
            due_ms = started["deadline_ms"] + 1000 * (turns - 1)
            assert ms(state["updated_at"]) == due_ms <= expired["timestamp"]
            # Promptly: hours, were it left to whoever reads it next. How promptly is for a quiet machine.
            assert expired["timestamp"] - due_ms < 60_000


async def test_the_versions_at_each_client_rise_by_one_while_fifty_switches_race(
    server_process: ServerProcess,
) -> None:
    session_id = (await create(server_process, seats=5))["session_id"]
    await command(server_process, session_id, "start")
    async with watching(server_process, *[session_id] * 4) as clients:
        answers = asyncio.gather(*(command(server_process, session_id, "switch") for _ in range(50)))

        async def follow(client: WsClient) -> list[int]:
            return [(await client.recv_type("STATE_UPDATE"))["state"]["version"] for _ in range(50)]

        async def ask_now_and_then() -> list[int]:
            # STATE_SYNCs in between must not disturb the order of updates.
            clients[0].writer.write(b"".join(encode(TEXT, b'{"type":"RECONNECT"}') for _ in range(20)))
            return await follow(clients[0])

        seen = await asyncio.gather(ask_now_and_then(), *(follow(client) for client in clients[1:]))
        assert sorted(answer["version"] for answer in await answers) == list(range(3, 53))
        for versions in seen:
            assert versions == list(range(3, 53))
        for client in clients[1:]:
            await client.fence()


# --- what a client may ask -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark",
    [
        0,
        -1,
        10**30,
        0.1,
        1e300,
        -0.0,
        "",
        "x",
        "ä\u0000\u2028😀</script>",
        True,
        False,
        None,
        [],
        {},
        [1, {"a": [None]}],
        {"deep": [[[[[[[[[[{}]]]]]]]]]]},
    ],
    ids=repr,
)
async def test_a_ping_is_answered_with_the_id_it_came_with(server_process: ServerProcess, mark: Any) -> None:
    async with watching(server_process, new_id()) as [client]:
        before = (await server_process.call("GET", "/v1/time")).body["timestamp_ms"]
        await client.send({"type": "PING", "id": mark})
        pong = await client.recv()
        after = (await server_process.call("GET", "/v1/time")).body["timestamp_ms"]
        assert before <= pong.pop("timestamp") <= after
        assert json.dumps(pong) == json.dumps({"type": "PONG", "id": mark})


async def test_a_ping_without_an_id_is_answered_without_one(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send({"type": "PING", "unknown": "fields are ignored"})
        assert (await client.recv()).keys() == {"type", "timestamp"}


async def test_reconnect_is_answered_with_the_state_as_rest_tells_it(server_process: ServerProcess) -> None:
    session_id = (await create(server_process))["session_id"]
    await command(server_process, session_id, "start")
    async with watching(server_process, session_id, session_id) as [client, other]:
        before = (await server_process.call("GET", "/v1/time")).body["timestamp_ms"]
        await client.send({"type": "RECONNECT", "unknown": ["ignored"]})
        sync = await client.recv()
        assert before <= sync.pop("timestamp")
        state = await stored(server_process, session_id)
        assert sync == {"type": "STATE_SYNC", "sessionId": session_id, "state": state}
        await other.fence()


async def test_reconnect_tells_what_fell_due_before(server_process: ServerProcess) -> None:
    session_id = (await create(server_process))["session_id"]
    started = await command(server_process, session_id, "start")
    async with watching(server_process, session_id) as [client]:
        first = started["participants"][0]["participant_id"]
        due = await command(server_process, session_id, "adjust", delta_ms=-60_000, target=first)
        await client.send({"type": "RECONNECT"})
        state = (await client.recv_type("STATE_SYNC"))["state"]
        assert state["version"] > due["version"]
        assert state["participants"][0]["has_expired"]


async def test_reconnect_without_a_session_leaves_the_socket_open(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with watching(server_process, session_id) as [client]:
        await client.send({"type": "RECONNECT"})
        assert await client.recv() == {
            "type": "ERROR",
            "code": "SESSION_NOT_FOUND",
            "message": f"Session {session_id} not found",
        }
        await client.fence()
        await create(server_process, session_id)
        assert (await client.recv())["type"] == "STATE_UPDATE"


MALFORMED = [
    b"",
    b" ",
    b"{",
    b"PING",
    b'{"type":"PING"}{}',
    b'{"type":"PING"} x',
    b"{'type':'PING'}",
    b'{"type":"PING","id":NaN}',
    b'{"type":"PING","id":-Infinity}',
    b'{"type":"PING","id":1e400}',
    b'{"type":"PING","id":01}',
    b'{"type":"PING","id":"\\ud800"}',
    b'{"type":"PING","id":"\n"}',
    b'{"type":"PING","type":"PING"}',
    b'{"type":"PING","id":{"a":1,"a":2}}',
    b'{"type":"PING","id":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"\xef\xbb\xbf" + b'{"type":"PING"}',
]
NO_OBJECTS = [
    b"[]",
    b'["PING"]',
    b'"PING"',
    b"null",
    b"1",
    b"true",
    b"{}",
    b'{"type":null}',
    b'{"type":["PING"]}',
]


@pytest.mark.parametrize("text", MALFORMED + NO_OBJECTS, ids=lambda text: repr(text[:30]))
async def test_what_is_not_a_message_is_refused_and_the_socket_stays_open(
    server_process: ServerProcess, text: bytes
) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(TEXT, text)
        error = await client.recv()
        assert (error["type"], error["code"]) == ("ERROR", "INVALID_MESSAGE")
        assert error["message"]
        await client.fence()


@pytest.mark.parametrize(
    "type_", ["NOPE", "ping", "PING ", "", "STATE_UPDATE", "CONNECTED", "PONG", "x" * 9999]
)
async def test_an_unknown_type_is_refused_and_the_socket_stays_open(
    server_process: ServerProcess, type_: str
) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send({"type": type_})
        error = await client.recv()
        assert (error["type"], error["code"]) == ("ERROR", "UNKNOWN_TYPE")
        await client.fence()


async def test_a_binary_message_is_refused_even_if_it_reads_like_a_ping(
    server_process: ServerProcess,
) -> None:
    async with watching(server_process, new_id()) as [client]:
        for payload in (b'{"type":"PING"}', b"\xff\xfe"):
            await client.send_frame(BINARY, payload)
            assert (await client.recv())["code"] == "INVALID_MESSAGE"
        await client.fence()


async def test_the_tenth_bad_message_within_ten_seconds_closes_the_socket(
    server_process: ServerProcess,
) -> None:
    async with watching(server_process, new_id()) as [client]:
        for number in range(9):
            await client.send_frame(*((TEXT, b"nonsense") if number % 2 else (BINARY, b"")))
            assert (await client.recv())["type"] == "ERROR"
            await client.fence()  # good ones in between don't make up for it
        await client.send({"type": "NOPE"})
        last = await client.recv()
        if not isinstance(last, Closed):  # whether the tenth still has its own answer is nobody's promise
            assert last["type"] == "ERROR"
            last = await client.recv()
        assert last.code == 1008


@pytest.mark.long
async def test_bad_messages_further_apart_than_ten_seconds_are_borne(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        for _ in range(12):
            await client.send_frame(TEXT, b"nonsense")
            assert (await client.recv())["type"] == "ERROR"
            await asyncio.sleep(1.3)
        await client.fence()


# --- the end of a session ------------------------------------------------------------------------


async def test_a_deletion_is_told_and_then_the_sockets_are_closed(server_process: ServerProcess) -> None:
    created = await create(server_process)
    session_id = created["session_id"]
    async with watching(server_process, session_id, session_id, new_id()) as [*clients, other]:
        assert (await server_process.call("DELETE", f"/v1/sessions/{session_id}")).status == 204
        for client in clients:
            message = await client.recv()
            assert isinstance(message.pop("timestamp"), int)
            assert message == {
                "type": "SESSION_DELETED",
                "sessionId": session_id,
                "epoch": created["epoch"],
                "deleted": True,
            }
            assert await client.recv() == Closed(1000, "Session deleted")
        await other.fence()


async def test_deleting_what_is_not_there_tells_nobody(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with watching(server_process, session_id) as [client]:
        assert (await server_process.call("DELETE", f"/v1/sessions/{session_id}")).status == 204
        await client.fence()


async def test_clients_of_a_deleted_session_hear_nothing_of_one_made_anew(
    server_process: ServerProcess,
) -> None:
    """Each round deletes and re-creates at once; an old client never sees the new, also if it won't go."""
    session_id = new_id()
    epoch = (await create(server_process, session_id))["epoch"]
    for _ in range(10):
        async with watching(server_process, session_id, session_id) as [client, stubborn]:
            await server_process.call("DELETE", f"/v1/sessions/{session_id}")
            created = await create(server_process, session_id)
            assert (created["version"], created["epoch"] > epoch) == (1, True)
            deleted = await client.recv()
            assert (deleted["type"], deleted["epoch"]) == ("SESSION_DELETED", epoch)
            assert await client.recv() == Closed(1000, "Session deleted")
            opcodes = [(await stubborn.recv_frame())[0] for _ in range(2)]
            assert opcodes == [TEXT, CLOSE]
            async with watching(server_process, session_id) as [newcomer]:
                await command(server_process, session_id, "start")
                state = (await newcomer.recv())["state"]
                assert (state["epoch"], state["version"]) == (created["epoch"], 2)
            epoch = created["epoch"]
            await stubborn.send_frame(CLOSE)  # what would have come in between stands before the end
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(stubborn.recv_frame(), 10)


async def test_a_session_that_lapses_is_announced_like_a_deletion() -> None:
    server = ServerProcess("--keep-pending-s=0.3", "--log-level=warning")
    try:
        session_id = new_id()
        async with watching(server, session_id) as [client]:
            created = await create(server, session_id)
            await client.recv_type("STATE_UPDATE")
            deleted = await client.recv()
            assert (deleted["type"], deleted["epoch"]) == ("SESSION_DELETED", created["epoch"])
            assert await client.recv() == Closed(1000, "Session deleted")
    finally:
        assert server.stop() == 0


# --- messages of others --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"NOTE"}',
        b' {\n "b" : 1.50e0,\t"a":"\\u00e4\xc3\xa4\\/", "type" : "NOTE" , "nul":"\\u0000"}\r\n',
        b'{"type":"BIG","text":"' + b"x" * (65_536 - 24) + b'"}',
    ],
    ids=["small", "odd", "64 KiB"],
)
async def test_a_message_reaches_every_client_of_the_session_byte_by_byte(
    server_process: ServerProcess, raw: bytes
) -> None:
    session_id = (await create(server_process))["session_id"]
    async with watching(server_process, *[session_id] * 3, new_id()) as [*clients, other]:
        answer = await server_process.call("POST", f"/v1/sessions/{session_id}/messages", raw)
        assert answer.status == 202
        for client in clients:
            assert await asyncio.wait_for(client.recv_frame(), 10) == (TEXT, raw)
            await client.fence()
        await other.fence()


async def test_messages_and_states_arrive_in_the_order_they_were_made(server_process: ServerProcess) -> None:
    session_id = (await create(server_process))["session_id"]
    await command(server_process, session_id, "start")
    async with watching(server_process, session_id) as [client]:
        for version in range(3, 23):
            await command(server_process, session_id, "switch")
            path = f"/v1/sessions/{session_id}/messages"
            await server_process.call("POST", path, {"type": "NOTE", "version": version})
        for version in range(3, 23):
            assert (await client.recv())["state"]["version"] == version
            assert await client.recv() == {"type": "NOTE", "version": version}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b'{"type":"STATE_UPDATE"}', 400),
        (b'{"type":"ERROR"}', 400),
        (b'{"text":"no type"}', 400),
        (b"[]", 400),
        (b'{"type":"NOTE","n":NaN}', 400),
        (b'{"type":"NOTE","t":"\xff"}', 400),
        (b'{"type":"BIG","text":"' + b"x" * (65_536 - 23) + b'"}', 413),
    ],
    ids=["the server's", "the server's too", "no type", "no object", "NaN", "no UTF-8", "over 64 KiB"],
)
async def test_a_message_that_is_refused_reaches_nobody(
    server_process: ServerProcess, raw: bytes, status: int
) -> None:
    session_id = (await create(server_process))["session_id"]
    async with watching(server_process, session_id) as [client]:
        answer = await server_process.call("POST", f"/v1/sessions/{session_id}/messages", raw)
        assert answer.status == status
        await client.fence()


async def test_a_message_to_a_session_that_is_not_there_reaches_nobody(server_process: ServerProcess) -> None:
    session_id = new_id()
    async with watching(server_process, session_id) as [client]:
        answer = await server_process.call("POST", f"/v1/sessions/{session_id}/messages", {"type": "NOTE"})
        assert answer.status == 404
        await client.fence()


# --- RFC 6455 ------------------------------------------------------------------------------------


def padded_ping(size: int) -> bytes:
    text = b'{"type":"PING","id":""}'
    return text[:-2] + b"x" * (size - len(text)) + b'"}'


async def test_messages_may_come_one_byte_at_a_time(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        message = encode(TEXT, b'{"type":"PING"', fin=False) + encode(PING, b"!") + encode(0, b',"id":7}')
        for byte in message:
            await client.send_raw(bytes([byte]))
            await asyncio.sleep(0)
        assert await client.recv_frame() == (PONG, b"!")
        assert (await client.recv())["id"] == 7


async def test_many_messages_may_come_at_once(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        pings = (json.dumps({"type": "PING", "id": number}).encode() for number in range(500))
        await client.send_raw(b"".join(encode(TEXT, ping) for ping in pings))
        assert [(await client.recv())["id"] for _ in range(500)] == list(range(500))


async def test_a_character_may_be_cut_by_a_fragment(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        payload = '{"type":"PING","id":"😀"}'.encode()
        cut = payload.index(b"\xf0") + 2
        await client.send_frame(TEXT, payload[:cut], fin=False)
        await client.send_frame(CONTINUATION, b"", fin=False)
        await client.send_frame(CONTINUATION, payload[cut:])
        assert (await client.recv())["id"] == "😀"


@pytest.mark.parametrize("payload", [b"", b"hello", b"\xff\x00" * 62, bytes(125)], ids=len)
async def test_a_ping_frame_is_answered_with_its_payload(
    server_process: ServerProcess, payload: bytes
) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(PING, payload)
        assert await client.recv_frame() == (PONG, payload)


async def test_a_pong_nobody_asked_for_is_ignored(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(PONG, b"?")
        await client.fence()


@pytest.mark.parametrize(
    "frames",
    [
        encode(TEXT, b"\xff"),
        encode(TEXT, b'{"type":"PING","id":"\xed\xa0\x80"}'),
        encode(TEXT, b"\xc3"),
        encode(TEXT, b"\xc3", fin=False) + encode(0, b""),
        encode(TEXT, b"fine", fin=False) + encode(0, b"\xc3\x28"),
        encode(TEXT, b"fine", fin=False) + encode(PING, b"") + encode(0, b"\xfe"),
        # The rest of these never comes: what cannot become right is refused at once.
        encode(TEXT, b"\xff", fin=False),
        encode(TEXT, b"\xf4", fin=False) + encode(0, b"\x90", fin=False),
        encode(TEXT, b"\xed", fin=False) + encode(0, b"\xa0\x80", fin=False),
        encode(CLOSE, struct.pack("!H", 1000) + b"\xff"),
    ],
    ids=[
        "whole",
        "surrogate",
        "cut",
        "cut fragment",
        "fragment",
        "after ping",
        "fast",
        "range",
        "half",
        "reason",
    ],
)
async def test_invalid_utf8_closes_with_1007(server_process: ServerProcess, frames: bytes) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_raw(frames)
        closed = await client.recv()
        while not isinstance(closed, Closed):
            closed = await client.recv()
        assert closed.code == 1007


async def test_a_message_of_exactly_the_limit_is_read(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(TEXT, padded_ping(LIMIT))
        assert (await client.recv())["type"] == "PONG"
        half = LIMIT // 2
        await client.send_frame(TEXT, padded_ping(LIMIT)[:half], fin=False)
        await client.send_frame(CONTINUATION, padded_ping(LIMIT)[half:])
        assert (await client.recv())["type"] == "PONG"


@pytest.mark.parametrize(
    "data",
    [
        encode(TEXT, padded_ping(LIMIT + 1)),
        encode(BINARY, bytes(70_000)),
        encode(TEXT, b"x" * LIMIT, fin=False) + encode(0, b"x"),
        encode(TEXT, b"x" * 9000, fin=False) * 1 + encode(0, b"x" * 9000, fin=False),
        # The announcement is enough.
        bytes([0x81, 0xFE]) + struct.pack("!H", LIMIT + 1),
        bytes([0x82, 0xFF]) + struct.pack("!Q", 2**40),
        bytes([0x82, 0xFF]) + b"\x7f" + b"\xff" * 7,
    ],
    ids=["one more", "binary", "fragment", "fragments", "announced", "a terabyte", "all bits"],
)
async def test_a_message_over_the_limit_closes_with_1009(server_process: ServerProcess, data: bytes) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_raw(data)
        assert (await client.recv()).code == 1009


async def test_a_client_still_sending_receives_the_close_frame(server_process: ServerProcess) -> None:
    """A reset would overtake it: the server goes on reading what it no longer wants."""
    async with watching(server_process, *[new_id()] * 4) as clients:
        for client in clients:
            client.writer.write(encode(TEXT, bytes(1_048_576)))
        for client in clients:
            await asyncio.wait_for(client.writer.drain(), 10)
            client.writer.write(encode(TEXT, b'{"type":"PING"}') * 100)
            await client.writer.drain()
        for client in clients:
            assert (await client.recv()).code == 1009


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
async def test_an_illegal_close_code_is_not_echoed(server_process: ServerProcess, code: int) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(CLOSE, struct.pack("!H", code))
        assert (await client.recv()).code == 1002


async def test_a_close_of_one_byte_is_not_echoed(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(CLOSE, b"\x03")
        assert (await client.recv()).code == 1002


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
async def test_a_legal_close_code_is_echoed_and_the_connection_ended(
    server_process: ServerProcess, code: int
) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(CLOSE, struct.pack("!H", code) + "grüße".encode())
        opcode, payload = await client.recv_frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", code))
        async with asyncio.timeout(4.5):  # at once; a server that waited for the client would take 5 s
            assert await client.reader.read() == b""


async def test_a_close_without_a_code_is_answered_without_one(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_frame(CLOSE)
        assert await client.recv() == Closed(None)
        assert client.reader.at_eof() or await client.reader.read() == b""


async def test_what_follows_a_close_is_not_read(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_raw(encode(CLOSE, struct.pack("!H", 1000)) + encode(TEXT, b'{"type":"PING"}'))
        assert await client.recv() == Closed(1000)


@pytest.mark.parametrize(
    "data",
    [
        *(encode(TEXT, b"{}", rsv=rsv) for rsv in (0x40, 0x20, 0x10, 0x70)),
        encode(PING, b"", rsv=0x40),
        *(encode(opcode, b"") for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)),
        encode(TEXT, b"{}", masked=False),
        encode(PING, b"", masked=False),
        *(encode(opcode, b"", fin=False) for opcode in (CLOSE, PING, PONG)),
        *(encode(opcode, bytes(126)) for opcode in (CLOSE, PING, PONG)),
        encode(PING, bytes(70_000)),
        encode(CONTINUATION, b"x"),
        encode(CONTINUATION, b"x", fin=False),
        encode(TEXT, b"{", fin=False) + encode(TEXT, b"}"),
        encode(TEXT, b"{", fin=False) + encode(BINARY, b"}", fin=False),
        encode(TEXT, b"{", fin=False) + encode(0, b"}", rsv=0x40),
    ],
    ids=lambda data: data[:2].hex(),
)
async def test_a_breach_of_the_framing_closes_with_1002(server_process: ServerProcess, data: bytes) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_raw(data + encode(TEXT, b'{"type":"PING"}'))
        assert (await client.recv()).code == 1002


async def test_what_came_before_a_breach_is_answered(server_process: ServerProcess) -> None:
    async with watching(server_process, new_id()) as [client]:
        await client.send_raw(encode(TEXT, b'{"type":"PING","id":1}') + encode(TEXT, b"", rsv=0x40))
        assert (await client.recv())["id"] == 1
        assert (await client.recv()).code == 1002


async def test_others_are_served_when_one_breaks_off_or_breaks_the_protocol(
    server_process: ServerProcess,
) -> None:
    session_id = (await create(server_process))["session_id"]
    async with watching(server_process, *[session_id] * 4) as [steady, gone, broken, halfway]:
        gone.abort()
        await broken.send_raw(b"\xff" * 100)
        await halfway.send_raw(encode(TEXT, b'{"type":"PING"}')[:5])
        halfway.writer.write_eof()
        await command(server_process, session_id, "start")
        await command(server_process, session_id, "switch")
        assert [(await steady.recv())["state"]["version"] for _ in range(2)] == [2, 3]
        await steady.fence()


# --- heartbeat -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_heartbeat() -> Iterator[ServerProcess]:
    server = ServerProcess("--ping-interval-s=0.4", "--ping-timeout-s=0.3")
    yield server
    server.stop()


async def test_a_client_that_answers_is_connected_after_three_heartbeats() -> None:
    async with serving(ping_interval_s=2, ping_timeout_s=1) as api:
        url = f"{api.url.replace('http', 'ws')}/ws?sessionId={new_id()}"
        loop_time = LoopTime()
        async with await WsClient.connect(url) as client:
            assert (await client.recv())["type"] == "CONNECTED"
            while client.pings < 3:
                loop_time.skip(0.1)
                await client.fence()  # behind it the server has read the answer to the ping before
            assert loop_time.passed_s >= 4
            for _ in range(15):
                loop_time.skip(0.1)
                await client.fence()
        loop_time.go_on()


def was_logged(server: ServerProcess, session_id: str, message: str) -> Any:
    return wait_until(
        lambda: [
            line
            for line in server.log()
            if (line["message"], line.get("session_id")) == (message, session_id)
        ],
        what=f"a log line {message!r}",
    )


@pytest.mark.parametrize("is_busy", [False, True], ids=["silent", "talkative"])
async def test_a_client_that_answers_no_ping_is_gone_without_a_handshake(
    quick_heartbeat: ServerProcess, is_busy: bool
) -> None:
    """Also one that sends messages all the time: a PONG frame is owed all the same."""
    session_id = new_id()
    async with watching(quick_heartbeat, session_id, answers_pings=False) as [client]:

        async def talk() -> None:
            while is_busy:
                await client.send({"type": "PING"})
                await asyncio.sleep(0.05)

        talker = asyncio.create_task(talk())
        message = await client.recv()
        while not isinstance(message, Closed):
            message = await client.recv()
        assert message == Closed(None)
        assert client.pings == 1
        await asyncio.to_thread(was_logged, quick_heartbeat, session_id, "socket closed")
        talker.cancel()
        await asyncio.gather(talker, return_exceptions=True)


async def test_a_client_that_takes_nothing_and_answers_nothing_is_gone(
    quick_heartbeat: ServerProcess,
) -> None:
    """As one whose packets just disappear: it never closes, and is gone from the hub all the same."""
    session_id = (await create(quick_heartbeat, seats=1000))["session_id"]
    async with watching(quick_heartbeat, session_id, rcvbuf=4096, limit=4096) as [_]:
        await command(quick_heartbeat, session_id, "start")
        await asyncio.to_thread(was_logged, quick_heartbeat, session_id, "socket closed")


@pytest.fixture
def patient_heartbeat() -> Iterator[ServerProcess]:
    server = ServerProcess("--ping-interval-s=2.4", "--ping-timeout-s=2")
    yield server
    server.stop()


async def test_clients_outlast_a_server_that_stood_still(patient_heartbeat: ServerProcess) -> None:
    """As after a suspend: answers that lay unread meanwhile are not held against anybody."""
    server = patient_heartbeat
    async with watching(server, *[new_id()] * 20) as clients:

        async def answer_pings(client: WsClient) -> None:
            while await client.recv_frame() == (PING, b""):
                await client.send_frame(PONG)

        answering = [asyncio.create_task(answer_pings(client)) for client in clients]
        for _ in range(2):
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(2.5)  # no event tells that nothing happens
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await server.call("GET", "/health")
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        for client in clients:
            await client.fence()


@pytest.mark.long
async def test_a_storm_of_clients_that_break_off_ends_neither_the_heartbeat_nor_the_pushes() -> None:
    server = ServerProcess("--ping-interval-s=0.2", "--ping-timeout-s=0.1", "--log-level=warning")
    try:
        session_id = (await create(server, sync_mode="count_up", participants=[]))["session_id"]
        await command(server, session_id, "start")
        reset = struct.pack("ii", 1, 0)

        async def come_and_go() -> None:
            while True:
                async with watching(server, *[session_id] * 10) as clients:
                    for client in clients:
                        sock = client.writer.get_extra_info("socket")
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

        async def change() -> None:
            while True:
                await command(server, session_id, "switch")

        storm = [asyncio.create_task(work()) for work in [come_and_go] * 6 + [change] * 4]
        await asyncio.sleep(20)
        for task in storm:
            task.cancel()
        await asyncio.gather(*storm, return_exceptions=True)
        async with watching(server, session_id, answers_pings=False) as [client]:
            message = await client.recv()
            while not isinstance(message, Closed):  # switches that were under way
                message = await client.recv()
            assert message == Closed(None), "who does not answer a ping is gone"
        assert [line for line in server.log() if line["level"] == "error"] == []
    finally:
        server.stop()


# --- Origin --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["", "https://a.example, http://b.example:8080", "*"])
def origins_of(request: pytest.FixtureRequest) -> Iterator[tuple[str, ServerProcess]]:
    server = ServerProcess(f"--origins={request.param}", "--log-level=warning")
    yield request.param, server
    server.stop()


async def test_a_page_may_connect_if_its_origin_is_the_servers_own_or_listed(
    origins_of: tuple[str, ServerProcess],
) -> None:
    setting, server = origins_of
    own = server.url.removeprefix("http://")
    verdicts = {
        None: True,
        f"http://{own}": True,
        f"https://{own}": True,  # a proxy in front may speak TLS
        "https://a.example": "a.example" in setting,
        "http://b.example:8080": "b.example" in setting,
        "http://a.example": False,
        "http://b.example": False,
        "https://a.example.evil.example": False,
        f"http://{own}.evil.example": False,
        "http://127.0.0.1:1": False,
        "null": False,
        "": False,
    }
    for origin, admitted in verdicts.items():
        headers = {} if origin is None else {"Origin": origin}
        if admitted or setting == "*":
            async with watching(server, new_id(), headers=headers) as [client]:
                await client.fence()
        else:
            with pytest.raises(ConnectionRefusedError, match=" 403 "):
                await WsClient.connect(watch_url(server, new_id()), headers=headers)
