"""What a request may say: every boundary, and all that is wrong at once."""

import uuid
from typing import Any

import pytest

from lockstep.commands import COMMANDS
from lockstep.errors import ValidationError
from lockstep.identifiers import with_ids
from lockstep.requests import bodies, parameters
from lockstep.requests.kinds import Violations
from lockstep.rules.engine import Spec
from lockstep.rules.state import Mode, OnTimeout, Status
from lockstep.wire import heads

DAY_MS = 86_400_000
MODES = [mode.value for mode in Mode]
ID = "0A0b0c0d-1111-4222-8333-ABCDEFabcdef"


def participant(total_time_ms: Any = 60_000, **fields: Any) -> dict[str, Any]:
    return {"participant_id": str(uuid.uuid4()), "total_time_ms": total_time_ms} | fields


def body(mode: str = "per_participant", count: int = 2, **fields: Any) -> dict[str, Any]:
    """A request that is in order, but for what `fields` say."""
    group = {"group_id": "red"} if mode == "per_group" else {}
    times = {"global": {"total_time_ms": 60_000}, "per_cycle": {"time_per_cycle_ms": 10_000}}.get(mode, {})
    return {"sync_mode": mode, "participants": [participant(**group) for _ in range(count)]} | times | fields


def spec(**fields: Any) -> Spec:
    return bodies.spec(body(**fields))


def violations_of(given: Any) -> dict[str, str]:
    """The code of each violation by its field."""
    with pytest.raises(ValidationError) as error:
        bodies.spec(given)
    assert error.value.message == "Request validation failed"
    details = error.value.details
    assert all(set(each) == {"field", "message", "code"} for each in details)
    assert all(isinstance(text, str) and text for each in details for text in each.values())
    return {each["field"]: each["code"] for each in details}


def violations_of_command(name: str, given: Any) -> list[str]:
    found = Violations()
    COMMANDS[name].read(given, found)
    return [violation.field for violation in found.found]


# --- create --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_least_that_each_mode_needs_is_enough(mode: str) -> None:
    made = spec(mode=mode)
    assert made.mode == mode
    assert made.session_id == "", "the service makes one"
    assert (made.increment_ms, made.max_time_ms, made.metadata) in ((0, None, None), (0, None, {}))
    assert [each.participant_index for each in made.participants] == [0, 1]


def test_ids_are_taken_in_any_case_and_kept_in_lower_case() -> None:
    made = spec(session_id=ID, participants=[participant(participant_id=ID.upper())])
    assert made.session_id == ID.lower()
    assert made.participants[0].participant_id == ID.lower()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        ID[:-1],
        ID + "0",
        ID.replace("-", ""),
        "{" + ID + "}",
        "urn:uuid:" + ID,
        ID + "\n",
        " " + ID,
        ID.replace("A", "g"),
        ID.replace("1", "\u0661"),
        5,
        True,
        [],
        {},
        [ID],
        1.5,
    ],
)
def test_an_id_that_is_no_uuid_is_refused(bad: Any) -> None:
    assert set(violations_of(body(session_id=bad))) == {"session_id"}
    bad_one = body(participants=[participant(participant_id=bad)])
    assert set(violations_of(bad_one)) == {"participants.0.participant_id"}


@pytest.mark.parametrize("time_ms", [1_000, 1_001, DAY_MS - 1, DAY_MS])
def test_times_within_the_limits_are_taken(time_ms: int) -> None:
    assert spec(participants=[participant(time_ms)]).participants[0].budget_ms == time_ms
    assert spec(mode="per_cycle", time_per_cycle_ms=time_ms).time_per_cycle_ms == time_ms
    assert spec(mode="global", total_time_ms=time_ms).total_time_ms == time_ms
    assert spec(mode="count_up", max_time_ms=time_ms).max_time_ms == time_ms


