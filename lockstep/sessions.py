"""Load, settle, decide, commit: the one place where a session can change."""

import asyncio
import logging
from typing import Protocol

from msgspec import Raw
from msgspec.structs import replace

from lockstep.changes import NOBODY, Changed, Context
from lockstep.contract import AlreadyDone, Bus, Clock, Commit, EpochTooLow, History, Outcome, Store
from lockstep.errors import (
    BrokerUnavailable,
    Conflict,
    EventsGone,
    LockstepError,
    SessionBusy,
    SessionExists,
    SessionNotFound,
)
from lockstep.idempotency import Idempotent, Record
from lockstep.identifiers import epoch_instant_ms, new_commit, new_epoch, with_ids
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.rules import engine, history, state_json
from lockstep.rules.engine import Decision, Spec
from lockstep.rules.state import TERMINAL, Session
from lockstep.rules.steps import Rule, Step
from lockstep.session_locks import SessionLocks
from lockstep.stored import Stored
from lockstep.wire import heads, updates

log = logging.getLogger(__name__)

GIVE_UP_S = 2.0
WRONG_TIME_PAUSE_S = 0.002
# What may leave a running clock at 0.
CAN_BE_DUE_AT_ONCE = frozenset({"adjusted", "resumed"})
# An answer with a page of events is 256 KiB at most; the rest of it is what stands around them.
MAX_EVENTS_BYTES = 262_144 - 128


class SessionBroker(Store, Bus, Clock, Protocol):
    """What sessions ask of a broker."""


