"""REST: create, read, list, delete sessions; commands, messages, history."""

from collections.abc import Callable
from typing import Any

from handlers.api import ApiHandler
from handlers.origins import Origins
from lockstep.access import Scope
from lockstep.idempotency import Idempotent, Replay
from lockstep.limits import SwitchLimit
from lockstep.requests import bodies, kinds, parameters
from lockstep.requests.kinds import Complaints
from lockstep.rules import engine
from lockstep.rules.engine import Rule, Step
from lockstep.rules.state_json import dumps, iso, participants_to_list
from lockstep.sessions import Answer, Origin, Sessions, answer_state
from lockstep.wire import heads, payloads, strict_json


class SessionsApi(ApiHandler):
    """What the handlers of /v1/sessions share."""

    needs_token = True

    @property
    def route(self) -> str:
        return "/v1/sessions" if not self._arguments else "/v1/sessions/ID"

    def initialize(self, origins: Origins, sessions: Sessions) -> None:  # type: ignore[override]
        super().initialize(origins)
        self.sessions = sessions

    def origin(self, path: str, meaning: Any, limit: SwitchLimit | None = None) -> Origin:
        """Who asks, and by what the request is known again, if it names itself. Raises ValidationError.

        `path` is the request's, and `meaning` what its body says, however both were spelled.
        """
        key = self.headers.get("Idempotency-Key")
        once = None
        if key is not None:
            kept_s = parameters.idempotency(key, self.headers.get("Idempotency-TTL"))
            once = Idempotent.of(
                (self.method, path, self.access.caller, key),
                (self.method, self.path, self.access.subject or "", key),
                self.read_body() if self.method == "POST" else b"",
                meaning,
                kept_s,
                self.received_at_s(),
            )
        admission = None if self.charge is None else self.admit
        return Origin(self.access.subject, self.request_id, once=once, admission=admission, limit=limit)

    async def _act(self) -> None:
        try:
            await super()._act()
        except Replay as replay:
            await self._reply_again(replay)

    async def _reply_again(self, replay: Replay) -> None:
        record, answer = replay.record, replay.answer
        if record.status == 204:
            self.set_header("Idempotent-Replayed", "true")
            self.reply_empty(204)
            return
        state = await self.sessions.read_again(record, is_answer_kept=answer is not None)
        tag = record.tag
        if answer is None:
            head = heads.read_head(state)
            assert head is not None
            tag, answer = head.tag, self.answer_of(state, record.extras)
        if tag:
            self.set_header("ETag", tag)
        if record.status == 201:
            self.set_header("Location", f"/v1/sessions/{record.session_id}")
        self.set_header("Idempotent-Replayed", "true")
        self.reply(answer, record.status)

    def answer_of(self, state: bytes, extras: dict[str, Any]) -> bytes:
        """What this request is answered where it left a session in this state."""
        return state

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
        answer = _Once(answer_state)
        body = self.read_json()
        self._require_named(body)
        spec = bodies.spec(body)
        step = await self.sessions.create(spec, self.origin("/v1/sessions", spec), answer)
        self.set_header("ETag", step.session.tag)
        self.set_header("Location", f"/v1/sessions/{step.session.session_id}")
        self.reply(answer(step), 201)

    def _require_named(self, body: Any) -> None:
        """Raises Forbidden where the session to be created is none that the token is for."""
        named = body.get("session_id") if isinstance(body, dict) else None
        if isinstance(named, str):
            self.access.require(Scope.ADMIN, named.lower())
        else:
            self.access.require_of_all(Scope.ADMIN)

    async def get(self) -> None:
        complaints = Complaints()
        query = self.query(
            complaints,
            status=parameters.status,
            limit=parameters.whole_number(1, parameters.MAX_PAGE),
            cursor=parameters.cursor,
        )
        complaints.raise_if_any()
        states, place = await self.sessions.list(
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
        session_id = _valid(session_id)
        tags = parameters.tags(self.headers.get("If-Match"))
        await self.sessions.delete(session_id, self.origin(f"/v1/sessions/{session_id}", None), tags)
        self.reply_empty(204)


class CommandHandler(SessionsApi):
    """POST /v1/sessions/ID/switch and its siblings."""

    admits_itself = True

    @property
    def route(self) -> str:
        return f"/v1/sessions/ID/{self._arguments[1]}"

    def authorize(self) -> None:
        session_id, command = self._arguments
        self.access.require_command(command, session_id.lower())

    async def post(self, session_id: str, command: str) -> None:
        body = self.read_json()
        if isinstance(body, dict) and body.get("next_participant_id") is not None:
            self.access.require_scope(Scope.CONTROL)  # a player hands on the turn, but not to whom it likes
        complaints = Complaints()
        session_id = kinds.session_id_in_path(session_id, complaints)
        arguments = bodies.command(command, body, complaints)
        complaints.raise_if_any()
        said = bodies.meaning(arguments) if "Idempotency-Key" in self.headers else None
        version = arguments.pop("expected_version")
        tags = parameters.tags(self.headers.get("If-Match"))
        rule = engine.expecting(_rule(command, arguments), version=version, tags=tags)
        rule = self.access.rule_of(rule)
        answer = _Once(_switched if command == "switch" else answer_state)
        limit = (
            self.rates.switch_limit(session_id) if command == "switch" and self.rates is not None else None
        )
        origin = self.origin(f"/v1/sessions/{session_id}/{command}", said, limit)
        step = await self.sessions.apply(session_id, rule, origin, answer)
        if limit is not None and limit.status is not None:
            self.tell_standing(limit.status)
        self.set_header("ETag", step.session.tag)
        self.reply(answer(step))

    def answer_of(self, state: bytes, extras: dict[str, Any]) -> bytes:
        return _switched_to(state, extras) if self._arguments[1] == "switch" else state


class MessagesHandler(SessionsApi):
    """POST /v1/sessions/ID/messages"""

    route = "/v1/sessions/ID/messages"

    def authorize(self) -> None:
        self.require(Scope.CONTROL)

    async def post(self, session_id: str) -> None:
        raw = self.read_body(payloads.MAX_RELAYED_BYTES)
        body = strict_json.loads(raw) if raw else None
        complaints = Complaints()
        session_id = kinds.session_id_in_path(session_id, complaints)
        bodies.message(body, complaints)
        complaints.raise_if_any()
        answer = dumps({"session_id": session_id})
        origin = self.origin(f"/v1/sessions/{session_id}/messages", body)
        await self.sessions.publish(session_id, raw, origin, answer)
        self.reply(answer, 202)


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


class _Once:
    """Encodes an answer once, whether or not it is also kept for a request that comes again."""

    def __init__(self, encode: Answer) -> None:
        self._encode = encode
        self._step: Step | None = None
        self._encoded = b""

    def __call__(self, step: Step) -> bytes:
        if step is not self._step:
            self._step, self._encoded = step, self._encode(step)
        return self._encoded


def _valid(session_id: str) -> str:
    complaints = Complaints()
    session_id = kinds.session_id_in_path(session_id, complaints)
    complaints.raise_if_any()
    return session_id


def _rule(command: str, arguments: dict[str, Any]) -> Rule:
    rule = getattr(engine, command)
    return lambda session, now_ms: rule(session, now_ms, **arguments)


def _switched(step: Step) -> bytes:
    """The answer to a switch: who is active now, and how the turn before ended."""
    session = step.session
    active = session.active_participant
    answer = {
        "session_id": session.session_id,
        "active_participant_id": active and active.participant_id,
        "cycle_started_at": iso(session.cycle_started_at_ms),
        "participants": participants_to_list(session),
        "status": session.status.value,
        "version": session.version,
    }
    return dumps(answer | step.transitions[-1].extras)


def _switched_to(state: bytes, extras: dict[str, Any]) -> bytes:
    """The same of a state as it is stored."""
    told = ("session_id", "active_participant_id", "cycle_started_at", "participants", "status", "version")
    stored = strict_json.loads(state)
    return dumps({name: stored[name] for name in told} | extras)
