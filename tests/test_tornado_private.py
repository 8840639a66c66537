"""What handlers/tornado_private.py relies on: when one of these fails, a new Tornado does it differently."""

import ast
import asyncio
import socket
from collections.abc import AsyncIterator
from configparser import ConfigParser
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from tornado.http1connection import HTTP1ConnectionParameters
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application

from handlers import tornado_private

ROOT = Path(__file__).parent.parent


@asynccontextmanager
async def stream_and_client() -> AsyncIterator[tuple[IOStream, socket.socket]]:
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    try:
        yield stream, theirs
    finally:
        stream.close()
        theirs.close()


def test_no_other_file_imports_what_is_private_to_tornado() -> None:
    for path in sorted((ROOT / "handlers").rglob("*.py")):
        imported = [
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tornado")
            for alias in node.names
            if alias.name.startswith("_")
        ]
        assert not imported or path.name == "tornado_private.py", path


def test_the_version_of_tornado_is_bounded_below_the_next_minor_one() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    (wanted,) = (Requirement(line) for line in lines if line.startswith("tornado"))
    major, minor = version("tornado").split(".")[:2]
    assert wanted.specifier.contains(version("tornado"))
    assert not wanted.specifier.contains(f"{major}.{int(minor) + 1}.0")


async def test_a_stream_knows_what_was_received_and_not_read() -> None:
    async with stream_and_client() as (stream, client):
        reading = asyncio.ensure_future(stream.read_until_regex(b"\r\n\r\n"))  # type: ignore[arg-type]
        assert tornado_private.unread_bytes(stream) == 0
        assert tornado_private.is_reading_head(stream)
        client.send(b"GET")
        async with asyncio.timeout(10):
            while not tornado_private.unread_bytes(stream):
                await asyncio.sleep(0)
        assert tornado_private.unread_bytes(stream) == 3
        client.send(b" / HTTP/1.1\r\n\r\n")
        await reading
        assert tornado_private.unread_bytes(stream) == 0
        assert not tornado_private.is_reading_head(stream)


async def test_a_stream_counts_what_was_written() -> None:
    async with stream_and_client() as (stream, _):
        await stream.write(b"x" * 1000)
        assert tornado_private.written_bytes(stream) == 1000
        await stream.write(b"x" * 234)
        assert tornado_private.written_bytes(stream) == 1234


async def test_a_stream_without_its_socket_reads_nothing_any_more() -> None:
    async with stream_and_client() as (stream, client):
        await stream.write(b"x")
        sock = tornado_private.release_socket(stream)
        client.send(b"for somebody else")
        await asyncio.sleep(0.05)
        assert tornado_private.unread_bytes(stream) == 0
        assert sock.recv(100) == b"for somebody else"
        sock.close()


class Stub(HTTPServer):
    """A server that says with what it would serve."""

    conn_params: HTTP1ConnectionParameters


async def test_a_server_takes_its_parameters_from_one_object_for_all_connections() -> None:
    server = Stub(Application())
    parameters = server.conn_params
    tornado_private.configure(server, chunk_bytes=100, max_head_bytes=200)
    tornado_private.end_keep_alive(server)
    assert server.conn_params is parameters
    assert vars(parameters) == vars(
        HTTP1ConnectionParameters(
            no_keep_alive=True, chunk_size=100, max_header_size=200, header_timeout=None
        )
    ) | {"max_body_size": parameters.max_body_size, "body_timeout": parameters.body_timeout}


def test_headers_of_a_reply_are_those_that_were_set() -> None:
    headers = tornado_private.ReplyHeaders(ETag='"x"')
    headers["Connection"] = "close"
    assert list(headers.get_all()) == [("ETag", '"x"'), ("Connection", "close")]
    assert "Content-Length" not in headers


async def test_a_stream_begins_with_what_was_read_before_it_was_made() -> None:
    async with stream_and_client() as (stream, client):
        tornado_private.fill(stream, b"GET / HTTP/1.1\r\nHost: ")
        assert tornado_private.unread_bytes(stream) == 22
        client.send(b"a\r\n\r\nrest")
        assert await stream.read_until(b"\r\n\r\n") == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        assert await stream.read_bytes(4) == b"rest"


async def test_what_fills_a_stream_may_be_all_there_is() -> None:
    async with stream_and_client() as (stream, _):
        tornado_private.fill(stream, b"GET / HTTP/1.1\r\n\r\n")
        assert await stream.read_until_regex(b"\r?\n\r?\n") == b"GET / HTTP/1.1\r\n\r\n"
