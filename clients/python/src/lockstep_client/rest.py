"""REST for programs that wait for each answer."""

from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self, overload

from lockstep_client import calls
from lockstep_client.calls import Call, Page
from lockstep_client.senders import Sender
from lockstep_client.tokens import TokenSource
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


class Lockstep:
    """The sessions of a Lockstep server, by REST.

    Each change gets an idempotency key of its own unless one is given. So it is made once, although it is
    sent again when no answer comes, or when the server cannot do it just then (429, 5xx; after as long as
    it asks for): until `timeout_s` is over. Whatever fails raises `LockstepError`. Threads may share one.

        with Lockstep("https://clocks.example.org", token=mint_token(secret, scope="admin")) as lockstep:
            state = lockstep.create_session({"sync_mode": "global", "total_time_ms": 600_000})
            lockstep.command(state["session_id"], "start")
    """

    def __init__(self, url: str, token: TokenSource | None = None, timeout_s: float = 10) -> None:
        """`url` is the server's address; `/v1/...` is below it. Raises ValueError on what is none.

        `token` is needed where the server has keys. A function is called for the first token, again shortly
        before that has run out, and where the server refuses it; what it raises is raised.
        """
        self._sender = Sender(url, token, timeout_s)

    def create_session(self, body: CreateBody, idempotency_key: str | None = None) -> State:
        """Create a session; its state. SESSION_EXISTS where there is one by the `session_id` in the body."""
        return self._sender.do(calls.create_session(body, idempotency_key))

    def session(self, session_id: str) -> State:
        """The state as it is now. SESSION_NOT_FOUND where there is none."""
        return self._sender.do(calls.session(session_id))

    def sessions(self, status: Status | None = None) -> Iterator[State]:
        """All sessions, or those in this status, as they are stored: a clock may have run out since."""
        call: Call[Page[State]] | None = calls.sessions(status)
        while call is not None:
            page = self._sender.do(call)
            yield from page.items
            call = page.next_call

    @overload
    def command(
        self,
        session_id: str,
        name: Literal["switch"],
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
    ) -> Switched: ...

    @overload
    def command(
        self,
        session_id: str,
        name: StateCommandName,
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
    ) -> State: ...

    def command(
        self,
        session_id: str,
        name: CommandName,
        body: CommandBody | None = None,
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
    ) -> State | Switched:
        """Change a session; the state that it led to, of a switch the part that it changed.

        INVALID_STATE_TRANSITION where the session's status does not allow it, CONFLICT where what the body
        expects does not hold. With `if_match`, a position, it is only done to that very state (else
        CONFLICT, status 412).
        """
        return self._sender.do(calls.command(session_id, name, body, idempotency_key, if_match))

    def events(self, session_id: str, since: int = 0, epoch: str | None = None) -> Iterator[HistoryEvent]:
        """What has happened to a session after version `since`; the server keeps the last 1,000 events.

        EVENTS_GONE where it has forgotten some of that, or where the session is of another `epoch`.
        """
        call: Call[Page[HistoryEvent]] | None = calls.events(session_id, since, epoch)
        while call is not None:
            page = self._sender.do(call)
            yield from page.items
            call = page.next_call

    def publish(self, session_id: str, message: JsonObject, idempotency_key: str | None = None) -> None:
        """Send a message, an object with a `type`, to everybody who is connected to the session."""
        self._sender.do(calls.publish(session_id, message, idempotency_key))

    def presence(self, session_id: str) -> Presence:
        """Who is connected to the session."""
        return self._sender.do(calls.presence(session_id))

    def disconnect(self, session_id: str, subject: str) -> None:
        """End what a subject, the `sub` of its tokens, follows of the session. Its tokens stay good."""
        self._sender.do(calls.disconnect(session_id, subject))

    def delete(
        self, session_id: str, *, idempotency_key: str | None = None, if_match: str | None = None
    ) -> None:
        """Delete the session, if there is one."""
        self._sender.do(calls.delete(session_id, idempotency_key, if_match))

    def read_time(self) -> TimeAnswer:
        """What time it is at the server, and which version that is."""
        return self._sender.do(calls.read_time())

    def close(self) -> None:
        """Close the connections. No other method may be called afterwards (CLOSED)."""
        self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
