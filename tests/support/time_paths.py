"""Ways to a server, simulated: what a client that measures the server's time meets on them. Nobody waits.

What happens on a path is random by its seed: answers come, somebody looks at the time, the client notices
that its machine slept. To each event belongs what the client's own clocks show then.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

EPOCH_MS = 1_704_067_200_000.0
BURST, BURST_PAUSE_MS, PING_EVERY_MS = 5, 60.0, 5_000.0
LOOKS_AT_CLOCKS_EVERY_MS = 1_000.0
SLEPT_MS = 600_000.0


class Event(NamedTuple):
    """Something happens to the client while its clocks show these.

    `learn` has what it is called with: sent, received, timestamp, received at (or None), server's error.
    """

    name: str
    """`learn`, `forget` or `look`"""
    local_ms: float
    wall_ms: float
    truth_ms: float
    """Server time, which the client cannot see."""
    answer: tuple[Any, ...] = ()

    @property
    def seen(self) -> list[Any]:
        """What the client gets of it."""
        return [self.name, self.local_ms, self.wall_ms, *([self.answer] if self.answer else [])]


Delay = Callable[[Random], float]


@dataclass(frozen=True)
class Path:
    """What a way is like; delays in ms, each way of each question drawn anew."""

    name: str
    there: Delay
    back: Delay
    drift_ppm: float = 100.0
    """The client's clock, at most, in either direction."""
    resolution_ms: float = 0.001
    """What it is rounded to, up or down, as browsers do."""
    server_error_ms: float = 0.5
    """What the server says its own error is; it is anything within."""
    slews_ppm: float = 0.0
    """The server's clock, in either direction, from some instant on and for some time."""
    corrects_ms: float = 0.0
    """The process that answers finds that it is off by this, says so, and slews what it says."""
    sleeps_ms: float = 0.0
    runs_on: bool = False
    """Whether the client's clock does, while its machine sleeps."""
    by_rest: bool = False
    """The server says one instant only, in whole ms, as in /v1/time."""
    pings: int = 40
    looks: int = 6
    """At the time, after each answer."""


def around(least_ms: float, jitter_ms: float, spikes: float = 0.0, spike_ms: float = 0.0) -> Delay:
    """At least so much, a jitter of this mean, and in some cases a spike up to so much more."""

    def delay(rng: Random) -> float:
        spike = rng.uniform(0, spike_ms) if rng.random() < spikes else 0.0
        return least_ms + rng.expovariate(1 / jitter_ms) + spike

    return delay


_LAN = around(0.1, 0.05)
_WIFI = around(1.0, 2.0, 0.05, 100.0)
_MOBILE = around(20.0, 15.0, 0.1, 400.0)
PATHS = (
    Path("LAN", _LAN, _LAN),
    Path("LAN, clock in whole ms", _LAN, _LAN, resolution_ms=1.0),
    Path("Wi-Fi", _WIFI, _WIFI),
    Path("Wi-Fi, clock in 100 ms", _WIFI, _WIFI, resolution_ms=100.0),
    Path("Wi-Fi, by REST", _WIFI, _WIFI, by_rest=True),
    Path("4G", _MOBILE, _MOBILE),
    Path("20 ms there, 60 ms back", around(20.0, 1.0), around(60.0, 3.0)),
    Path("Wi-Fi, drift of 200 ppm", _WIFI, _WIFI, drift_ppm=200.0),
    Path("Wi-Fi, a sleep of 10 minutes, clock stands still", _WIFI, _WIFI, sleeps_ms=SLEPT_MS),
    Path("Wi-Fi, a sleep of 10 minutes, clock runs on", _WIFI, _WIFI, sleeps_ms=SLEPT_MS, runs_on=True),
    Path("Wi-Fi, a sleep of 200 ms, clock stands still", _WIFI, _WIFI, sleeps_ms=200.0),
    Path("LAN, server slewed by 500 ppm", _LAN, _LAN, slews_ppm=500.0),
    Path("Wi-Fi, server slewed by 1,000 ppm", _WIFI, _WIFI, slews_ppm=1_000.0),
    Path("LAN, server corrects itself by 1 s", _LAN, _LAN, corrects_ms=1_000.0),
)


