"""REST: create, read, list, delete sessions; commands, messages, history."""

from collections.abc import Callable
from typing import Any

from handlers.api import ApiHandler
from handlers.origins import Origins
from lockstep.access import Scope
from lockstep.commands import COMMANDS
from lockstep.perform import Applied, Performer, Request
from lockstep.requests import kinds, parameters
from lockstep.requests.kinds import Complaints
from lockstep.session_list import SessionList
from lockstep.sessions import Sessions
from lockstep.wire import heads, payloads


class SessionsApi(ApiHandler):
    """What the handlers of /v1/sessions share."""

    needs_token = True

    @property
    def route(self) -> str:
        return "/v1/sessions" if not self._arguments else "/v1/sessions/ID"

    def initialize(  # type: ignore[override]
        self, origins: Origins, sessions: Sessions, session_list: SessionList, performer: Performer
    ) -> None:
        super().initialize(origins)
        self.sessions = sessions
        self.session_list = session_list
        self.performer = performer

    def change(self, body: bytes = b"") -> Request:
        """What is asked for, as the performer wants it."""
        headers = self.headers
        key = headers.get("Idempotency-Key")
        return Request(
            access=self.access,
            request_id=self.request_id,
            method=self.method,
            path=self.path,
            body=body,
            idempotency_key=key,
            idempotency_ttl=headers.get("Idempotency-TTL"),
            received_at_s=None if key is None else self.received_at_s(),
            tags=parameters.tags(headers.get("If-Match")),
            admission=None if self.charge is None else self.admit,
            rates=self.rates,
        )

    def reply_applied(self, applied: Applied) -> None:
        if applied.rate_limit is not None:
            self.tell_standing(applied.rate_limit)
        if applied.tag:
            self.set_header("ETag", applied.tag)
        if applied.status == 201:
            self.set_header("Location", f"/v1/sessions/{applied.session_id}")
        if applied.is_replayed:
            self.set_header("Idempotent-Replayed", "true")
        if applied.status == 204:
            self.reply_empty(204)
        else:
            self.reply(applied.answer, applied.status)

    def require(self, scope: Scope) -> None:
        """Of the session in the path, also where that is none: who may not is not told."""
        self.access.require(scope, self._arguments[0].lower())

    def query(self, complaints: Complaints, **fields: Callable[[str], Any]) -> dict[str, Any]:
        return parameters.query(self.query_arguments(), fields, complaints)


class CollectionHandler(SessionsApi):
    """/v1/sessions"""

    def authorize(self) -> None:
        if self.method == "POST":
            self.access.require_scope(Scope.ADMIN)  # for which session, the body says
        else:
            self.access.require_of_all(Scope.ADMIN)

    async def post(self) -> None:
        self.reply_applied(await self.performer.create(self.change(self.read_body())))

    async def get(self) -> None:
        complaints = Complaints()
        query = self.query(
            complaints,
            status=parameters.status,
            limit=parameters.whole_number(1, parameters.MAX_PAGE),
            cursor=parameters.cursor,
        )
        complaints.raise_if_any()
        states, place = await self.session_list.page(
            query["status"], query["limit"] or parameters.DEFAULT_PAGE, query["cursor"] or (0, "")
        )
        cursor = f'"{place[0]}-{place[1]}"' if place else "null"
        self.reply(b'{"sessions":[' + b",".join(states) + b'],"next_cursor":' + cursor.encode() + b"}")


class SessionHandler(SessionsApi):
    """/v1/sessions/ID"""

    def authorize(self) -> None:
        self.require(Scope.ADMIN if self.method == "DELETE" else Scope.VIEW)

    async def get(self, session_id: str) -> None:
        session_id = _valid(session_id)
        state = await self.sessions.read(session_id)
        head = heads.read_head(state)
        assert head is not None
        tag = head.tag
        self.set_header("ETag", tag)
        known = parameters.tags(self.headers.get("If-None-Match"))
        # A GET compares weakly (RFC 9110 13.1.2): proxies that recompress mark our tags as weak.
        if known and ("*" in known or tag in {each.removeprefix("W/") for each in known}):
            self.reply_empty(304)
        else:
            self.reply(state)

    async def delete(self, session_id: str) -> None:
        self.reply_applied(await self.performer.delete(session_id, self.change()))


class CommandHandler(SessionsApi):
    """POST /v1/sessions/ID/switch and its siblings."""

    admits_itself = True

    @property
    def route(self) -> str:
        return f"/v1/sessions/ID/{self._arguments[1]}"

    def authorize(self) -> None:
        session_id, command = self._arguments
        self.access.require_command(COMMANDS[command].scope, session_id.lower())

    async def post(self, session_id: str, command: str) -> None:
        request = self.change(self.read_body())
        self.reply_applied(await self.performer.command(COMMANDS[command], session_id, request))


class MessagesHandler(SessionsApi):
    """POST /v1/sessions/ID/messages"""

    route = "/v1/sessions/ID/messages"

    def authorize(self) -> None:
        self.require(Scope.CONTROL)

    async def post(self, session_id: str) -> None:
        request = self.change(self.read_body(payloads.MAX_RELAYED_BYTES))
        self.reply_applied(await self.performer.message(session_id, request))


class EventsHandler(SessionsApi):
    """GET /v1/sessions/ID/events"""

    route = "/v1/sessions/ID/events"

    def authorize(self) -> None:
        self.require(Scope.VIEW)

    async def get(self, session_id: str) -> None:
        complaints = Complaints()
        session_id = kinds.session_id_in_path(session_id, complaints)
        since = parameters.whole_number(0, kinds.MAX_INT)
        query = self.query(complaints, since=since, epoch=parameters.epoch)
        complaints.raise_if_any()
        history = await self.sessions.events(session_id, query["since"], query["epoch"])
        next_since = "null" if history.next_since is None else str(history.next_since)
        head = f'{{"epoch":"{history.epoch}","next_since":{next_since},"events":['
        self.reply(head.encode() + b",".join(history.events) + b"]}")


def _valid(session_id: str) -> str:
    complaints = Complaints()
    session_id = kinds.session_id_in_path(session_id, complaints)
    complaints.raise_if_any()
    return session_id
