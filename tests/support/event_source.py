"""A client of event streams that reads them as the standard says (WHATWG HTML, "Server-sent events")."""

import asyncio
import codecs
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.support.asyncapi import faults
from tests.support.followers import CutFollower, View
from tests.support.ws_client import OPEN

LINE_END = re.compile(r"\r\n|\r(?!$)|\n")


@dataclass(frozen=True)
class Event:
    """What a listener is given. `last_id` is the stream's latest id: this event's, or an earlier one's."""

    name: str
    data: str
    last_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventParser:
    """Bytes in, events out."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_ms: int | None = None
        self.comments: list[str] = []
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begins_anew()

    def _begins_anew(self) -> None:
        self._name, self._data = "", []  # type: tuple[str, list[str]]

    def feed(self, data: bytes) -> list[Event]:
        """What is no UTF-8 raises UnicodeDecodeError; a character may come in two pieces."""
        self._text += self._decoder.decode(data)
        *lines, self._text = LINE_END.split(self._text)
        return [event for line in lines if (event := self._take(line)) is not None]

    def _take(self, line: str) -> Event | None:
        if not line:
            event = None
            if self._data:
                event = Event(self._name or "message", "\n".join(self._data), self.last_id)
            self._begins_anew()
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            self.comments.append(value)
        elif field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        elif field == "id":
            if "\0" not in value:
                self.last_id = value
        elif field == "retry" and value.isdecimal():
            self.retry_ms = int(value)
        return None


class Refused(Exception):
    """Another status than 200."""

    def __init__(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        super().__init__(status, raw)
        self.status, self.headers, self.raw = status, headers, raw

    @property
    def code(self) -> str:
        return str(json.loads(self.raw)["error"]["code"])


class EventSource:
    """One connection. `next` gives the next event, None at the end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parser: EventParser
    ) -> None:
        self.reader, self.writer, self.parser = reader, writer, parser
        self.headers: dict[str, str] = {}
        self.received = b""
        self._events: list[Event] = []
        OPEN.add(self)  # type: ignore[arg-type]

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        last_id: str = "",
        headers: dict[str, str] | None = None,
        rcvbuf: int | None = None,
        behind: bytes = b"",
    ) -> "EventSource":
        """`behind` is sent at once behind the request. Raises Refused."""
        parts = urlsplit(url)
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        except BaseException:
            sock.close()
            raise
        self = cls(reader, writer, EventParser(last_id))
        lines = {"Host": parts.netloc, "Accept": "text/event-stream", "Connection": "close"} | (headers or {})
        if last_id:
            lines["Last-Event-ID"] = last_id
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        try:
            writer.write(f"GET {target} HTTP/1.1\r\n{head}\r\n".encode() + behind)
            await self._read_head()
        except BaseException:
            self.abort()
            raise
        return self

    async def _read_head(self) -> None:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.strip().split("\r\n")
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
        }
        status = int(first.split()[1])
        if status != 200:
            raise Refused(status, self.headers, await self.reader.read(-1))

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"

    async def _piece(self) -> bytes:
        """What comes next of the body; b"" at the end, be it regular or not."""
        try:
            if not self.is_chunked:
                return await self.reader.read(65_536)
            length = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(length + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def read(self) -> bool:
        """Take in what comes next; False at the end."""
        piece = await self._piece()
        self.received += piece
        self._events += self.parser.feed(piece)
        return bool(piece)

    async def next(self, timeout_s: float = 10.0) -> Event | None:
        async with asyncio.timeout(timeout_s):
            while not self._events:
                if not await self.read():
                    return None
        return self._events.pop(0)

    async def until(self, holds: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Take in what comes until this holds, whether events or not."""
        async with asyncio.timeout(timeout_s):
            while not holds():
                assert await self.read(), "the stream has ended"

    async def ended(self, timeout_s: float = 10.0) -> None:
        """Wait for the end; nothing may be said before it."""
        assert (event := await self.next(timeout_s)) is None, event

    async def __aenter__(self) -> "EventSource":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    def abort(self) -> None:
        OPEN.discard(self)  # type: ignore[arg-type]
        self.writer.transport.abort()


class StreamView:
    """A session as the client of a stream has it; what breaks the contract raises."""

    def __init__(self, session_id: str, view: View | None = None) -> None:
        self.view = view or View(session_id)
        self.last_id = ""
        self.others: list[Any] = []

    def begin(self) -> None:
        """Another connection: who is present is told from the beginning."""
        self.view.presence = None

    def take(self, event: Event) -> None:
        message = event.json
        assert "\n" not in event.data
        assert event.name == message["type"].lower()
        assert "id" not in message
        assert message["sessionId"] == self.view.session_id
        assert faults("stream", message) == []
        if event.name == "snapshot" and message["state"] is None:
            assert (message["position"], message["reason"]) == (None, "requested")
            self.view.take({"type": "SUBSCRIBED", "position": None, "state": None})
        elif not self.view.take(message):
            self.others.append(message)
        elif event.name == "snapshot":
            self.view.is_subscribed = True
        if event.name in ("snapshot", "update"):
            assert event.last_id == (message["position"] or "")
        else:
            assert event.last_id == self.last_id
        self.last_id = event.last_id


class CutStream(CutFollower):
    """The same by event streams, with what the standard has for coming back."""

    def __init__(self, ws_url: str, session_id: str, bytes_of_next_line: Callable[[], int | None]) -> None:
        super().__init__(ws_url, session_id, bytes_of_next_line)
        self._shown = StreamView(session_id, view=self.view)
        self._url = stream_url(ws_url.replace("ws", "http", 1), session_id)

    async def _follow_until_cut(self, bytes_left: int | None) -> None:
        had, state = self.view.position, self.view.state
        self._shown.begin()
        async with await EventSource.connect(self._url, last_id=self._shown.last_id) as source:
            while bytes_left is None or bytes_left > 0:
                data = await source.reader.read(4096 if bytes_left is None else min(bytes_left, 4096))
                if bytes_left is not None:
                    bytes_left -= len(data)
                for event in source.parser.feed(data):
                    self._shown.take(event)
                    if event.name == "snapshot" and event.json["reason"] == "requested" and had is not None:
                        shown = event.json["state"]
                        assert shown is None or state is None or shown["epoch"] != state["epoch"], had
                self._moved.set()
                if not data:
                    return


def stream_url(url: str, session_id: str, query: str = "") -> str:
    return f"{url}/v1/sessions/{session_id}/stream{query}"


class ReturningStream:
    """A stream that comes back with the position that it has, as an EventSource does."""

    def __init__(self, url: str, session_id: str) -> None:
        self.url = stream_url(url, session_id)
        self.shown = StreamView(session_id)
        self.connections = 0

    async def run(self) -> None:
        while True:
            retry_s = 0.2
            try:
                async with await EventSource.connect(self.url, last_id=self.shown.last_id) as source:
                    self.connections += 1
                    while (event := await source.next(60)) is not None:
                        self.shown.take(event)
                    retry_s = (source.parser.retry_ms or 200) / 1000
            except (OSError, asyncio.IncompleteReadError):
                pass
            await asyncio.sleep(retry_s)
