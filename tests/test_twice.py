"""What a proxy sends twice is done once, whoever stands still over it: real nginx, processes and Redis."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deploy.config import Stack, find_program
from deploy.nginx import nginx_conf
from lockstep.config import Settings
from tests.support.load import chess
from tests.support.processes import Answer, ServerProcess, request
from tests.support.redis_server import Proxy, RedisServer
from tests.support.stack import free_ports
from tests.support.ws_client import WsClient

# nginx asks the next process after so long; as it is delivered, after 5 s.
ASKS_ANOTHER_AFTER_S = 2
# The life of a key that nginx makes.
KEPT_S = 60


@dataclass
class Pair:
    """nginx asks `first`, and `second` where that does not answer. `link` is the first one's to Redis."""

    url: str
    first: ServerProcess
    second: ServerProcess
    link: Proxy

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(self.url + path, method, body, named)

    async def create(self) -> str:
        created = await self.second.call("POST", "/v1/sessions", chess())
        session_id: str = created.data["session_id"]
        return session_id

    async def running(self) -> str:
        session_id = await self.create()
        assert (await self.second.call("POST", f"/v1/sessions/{session_id}/start")).status == 200
        return session_id

    async def sessions(self) -> dict[str, Any]:
        """All there is, by id."""
        listed = (await self.second.call("GET", "/v1/sessions?limit=100")).data["sessions"]
        return {each["session_id"]: each for each in listed}

    def stop_first(self) -> None:
        os.kill(self.first.pid, signal.SIGSTOP)

    async def go_on(self, *request_ids: str) -> list[object]:
        """Let the first one go on, until it has answered these requests; with which status."""
        os.kill(self.first.pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            while True:
                lines = {line.get("request_id"): line.get("status") for line in self.first.log()}
                if lines.keys() >= set(request_ids):
                    return [lines[request_id] for request_id in request_ids]
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def paired(folder: Path) -> AsyncIterator[Pair]:
    base = free_ports(2)
    redis = RedisServer()
    options = ("--log-level=info",)
    servers: list[ServerProcess] = []
    try:
        async with Proxy(redis.port) as link:
            for name, url in (("lockstep-1", link.url), ("lockstep-2", redis.url)):
                path = f"--unix-socket={folder / name}.sock"
                servers.append(await asyncio.to_thread(ServerProcess, f"--broker={url}", path, *options))
            first, second = servers
            stack = Stack(
                str(folder), f"127.0.0.1:{base}", processes=1, metrics_port=base + 1, connections=100
            )
            conf = nginx_conf(stack, Settings())
            for before, after in (
                ('lockstep-1.sock" max_fails=1 fail_timeout=1s;', 'lockstep-1.sock" max_fails=0;'),
                ('lockstep-1.sock" max_fails=0 backup;', 'lockstep-2.sock" max_fails=0 backup;'),
                ("proxy_read_timeout 5s;", f"proxy_read_timeout {ASKS_ANOTHER_AFTER_S}s;"),
            ):
                assert conf.count(before) == 1
                conf = conf.replace(before, after)
            (folder / "nginx-temp").mkdir()
            (folder / "nginx.conf").write_text(conf)
            nginx = await asyncio.create_subprocess_exec(
                *(find_program("nginx"), "-p", stack.run, "-c", "nginx.conf", "-e", "nginx-error.log")
            )
            try:
                async with asyncio.timeout(10):
                    while True:
                        with contextlib.suppress(OSError):
                            if (await request(f"{stack.url}/ready", "GET")).status == 200:
                                break
                        await asyncio.sleep(0.01)
                yield Pair(stack.url, first, second, link)
            finally:
                nginx.terminate()
                await nginx.wait()
                os.kill(first.pid, signal.SIGCONT)
                await asyncio.gather(*(asyncio.to_thread(server.stop) for server in servers))
    finally:
        redis.close()


@pytest.mark.long
async def test_a_change_whose_process_stops_before_it_answers_is_told_again(tmp_path: Path) -> None:
    """Also where its caller wants the key kept for less time than nginx takes to ask another process."""
    async with paired(tmp_path) as pair:
        for headers in ({}, {"Idempotency_Key": "k"}, {"Idempotency_Key": "l", "Idempotency_TTL": "1"}):
            session_id = await pair.running()
            committed = f'"{session_id}","epoch":'.encode()

            def stop_over(data: bytes, committed: bytes = committed) -> bytes:
                # This is on its way to Redis already, and will be done.
                if committed in data and b'"version":3,' in data:
                    pair.stop_first()
                return data

            pair.link.on_request = stop_over
            answer = await pair.call("POST", f"/v1/sessions/{session_id}/switch", **headers)
            pair.link.on_request = lambda data: data
            assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, "true")
            assert answer.data["version"] == 3
            await pair.go_on(answer.headers["x-request-id"])
            assert (await pair.sessions())[session_id]["version"] == 3


