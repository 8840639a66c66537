"""The one WebSocket client of the tests: it does what it is told, also what no client should."""

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import ssl
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import msgspec

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
DEFLATED = 0x40  # as `rsv` of a frame
DEFLATE = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
"""What browsers offer."""


@dataclass(frozen=True)
class Closed:
    """How the connection ended; code None: the stream broke off without a close frame."""

    code: int | None
    reason: str = ""


def encode(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    head = bytes([(0x80 if fin else 0) | rsv | opcode])
    mask_bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([mask_bit | len(payload)])
    elif len(payload) < 65_536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", len(payload))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")
    return head + mask + body


def parsed(opcode: int, payload: bytes) -> Any:
    """The message in a frame: MessagePack where that is binary, else JSON."""
    return json.loads(payload) if opcode == TEXT else msgspec.msgpack.decode(payload)


def compressed(data: bytes, level: int = 6, window_bits: int = 15) -> bytes:
    """The payload that stands for this one where compression is agreed upon (RFC 7692 7.2.1)."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -window_bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


def inflated(payload: bytes) -> bytes:
    """What a compressed payload stands for: of itself, without what came in messages before it."""
    inflater = zlib.decompressobj(-15)
    data = inflater.decompress(payload + b"\x00\x00\xff\xff")
    assert not inflater.unconsumed_tail + inflater.unused_data
    return data


OPEN: set["WsClient"] = set()
"""Connections of the test that runs, for its end."""


def abort_all() -> None:
    """End every client that is open, without a good-bye: a server that ends would wait for theirs."""
    for client in list(OPEN):
        client.abort()


class WsClient:
    """One connection. `recv` gives the next message, parsed, or Closed at the end.

    Messages are JSON, or MessagePack where the server has chosen that; `deflated` counts those that came
    compressed. Pings are answered as long as somebody receives; `answers_pings=False` makes it a dead client,
    `pings` counts those that came.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers_pings: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.answers_pings = answers_pings
        self.pings = 0
        self.deflated = 0
        self.response = ""
        self.is_msgpack = False
        OPEN.add(self)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        answers_pings: bool = True,
        limit: int = 2**16,
        rcvbuf: int | None = None,
        tls: ssl.SSLContext | None = None,
        target: str = "",
        unix_socket: Path | None = None,
    ) -> "WsClient":
        """`target` is what the request's target begins with, before the path."""
        parts = urlsplit(url)
        sock = socket.socket(socket.AF_UNIX if unix_socket else socket.AF_INET)
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        host = parts.hostname if tls else None
        try:
            where = str(unix_socket) if unix_socket else (parts.hostname, parts.port)
            await asyncio.get_running_loop().sock_connect(sock, where)
            reader, writer = await asyncio.open_connection(
                sock=sock, limit=limit, ssl=tls, server_hostname=host
            )
        except BaseException:
            sock.close()
            raise
        client = cls(reader, writer, answers_pings)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = {
            "Host": parts.netloc,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
        } | (headers or {})
        request = (
            f"GET {target}{path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        )
        try:
            writer.write(request.encode())
            client.response = (await reader.readuntil(b"\r\n\r\n")).decode()
            if " 101 " not in client.response.splitlines()[0]:
                raise ConnectionRefusedError(client.response.splitlines()[0], client.response)
            client.is_msgpack = ".msgpack\r\n" in client.response
        except BaseException:
            client.abort()
            raise
        return client

    async def __aenter__(self) -> "WsClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def frame_of(self, message: Any) -> bytes:
        if self.is_msgpack:
            return encode(BINARY, msgspec.msgpack.encode(message))
        return encode(TEXT, json.dumps(message).encode())

    @property
    def extensions(self) -> str | None:
        """What the server has agreed to of what was offered."""
        found = re.search(
            r"^Sec-WebSocket-Extensions: *(.*?) *\r$", self.response, re.MULTILINE | re.IGNORECASE
        )
        return None if found is None else found[1]

    @property
    def is_deflated(self) -> bool:
        return self.extensions is not None

    async def send(self, message: Any) -> None:
        await self.send_raw(self.frame_of(message))

    async def send_frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        self.writer.write(encode(opcode, payload, **how))
        await self.writer.drain()

    async def send_raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def recv_frame(self) -> tuple[int, bytes]:
        """The next frame as it comes, control frames too. Raises IncompleteReadError at the end."""
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        payload = await self.reader.readexactly(length)
        if first & DEFLATED:
            assert self.is_deflated, "a compressed message, which was not agreed upon"
            self.deflated += 1
            payload = inflated(payload)
        return first & 0x0F, payload

    async def recv(self, timeout_s: float = 10.0) -> Any:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    opcode, payload = await self.recv_frame()
                except (asyncio.IncompleteReadError, ConnectionError):
                    return Closed(None)
                if opcode == PING:
                    self.pings += 1
                    if self.answers_pings:
                        await self.send_frame(PONG, payload)
                elif opcode == CLOSE:
                    code = struct.unpack("!H", payload[:2])[0] if payload else None
                    with contextlib.suppress(ConnectionError):
                        await self.send_frame(CLOSE, payload[:2])
                    self.writer.close()
                    return Closed(code, payload[2:].decode())
                elif opcode in (TEXT, BINARY):
                    assert (opcode == BINARY) == self.is_msgpack
                    return parsed(opcode, payload)

    async def recv_type(self, type_: str, timeout_s: float = 10.0) -> Any:
        """The next message of this type; others before it are passed over."""
        async with asyncio.timeout(timeout_s):
            while True:
                message = await self.recv(timeout_s)
                if isinstance(message, Closed):
                    raise AssertionError(f"closed ({message}) while waiting for {type_}")
                if message["type"] == type_:
                    return message

    async def fence(self) -> None:
        """Assert that everything sent to this client so far has been received: the next is our PONG."""
        mark = os.urandom(4).hex()
        await self.send({"type": "PING", "id": mark})
        message = await self.recv()
        assert isinstance(message, dict), message
        assert (message["type"], message.get("id")) == ("PONG", mark), f"before the fence: {message}"

    async def close(self, code: int = 1000) -> None:
        with contextlib.suppress(ConnectionError):
            await self.send_frame(CLOSE, struct.pack("!H", code))
        self.writer.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            # At once, also where the loop does not turn before its server is waited for.
            self.writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        OPEN.discard(self)
        self.writer.transport.abort()
