"""The model itself, against examples worked out by hand from the contract. The product is not needed."""

from typing import Any

import pytest

from tests.support.client_model import OutOfStep, apply_changes, apply_update, position_of
from tests.support.request_model import Refusal, Refused, invalid
from tests.support.session_model import CONFLICT, WRONG_STATUS, Request, SessionModel, StoreModel, merge_patch

T0_MS = 1_704_067_200_000
SESSION_ID = "00000000-0000-4000-8000-00000000005e"
EPOCH = "0lqtw8xc0abcd"
A, B, C, D = (f"{letter * 8}-0000-4000-8000-000000000000" for letter in "abcd")


def one(participant_id: str, time_ms: int | None = None, group: str | None = None) -> dict[str, Any]:
    return {"participant_id": participant_id, "total_time_ms": time_ms, "group_id": group}


def created(mode: str, *participants: dict[str, Any], **fields: Any) -> SessionModel:
    body = {"session_id": SESSION_ID, "sync_mode": mode, "participants": list(participants)}
    return SessionModel.created(body | fields, EPOCH, T0_MS)


def started(mode: str, *participants: dict[str, Any], **fields: Any) -> SessionModel:
    session = created(mode, *participants, **fields)
    session.obey("start", None, T0_MS)
    return session


def chess() -> SessionModel:
    return started("per_participant", one(A, 60_000), one(B, 60_000))


def teams() -> SessionModel:
    return started("per_group", one(A, 60_000, "red"), one(B, 30_000, "blue"))


def refusals(session: SessionModel, name: str, body: Any, at_ms: int = T0_MS) -> frozenset[Refusal]:
    """All that the command may be refused with; that it changed nothing is checked here."""
    before = list(session.versions)
    with pytest.raises(Refused) as caught:
        session.obey(name, body, at_ms)
    assert session.versions == before
    return caught.value.refusals


def column(session: SessionModel, name: str) -> list[Any]:
    return [seat[name] for seat in session.state["participants"]]


# --- time ----------------------------------------------------------------------------------------


def test_a_switch_charges_and_rewards_the_turn_that_ends() -> None:
    session = started("per_participant", one(A, 60_000), one(B, 60_000), increment_ms=1_000)
    session.obey("switch", {}, T0_MS + 4_000)
    assert column(session, "time_remaining_ms") == [57_000, 60_000]
    assert column(session, "time_used_ms") == [4_000, 0]
    assert session.state["deadline_ms"] == T0_MS + 64_000


def test_what_is_due_is_settled_at_its_deadlines_first() -> None:
    session = started("per_cycle", one(A), one(B), time_per_cycle_ms=1_000)
    session.obey("annotate", {"metadata": {"k": 1}}, T0_MS + 2_500)
    assert [(v.type, v.at_ms - T0_MS) for v in session.versions[2:]] == [
        ("advanced", 1_000),
        ("advanced", 2_000),
        ("annotated", 2_500),
    ]
    assert session.state["deadline_ms"] == T0_MS + 3_000


def test_a_refused_command_has_settled_what_was_due() -> None:
    session = chess()
    with pytest.raises(Refused):
        session.obey("resume", None, T0_MS + 60_000)
    assert [version.type for version in session.versions] == ["created", "started", "flagged"]


# --- seat ----------------------------------------------------------------------------------------


def test_newcomers_stand_at_the_end_behind_the_highest_index_and_charge_no_clock() -> None:
    session = chess()
    session.obey("seat", {"participants": [one(C, 5_000), one(D, 6_000)]}, T0_MS + 4_000)
    assert column(session, "participant_id") == [A, B, C, D]
    assert column(session, "participant_index") == [0, 1, 2, 3]
    assert column(session, "budget_ms") == [60_000, 60_000, 5_000, 6_000]
    assert column(session, "time_used_ms") == [0, 0, 0, 0]
    assert session.versions[-1].type == "seated"
    assert session.state["deadline_ms"] == T0_MS + 60_000
    assert session.state["cycle_started_at"] == "2024-01-01T00:00:00.000Z"
    assert session.state["updated_at"] == "2024-01-01T00:00:04.000Z"


