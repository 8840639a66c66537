"""Histories at random: what is asked of one session id over its lives, and when.

The model goes along while a history is drawn, so that much of it is about those who are there, and at the
very instants that matter.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.support.request_model import DAY_MS, NEEDS_SOMEBODY, POLICIES
from tests.support.session_model import Answer, Request, SessionModel, StoreModel

T0_MS = 1_704_067_200_000
SESSION_ID = "00000000-0000-4000-8000-00000000005e"
IDS = [f"{place:08x}-0000-4000-8000-00000000000a" for place in range(10)]
GROUPS = ["red", "blue", "green"]
MAX_REQUESTS = 30
EPOCHS = [f"0lqtw8xc0{place:04d}" for place in range(MAX_REQUESTS)]
"""One for each request: a later creation has a greater one."""


class Draft(NamedTuple):
    """A request before it is known what there is to ask about: numbers that pick from what there will be."""

    kind: int
    wait: int
    one: int
    other: int
    extra: int


@dataclass(frozen=True)
class Asked:
    """A request, the epoch of the session that it creates if it does, and what the model answers it."""

    request: Request
    epoch: str
    answer: Answer = field(repr=False)


def drawn(seed: str) -> tuple[Asked, ...]:
    """All modes, all commands, deletions and creations anew; most of it makes sense. Equal of equal seeds."""
    chance, store, now_ms, history = random.Random(seed), StoreModel(), T0_MS, []
    for place in range(chance.randint(1, MAX_REQUESTS)):
        draft = Draft(*(chance.randrange(choices) for choices in (32, 24, 64, 64, 64)))
        now_ms += wait_ms(store.session, now_ms, draft.wait)
        request = drafted(store.session, now_ms, draft)
        history.append(Asked(request, EPOCHS[place], store.ask(request, EPOCHS[place])))
    return tuple(history)


def smallest(
    history: tuple[Asked, ...], is_like_it: Callable[[tuple[Asked, ...]], bool]
) -> tuple[Asked, ...]:
    """What is left of a history when nothing more can be left out, and it is still like it was."""
    for place in reversed(range(len(history))):
        less = answered([*history[:place], *history[place + 1 :]])
        if is_like_it(less):
            return smallest(less, is_like_it)
    return history


def answered(history: list[Asked]) -> tuple[Asked, ...]:
    store = StoreModel()
    return tuple(
        Asked(asked.request, asked.epoch, store.ask(asked.request, asked.epoch)) for asked in history
    )


# --- when ----------------------------------------------------------------------------------------

_WAITS_MS = (0, 1, 0, 7, 300, 999, 1_000, 1_001, 2_500, 5_000, -3, -2_000)
_AROUND_DEADLINE_MS = (0, -1, 1, 0, 900, 2_000, 3_700)


def wait_ms(session: SessionModel | None, now_ms: int, choice: int) -> int:
    """Until the next request: some ms, or until about the deadline, or long after it."""
    if choice < len(_WAITS_MS):
        return _WAITS_MS[choice]
    deadline_ms = None if session is None else session.deadline_ms
    if session is None or deadline_ms is None:
        return choice
    choice -= len(_WAITS_MS)
    if choice < len(_AROUND_DEADLINE_MS):
        return deadline_ms - now_ms + _AROUND_DEADLINE_MS[choice]
    if session.mode == "per_cycle":
        # So many cycles may run out meanwhile; more than one commit settles, now and then.
        cycles = (3, 4, 5, 7, 505)[choice - len(_AROUND_DEADLINE_MS)]
        return deadline_ms - now_ms + cycles * int(session.given["time_per_cycle_ms"])
    return DAY_MS * 2


# --- what ----------------------------------------------------------------------------------------


def _mixed(**weights: int) -> list[str]:
    """32 names, each as often as it says; the commonest come first and stand in for what is missing."""
    names = [name for name, weight in weights.items() for _ in range(weight)]
    return (names + [next(iter(weights))] * 32)[:32]


_KINDS = {
    None: _mixed(create=29, delete=1, start=1, annotate=1),
    "pending": _mixed(start=20, seat=4, unseat=2, annotate=1, adjust=2, pause=1, cancel=1, complete=1),
    "running": _mixed(
        switch=10,
        seat=5,
        unseat=5,
        annotate=3,
        pause=3,
        adjust=3,
        complete=2,
        delete=1,
        create=1,
        resume=1,
    ),
    "paused": _mixed(
        resume=14, seat=5, unseat=4, annotate=2, adjust=3, complete=1, switch=1, pause=1, cancel=1
    ),
    "ended": _mixed(delete=17, annotate=4, complete=6, create=1, seat=1, unseat=1, switch=1, resume=1),
}


def drafted(session: SessionModel | None, now_ms: int, draft: Draft) -> Request:
    status = session and session.status
    name = _KINDS[status if status in _KINDS else "ended"][draft.kind]
    if name == "delete":
        return Request(name, now_ms)
    body = creation(draft) if name == "create" else _BODIES[name](session, draft)
    if name == "create":
        return Request(name, now_ms, body)
    return Request(name, now_ms, with_extras(session, body, draft.extra))


_TIMES_MS = (1_000, 2_000, 1_001, 5_000, DAY_MS)
_METADATA: list[Any] = [
    None,
    {"round": 1, "names": ["x", None]},
    {"a": {"b": 1, "c": None}, "z": True},
    {},
    {"k": "x" * 4_000},
]


def creation(draft: Draft) -> dict[str, Any]:
    """Of any mode and policy; seldom one that must be refused."""
    mode = list(POLICIES)[draft.one % 5]
    seats = draft.other % 6
    seats += mode in NEEDS_SOMEBODY and seats == 0 and draft.extra != 63
    with_groups = mode == "per_group" or draft.kind % 4 == 1
    participants = []
    for place in range(seats):
        group = GROUPS[(place * (draft.wait + 1)) % 3]
        budget_ms = _TIMES_MS[(draft.extra + place) % 5]
        if mode == "per_group":
            budget_ms = _TIMES_MS[(draft.extra + len(group)) % 5]
        each: dict[str, Any] = {"participant_id": IDS[place], "total_time_ms": budget_ms}
        if mode not in ("per_participant", "per_group") and draft.extra % 2:
            del each["total_time_ms"]
        if draft.kind % 3 == 1:
            each["participant_index"] = (place * 7 + draft.extra) % 4
        if with_groups:
            each["group_id"] = group
        participants.append(each)
    body = {
        "session_id": SESSION_ID,
        "sync_mode": mode,
        "on_timeout": (None, *POLICIES[mode])[draft.extra % (len(POLICIES[mode]) + 1)],
        "participants": participants,
        "increment_ms": (None, 0, 700, 2_000)[draft.wait % 4],
        "metadata": _METADATA[draft.wait % 5],
    }
    if mode == "global" or draft.extra % 5 == 1:
        body["total_time_ms"] = _TIMES_MS[draft.wait % 5]
    if mode == "per_cycle" or draft.extra % 7 == 1:
        body["time_per_cycle_ms"] = _TIMES_MS[draft.wait % 5]
    if draft.wait % 3 == 1:
        body["max_time_ms"] = _TIMES_MS[draft.other % 5]
    if draft.one % 4:
        body["presence"] = (None, True, False, True)[draft.one % 4]
    if draft.extra == 62:
        body |= {"on_timeout": "advance", "colour": 1}
    return body


def _pick(choice: int, *among: Any) -> Any:
    return among[choice % len(among)]


def _seated(session: SessionModel | None) -> list[str]:
    return [seat.participant_id for seat in session.seats] if session is not None else []


def _somebody(session: SessionModel | None, choice: int) -> Any:
    """Mostly one who is seated; else another, or what is nobody's id."""
    if choice < 58:
        return _pick(choice, *(_seated(session) or IDS[:1]))
    return _pick(choice, IDS[0].upper(), *IDS[5:9], "nobody", 7, None)


