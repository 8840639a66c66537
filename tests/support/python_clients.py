"""The Python client, synchronous or not, asked in the same way; and servers that it should not meet."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from lockstep_client import AsyncLockstep, Lockstep

from tests.support.listening import listening


class Either:
    """A `Lockstep` or an `AsyncLockstep`: its methods, to be awaited; what they iterate over, as a list."""

    def __init__(self, client: Lockstep | AsyncLockstep) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if inspect.isasyncgenfunction(method):
                return [item async for item in method(*args, **kwargs)]
            if inspect.iscoroutinefunction(method):
                return await method(*args, **kwargs)
            return await asyncio.to_thread(_done, method, args, kwargs)

        return call


def _done(method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    return list(result) if inspect.isgenerator(result) else result


KINDS = {"sync": Lockstep, "async": AsyncLockstep}


@asynccontextmanager
async def either(kind: str, url: str, **options: Any) -> AsyncIterator[Either]:
    client = Either(KINDS[kind](url, **options))
    try:
        yield client
    finally:
        await client.close()


@dataclass
class Scripted:
    """What answers each HTTP request with the next of some answers, the last one again and again."""

    url: str = ""
    heads: list[str] = field(default_factory=list)
    """Of the requests, in lower case."""

    def header(self, name: str) -> list[str]:
        """What each request has in this header, "" where it has none."""
        lines = [dict(line.partition(": ")[::2] for line in head.split("\r\n")) for head in self.heads]
        return [each.get(name, "") for each in lines]


def http_answer(status: int, body: str, **headers: str) -> bytes:
    """Header names with _ for -."""
    named = {"Content-Type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@asynccontextmanager
async def scripted(answers: Iterable[bytes | None]) -> AsyncIterator[Scripted]:
    """Of an answer that is None, or b"", the connection ends instead; None says nothing before a while."""
    told = Scripted()
    waiting = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            told.heads.append(head)
            length = int(head.partition("content-length: ")[2].partition("\r")[0] or 0)
            await reader.readexactly(length)
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if answer is None:
                await asyncio.sleep(60)
            if not answer:
                return
            writer.write(answer)
            await writer.drain()

    async with listening(serve) as server:
        told.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield told
