"""Metadata changes by a merge patch, and data travels with a command: what is kept, told and refused."""

from typing import Any

import pytest
from msgspec import structs

from broker.memory import MemoryBroker
from lockstep.changes import Context
from lockstep.contract import Commit, Outcome
from lockstep.errors import ValidationError
from lockstep.lifetimes import Lifetimes
from lockstep.metrics import Metrics
from lockstep.rules.state import NOT_ENDED, Status
from lockstep.rules.state_json import to_dict
from lockstep.sessions import Sessions
from tests.support import settled_rules as engine
from tests.support.api import Api, body_of, error_of, fields_of, ids
from tests.support.brokers import Ears
from tests.support.commits import commit_of, next_epoch
from tests.support.sessions import spec, told
from tests.support.sessions_under_test import T0, pending, running

ALL_STATUSES = list(Status)


def annotated(metadata: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    session = pending(60_000, metadata=metadata)
    return engine.annotate(session, T0, metadata=patch).session.metadata


# --- the patch (RFC 7396) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "patch", "expected"),
    [
        ({}, {}, {}),
        ({"title": "x"}, {}, {"title": "x"}),
        ({"title": "x"}, {"title": "y"}, {"title": "y"}),
        ({"title": "x"}, {"round": 1}, {"title": "x", "round": 1}),
        ({"title": "x", "round": 1}, {"title": None}, {"round": 1}),
        ({"title": "x"}, {"round": None}, {"title": "x"}),
        ({"list": [1, 2]}, {"list": [None, {"a": None}]}, {"list": [None, {"a": None}]}),
        ({"list": [1, 2]}, {"list": {"a": 1}}, {"list": {"a": 1}}),
        ({"names": {"a": "A", "b": "B"}}, {"names": {"b": None, "c": "C"}}, {"names": {"a": "A", "c": "C"}}),
        ({"names": {"a": {"b": 1}}}, {"names": {"a": "flat"}}, {"names": {"a": "flat"}}),
        ({"names": "flat"}, {"names": {"a": None, "b": {"c": None}}}, {"names": {"b": {}}}),
        ({}, {"a": {"b": {"c": None}}}, {"a": {"b": {}}}),
        ({"a": None}, {"a": None}, {}),
        ({"a": 1}, {"a": True}, {"a": True}),
        ({"a": False}, {"a": 0}, {"a": 0}),
        ({"a": 1, "b": 2}, {"b": 3, "a": None, "c": 4}, {"b": 3, "c": 4}),
        ({}, {"n": 10**30, "": 1}, {"n": 10**30, "": 1}),
    ],
)
def test_a_patch_sets_what_it_names_and_removes_what_it_names_null(
    metadata: dict[str, Any], patch: dict[str, Any], expected: dict[str, Any]
) -> None:
    patched = annotated(metadata, patch)
    assert repr(patched) == repr(expected)  # 1 is not true, and keys keep their order


def test_a_patch_leaves_the_state_before_as_it_was() -> None:
    session = pending(60_000, metadata={"names": {"a": "A"}})
    engine.annotate(session, T0, metadata={"names": {"a": None}})
    assert session.metadata == {"names": {"a": "A"}}


@pytest.mark.parametrize("status", ALL_STATUSES)
def test_an_annotation_is_one_version_in_any_status_and_moves_nothing_else(status: Status) -> None:
    session = structs.replace(running(60_000, 60_000), status=status)
    if status not in NOT_ENDED:
        session = structs.replace(session, active=None, cycle_started_at_ms=None, completed_at_ms=T0)
    for patch in ({"a": 1}, {}):
        (transition,) = engine.annotate(session, T0 + 5000, metadata=patch).transitions
        assert transition.type == "annotated"
        moved = {"version": session.version + 1, "metadata": patch, "updated_at": "2024-01-01T00:00:05.000Z"}
        assert to_dict(transition.session) == to_dict(session) | moved


