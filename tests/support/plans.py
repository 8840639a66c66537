"""Sessions and commands at random, and what the engine makes of them."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from lockstep.errors import LockstepError
from lockstep.rules.engine import Spec
from lockstep.rules.state import Mode, OnTimeout, Participant, Session
from lockstep.rules.steps import Step, Transition
from tests.support import settled_rules as engine
from tests.support.sessions_under_test import DAY, EPOCH, NOBODY, SESSION, T0

ALLOWED_POLICIES = {
    Mode.PER_PARTICIPANT: tuple(OnTimeout),
    Mode.PER_GROUP: tuple(OnTimeout),
    Mode.PER_CYCLE: tuple(OnTimeout),
    Mode.GLOBAL: (OnTimeout.EXPIRE, OnTimeout.FLAG),
    Mode.COUNT_UP: (OnTimeout.EXPIRE,),
}


@dataclass(frozen=True)
class Command:
    """A command at an instant; `peeks` are settles before it: (how much earlier, at most how many)."""

    name: str
    at_ms: int
    arguments: dict[str, Any]
    peeks: tuple[tuple[int, int], ...] = ()

    def __call__(self, session: Session) -> Step:
        """What the engine makes of it. Raises what the engine raises."""
        rule: Callable[..., Step] = getattr(engine, self.name)
        return rule(session, self.at_ms, **self.arguments)


@dataclass(frozen=True)
class Plan:
    """A session to create at T0, and what is then asked of it."""

    spec: Spec
    commands: tuple[Command, ...]

    def created(self) -> Step:
        return engine.create(self.spec, EPOCH, T0)

    def forwards(self) -> "Plan":
        """The same, on a clock that does not step backwards."""
        latest = itertools.accumulate((command.at_ms for command in self.commands), max)
        return Plan(
            self.spec, tuple(replace(c, at_ms=at) for c, at in zip(self.commands, latest, strict=True))
        )


_MODES = st.sampled_from(Mode)
_TIMES = st.sampled_from([5, 8, 13, 1, 2, 3, 21, 34, 55, 1_000, DAY - 1, DAY])
_MAYBE_A_TIME = st.none() | _TIMES
_BUDGETS = st.tuples(*[_TIMES] * 5)
_GROUPS = st.sampled_from(["red", "blue", "green"])
_SEATS = st.tuples(_GROUPS, st.integers(0, 3), _MAYBE_A_TIME)
_SOME, _ANY = st.lists(_SEATS, min_size=1, max_size=5), st.lists(_SEATS, max_size=5)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """All modes and policies; times that are over soon, or as long as they may be."""
    mode = draw(_MODES)
    drawn = draw(_ANY if mode in (Mode.GLOBAL, Mode.COUNT_UP) else _SOME)
    budgets = draw(_BUDGETS)
    in_order, with_groups = draw(st.booleans()), draw(st.booleans()) or mode is Mode.PER_GROUP
    seats = []
    for place, (group, index, budget_ms) in enumerate(drawn):
        if mode is Mode.PER_PARTICIPANT:
            budget_ms = budgets[place]
        elif mode is Mode.PER_GROUP:
            budget_ms = budgets[len(group) - len("red")]
        seats.append(
            Participant(
                participant_id=_id(place),
                participant_index=place if in_order else index,
                budget_ms=budget_ms,
                remaining_ms=budget_ms,
                group_id=group if with_groups else None,
            )
        )
    return Spec(
        session_id=SESSION,
        mode=mode,
        on_timeout=draw(_POLICIES[mode]),
        participants=tuple(seats),
        total_time_ms=draw(_TIMES if mode is Mode.GLOBAL else _MAYBE_A_TIME),
        time_per_cycle_ms=draw(_TIMES if mode is Mode.PER_CYCLE else _MAYBE_A_TIME),
        increment_ms=draw(_INCREMENTS),
        max_time_ms=draw(_MAYBE_A_TIME),
        metadata=draw(_METADATA),
        presence=draw(st.booleans()),
    )


_POLICIES = {mode: st.sampled_from(policies) for mode, policies in ALLOWED_POLICIES.items()}
_INCREMENTS = st.sampled_from([0, 2, 1, 5])
_METADATA = st.sampled_from([None, {"round": 1, "names": ["x", None]}])
_WHILE_RUNNING = ["switch"] * 7 + ["adjust"] * 2 + ["pause"] * 2 + ["resume"]
_WHILE_PAUSED = ["resume"] * 6 + ["adjust"] * 4 + ["pause"] + ["switch"]
_BEFORE = st.sampled_from(
    [["start"], ["start"], ["start"], ["adjust", "start"], ["adjust", "adjust", "start"], []]
)
_AFTER = st.sampled_from([[], [], [], ["complete"], ["complete", "complete"], ["cancel"], ["start"]])
_WAITS = st.sampled_from([1, 0, 0, 1, 2, 3, 4, 5, 5, 8, 8, 13, 21, -1, -2, -8])
_DELTAS = (1, 2, 5, 13, -1, -2, -3, -5, -8, -13, -34, DAY, -DAY)
_PEEKS = st.sampled_from(
    [
        (),
        (),
        ((0, 1),),
        ((0, 500),),
        ((1, 500),),
        ((0, 1), (0, 1)),
        ((5, 1), (2, 2)),
        ((9, 500), (5, 1), (0, 2)),
    ]
)
_ASKED = st.tuples(_WAITS, st.integers(0, 11), st.integers(0, 23), st.integers(0, 23), _PEEKS)
_ASKINGS = st.lists(_ASKED, min_size=4, max_size=18)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Mostly sessions that get going soon, and much at the very instants that matter."""
    spec = draw(specs())
    before, after, asked = draw(_BEFORE), draw(_AFTER), draw(_ASKINGS)
    at_ms, is_paused = T0, False
    commands = []
    for place, (wait_ms, choice, one, other, peeks) in enumerate(asked):
        at_ms += wait_ms
        name = (_WHILE_PAUSED if is_paused else _WHILE_RUNNING)[choice]
        if place < len(before):
            name = before[place]
        elif place >= len(asked) - len(after):
            name = after[place - len(asked)]
        is_paused = name == "pause" or (is_paused and name != "resume")
        commands.append(Command(name, at_ms, arguments(spec, name, one, other), peeks))
    return Plan(spec, tuple(commands))


