"""REST for programs that do other things while they wait: the same calls as `rest.py` makes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal, TypeVar, cast, overload

import httpx

from lockstep_client import calls
from lockstep_client.addresses import rest_url
from lockstep_client.calls import Call, Page
from lockstep_client.errors import LockstepError
from lockstep_client.exchange import Outcome, Wait, exchange
from lockstep_client.tls import tls_context
from lockstep_client.tokens import AsyncTokens, AsyncTokenSource, Credentials
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

T = TypeVar("T")


class AsyncRest:
    """The calls of `AsyncLockstep`, which are those of `Lockstep`."""

    def __init__(self, url: str, token: AsyncTokenSource | None, timeout_s: float) -> None:
        self._url = rest_url(url)
        self._credentials = Credentials(token)
        self._timeout_s = timeout_s
        self._tokens = AsyncTokens(self._credentials)
        self._http = httpx.AsyncClient(verify=tls_context())

    async def create_session(self, body: CreateBody, idempotency_key: str | None = None) -> State:
        """Create a session; its state. SESSION_EXISTS where there is one by the `session_id` in the body."""
        return await self._do(calls.create_session(body, idempotency_key))

    async def session(self, session_id: str) -> State:
        """The state as it is now. SESSION_NOT_FOUND where there is none."""
        return await self._do(calls.session(session_id))

    async def sessions(self, status: Status | None = None) -> AsyncIterator[State]:
        """All sessions, or those in this status, as they are stored: a clock may have run out since."""
        call: Call[Page[State]] | None = calls.sessions(status)
        while call is not None:
            page: Page[State] = await self._do(call)
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
        return await self._do(calls.command(session_id, name, body, idempotency_key, if_match))

    async def events(
        self, session_id: str, since: int = 0, epoch: str | None = None
    ) -> AsyncIterator[HistoryEvent]:
        """What has happened to a session after version `since`; the server keeps the last 1,000 events.

        EVENTS_GONE where it has forgotten some of that, or where the session is of another `epoch`.
        """
        call: Call[Page[HistoryEvent]] | None = calls.events(session_id, since, epoch)
        while call is not None:
            page: Page[HistoryEvent] = await self._do(call)
            call = page.next_call
            for item in page.items:
                yield item

    async def publish(self, session_id: str, message: JsonObject, idempotency_key: str | None = None) -> None:
        """Send a message, an object with a `type`, to everybody who is connected to the session."""
        await self._do(calls.publish(session_id, message, idempotency_key))

    async def presence(self, session_id: str) -> Presence:
        """Who is connected to the session."""
        return await self._do(calls.presence(session_id))

    async def disconnect(self, session_id: str, subject: str) -> None:
        """End what a subject, the `sub` of its tokens, follows of the session. Its tokens stay good."""
        await self._do(calls.disconnect(session_id, subject))

    async def delete(
        self, session_id: str, *, idempotency_key: str | None = None, if_match: str | None = None
    ) -> None:
        """Delete the session, if there is one."""
        await self._do(calls.delete(session_id, idempotency_key, if_match))

    async def read_time(self) -> TimeAnswer:
        """What time it is at the server, and which version that is."""
        return await self._do(calls.read_time())

    async def _do(self, call: Call[T]) -> T:
        steps = exchange(call, self._url, self._credentials, self._timeout_s)
        outcome: Outcome = None
        while True:
            if self._http.is_closed:
                raise LockstepError("CLOSED", "This client was closed")
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return cast(T, end.value)
            if isinstance(step, httpx.Request):
                try:
                    outcome = await self._http.send(step)
                except httpx.RequestError as error:
                    outcome = error
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            else:
                outcome = await self._tokens.token()
