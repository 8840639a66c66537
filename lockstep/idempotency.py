"""A request that is done once, however often it is sent: what is kept of it, and how it is told again."""

from hashlib import blake2b

from msgspec import Struct

from lockstep.contract import Once
from lockstep.errors import IdempotencyKeyReused
from lockstep.messages import loads
from lockstep.state import dumps

# Longer answers are not kept: they are told again as the state that is current then.
MAX_KEPT_ANSWER_BYTES = 4096


class Replay(Exception):
    """The request was done before. `answer` is None where it was too long to be kept."""

    def __init__(self, status: int, session_id: str, tag: str, answer: bytes | None) -> None:
        super().__init__("the request was done before")
        self.status = status
        self.session_id = session_id
        self.tag = tag
        self.answer = answer


class Idempotent(Struct, frozen=True):
    """A request with an Idempotency-Key. `key` names it in the store, which keeps it for `kept_ms`."""

    key: str
    body_hash: str
    kept_ms: int

    @classmethod
    def of(cls, method: str, path: str, caller: str, key: str, body: bytes, kept_ms: int) -> "Idempotent":
        named = "\0".join((method, path, caller, key)).encode()
        return cls(
            blake2b(named, digest_size=20).hexdigest(), blake2b(body, digest_size=16).hexdigest(), kept_ms
        )

    def done(self, status: int, session_id: str, tag: str, commit: str, answer: bytes) -> Once:
        """What is stored together with the change."""
        is_kept = len(answer) <= MAX_KEPT_ANSWER_BYTES
        head = {
            "body": self.body_hash,
            "status": status,
            "session_id": session_id,
            "tag": tag,
            "commit": commit,  # so that the record, too, tells one attempt from another
            "is_kept": is_kept,
        }
        return Once(self.key, dumps(head) + b"\n" + (answer if is_kept else b""), self.kept_ms)

    def replay(self, record: bytes) -> Replay:
        """The answer that was given. Raises IdempotencyKeyReused where the request was another one."""
        head, _, answer = record.partition(b"\n")
        kept = loads(head)
        if kept["body"] != self.body_hash:
            raise IdempotencyKeyReused
        return Replay(kept["status"], kept["session_id"], kept["tag"], answer if kept["is_kept"] else None)
