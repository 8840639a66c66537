"""The service beside an independent model, over random histories; and what changes make of states."""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from lockstep.errors import Conflict, LockstepError
from lockstep.rules.changes import applied, merged
from lockstep.rules.state_json import dumps
from tests.support.client_model import OutOfStep, State, apply_changes, apply_update, position_of
from tests.support.modelled_histories import SESSION_ID, Asked, drawn, smallest
from tests.support.request_model import Refusal
from tests.support.service_under_test import Done, run
from tests.support.session_model import Version, written

MAX_TRANSITIONS = 500


# --- what came of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """One version: its event, the state before it (None of a creation), and the state that its changes give.

    `is_stored` says that this state was stored: that it is the last of its commit.
    """

    before: State | None
    event: dict[str, Any]
    state: State
    is_stored: bool

    @property
    def changes(self) -> State:
        return dict(self.event["changes"])


def made_in(done: list[Done]) -> Iterator[list[Made]]:
    """The versions that each request made."""
    state: State | None = None
    for each in done:
        made = []
        for commit in each.commits:
            for place, raw in enumerate(commit.events):
                event = json.loads(raw)
                before = None if event["version"] == 1 else state
                state = event["changes"] if before is None else apply_changes(before, event["changes"])
                made.append(Made(before, event, state, place == len(commit.events) - 1))
        yield made


def versions(done: list[Done]) -> Iterator[Made]:
    return (made for each in made_in(done) for made in each)


def lives(done: list[Done]) -> list[list[Made]]:
    """The versions of each session, from its creation to the last before it was deleted."""
    lives: list[list[Made]] = []
    for made in versions(done):
        if made.before is None:
            lives.append([])
        lives[-1].append(made)
    return lives


def text(value: Any) -> str:
    """By which 1, 1.0 and true are three values, and the order of keys is none."""
    return json.dumps(value, sort_keys=True)


Law = Callable[[list[Done]], None]
LAWS: list[Law] = []


def law(test: Law, histories: int = 30) -> Callable[[], None]:
    """The test of some histories, the same ones in every run."""

    def test_some() -> None:
        for number in range(histories):
            hold([test], f"{test.__name__} {number}")

    LAWS.append(test)
    return test_some


def hold(laws: list[Law], seed: str) -> None:
    """Raises what the first broken law raises, for the smallest history that breaks it, and tells that."""

    def broken(history: tuple[Asked, ...]) -> Exception | None:
        try:
            done = run(history)
            for law_holds in laws:
                law_holds(done)
        except Exception as error:
            return error
        return None

    history = drawn(seed)
    if broken(history) is not None:
        history = smallest(history, lambda less: broken(less) is not None)
        error = broken(history)
        assert error is not None
        error.add_note("\n".join([f"seed: {seed!r}", *(str(asked.request) for asked in history)]))
        raise error


# --- beside the model ----------------------------------------------------------------------------


def told(version: Version) -> dict[str, Any]:
    """The model's event, but for the changes."""
    event = {
        "version": version.state["version"],
        "type": version.type,
        "at": written(version.at_ms),
        "data": version.data,
        "lap_ms": version.lap_ms,
        "expired_participant_id": version.expired_participant_id,
    }
    return {name: value for name, value in event.items() if value is not None}


def said(refusal: LockstepError, allowed: frozenset[Refusal]) -> Refusal:
    """The refusal with the fields that it names, unless the contract does not say which."""
    if refusal.code != "VALIDATION_ERROR":
        return Refusal(refusal.code)
    if Refusal(refusal.code, None) in allowed:
        return Refusal(refusal.code, None)
    return Refusal(refusal.code, frozenset(violation["field"] for violation in refusal.details))


@partial(law, histories=120)
def test_service_and_model_agree_on_every_version_and_refusal(done: list[Done]) -> None:
    for each, made in zip(done, made_in(done), strict=True):
        answer = each.asked.answer
        # Ids are the model's business, names of creations and commits are not.
        for found, version in zip(made, answer.versions, strict=True):
            unnamed = found.state | {"epoch": version.state["epoch"], "commit": ""}
            assert text(unnamed) == text(version.state)
            event = {name: value for name, value in found.event.items() if name != "changes"}
            assert text(event) == text(told(version))
        if each.refusal is None:
            assert not answer.refusals
        else:
            assert said(each.refusal, answer.refusals) in answer.refusals


@law
def test_a_conflict_tells_the_state_as_it_is(done: list[Done]) -> None:
    for each in done:
        if isinstance(each.refusal, Conflict):
            assert each.state == dumps(each.refusal.details["state"])


