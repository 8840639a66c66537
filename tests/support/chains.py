"""States of one session that follow one another, as small as they can be; and what is published of them.

`line` tells histories apart that share versions: a fork is another line.
"""

import json
from typing import Any

from lockstep.wire import heads, payloads, protocol_v1
from lockstep.wire.heads import Head
from lockstep.wire.payloads import Update

T0 = 1_704_067_200_000
S = "00000000-0000-4000-8000-00000000005e"
OLD, EPOCH, NEW = "0lqtw8xa0aaaa", "0lqtw8xc0bbbb", "0lqtw8xd0cccc"
AT = "2024-01-01T00:00:00.000Z"


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def commit(version: int, line: str = "a") -> str:
    return f"{line}{version:07}"


def position(version: int, line: str = "a", epoch: str = EPOCH) -> str:
    return f"{epoch}-{version}-{commit(version, line)}"


def state(version: int, line: str = "a", epoch: str = EPOCH) -> bytes:
    fields = {"session_id": S, "epoch": epoch, "version": version, "commit": commit(version, line)}
    return compact(fields | {"deadline_ms": None, "status": "running"})


def head(version: int, line: str = "a", epoch: str = EPOCH) -> Head:
    found = heads.read_head(state(version, line, epoch))
    assert found is not None
    return found


def event(version: int, line: str = "a", *, is_last: bool = True, padding: int = 0) -> bytes:
    """One version; the last one of a commit names it."""
    changes: dict[str, Any] = {"version": version} | ({"commit": commit(version, line)} if is_last else {})
    data = {"data": {"x": "x" * padding}} if padding else {}
    return compact({"version": version, "type": "switched", "at": AT} | data | {"changes": changes})


def changes_to(
    version: int, line: str = "a", epoch: str = EPOCH, *, came_from: str | None = None, padding: int = 0
) -> bytes:
    """The UPDATE to this version, from the one before it unless another position is named."""
    before = came_from or position(version - 1, line, epoch)
    first = int(before.split("-")[1]) + 1
    told = {"type": "switched", "at": AT} | ({"data": {"x": "x" * padding}} if padding else {})
    return compact(
        {
            "type": "UPDATE",
            "sessionId": S,
            "timestamp": T0,
            "from": before,
            "position": position(version, line, epoch),
            "changes": {"version": version, "commit": commit(version, line)},
            "events": [{"version": each} | told for each in range(first, version + 1)],
        }
    )


def publication(version: int, line: str = "a", epoch: str = EPOCH, *, came_from: str | None = None) -> bytes:
    """What a commit publishes; of a creation, the state alone."""
    if version == 1 and came_from is None:
        return protocol_v1.state_update(S, T0, state(version, line, epoch))
    update = changes_to(version, line, epoch, came_from=came_from)
    return payloads.published(S, T0, state(version, line, epoch), update)


def published(version: int, line: str = "a", epoch: str = EPOCH, *, came_from: str | None = None) -> Update:
    """The same, read."""
    found = payloads.read_published(publication(version, line, epoch, came_from=came_from), T0)
    assert isinstance(found, Update)
    assert (found.changes is None) == (version == 1 and came_from is None)
    return found
