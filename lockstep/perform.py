"""The one road of a change that somebody asks for: idempotency, rights, validation, limits, apply."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from msgspec import Struct

from lockstep.access import Access, Scope
from lockstep.changes import Changed, Context
from lockstep.commands import Command, canonical_arguments
from lockstep.errors import Conflict
from lockstep.idempotency import Idempotent, Replay
from lockstep.identifiers import with_participant_ids
from lockstep.limits import RateLimits, RateLimitStatus, SwitchLimit
from lockstep.requests import bodies, parameters
from lockstep.requests.kinds import Violations, session_id_in_path, valid_session_id
from lockstep.rules import engine
from lockstep.rules.state import Session
from lockstep.rules.state_json import dumps
from lockstep.rules.steps import Guard, Rule, Step
from lockstep.sessions import Sessions
from lockstep.wire import heads, payloads
from lockstep.wire.answers import STATE, Answer
from lockstep.wire.strict_json import loads


class Change(Struct, frozen=True, kw_only=True):
    """A change as its transport received it. Its token is good, and allows this to be asked for at all.

    `path` and `body` are as they were sent. `received_at_s` (epoch seconds) is when a proxy of ours received
    it, where that says so. `tags` are those of If-Match. `needs_answer` is False where its transport says no
    more of a command than `Applied` does beside the answer, which then is not made. `admission` is called
    before anything is decided; it raises RateLimited. `rates` is None where nothing limits the caller.
    """

    access: Access
    request_id: str | None
    method: str
    path: str
    body: bytes = b""
    idempotency_key: str | None = None
    idempotency_ttl: str | None = None
    received_at_s: float | None = None
    tags: frozenset[str] | None = None
    needs_answer: bool = True
    admission: Callable[[], Awaitable[None]] | None = None
    rates: RateLimits | None = None

    def read_json(self) -> Any:
        """What its body says; None where there is none. Raises MalformedJson."""
        return loads(self.body) if self.body else None

    def identified_by(self, path: str, meaning: Callable[[], Any]) -> Idempotent | None:
        """What it is known again by, if it has an Idempotency-Key. Raises ValidationError.

        `path` is the one way to write its path, and `meaning()` what its body says, however that was spelled.
        """
        if self.idempotency_key is None:
            return None
        kept_s = parameters.kept_s_of(self.idempotency_key, self.idempotency_ttl)
        return Idempotent.of(
            (self.method, path, self.access.caller, self.idempotency_key),
            (self.method, self.path, self.access.subject or "", self.idempotency_key),
            self.body,
            meaning(),
            kept_s,
            self.received_at_s,
        )


class Applied(Struct, frozen=True):
    """What came of a request: its status, its answer as JSON, and the id and the tag of what that tells."""

    status: int
    session_id: str = ""
    answer: bytes = b""
    tag: str = ""
    extras: dict[str, Any] = {}
    """What its transition tells besides the state."""
    is_replayed: bool = False
    rate_limit: RateLimitStatus | None = None


class Performer:
    """Does what callers ask for, once."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def command(self, command: Command, session_id: str, change: Change) -> Applied:
        """Raises LockstepError."""
        body = change.read_json()
        if isinstance(body, dict) and any(body.get(name) is not None for name in command.fields_of_control):
            change.access.require_scope(Scope.CONTROL)
        violations = Violations()
        session_id = session_id_in_path(session_id, violations)
        arguments = command.read(body, violations)
        violations.raise_if_any()
        idempotent = change.identified_by(
            f"/v1/sessions/{session_id}/{command.name}", lambda: canonical_arguments(arguments)
        )
        guards = _guards(change, arguments.pop("expected_version"))
        data = arguments.pop("data")
        if "participants" in arguments:
            # Made once: a rule that is decided again seats the same.
            arguments["participants"] = with_participant_ids(arguments["participants"])
        rule: Rule = partial(command.rule, **arguments)
        if data is not None:
            rule = _with_an_event(rule)
        limit = None
        if command.is_limited_as_switch and change.rates is not None:
            limit = change.rates.switch_limit(session_id)
        if limit is not None:
            rule = _limited(rule, limit)
        context = Context(
            actor=change.access.subject,
            request_id=change.request_id,
            data=data,
            idempotent=idempotent,
            admission=change.admission,
            limit=limit,
            guards=guards,
            # What is kept for a retry may be asked for by the other transport.
            answer=command.answer if change.needs_answer or idempotent is not None else STATE,
        )
        try:
            changed = await self._sessions.apply(session_id, rule, context)
        except Replay as replay:
            return await self._again(replay, command.answer)
        return _applied(200, changed, None if limit is None else limit.status)

    async def create(self, change: Change) -> Applied:
        body = change.read_json()
        _require_named(change.access, body)
        spec = bodies.spec(body)
        context = await self._admitted(change, change.identified_by("/v1/sessions", lambda: spec))
        try:
            return _applied(201, await self._sessions.create(spec, context))
        except Replay as replay:
            return await self._again(replay, STATE)

    async def delete(self, session_id: str, change: Change) -> Applied:
        session_id = valid_session_id(session_id)
        context = await self._admitted(
            change, change.identified_by(f"/v1/sessions/{session_id}", lambda: None)
        )
        try:
            await self._sessions.delete(session_id, context, change.tags)
        except Replay:
            return Applied(204, is_replayed=True)
        return Applied(204)

    async def message(self, session_id: str, change: Change) -> Applied:
        """Tell every client of the session what the body says."""
        body = change.read_json()
        violations = Violations()
        session_id = session_id_in_path(session_id, violations)
        bodies.check_message(body, violations)
        violations.raise_if_any()
        idempotent = change.identified_by(f"/v1/sessions/{session_id}/messages", lambda: body)
        return await self._publish(session_id, change, idempotent, change.body)

    async def disconnect(self, session_id: str, change: Change) -> Applied:
        """End the connections to the session of the subject that the body names, on every process."""
        body = change.read_json()
        violations = Violations()
        session_id = session_id_in_path(session_id, violations)
        said = bodies.DISCONNECT.read(body, "", violations)
        violations.raise_if_any()
        idempotent = change.identified_by(f"/v1/sessions/{session_id}/disconnect", lambda: said)
        notice = payloads.Disconnect(session_id=session_id, subject=said["subject"])
        return await self._publish(session_id, change, idempotent, dumps(notice), is_notice=True)

    async def _publish(
        self,
        session_id: str,
        change: Change,
        idempotent: Idempotent | None,
        message: bytes,
        *,
        is_notice: bool = False,
    ) -> Applied:
        answer = dumps({"session_id": session_id})
        context = await self._admitted(change, idempotent)
        try:
            await self._sessions.publish(session_id, message, context, answer, is_notice=is_notice)
        except Replay as replay:
            return await self._again(replay, STATE)
        return Applied(202, session_id, answer)

    async def _admitted(self, change: Change, idempotent: Idempotent | None) -> Context:
        if change.admission is not None:
            await change.admission()
        return Context(change.access.subject, change.request_id, idempotent=idempotent)

    async def _again(self, replay: Replay, answer: Answer) -> Applied:
        """The answer that was given; where that was too long to be kept, one of the session as it is now."""
        record, kept = replay.record, replay.answer
        if record.status == 204:
            return Applied(204, is_replayed=True)
        state = await self._sessions.read_again(record, is_answer_kept=kept is not None)
        tag = record.tag
        if kept is None:
            head = heads.read_head(state)
            assert head is not None
            tag, kept = head.tag, answer.of_stored(state, record.extras)
        return Applied(record.status, record.session_id, kept, tag, record.extras, is_replayed=True)


