"""When two requests of one Idempotency-Key are the same: by what they say, however it is spelled."""

import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep import commands
from lockstep.commands import canonical_arguments
from lockstep.idempotency import Idempotent
from lockstep.requests import bodies
from lockstep.requests.kinds import Violations
from lockstep.wire import strict_json
from tests.support.sessions_under_test import A, B, C

# The same examples in every run; the many more of the long run are new ones each time.
FEW = settings(max_examples=100, derandomize=True, deadline=None, database=None)
MANY = settings(max_examples=2_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))

ROOM = "0a1b2c3d-0000-4000-8000-00000000abcd"
DEFAULT_ON_TIMEOUT = {
    "per_participant": "flag",
    "per_group": "flag",
    "per_cycle": "advance",
    "global": "expire",
    "count_up": "expire",
}


def defaults_of(mode: str) -> dict[str, Any]:
    return {
        "increment_ms": 0,
        "metadata": {},
        "presence": False,
        "on_timeout": DEFAULT_ON_TIMEOUT[mode],
    }


def hash_of(kind: str, raw: bytes) -> str:
    """As the handlers come to it."""
    body = strict_json.loads(raw) if raw else None
    if kind == "create":
        meaning: Any = bodies.spec(body)
    elif kind == "messages":
        meaning = body
    else:
        violations = Violations()
        meaning = canonical_arguments(commands.COMMANDS[kind].read(body, violations))
        violations.raise_if_any()
    name = ("POST", "/v1/sessions", "", "key")
    return Idempotent.of(name, name, raw, meaning, 60).meaning_hash


# --- at random -----------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([0, 1, 1.0, 0.5, -0.0, 1e300, "", "a", "A", "null", A, A.upper(), "é", '"', "\\"]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "A", "é", ""]), inner)
    ),
    max_leaves=6,
)
TIMES = st.sampled_from([1_000, 60_000])


@st.composite
def creations(draw: st.DrawFn) -> dict[str, Any]:
    """A creation that says no more than it has to, nor spells out a default."""
    mode = draw(st.sampled_from(sorted(DEFAULT_ON_TIMEOUT)))
    body: dict[str, Any] = {"sync_mode": mode}
    bank, group = draw(TIMES), draw(st.sampled_from(["white", "White"]))
    seats = []
    for participant_id in draw(st.permutations([A, B, C]))[: draw(st.integers(1, 3))]:
        seat: dict[str, Any] = {"participant_id": participant_id}
        if mode in ("per_participant", "per_group"):
            seat["total_time_ms"] = bank
        if mode == "per_group":
            seat["group_id"] = group
        if draw(st.booleans()):
            seat["participant_index"] = draw(st.integers(0, 3))
        seats.append(seat)
    body["participants"] = seats
    if mode == "per_cycle":
        body["time_per_cycle_ms"] = draw(TIMES)
    if mode == "global":
        body["total_time_ms"] = draw(TIMES)
    optional = {
        "session_id": st.just(ROOM),
        "increment_ms": st.sampled_from([0, 1]),
        "max_time_ms": TIMES,
        "metadata": st.dictionaries(st.sampled_from("abc"), ANYTHING, max_size=3),
        "presence": st.booleans(),
    }
    for name, values in optional.items():
        if draw(st.booleans()):
            body[name] = draw(values)
    return body


FREE = st.dictionaries(st.sampled_from("abc"), ANYTHING, max_size=2)
COMMANDS: dict[str, dict[str, Any]] = {
    "start": {"participant_id": st.sampled_from([A, B]), "expected_version": st.sampled_from([1, 2])},
    "switch": {
        "next_participant_id": st.sampled_from([A, B]),
        "expected_participant_id": st.sampled_from([A, B]),
        "expected_version": st.sampled_from([1, 2]),
        "data": FREE,
    },
    "adjust": {"target": st.sampled_from([A, B, "white", "White"]), "expected_version": st.just(1)},
    "pause": {"expected_version": st.sampled_from([1, 2]), "data": FREE},
    "seat": {"expected_version": st.sampled_from([1, 2]), "data": FREE},
    "annotate": {"expected_version": st.sampled_from([1, 2])},
}


KINDS = st.sampled_from(["create", "messages", *COMMANDS])


def a_body(draw: st.DrawFn, kind: str) -> Any:
    if kind == "create":
        return draw(creations())
    if kind == "messages":
        fields = draw(st.dictionaries(st.sampled_from(["x", "y"]), ANYTHING, max_size=2))
        return {"type": draw(st.sampled_from(["A", "B"]))} | fields
    body = {name: draw(values) for name, values in COMMANDS[kind].items() if draw(st.booleans())}
    if kind == "adjust":
        body["delta_ms"] = draw(st.sampled_from([1, -1]))
    if kind == "annotate":
        body["metadata"] = draw(FREE)
    if kind == "seat":
        fields = {
            "participant_index": st.integers(0, 2),
            "total_time_ms": TIMES,
            "group_id": st.just("white"),
        }
        body["participants"] = [
            {"participant_id": each}
            | {name: draw(values) for name, values in fields.items() if draw(st.booleans())}
            for each in draw(st.permutations([A, B]))[: draw(st.integers(1, 2))]
        ]
    return body


# --- another opinion on what a request says ------------------------------------------------------


