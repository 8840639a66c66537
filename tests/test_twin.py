"""A server that does without its extension in C: it is asked to, or there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import without_settings
from tests.support.load import chess, data, rest
from tests.support.processes import ROOT, ServerProcess
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


@pytest.mark.parametrize(("twin", "is_told"), [("1", False), ("0", True)])
def test_a_server_says_that_its_extension_is_missing_unless_it_is_asked_to_do_without(
    twin: str, is_told: bool
) -> None:
    start = (
        "import sys; sys.modules['handlers._native'] = None; import server\n"
        "server.Server = None\n"  # so far it is to come, and no further
        "server.main(['--port=0'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=ROOT,
        env=without_settings() | {"LOCKSTEP_TWIN": twin},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ("without its extension in C" in done.stdout + done.stderr) == is_told