@pytest.mark.parametrize(
    "time_ms",
    [999, 0, -1_000, DAY_MS + 1, 10**30, 1_000.0, 60_000.5, "60000", True, False, [], {}, [60_000]],
)
def test_times_beyond_the_limits_are_refused(time_ms: Any) -> None:
    bad = body(participants=[participant(time_ms), participant()])
    assert set(violations_of(bad)) == {"participants.0.total_time_ms"}
    for mode, field in (
        ("per_cycle", "time_per_cycle_ms"),
        ("global", "total_time_ms"),
        ("count_up", "max_time_ms"),
    ):
        assert set(violations_of(body(mode, **{field: time_ms}))) == {field}


@pytest.mark.parametrize("increment_ms", [0, 1, 60_000])
def test_increments_within_the_limits_are_taken(increment_ms: int) -> None:
    assert spec(increment_ms=increment_ms).increment_ms == increment_ms


@pytest.mark.parametrize("increment_ms", [-1, 60_001, 1.0, "5", True])
def test_increments_beyond_the_limits_are_refused(increment_ms: Any) -> None:
    assert set(violations_of(body(increment_ms=increment_ms))) == {"increment_ms"}


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_participants_are_taken_and_one_more_refused(mode: str) -> None:
    assert len(spec(mode=mode, count=1_000).participants) == 1_000
    assert set(violations_of(body(mode, count=1_001))) == {"participants"}


@pytest.mark.parametrize("mode", ["global", "count_up"])
@pytest.mark.parametrize("fields", [{"participants": []}, {"participants": None}])
def test_modes_with_one_clock_need_no_participants(mode: str, fields: dict[str, Any]) -> None:
    assert spec(mode=mode, **fields).participants == ()
    given = body(mode)
    del given["participants"]
    assert bodies.spec(given).participants == ()


@pytest.mark.parametrize("mode", ["per_participant", "per_cycle", "per_group"])
@pytest.mark.parametrize("participants", [[], None])
def test_the_other_modes_need_a_participant(mode: str, participants: Any) -> None:
    assert set(violations_of(body(mode, participants=participants))) == {"participants"}


def test_a_participant_given_twice_is_refused_in_any_case() -> None:
    twice = [participant(participant_id=ID.upper()), participant(), participant(participant_id=ID.lower())]
    assert set(violations_of(body(participants=twice))) == {"participants.2.participant_id"}


def test_the_default_index_is_that_in_the_list() -> None:
    made = spec(
        participants=[
            participant(),
            participant(participant_index=0),
            participant(participant_index=None),
            participant(),
        ]
    )
    assert [each.participant_index for each in made.participants] == [0, 0, 2, 3]


@pytest.mark.parametrize("index", [1.0, "1", True, [], -1])
def test_an_index_is_a_whole_number(index: Any) -> None:
    bad = body(participants=[participant(participant_index=index)])
    assert set(violations_of(bad)) == {"participants.0.participant_index"}


@pytest.mark.parametrize(
    ("mode", "missing"),
    [
        ("per_participant", "participants.0.total_time_ms"),
        ("per_group", "participants.0.total_time_ms"),
        ("per_group", "participants.0.group_id"),
        ("per_cycle", "time_per_cycle_ms"),
        ("global", "total_time_ms"),
        ("per_cycle", "sync_mode"),
    ],
)
@pytest.mark.parametrize("is_null", [True, False])
def test_a_missing_field_of_a_mode_is_named(mode: str, missing: str, is_null: bool) -> None:
    given = body(mode)
    holder, name = (given["participants"][0], missing[15:]) if "." in missing else (given, missing)
    if is_null:
        holder[name] = None
    else:
        del holder[name]
    assert set(violations_of(given)) == {missing}


def test_a_participant_may_be_given_without_an_id() -> None:
    given = spec(mode="per_cycle", participants=[{}, {"participant_id": ID}, {"participant_id": None}])
    ids = [each.participant_id for each in with_ids(given).participants]
    assert ids[1] == ID.lower()
    assert len(set(ids)) == 3
    assert all(heads.UUID.fullmatch(each) for each in ids)


