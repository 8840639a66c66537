"""WebSocket clients of others, as they are, follow sessions: a browser's, Python's, Node's.

All of them offer to compress, as they come.
"""

import json
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from websockets.sync.client import ClientConnection, connect

from tests.support.client_model import State, apply_update
from tests.support.processes import ROOT, ServerProcess

PEERS = Path(ROOT) / "bench" / "peers"
SUBPROTOCOL = "lockstep.v2.json"
SWITCHES = 30

# What each says: SUBSCRIBE to all sessions, then the commands by turns, each when the one before is answered.
# Heard is everything up to the UPDATE of the last command of each session.
CONVERSATION = """(WebSocket, url, subprotocol, requests, lastVersion) => new Promise((resolve, reject) => {
    const socket = new WebSocket(url, [subprotocol]);
    const heard = [], unfinished = new Set(requests.map(({ sessionId }) => sessionId));
    const next = () => { if (requests.length) socket.send(JSON.stringify(requests.shift())); };
    socket.onopen = next;
    socket.onerror = reject;
    socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        heard.push(message);
        if ("id" in message) next();
        if (message.changes?.version === lastVersion) unfinished.delete(message.sessionId);
        if (!unfinished.size && !requests.length) socket.close(1000);
    };
    socket.onclose = ({ code }) => resolve([socket.protocol, socket.extensions, heard, code]);
})"""

Client = Callable[[str, list[Any], int], tuple[str, str, list[Any], int]]


def in_chromium(browser: Browser, origin: str) -> Client:
    def converse(url: str, requests: list[Any], last_version: int) -> tuple[str, str, list[Any], int]:
        page = browser.new_page()
        page.goto(origin)
        arguments = [url, SUBPROTOCOL, requests, last_version]
        answer = page.evaluate(f"(args) => ({CONVERSATION})(WebSocket, ...args)", arguments)
        page.close()
        protocol, extensions, heard, code = answer
        return protocol, extensions, heard, code

    return converse


def extensions_of(socket: ClientConnection) -> str:
    return ", ".join(each.name for each in socket.protocol.extensions)


def by_websockets(url: str, requests: list[Any], last_version: int) -> tuple[str, str, list[Any], int]:
    """The package of this name, with all that it does by default: it pings, and it offers to compress."""
    heard: list[Any] = []
    waiting = list(requests)
    unfinished = {each["sessionId"] for each in requests}
    with connect(url, subprotocols=[SUBPROTOCOL], open_timeout=20) as socket:  # type: ignore[list-item]
        socket.send(json.dumps(waiting.pop(0)))
        while unfinished or waiting:
            message = json.loads(socket.recv(timeout=20))
            heard.append(message)
            if "id" in message and waiting:
                socket.send(json.dumps(waiting.pop(0)))
            if message.get("changes", {}).get("version") == last_version:
                unfinished.discard(message["sessionId"])
        socket.close(1000)
    return socket.subprotocol or "", extensions_of(socket), heard, socket.close_code or 0


def by_ws(url: str, requests: list[Any], last_version: int) -> tuple[str, str, list[Any], int]:
    """Node's most used package, in the version that the benchmark is run with."""
    if not (PEERS / "node_modules" / "ws").exists():
        pytest.fail("ws is missing; install it: npm ci --prefix bench/peers", pytrace=False)
    script = f"""import {{ WebSocket }} from "ws";
        const answer = await ({CONVERSATION})(WebSocket, ...JSON.parse(process.argv[1]));
        console.log(JSON.stringify(answer));"""
    arguments = json.dumps([url, SUBPROTOCOL, requests, last_version])
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", script, arguments],
        cwd=PEERS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout)
    protocol, extensions, heard, code = answer
    return protocol, extensions, heard, code


