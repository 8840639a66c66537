"""/openapi.json says of each route what the server does, and of each limit what validation takes."""

import json
import re
from typing import Any

import pytest

from handlers import ROUTES, VIRTUAL_TIME_ROUTES
from lockstep import errors
from lockstep.commands import COMMANDS
from lockstep.errors import LockstepError, ValidationError
from lockstep.requests import bodies, json_schema, kinds, openapi
from lockstep.requests.kinds import Violations
from lockstep.requests.parameters import (
    MAX_PAGE,
    kept_s_of,
    whole_number,
)
from lockstep.rules import state_json
from lockstep.rules.state import Mode
from tests.support import settled_rules as engine
from tests.support.api import LEAST_BODIES, SOME_ID, body_of, serving
from tests.support.sessions_under_test import EPOCH, T0

DOCUMENT: dict[str, Any] = openapi.document()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    (path, method, operation)
    for path, each in DOCUMENT["paths"].items()
    for method, operation in each.items()
]
# What a process may leave out, and the socket, whose handler is Tornado's.
BESIDES = {("/metrics", "get"), ("/ws", "get")}


async def test_the_document_is_served_bare_as_it_was_built() -> None:
    async with serving() as api:
        answer = await api("GET", "/openapi.json")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.body == json.loads(json.dumps(DOCUMENT))


KNOWN = {(route.path, route.method.lower()) for route in ROUTES}
DOCUMENTED = {(path, method) for path, method, _ in OPERATIONS}


def test_every_route_is_in_the_document() -> None:
    assert KNOWN <= DOCUMENTED


def test_everything_in_the_document_is_a_route() -> None:
    assert DOCUMENTED - BESIDES <= KNOWN


async def test_a_route_that_few_servers_have_is_in_the_document_of_those() -> None:
    more = openapi.document(has_virtual_time=True)
    assert {path: list(each) for path, each in more["paths"].items() if path not in DOCUMENT["paths"]} == {
        route.path: [route.method.lower()] for route in VIRTUAL_TIME_ROUTES
    }
    async with serving(virtual_time=True) as api:
        assert (await api("GET", "/openapi.json")).body == json.loads(json.dumps(more))


def test_every_reference_leads_somewhere() -> None:
    for found in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT)):
        at = DOCUMENT
        for part in found.split("/"):
            at = at[part]


def test_every_error_that_has_a_code_is_in_the_document() -> None:
    """Route and method not found are no operation's, and some are said over a WebSocket only."""

    def kinds(kind: type[LockstepError]) -> set[type[LockstepError]]:
        return {kind}.union(*(kinds(each) for each in kind.__subclasses__()))

    elsewhere = {errors.RouteNotFound.code, errors.MethodNotAllowed.code}
    elsewhere |= {errors.NotSubscribed.code, errors.TooManySubscriptions.code}
    codes = {kind.code for kind in kinds(LockstepError)} - elsewhere
    text = json.dumps(DOCUMENT)
    # Who came in between may be a stranger to the document: not a code of its own table, though.
    assert {code for code in codes if f'"{code}"' not in text} == set()


def test_a_state_is_what_the_document_says() -> None:
    required, known = set(SCHEMAS["State"]["required"]), set(SCHEMAS["State"]["properties"])
    seat = SCHEMAS["Participant"]
    for mode in Mode:
        body = body_of(mode.value) | {"max_time_ms": 5000, "presence": True}
        session = engine.create(bodies.spec(body), EPOCH, T0).session
        shown = state_json.to_dict(session)
        assert required <= set(shown) <= known
        assert "presence" in known - required
        for each in shown["participants"]:
            assert set(seat["required"]) <= set(each) <= set(seat["properties"])


# --- limits --------------------------------------------------------------------------------------


def variants(schema: dict[str, Any]) -> list[tuple[Any, bool]]:
    """Values just within and just outside what this schema of a field allows."""
    found: list[tuple[Any, bool]] = []
    if "boolean" in schema.get("type", ()):
        found += [(True, True), (False, True), (None, True), (1, False), ("true", False)]
    if "minimum" in schema:
        found += [(schema["minimum"], True), (schema["minimum"] - 1, False)]
        found += [(schema["maximum"], True), (schema["maximum"] + 1, False), (0.5, False)]
        if "not" in schema:
            found.append((schema["not"]["const"], False))
    if "maxLength" in schema:
        found += [("x", True), ("", False), ("ü" * schema["maxLength"], True)]
        found.append(("x" * (schema["maxLength"] + 1), False))
    if "enum" in schema:
        found += [(each, True) for each in schema["enum"]] + [("nonsense", False)]
    if schema.get("pattern") == json_schema.UUID_PATTERN:
        found += [(SOME_ID, True), (SOME_ID.upper(), True), (SOME_ID[:-1], False), (7, False)]
    if "minItems" in schema and "required" not in schema["items"]:
        found += [([{}], True), ([], False), ([{}] * schema["maxItems"], True)]
        found.append(([{}] * (schema["maxItems"] + 1), False))
    most = re.fullmatch(r"At most (\d+) bytes as JSON", schema.get("description", ""))
    if most is not None:
        found += [
            ({}, True),
            ({"k": "x" * (int(most[1]) - 8)}, True),
            ({"k": "x" * (int(most[1]) - 7)}, False),
        ]
    return found