def test_the_bank_of_a_group_is_one() -> None:
    participants = [
        participant(60_000, group_id="red"),
        participant(50_000, group_id="blue"),
        participant(60_000, group_id="red"),
        participant(50_001, group_id="blue"),
    ]
    assert set(violations_of(body("per_group", participants=participants))) == {
        "participants.3.total_time_ms"
    }
    participants[3]["total_time_ms"] = 50_000
    assert len(spec(mode="per_group", participants=participants).participants) == 4


def test_a_time_that_is_not_needed_may_be_given_and_is_kept() -> None:
    made = spec(mode="count_up", total_time_ms=5_000, time_per_cycle_ms=2_000)
    assert (made.total_time_ms, made.time_per_cycle_ms) == (5_000, 2_000)
    assert made.participants[0].budget_ms == 60_000


def test_null_is_the_same_as_absent() -> None:
    times = ["total_time_ms", "time_per_cycle_ms", "increment_ms", "max_time_ms"]
    nulls = dict.fromkeys(["session_id", "on_timeout", "metadata", "presence", *times])
    made = spec(**nulls)
    assert (made.total_time_ms, made.time_per_cycle_ms, made.max_time_ms) == (None, None, None)
    assert (made.increment_ms, made.on_timeout) == (0, OnTimeout.FLAG)
    assert made.session_id == ""
    assert made.presence is False


@pytest.mark.parametrize("presence", [True, False])
def test_presence_is_asked_for_at_creation(presence: bool) -> None:
    assert spec(presence=presence).presence is presence


@pytest.mark.parametrize("presence", [0, 1, "true", "", [], {}, 1.0])
def test_presence_is_true_or_false(presence: Any) -> None:
    assert set(violations_of(body("global", total_time_ms=5_000, presence=presence))) == {"presence"}


