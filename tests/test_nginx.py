"""What deploy/nginx.conf does with a request, told by processes that do what no process should."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from deploy.stack import Stack, program
from tests.processes import Answer, request
from tests.test_stack import free_ports

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Reply = Callable[[int], bytes | Awaitable[bytes] | None]


class Front:
    """nginx before three processes of the test's own; `seen`: what they were sent, names in lower case."""

    def __init__(self, stack: Stack) -> None:
        self.url = stack.url
        self.seen: list[dict[str, str]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.reply: Reply = lambda _: OK

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # nginx, or the test, has had enough
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        await reader.readexactly(int(headers.get("content-length", 0)))
        self.seen.append(headers | {"first line": first})
        answer = self.reply(len(self.seen))
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer is not None:
            writer.write(answer)
        return answer is not None

    async def call(self, method: str = "POST", path: str = "/v1/sessions", **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(self.url + path, method, {} if method == "POST" else None, given)


@contextlib.asynccontextmanager
async def fronted(folder: Path, processes: int = 3) -> AsyncIterator[Front]:
    base = free_ports(4)
    stack = Stack(str(folder), f"127.0.0.1:{base + 3}", 3, base, 100, "", "")
    (folder / "nginx-temp").mkdir()
    (folder / "nginx.conf").write_text(stack.nginx_conf())
    front = Front(stack)
    servers = [await asyncio.start_server(front.serve, "127.0.0.1", port) for port in stack.ports[:processes]]
    nginx = await asyncio.create_subprocess_exec(
        *(program("nginx"), "-p", stack.run, "-c", "nginx.conf", "-e", "nginx-error.log")
    )
    try:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", base + 3)
                    writer.transport.abort()
                    break
                await asyncio.sleep(0.01)
        yield front
    finally:
        nginx.terminate()
        await nginx.wait()
        for server in servers:
            server.close()
        for task in front.tasks:
            task.cancel()
        await asyncio.gather(*front.tasks)


async def test_a_request_says_who_asks_and_for_what(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        assert (
            await front.call(X_Forwarded_For="203.0.113.7", X_Request_ID="mine", Idempotency_Key="k")
        ).status == 200
    (seen,) = front.seen
    assert seen["host"] == front.url.removeprefix("http://")
    assert seen["x-forwarded-for"] == "203.0.113.7, 127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert (seen["x-request-id"], seen["idempotency-key"]) == ("mine", "k")


async def test_a_request_without_a_key_is_given_one(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        for _ in range(2):
            assert (await front.call()).status == 200
    first, second = (seen["idempotency-key"] for seen in front.seen)
    assert first != second
    assert len(first) == len(second) == 32


async def test_a_change_whose_process_dies_over_it_is_tried_elsewhere_by_the_same_key(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        front.reply = lambda count: None if count < 3 else OK
        assert (await front.call()).status == 200
    assert len(front.seen) == 3
    assert len({seen["idempotency-key"] for seen in front.seen}) == 1
    assert len({seen["x-request-id"] for seen in front.seen}) == 1


async def test_a_change_whose_process_hangs_is_tried_elsewhere(tmp_path: Path) -> None:
    async def never() -> bytes:
        await asyncio.sleep(60)
        return b""

    async with fronted(tmp_path) as front:
        front.reply = lambda count: never() if count == 1 else OK
        assert (await front.call()).status == 200
    assert len(front.seen) == 2


async def test_a_refusal_is_an_answer_and_not_tried_again(tmp_path: Path) -> None:
    away = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
    async with fronted(tmp_path) as front:
        front.reply = lambda _: away
        answer = await front.call()
    assert (answer.status, answer.headers["retry-after"], len(front.seen)) == (503, "1", 1)


async def test_a_socket_that_a_stopping_process_refuses_is_opened_at_another(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        front.reply = lambda count: (
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n" if count == 1 else OK
        )
        assert (await front.call("GET", "/ws?sessionId=x", Upgrade="websocket")).status == 200
    assert [seen["upgrade"] for seen in front.seen] == ["websocket", "websocket"]
    assert [seen["connection"] for seen in front.seen] == ["upgrade", "upgrade"]


@pytest.mark.parametrize("processes", [0, 2])
async def test_without_any_process_the_answer_is_a_503_with_retry_after(
    tmp_path: Path, processes: int
) -> None:
    async with fronted(tmp_path, processes) as front:
        front.reply = lambda _: None
        answer = await front.call()
    assert (answer.status, answer.body["error"]["code"]) == (503, "UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"


async def test_only_websockets_are_upgraded(tmp_path: Path) -> None:
    async with fronted(tmp_path) as front:
        assert (await front.call("GET", "/v1/time", Upgrade="h2c")).status == 200
    assert "upgrade" not in front.seen[0]


def test_the_number_of_processes_and_their_ports_are_said_once(tmp_path: Path) -> None:
    text = Stack(str(tmp_path), "127.0.0.1:1", 5, 9001, 100, "", "").nginx_conf()
    assert [text.count(f"server 127.0.0.1:{port} ") for port in range(9000, 9007)] == [0, 3, 3, 3, 3, 3, 0]
    assert not re.search(r"@\w+@", text)
