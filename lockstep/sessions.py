"""Load, settle, decide, commit: the one place where a session can change."""

import asyncio
import logging
import random
import string
import uuid
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from msgspec import Raw, Struct
from msgspec.structs import replace

from lockstep.contract import Agenda, AlreadyDone, Bus, Clock, Commit, EpochTooLow, History, Outcome, Store
from lockstep.errors import (
    BrokerUnavailable,
    Conflict,
    EventsGone,
    LockstepError,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    StateCorrupt,
)
from lockstep.idempotency import Idempotent, Record, was_kept_by_former
from lockstep.limits import SwitchLimit
from lockstep.metrics import Metrics
from lockstep.rules import engine, history, state_json
from lockstep.rules.engine import Rule, Spec, Step
from lockstep.rules.state import TERMINAL, Session, Status
from lockstep.session_locks import Turns
from lockstep.wire import heads

log = logging.getLogger(__name__)

GIVE_UP_S = 2.0
WRONG_TIME_PAUSE_S = 0.002
# What may leave a running clock at 0.
CAN_BE_DUE_AT_ONCE = frozenset({"adjusted", "resumed"})
# For one page of a list: so many sessions are looked at, at a time and in all; those of which the status fits
# are loaded few at a time. States of 1,000 participants are large, and nobody else is served meanwhile.
SCANNED_AT_ONCE = 100
MAX_SCANNED = 2000
LOADED_AT_ONCE = 16
MAX_LISTED_BYTES = 262_144
# An answer with a page of events is 256 KiB at most; the rest of it is what stands around them.
MAX_EVENTS_BYTES = 262_144 - 128
_BASE36 = string.digits + string.ascii_lowercase
_CHANCE = random.Random()  # seeded by the system; asking it each time costs a system call


class Lifetimes(Struct, frozen=True):
    """How long a session is kept after its last command, by status; all in ms."""

    pending_ms: int = 24 * 3_600_000
    running_ms: int = 24 * 3_600_000
    running_without_deadline_ms: int = 48 * 3_600_000
    paused_ms: int = 7 * 24 * 3_600_000
    terminal_ms: int = 3_600_000

    def lapses_at_ms(self, session: Session, now_ms: int) -> int:
        """When the session, changed at `now_ms`, is given up."""
        if session.status in TERMINAL:
            return now_ms + self.terminal_ms
        if session.status is Status.PENDING:
            return now_ms + self.pending_ms
        if session.status is Status.PAUSED:
            return now_ms + self.paused_ms
        deadline_ms = session.deadline_ms
        if deadline_ms is None:
            return now_ms + self.running_without_deadline_ms
        return max(now_ms, deadline_ms) + self.running_ms


class Origin(Struct, frozen=True):
    """Who asked for a change, and in which request; kept in its events.

    `once` is given where the request shall be done once, however often it comes; `admission` where a limit
    may still refuse it: called when the state has been read, before anything is decided. What `limit` allows
    is counted together with the change.
    """

    actor: str | None = None
    request_id: str | None = None
    once: Idempotent | None = None
    admission: Callable[[], Awaitable[None]] | None = None
    limit: SwitchLimit | None = None


NOBODY = Origin()

Place = tuple[int, str]
"""Where a session stands in the list of all: (instant of lapse in ms, id)."""

Answer = Callable[[Step], bytes]
"""What a request that makes this step is answered."""


def answer_state(step: Step) -> bytes:
    return state_json.to_json(step.session)


class SessionBroker(Store, Agenda, Bus, Clock, Protocol):
    """What sessions ask of a broker."""