def test_a_newcomer_takes_the_turn_of_its_index() -> None:
    session = started(
        "per_participant",
        one(A, 60_000) | {"participant_index": 4},
        one(B, 60_000) | {"participant_index": 8},
    )
    session.obey("seat", {"participants": [one(C, 5_000) | {"participant_index": 5}]}, T0_MS)
    session.obey("switch", None, T0_MS)
    assert session.state["active_participant_id"] == C


def test_who_joins_a_group_takes_its_bank() -> None:
    session = teams()
    session.obey("pause", None, T0_MS + 4_000)
    session.obey("seat", {"participants": [one(C, group="red")]}, T0_MS + 5_000)
    assert column(session, "budget_ms") == [60_000, 30_000, 60_000]
    assert column(session, "time_remaining_ms") == [56_000, 30_000, 56_000]
    session.obey("seat", {"participants": [one(D, 7_000, "green")]}, T0_MS + 5_000)
    assert column(session, "time_remaining_ms") == [56_000, 30_000, 56_000, 7_000]


def test_who_joins_an_expired_group_is_expired() -> None:
    session = teams()
    session.obey("seat", {"participants": [one(C, group="red")]}, T0_MS + 60_000)
    assert column(session, "has_expired") == [True, False, True]
    assert refusals(session, "switch", {"next_participant_id": C}, T0_MS + 60_000) == {CONFLICT}


@pytest.mark.parametrize(
    ("participants", "field"),
    [
        ([one(C, 60_000, "red")], "participants.0.total_time_ms"),
        ([one(C, None, "green")], "participants.0.total_time_ms"),
        ([one(C, 60_000)], "participants.0.group_id"),
        ([one(C, 1_000, "green"), one(D, 2_000, "green")], "participants.1.total_time_ms"),
        ([one(C, 1_000, "green"), one(C.upper(), 1_000, "green")], "participants.1.participant_id"),
        ([], "participants"),
        (None, "participants"),
        ([one("x", 1_000, "green")], "participants.0.participant_id"),
        ([one(C, 999, "green")], "participants.0.total_time_ms"),
        ([one(C, 1_000, "green") | {"name": "x"}], "participants.0.name"),
        ([None], "participants.0"),
    ],
)
def test_a_newcomer_that_does_not_fit_a_group_is_invalid(participants: Any, field: str) -> None:
    assert refusals(teams(), "seat", {"participants": participants}) == {invalid(field)}


def test_nobody_is_seated_twice_and_none_beyond_a_thousand() -> None:
    assert refusals(chess(), "seat", {"participants": [one(C, 1_000), one(B, 1_000)]}) == {CONFLICT}
    session = created("global", total_time_ms=1_000)
    crowd = [one(f"{place:08d}-0000-4000-8000-000000000000") for place in range(1_001)]
    assert refusals(session, "seat", {"participants": crowd}) == {invalid("participants")}
    session.obey("seat", {"participants": crowd[:1_000]}, T0_MS)
    assert refusals(session, "seat", {"participants": crowd[1_000:]}) == {CONFLICT}


@pytest.mark.parametrize("mode", ["global", "count_up"])
def test_the_first_switch_after_the_first_are_seated_begins_the_first_turn(mode: str) -> None:
    session = started(mode, total_time_ms=60_000)
    session.obey("seat", {"participants": [one(B), one(A)]}, T0_MS + 1_000)
    assert session.state["active_participant_id"] is None
    session.obey("switch", None, T0_MS + 3_000)
    assert session.state["active_participant_id"] == B
    assert column(session, "cycle_count") == [0, 0]
    assert column(session, "time_used_ms") == [0, 0]
    assert session.versions[-1].lap_ms == (3_000 if mode == "count_up" else None)


def test_who_would_begin_shows_the_clock_of_a_session_that_has_not_begun() -> None:
    session = created("per_participant", one(A, 60_000))
    session.obey("seat", {"participants": [one(B, 5_000) | {"participant_index": 0}]}, T0_MS)
    assert session.state["clock"] == {"kind": "participant", "remaining_ms": 60_000}
    session.obey("unseat", {"participant_id": A}, T0_MS)
    assert session.state["clock"] == {"kind": "participant", "remaining_ms": 5_000}


