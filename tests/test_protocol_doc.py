"""docs/protocol.md tells the truth: its story is replayed, its formulas are reckoned, its tables compared."""

import asyncio
import re
import uuid
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from lockstep import errors
from lockstep.commands import COMMANDS
from lockstep.errors import ValidationError
from lockstep.identifiers import with_ids
from lockstep.requests import bodies, kinds
from lockstep.rules import seating
from lockstep.rules.state import CLOCK_KINDS, Mode, Session
from lockstep.rules.state_json import to_dict
from lockstep.wire import protocol_v1
from tests.support import settled_rules as engine
from tests.support.documents import ANYTHING, assert_alike, blocks_of, differences, table_under
from tests.support.processes import ROOT, Answer, ServerProcess
from tests.support.sessions_under_test import EPOCH, T0, pending
from tests.support.ws_client import Closed, WsClient

DOC = (ROOT / "docs" / "protocol.md").read_text()
BLOCKS = blocks_of(DOC)


@pytest.mark.parametrize(
    ("told", "real"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ([1], [1, 2]),
        ({"epoch": "0lquvc000k3f9"}, {"epoch": "0lquvc000k3f"}),
        ({"deadline_ms": None}, {"deadline_ms": 1704110400000}),
        ({"deadline_ms": 1704110400000}, {"deadline_ms": None}),
        ({"clock": {"remaining_ms": 180000}}, {"clock": {"remaining_ms": 100000}}),
        ({"version": 1, ANYTHING: ANYTHING}, {"version": 2}),
    ],
)
def test_an_example_that_is_not_true_would_be_noticed(told: Any, real: Any) -> None:
    assert list(differences(told, real))


async def test_the_story_happens_as_it_is_written() -> None:
    server = ServerProcess("--log-level=warning")
    try:
        (url,) = re.findall(r"^    wss://HOST(/ws\S+)$", DOC, re.MULTILINE)
        async with await WsClient.connect(server.ws_url + url) as client:
            answer: Answer | None = None
            for block in BLOCKS:
                if block.language == "http":
                    first, _, body = block.text.partition("\n")
                    method, path = first.split()
                    answer = await server.call(method, path, body.encode() or None)
                elif block.role == "client":
                    await client.send(block.json)
                elif block.role == "server":
                    assert_alike(block.json, await client.recv())
                else:
                    assert answer is not None
                    assert answer.status == int(block.role), answer.raw
                    assert_alike(block.json, answer.body)
            assert await client.recv() == Closed(1000, "Session deleted")
            assert 'closed with 1000 "Session deleted"' in DOC
    finally:
        server.stop()


def test_every_example_is_part_of_the_story() -> None:
    assert len(BLOCKS) == DOC.count("```") / 2
    for block in BLOCKS:
        assert block.language == "http" or (
            block.language == "json" and (block.role in ("client", "server") or block.role.isdigit())
        ), block


def test_every_message_has_an_example() -> None:
    from_server = {block.json["type"] for block in BLOCKS if block.role == "server"}
    assert from_server >= protocol_v1.SERVER_TYPES
    from_client = [block.json for block in BLOCKS if block.role == "client"]
    assert {"PING", "RECONNECT"} <= {each["type"] for each in from_client if isinstance(each, dict)}
    codes = {block.json["code"] for block in BLOCKS if block.role == "server" and "code" in block.json}
    assert codes == {"SESSION_NOT_FOUND", "INVALID_MESSAGE", "UNKNOWN_TYPE"}


def test_the_sums_of_the_story_are_right() -> None:
    """Nobody has less or more than the budget, the increments and the turns make it."""
    seats = [
        seat
        for block in BLOCKS
        if block.role.isdigit() and isinstance(block.json.get("data"), dict)
        for seat in block.json["data"].get("participants", [])
        if ANYTHING not in seat
    ]
    assert len(seats) >= 3
    for seat in seats:
        earned = 2000 * seat["cycle_count"]
        assert seat["time_remaining_ms"] == seat["budget_ms"] + earned - seat["time_used_ms"]
        assert seat["time_remaining_ms"] == seat["total_time_ms"]


# --- formulas ------------------------------------------------------------------------------------