async def types_until(client: WsClient, last: str) -> list[str]:
    """What a client hears, up to and with a message of this type."""
    heard: list[str] = []
    while last not in heard:
        heard.append((await client.recv(timeout_s=120))["type"])
    return heard


Change = tuple[str, str, Any]


async def changes(pair: Pair) -> dict[str, Change]:
    """One of each kind: of sessions of their own."""
    doomed, running, told = await pair.create(), await pair.running(), await pair.create()
    return {
        "create": ("POST", "/v1/sessions", {"sync_mode": "count_up"}),
        "switch": ("POST", f"/v1/sessions/{running}/switch", None),
        "message": ("POST", f"/v1/sessions/{told}/messages", {"type": "NOTE"}),
        "delete": ("DELETE", f"/v1/sessions/{doomed}", None),
        "delete none": ("DELETE", f"/v1/sessions/{uuid4()}", None),
    }


async def check_first_wakes_too_late(pair: Pair, until_s: Callable[[float], float]) -> list[object]:
    """All kinds of changes come to a process that stands still, and are done by the other one meanwhile."""
    kinds = await changes(pair)
    told = kinds["message"][1].split("/")[3]
    url = f"{pair.second.ws_url}/ws?sessionId={told}"
    async with await WsClient.connect(url, unix_socket=pair.second.unix_socket) as client:
        assert (await client.recv())["type"] == "CONNECTED"
        heard = asyncio.create_task(types_until(client, "LAST"))
        pair.stop_first()
        began_s = time.monotonic()
        answers = await asyncio.gather(*(pair.call(*kind) for kind in kinds.values()))
        assert [answer.status for answer in answers] == [201, 200, 202, 204, 204]
        for name in ("delete", "delete none"):  # and created anew
            session_id = kinds[name][1].split("/")[3]
            assert (await pair.second.call("POST", "/v1/sessions", chess(session_id))).status == 201
        before = await pair.sessions()
        assert len(before) == 5
        await asyncio.sleep(max(0.0, until_s(began_s) - time.monotonic()))
        # It was asked for all of them first, or it would not answer them now.
        statuses = await pair.go_on(*(answer.headers["x-request-id"] for answer in answers))
        assert await pair.sessions() == before
        last = f"/v1/sessions/{told}/messages"
        assert (await pair.second.call("POST", last, {"type": "LAST"})).status == 202
        assert await heard == ["NOTE", "LAST"]
    return statuses


async def test_what_a_process_that_stood_still_finds_is_done_no_more(tmp_path: Path) -> None:
    async with paired(tmp_path) as pair:
        await check_first_wakes_too_late(pair, lambda began_s: began_s)


@pytest.mark.long
async def test_a_process_that_stood_still_for_longer_than_keys_live_does_nothing(tmp_path: Path) -> None:
    async with paired(tmp_path) as pair:
        # The keys that it would need are forgotten so long after the other one was asked.
        age_s = KEPT_S + 2 * ASKS_ANOTHER_AFTER_S
        statuses = await check_first_wakes_too_late(pair, lambda began_s: began_s + age_s)
        assert set(statuses) == {503}


@pytest.mark.parametrize("kind", ["switch", "delete"])
async def test_what_becomes_too_old_while_it_is_read_is_not_done(tmp_path: Path, kind: str) -> None:
    """It counts when the process acts, not when it began to."""
    async with paired(tmp_path) as pair:
        method, path, body = (await changes(pair))[kind]
        before = await pair.sessions()
        still_s = 0.5
        loop = asyncio.get_running_loop()

        def stand_still(data: bytes) -> bytes:
            if b"GET" in data and path.split("/")[3].encode() in data:  # it reads the session
                pair.link.on_request = lambda data: data
                pair.stop_first()
                loop.call_later(still_s, os.kill, pair.first.pid, signal.SIGCONT)
            return data

        pair.link.on_request = stand_still
        received_s = time.time() - KEPT_S + still_s / 2
        headers = {
            "Idempotency-Key": uuid4().hex,
            "Idempotency-TTL": str(KEPT_S),
            "X-Request-Start": f"t={received_s:.3f}",
        }
        answer = await pair.first.call(method, path, body, headers)
        assert (answer.status, answer.body["error"]["details"]) == (503, {"outcome": "not_applied"})
        assert answer.body["error"]["code"] == "RECEIVED_TOO_LONG_AGO"
        assert await pair.sessions() == before