def is_taken(read: Any) -> bool:
    try:
        read()
    except ValidationError:
        return False
    return True


def command_read(name: str, body: dict[str, Any]) -> Any:
    def read() -> None:
        violations = Violations()
        COMMANDS[name].read(body, violations)
        violations.raise_if_any()

    return read


@pytest.mark.parametrize("mode", list(Mode))
def test_the_limits_of_a_creation_are_those_of_validation(mode: Mode) -> None:
    schema = SCHEMAS[f"Create_{mode.value}"]
    for name, field in schema["properties"].items():
        for value, is_good in variants(field):
            body = body_of(mode.value) | {name: value}
            assert is_taken(lambda body=body: bodies.spec(body)) is is_good, (name, value)
    for name in schema["required"]:
        body = body_of(mode.value)
        del body[name]
        assert not is_taken(lambda body=body: bodies.spec(body)), name
    assert not is_taken(lambda: bodies.spec(body_of(mode.value) | {"unknown": 1}))
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("mode", list(Mode))
def test_the_limits_of_a_participant_are_those_of_validation(mode: Mode) -> None:
    seats = SCHEMAS[f"Create_{mode.value}"]["properties"]["participants"]
    good = body_of(mode.value)["participants"][:1] or [{"participant_id": SOME_ID}]

    def reads(seat: dict[str, Any]) -> bool:
        return is_taken(lambda: bodies.spec(body_of(mode.value) | {"participants": [seat]}))

    for name, field in seats["items"]["properties"].items():
        for value, is_good in variants(field):
            assert reads(good[0] | {name: value}) is is_good, (name, value)
    for name in seats["items"].get("required", []):
        assert not reads({key: value for key, value in good[0].items() if key != name}), name
    assert is_taken(lambda: bodies.spec(body_of(mode.value, seats["maxItems"])))
    assert not is_taken(lambda: bodies.spec(body_of(mode.value, seats["maxItems"] + 1)))
    least = seats.get("minItems", 0)
    assert is_taken(lambda: bodies.spec(body_of(mode.value) | {"participants": []})) is (least == 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_limits_of_a_command_are_those_of_validation(name: str) -> None:
    schema = SCHEMAS[f"Command_{name}"]
    good = LEAST_BODIES.get(name, {})
    for field, allowed in schema["properties"].items():
        for value, is_good in variants(allowed):
            assert is_taken(command_read(name, good | {field: value})) is is_good, (field, value)
    for field in schema.get("required", []):
        assert not is_taken(command_read(name, {}))
        assert field in good
    assert not is_taken(command_read(name, good | {"unknown": 1}))


@pytest.mark.parametrize(
    ("parameter", "read"),
    [
        ("Limit", whole_number(1, MAX_PAGE)),
        ("Since", whole_number(0, kinds.MAX_INT)),
    ],
)
def test_the_limits_of_a_number_in_the_query_are_those_of_validation(parameter: str, read: Any) -> None:
    schema = DOCUMENT["components"]["parameters"][parameter]["schema"]
    assert [read(str(schema[limit])) for limit in ("minimum", "maximum")] == [
        schema["minimum"],
        schema["maximum"],
    ]
    for outside in (schema["minimum"] - 1, schema["maximum"] + 1):
        with pytest.raises(ValueError, match="integer"):
            read(str(outside))


def test_the_limits_of_an_idempotency_key_are_those_of_validation() -> None:
    parameters = DOCUMENT["components"]["parameters"]
    for value, is_good in variants(parameters["IdempotencyKey"]["schema"]):
        if value.isascii():
            assert is_taken(lambda value=value: kept_s_of(value, None)) is is_good
    for value, is_good in variants(parameters["IdempotencyTtl"]["schema"]):
        assert is_taken(lambda value=value: kept_s_of("key", str(value))) is is_good