# --- unseat --------------------------------------------------------------------------------------


def test_who_leaves_takes_its_bank_along_and_charges_no_clock() -> None:
    session = teams()
    session.obey("unseat", {"participant_id": B}, T0_MS + 4_000)
    assert column(session, "participant_id") == [A]
    assert session.state["deadline_ms"] == T0_MS + 60_000
    session.obey("seat", {"participants": [one(C, 9_000, "blue")]}, T0_MS + 4_000)
    assert column(session, "time_remaining_ms") == [60_000, 9_000]


def test_a_bank_stays_while_a_member_does() -> None:
    session = started("per_group", one(A, 60_000, "red"), one(B, 30_000, "blue"), one(C, 30_000, "blue"))
    session.obey("unseat", {"participant_id": B}, T0_MS)
    session.obey("seat", {"participants": [one(D, None, "blue")]}, T0_MS)
    assert column(session, "time_remaining_ms") == [60_000, 30_000, 30_000]


def test_who_is_unknown_active_or_the_last_that_is_needed_is_not_unseated() -> None:
    assert refusals(chess(), "unseat", {"participant_id": C}) == {invalid("participant_id")}
    assert refusals(chess(), "unseat", {"participant_id": A}) == {CONFLICT}
    paused = chess()
    paused.obey("pause", None, T0_MS)
    assert refusals(paused, "unseat", {"participant_id": A}) == {CONFLICT}
    alone = created("per_cycle", one(A), time_per_cycle_ms=1_000)
    assert refusals(alone, "unseat", {"participant_id": A}) == {CONFLICT}
    watched = created("count_up", one(A))
    watched.obey("unseat", {"participant_id": A}, T0_MS)
    assert watched.state["participants"] == []


@pytest.mark.parametrize(
    ("name", "body"), [("seat", {"participants": [one(C, 1_000)]}), ("unseat", {"participant_id": B})]
)
def test_nobody_comes_or_goes_once_it_has_ended(name: str, body: Any) -> None:
    session = chess()
    session.obey("complete", None, T0_MS)
    assert refusals(session, name, body) == {WRONG_STATUS}


