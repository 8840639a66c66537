"""Protocol v1: what the server says to clients over the WebSocket."""

from typing import Any

from lockstep.rules.state_json import dumps

SUBPROTOCOL = "lockstep.v1.json"
# Types that only the server may send.
SERVER_TYPES = frozenset({"CONNECTED", "STATE_UPDATE", "STATE_SYNC", "SESSION_DELETED", "PONG", "ERROR"})


def connected(session_id: str, now_ms: int) -> bytes:
    return f'{{"type":"CONNECTED","sessionId":"{session_id}","timestamp":{now_ms}}}'.encode()


def update_prefix(session_id: str, now_ms: int) -> bytes:
    """What stands before the state in a STATE_UPDATE; a closing brace follows the state."""
    return f'{{"type":"STATE_UPDATE","sessionId":"{session_id}","timestamp":{now_ms},"state":'.encode()


def state_update(session_id: str, now_ms: int, state: bytes) -> bytes:
    return update_prefix(session_id, now_ms) + state + b"}"


def state_sync(session_id: str, now_ms: int, state: bytes) -> bytes:
    prefix = f'{{"type":"STATE_SYNC","sessionId":"{session_id}","timestamp":{now_ms},"state":'
    return prefix.encode() + state + b"}"


def session_deleted(session_id: str, now_ms: int, epoch: str) -> bytes:
    return (
        f'{{"type":"SESSION_DELETED","sessionId":"{session_id}","timestamp":{now_ms},'
        f'"epoch":"{epoch}","deleted":true}}'
    ).encode()


def pong(now_ms: int, ping: dict[str, Any]) -> bytes:
    answer = {"type": "PONG", "timestamp": now_ms}
    if "id" in ping:
        answer["id"] = ping["id"]
    return dumps(answer)


def error(code: str, message: str) -> bytes:
    return dumps({"type": "ERROR", "code": code, "message": message})