class Sessions:
    """What can be done with sessions. It tells nobody of a change: the broker does."""

    def __init__(self, broker: SessionBroker, lifetimes: Lifetimes, metrics: Metrics) -> None:
        self._metrics = metrics
        self._broker = broker
        self._lifetimes = lifetimes
        self._turns = Turns()
        self._corrupt: set[str] = set()

    async def create(self, spec: Spec, origin: Origin = NOBODY, answer: Answer = answer_state) -> Step:
        """Raises SessionExists, and leaves what is there untouched; Replay where it was done before."""
        spec = with_ids(spec)
        await self._refuse_if_formerly_done(spec.session_id, origin.once)
        give_up_at = asyncio.get_running_loop().time() + GIVE_UP_S
        epoch_ms = 0
        while asyncio.get_running_loop().time() < give_up_at:
            now_ms = self._broker.now_ms()
            created = engine.create(spec, new_epoch(max(now_ms, epoch_ms)), now_ms)
            try:
                async with self._looked_up(spec.session_id, origin.once):
                    outcome, step = await self._commit(None, created, 0, now_ms, origin, answer)
            except EpochTooLow as error:
                epoch_ms = epoch_instant_ms(error.last) + 1
                continue
            if outcome is Outcome.APPLIED:
                log.info("session created", extra={"session_id": spec.session_id})
                return step
            if outcome is Outcome.CONFLICT:
                raise SessionExists(spec.session_id)
            await asyncio.sleep(WRONG_TIME_PAUSE_S)
        raise SessionBusy(spec.session_id)

    async def read(self, session_id: str) -> bytes:
        """The state as stored, settled to now. Raises SessionNotFound, StateCorrupt, BrokerUnavailable.

        While the store takes no changes what is due is not settled: the state is given as it is.
        """
        raw = await self._load(session_id)
        head = heads.read_head(raw)
        if head is None or head.session_id != session_id:
            raise self._corrupted(session_id, "it does not begin like one")
        if head.deadline_ms is None or head.deadline_ms > self._broker.now_ms():
            return raw
        try:
            return state_json.to_json((await self.settle(session_id)).session)
        except BrokerUnavailable as error:
            if error.details != {"outcome": "not_applied"}:
                raise
            return raw  # the store takes no changes now: what it has can be read all the same

    async def settle(self, session_id: str) -> Step:
        """Apply what has fallen due, if anything has."""
        return await self.apply(session_id, engine.settle)

    async def apply(
        self, session_id: str, rule: Rule, origin: Origin = NOBODY, answer: Answer = answer_state
    ) -> Step:
        """Decide by `rule` on the stored state and commit; on a conflict, decide again.

        What was due before is committed also when the rule refuses. Raises what the rule raises
        (a Conflict carries the current state), SessionNotFound, SessionBusy after two seconds of
        losing to other processes, StateCorrupt and BrokerUnavailable; Replay where it was done before.
        """
        try:
            await self._turns.take(session_id, GIVE_UP_S)
        except TimeoutError:
            raise SessionBusy(session_id) from None
        try:
            step = await self._apply(session_id, rule, origin, answer)
            if step.transitions and step.transitions[-1].type in CAN_BE_DUE_AT_ONCE:
                await self._settle_what_is_due_at_once(step.session)
            return step
        finally:
            self._turns.give(session_id)

    async def _settle_what_is_due_at_once(self, session: Session) -> None:
        """Where a clock was taken to 0: the broker's may be behind, and a timer would wait for that."""
        if not engine.is_due(session, session.updated_at_ms):
            return
        try:
            await self._apply(session.session_id, engine.settle, NOBODY, answer_state)
        except LockstepError as error:
            # The change itself is made and will be answered; a sweep finds what it left.
            log.warning(
                "a clock has run out, and storing that is tried again: %s",
                error.message,
                extra={"session_id": session.session_id},
            )

    async def _apply(self, session_id: str, rule: Rule, origin: Origin, answer: Answer) -> Step:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        while loop.time() < give_up_at:
            raw = await self._load(session_id, origin.once)
            if origin.admission is not None:
                await origin.admission()
            session = self._decode(session_id, raw)
            now_ms = max(self._broker.now_ms(), session.updated_at_ms)
            step = engine.settle(session, now_ms)
            settled = len(step.transitions)
            is_settled = not step.transitions or not engine.is_due(step.session, now_ms)
            refusal = None
            if is_settled:
                try:
                    decided = rule(step.session, now_ms)
                    if origin.limit is not None:
                        origin.limit.raise_if_refused()
                    step = step.followed_by(decided)
                except LockstepError as error:
                    refusal = error
            if step.transitions:
                outcome, step = await self._commit(session, step, settled, now_ms, origin, answer)
                if outcome is Outcome.WRONG_TIME:
                    # The clock was just measured anew; what is not due yet will be within moments.
                    await asyncio.sleep(WRONG_TIME_PAUSE_S)
                    continue
                if outcome is Outcome.CONFLICT or outcome is Outcome.LIMITED:
                    # A limit refuses the next attempt; what fell due is committed then all the same.
                    continue
            if refusal is not None:
                if isinstance(refusal, Conflict):
                    refusal.details = {"state": state_json.to_dict(step.session)}
                raise refusal
            if is_settled:
                return step
            # More fell due than fits one commit; others have their turn in between. That is no losing.
            give_up_at = loop.time() + GIVE_UP_S
            await asyncio.sleep(0)
        raise SessionBusy(session_id)

    async def delete(
        self, session_id: str, origin: Origin = NOBODY, tags: frozenset[str] | None = None
    ) -> None:
        """Remove the session, if there is one; its clients are told by the broker.

        `tags` are those of If-Match. Raises PreconditionFailed where they do not hold, SessionBusy after two
        seconds of losing to those who change it; Replay where it was done before.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + GIVE_UP_S
        once = origin.once
        done = once.done(204, session_id, new_commit(), b"") if once else None
        while loop.time() < give_up_at:
            try:
                async with self._looked_up(session_id, once):
                    expected = await self._deletable(session_id, once, tags)
                    if once is not None:
                        once.require_in_time()
                    is_deleted = await self._broker.delete(session_id, expected, done)
            except AlreadyDone as already:
                assert once is not None
                raise once.replay(already.content) from None
            if is_deleted:
                log.info("session deleted", extra={"session_id": session_id})
            if is_deleted or tags is None or not expected:
                return
        raise SessionBusy(session_id)

    async def _deletable(
        self, session_id: str, once: Idempotent | None, tags: frozenset[str] | None
    ) -> bytes:
        """What the session to be deleted begins with, and no later one does; empty where there is none."""
        if tags is None:
            (beginning,) = await self._broker.beginnings([session_id])
            # By no more than the broker goes by: what is damaged behind that is to be deleted, too.
            epoch = heads.epoch_of(session_id, beginning or b"")
            return heads.beginning_of(session_id, epoch) if epoch else b""
        try:
            await self._load(session_id, once)
            session = (await self.settle(session_id)).session
        except SessionNotFound:
            return b""
        if not session.is_one_of(tags):
            refusal = engine.not_as_matched(session)
            refusal.details = {"state": state_json.to_dict(session)}
            raise refusal
        return heads.beginning(session)

    async def publish(
        self, session_id: str, message: bytes, origin: Origin = NOBODY, answer: bytes = b""
    ) -> None:
        """Send a message to every client of an existing session. Raises Replay where it was sent before."""
        once = origin.once
        done = None
        if once is not None:
            await self._refuse_if_formerly_done(session_id, once)
            once.require_in_time()
            done = once.done(202, session_id, new_commit(), answer)
        try:
            async with self._looked_up(session_id, once):
                if not await self._broker.publish(session_id, message, done):
                    raise SessionNotFound(session_id)
        except AlreadyDone as already:
            assert once is not None
            raise once.replay(already.content) from None

    async def read_again(self, record: Record, *, is_answer_kept: bool) -> bytes:
        """The session that a request was done to; settled to now, where that is what it is answered.

        Raises SessionNotFound where it is gone, Conflict where it was created anew since.
        """
        session_id = record.session_id
        raw = await (self._load(session_id) if is_answer_kept else self.read(session_id))
        head = heads.read_head(raw)
        if head is not None and record.session_epoch not in ("", head.position[0]):
            raise Conflict(
                f"Session {session_id} was created anew since this request was done", {"state": Raw(raw)}
            )
        return raw

    async def events(self, session_id: str, since: int | None, epoch: str | None) -> History:
        """A page of the events after version `since` (None: from the oldest that is kept).

        Raises EventsGone where some of them are no longer kept, or are of another epoch.
        """
        await self.read(session_id)
        history = await self._broker.history(session_id, since or 0, MAX_EVENTS_BYTES)
        if history is None:
            raise SessionNotFound(session_id)
        if epoch is not None and epoch != history.epoch:
            raise EventsGone(f"Session {session_id} was created anew: its epoch is {history.epoch}")
        if since is not None and since + 1 < history.first_version:
            raise EventsGone(f"Events of session {session_id} are kept from version {history.first_version}")
        return history

    async def list(self, status: Status | None, limit: int, after: Place) -> tuple[list[bytes], Place | None]:
        """Up to `limit` states as stored, and where to go on; None at the end.

        There may be fewer before the end: no more than `MAX_SCANNED` are looked at for one page, and it has
        no more than `MAX_LISTED_BYTES`, except where the first state alone has.
        """
        found: list[bytes] = []
        found_bytes = 0
        for _ in range(MAX_SCANNED // SCANNED_AT_ONCE):
            page = await self._broker.page(after, SCANNED_AT_ONCE)
            beginnings = await self._broker.beginnings([session_id for _, session_id in page])
            fitting = [
                place
                for place, beginning in zip(page, beginnings, strict=True)
                if beginning is not None
                and (is_of := heads.read_status(beginning)) is not None
                and status in (None, is_of)
            ]
            async for place, raw in self._loaded(fitting):
                if self._has_status(raw, status):
                    found_bytes += len(raw) + 1
                    if found and found_bytes > MAX_LISTED_BYTES:
                        return found, after
                    found.append(raw)
                after = place
                if len(found) == limit:
                    return found, after
            if len(page) < SCANNED_AT_ONCE:
                return found, None
            after = page[-1]
            await asyncio.sleep(0)
        return found, after

    async def _loaded(self, places: Sequence[Place]) -> AsyncIterator[tuple[Place, bytes]]:
        """The states that are still there: few at first, since most of them may not be wanted any more."""
        count = 1
        while places:
            some, places = places[:count], places[count:]
            states = await self._broker.load([session_id for _, session_id in some])
            for place, raw in zip(some, states, strict=True):
                if raw is not None:
                    yield place, raw
            count = min(2 * count, LOADED_AT_ONCE)

    def _has_status(self, raw: bytes, status: Status | None) -> bool:
        try:
            return status in (None, state_json.from_json(raw).status)
        except ValueError:
            return False  # whoever asks for it alone is told that it is corrupt

    async def _commit(
        self,
        before: Session | None,
        step: Step,
        settled: int,
        now_ms: int,
        origin: Origin,
        answer: Answer,
    ) -> tuple[Outcome, Step]:
        """Offer the step; the first `settled` of its transitions happened by themselves."""
        session = replace(step.session, commit=new_commit())
        last = replace(step.transitions[-1], session=session)
        transitions = (*step.transitions[:-1], last)
        by_themselves, decided = transitions[:settled], transitions[settled:]
        between = by_themselves[-1].session if by_themselves else before
        offered = Step(session, transitions)
        once = origin.once if decided else None
        done = None
        if once is not None:
            once.require_in_time()
            done = once.done(
                200 if before else 201,
                session.session_id,
                session.commit,
                answer(offered),
                epoch=session.epoch,
                tag=session.tag,
                extras=last.extras,
            )
        commit = Commit(
            session_id=session.session_id,
            expected=heads.beginning(before) if before else b"",
            state=state_json.to_json(session),
            beginning=heads.beginning(session),
            first_version=transitions[0].session.version,
            events=(
                *history.events(before, by_themselves),
                *history.events(between, decided, origin.actor, origin.request_id),
            ),
            now_ms=now_ms,
            deadline_ms=session.deadline_ms,
            due_ms=by_themselves[-1].at_ms if by_themselves else None,
            lapses_at_ms=self._lifetimes.lapses_at_ms(session, now_ms),
            # Firing prolongs nothing, so that an abandoned session ends.
            prolongs=bool(decided),
            not_before_ms=before.updated_at_ms if before else 0,
            record=done,
            charge=origin.limit.charge if origin.limit is not None and decided else None,
            on_counted=origin.limit.on_counted if origin.limit is not None else None,
        )
        try:
            outcome = await self._broker.commit(commit)
            if outcome is Outcome.APPLIED:
                for transition in by_themselves:
                    self._metrics.expiry_lateness.observe(max(0, now_ms - transition.at_ms) / 1000)
            return outcome, offered
        except AlreadyDone as already:
            assert once is not None
            raise once.replay(already.content) from None

    async def _load(self, session_id: str, once: Idempotent | None = None) -> bytes:
        """The stored state. Raises Replay where the request was done before."""
        if once is None:
            (raw,) = await self._broker.load([session_id])
        else:
            raw = await self._recall(session_id, once)
        if raw is None:
            raise SessionNotFound(session_id)
        return raw

    async def _recall(self, session_id: str, once: Idempotent) -> bytes | None:
        """The stored state, if any. Raises Replay where the request was done before."""
        keys = (once.key,) if once.former_key is None else (once.key, once.former_key)
        try:
            raw, kept, *formerly_kept = await self._broker.recall(session_id, *keys)
        except BrokerUnavailable:
            # A proxy, or its caller, may have sent it to another process before, which did it.
            raise BrokerUnavailable("unknown") from None
        # What we keep by the former name ourselves may be another caller's.
        if kept is None and formerly_kept and formerly_kept[0] and was_kept_by_former(formerly_kept[0]):
            kept = formerly_kept[0]
        if kept is not None:
            raise once.replay(kept)
        return raw

    @asynccontextmanager
    async def _looked_up(self, session_id: str, once: Idempotent | None) -> AsyncIterator[None]:
        """Around a change, with which the store itself looks for a record: where it could not, we do.

        Else "not_applied" would be said of a request that another process has done.
        """
        try:
            yield
        except BrokerUnavailable as error:
            if once is not None and error.details == {"outcome": "not_applied"}:
                await self._recall(session_id, once)
            raise

    async def _refuse_if_formerly_done(self, session_id: str, once: Idempotent | None) -> None:
        """Raises Replay where a process of version 0.1 did it; what others did the store finds by itself."""
        if once is not None and once.former_key is not None:
            await self._recall(session_id, once)

    def _decode(self, session_id: str, raw: bytes) -> Session:
        try:
            session = state_json.from_json(raw)
            if session.session_id != session_id:
                raise ValueError("it is another session's")
            return session
        except ValueError as error:
            raise self._corrupted(session_id, repr(error)) from None

    def _corrupted(self, session_id: str, complaint: str) -> StateCorrupt:
        if session_id not in self._corrupt:
            # Once per session; cleared when many have come, so that it cannot grow for ever.
            if len(self._corrupt) >= 1000:
                self._corrupt.clear()
            self._corrupt.add(session_id)
            log.error(
                "what is stored of this session cannot be read (delete it, or restore the key): %s",
                complaint,
                extra={"session_id": session_id},
            )
        return StateCorrupt(session_id)


def with_ids(spec: Spec) -> Spec:
    """Where no id is given one is made."""
    seats = spec.participants
    if not all(seat.participant_id for seat in seats):
        seats = tuple(
            replace(seat, participant_id=seat.participant_id or str(uuid.uuid4())) for seat in seats
        )
    return replace(spec, session_id=spec.session_id or str(uuid.uuid4()), participants=seats)


def new_commit() -> str:
    """8 characters that no other commit has had: to be unique, not to be secret."""
    return urlsafe_b64encode(_CHANCE.randbytes(6)).decode()


def epoch_instant_ms(epoch: str) -> int:
    """The instant that an epoch was made of."""
    return int(epoch[:9], 36)


def new_epoch(now_ms: int) -> str:
    """The instant in base 36 (9 characters) and 4 random ones: a later creation compares greater."""
    digits = ""
    while now_ms:
        now_ms, digit = divmod(now_ms, 36)
        digits = _BASE36[digit] + digits
    return digits.zfill(9) + "".join(_CHANCE.choice(_BASE36) for _ in range(4))
