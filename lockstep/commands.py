"""The commands, each declared once: REST and /openapi.json read them from here."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from lockstep.access import Scope
from lockstep.requests.bodies import PARTICIPANT
from lockstep.requests.kinds import MAX_INT, Integer, Kind, List, Object, Record, Text, Uuid, Violations
from lockstep.rules import engine, seating
from lockstep.rules.modes import MAX_TIME_MS
from lockstep.rules.seating import MAX_PARTICIPANTS
from lockstep.rules.steps import Step
from lockstep.wire.answers import STATE, SWITCHED, Answer
from lockstep.wire.heads import UUID

MAX_DATA_BYTES = 1024
_COMMON: dict[str, Kind] = {"expected_version": Integer(1, MAX_INT), "data": Object(MAX_DATA_BYTES)}


class Command(Struct, frozen=True):
    """What a caller may ask to be done to a session: POST /v1/sessions/ID/`name`.

    `body` is what it may say: `expected_version`; `data`, which is kept in its event and told with it; and
    the keyword arguments of its `rule`. It needs `scope`, and the scope `control` to say one of
    `fields_of_control`.
    """

    name: str
    summary: str
    rule: Callable[..., Step]
    body: Record = Record(_COMMON)
    scope: Scope = Scope.CONTROL
    fields_of_control: tuple[str, ...] = ()
    answer: Answer = STATE
    is_limited_as_switch: bool = False
    """Counted by session, beside the limit by caller."""

    def read(self, body: Any, violations: Violations) -> dict[str, Any]:
        """The arguments in a body; a missing body says nothing."""
        return self.body.read({} if body is None else body, "", violations)


def canonical_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a command's body says, however it was spelled: null is absent, and an id has no case."""
    said = {name: value for name, value in arguments.items() if value is not None}
    if "target" in said and UUID.fullmatch(said["target"].lower()):
        said["target"] = said["target"].lower()
    return said


COMMANDS = {
    command.name: command
    for command in (
        Command("start", "Begin the first turn", engine.start, Record({"participant_id": Uuid(), **_COMMON})),
        Command(
            "switch",
            "End the turn and begin the next",
            engine.switch,
            Record({"next_participant_id": Uuid(), "expected_participant_id": Uuid(), **_COMMON}),
            scope=Scope.PLAY,
            # A player hands on the turn, but does not choose to whom.
            fields_of_control=("next_participant_id",),
            answer=SWITCHED,
            is_limited_as_switch=True,
        ),
        Command("pause", "Stop the clock", engine.pause),
        Command("resume", "Let it run on", engine.resume),
        Command(
            "adjust",
            "Give or take time",
            engine.adjust,
            Record(
                {
                    "delta_ms": Integer(-MAX_TIME_MS, MAX_TIME_MS, allows_zero=False),
                    "target": Text(128),
                    **_COMMON,
                },
                required=["delta_ms"],
            ),
        ),
        Command("complete", "End the session", engine.complete),
        Command("cancel", "End a session that was not started", engine.cancel),
        Command(
            "seat",
            "Seat newcomers",
            seating.seat,
            Record(
                {
                    "participants": List(
                        PARTICIPANT, MAX_PARTICIPANTS, min_length=1, distinct="participant_id"
                    ),
                    **_COMMON,
                },
                required=["participants"],
            ),
        ),
        Command(
            "unseat",
            "Let a participant leave",
            seating.unseat,
            Record({"participant_id": Uuid(), **_COMMON}, required=["participant_id"]),
        ),
        Command(
            "annotate",
            "Change the metadata by a JSON merge patch (RFC 7396)",
            engine.annotate,
            Record({"metadata": Object(), **_COMMON}, required=["metadata"]),
        ),
    )
}
