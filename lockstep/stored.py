"""What is read from the store: states, and records of requests that are done once."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lockstep.contract import AlreadyDone, Store
from lockstep.errors import BrokerUnavailable, SessionNotFound, StateCorrupt
from lockstep.idempotency import Idempotent, was_kept_by_former
from lockstep.rules import state_json
from lockstep.rules.state import Session

log = logging.getLogger(__name__)

MAX_COMPLAINTS = 1000


class Stored:
    """The store's answers, understood; it changes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._corrupt: set[str] = set()

    async def load(self, session_id: str, idempotent: Idempotent | None = None) -> bytes:
        """The stored state. Raises SessionNotFound, and Replay where the request was done before."""
        if idempotent is None:
            (raw,) = await self._store.load([session_id])
        else:
            raw = await self.recall(session_id, idempotent)
        if raw is None:
            raise SessionNotFound(session_id)
        return raw

    async def recall(self, session_id: str, idempotent: Idempotent) -> bytes | None:
        """The stored state, if any. Raises Replay where the request was done before."""
        keys = (idempotent.key,) if idempotent.former_key is None else (idempotent.key, idempotent.former_key)
        try:
            raw, kept, *formerly_kept = await self._store.recall(session_id, *keys)
        except BrokerUnavailable:
            # A proxy, or its caller, may have sent it to another process before, which did it.
            raise BrokerUnavailable("unknown") from None
        # What this version keeps under the former name may be another caller's.
        if kept is None and formerly_kept and formerly_kept[0] and was_kept_by_former(formerly_kept[0]):
            kept = formerly_kept[0]
        if kept is not None:
            raise idempotent.replay(kept)
        return raw

    async def refuse_if_formerly_done(self, session_id: str, idempotent: Idempotent | None) -> None:
        """Raises Replay where a process of version 0.1 did it. The store itself finds what others did."""
        if idempotent is not None and idempotent.former_key is not None:
            await self.recall(session_id, idempotent)

    @asynccontextmanager
    async def looked_up(self, session_id: str, idempotent: Idempotent | None) -> AsyncIterator[None]:
        """Around a change, with which the store itself looks for a record: where it could not, this does.

        Else "not_applied" would be said of a request that another process has done. Raises Replay where the
        request was done before.
        """
        try:
            yield
        except AlreadyDone as already:
            assert idempotent is not None
            raise idempotent.replay(already.content) from None
        except BrokerUnavailable as error:
            if idempotent is not None and error.details == {"outcome": "not_applied"}:
                await self.recall(session_id, idempotent)
            raise

    def decode(self, session_id: str, raw: bytes) -> Session:
        """Raises StateCorrupt."""
        try:
            session = state_json.from_json(raw)
            if session.session_id != session_id:
                raise ValueError("it is another session's")
            return session
        except ValueError as error:
            raise self.corrupt(session_id, repr(error)) from None

    def corrupt(self, session_id: str, complaint: str) -> StateCorrupt:
        """The error to raise; it is logged once per session."""
        if session_id not in self._corrupt:
            if len(self._corrupt) >= MAX_COMPLAINTS:
                self._corrupt.clear()  # so that it cannot grow for ever
            self._corrupt.add(session_id)
            log.error(
                "what is stored of this session cannot be read (delete it, or restore the key): %s",
                complaint,
                extra={"session_id": session_id},
            )
        return StateCorrupt(session_id)