_NEWCOMERS = st.tuples(st.integers(0, 7), st.none() | st.integers(0, 3), _MAYBE_A_TIME, st.none() | _GROUPS)
_COMINGS = st.lists(_NEWCOMERS, min_size=1, max_size=2, unique_by=lambda newcomer: newcomer[0])
_NOTES = st.sampled_from([{}, {"round": 2}, {"round": True}, {"names": None}, {"names": {"a": "A"}}])
_VISITS = st.lists(
    st.tuples(st.sampled_from(["seat", "seat", "seat", "unseat", "unseat", "annotate"]), st.integers(0, 18)),
    min_size=2,
    max_size=8,
)


@st.composite
def plans_with_visits(draw: st.DrawFn) -> Plan:
    """The same, while participants come and leave, and metadata changes."""
    plan = draw(plans())
    commands = list(plan.commands)
    for name, place in draw(_VISITS):
        at_ms = commands[min(place, len(commands) - 1)].at_ms
        said: dict[str, Any] = {}
        if name == "annotate":
            said["metadata"] = draw(_NOTES)
        elif name == "unseat":
            said["participant_id"] = _id(draw(st.integers(0, 7)))
        else:
            said["participants"] = [
                {
                    "participant_id": _id(number),
                    "participant_index": index,
                    "total_time_ms": bank_ms,
                    "group_id": group,
                }
                for number, index, bank_ms, group in draw(_COMINGS)
            ]
        commands.insert(place, Command(name, at_ms, said))
    return Plan(plan.spec, tuple(commands))


def _id(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def arguments(spec: Spec, name: str, one: int, other: int) -> dict[str, Any]:
    """What the command is given, by two numbers below 24; seldom what must be refused."""

    def pick(number: int, *choices: str | None) -> str | None:
        return choices[number % len(choices)]

    seats = [p.participant_id for p in spec.participants]
    if name == "start":
        return {"participant_id": pick(one, None, None, *seats)}
    if name == "switch":
        heir = NOBODY if one == 23 else pick(one, None, None, None, None, *seats)
        return {"next_participant_id": heir, "expected_participant_id": pick(other, *[None] * 12, *seats)}
    if name == "adjust":
        groups = sorted({p.group_id for p in spec.participants if p.group_id})
        fitting = {Mode.PER_PARTICIPANT: seats, Mode.PER_GROUP: groups + seats}.get(spec.mode, [None])
        target = pick(other, None, NOBODY, *seats) if other > 21 else pick(other, *fitting)
        return {"delta_ms": _DELTAS[one % len(_DELTAS)], "target": target}
    return {}


def settled(session: Session, now_ms: int) -> Step:
    """All that is due by `now_ms`, in as many steps as it takes."""
    now_ms = at_or_after(session, now_ms)
    step = Step(session)
    for _ in range(100):
        if not engine.is_due(step.session, now_ms):
            return step
        step = step.followed_by(engine.settle(step.session, now_ms))
    raise AssertionError("what is due never ends")


def at_or_after(session: Session, at_ms: int) -> int:
    """The instant that a command sees: never one before the state's own."""
    return max(at_ms, session.updated_at_ms)


def obey(session: Session, command: Command) -> tuple[Step, LockstepError | None]:
    """The command's step; if it is refused, what fell due before it, and the refusal."""
    try:
        return command(session), None
    except LockstepError as error:
        return settled(session, command.at_ms), error


def moves(plan: Plan) -> Iterator[tuple[Session, Transition, Command | None]]:
    """Each transition after the creation, the state before it, and the command that asked for it, if any."""
    session = plan.created().session
    for command in plan.commands:
        due = settled(session, command.at_ms)
        for transition in due.transitions:
            yield session, transition, None
            session = transition.session
        decided, refusal = obey(session, command)
        if refusal is None and decided.transitions:
            (transition,) = decided.transitions
            yield session, transition, command
            session = transition.session