# --- annotate and data ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"title": "a"}, {"title": "b"}, {"title": "b"}),
        ({"title": "a"}, {"names": 1}, {"title": "a", "names": 1}),
        ({"title": "a", "names": 1}, {"title": None}, {"names": 1}),
        ({"title": "a"}, {"unknown": None}, {"title": "a"}),
        ({"in": {"x": 1, "y": 2}}, {"in": {"x": None, "z": 3}}, {"in": {"y": 2, "z": 3}}),
        ({"in": [1, 2]}, {"in": [None, {"x": None}]}, {"in": [None, {"x": None}]}),
        ({"in": [1]}, {"in": {"x": {"y": None}}}, {"in": {"x": {}}}),
        ({"in": {"x": 1}}, {"in": "text"}, {"in": "text"}),
        ({"in": None}, {"other": 1}, {"in": None, "other": 1}),
        ({"x": 1}, {}, {"x": 1}),
    ],
)
def test_a_patch_merges(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


def test_annotating_is_one_version_whatever_the_status_and_whatever_the_patch() -> None:
    session = chess()
    session.obey("complete", None, T0_MS + 1_000)
    for place, patch in enumerate(({"a": 1}, {"a": 1}, {})):
        session.obey("annotate", {"metadata": patch}, T0_MS + 2_000)
        assert (session.version, session.versions[-1].type) == (4 + place, "annotated")
        assert (session.state["metadata"], session.state["status"]) == ({"a": 1}, "completed")


def test_the_metadata_that_a_patch_leaves_has_4096_bytes_at_most() -> None:
    session = created("count_up", metadata={"k": "x" * 4_000})
    session.obey("annotate", {"metadata": {"n" * 9_000: None, "l": "x" * 81}}, T0_MS)
    assert refusals(session, "annotate", {"metadata": {"l": "x" * 82}}) == {invalid("metadata")}
    assert refusals(session, "annotate", {"metadata": None}) == {invalid("metadata")}


def test_data_is_told_with_its_command_and_with_nothing_else() -> None:
    session = chess()
    session.obey("switch", {"data": {"move": "e4"}}, T0_MS + 60_000)
    assert [(version.type, version.data) for version in session.versions[2:]] == [
        ("flagged", None),
        ("switched", {"move": "e4"}),
    ]
    assert "data" not in session.state
    assert refusals(session, "pause", {"data": {"k": "x" * 1_017}}, T0_MS + 60_000) == {invalid("data")}
    assert refusals(session, "pause", {"data": []}, T0_MS + 60_000) == {invalid("data")}


def test_completing_twice_changes_nothing_and_may_bring_no_data() -> None:
    session = chess()
    session.obey("complete", {"data": {"result": "1-0"}}, T0_MS)
    session.obey("complete", {}, T0_MS + 1)
    assert session.version == 3
    assert refusals(session, "complete", {"data": {"result": "1-0"}}) == {CONFLICT}


# --- lives ---------------------------------------------------------------------------------------


def test_an_id_may_be_created_anew_once_it_was_deleted() -> None:
    store = StoreModel()
    creation = Request("create", T0_MS, {"session_id": SESSION_ID, "sync_mode": "count_up"})
    start = Request("start", T0_MS)
    assert store.ask(start, "").refusals == {Refusal("SESSION_NOT_FOUND")}
    assert len(store.ask(creation, EPOCH).versions) == 1
    assert store.ask(creation, EPOCH).refusals == {Refusal("SESSION_EXISTS")}
    assert store.ask(Request("delete", T0_MS), "") == store.ask(Request("delete", T0_MS), "")
    (version,) = store.ask(creation, EPOCH[::-1]).versions
    assert (version.state["version"], version.state["epoch"]) == (1, EPOCH[::-1])


# --- the client ----------------------------------------------------------------------------------

STATE: dict[str, Any] = {
    "epoch": EPOCH,
    "version": 7,
    "commit": "abcdefgh",
    "clock": {"kind": "cycle", "remaining_ms": 5},
    "participants": [
        {"participant_id": A, "used": 1, "out": False},
        {"participant_id": B, "used": 2, "out": False},
    ],
    "metadata": {"a": {"b": 1}},
}


def test_changes_replace_what_they_name_and_keep_the_order_of_keys() -> None:
    after = apply_changes(STATE, {"metadata": {"c": 1}, "clock": None, "version": 8})
    assert after == STATE | {"version": 8, "clock": None, "metadata": {"c": 1}}
    assert list(after) == list(STATE)
    assert STATE["version"] == 7


def test_participants_are_changed_by_id() -> None:
    moved = [
        {"participant_id": B, "used": 9},
        {"participant_id": A, "removed": True},
        {"participant_id": C, "used": 0, "out": True},
    ]
    assert apply_changes(STATE, {"participants": moved})["participants"] == [
        {"participant_id": B, "used": 9, "out": False},
        {"participant_id": C, "used": 0, "out": True},
    ]


def test_who_left_and_came_back_stands_at_the_end_with_no_other_keys() -> None:
    moved = [{"participant_id": A, "removed": True}, {"participant_id": A, "used": 0}]
    assert apply_changes(STATE, {"participants": moved})["participants"] == [
        STATE["participants"][1],
        {"participant_id": A, "used": 0},
    ]


def test_an_update_applies_to_the_position_it_names() -> None:
    update: dict[str, Any] = {
        "from": f"{EPOCH}-7-abcdefgh",
        "position": f"{EPOCH}-8-ijklmnop",
        "changes": {"version": 8, "commit": "ijklmnop"},
    }
    assert position_of(apply_update(STATE, update)) == update["position"]
    for other in (
        None,
        STATE | {"commit": "ijklmnop"},
        STATE | {"version": 8},
        STATE | {"epoch": EPOCH[::-1]},
    ):
        with pytest.raises(OutOfStep):
            apply_update(other, update)
    with pytest.raises(OutOfStep):
        apply_update(STATE, update | {"changes": {"version": 8}})
    with pytest.raises(OutOfStep):
        apply_update(STATE, update | {"changes": update["changes"] | {"colour": 1}})
