"""What rules refuse with."""

from collections.abc import Collection

from lockstep.errors import InvalidStateTransition, ValidationError, Violation
from lockstep.rules.state import Session, Status


def require_status(session: Session, allowed: Collection[Status], complaint: str) -> None:
    if session.status not in allowed:
        raise InvalidStateTransition(
            f"Session {session.session_id} {complaint} (current status: {session.status.value})"
        )


def place_of(session: Session, participant_id: str, field: str) -> int:
    """Where the participant is in `participants`; `field` is the one of the request that names it."""
    for place, participant in enumerate(session.participants):
        if participant.participant_id == participant_id:
            return place
    raise invalid(field, f"{participant_id} is not a participant of this session", "unknown_participant")


def invalid(field: str, message: str, code: str) -> ValidationError:
    return ValidationError([Violation(field, message, code)])