# --- changes -------------------------------------------------------------------------------------


@law
def test_a_state_and_changes_make_the_next_state(done: list[Done]) -> None:
    stored = iter([commit.state for each in done for commit in each.commits])
    for made in versions(done):
        if made.before is not None:
            untouched = text([made.before, made.changes])
            assert dumps(applied(made.before, made.changes)) == dumps(made.state)
            assert text([made.before, made.changes]) == untouched
        if made.is_stored:
            assert dumps(made.state) == next(stored)
    assert next(stored, None) is None


@law
def test_changes_name_nothing_that_has_not_moved(done: list[Done]) -> None:
    for made in versions(done):
        if made.before is None:
            continue
        for name, value in made.changes.items():
            assert dumps(made.before[name]) != dumps(value)
        seats = {seat["participant_id"]: seat for seat in made.before["participants"]}
        for moved in made.changes.get("participants", ()):
            participant_id = moved["participant_id"]
            if moved.get("removed") is True:
                assert participant_id in seats
                assert len(moved) == 2
            elif participant_id in seats:
                assert len(moved) > 1
                for name in moved.keys() - {"participant_id"}:
                    assert dumps(seats[participant_id][name]) != dumps(moved[name])
            else:
                assert moved in made.state["participants"]


@law
def test_merged_changes_lead_from_the_first_state_to_the_last(done: list[Done]) -> None:
    for life in lives(done):
        for first in {0, len(life) // 3, max(0, len(life) - 4)}:
            for last in {first + 1, (first + len(life)) // 2, len(life) - 1}:
                moves = [made.changes for made in life[first + 1 : last + 1]]
                if moves:
                    lead(life[first].state, moves, life[last].state)


def lead(first: State, moves: list[State], last: State) -> None:
    """The moves from the first to the last, merged in one go, once more, and by halves."""
    untouched = text(moves)
    middle = len(moves) // 2
    halves = [merged(half) for half in (moves[:middle], moves[middle:]) if half]
    for changes in (merged(moves), merged([merged(moves)]), merged(halves)):
        assert dumps(apply_changes(first, changes)) == dumps(last)
        assert dumps(applied(first, changes)) == dumps(last)
    assert text(moves) == untouched


@law
def test_the_keys_of_a_state_and_of_a_participant_stay(done: list[Done]) -> None:
    for life in lives(done):
        for before, after in pairwise(made.state for made in life):
            assert list(before) == list(after)
            seats = {seat["participant_id"]: seat for seat in before["participants"]}
            for seat in after["participants"]:
                assert list(seats.get(seat["participant_id"], seat)) == list(seat)


# --- positions -----------------------------------------------------------------------------------


@law
def test_a_commit_is_named_in_the_changes_of_its_last_version(done: list[Done]) -> None:
    for each in done:
        for commit in each.commits:
            *others, last = (json.loads(event)["changes"] for event in commit.events)
            assert len(others) < MAX_TRANSITIONS
            assert "commit" in last
            assert not any("commit" in changes for changes in others)


@law
def test_the_update_of_a_commit_tells_its_events_without_their_changes(done: list[Done]) -> None:
    for each in done:
        for commit in each.commits:
            events = [json.loads(event) for event in commit.events]
            if not commit.update:
                assert [event["type"] for event in events] == ["created"]
                continue
            update = json.loads(commit.update)
            assert (update["type"], update["sessionId"]) == ("UPDATE", SESSION_ID)
            assert update["timestamp"] == commit.now_ms
            assert update["events"] == [
                {name: value for name, value in event.items() if name != "changes"} for event in events
            ]


@law
def test_the_update_of_a_commit_applies_to_one_state_and_to_no_other(done: list[Done]) -> None:
    commits = [commit for each in done for commit in each.commits]
    states = [json.loads(commit.state) for commit in commits]
    assert len({position_of(state) for state in states}) == len(states)
    for commit, (before, after) in zip(commits, pairwise([None, *states]), strict=True):
        if after["version"] == 1:
            assert not commit.update
            continue
        update = json.loads(commit.update)
        assert (update["from"], update["position"]) == (position_of(before), position_of(after))
        assert dumps(apply_update(before, update)) == commit.state
        for other in states[:40]:
            if other is not before:
                with pytest.raises(OutOfStep):
                    apply_update(other, update)


# --- many more -----------------------------------------------------------------------------------


@pytest.mark.long
def test_the_laws_hold_for_ten_thousand_histories() -> None:
    begin = secrets.token_hex(4)
    for number in range(10_000):
        hold(LAWS, f"{begin} {number}")
