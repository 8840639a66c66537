"""What is said over one connection while it lasts."""

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import Callable

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from lockstep_client.carried import CarriedSubscriptions
from lockstep_client.connection import CONNECT_WITHIN_S, Lost, error_of_end
from lockstep_client.errors import LockstepError
from lockstep_client.messages import (
    BadMessage,
    Change,
    Deleted,
    GoingAway,
    Message,
    Pong,
    Reauthenticated,
    Refusal,
    Result,
    Snapshot,
    Subscribed,
    Unsubscribed,
    Welcome,
    read_message,
)
from lockstep_client.pending_commands import PendingCommands
from lockstep_client.server_time import ServerTime
from lockstep_client.tokens import RENEW_BEFORE_S, AsyncTokens, expiry_s
from lockstep_client.types import JsonObject
from lockstep_client.waiting import first_of, within

log = logging.getLogger(__name__)

PING_EVERY_S = 5.0
PONG_WITHIN_S = 4.0
BURST = 5
"""PINGs in quick succession after each connect: one of them will meet no queue."""
BURST_PAUSE_S = 0.06


class Conversation:
    """One connection, from WELCOME to its end."""

    def __init__(
        self,
        connection: ClientConnection,
        token: str | None,
        tokens: AsyncTokens,
        server_time: ServerTime,
        new_id: Callable[[], int],
        subscriptions: CarriedSubscriptions,
        commands: PendingCommands,
    ) -> None:
        self._connection = connection
        self._token = token
        self._tokens = tokens
        self._time = server_time
        self._new_id = new_id
        self._subscriptions = subscriptions
        self._commands = commands
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._pongs: dict[int, asyncio.Future[tuple[Pong, float]]] = {}
        self._first_pong: asyncio.Future[Pong] = asyncio.get_running_loop().create_future()
        self._is_asked = asyncio.Event()
        """Whether the line is alive, before it is time to ask again by itself."""
        self._renewal: tuple[int, asyncio.Future[LockstepError | None]] | None = None
        self.reconnect_after_ms: float | None = None
        """What the server wants to be waited for, where it goes away."""

    @property
    def is_welcome(self) -> bool:
        return self._welcome.done()

    def probe(self) -> None:
        """Find out now whether the connection still stands."""
        self._is_asked.set()

    def send(self, text: str) -> None:
        self._outgoing.put_nowait(text)

    def _say(self, message: JsonObject) -> None:
        self.send(json.dumps(message, separators=(",", ":")))

    async def run(self) -> None:
        """Raises Lost, TokenRefused, BadMessage and LockstepError; there is no other end."""
        await first_of(self._read(), self._write(), self._measure(), self._renew())

    async def _write(self) -> None:
        while True:
            text = await self._outgoing.get()
            try:
                await self._connection.send(text)
            except ConnectionClosed as closed:
                raise error_of_end(closed) from closed

    # --- what the server says ----------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            try:
                frame = await self._connection.recv()
            except ConnectionClosed as closed:
                raise error_of_end(closed) from closed
            message = read_message(frame)
            if not self.is_welcome and not isinstance(message, Welcome):
                raise BadMessage("something else than WELCOME")
            if message is not None:
                self._receive(message)
            # However much has come: who is told of it has a turn to take it.
            await asyncio.sleep(0)

    def _receive(self, message: Message) -> None:
        match message:
            case Change():
                self._subscriptions.change(message)
            case Subscribed():
                self._subscriptions.subscribed(message)
            case Snapshot():
                self._subscriptions.snapshot(message)
            case Deleted():
                self._subscriptions.deleted(message)
            case Unsubscribed():
                self._subscriptions.unsubscribed(message)
            case Result():
                self._commands.succeed(message)
            case Refusal():
                self._refused(message)
            case Pong():
                self._answer_ping(message)
            case Reauthenticated():
                self._end_renewal(message.id, None)
            case GoingAway():
                self.reconnect_after_ms = message.reconnect_after_ms
            case Welcome():
                if self.is_welcome:
                    raise BadMessage("WELCOME once more")
                self._welcome.set_result(message)
                self._subscriptions.open()
                self._commands.open()

    def _refused(self, refusal: Refusal) -> None:
        id_, error = refusal.id, refusal.error
        if self._subscriptions.refuse(id_, error) or self._commands.refuse(id_, error):
            return
        if not self._end_renewal(id_, error):
            log.warning("the server says %s", error)

    # --- time, and whether the line is alive -------------------------------------------------------------

    async def _measure(self) -> None:
        """Asks for the server's time. A dead line closes nothing, so silence is taken for its end."""
        await asyncio.wait([self._welcome], timeout=CONNECT_WITHIN_S)
        if not self.is_welcome:
            raise Lost("no WELCOME")
        number = 0
        while True:
            number += 1
            await self._ping()
            if number < BURST:
                await asyncio.sleep(BURST_PAUSE_S)
            else:
                await within(PING_EVERY_S, self._is_asked)

    async def _ping(self) -> None:
        id_ = self._new_id()
        answer = self._pongs[id_] = asyncio.get_running_loop().create_future()
        sent_ms = self._time.local_ms()
        self._say({"type": "PING", "id": id_})
        # Two waits: where this program did something else for seconds, the answer may be there but unread.
        for _ in range(2):
            await asyncio.wait([answer], timeout=PONG_WITHIN_S / 2)
        if not answer.done():
            raise Lost("no answer")
        del self._pongs[id_]
        pong, received_ms = answer.result()
        if not pong.stands_still:
            self._time.learn(sent_ms, received_ms, pong.timestamp_ms, pong.received_at_ms, pong.error_ms)

    def _answer_ping(self, pong: Pong) -> None:
        if not self._first_pong.done():
            self._first_pong.set_result(pong)
        if pong.stands_still:
            self._time.stand(math.floor(pong.timestamp_ms))
        answer = self._pongs.get(pong.id) if isinstance(pong.id, int) else None
        if answer is not None and not answer.done():
            answer.set_result((pong, self._time.local_ms()))

    # --- a token that runs out ----------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Brings the next token before this one has run out, at an instant that not everybody chooses."""
        pong = await self._first_pong
        # Tokens run out in real time, also where a test moves the server's.
        server_ms = time.time() * 1000 if pong.stands_still else pong.timestamp_ms
        lead_ms = server_ms - self._time.local_ms()
        while self._tokens.is_renewable and self._token is not None:
            ends_at_s = expiry_s(self._token)
            if ends_at_s is None:
                break
            left_s = ends_at_s - (self._time.local_ms() + lead_ms) / 1000
            wait_s = left_s - min(RENEW_BEFORE_S, left_s / 2) * (1 - random.random() / 4)
            await asyncio.sleep(max(1, wait_s))
            await self._reauthenticate(self._token)
        await asyncio.Event().wait()

    async def _reauthenticate(self, former: str) -> None:
        """What fails here costs nothing: this connection lasts as long as its token, the next has another."""
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                token = await self._tokens.token(other_than=former)
        except Exception as error:  # whatever the application's function raises
            log.warning("there is no next token yet: %r", error)
            return
        if token is None or token == former:
            return
        id_ = self._new_id()
        answer: asyncio.Future[LockstepError | None] = asyncio.get_running_loop().create_future()
        self._renewal = id_, answer
        self._say({"type": "REAUTH", "id": id_, "token": token})
        refusal = await answer
        if refusal is None:
            self._token = token
        else:
            log.warning("the next token is refused: %s", refusal)
            self._tokens.refuse(token)

    def _end_renewal(self, id_: object, error: LockstepError | None) -> bool:
        if self._renewal is None or self._renewal[0] != id_:
            return False
        self._renewal[1].set_result(error)
        self._renewal = None
        return True
