"""A server that is asked to do without its extension in C."""

from pathlib import Path

import pytest

from tests.support.load import chess, data, rest
from tests.support.processes import ServerProcess
from tests.support.ws_client import WsClient


def has_extension(server: ServerProcess) -> bool:
    return "_native" in Path(f"/proc/{server.pid}/maps").read_text()


@pytest.mark.parametrize(("twin", "is_in_c"), [("1", False), ("0", True)])
async def test_a_server_tells_its_clients_the_same_with_its_twin(twin: str, is_in_c: bool) -> None:
    server = ServerProcess("--log-level=warning", env={"LOCKSTEP_TWIN": twin})
    try:
        assert has_extension(server) == is_in_c
        session_id = str(data(await rest(f"{server.url}/v1/sessions", chess()))["session_id"])
        clients = [await WsClient.connect(f"{server.ws_url}/ws?sessionId={session_id}") for _ in range(3)]
        for client in clients:
            await client.recv_type("CONNECTED")
        for command in ("start", "switch", "switch"):
            version = data(await rest(f"{server.url}/v1/sessions/{session_id}/{command}"))["version"]
            for client in clients:
                assert (await client.recv())["state"]["version"] == version
    finally:
        server.stop()