@dataclass
class _World:
    path: Path
    rng: Random
    at_ms: float = 0.0
    """True time since the beginning."""
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        path, rng = self.path, self.rng
        self.rate = 1 + rng.uniform(0.5, 1) * rng.choice([-1, 1]) * path.drift_ppm * 1e-6
        self.local_ms = rng.uniform(100, 100_000)
        self.truth_ms = EPOCH_MS + rng.uniform(0, 1e9)
        self.wall_ms = self.truth_ms + rng.uniform(-5_000, 5_000)
        self.salt = rng.random()
        self.process_error_ms = 0.0
        lasts_ms = path.pings * PING_EVERY_MS
        self.slews_from_ms = rng.uniform(0.1, 0.5) * lasts_ms
        self.slews_until_ms = self.slews_from_ms + rng.uniform(0.1, 0.5) * lasts_ms
        self.slewing = rng.choice([-1, 1]) * path.slews_ppm * 1e-6
        self.correction_ms = rng.choice([-1, 1]) * path.corrects_ms

    def run(self) -> list[Event]:
        sleeps_after = self.rng.randrange(BURST + 2, self.path.pings - 2) if self.path.sleeps_ms else None
        self.look()
        burst = BURST
        for number in range(self.path.pings):
            slept = self.ping(sleeps=number == sleeps_after)
            burst = BURST if slept else burst - 1
            self.pass_(BURST_PAUSE_MS if burst > 0 else PING_EVERY_MS, self.path.looks)
        return self.events

    def ping(self, sleeps: bool) -> bool:
        """A question and its answer. The machine sleeps, if it does, before, while it waits, or after."""
        when = self.rng.choice(["before", "there", "back", "after"]) if sleeps else None
        if when == "before":
            self.sleep()
            self.notice()
        sent_ms = self.reading_ms()
        self.pass_(self.path.there(self.rng))
        if when == "there":
            self.sleep()
        self.process_error_ms = self.rng.uniform(-1, 1) * self.path.server_error_ms
        received_at_ms = self.told_ms()
        self.pass_(self.rng.uniform(0.02, 0.3), looks=0)
        timestamp_ms = max(received_at_ms, self.told_ms())
        error_ms = round(self.path.server_error_ms + abs(self.process_off_ms()), 3)
        self.pass_(self.path.back(self.rng))
        if when == "back":
            self.sleep()
        told: tuple[float, float | None] = (timestamp_ms, received_at_ms)
        if self.path.by_rest:
            told = (math.floor(timestamp_ms), None)
        answer = (sent_ms, self.reading_ms(), *told, error_ms)
        self.happens("look")
        self.happens("learn", answer)
        self.happens("look")
        if when == "after":
            self.sleep()
        if when in ("there", "back", "after"):
            self.notice()
        return sleeps

    def notice(self) -> None:
        """A client that looks at its clocks every second sees that it slept; short ones it does not see."""
        self.pass_(self.rng.uniform(0, LOOKS_AT_CLOCKS_EVERY_MS))
        if self.path.sleeps_ms > 1_000 and self.rng.random() < 0.5:  # and some don't look
            self.happens("forget")

    def pass_(self, lasts_ms: float, looks: int = 1) -> None:
        instants = sorted(self.rng.uniform(0, lasts_ms) for _ in range(looks))
        gone_ms = 0.0
        for instant in instants:
            self.advance(instant - gone_ms)
            self.look()
            gone_ms = instant
        self.advance(lasts_ms - gone_ms)

    def advance(self, lasts_ms: float, is_asleep: bool = False) -> None:
        slewed_ms = min(self.at_ms + lasts_ms, self.slews_until_ms) - max(self.at_ms, self.slews_from_ms)
        self.truth_ms += lasts_ms + self.slewing * max(0.0, slewed_ms)
        self.at_ms += lasts_ms
        self.wall_ms += lasts_ms
        if not is_asleep or self.path.runs_on:
            self.local_ms += lasts_ms * self.rate

    def sleep(self) -> None:
        self.advance(self.path.sleeps_ms, is_asleep=True)

    def look(self) -> None:
        self.happens("look")

    def happens(self, name: str, answer: tuple[Any, ...] = ()) -> None:
        self.events.append(Event(name, self.reading_ms(), math.floor(self.wall_ms), self.truth_ms, answer))

    def reading_ms(self) -> float:
        """What the client's clock shows: as in browsers, rounded up from a random part of each unit on."""
        unit = self.path.resolution_ms
        if unit == 0.001:
            return round(self.local_ms, 3)
        cell = math.floor(self.local_ms / unit)
        threshold = Random(f"{self.salt} {cell}").random()
        return (cell + (self.local_ms / unit - cell >= threshold)) * unit

    def told_ms(self) -> float:
        """What the process that answers says the time is."""
        off_ms = self.process_off_ms() + self.process_error_ms
        return math.floor((self.truth_ms + off_ms) * 1000) / 1000

    def process_off_ms(self) -> float:
        """What it has still to slew, by 20%."""
        since_ms = self.at_ms - self.slews_from_ms
        if since_ms < 0 or not self.correction_ms:
            return 0.0
        return math.copysign(max(0.0, abs(self.correction_ms) - since_ms * 0.2), self.correction_ms)


def events_of(path: Path, seed: int) -> list[Event]:
    return _World(path, Random(f"{path.name} {seed}")).run()
