"""Sessions as the service creates and reads them."""

import json
from typing import Any

from lockstep.requests import bodies
from lockstep.rules import history
from lockstep.rules.state_json import dumps
from lockstep.sessions import Sessions
from tests.support import settled_rules as engine
from tests.support.commits import new_id


def spec(mode: str = "per_participant", seats: int = 2, **fields: Any) -> engine.Spec:
    body = {
        "session_id": new_id(),
        "sync_mode": mode,
        "participants": [{"participant_id": new_id(), "total_time_ms": 60_000} for _ in range(seats)],
    }
    return bodies.spec(body | fields)


async def told(service: Sessions, session_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    since: int | None = None
    while True:
        page = await service.events(session_id, since, None)
        events += [json.loads(event) for event in page.events]
        since = page.next_since
        if since is None:
            return events


def as_events(*arguments: Any) -> list[dict[str, Any]]:
    """What `history.events` makes of them, as readers of /events see it."""
    return [json.loads(dumps(event)) for event in history.events(*arguments)]
