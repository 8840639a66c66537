"""A change on its way: who asks for it and under which conditions, and what has come of it."""

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from lockstep.idempotency import Idempotent
from lockstep.limits import SwitchLimit
from lockstep.rules.state import Session
from lockstep.rules.steps import Guard, Transition
from lockstep.wire.answers import STATE, Answer


class Context(Struct, frozen=True):
    """Who asks for a change, in which request, and what else is to hold for it.

    `actor`, `request_id` and `data`, an object of the caller's own, are kept in its events. `idempotent` is
    given where the request is to be done once, however often it comes. `admission` is given where a limit
    may still refuse it: it is called when the state has been read, before anything is decided. What `limit`
    allows is counted together with the change.
    """

    actor: str | None = None
    request_id: str | None = None
    data: dict[str, Any] | None = None
    idempotent: Idempotent | None = None
    admission: Callable[[], Awaitable[None]] | None = None
    limit: SwitchLimit | None = None
    guards: tuple[Guard, ...] = ()
    answer: Answer = STATE


NOBODY = Context()


class Changed(Struct, frozen=True):
    """A session after a change: the transitions that led there, and what the request is answered, as JSON."""

    session: Session
    transitions: tuple[Transition, ...]
    answer: bytes
