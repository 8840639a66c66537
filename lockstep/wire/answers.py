"""What a change is answered: of the step that it made, and again, later, of the state that is stored then."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lockstep.rules.state import Status
from lockstep.rules.state_json import (
    Count,
    Instant,
    ParticipantJson,
    UuidText,
    Version,
    dumps,
    iso,
    participants_json,
)
from lockstep.rules.steps import Step


class Answer(Struct, frozen=True):
    """How an answer is made, as JSON."""

    of_step: Callable[[Step, bytes], bytes]
    """Of a step, and the JSON of the state that it leads to."""
    of_stored: Callable[[bytes, dict[str, Any]], bytes]
    """Of a stored state, and the extras of the transition that was answered first."""


class SwitchedJson(Struct):
    """The answer to a switch: a part of the state, and the extras of its transition."""

    session_id: UuidText
    active_participant_id: UuidText | None
    cycle_started_at: Instant | None
    participants: list[ParticipantJson]
    status: Status
    version: Version
    expired_participant_id: UuidText | UnsetType = UNSET
    lap_ms: Count | UnsetType = UNSET


def _switched(step: Step, state: bytes) -> bytes:
    session = step.session
    answer = SwitchedJson(
        session.session_id,
        session.active_participant_id,
        iso(session.cycle_started_at_ms),
        participants_json(session),
        session.status,
        session.version,
        **step.transitions[-1].extras,
    )
    return dumps(answer)


_STORED_SWITCHED = msgspec.json.Decoder(SwitchedJson)


def _switched_of_stored(state: bytes, extras: dict[str, Any]) -> bytes:
    return dumps(msgspec.to_builtins(_STORED_SWITCHED.decode(state)) | extras)


STATE = Answer(lambda step, state: state, lambda state, extras: state)
"""The state itself."""

SWITCHED = Answer(_switched, _switched_of_stored)
"""Who is active now, and how the turn before ended."""
