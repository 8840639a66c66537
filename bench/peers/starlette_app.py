"""Starlette on uvicorn + redis-py, the ordinary way.

It reads a session, decides a switch, compares and sets, publishes and answers.

python starlette_app.py PORT REDIS_PORT
"""

import json
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import Any

import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PORT, REDIS_PORT = map(int, sys.argv[1:])
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
ATTEMPTS = 5

store = redis.asyncio.Redis(port=REDIS_PORT, decode_responses=True)
commit = store.register_script(
    """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[2])
    redis.call('PUBLISH', 'session-updates', ARGV[3])
    return 1
    """
)


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def switched(state: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """The state after the active participant's turn ends at `now_ms` and the next one's begins."""
    if state["status"] != "running":
        message = f"Session {state['session_id']} not running (current status: {state['status']})"
        raise Refused(400, "INVALID_STATE_TRANSITION", message)
    began_ms = round(datetime.fromisoformat(state["cycle_started_at"]).timestamp() * 1000)
    elapsed_ms = max(0, now_ms - began_ms)
    participants = state["participants"]
    ids = [each["participant_id"] for each in participants]
    active = ids.index(state["active_participant_id"])
    each = participants[active]
    left_ms = max(0, each["time_remaining_ms"] - elapsed_ms) + state["increment_ms"]
    each["total_time_ms"] = each["time_remaining_ms"] = left_ms
    each["time_used_ms"] += elapsed_ms
    each["cycle_count"] += 1
    each["has_expired"] = left_ms == 0
    each["is_active"] = False
    following = participants[active + 1 :] + participants[: active + 1]
    heir = next((each for each in following if not each["has_expired"]), None)
    if heir is None:
        raise Refused(409, "CONFLICT", "nobody has time left")
    heir["is_active"] = True
    state["version"] += 1
    state["commit"] = secrets.token_urlsafe(6)
    state["deadline_ms"] = now_ms + heir["time_remaining_ms"]
    state["active_participant_id"] = heir["participant_id"]
    state["clock"]["remaining_ms"] = heir["time_remaining_ms"]
    state["cycle_started_at"] = state["updated_at"] = instant(now_ms)
    return state


async def switch_session(session_id: str) -> dict[str, Any]:
    key = f"session:{session_id}"
    for _ in range(ATTEMPTS):
        stored = await store.get(key)
        if stored is None:
            raise Refused(404, "SESSION_NOT_FOUND", f"Session {session_id} not found")
        now_ms = time.time_ns() // 1_000_000
        state = switched(json.loads(stored), now_ms)
        text = json.dumps(state, separators=(",", ":"))
        update = f'{{"type":"STATE_UPDATE","sessionId":"{session_id}","timestamp":{now_ms},"state":{text}}}'
        if await commit(keys=[key], args=[stored, text, update]):
            return state
    raise Refused(503, "SESSION_BUSY", f"Session {session_id} is busy")


SHOWN = ("session_id", "active_participant_id", "cycle_started_at", "participants", "status", "version")


async def switch(request: Request) -> JSONResponse:
    session_id = request.path_params["id"]
    if not ID.fullmatch(session_id):
        raise Refused(400, "VALIDATION_ERROR", "Request validation failed")
    if body := await request.body():
        json.loads(body)
    state = await switch_session(session_id.lower())
    return JSONResponse({"data": {name: state[name] for name in SHOWN}})


async def refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return JSONResponse({"error": {"code": error.code, "message": str(error)}}, error.status)


app = Starlette(
    routes=[Route("/v1/sessions/{id}/switch", switch, methods=["POST"])],
    exception_handlers={Refused: refused},
)

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=PORT,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
