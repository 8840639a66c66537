"""Writes clients/vectors, what every client has to make of what: python -m tests.support.client_vectors

What clocks show and what changes lead to is what the engine says. The limits of backoff, and what a measured
server's time shows, is what the Python client makes of it; the truth, which no client sees, stands beside it.
Each file says what its cases are.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from lockstep_client.backoff import after_close, backoff_ms
from msgspec.structs import replace as structs_replace

from lockstep.commands import COMMANDS
from lockstep.errors import LockstepError
from lockstep.requests import bodies
from lockstep.requests.kinds import Violations
from lockstep.rules import changes, engine
from lockstep.rules.modes import charge
from lockstep.rules.state import BANK_MODES, TERMINAL, Mode, OnTimeout, Session, Status
from lockstep.rules.state_json import from_json, to_dict
from lockstep.rules.steps import Step
from tests.support import random_histories
from tests.support.client_languages import Always, shown_times
from tests.support.sessions_under_test import EXAM, LAPS, ROUNDS, T0, TEAMS, B, D, pending
from tests.support.time_paths import PATHS, events_of

FOLDER = Path(__file__).parent.parent.parent / "clients" / "vectors"
TOO_BIG_FOR_JAVASCRIPT = str(2**60)
Vectors = dict[str, Any]


# --- clocks --------------------------------------------------------------------------------------

GIVEN: dict[str, Callable[[], Session]] = {
    "chess": lambda: pending(60_000, 45_000, increment_ms=2_000),
    "chess, advance": lambda: pending(60_000, 45_000, on_timeout=OnTimeout.ADVANCE),
    "chess, expire": lambda: pending(60_000, 45_000, on_timeout=OnTimeout.EXPIRE),
    "debate": lambda: pending(60_000, 60_000, 90_000, **TEAMS),
    "debate, advance": lambda: pending(60_000, 60_000, 90_000, **TEAMS, on_timeout=OnTimeout.ADVANCE),
    "quiz": lambda: pending(None, None, **ROUNDS),
    "quiz, flag": lambda: pending(None, 5_000, **ROUNDS, on_timeout=OnTimeout.FLAG),
    "exam": lambda: pending(None, None, **EXAM),
    "exam, flag": lambda: pending(None, **EXAM, on_timeout=OnTimeout.FLAG),
    "exam without participants": lambda: pending(**EXAM),
    "speedrun": lambda: pending(None, **LAPS),
    "speedrun with a limit": lambda: pending(None, None, **LAPS, max_time_ms=60_000),
    "stopwatch without participants": lambda: pending(**LAPS),
}


def phases(created: Session) -> Iterator[tuple[str, Session]]:
    """Sessions in every phase that this one can be in, each with what it is called."""
    yield "pending", created
    yield "cancelled", engine.cancel(created, T0 + 300).session
    started = engine.start(created, T0 + 1_000).session
    later = started
    if created.mode is not Mode.GLOBAL or created.participants:
        later = engine.switch(started, T0 + 4_210).session
    yield "running", later
    paused = engine.pause(later, T0 + 5_432).session
    yield "paused", paused
    resumed = engine.resume(paused, T0 + 20_000).session
    yield "resumed", resumed
    yield "completed", engine.complete(resumed, T0 + 21_000).session
    if resumed.deadline_ms is None:
        return
    at_ms = resumed.deadline_ms
    ran_out = engine.settle(resumed, at_ms).session
    yield "after the deadline", ran_out
    if ran_out.status is Status.RUNNING and ran_out.has_run_out:
        still = engine.pause(ran_out, at_ms + 2_500).session
        yield "flagged, paused", still
        yield "flagged, resumed", engine.resume(still, at_ms + 9_000).session
        target = ran_out.active_participant_id if created.mode in BANK_MODES else None
        yield "flagged, adjusted", engine.adjust(ran_out, at_ms + 700, delta_ms=500, target=target).session


def instants(session: Session) -> list[float]:
    """Before and after everything that there is in the session."""
    since_ms = session.updated_at_ms if session.cycle_started_at_ms is None else session.cycle_started_at_ms
    at: list[float] = [since_ms - 700, since_ms, since_ms + 1, since_ms + 1_234.25]
    if session.deadline_ms is not None:
        at += [session.deadline_ms + ms for ms in (-1, -0.5, 0, 1, 61_500)]
    return [*at, since_ms + 86_400_000]


def shown_by_engine(session: Session, at_ms: float) -> list[Any]:
    """What a client shows that has this state, at this instant, as `clocks` says."""
    deadline_ms = session.deadline_ms
    if deadline_ms is not None and at_ms >= deadline_ms:
        if session.on_timeout is OnTimeout.FLAG:
            session = engine.settle(session, deadline_ms).session
        else:
            at_ms = deadline_ms  # what comes then is for the server to say
    over_ms: float = 0
    if session.status is Status.RUNNING and session.has_run_out:
        assert session.cycle_started_at_ms is not None
        over_ms = max(0, at_ms - session.cycle_started_at_ms)
    charged = charge(session, at_ms)  # type: ignore[arg-type]
    clock_ms: Any = None if session.status in TERMINAL else charged.running_clock_ms
    has_lap = session.mode is Mode.COUNT_UP and clock_ms is not None
    left: list[Any] = [each.remaining_ms for each in charged.participants]
    if session.mode not in BANK_MODES:
        has_clock = {Mode.GLOBAL: True, Mode.COUNT_UP: False}
        left = [
            clock_ms if has_clock.get(session.mode, place == charged.active) else None
            for place in range(len(left))
        ]
    return [
        clock_ms,
        over_ms,
        [charged.lap_count + 1, charged.lap_elapsed_ms] if has_lap else None,
        left,
        [each.used_ms for each in charged.participants],
    ]


def clocks() -> Vectors:
    cases = []
    for name, given in GIVEN.items():
        for phase, session in phases(given()):
            if "," in name and phase in ("pending", "cancelled", "completed"):
                continue  # where this policy changes nothing
            shown = [[at_ms, *shown_by_engine(session, at_ms)] for at_ms in instants(session)]
            cases.append({"name": f"{name}: {phase}", "state": to_dict(session), "shown": shown})
    return {"cases": cases}


# --- changes -------------------------------------------------------------------------------------

HISTORIES, STEPS = 15, 12


def history(seed: int) -> Iterator[tuple[Step, Session]]:
    """What commands at random make of a session: each step, and the session before it."""
    rng = Random(f"vectors {seed}")
    body = random_histories.creation(rng, random_histories.uuid_of(rng))
    session = engine.create(bodies.spec(body), "0lqtw8xc0abcd", T0).session
    now_ms = T0
    for _ in range(STEPS * 3):
        now_ms += rng.choice([0, 1, 350, 1_100, 2_500])
        name, said = random_histories.command(rng, to_dict(session))
        try:
            step = decided(session, now_ms, name, said or {}).step
        except LockstepError:  # a request that says what it may not
            continue
        if step.transitions and TOO_BIG_FOR_JAVASCRIPT not in json.dumps(step.session.metadata):
            commit = f"{seed:04d}{step.session.version:04d}"
            committed = structs_replace(step.session, commit=commit)
            last = structs_replace(step.transitions[-1], session=committed)
            yield Step(committed, (*step.transitions[:-1], last)), session
            session = committed


def decided(session: Session, now_ms: int, name: str, said: dict[str, Any]) -> engine.Decision:
    violations = Violations()
    arguments = COMMANDS[name].read(said, violations)
    violations.raise_if_any()
    del arguments["expected_version"], arguments["data"]
    return engine.decide(session, now_ms, partial(COMMANDS[name].rule, **arguments))


def told(before: Session, step: Step) -> dict[str, Any]:
    """The changes of one commit, as an UPDATE has them."""
    sessions = [before, *(each.session for each in step.transitions)]
    return changes.merged([changes.between(one, other) for one, other in pairwise(sessions)])


def comes_again() -> dict[str, Any]:
    """One who leaves and comes again in one commit is removed, then new."""
    before = engine.start(pending(60_000, 60_000, 60_000, 60_000), T0).session
    said = {"participants": [{"participant_id": B, "total_time_ms": 5_000}]}
    left = decided(before, T0 + 10, "unseat", {"participant_id": B}).step
    back = left.followed_by(decided(left.session, T0 + 10, "seat", said).step)
    gone = back.followed_by(decided(back.session, T0 + 10, "unseat", {"participant_id": D}).step)
    return {
        "name": "comes again",
        "state": to_dict(before),
        "steps": [{"changes": told(before, gone), "after": to_dict(gone.session)}],
    }


def applied_changes() -> Vectors:
    cases = [comes_again()]
    for seed in range(HISTORIES):
        steps: list[dict[str, Any]] = []
        first: Session | None = None
        for step, before in history(seed):
            first = first or before
            steps.append({"changes": told(before, step)})
            if len(steps) % 6 == 0 or len(steps) == STEPS:
                steps[-1]["after"] = to_dict(step.session)
            if len(steps) == STEPS:
                break
        if first is not None:
            steps[-1]["after"] = to_dict(step.session)
            cases.append({"name": f"history {seed}", "state": to_dict(first), "steps": steps})
    return {"cases": cases}


# --- coming back ---------------------------------------------------------------------------------


def backoff() -> Vectors:
    attempts = (*range(8), 60, 2_000)
    codes = (1000, 1001, 1005, 1006, 1008, 1009, 1011, 1013, 4000, 4001, 4499, 4500, 4501, 4502, 4504, 4999)
    return {
        "limits_ms": {str(attempt): backoff_ms(attempt, Always(1)) for attempt in attempts},
        "close_codes": {str(code): after_close(code) for code in codes},
    }


# --- server time ---------------------------------------------------------------------------------


def time_samples() -> Vectors:
    cases = []
    for path in PATHS:
        events = events_of(replace(path, pings=11, looks=1), 0)
        shown = iter(shown_times(path.resolution_ms, [event.seen for event in events]))
        written = [
            [*event.seen, *next(shown), round(event.truth_ms, 3)] if event.name == "look" else event.seen
            for event in events
        ]
        cases.append({"name": path.name, "resolution_ms": path.resolution_ms, "events": written})
    return {"cases": cases}


# --- files ---------------------------------------------------------------------------------------


ABOUT = {
    "backoff.json": """
        When to come back. `limits_ms`, by number of the attempt: the wait is anything from 0 up to it,
        uniformly at random. `close_codes`, by code of the WebSocket: whether to come back at all.
    """,
    "changes.json": """
        States that changes lead to, as UPDATE of protocol v2 tells them: apply those of each step in turn.
        Where a step has `after`, that is the state then, its keys in this order.
    """,
    "clocks.json": """
        What clocks show of a state. `shown`, for each instant: [server time in epoch ms, the session's
        clock (null when over), for how long it has been over, [number of the lap, ms of it] or null, what
        each participant has left (null without a clock), what each has used].
    """,
    "time.json": """
        Measuring server time. The client's monotonic clock is rounded to `resolution_ms`. Each event begins
        with its name and what the monotonic and the wall clock show, in ms. `learn` goes on with the
        answer: [sent, received (by the monotonic clock), timestamp, receivedAt (server time; null where the
        former is all that is known, floored to the ms), the error that the server states]. `look` goes on
        with what is shown: server time, the most by which it may be wrong (null where there is no bound),
        and what the server time really is, which is only known here. `forget` is a sleep that the client
        has noticed.
    """,
}


def files() -> dict[str, str]:
    """The contents of each file, by its name: one line for each case."""
    vectors = {
        "backoff.json": backoff(),
        "changes.json": applied_changes(),
        "clocks.json": clocks(),
        "time.json": time_samples(),
    }
    return {name: _written({"about": " ".join(ABOUT[name].split())} | each) for name, each in vectors.items()}


def read(name: str) -> Vectors:
    vectors: Vectors = json.loads((FOLDER / name).read_text())
    return vectors


def _written(vectors: Vectors) -> str:
    compact = partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
    cases = ",\n".join(compact(case) for case in vectors.get("cases", ()))
    parts = [f"{compact(name)}:{compact(value)}" for name, value in vectors.items() if name != "cases"]
    if cases:
        parts.append(f'"cases":[\n{cases}\n]')
    return "{" + ",\n".join(parts) + "}\n"


def session_of(state: dict[str, Any]) -> Session:
    return from_json(json.dumps(state).encode())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, contents in files().items():
        (FOLDER / name).write_text(contents)
        print(f"{FOLDER / name}: {len(contents.encode()):,} bytes")
