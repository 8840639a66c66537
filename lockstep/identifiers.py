"""Ids, commits and epochs are made here: what takes chance."""

import random
import string
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from lockstep.rules.engine import Spec
from lockstep.rules.seating import Newcomer

_BASE36 = string.digits + string.ascii_lowercase
_CHANCE = random.Random()  # seeded by the system; asking it each time costs a system call


def with_ids(spec: Spec, suits: Callable[[str], bool] = lambda session_id: True) -> Spec:
    """Where no id is given one is made; of the session one that `suits`."""
    seats = spec.participants
    if not all(seat.participant_id for seat in seats):
        seats = tuple(
            replace(seat, participant_id=seat.participant_id or str(uuid.uuid4())) for seat in seats
        )
    session_id = spec.session_id or str(uuid.uuid4())
    while not (spec.session_id or suits(session_id)):
        session_id = str(uuid.uuid4())
    return replace(spec, session_id=session_id, participants=seats)


def with_participant_ids(participants: Sequence[Newcomer]) -> list[Newcomer]:
    """The same for those who are to be seated."""
    return [{**each, "participant_id": each["participant_id"] or str(uuid.uuid4())} for each in participants]


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
