"""The clocks: a state holds what remained at `cycle_started_at`; everything else is arithmetic."""

import math
from datetime import datetime
from typing import NamedTuple

from lockstep_client.types import ClockKind, Participant, State


class ClockReading(NamedTuple):
    """The clock that runs, or stands still while pending or paused.

    `ms` remain, or in kind "elapsed" have passed.
    """

    kind: ClockKind
    ms: float


class Lap(NamedTuple):
    """The lap that is being run: its number, counted from 1, and for how long it has been run."""

    number: int
    ms: float


def ran_ms(state: State, now_ms: float) -> float:
    """For how long the clock has been running since `cycle_started_at`: 0 unless the session is running.

    `now_ms` is server time in epoch ms, here and below. Never negative: an instant before the beginning gives
    no time back. Where running out ends the turn or the session, nothing is charged beyond the deadline: what
    comes then is for the server to say. With `on_timeout: "flag"` the turn goes on, and so does this.
    """
    if state["status"] != "running" or state["cycle_started_at"] is None:
        return 0
    deadline_ms = state["deadline_ms"]
    if state["on_timeout"] != "flag" and deadline_ms is not None:
        now_ms = min(now_ms, deadline_ms)
    return max(0, now_ms - _epoch_ms(state["cycle_started_at"]))


def session_clock(state: State, now_ms: float) -> ClockReading | None:
    """What the session's clock shows; None when the session is over.

    A clock that has run out stays at its end until the server says what that means.
    """
    clock = state["clock"]
    if clock is None:
        return None
    ran = ran_ms(state, now_ms)
    if clock["kind"] == "elapsed":
        return ClockReading("elapsed", clock["elapsed_ms"] + ran)
    return ClockReading(clock["kind"], max(0, clock["remaining_ms"] - ran))


def over_ms(state: State, now_ms: float) -> float:
    """How long the running clock has been over: 0 unless it has run out and the turn goes on.

    The turn goes on with `on_timeout: "flag"`. It counts from the instant at which the clock ran out. What
    makes the server reckon anew makes this begin anew too: a resume, an `adjust`, and in global, where it
    changes nothing else of the clock, a switch.
    """
    clock = state["clock"]
    if clock is None or clock["kind"] == "elapsed":
        return 0
    return max(0, ran_ms(state, now_ms) - clock["remaining_ms"])


def remaining_ms(state: State, participant: Participant, now_ms: float) -> float | None:
    """What one of the state's participants has left, or None where it has no clock to show.

    Of its own bank in per_participant, of the group's in per_group; of the one clock in global (everybody's)
    and per_cycle (only of whoever's turn it is).
    """
    match state["sync_mode"]:
        case "per_participant":
            return _bank_ms(state, participant, participant["is_active"], now_ms)
        case "per_group":
            active = active_participant(state)
            is_spent = active is not None and participant.get("group_id") == active.get("group_id")
            return _bank_ms(state, participant, is_spent, now_ms)
        case "per_cycle" if not participant["is_active"]:
            return None
        case "per_cycle" | "global":
            clock = session_clock(state, now_ms)
            return None if clock is None else clock.ms
        case _:
            return None


def _bank_ms(state: State, participant: Participant, is_spent: bool, now_ms: float) -> float | None:
    """What is left of a bank, which is spent where it is the clock that runs."""
    left_ms = participant["time_remaining_ms"]
    return None if left_ms is None else max(0, left_ms - (ran_ms(state, now_ms) if is_spent else 0))


def used_ms(state: State, participant: Participant, now_ms: float) -> float:
    """How much time a participant's turns have taken so far, the one that is going on included."""
    return participant["time_used_ms"] + (ran_ms(state, now_ms) if participant["is_active"] else 0)


def current_lap(state: State, now_ms: float) -> Lap | None:
    """The lap that is being run, in count_up; None in the other modes and when it is over."""
    if state["sync_mode"] != "count_up" or state["clock"] is None:
        return None
    return Lap(state["lap_count"] + 1, state["lap_elapsed_ms"] + ran_ms(state, now_ms))


def active_participant(state: State) -> Participant | None:
    """The participant whose turn it is, also while paused."""
    active_id = state["active_participant_id"]
    return next((each for each in state["participants"] if each["participant_id"] == active_id), None)


def format_clock(ms: float, *, decimals: int = 0, up: bool = False) -> str:
    """A clock's face: "4:59", "1:00:00", with decimals (3 at most) "0:09.3".

    What counts down is rounded up, so that it shows zero only when nothing is left; what counts `up` is
    rounded down.
    """
    unit = 10 ** (3 - decimals)
    units = math.floor(ms / unit) if up else math.ceil(ms / unit)
    minutes, seconds = divmod(units * unit // 1000, 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    face = f"{hours}:{minutes_of_hour:02d}" if hours else f"{minutes}"
    fraction = f".{units % 10**decimals:0{decimals}d}" if decimals else ""
    return f"{face}:{seconds:02d}{fraction}"


def _epoch_ms(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp() * 1000)