ALLOWED = {
    "per_participant": ["flag", "advance", "expire"],
    "per_group": ["flag", "advance", "expire"],
    "per_cycle": ["advance", "flag", "expire"],
    "global": ["expire", "flag"],
    "count_up": ["expire"],
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_has_its_policies_and_its_default(mode: str) -> None:
    assert spec(mode=mode).on_timeout == ALLOWED[mode][0]
    for policy in ("flag", "advance", "expire"):
        if policy in ALLOWED[mode]:
            assert spec(mode=mode, on_timeout=policy).on_timeout == policy
        else:
            assert set(violations_of(body(mode, on_timeout=policy))) == {"on_timeout"}
    for nonsense in ("FLAG", "", "never", 1, True, [], {}):
        assert set(violations_of(body(mode, on_timeout=nonsense))) == {"on_timeout"}


@pytest.mark.parametrize("mode", ["", "PER_CYCLE", "per_moon", 1, True, [], {}, 1.5])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    assert "sync_mode" in violations_of(body() | {"sync_mode": mode})


def metadata_of(size: int, letter: str = "x") -> dict[str, str]:
    """Metadata of so many bytes as JSON."""
    frame = len('{"k":""}')
    return {"k": letter * ((size - frame) // len(letter.encode()))}


def test_metadata_may_have_4096_bytes_as_json() -> None:
    assert spec(metadata=metadata_of(4096)).metadata == metadata_of(4096)
    assert set(violations_of(body(metadata=metadata_of(4097)))) == {"metadata"}
    # Bytes are counted, not characters.
    assert spec(metadata=metadata_of(4096, "é")).metadata
    assert set(violations_of(body(metadata=metadata_of(4098, "é")))) == {"metadata"}


@pytest.mark.parametrize("metadata", ["x", 1, True, [], [1]])
def test_metadata_is_an_object(metadata: Any) -> None:
    assert set(violations_of(body(metadata=metadata))) == {"metadata"}


def test_metadata_may_hold_anything() -> None:
    metadata = {"session_id": None, "a": [1, {"b": [None, True, 1.5, -(10**20)]}], "": {"": ""}}
    assert spec(metadata=metadata).metadata == metadata


def test_unknown_fields_are_refused_by_name() -> None:
    given = body(colour="red", Sync_mode="per_cycle")
    given["participants"][1]["name"] = "Anna"
    assert set(violations_of(given)) == {"colour", "Sync_mode", "participants.1.name"}


def test_unknown_fields_are_refused_also_as_null() -> None:
    assert set(violations_of(body(colour=None))) == {"colour"}


@pytest.mark.parametrize("given", [None, [], [body()], "text", 5, True, 1.5])
def test_a_request_is_an_object(given: Any) -> None:
    (field,) = violations_of(given)
    assert field == "body"


@pytest.mark.parametrize("participants", [{}, "x", 5, True])
def test_participants_are_an_array(participants: Any) -> None:
    assert set(violations_of(body(participants=participants))) == {"participants"}


@pytest.mark.parametrize("bad", [None, [], "x", 5, True])
def test_a_participant_is_an_object(bad: Any) -> None:
    assert "participants.1" in violations_of(body(participants=[participant(), bad]))


@pytest.mark.parametrize("group_id", ["", 5, True, []])
def test_a_group_id_is_text(group_id: Any) -> None:
    participants = [participant(group_id=group_id)]
    assert set(violations_of(body("per_group", participants=participants))) == {"participants.0.group_id"}


def test_all_violations_are_reported_at_once() -> None:
    given = {
        "session_id": "x",
        "sync_mode": "per_group",
        "total_time_ms": 999,
        "time_per_cycle_ms": "10",
        "increment_ms": 60_001,
        "max_time_ms": True,
        "on_timeout": "explode",
        "metadata": [],
        "presence": "yes",
        "extra": 1,
        "participants": [
            {"participant_id": "x", "total_time_ms": 1.5, "group_id": "", "participant_index": "1"},
            {"participant_id": ID},
            {"participant_id": ID.upper(), "total_time_ms": 5_000, "group_id": "red", "name": 1},
            {"total_time_ms": 6_000, "group_id": "red"},
        ],
    }
    assert set(violations_of(given)) == {
        "session_id",
        "total_time_ms",
        "time_per_cycle_ms",
        "increment_ms",
        "max_time_ms",
        "on_timeout",
        "metadata",
        "presence",
        "extra",
        "participants.0.participant_id",
        "participants.0.total_time_ms",
        "participants.0.group_id",
        "participants.0.participant_index",
        "participants.1.total_time_ms",
        "participants.1.group_id",
        "participants.2.participant_id",
        "participants.2.name",
        "participants.3.total_time_ms",
    }


# --- commands ------------------------------------------------------------------------------------


COMMON: dict[str, Any] = {"expected_version": 1, "data": {"move": "e4"}}
FIELDS: dict[str, dict[str, Any]] = {
    "start": {"participant_id": ID, **COMMON},
    "switch": {"next_participant_id": ID, "expected_participant_id": ID, **COMMON},
    "pause": COMMON,
    "resume": COMMON,
    "complete": COMMON,
    "cancel": COMMON,
    "adjust": {"delta_ms": 1, "target": ID, **COMMON},
    "seat": {"participants": [{"participant_id": ID}], **COMMON},
    "unseat": {"participant_id": ID, **COMMON},
    "annotate": {"metadata": {"round": 2}, **COMMON},
}
NEED_NOTHING = ["start", "switch", "pause", "resume", "complete", "cancel"]


def test_every_command_is_looked_at() -> None:
    assert FIELDS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_a_command_takes_its_fields_and_no_others(name: str) -> None:
    found = Violations()
    read = COMMANDS[name].read(FIELDS[name], found)
    assert found.found == []
    assert set(read) == set(FIELDS[name])
    assert violations_of_command(name, FIELDS[name] | {"now": 1}) == ["now"]
    for field in FIELDS[name]:
        assert violations_of_command(name, FIELDS[name] | {field: 1.5}) == [field]
        assert violations_of_command(name, FIELDS[name] | {field: False}) == [field]


@pytest.mark.parametrize("name", NEED_NOTHING)
def test_a_command_may_say_nothing(name: str) -> None:
    for nothing in (None, {}, dict.fromkeys(FIELDS[name])):
        assert violations_of_command(name, nothing) == []


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("given", [[], "x", 5, True])
def test_a_commands_body_is_an_object(name: str, given: Any) -> None:
    assert violations_of_command(name, given) == ["body"]


@pytest.mark.parametrize("delta_ms", [1, -1, DAY_MS, -DAY_MS])
def test_an_adjustment_within_the_limits_is_taken(delta_ms: int) -> None:
    assert violations_of_command("adjust", {"delta_ms": delta_ms}) == []


@pytest.mark.parametrize("delta_ms", [0, DAY_MS + 1, -DAY_MS - 1, 1.0, "1", True, None, []])
def test_an_adjustment_beyond_the_limits_is_refused(delta_ms: Any) -> None:
    assert violations_of_command("adjust", {"delta_ms": delta_ms}) == ["delta_ms"]


def test_an_adjustment_needs_a_delta() -> None:
    assert violations_of_command("adjust", None) == ["delta_ms"]
    assert violations_of_command("adjust", {"target": ID}) == ["delta_ms"]


@pytest.mark.parametrize("version", [0, -1, 1.0, "1", True, [], 10**30])
def test_an_expected_version_is_one_or_more(version: Any) -> None:
    assert violations_of_command("pause", {"expected_version": version}) == ["expected_version"]


# --- messages, queries, headers ------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["CHAT", "x", "state_update", "STATE_UPDATE "])
def test_a_message_has_a_type_of_its_own(type_: str) -> None:
    violations = Violations()
    bodies.check_message({"type": type_, "anything": None}, violations)
    assert violations.found == []


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "x",
        5,
        {},
        {"type": None},
        {"type": 5},
        {"type": ""},
        {"type": []},
        *(
            {"type": t}
            for t in ["CONNECTED", "STATE_UPDATE", "STATE_SYNC", "SESSION_DELETED", "PONG", "ERROR"]
        ),
    ],
)
def test_a_message_without_one_or_with_the_servers_own_is_refused(given: Any) -> None:
    violations = Violations()
    bodies.check_message(given, violations)
    assert len(violations.found) == 1


def queried(**given: list[str]) -> Any:
    found = Violations()
    fields = {
        "since": parameters.whole_number(0, 100),
        "status": parameters.status,
        "epoch": parameters.epoch,
        "cursor": parameters.cursor,
    }
    read = parameters.query(given, fields, found)
    return sorted(violation.field for violation in found.found) or read


def test_query_arguments_are_read() -> None:
    assert queried(since=["7"], status=["paused"], epoch=["0lqtw8xc0abcd"]) == {
        "since": 7,
        "status": Status.PAUSED,
        "epoch": "0lqtw8xc0abcd",
        "cursor": None,
    }
    place = queried(cursor=[f"1704067200000-{ID.lower()}"])["cursor"]
    assert place == (1_704_067_200_000, ID.lower())


def test_all_violations_of_a_query_are_reported_at_once() -> None:
    assert queried(since=["abc"], status=["x"], epoch=["x"], cursor=["x"], what=["1"]) == [
        "cursor",
        "epoch",
        "since",
        "status",
        "what",
    ]


@pytest.mark.parametrize(
    "since", ["-1", "101", "1.0", "1e1", "abc", "+1", " 1", "0x1", "9" * 5_000, "\u0661"]
)
def test_a_number_in_a_query_is_whole_and_within_its_limits(since: str) -> None:
    assert queried(since=[since]) == ["since"]


def test_an_argument_given_twice_is_refused() -> None:
    assert queried(since=["1", "1"]) == ["since"]


def test_the_tags_of_a_header_are_a_list() -> None:
    assert parameters.tags(None) is None
    assert parameters.tags('"a-1"') == {'"a-1"'}
    assert parameters.tags(' "a-1" ,W/"b-2",*') == {'"a-1"', 'W/"b-2"', "*"}
