"""The asynchronous client."""

from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Literal, Self, overload

from lockstep_client import calls
from lockstep_client.addresses import socket_url
from lockstep_client.calls import Call, Page
from lockstep_client.senders import AsyncSender
from lockstep_client.server_time import ServerTime
from lockstep_client.sockets import Sockets
from lockstep_client.tokens import AsyncTokenSource
from lockstep_client.types import (
    CommandBody,
    CommandName,
    CommandResult,
    CreateBody,
    HistoryEvent,
    JsonObject,
    Presence,
    State,
    StateCommandName,
    Status,
    Switched,
    TimeAnswer,
)
from lockstep_client.updates import Update


class AsyncLockstep:
    """The sessions of a Lockstep server, for asyncio: each method that `Lockstep` has, and sessions followed.

        async with AsyncLockstep("https://clocks.example.org", token=token) as lockstep:
            state = await lockstep.create_session({"sync_mode": "global", "total_time_ms": 600_000})
            async for update in lockstep.follow(state["session_id"]):
                print(update.state, update.events)

    What is followed, and what `send_command` sends, shares one WebSocket; there is one more for each
    further 100 sessions. It comes back by itself after whatever happens to it. An instance belongs to one
    event loop.
    """

    def __init__(self, url: str, token: AsyncTokenSource | None = None, timeout_s: float = 10) -> None:
        """`url` is the server's address; `/v1/...` and `/ws` are below it. Raises ValueError on what is none.

        `token` is needed where the server has keys. A function, which may be a coroutine function, is
        called for the first token, again shortly before that has run out, and where the server refuses it.
        What it raises is raised by what needs the token; a WebSocket takes it as one more failure to
        connect.
        """
        self._sender = AsyncSender(url, token, timeout_s)
        self.time = ServerTime()
        """What time it is at the server, while something is followed."""
        self._sockets = Sockets(socket_url(url), self._sender.tokens, self.time, timeout_s)

    async def create_session(self, body: CreateBody, idempotency_key: str | None = None) -> State:
        """Create a session; its state. SESSION_EXISTS where there is one by the `session_id` in the body."""
        return await self._sender.do(calls.create_session(body, idempotency_key))

    async def session(self, session_id: str) -> State:
        """The state as it is now. SESSION_NOT_FOUND where there is none."""
        return await self._sender.do(calls.session(session_id))

    async def sessions(self, status: Status | None = None) -> AsyncIterator[State]:
        """All sessions, or those in this status, as they are stored: a clock may have run out since."""
        call: Call[Page[State]] | None = calls.sessions(status)
        while call is not None:
            page: Page[State] = await self._sender.do(call)
            call = page.next_call
            for item in page.items:
                yield item

    @overload
    async def command(
        self,
        session_id: str,
        name: Literal["switch"],
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
    ) -> Switched: ...

    @overload
    async def command(
        self,
        session_id: str,
        name: StateCommandName,
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
    ) -> State: ...

    async def command(
        self,
        session_id: str,
        name: CommandName,
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
    ) -> State | Switched:
        """Change a session by REST; the state that it led to, of a switch the part that it changed.

        See `Lockstep.command`.
        """
        return await self._sender.do(calls.command(session_id, name, body, idempotency_key, if_match))

    async def events(
        self, session_id: str, since: int = 0, epoch: str | None = None
    ) -> AsyncIterator[HistoryEvent]:
        """What has happened to a session after version `since`; the server keeps the last 1,000 events.

        EVENTS_GONE where it has forgotten some of that, or where the session is of another `epoch`.
        """
        call: Call[Page[HistoryEvent]] | None = calls.events(session_id, since, epoch)
        while call is not None:
            page: Page[HistoryEvent] = await self._sender.do(call)
            call = page.next_call
            for item in page.items:
                yield item

    async def publish(self, session_id: str, message: JsonObject, idempotency_key: str | None = None) -> None:
        """Send a message, an object with a `type`, to everybody who is connected to the session."""
        await self._sender.do(calls.publish(session_id, message, idempotency_key))

    async def presence(self, session_id: str) -> Presence:
        """Who is connected to the session."""
        return await self._sender.do(calls.presence(session_id))

    async def disconnect(self, session_id: str, subject: str) -> None:
        """End what a subject, the `sub` of its tokens, follows of the session. Its tokens stay good."""
        await self._sender.do(calls.disconnect(session_id, subject))

    async def delete(
        self, session_id: str, *, idempotency_key: str | None = None, if_match: str | None = None
    ) -> None:
        """Delete the session, if there is one."""
        await self._sender.do(calls.delete(session_id, idempotency_key, if_match))

    async def read_time(self) -> TimeAnswer:
        """What time it is at the server, and which version that is."""
        return await self._sender.do(calls.read_time())

    async def follow(self, session_id: str) -> AsyncGenerator[Update, None]:
        """The session as it is now (`state` is None where there is none), and then each change, in order.

        It waits for the server where that is away, comes back after a lost connection, and catches up with
        what was missed: with every version where the server still can, else with the latest state (`sync`).
        A consumer that is slower than the session changes gets the latest state in place of what it has not
        taken (`reason="skipped"`). So it may be late, but it never ends up with another state than the
        server's. All who follow one session share one subscription; the last to leave ends it. Leave by
        ending the iterator:

            async with contextlib.aclosing(lockstep.follow(session_id)) as updates:
                async for update in updates:
                    ...

        It ends when this client is closed. It raises LockstepError where coming back is no use: FORBIDDEN,
        UNAUTHORIZED, DISCONNECTED (the application has sent this subject away), REFUSED,
        UNSUPPORTED_PROTOCOL, INVALID_ANSWER.
        """
        follower = self._sockets.follow(session_id)
        try:
            while (update := await follower.next()) is not None:
                yield update
        finally:
            self._sockets.leave(follower)

    def is_current(self, session_id: str) -> bool:
        """Whether what `follow` has given, or is about to, is known to be what the server has.

        It is not while the connection is away; then the clocks of the last state may show what is no longer
        so.
        """
        return self._sockets.is_current(session_id) and not self.time.has_jumped

    @property
    def followed(self) -> list[str]:
        """The sessions that are followed at present, by their ids."""
        return self._sockets.followed

    def probe(self) -> None:
        """Find out now whether the connection still stands; while waiting to come back, come back now.

        For programs that hear of a network that has returned: by itself it is asked every five seconds, and
        comes back after at most fifteen.
        """
        self._sockets.probe()

    async def send_command(
        self,
        session_id: str,
        name: CommandName,
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> CommandResult:
        """Change a session over the WebSocket: the position that it led to. Followers are given the state.

        It is `command` without a request of its own, for those that come often. It waits for the
        connection, and is sent again over the next one, or as soon as the server can, until `timeout_s` is
        over; it is applied once. Raises LockstepError as `command` does, and MESSAGE_TOO_BIG.
        """
        return await self._sockets.command(session_id, name, body, idempotency_key)

    async def close(self) -> None:
        """End what is followed, and close all connections. No other method may be called then (CLOSED)."""
        try:
            await self._sockets.close()
        finally:
            await self._sender.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