def _start(session: SessionModel | None, draft: Draft) -> Any:
    return {"participant_id": None if draft.one < 40 else _somebody(session, draft.other)}


def _switch(session: SessionModel | None, draft: Draft) -> Any:
    body: dict[str, Any] = {}
    if draft.one % 2:
        body["next_participant_id"] = _somebody(session, draft.other)
    if draft.one % 8 > 5:
        active = session and session.active
        body["expected_participant_id"] = (
            active.participant_id if active and draft.one < 56 else _somebody(session, draft.one)
        )
    return body


_DELTAS_MS = (1, 1_000, 2_500, 40_000, -1, -1_000, -2_500, -40_000, DAY_MS, -DAY_MS, 0, DAY_MS + 1, 1.5, None)


def _adjust(session: SessionModel | None, draft: Draft) -> Any:
    target: Any = None
    if session is not None and session.mode == "per_participant":
        target = _somebody(session, draft.other)
    elif draft.other > 60 or (session is not None and session.mode == "per_group"):
        target = _pick(draft.other, *GROUPS, _somebody(session, draft.other))
    return {"delta_ms": _DELTAS_MS[draft.one % (10 if draft.one < 60 else 14)], "target": target}


def _seat(session: SessionModel | None, draft: Draft) -> Any:
    """One newcomer, or some. Many of them come from where one of the same id went."""
    if draft.one > 60:
        return _pick(draft.one, {"participants": []}, {"participants": {}}, None)
    seated = _seated(session)
    free = [one for one in IDS if one not in seated] or IDS
    newcomers = []
    for place in range((1, 1, 1, 2, 3, 2)[draft.one % 6]):
        pick = draft.other + place * (draft.other != 61)
        newcomers.append(_newcomer(session, free[pick % len(free)], pick, draft))
    if draft.other == 63:
        newcomers.append(_pick(draft.one, None, 5, {"seat": 1}, {"participant_index": -1}))
    if draft.other == 62 and seated:
        newcomers.append(_newcomer(session, seated[0], 0, draft))
    return {"participants": newcomers}


