"""Clients that mean no good, many at once: python -m tests.support.hostiles PORT KIND COUNT SECONDS SESSION

Each says what its kind says, and holds on to its connection until the server ends that or the seconds
are over. Prints how many the server sent away.
"""

import asyncio
import socket
import struct
import sys
from dataclasses import dataclass

from tests.support.ws_client import BINARY, PING, TEXT, encode

SOCKET = "GET /ws?sessionId={session} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
POST = "POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
FIELDS = ("{" + ",".join(f'"{n:x}":0' for n in range(100_000)) + "}").encode()
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n"
)


@dataclass(frozen=True)
class Kind:
    head: str = SOCKET + UPGRADE + "\r\n"
    """The request, or as much of it as there ever is."""
    behind: bytes = b""
    """What follows at once."""
    pours: bytes = b""
    """And this again and again, as fast as it goes."""
    frames: bytes = b""
    """What follows when the server has answered."""
    reads: bool = True
    resets: bool = False
    """It is gone as soon as it has said all that."""
    is_sent_away: bool = False
    """The server has a reason to end it."""


KINDS = {
    "reserved bit": Kind(frames=encode(TEXT, b"{}", rsv=0x40), is_sent_away=True),
    "unmasked": Kind(frames=encode(TEXT, b'{"type":"PING"}', masked=False), is_sent_away=True),
    "not UTF-8": Kind(frames=encode(TEXT, b'{"type":"\xff"}'), is_sent_away=True),
    "petabytes": Kind(frames=bytes([0x82, 0xFF]) + struct.pack("!Q", 2**50) + bytes(1000), is_sent_away=True),
    "over the limit": Kind(frames=encode(BINARY, bytes(100_000)), is_sent_away=True),
    "bad messages": Kind(frames=encode(TEXT, b"[") * 20, is_sent_away=True),
    "pings unread": Kind(frames=encode(PING, bytes(100)) * 200, reads=False),
    "reconnects": Kind(frames=encode(TEXT, b'{"type":"RECONNECT"}') * 20),
    "states unread": Kind(reads=False),
    "gone at once": Kind(resets=True),
    "half a request": Kind(head=SOCKET + "Upgrade: web"),
    "half a body": Kind(
        head="POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        'Content-Length: 100000\r\n\r\n{{"sync_mode"'
    ),
    "another site": Kind(
        head=SOCKET + UPGRADE + "Origin: https://evil.example\r\n\r\n",
    ),
    "no session": Kind(
        head="GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n" + UPGRADE + "\r\n", is_sent_away=True
    ),
    "stream behind a handshake": Kind(pours=bytes(65_536), is_sent_away=True),
    "pings behind a handshake": Kind(behind=encode(PING, b"early") * 2000),
    "head without end": Kind(head="GET / HTTP/1.1\r\nX-Endless: ", pours=b"x" * 65_536, is_sent_away=True),
    "10 GB": Kind(head=POST + "Content-Length: 10000000000\r\n\r\n", pours=b" " * 65_536, is_sent_away=True),
    "4 MB": Kind(head=POST + "Content-Length: 4194304\r\n\r\n", pours=b" " * 65_536, is_sent_away=True),
    "chunks without end": Kind(
        head=POST + "Transfer-Encoding: chunked\r\n\r\n",
        pours=b"10000\r\n" + b" " * 65_536 + b"\r\n",
        is_sent_away=True,
    ),
    "small chunks without end": Kind(
        head=POST + "Transfer-Encoding: chunked\r\n\r\n", pours=b"1\r\nx\r\n" * 10_000, is_sent_away=True
    ),
    "handshake with a body": Kind(
        head=SOCKET + UPGRADE + "Content-Length: 10000000000\r\n\r\n", pours=bytes(65_536), is_sent_away=True
    ),
    "page with a body": Kind(
        head="GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 90000000\r\n\r\n",
        pours=bytes(65_536),
        is_sent_away=True,
    ),
    "read with a body": Kind(
        head="GET /v1/sessions/{session} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n",
        pours=b"10000\r\n" + b" " * 65_536 + b"\r\n",
        is_sent_away=True,
    ),
    "a megabyte unfinished": Kind(head=POST + "Content-Length: 1048576\r\n\r\n", behind=b" " * 1_000_000),
    "arrays without number": Kind(
        head=POST + "Content-Length: 1020007\r\n\r\n",
        behind=b'{"a":[' + b",".join([b"[]"] * 340_000) + b"]}",
    ),
    "fields without number": Kind(
        head=POST + f"Content-Length: {len(FIELDS)}\r\n\r\n",
        behind=FIELDS,
    ),
    "arguments without number": Kind(
        head="GET /v1/sessions/{session}/events?"
        + "&".join(f"{n:x}=1" for n in range(2500))
        + " HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    ),
    "histories unread": Kind(
        head="GET /v1/sessions/{session}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n" * 200,
        reads=False,
    ),
    "lists unread": Kind(
        head="GET /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n" * 200, reads=False
    ),
    "not HTTP": Kind(head="\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", is_sent_away=True),
}


def crowd(name: str, size: int) -> int:
    """How many of a kind make a crowd: of those who send much, a few are enough."""
    return size // 10 if KINDS[name].pours or KINDS[name].behind else size


async def pour(sock: socket.socket, data: bytes, enough: asyncio.Event) -> None:
    """Raises ConnectionError when the server has ended it."""
    loop = asyncio.get_running_loop()
    while not enough.is_set():
        sending = asyncio.create_task(loop.sock_sendall(sock, data))
        await asyncio.wait((sending,), timeout=1)
        if not sending.done():
            sending.cancel()
            continue
        sending.result()
        await asyncio.sleep(0)


async def one(kind: Kind, head: bytes, port: int, enough: asyncio.Event) -> bool:
    """Whether the server ended it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        if not kind.reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, head + kind.behind)
            if kind.pours:
                await pour(sock, kind.pours, enough)
            if kind.frames:
                await loop.sock_recv(sock, 4096)
                await loop.sock_sendall(sock, kind.frames)
            if kind.resets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if not kind.reads:
                await enough.wait()
                return False
            ending = asyncio.create_task(enough.wait())
            while not enough.is_set():
                reading = asyncio.create_task(loop.sock_recv(sock, 65_536))
                await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                elif not reading.result():
                    return True
            return False
        except ConnectionError:
            return True


async def attack(name: str, port: int, count: int, seconds: float, session_id: str) -> int:
    """How many were sent away."""
    kind, enough = KINDS[name], asyncio.Event()
    head = kind.head.format(port=port, session=session_id).encode("latin-1")
    attempts = asyncio.gather(*(one(kind, head, port, enough) for _ in range(count)))
    # Who has to be sent away is waited for, however long that takes on this machine.
    await asyncio.wait((attempts,), timeout=60 if kind.is_sent_away else seconds)
    enough.set()
    return sum(await attempts)


if __name__ == "__main__":
    port, name, count, seconds, session_id = sys.argv[1:]
    print(asyncio.run(attack(name, int(port), int(count), float(seconds), session_id)))