def test_what_is_left_has_four_kibibytes_at_most() -> None:
    metadata = {"a": "x" * 2000, "b": "y" * 2000}
    assert annotated(metadata, {"c": "z" * (4096 - len('{"a":"","b":"","c":""}') - 4000)})["c"]
    with pytest.raises(ValidationError) as refused:
        annotated(metadata, {"c": "z" * (4097 - len('{"a":"","b":"","c":""}') - 4000)})
    assert [(each["field"], each["code"]) for each in refused.value.details] == [("metadata", "length")]
    # What counts is what is left, not what is said.
    assert annotated(metadata, {f"key {number}": None for number in range(1000)}) == metadata
    assert annotated(metadata, {"a": None, "c": "z" * 2000}).keys() == {"b", "c"}


# --- in the service ------------------------------------------------------------------------------


class OfferedBroker(MemoryBroker):
    """Remembers the last commit that it was offered."""

    last: Commit

    async def commit(self, commit: Commit) -> Outcome:
        self.last = commit
        return await super().commit(commit)


async def test_an_annotation_prolongs_a_session_unless_it_has_ended() -> None:
    broker = OfferedBroker()
    await broker.start(Ears())
    service = Sessions(broker, Lifetimes(), Metrics())
    session_id = (await service.create(spec())).session.session_id

    async def annotated() -> bool:
        await service.apply(session_id, lambda s, now_ms: engine.annotate(s, now_ms, metadata={"a": 1}))
        return broker.last.prolongs

    assert await annotated()
    await service.apply(session_id, engine.start)
    assert await annotated()
    await service.apply(session_id, engine.pause)
    assert await annotated()
    await service.apply(session_id, engine.complete)
    assert broker.last.prolongs
    ((lapses_at_ms, _),) = await broker.page((0, ""), 1)
    assert not await annotated()
    assert await broker.page((0, ""), 1) == [(lapses_at_ms, session_id)]
    await broker.close()


async def test_a_session_that_ends_by_itself_right_before_is_not_prolonged_either() -> None:
    broker = OfferedBroker()
    await broker.start(Ears())
    service = Sessions(broker, Lifetimes(), Metrics())
    at_ms = broker.now_ms() - 70_000
    step = engine.create(spec(on_timeout="expire"), next_epoch(), at_ms)
    commit, session = commit_of(broker, None, step.followed_by(engine.start(step.session, at_ms)))
    assert await broker.commit(commit) is Outcome.APPLIED
    changed = await service.apply(
        session.session_id, lambda s, now_ms: engine.annotate(s, now_ms, metadata={"a": 1})
    )
    assert [each.type for each in changed.transitions] == ["expired", "annotated"]
    assert not broker.last.prolongs
    await broker.close()


async def test_data_goes_with_its_command_and_not_with_what_happened_by_itself_before() -> None:
    broker = MemoryBroker()
    await broker.start(Ears())
    service = Sessions(broker, Lifetimes(), Metrics())
    at_ms = broker.now_ms() - 70_000
    step = engine.create(spec(), next_epoch(), at_ms)
    commit, session = commit_of(broker, None, step.followed_by(engine.start(step.session, at_ms)))
    assert await broker.commit(commit) is Outcome.APPLIED
    await service.apply(session.session_id, engine.switch, Context("anna", "r-1", {"move": "e4"}))
    _, _, flagged, switched = await told(service, session.session_id)
    assert (flagged["type"], switched["type"]) == ("flagged", "switched")
    assert not {"data", "actor"} & flagged.keys()
    assert (switched["data"], switched["actor"]) == ({"move": "e4"}, "anna")
    assert switched["expired_participant_id"] == session.active_participant_id
    await broker.close()


# --- over REST -----------------------------------------------------------------------------------

PATHS = {
    "start": [],
    "switch": ["start"],
    "pause": ["start"],
    "resume": ["start", "pause"],
    "adjust": [],
    "complete": [],
    "cancel": [],
    "seat": [],
    "unseat": [],
    "annotate": [],
}


@pytest.mark.parametrize("name", PATHS)
async def test_the_data_of_each_command_is_in_its_event_and_not_in_the_state(api: Api, name: str) -> None:
    session = await api.create("global")
    session_id = session["session_id"]
    for step in PATHS[name]:
        await api.done(session_id, step)
    body = {
        "adjust": {"delta_ms": 1000},
        "seat": {"participants": [{}]},
        "unseat": {"participant_id": ids(session)[1]},
        "annotate": {"metadata": {"round": 1}},
    }.get(name, {})
    data = {"move": "e4", "n": [1, 2.5, None, 10**30, {"é": "\u2028"}]}
    answer = await api.done(session_id, name, body | {"data": data})
    assert "data" not in answer
    assert "data" not in await api.read(session_id)
    events = await api.events(session_id)
    assert events[-1]["data"] == data
    assert all("data" not in event for event in events[:-1])


