"""REST for programs that do other things while they wait: the same calls as `rest.py` makes."""

from collections.abc import AsyncIterator
from typing import Literal, overload

from lockstep_client import calls
from lockstep_client.calls import Call, Page
from lockstep_client.senders import AsyncSender
from lockstep_client.tokens import AsyncTokenSource
from lockstep_client.types import (
    CommandBody,
    CommandName,
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


class AsyncRest:
    """The calls of `AsyncLockstep`, which are those of `Lockstep`."""

    def __init__(self, url: str, token: AsyncTokenSource | None, timeout_s: float) -> None:
        self._sender = AsyncSender(url, token, timeout_s)

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
