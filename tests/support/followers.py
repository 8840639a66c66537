"""A client of protocol v2 that applies changes, and holds the server to the contract while it does."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.client_model import OutOfStep, State, apply_update, position_of
from tests.support.presence_view import PresenceView
from tests.support.ws_client import BINARY, DEFLATED, TEXT, Closed, WsClient, inflated, parsed

V2 = {"Sec-WebSocket-Protocol": "lockstep.v2.json"}
V2_MSGPACK = {"Sec-WebSocket-Protocol": "lockstep.v2.msgpack"}
BY_ENCODING = {"json": V2, "msgpack": V2_MSGPACK}
TIMEOUT_S = 20.0


@dataclass
class View:
    """One session as a follower has it. What breaks the contract raises."""

    session_id: str
    state: State | None = None
    position: str | None = None
    is_subscribed: bool = False
    """It has been told the state, or that there is none."""
    states: dict[str, str] = field(default_factory=dict)
    """All that it has shown, as text, by position."""
    events: list[tuple[str, int]] = field(default_factory=list)
    """What UPDATEs told, as (epoch, version), in the order in which it came."""
    told: list[str] = field(default_factory=list)
    """Which messages changed it: their types, SNAPSHOTs by their reasons."""
    keeps_states: bool = True
    presence: PresenceView | None = None
    """Who is connected to it, where it is told that."""

    def take(self, message: Any) -> bool:
        """False where the message says nothing of what the session is."""
        kind = message["type"]
        if kind == "SUBSCRIBED":
            if "updates" in message:
                assert not {"position", "state"} & set(message)
                for update in message["updates"]:
                    self._update(update)
            else:
                self._show(message["state"], message["position"])
            self.is_subscribed = True
            self._subscribe(message.get("presence"))
        elif kind == "PRESENCE":
            self.presence = self.presence or PresenceView()
            self.presence.take(message)
            return True
        elif kind == "UPDATE":
            self._update(message)
        elif kind == "SNAPSHOT":
            assert message["state"] is not None
            assert (message["position"] is None) == (message["reason"] == "foreign"), message["reason"]
            self._show(message["state"], message["position"])
        elif kind == "DELETED":
            self.state = self.position = self.presence = None
        else:
            return False
        if kind == "SUBSCRIBED":
            kind = "recovered" if "updates" in message else "state"
        self.told.append(message.get("reason", kind))
        return True

    def _show(self, state: State | None, position: str | None) -> None:
        if position is not None:
            assert position == position_of(state)
        self.state, self.position = state, position
        self._remember()

    def _subscribe(self, presence: Any) -> None:
        if self.position is not None and self.state is not None:
            assert (presence is not None) == self.state.get("presence", False)
        if presence is None:
            self.presence = None
        else:
            self.presence = self.presence or PresenceView()
            self.presence.subscribe(presence)

    def _update(self, update: Any) -> None:
        if self.position is None or self.state is None:
            raise OutOfStep(f"an UPDATE of {update['from']} for who has nothing")
        versions = [event["version"] for event in update["events"]]
        before = self.state
        self.state = apply_update(before, update)
        self.position = update["position"]
        assert versions == list(range(before["version"] + 1, self.state["version"] + 1)), versions
        for event in update["events"]:
            assert not {"changes", "request_id"} & set(event)
            self.events.append((self.state["epoch"], event["version"]))
        self._remember()

    def _remember(self) -> None:
        if self.position is not None and self.keeps_states:
            self.states[self.position] = json.dumps(self.state)


class Follower:
    """One connection that may follow many sessions. It comes back only when it is told to."""

    def __init__(self, ws_url: str, headers: dict[str, str] | None = None) -> None:
        self.ws_url = ws_url
        self._headers = V2 | (headers or {})
        self.views: dict[str, View] = {}
        self.others: list[Any] = []
        """MESSAGEs, and what else no view takes."""
        self.ended: Closed | None = None
        self._client: WsClient | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._moved = asyncio.Event()

    async def __aenter__(self) -> "Follower":
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    @property
    def client(self) -> WsClient:
        assert self._client is not None
        return self._client

    async def connect(self, query: str = "", **how: Any) -> None:
        self.ended = None
        self._client = await WsClient.connect(
            f"{self.ws_url}/ws{query}", headers=self._headers, **({"limit": 2**20} | how)
        )
        welcome = await self._client.recv()
        assert welcome["type"] == "WELCOME", welcome
        self._reading = asyncio.create_task(self._read())

    async def leave(self) -> None:
        """Cut the line, and raise what its messages were wrong in, if anything."""
        if self._client is not None:
            self._client.abort()
        if self._reading is not None:
            reading, self._reading = self._reading, None
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    @property
    def is_here(self) -> bool:
        return self._reading is not None

    def check(self) -> None:
        """Raise what a message was wrong in, or that the line has ended."""
        assert self._reading is not None
        if self._reading.done():
            self._reading.result()
            raise AssertionError(f"the line has ended: {self.ended}")

    async def _read(self) -> None:
        try:
            while not isinstance(message := await self.client.recv(3600), Closed):
                self._take(message)
            self.ended = message
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.cancel()
            self._answers.clear()
            self._moved.set()

    def _take(self, message: Any) -> None:
        view = self.views.get(message.get("sessionId", ""))
        if view is None or not view.take(message):
            self.others.append(message)
        answer = self._answers.pop(message.get("id"), None)
        if answer is not None and not answer.done():
            answer.set_result(message)
        self._moved.set()

    async def ask(self, type_: str, session_id: str | None = None, **fields: Any) -> Any:
        """Send a request; the one answer to it."""
        id_ = next(self._ids)
        answer = self._answers[id_] = asyncio.get_running_loop().create_future()
        message = {"type": type_, "id": id_} | ({} if session_id is None else {"sessionId": session_id})
        await self.client.send(message | fields)
        async with asyncio.timeout(TIMEOUT_S):
            return await answer

    async def follow(self, session_id: str) -> View:
        """Subscribe, from the position that it has."""
        view = self.views.setdefault(session_id, View(session_id))
        position = {} if view.position is None else {"position": view.position}
        answer = await self.ask("SUBSCRIBE", session_id, **position)
        assert answer["type"] == "SUBSCRIBED", answer
        return view

    async def command(self, session_id: str, name: str, body: Any = None, **fields: Any) -> Any:
        said = fields if body is None else fields | {"body": body}
        return await self.ask("COMMAND", session_id, command=name, **said)

    async def until(self, condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self.check()
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            shown = {view.position: view.told[-10:] for view in self.views.values()}
            raise AssertionError(f"it does not hold; the follower has {shown}") from None


class CutFollower:
    """Follows one session on lines that are cut after some bytes, wherever that is, and resumes each time.

    It says nothing: its URL does, and `headers` name its subprotocol.
    """

    def __init__(
        self,
        ws_url: str,
        session_id: str,
        bytes_of_next_line: Callable[[], int | None],
        headers: dict[str, str] = V2,
    ) -> None:
        self.view = View(session_id)
        self.cuts = 0
        self._ws_url = ws_url
        self._headers = headers
        self._bytes_of_next_line = bytes_of_next_line
        self._following: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    async def __aenter__(self) -> "CutFollower":
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._following is not None
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._following

    async def until_at(self, position: str | None) -> None:
        assert self._following is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while not (self.view.is_subscribed and self.view.position == position):
                    if self._following.done():
                        self._following.result()
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise AssertionError(f"it has {self.view.position}, {self.view.told[-10:]}") from None

    async def _follow(self) -> None:
        try:
            while True:
                await self._follow_until_cut(self._bytes_of_next_line())
                self.cuts += 1
        finally:
            self._moved.set()

    async def _follow_until_cut(self, bytes_left: int | None) -> None:
        """`bytes_left` of what comes behind the handshake are read, and no more."""
        had, state = self.view.position, self.view.state
        query = f"?sessionId={self.view.session_id}" + ("" if had is None else f"&position={had}")
        async with await WsClient.connect(f"{self._ws_url}/ws{query}", headers=self._headers) as client:
            unread = b""
            while bytes_left is None or bytes_left > 0:
                data = await client.reader.read(4096 if bytes_left is None else min(bytes_left, 4096))
                if bytes_left is not None:
                    bytes_left -= len(data)
                messages, unread = cut_frames(unread + data)
                for message in messages:
                    self.view.take(message)
                    if message["type"] == "SUBSCRIBED" and message.get("state") and state is not None:
                        assert message["state"]["epoch"] != state["epoch"], f"{had} was not resumed"
                self._moved.set()
                if not data:
                    return


def cut_frames(data: bytes) -> tuple[list[Any], bytes]:
    """The messages of a server that are complete, and what is left."""
    messages = []
    while len(data) >= 2:
        length, at = data[1], 2
        if length >= 126:
            at = 4 if length == 126 else 10
            length = int.from_bytes(data[2:at], "big")
        if len(data) < max(at, at + length):
            break
        opcode, payload = data[0] & 0x0F, data[at : at + length]
        if opcode in (TEXT, BINARY):
            messages.append(parsed(opcode, inflated(payload) if data[0] & DEFLATED else payload))
        data = data[at + length :]
    return messages, data