class Sessions:
    """What can be done with sessions. Clients hear of a change from the broker, never from here."""

    def __init__(self, broker: SessionBroker, lifetimes: Lifetimes, metrics: Metrics) -> None:
        self._metrics = metrics
        self._broker = broker
        self._stored = Stored(broker)
        self._lifetimes = lifetimes
        self._locks = SessionLocks()

    # --- reading ---------------------------------------------------------------------------------

    async def read(self, session_id: str) -> bytes:
        """The state as stored, settled to now. Raises SessionNotFound, StateCorrupt, BrokerUnavailable.

        While the store takes no changes, what is due is not settled: the state is given as it is.
        """
        raw = await self._stored.load(session_id)
        head = heads.read_head(raw)
        if head is None or head.session_id != session_id:
            raise self._stored.corrupt(session_id, "it does not begin like one")
        if head.deadline_ms is None or head.deadline_ms > self._broker.now_ms(session_id):
            return raw
        try:
            return state_json.to_json((await self.settle(session_id)).session)
        except BrokerUnavailable as error:
            if error.details != {"outcome": "not_applied"}:
                raise
            return raw

    async def read_again(self, record: Record, *, is_answer_kept: bool) -> bytes:
        """The session that a request was done to; settled to now, where that is what it is answered.

        Raises SessionNotFound where it is gone, Conflict where it was created anew since.
        """
        session_id = record.session_id
        raw = await (self._stored.load(session_id) if is_answer_kept else self.read(session_id))
        head = heads.read_head(raw)
        if head is not None and record.session_epoch not in ("", head.order[0]):
            raise Conflict(
                f"Session {session_id} was created anew since this request was done", {"state": Raw(raw)}
            )
        return raw

    async def events(self, session_id: str, since: int | None, epoch: str | None) -> History:
        """A page of the events after version `since` (None: from the oldest that is kept).

        Raises EventsGone where some of them are no longer kept, or are of another epoch.
        """
        await self.read(session_id)
        page = await self._broker.history(session_id, since or 0, MAX_EVENTS_BYTES)
        if page is None:
            raise SessionNotFound(session_id)
        if epoch is not None and epoch != page.epoch:
            raise EventsGone(f"Session {session_id} was created anew: its epoch is {page.epoch}")
        if since is not None and since + 1 < page.first_version:
            raise EventsGone(f"Events of session {session_id} are kept from version {page.first_version}")
        return page

    # --- creating --------------------------------------------------------------------------------

    async def create(self, spec: Spec, context: Context = NOBODY) -> Changed:
        """Raises SessionExists, and leaves what is there untouched; Replay where it was done before."""
        key = "" if context.idempotent is None else context.idempotent.key
        spec = with_ids(spec, lambda made: not key or self._broker.keeps_together(made, key))
        await self._stored.refuse_if_formerly_done(spec.session_id, context.idempotent)
        give_up_at = asyncio.get_running_loop().time() + GIVE_UP_S
        epoch_ms = 0
        while asyncio.get_running_loop().time() < give_up_at:
            now_ms = self._broker.now_ms(spec.session_id)
            created = engine.create(spec, new_epoch(max(now_ms, epoch_ms)), now_ms)
            try:
                async with self._stored.looked_up(spec.session_id, context.idempotent):
                    outcome, changed = await self._commit(None, Decision(created, 0), now_ms, context)
            except EpochTooLow as error:
                epoch_ms = epoch_instant_ms(error.last) + 1
                continue
            if outcome is Outcome.APPLIED:
                log.info("session created", extra={"session_id": spec.session_id})
                return changed
            if outcome is Outcome.CONFLICT:
                raise SessionExists(spec.session_id)
            await asyncio.sleep(WRONG_TIME_PAUSE_S)
        raise SessionBusy(spec.session_id)

    # --- changing --------------------------------------------------------------------------------

    async def settle(self, session_id: str) -> Changed:
        """Apply what has fallen due, if anything has."""
        return await self.apply(session_id, engine.settle)

    async def apply(self, session_id: str, rule: Rule, context: Context = NOBODY) -> Changed:
        """Decide by `rule` on the stored state and commit; on a conflict, decide again.

        What was due before is committed also when the rule refuses. Raises what the rule raises
        (a Conflict carries the current state), SessionNotFound, SessionBusy after two seconds of
        losing to other processes, StateCorrupt and BrokerUnavailable; Replay where it was done before.
        """
        try:
            await self._locks.acquire(session_id, GIVE_UP_S)
        except TimeoutError:
            raise SessionBusy(session_id) from None
        try:
            changed = await self._apply(session_id, rule, context)
            if changed.transitions and changed.transitions[-1].type in CAN_BE_DUE_AT_ONCE:
                await self._settle_what_is_due_at_once(changed.session)
            return changed
        finally:
            self._locks.release(session_id)

    async def _settle_what_is_due_at_once(self, session: Session) -> None:
        """Where a clock was taken to 0: the broker's may be behind, and a timer would wait for that."""
        if not engine.is_due(session, session.updated_at_ms):
            return
        try:
            await self._apply(session.session_id, engine.settle, NOBODY)
        except LockstepError as error:
            # The change itself is made and will be answered; a sweep finds what it left.
            log.warning(
                "a clock has run out, and storing that is tried again: %s",
                error.message,
                extra={"session_id": session.session_id},
            )

    async def _apply(self, session_id: str, rule: Rule, context: Context) -> Changed:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        while loop.time() < give_up_at:
            raw = await self._stored.load(session_id, context.idempotent)
            if context.admission is not None:
                await context.admission()
            session = self._stored.decode(session_id, raw)
            now_ms = max(self._broker.now_ms(session_id), session.updated_at_ms)
            decision = engine.decide(session, now_ms, rule, context.guards)
            if decision.step.transitions:
                outcome, changed = await self._commit(session, decision, now_ms, context)
                if outcome is Outcome.WRONG_TIME:
                    # The clock was just measured anew; what is not due yet will be within moments.
                    await asyncio.sleep(WRONG_TIME_PAUSE_S)
                    continue
                if outcome is Outcome.CONFLICT or outcome is Outcome.LIMITED:
                    # A limit refuses the next attempt; what fell due is committed then all the same.
                    continue
            else:
                changed = Changed(session, (), b"" if decision.refusal else state_json.to_json(session))
            if decision.refusal is not None:
                raise _with_state(decision.refusal, changed.session)
            if decision.is_settled:
                return changed
            # More fell due than fits one commit; others have their turn in between. That is no losing.
            give_up_at = loop.time() + GIVE_UP_S
            await asyncio.sleep(0)
        raise SessionBusy(session_id)

    async def _commit(
        self, before: Session | None, decision: Decision, now_ms: int, context: Context
    ) -> tuple[Outcome, Changed]:
        """Offer what was decided to the store."""
        step, settled, idempotent = decision.step, decision.settled, context.idempotent
        session = replace(step.session, commit=new_commit())
        last = replace(step.transitions[-1], session=session)
        transitions = (*step.transitions[:-1], last)
        by_themselves, decided = transitions[:settled], transitions[settled:]
        between = by_themselves[-1].session if by_themselves else before
        state = state_json.to_json(session)
        answer = context.answer.of_step(Step(session, transitions), state) if decided else state
        changed = Changed(session, transitions, answer)
        done = None
        if idempotent is not None and decided:
            idempotent.require_in_time()
            done = idempotent.done(
                200 if before else 201,
                session.session_id,
                session.commit,
                changed.answer,
                epoch=session.epoch,
                tag=session.tag,
                extras=last.extras,
            )
        events = (
            *history.events(before, by_themselves),
            *history.events(between, decided, context.actor, context.request_id, context.data),
        )
        commit = Commit(
            session_id=session.session_id,
            expected=heads.beginning(before) if before else b"",
            state=state,
            beginning=heads.beginning(session),
            first_version=transitions[0].session.version,
            events=tuple(state_json.dumps(event) for event in events),
            update=updates.update_of(session.session_id, now_ms, before.position, session.position, events)
            if before
            else b"",
            now_ms=now_ms,
            deadline_ms=session.deadline_ms,
            due_ms=by_themselves[-1].at_ms if by_themselves else None,
            lapses_at_ms=self._lifetimes.lapses_at_ms(session, now_ms),
            # An expiry prolongs nothing, so that an abandoned session ends, nor does what follows its end.
            prolongs=bool(decided) and (between is None or between.status not in TERMINAL),
            not_before_ms=before.updated_at_ms if before else 0,
            record=done,
            charge=context.limit.charge if context.limit is not None and decided else None,
            on_counted=context.limit.on_counted if context.limit is not None else None,
        )
        try:
            outcome = await self._broker.commit(commit)
        except AlreadyDone as already:
            assert idempotent is not None
            raise idempotent.replay(already.content) from None
        if outcome is Outcome.APPLIED:
            for transition in by_themselves:
                self._metrics.expiry_lateness.observe(max(0, now_ms - transition.at_ms) / 1000)
        return outcome, changed

    # --- deleting, and telling clients -----------------------------------------------------------

    async def delete(
        self, session_id: str, context: Context = NOBODY, tags: frozenset[str] | None = None
    ) -> None:
        """Remove the session, if there is one; its clients are told by the broker.

        `tags` are those of If-Match. Raises PreconditionFailed where they do not hold, SessionBusy after two
        seconds of losing to those who change it; Replay where it was done before.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        idempotent = context.idempotent
        done = idempotent.done(204, session_id, new_commit(), b"") if idempotent else None
        while loop.time() < give_up_at:
            async with self._stored.looked_up(session_id, idempotent):
                expected = await self._deletable(session_id, idempotent, tags)
                if idempotent is not None:
                    idempotent.require_in_time()
                is_deleted = await self._broker.delete(session_id, expected, done)
            if is_deleted:
                log.info("session deleted", extra={"session_id": session_id})
            if is_deleted or tags is None or not expected:
                return
        raise SessionBusy(session_id)

    async def _deletable(
        self, session_id: str, idempotent: Idempotent | None, tags: frozenset[str] | None
    ) -> bytes:
        """What the session to be deleted begins with, and no later one does; empty where there is none."""
        if tags is None:
            (beginning,) = await self._broker.beginnings([session_id])
            # By no more than the broker goes by: what is damaged behind that is to be deleted, too.
            epoch = heads.epoch_of(session_id, beginning or b"")
            return heads.beginning_of(session_id, epoch) if epoch else b""
        try:
            await self._stored.load(session_id, idempotent)
            session = (await self.settle(session_id)).session
        except SessionNotFound:
            return b""
        if not session.is_one_of(tags):
            raise _with_state(engine.not_as_tagged(session), session)
        return heads.beginning(session)

    async def publish(
        self,
        session_id: str,
        message: bytes,
        context: Context = NOBODY,
        answer: bytes = b"",
        *,
        is_notice: bool = False,
    ) -> None:
        """Send a message to every client of an existing session, or a notice to every process.

        Raises Replay where it was sent before.
        """
        idempotent = context.idempotent
        done = None
        if idempotent is not None:
            await self._stored.refuse_if_formerly_done(session_id, idempotent)
            idempotent.require_in_time()
            done = idempotent.done(202, session_id, new_commit(), answer)
        async with self._stored.looked_up(session_id, idempotent):
            if not await self._broker.publish(session_id, message, done, is_notice=is_notice):
                raise SessionNotFound(session_id)


def _with_state(refusal: LockstepError, session: Session) -> LockstepError:
    """A refusal for a conflict tells what the session is now."""
    if isinstance(refusal, Conflict):
        refusal.details = {"state": state_json.to_dict(session)}
        refusal.position = session.position
    return refusal