async def test_an_empty_object_is_data_and_null_is_none(api: Api) -> None:
    session_id = (await api.running())["session_id"]
    await api.done(session_id, "switch", {"data": {}})
    await api.done(session_id, "switch", {"data": None})
    *_, with_data, without = await api.events(session_id)
    assert with_data["data"] == {}
    assert "data" not in without


@pytest.mark.parametrize("data", ["x", 5, True, [], [{}], {"k": "x" * (1025 - 8)}, {"k": "é" * 509}])
async def test_data_that_is_no_object_or_too_long_is_refused_by_its_field(api: Api, data: Any) -> None:
    session = await api.running()
    for name in ("switch", "pause", "complete"):
        assert fields_of(await api.command(session["session_id"], name, {"data": data})) == {"data"}
    assert await api.read(session["session_id"]) == session


async def test_data_of_a_kibibyte_is_kept(api: Api) -> None:
    session_id = (await api.running())["session_id"]
    for data in ({"k": "x" * (1024 - 8)}, {"k": "é" * 508}):
        await api.done(session_id, "switch", {"data": data})
        assert (await api.events(session_id))[-1]["data"] == data


async def test_a_creation_takes_no_data(api: Api) -> None:
    assert fields_of(await api("POST", "/v1/sessions", body_of() | {"data": {}})) == {"data"}


async def test_completing_what_is_completed_with_data_is_a_conflict(api: Api) -> None:
    session_id = (await api.running())["session_id"]
    done = await api.done(session_id, "complete", {"data": {"n": 1}})
    refused = await api.command(session_id, "complete", {"data": {"n": 2}})
    assert error_of(refused, 409, "CONFLICT")["details"] == {"state": done}
    assert await api.done(session_id, "complete") == done
    assert (await api.events(session_id))[-1]["data"] == {"n": 1}


async def test_an_annotation_is_answered_with_the_state_also_after_the_end(api: Api) -> None:
    session = await api.create(metadata={"title": "x", "names": {"a": "A"}})
    session_id = session["session_id"]
    await api.done(session_id, "cancel")
    patch = {"title": None, "names": {"b": "B"}}
    answer = await api.done(session_id, "annotate", {"metadata": patch})
    assert answer["metadata"] == {"names": {"a": "A", "b": "B"}}
    assert (answer["version"], answer["status"]) == (3, "cancelled")
    assert await api.read(session_id) == answer
    *_, event = await api.events(session_id)
    assert event["type"] == "annotated"
    assert event["changes"].keys() - {"updated_at"} == {"version", "commit", "metadata"}
    assert (await api.done(session_id, "annotate", {"metadata": {}}))["version"] == 4
    *_, event = await api.events(session_id)
    assert event["changes"].keys() - {"updated_at"} == {"version", "commit"}  # it may be the same millisecond


@pytest.mark.parametrize("metadata", [None, "x", 5, [], [{}], True])
async def test_a_patch_is_an_object(api: Api, metadata: Any) -> None:
    session = await api.create()
    refused = await api.command(session["session_id"], "annotate", {"metadata": metadata})
    assert fields_of(refused) == {"metadata"}
    assert fields_of(await api.command(session["session_id"], "annotate")) == {"metadata"}
    assert await api.read(session["session_id"]) == session


async def test_a_patch_that_leaves_too_much_is_refused_by_its_field(api: Api) -> None:
    session = await api.create(metadata={"a": "x" * 3000})
    refused = await api.command(session["session_id"], "annotate", {"metadata": {"b": "y" * 2000}})
    assert fields_of(refused) == {"metadata"}
    assert await api.read(session["session_id"]) == session
    await api.done(session["session_id"], "annotate", {"metadata": {"a": None, "b": "y" * 2000}})
