"""Sessions and what is done to them, at random, by looking at the state that they are in."""

import uuid
from random import Random
from typing import Any

MODES = ("per_participant", "per_group", "per_cycle", "global", "count_up")
POLICIES = {
    "per_participant": ("flag", "expire", "advance"),
    "per_group": ("flag", "expire", "advance"),
    "per_cycle": ("flag", "expire", "advance"),
    "global": ("flag", "expire"),
    "count_up": ("expire",),
}
OVER = ("expired", "completed", "cancelled")
SOME_JSON = (None, True, 0, -1, 1.5, 2**60, "", 'ü\u2028𝄞\\"\n', [], {}, [1, {"k": None}], {"a": {"b": []}})
NOBODY = "99999999-0000-4000-8000-000000000000"
_USUAL = {
    "pending": ["start"] * 4 + ["adjust", "seat", "annotate", "cancel"],
    "running": ["switch"] * 6 + ["adjust"] * 3 + ["pause", "pause", "seat", "unseat", "annotate", "complete"],
    "paused": ["resume"] * 4 + ["adjust", "seat", "unseat", "annotate"],
}
_ANY = ["start", "switch", "pause", "resume", "adjust", "complete", "cancel", "seat", "unseat", "annotate"]


def uuid_of(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def creation(rng: Random, session_id: str) -> dict[str, Any]:
    mode = rng.choice(MODES)
    least = 0 if mode in ("global", "count_up") else 1
    body: dict[str, Any] = {"session_id": session_id, "sync_mode": mode}
    body["participants"] = [_participant(rng, mode) for _ in range(rng.randint(least, 4))]
    body["on_timeout"] = rng.choice(POLICIES[mode])
    if mode == "global":
        body["total_time_ms"] = rng.choice([1_000, 60_000])
    elif mode == "per_cycle":
        body["time_per_cycle_ms"] = rng.choice([1_000, 60_000])
    elif mode == "count_up" and rng.random() < 0.5:
        body["max_time_ms"] = rng.choice([1_000, 60_000])
    elif mode in ("per_participant", "per_group"):
        body["increment_ms"] = rng.choice([0, 3_000])
    if rng.random() < 0.5:
        body["metadata"] = {"title": rng.choice(SOME_JSON), "kept": 1}
    if rng.random() < 0.3:
        body["presence"] = True
    return body


def command(rng: Random, state: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Mostly what such a session allows, seldom what it must refuse."""
    usual = _USUAL.get(state["status"], ["annotate"])
    name = rng.choice(_ANY if rng.random() < 0.1 else usual)
    body = _body(rng, name, state)
    if rng.random() < 0.25:
        body["data"] = {"move": rng.choice(SOME_JSON)}
    if rng.random() < 0.05:
        body["expected_version"] = state["version"] + rng.choice([0, -1])
    return name, body or None


def _body(rng: Random, name: str, state: dict[str, Any]) -> dict[str, Any]:
    seats = [each["participant_id"] for each in state["participants"]]
    mode = state["sync_mode"]
    if name == "start" and rng.random() < 0.3:
        return {"participant_id": rng.choice([*seats, NOBODY])}
    if name == "switch" and rng.random() < 0.3:
        return {"next_participant_id": rng.choice([*seats, NOBODY])}
    if name == "adjust":
        # Down to nothing, so that clocks run out; and far up again.
        body: dict[str, Any] = {"delta_ms": rng.choice([-86_400_000, -86_400_000, -500, 1_500, 60_000])}
        if seats and mode in ("per_participant", "per_group"):
            body["target"] = rng.choice(seats)
        return body
    if name == "seat":
        return {"participants": [_participant(rng, mode, state) for _ in range(rng.randint(1, 2))]}
    if name == "unseat":
        return {"participant_id": rng.choice([*seats, NOBODY])}
    if name == "annotate":
        return {"metadata": {rng.choice("abc"): rng.choice(SOME_JSON)}}
    return {}


def _participant(rng: Random, mode: str, state: dict[str, Any] | None = None) -> dict[str, Any]:
    participant: dict[str, Any] = {"participant_id": uuid_of(rng)}
    groups = {each.get("group_id") for each in (state or {}).get("participants", [])}
    if mode == "per_group":
        participant["group_id"] = rng.choice(["red", "blue"])
    if mode in ("per_participant", "per_group") and participant.get("group_id") not in (groups - {None}):
        participant["total_time_ms"] = 2_000
    return participant
