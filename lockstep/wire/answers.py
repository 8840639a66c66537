"""What a change is answered: of the step that it made, and again, later, of the state that is stored then."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from lockstep.rules.state_json import dumps, iso, participants_json
from lockstep.rules.steps import Step
from lockstep.wire.strict_json import loads


class Answer(Struct, frozen=True):
    """How an answer is made, as JSON."""

    of_step: Callable[[Step, bytes], bytes]
    """Of a step, and the JSON of the state that it leads to."""
    of_stored: Callable[[bytes, dict[str, Any]], bytes]
    """Of a stored state, and the extras of the transition that was answered first."""


def _switched(step: Step, state: bytes) -> bytes:
    session = step.session
    active = session.active_participant
    answer = {
        "session_id": session.session_id,
        "active_participant_id": active and active.participant_id,
        "cycle_started_at": iso(session.cycle_started_at_ms),
        "participants": participants_json(session),
        "status": session.status.value,
        "version": session.version,
    }
    return dumps(answer | step.transitions[-1].extras)


SWITCHED_FIELDS = (
    "session_id",
    "active_participant_id",
    "cycle_started_at",
    "participants",
    "status",
    "version",
)


def _switched_of_stored(state: bytes, extras: dict[str, Any]) -> bytes:
    stored = loads(state)
    return dumps({name: stored[name] for name in SWITCHED_FIELDS} | extras)


STATE = Answer(lambda step, state: state, lambda state, extras: state)
"""The state itself."""

SWITCHED = Answer(_switched, _switched_of_stored)
"""Who is active now, and how the turn before ended."""
