"""From a change by REST to its arrival at clients of two processes: python -m bench.delivery

500 changes a second over 100 sessions with 10 clients each, half of them at the process that did not
make the change. The time is from the request's first byte to the update's last, at the client, so that
deciding, committing and publishing are in it. Redis and both processes run here, on loopback.
"""

import argparse
import asyncio
import base64
import os
import platform
import re
import time
from pathlib import Path

import ujson

from lockstep.wire.frames import encode_frame
from tests.support.load import chess, data, rest
from tests.support.processes import ServerProcess
from tests.support.redis_server import RedisServer

VERSION = re.compile(rb'"version":(\d+),')


class Client(asyncio.Protocol):
    """A WebSocket that notes when which version arrived; it unpacks no more than that."""

    def __init__(self, session_id: str, arrivals: list[tuple[str, int, float]]) -> None:
        self.session_id = session_id
        self.arrivals = arrivals
        self.greeted = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws?sessionId={self.session_id} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, received: bytes) -> None:
        now_s = time.perf_counter()
        self._buffer += received
        if not self._is_open:
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            self._is_open = True
        while (frame := self._next_frame()) is not None:
            opcode, payload = frame
            if opcode == 0x9:
                pong = encode_frame(0xA, payload)
                self.transport.write(pong[:1] + bytes((0x80 | pong[1],)) + bytes(4) + pong[2:])
            elif payload.startswith(b'{"type":"STATE_UPDATE"'):
                found = VERSION.search(payload, 0, 300)
                assert found is not None
                self.arrivals.append((self.session_id, int(found[1]), now_s))
            elif not self.greeted.done():
                self.greeted.set_result(None)

    def _next_frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, at = buffer[1], 2
        if length == 126:
            length, at = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < at + length:
            return None
        self._buffer = buffer[at + length :]
        return buffer[0] & 0x0F, buffer[at : at + length]


class Caller(asyncio.Protocol):
    """One keep-alive connection that switches; one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, received: bytes) -> None:
        self._buffer += received
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        if end and found and len(body) >= int(found[1]) and self._answer is not None:
            self._buffer = b""
            self._answer.set_result(body)

    async def switch(self, session_id: str) -> int:
        self._answer = asyncio.get_running_loop().create_future()
        request = (
            f"POST /v1/sessions/{session_id}/switch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        )
        self._transport.write(request.encode())
        return int(ujson.loads(await self._answer)["data"]["version"])


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def measure(rate: int, sessions: int, clients: int, seconds: float, routing: str) -> None:
    redis = RedisServer()
    servers = [
        ServerProcess(f"--broker={redis.url}", f"--routing={routing}", "--log-level=warning")
        for _ in range(2)
    ]
    loop = asyncio.get_running_loop()
    try:
        specs = [chess() for _ in range(sessions)]
        for spec in specs:
            data(await rest(f"{servers[0].url}/v1/sessions", spec))
            data(await rest(f"{servers[0].url}/v1/sessions/{spec['session_id']}/start"))
        session_ids = [spec["session_id"] for spec in specs]
        arrivals: list[tuple[str, int, float]] = []
        listening = []
        for number in range(sessions * clients):
            session_id = session_ids[number // clients]
            port = servers[number % 2].port
            _, client = await loop.create_connection(
                lambda s=session_id: Client(s, arrivals), "127.0.0.1", port
            )
            listening.append(client)
        await asyncio.gather(*(client.greeted for client in listening))
        callers: asyncio.Queue[Caller] = asyncio.Queue()
        for number in range(32):
            port = servers[number % 2].port
            callers.put_nowait((await loop.create_connection(Caller, "127.0.0.1", port))[1])
        sent: dict[tuple[str, int], float] = {}

        async def change(session_id: str) -> None:
            caller = await callers.get()
            sent_at_s = time.perf_counter()
            version = await caller.switch(session_id)
            sent[session_id, version] = sent_at_s
            callers.put_nowait(caller)

        changes = []
        cpu_before_s, began_s = time.process_time(), time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0, began_s + number / rate - time.perf_counter()))
            changes.append(asyncio.create_task(change(session_ids[number % sessions])))
        await asyncio.gather(*changes)
        expected = len(sent) * clients
        while len(arrivals) < expected and time.perf_counter() - began_s < seconds + 10:
            await asyncio.sleep(0.05)
        own_cpu = (time.process_time() - cpu_before_s) / (time.perf_counter() - began_s)
        latencies = sorted(
            (at_s - sent[session_id, version]) * 1000
            for session_id, version, at_s in arrivals
            if (session_id, version) in sent
        )
        print(
            f"{rate} changes/s, {sessions} sessions x {clients} clients, 2 processes, "
            f"--routing={routing}: {len(latencies)} of {expected} arrived; ms from request to arrival: "
            + ", ".join(f"p{share:g} {percentile(latencies, share / 100):.2f}" for share in (50, 99, 99.9))
        )
        print(
            f"the generator used {own_cpu:.0%} of a core"
            + (" - TOO MUCH TO BELIEVE" if own_cpu > 0.9 else "")
        )
    finally:
        for server in servers:
            server.stop()
        redis.close()


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{os.cpu_count()} x {model[1] if model else platform.machine()}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--clients", type=int, default=10, help="per session")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--routing", default="all", choices=["all", "targeted"])
    given = parser.parse_args()
    print(machine())
    asyncio.run(measure(given.rate, given.sessions, given.clients, given.seconds, given.routing))


if __name__ == "__main__":
    main()