def _newcomer(session: SessionModel | None, participant_id: str, pick: int, draft: Draft) -> dict[str, Any]:
    each: dict[str, Any] = {"participant_id": participant_id}
    if draft.wait % 4 == 1:
        each["participant_index"] = (draft.one + pick) % 5
    mode = session.mode if session is not None else "global"
    if mode == "per_group":
        each["group_id"] = GROUPS[pick % 3]
        is_new = all(seat.group_id != each["group_id"] for seat in session.seats) if session else True
        if is_new != (draft.one % 8 == 5):
            each["total_time_ms"] = _TIMES_MS[(draft.wait if draft.one % 8 else pick) % 5]
        return each
    if draft.wait % 5 == 2:
        each["group_id"] = GROUPS[pick % 3]
    if mode == "per_participant" or draft.one % 3 == 1:
        each["total_time_ms"] = _TIMES_MS[(pick + draft.wait) % 5]
    if draft.one > 56:
        each |= _pick(pick, {"total_time_ms": None}, {"total_time_ms": 999}, {"name": "x"}, {"group_id": ""})
    return each


def _unseat(session: SessionModel | None, draft: Draft) -> Any:
    return {"participant_id": _somebody(session, draft.other)}


_PATCHES: list[Any] = [
    *[{"a": 1}, {"a": True}, {"a": 1.0}] * 3,
    {"a": {"b": None, "d": {"e": None, "f": [None, {"g": None}]}}},
    {"a": {"b": 2}},
    {"a": None, "round": 2},
    {"a": [1, {"x": None}]},
    {},
    {"nothing": None},
    {"z": None, "y": 1},
    {"y": 0, "z": False},
    {"y": 0.0},
    {"y": -0.0},
    {"names": {"one": "é😀\u2028", "two": None}},
    {"names": None},
    {"names": []},
    {"k": "x" * 2_000},
    {"l": "y" * 2_000},
    {"k": None},
    {"big": 2**70, "small": -(2**63), "exact": 2**53 + 1},
    {"": {"": None}},
    {"removed": True, "participant_id": "x"},
    {"m" * 5_000: None, "n": "short"},
    {"k": {"l": "x" * 4_060}},
    {"a": {}},
    {"participants": [{"participant_id": IDS[0], "removed": True}]},
]


def _annotate(session: SessionModel | None, draft: Draft) -> Any:
    if draft.one > 60:
        return _pick(draft.one, {"metadata": None}, {"metadata": [1]}, {"metadata": "x"})
    return {"metadata": _PATCHES[(draft.one + draft.other) % len(_PATCHES)]}


def _nothing(session: SessionModel | None, draft: Draft) -> Any:
    return _pick(draft.one, None, {})


_BODIES = {
    "start": _start,
    "switch": _switch,
    "adjust": _adjust,
    "seat": _seat,
    "unseat": _unseat,
    "annotate": _annotate,
} | dict.fromkeys(("pause", "resume", "complete", "cancel"), _nothing)

_DATA: list[Any] = [
    {"move": "e4"},
    {},
    {"removed": True, "at": None, "version": 7},
    {"k": "x" * (1_024 - len('{"k":""}'))},
    {"k": "é" * ((1_024 - len('{"k":""}')) // 2)},
    {"k": "x" * (1_025 - len('{"k":""}'))},
    None,
    [1],
    "e4",
]


def with_extras(session: SessionModel | None, body: Any, choice: int) -> Any:
    """The same with `data` or `expected_version`; or in a form that is none."""
    if choice < 40:
        return body
    body = body or {}
    if choice < 56:
        return body | {"data": _DATA[choice - 40] if choice < 40 + len(_DATA) else _DATA[choice % 3]}
    version = session.version if session is not None else 1
    if choice < 62:
        return body | {
            "expected_version": (version, version, version, version - 1, version + 1, "1")[choice - 56]
        }
    return _pick(choice, body | {"colour": 1}, [body])