GROUPS = ["red", "blue", "red"]
SESSIONS: dict[str, dict[str, Any]] = {
    "per_participant": {"seats": {"total_time_ms": 60_000}},
    "per_group": {"seats": {"total_time_ms": 60_000}},
    "per_cycle": {"time_per_cycle_ms": 60_000},
    "global": {"total_time_ms": 60_000},
    "count_up": {},
}


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    return table_under(DOC, heading)


def formulas() -> dict[str, list[str]]:
    return {row[0]: re.findall(r"`([^`]+)`", row[2]) for row in rows_of("Clocks")}


def reckon(
    formula: str, state: dict[str, Any], now_ms: int, participant: dict[str, Any] | None = None
) -> int:
    """A formula of the document, at an instant."""

    def ms(instant: str) -> int:
        return round(datetime.fromisoformat(instant).timestamp() * 1000)

    since = state["cycle_started_at"]
    assert "    ran = max(0, now - cycle_started_at)\n" in DOC
    ran = max(0, now_ms - ms(since)) if state["status"] == "running" else 0
    names = {
        "ran": ran,
        "max": max,
        "participant": SimpleNamespace(**(participant or {})),
        "clock": SimpleNamespace(**state["clock"]),
        "lap_elapsed_ms": state.get("lap_elapsed_ms"),
    }
    return int(eval(formula, {"__builtins__": {}}, names))


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_formula_gives_what_the_server_reckons(server_process: ServerProcess, mode: Mode) -> None:
    """A pause tells what the server makes of the time that ran up to it."""
    fields = dict(SESSIONS[mode])
    seat = fields.pop("seats", {})
    seats = [
        {"participant_id": str(uuid.uuid4()), **seat}
        | ({"group_id": GROUPS[place]} if mode is Mode.PER_GROUP else {})
        for place in range(3)
    ]
    created = (
        await server_process.call("POST", "/v1/sessions", fields | {"sync_mode": mode, "participants": seats})
    ).data
    path = f"/v1/sessions/{created['session_id']}"
    started = (await server_process.call("POST", f"{path}/start")).data
    began_ms = (await server_process.call("GET", "/v1/time")).body["timestamp_ms"]
    while (await server_process.call("GET", "/v1/time")).body["timestamp_ms"] < began_ms + 20:
        await asyncio.sleep(0)
    paused = (await server_process.call("POST", f"{path}/pause")).data
    now_ms = round(datetime.fromisoformat(paused["updated_at"]).timestamp() * 1000)

    running, *more = formulas()[mode]
    reading = "elapsed_ms" if mode is Mode.COUNT_UP else "remaining_ms"
    active = next(each for each in started["participants"] if each["is_active"])
    shown = reckon(running, started, now_ms, active)
    assert shown == paused["clock"][reading]
    assert shown != started["clock"][reading], "time has passed"
    for later_ms in (now_ms, now_ms + 5000):  # what is paused stands still
        assert reckon(running, paused, later_ms, paused["participants"][0]) == shown
    if mode is Mode.PER_PARTICIPANT:
        (standing,) = more
        assert reckon(standing, started, now_ms, started["participants"][1]) == 60_000
        assert paused["participants"][1]["time_remaining_ms"] == 60_000
    if mode is Mode.PER_GROUP:
        assert [each["time_remaining_ms"] for each in paused["participants"]] == [shown, 60_000, shown]
    if mode is Mode.COUNT_UP:
        lap = more[-1]
        assert reckon(lap, started, now_ms) == paused["lap_elapsed_ms"]
    else:
        assert reckon(running, started, now_ms + 90_000, active) == 0
    assert reckon(running, started, began_ms - 60_000, active) == started["clock"][reading], (
        "no time is given back"
    )


def test_every_mode_has_a_formula() -> None:
    assert formulas().keys() == set(Mode) == CLOCK_KINDS.keys()


# --- tables --------------------------------------------------------------------------------------


def test_every_field_of_a_state_is_documented() -> None:
    fields = set()
    for mode in Mode:
        session = pending(
            60_000, 60_000, mode=mode, total_time_ms=60_000, time_per_cycle_ms=5000, max_time_ms=9000
        )
        session = replace(session, presence=True)
        fields |= to_dict(session).keys()
    section = DOC.split("\n## A state\n")[1].split("\n## ")[0]
    missing = {field for field in fields if not re.search(rf"\b{field}\b", section)}
    assert missing == set()


