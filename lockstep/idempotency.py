"""A request that is done once, however often it is sent: what is kept of it, and how it is told again."""

import json
import time
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from lockstep.contract import IdempotencyRecord
from lockstep.errors import IdempotencyKeyReused, ReceivedTooLongAgo
from lockstep.requests.parameters import MIN_KEPT_S
from lockstep.rules.state_json import dumps

# Longer answers are not kept: they are told again as the state that is current then.
MAX_KEPT_ANSWER_BYTES = 4096


class Record(Struct, frozen=True, omit_defaults=True):
    """What is kept of a request that was done; its answer follows in the store, if it `is_kept`.

    Fields without a default are those that version 0.1 reads, and `body` is all that it compares: the hash
    of the body's bytes. `meaning` is that of what the body says, however it was spelled.
    """

    body: str
    status: int
    session_id: str
    tag: str
    commit: str  # so that the record, too, tells one attempt from another
    is_kept: bool
    meaning: str = ""
    epoch: str = ""
    extras: dict[str, Any] = {}

    @property
    def session_epoch(self) -> str:
        """Of the session that the request was done to; version 0.1 tells it in the tag, or not at all."""
        return self.epoch or self.tag.strip('"').partition("-")[0]


_RECORD = msgspec.json.Decoder(Record)


class Replay(Exception):
    """The request was done before. `answer` is None where it was too long to be kept."""

    def __init__(self, record: Record, answer: bytes | None) -> None:
        super().__init__("the request was done before")
        self.record = record
        self.answer = answer


class Idempotent(Struct, frozen=True):
    """A request with an Idempotency-Key.

    `key` names it in the store, which keeps its record for `kept_ms`. Where version 0.1 names it otherwise,
    by `former_key`, the record is kept there, too, for such processes to find, and theirs is found.
    `received_at_s` is when a proxy got it (epoch seconds), where that is known.
    """

    key: str
    former_key: str | None
    body_hash: str
    meaning_hash: str
    kept_ms: int
    received_at_s: float | None = None

    @classmethod
    def of(
        cls,
        name: tuple[str, str, str, str],
        former_name: tuple[str, str, str, str],
        body: bytes,
        meaning: Any,
        kept_s: int,
        received_at_s: float | None = None,
    ) -> "Idempotent":
        """`name` is (method, path, caller, Idempotency-Key), `meaning` what `body` says, as builtins."""
        return cls(
            _key(name),
            None if former_name == name else _key(former_name),
            blake2b(body, digest_size=16).hexdigest(),
            blake2b(canonical(meaning), digest_size=16).hexdigest(),
            max(MIN_KEPT_S, kept_s) * 1000,
            received_at_s,
        )

    def done(
        self,
        status: int,
        session_id: str,
        commit: str,
        answer: bytes,
        *,
        epoch: str = "",
        tag: str = "",
        extras: dict[str, Any] | None = None,
    ) -> IdempotencyRecord:
        """What is stored together with the change."""
        is_kept = len(answer) <= MAX_KEPT_ANSWER_BYTES
        record = Record(
            body=self.body_hash,
            status=status,
            session_id=session_id,
            tag=tag,
            commit=commit,
            is_kept=is_kept,
            meaning=self.meaning_hash,
            epoch=epoch,
            extras=extras or {},
        )
        kept = dumps(record) + b"\n" + (answer if is_kept else b"")
        return IdempotencyRecord(self.key, kept, self.kept_ms, self.former_key)

    def replay(self, kept: bytes) -> Replay:
        """The answer that was given. Raises IdempotencyKeyReused where the request was another one."""
        head, _, answer = kept.partition(b"\n")
        record = _RECORD.decode(head)
        # Whichever version wrote it, and whatever defaults it knew: the same bytes are the same request.
        if record.body != self.body_hash and record.meaning != self.meaning_hash:
            raise IdempotencyKeyReused
        return Replay(record, answer if record.is_kept else None)

    def require_in_time(self) -> None:
        """Raises ReceivedTooLongAgo where a record of it would be forgotten by now.

        To be asked right before the change is made: a process may stand still at any point before that.
        """
        if self.received_at_s is not None and time.time() - self.received_at_s > self.kept_ms / 1000:
            raise ReceivedTooLongAgo


def record_of(kept: bytes) -> Record | None:
    """The record by what is stored of it; None where these bytes are none."""
    try:
        return _RECORD.decode(kept.partition(b"\n")[0])
    except msgspec.MsgspecError:
        return None


def was_kept_by_former(kept: bytes) -> bool:
    """Did version 0.1 write it?"""
    return not _RECORD.decode(kept.partition(b"\n")[0]).meaning


_SORTED = msgspec.json.Encoder(order="sorted")


def canonical(meaning: Any) -> bytes:
    """The one way to write `meaning` as JSON: keys are sorted, and nothing stands between."""
    try:
        return _SORTED.encode(meaning)
    except OverflowError:  # somebody's metadata, with integers of more than 64 bits
        return json.dumps(msgspec.to_builtins(meaning), sort_keys=True, separators=(",", ":")).encode()


def _key(name: tuple[str, str, str, str]) -> str:
    return blake2b("\0".join(name).encode(), digest_size=20).hexdigest()
