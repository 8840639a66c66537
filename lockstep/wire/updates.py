"""The UPDATE of protocol v2: made of a commit's events, when it is committed or of those that are kept."""

import json
import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from lockstep.rules import changes
from lockstep.rules.history import Event
from lockstep.rules.state import position_of
from lockstep.rules.state_json import dumps, from_iso
from lockstep.wire.protocol_v2 import CommitEvent, Update


def update_of(
    session_id: str, timestamp_ms: int, came_from: str, position: str, events: Sequence[Event]
) -> bytes:
    """The UPDATE of a commit, whose events lead from one position to the other."""
    return dumps(
        Update(
            session_id=session_id,
            timestamp=timestamp_ms,
            from_=came_from,
            position=position,
            changes=_changes_of(events),
            events=[
                CommitEvent(
                    version=event.version,
                    type=event.type,
                    at=event.at,
                    actor=event.actor,
                    data=event.data,
                    lap_ms=event.lap_ms,
                    expired_participant_id=event.expired_participant_id,
                )
                for event in events
            ],
        )
    )


def _changes_of(events: Sequence[Event]) -> Raw:
    if len(events) == 1:
        return events[0].changes
    # By the standard library, which keeps integers of any size.
    return Raw(dumps(changes.merged([json.loads(bytes(event.changes)) for event in events])))


class _Committed(Struct):
    commit: str | None = None


_EVENT = msgspec.json.Decoder(Event)
_COMMITTED = msgspec.json.Decoder(_Committed)


def updates_of(session_id: str, epoch: str, kept: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """The UPDATEs that these events make, in order, each with the position that it applies to.

    The events are of successive versions. Those of one commit make one UPDATE, and the last of them has the
    commit. Those up to the first commit lead from nobody knows where, and make none.
    """
    updates: list[tuple[str, bytes]] = []
    came_from: str | None = None
    events: list[Event] = []
    for raw in kept:
        event = _EVENT.decode(raw)
        events.append(event)
        commit = _COMMITTED.decode(event.changes).commit
        if commit is None:
            continue
        position = position_of(epoch, event.version, commit)
        if came_from is not None:
            at_ms = from_iso(event.at)
            assert at_ms is not None
            updates.append((came_from, update_of(session_id, at_ms, came_from, position, events)))
        came_from, events = position, []
    return updates


_UPDATE_BEGINS = re.compile(
    rb'\{"type":"UPDATE","sessionId":"[0-9a-f-]{36}","timestamp":\d{13},'
    rb'"from":"([0-9a-z]{13}-\d{1,15}-[\w-]{8})","position":"([0-9a-z]{13}-\d{1,15}-[\w-]{8})",'
)


def ends_of(update_json: bytes) -> tuple[str, str] | None:
    """The positions that an UPDATE leads from and to; None if these bytes are not one."""
    match = _UPDATE_BEGINS.match(update_json)
    return (match[1].decode(), match[2].decode()) if match else None