def test_every_close_code_that_is_sent_has_advice() -> None:
    sent = {value.code for value in vars(errors).values() if isinstance(value, errors.Close)}
    told = {
        int(code) for row in rows_of("Closing and coming back") for code in re.findall(r"\b\d{4}\b", row[0])
    }
    assert sent <= told


def test_the_advice_for_each_close_code_is_that_of_the_table_in_errors() -> None:
    advice = {
        int(code): row[2].startswith("come back")
        for row in rows_of("Closing and coming back")
        for code in re.findall(r"\b\d{4}\b", row[0])
        if "reserved" not in row[1]
    }
    closes = [value for value in vars(errors).values() if isinstance(value, errors.Close)]
    assert {close.code: close.may_come_back for close in closes} == advice


async def test_every_request_of_the_table_exists(server_process: ServerProcess) -> None:
    """An unknown route would be 404 NOT_FOUND, a method that is not allowed 405."""
    session_id = str(uuid.uuid4())
    seen = 0
    for row in rows_of("REST"):
        method, path, *_ = row[0].split()
        path = path.split("?")[0].replace("...", "/v1/sessions/ID").replace("ID", session_id).rstrip(",")
        others = re.findall(r", (\w+)", row[0].split("`")[0].split(";")[0])
        for each in [path, *(path.rsplit("/", 1)[0] + "/" + other for other in others)]:
            # The body of a stream has no end.
            answer = await server_process.call("HEAD" if each.endswith("/stream") else method, each)
            assert answer.status != 405, each
            if answer.status == 404:
                assert answer.body["error"]["code"] == "SESSION_NOT_FOUND", each
            seen += 1
    assert seen == 20


# --- what a creation may say ---------------------------------------------------------------------

VALUES = {
    "sync_mode": None,  # the column's
    "session_id": "0b6f5f0e-6d0c-4f5a-8a56-1f1d3e5b7c90",
    "participants": [{}, {}],
    "participants.N.participant_id": (
        "33333333-3333-4333-8333-333333333333",
        "44444444-4444-4444-8444-444444444444",
    ),
    "participants.N.participant_index": (7, 8),
    "participants.N.total_time_ms": (60_000, 60_000),
    "participants.N.group_id": ("pro", "contra"),
    "total_time_ms": 90_000,
    "time_per_cycle_ms": 20_000,
    "increment_ms": 2000,
    "max_time_ms": 5000,
    "on_timeout": "expire",
    "metadata": {"title": "Pub quiz"},
    "presence": True,
}
"""One for each field; where it is a participant's, one for each of two."""
# A field of these kinds names or orders something: no clock could run by it.
NAMES = {
    "session_id",
    "participants",
    "participants.N.participant_id",
    "participants.N.participant_index",
    "metadata",
    "presence",
}
ADJUST = "later, `target` of an adjust"


def creation_table() -> dict[str, dict[Mode, str]]:
    """The cells of each field's row, by mode."""
    return {
        row[0].strip("`"): {Mode(mode): cell for mode, cell in zip(CREATION_MODES, row[1:-1], strict=True)}
        for row in rows_of("Creating")
    }


def creation_limits() -> dict[str, list[int]]:
    return {row[0].strip("`"): [int(n) for n in re.findall(r"-?\d+", row[-1])] for row in rows_of("Creating")}


CREATION_MODES = re.findall(r"^\| field \| (.+) \| limits, default \|$", DOC, re.MULTILINE)[0].split(" | ")
FIELDS = [name for name in creation_table() if name in VALUES and name != "on_timeout"]


def body_of(mode: Mode, fields: set[str]) -> dict[str, Any]:
    """A creation that says these fields."""
    body: dict[str, Any] = {}
    for field in VALUES:
        if field not in fields:
            continue
        if field.startswith("participants.N."):
            body.setdefault("participants", [{}, {}])
            for seat, value in zip(body["participants"], VALUES[field], strict=True):
                seat[field.removeprefix("participants.N.")] = value
        elif field == "participants":
            body[field] = [{}, {}]
        else:
            body[field] = mode.value if field == "sync_mode" else VALUES[field]
    return body


def required(mode: Mode) -> set[str]:
    return {field for field, cells in creation_table().items() if cells[mode] == "required"}


def created(mode: Mode, fields: set[str]) -> Session:
    spec = with_ids(bodies.spec(body_of(mode, fields)))
    return engine.create(spec, EPOCH, T0).session