def _applied(status: int, changed: Changed, rate_limit: RateLimitStatus | None = None) -> Applied:
    session = changed.session
    extras = changed.transitions[-1].extras if changed.transitions else {}
    return Applied(status, session.session_id, changed.answer, session.tag, extras, rate_limit=rate_limit)


def _guards(change: Change, expected_version: int | None) -> tuple[Guard, ...]:
    """Whose turn it is comes first, then what the sender saw."""
    guards = change.access.guards
    if change.tags is not None:
        guards = (*guards, engine.as_tagged(change.tags))
    if expected_version is not None:
        guards = (*guards, engine.at_version(expected_version))
    return guards


def _limited(rule: Rule, limit: SwitchLimit) -> Rule:
    """What the rule refuses is told before what the limit does."""

    def limited(session: Session, now_ms: int) -> Step:
        step = rule(session, now_ms)
        limit.raise_if_refused()
        return step

    return limited


def _with_an_event(rule: Rule) -> Rule:
    """Data is kept in the event of its command: where there is none, it is refused."""

    def eventful(session: Session, now_ms: int) -> Step:
        step = rule(session, now_ms)
        if not step.transitions:
            raise Conflict(f"Session {session.session_id} stays as it is: there is no event to keep data in")
        return step

    return eventful


def _require_named(access: Access, body: Any) -> None:
    """Raises Forbidden where the session to be created is none that the token is for."""
    named = body.get("session_id") if isinstance(body, dict) else None
    if isinstance(named, str):
        access.require(Scope.ADMIN, named.lower())
    else:
        access.require_of_all(Scope.ADMIN)
