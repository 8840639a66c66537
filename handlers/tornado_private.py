"""The one file that touches what is private or undocumented in Tornado.

setup.cfg bounds Tornado's version for its sake, and tests/test_tornado_private.py checks what is relied on.
"""

import socket
from collections.abc import Iterable
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection
from tornado.iostream import IOStream


def unread_bytes(stream: IOStream) -> int:
    """How much has been received that nobody has asked for yet."""
    return stream._read_buffer_size


def written_bytes(stream: IOStream) -> int:
    """How much of what was written the kernel has taken, in all."""
    return stream._total_write_done_index


def is_reading_head(stream: IOStream) -> bool:
    """True while a request's head is read: it is the only thing that a regular expression delimits."""
    return stream._read_regex is not None


def peer_address(connection: HTTPConnection | None) -> str:
    """Who has connected; empty at a Unix socket, where there is no address, and Tornado makes one up."""
    assert isinstance(connection, HTTP1Connection)
    context: Any = connection.context
    address: str = "" if context.address_family == socket.AF_UNIX else context.remote_ip
    return address


def release_socket(stream: IOStream) -> socket.SocketType:
    """Let the stream go of its socket, which stays open; the stream must not be used afterwards.

    The socket is of the base class, which has all but what makes files of it, in half of the memory.
    """
    sock = stream.socket
    # The stream has no detach of its own: without its handler in the loop it does nothing any more.
    stream.io_loop.remove_handler(sock)
    released = socket.SocketType(sock.family, sock.type, sock.proto, sock.detach())
    released.setblocking(False)
    return released


def configure(server: HTTPServer, *, chunk_bytes: int, max_head_bytes: int) -> None:
    """How the server's connections read; without Tornado's timeout, which its arguments cannot switch off."""
    server.conn_params.chunk_size = chunk_bytes
    server.conn_params.max_header_size = max_head_bytes
    server.conn_params.header_timeout = None


def end_keep_alive(server: HTTPServer) -> None:
    """Let every connection end with its next request, also those that are open already."""
    server.conn_params.no_keep_alive = True


class ReplyHeaders(dict[str, str]):
    """As much of HTTPHeaders as `HTTP1Connection.write_headers` needs, which refuses line breaks in them.

    HTTPHeaders itself normalizes every name, which takes longer than all else that is done to a header.
    """

    def get_all(self) -> Iterable[tuple[str, str]]:
        return self.items()


def fill(stream: IOStream, data: bytes) -> None:
    """Let the stream begin with what has been read from its socket before it was made."""
    stream._read_buffer += data
    stream._read_buffer_size += len(data)