def said(kind: str, body: Any) -> str:
    """All of it, with every default filled in, as text."""
    if kind == "messages":
        return json.dumps(body, sort_keys=True)
    full = {name: value for name, value in body.items() if value is not None}
    if kind == "create":
        full = defaults_of(full["sync_mode"]) | full
        full["participants"] = [
            {"participant_index": place} | {name: value for name, value in seat.items() if value is not None}
            for place, seat in enumerate(full.get("participants", []))
        ]
    return json.dumps(full, sort_keys=True)


# --- spelled otherwise ---------------------------------------------------------------------------


def written(draw: st.DrawFn, value: Any) -> str:
    """JSON with spaces, an order of keys and escapes as they come."""
    gap = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, dict):
        items = draw(st.permutations(list(value.items())))
        inner = ",".join(f"{gap}{written(draw, name)}{gap}:{written(draw, each)}" for name, each in items)
        return "{" + inner + gap + "}"
    if isinstance(value, list):
        return "[" + ",".join(gap + written(draw, each) for each in value) + gap + "]"
    if isinstance(value, str) and draw(st.booleans()):
        return '"' + "".join(f"\\u{ord(character):04X}" for character in value) + '"'
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def respelled(draw: st.DrawFn, kind: str, body: Any) -> bytes:
    if kind != "messages":  # whose ids are its sender's own affair
        body = dict(body)
        for name in draw(st.permutations(sorted(body))):
            if name.endswith("_id") or (name == "target" and body[name] in (A, B)):
                body[name] = draw(st.sampled_from([str.upper, str.lower]))(body[name])
        absent = (bodies.CREATE if kind == "create" else commands.COMMANDS[kind].body).fields.keys() - body
        body |= dict.fromkeys(draw(st.sets(st.sampled_from(sorted(absent)))) if absent else ())
    if kind == "create":
        for name, default in defaults_of(body["sync_mode"]).items():
            if body.get(name) in (None, default) and draw(st.booleans()):
                body[name] = default
            elif body.get(name) == default and draw(st.booleans()):
                del body[name]
    if "participants" in body:
        seats = []
        for place, seat in enumerate(body["participants"]):
            case = draw(st.sampled_from([str.upper, str.lower]))
            spelled = seat | {"participant_id": case(seat["participant_id"])}
            if "participant_index" not in seat and draw(st.booleans()):
                # The default of a newcomer is not known before the state is.
                spelled["participant_index"] = draw(
                    st.sampled_from([None, place] if kind == "create" else [None])
                )
            if "group_id" not in seat and draw(st.booleans()):
                spelled["group_id"] = None
            seats.append(spelled)
        body["participants"] = seats
    if not body and draw(st.booleans()):
        return b""
    return written(draw, body).encode()


# --- the laws ------------------------------------------------------------------------------------


@st.composite
def two_spellings(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    kind = draw(KINDS)
    body = a_body(draw, kind)
    return kind, respelled(draw, kind, body), respelled(draw, kind, body)


def check_spelling_is_nothing(spellings: tuple[str, bytes, bytes]) -> None:
    kind, one, other = spellings
    assert hash_of(kind, one) == hash_of(kind, other)


@st.composite
def two_requests(draw: st.DrawFn) -> tuple[str, Any, Any]:
    """Of one kind: mostly alike."""
    kind = draw(KINDS)
    one, other = a_body(draw, kind), a_body(draw, kind)
    if draw(st.booleans()):
        # What one says, but for a field or two.
        taken = draw(st.sets(st.sampled_from(sorted(other)))) if other else set()
        mixed = one | {name: other[name] for name in taken if name not in ("sync_mode", "participants")}
        if kind != "create" or one["sync_mode"] == other["sync_mode"]:
            return kind, one, mixed
    return kind, one, other


def check_meaning_is_all(pair: tuple[str, Any, Any]) -> None:
    kind, one, other = pair
    hashes = [hash_of(kind, json.dumps(body).encode()) for body in (one, other)]
    assert (hashes[0] == hashes[1]) == (said(kind, one) == said(kind, other))


@FEW
@given(two_spellings())
def test_any_spelling_of_a_request_is_the_same_request(spellings: tuple[str, bytes, bytes]) -> None:
    check_spelling_is_nothing(spellings)


@FEW
@given(two_requests())
def test_two_requests_are_the_same_if_and_only_if_they_say_the_same(pair: tuple[str, Any, Any]) -> None:
    check_meaning_is_all(pair)


@pytest.mark.long
@MANY
@given(two_spellings(), two_requests())
def test_many_requests_are_known_again(
    spellings: tuple[str, bytes, bytes], pair: tuple[str, Any, Any]
) -> None:
    check_spelling_is_nothing(spellings)
    check_meaning_is_all(pair)


def test_a_key_belongs_to_its_method_path_and_caller() -> None:
    names = {
        (method, path, caller, key)
        for method in ("POST", "DELETE")
        for path in ("/v1/sessions", "/v1/sessions/a")
        for caller in ("", "anna", "anna\0", "\0anna")
        for key in ("key", "anna")
    }
    made = [Idempotent.of(name, name, b"", None, 60).key for name in names]
    assert len(set(made)) == len(names)
    name = ("POST", "/", str(uuid4()), "key")
    assert Idempotent.of(name, name, b"", None, 60).former_key is None