@pytest.mark.parametrize("peer", ["chromium", "websockets", pytest.param("ws", marks=pytest.mark.long)])
def test_a_client_of_others_follows_two_sessions_on_one_socket(
    browser: Browser, server_process: ServerProcess, peer: str
) -> None:
    clients: dict[str, Client] = {
        "chromium": in_chromium(browser, f"{server_process.url}/health"),
        "websockets": by_websockets,
        "ws": by_ws,
    }
    people = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(300)]
    sessions = [
        {"session_id": str(uuid.uuid4()), "sync_mode": "per_participant", "participants": people},
        {"session_id": str(uuid.uuid4()), "sync_mode": "count_up", "participants": []},
    ]
    ids = [session["session_id"] for session in sessions]
    page = browser.new_page()
    for session in sessions:
        assert page.request.post(f"{server_process.url}/v1/sessions", data=session).status == 201
    requests: list[Any] = [{"type": "SUBSCRIBE", "id": each, "sessionId": each} for each in ids]
    for number in range(SWITCHES + 1):
        command = "switch" if number else "start"
        requests += [
            {
                "type": "COMMAND",
                "id": f"{number} {each}",
                "sessionId": each,
                "command": command,
                "body": {"data": {"number": number}},
                "idempotencyKey": f"key {number}",
            }
            for each in ids
        ]
    wanted = [request["id"] for request in requests]

    protocol, extensions, heard, code = clients[peer](f"{server_process.ws_url}/ws", requests, SWITCHES + 2)

    assert (protocol, code) == (SUBPROTOCOL, 1000)
    assert extensions.startswith("permessage-deflate")
    assert heard[0]["type"] == "WELCOME"
    assert [message["id"] for message in heard if "id" in message] == wanted
    assert {message["type"] for message in heard[1:]} == {"SUBSCRIBED", "RESULT", "UPDATE"}
    for each in ids:
        followed, numbers = follow([message for message in heard[1:] if message["sessionId"] == each])
        assert numbers == list(range(SWITCHES + 1))
        assert followed == page.request.get(f"{server_process.url}/v1/sessions/{each}").json()["data"]
    page.close()


def follow(heard: list[Any]) -> tuple[State, list[int]]:
    """The state that these messages lead to, and the numbers that came with them."""
    state: State | None = None
    numbers = []
    for message in heard:
        if message["type"] == "SUBSCRIBED":
            state = message["state"]
        elif message["type"] == "UPDATE":
            state = apply_update(state, message)
            numbers += [event["data"]["number"] for event in message["events"]]
    assert state is not None
    return state, numbers


@pytest.mark.parametrize("peer", ["chromium", "websockets"])
def test_a_client_of_others_hears_compressed_states_of_v1(
    browser: Browser, server_process: ServerProcess, peer: str
) -> None:
    page = browser.new_page()
    page.goto(f"{server_process.url}/health")
    people = [{"participant_id": str(uuid.uuid4()), "total_time_ms": 600_000} for _ in range(300)]
    session = {"session_id": str(uuid.uuid4()), "sync_mode": "per_participant", "participants": people}
    assert page.request.post(f"{server_process.url}/v1/sessions", data=session).status == 201
    url = f"{server_process.ws_url}/ws?sessionId={session['session_id']}"

    def switch_all() -> None:
        for number in range(SWITCHES):
            command = "switch" if number else "start"
            to = f"{server_process.url}/v1/sessions/{session['session_id']}/{command}"
            assert page.request.post(to).ok

    if peer == "chromium":
        page.evaluate(
            """url => new Promise((resolve, reject) => {
                window.heard = [];
                window.socket = new WebSocket(url);
                window.socket.onmessage = ({ data }) => resolve(window.heard.push(JSON.parse(data)));
                window.socket.onerror = reject;
            })""",
            url,
        )
        switch_all()
        page.wait_for_function(f"window.heard.length === {SWITCHES + 1}", timeout=20_000)
        extensions, heard = page.evaluate("[window.socket.extensions, window.heard]")
    else:
        with connect(url, open_timeout=20) as socket:
            heard = [json.loads(socket.recv(timeout=20))]
            switch_all()
            heard += [json.loads(socket.recv(timeout=20)) for _ in range(SWITCHES)]
            extensions = extensions_of(socket)

    assert extensions.startswith("permessage-deflate")
    assert [message["type"] for message in heard] == ["CONNECTED", *["STATE_UPDATE"] * SWITCHES]
    assert [message["state"]["version"] for message in heard[1:]] == list(range(2, SWITCHES + 2))
    stored = page.request.get(f"{server_process.url}/v1/sessions/{session['session_id']}").json()["data"]
    assert heard[-1]["state"] == stored
    page.close()