def story(mode: Mode, fields: set[str]) -> list[tuple[int | None, int | None]]:
    """What runs, and until when, after a start, after a switch, and long after."""
    session = engine.start(created(mode, fields), T0).session
    told = [(session.clock_ms, session.deadline_ms)]
    if mode is not Mode.GLOBAL or session.participants:
        session = engine.switch(session, T0 + 1500).session
        told.append((session.clock_ms, session.deadline_ms))
        session = engine.switch(session, T0 + 3000).session  # back: what an increment gave
        told.append((session.clock_ms, session.deadline_ms))
    settled = engine.settled(session, T0 + 100_000)[0].session
    return [*told, (settled.clock_ms, settled.deadline_ms)]


def test_every_field_of_a_creation_has_its_row() -> None:
    seats = {f"participants.N.{name}" for name in bodies.PARTICIPANT.fields}
    assert creation_table().keys() == {*bodies.CREATE.fields, *seats, ADJUST}
    assert set(CREATION_MODES) == set(Mode)


@pytest.mark.parametrize("mode", list(Mode))
def test_what_is_required_suffices_and_nothing_of_it_can_be_left_out(mode: Mode) -> None:
    needed = required(mode)
    created(mode, needed)
    for field in needed:
        # What has participants has all that each of them needs.
        left = {each for each in needed if each != field and not each.startswith(field + ".")}
        with pytest.raises(ValidationError) as refused:
            created(mode, left)
        assert isinstance(refused.value.details, list)
        named = {re.sub(r"\.\d+", ".N", each["field"]) for each in refused.value.details}
        assert field in named, field


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("field", FIELDS)
def test_a_clock_runs_by_a_field_where_the_table_says_so(mode: Mode, field: str) -> None:
    cell = creation_table()[field][mode]
    assert cell in ("required", "optional", "kept")
    if cell == "required":
        return  # nothing can be left out, see above
    needed = required(mode) | {"participants"}
    without, with_it = story(mode, needed), story(mode, needed | {field})
    assert (without == with_it) is (cell == "kept" or field in NAMES)


@pytest.mark.parametrize("mode", list(Mode))
def test_the_policies_of_a_timeout_are_documented_default_first(mode: Mode) -> None:
    first, *others = creation_table()["on_timeout"][mode].split(", ")
    assert first == f"**{bodies.ALLOWED_ON_TIMEOUT[mode][0]}**"
    assert others == list(bodies.ALLOWED_ON_TIMEOUT[mode][1:])


def test_the_limits_of_a_creation_are_those_documented() -> None:
    limits = creation_limits()
    fields = dict(bodies.CREATE.fields)
    fields |= {f"participants.N.{name}": kind for name, kind in bodies.PARTICIPANT.fields.items()}
    for field, kind in fields.items():
        match kind:
            case kinds.Integer():
                assert limits[field][:2] == [kind.minimum, kind.maximum], field
            case kinds.Text():
                assert limits[field] == [1, kind.max_length], field
            case kinds.List():
                assert limits[field] == [1, kind.max_length, 0, kind.max_length], field
            case kinds.Object():
                assert limits[field] == [kind.max_bytes], field
            case _:
                assert limits[field] == [], field
    delta = COMMANDS["adjust"].body.fields["delta_ms"]
    assert isinstance(delta, kinds.Integer)
    assert limits[ADJUST] == [delta.minimum, delta.maximum, 0]
    assert {mode: seating.MIN_PARTICIPANTS[mode] for mode in Mode} == {
        mode: 1 if creation_table()["participants"][mode] == "required" else 0 for mode in Mode
    }


@pytest.mark.parametrize("mode", list(Mode))
def test_an_adjust_takes_the_documented_targets(mode: Mode) -> None:
    cell = creation_table()[ADJUST][mode]
    session = created(mode, required(mode) | {"participants", "participants.N.participant_id"})
    member, group = VALUES["participants.N.participant_id"][1], VALUES["participants.N.group_id"][1]  # type: ignore[index]
    taken = set()
    for name, target in (("none", None), ("`participant_id`", member), ("`group_id`", group)):
        try:
            adjusted = engine.adjust(session, T0, delta_ms=5000, target=target).session
        except ValidationError:
            continue
        assert adjusted.version == 2
        taken.add(name)
    assert taken == set(re.findall(r"`\w+`|\bnone\b", cell))
