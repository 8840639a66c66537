"""How much a caller may have: requests in a window of time, and connections at once."""

import math
import re
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct

from lockstep.contract import Charge, Counters
from lockstep.errors import BrokerUnavailable, RateLimited
from lockstep.metrics import Metrics

# For so many clients this process counts while the store is away, and remembers refusals.
MAX_REMEMBERED = 10_000
ROOM_MADE_AT_ONCE = 1000
MAX_AMOUNT = 1_000_000_000
MAX_WINDOW_S = 366 * 86_400
MAX_RATE = f"at most {MAX_AMOUNT} in 1 to {MAX_WINDOW_S} s"

GENERAL = "Too many requests, please try again later"
SWITCH = "Too many cycle switches for this session, please slow down"


class Rate(Struct, frozen=True):
    """At most `amount` in a window that begins with the first; 0 means no limit."""

    amount: int
    window_s: int

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Reads 100/60, or 0. Raises ValueError."""
        if text == "0":
            return cls(0, 1)
        found = re.fullmatch(r"([0-9]{1,10})/([0-9]{1,10})", text)
        if found is None or int(found[1]) > MAX_AMOUNT or not 1 <= int(found[2]) <= MAX_WINDOW_S:
            raise ValueError(f"{text!r} is not a rate")
        return cls(int(found[1]), int(found[2]))


class RateLimitStatus(Struct, frozen=True):
    """What is left to a caller in the current window; what RateLimit-* headers say."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


class FixedWindows:
    """Counts in windows that begin with the first count, for as many keys as are remembered."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[int, float]] = {}

    def look(self, charge: Charge, now_s: float) -> tuple[int, int]:
        """The count so far, and the ms until the window's end."""
        count, ends_s = self._windows.get(charge.key, (0, 0.0))
        return (0, 0) if ends_s <= now_s else (count, math.ceil((ends_s - now_s) * 1000))

    def spend(self, charge: Charge, now_s: float) -> tuple[int, int]:
        """The count, this one included, and the ms until the window's end."""
        count, ends_s = self._windows.get(charge.key, (0, 0.0))
        if ends_s <= now_s:
            count, ends_s = 0, now_s + charge.window_ms / 1000
            self._make_room(now_s)
        self._windows[charge.key] = (count + 1, ends_s)
        return count + 1, math.ceil((ends_s - now_s) * 1000)

    def _make_room(self, now_s: float) -> None:
        if len(self._windows) < MAX_REMEMBERED:
            return
        # For many at once: a caller with ever new addresses must not make each request go through them all.
        live = [(key, window) for key, window in self._windows.items() if window[1] > now_s]
        self._windows = dict(live[-(MAX_REMEMBERED - ROOM_MADE_AT_ONCE) :])


class RateLimits:
    """REST's limits: by caller, and of switches by session. Shared by all processes through the store."""

    def __init__(
        self,
        counters: Counters,
        general: Rate,
        switch: Rate,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._general = general
        self._switch = switch
        self._metrics = metrics
        self._monotonic = monotonic
        self._local_windows = FixedWindows()
        # Until then the store need not be asked, since it has refused.
        self._refused_until_s: dict[str, float] = {}

    def charge(self, client: str) -> Awaitable[RateLimitStatus] | None:
        """Begin to count a request; None where nothing limits it.

        Raises RateLimited, and so may the awaitable that it returns. The count is on its way to the store by
        then, so that what the caller asks of the store next goes along with it.
        """
        if not self._general.amount:
            return None
        charge = Charge(f"general:{client}", self._general.amount, self._general.window_s * 1000)
        self.raise_if_refused(charge)
        return self._status_when_counted(charge, self._counters.spend([charge]))

    def switch_limit(self, session_id: str) -> "SwitchLimit | None":
        """What counts a switch of this session; None where nothing limits it."""
        if not self._switch.amount:
            return None
        charge = Charge(f"switch:{session_id}", self._switch.amount, self._switch.window_s * 1000)
        return SwitchLimit(self, charge)

    def raise_if_refused(self, charge: Charge) -> None:
        """Raises RateLimited where this process knows already that the window is full."""
        left_s = self._refused_until_s.get(charge.key, 0.0) - self._monotonic()
        if left_s > 0:
            raise self._refusal(charge, left_s)

    def status_after(self, charge: Charge, count: int, reset_ms: int) -> RateLimitStatus | None:
        """What is left after a count; None, and remembered, where it was one too many."""
        if count > charge.limit:
            if len(self._refused_until_s) >= MAX_REMEMBERED:
                self._refused_until_s.clear()
            self._refused_until_s[charge.key] = self._monotonic() + reset_ms / 1000
            return None
        return RateLimitStatus(charge.limit, charge.limit - count, math.ceil(reset_ms / 1000))

    async def _status_when_counted(
        self, charge: Charge, counted: Awaitable[list[tuple[int, int]]]
    ) -> RateLimitStatus:
        try:
            ((count, reset_ms),) = await counted
        except BrokerUnavailable:
            count, reset_ms = self._local_windows.spend(charge, self._monotonic())
        status = self.status_after(charge, count, reset_ms)
        if status is None:
            raise self._refusal(charge, reset_ms / 1000)
        return status

    def _refusal(self, charge: Charge, reset_s: float) -> RateLimited:
        kind = charge.key.partition(":")[0]
        self._metrics.limited.labels(kind).inc()
        status = RateLimitStatus(charge.limit, 0, max(1, math.ceil(reset_s)))
        return RateLimited(SWITCH if kind == "switch" else GENERAL, status.reset_s, status.headers())


class Admission:
    """One request that is counted, if it is: waited for once, by whoever comes to it first."""

    def __init__(self, charge: Awaitable[RateLimitStatus] | None) -> None:
        self._charge = charge

    async def admit(self) -> None:
        """Raises RateLimited where it was one too many."""
        charge, self._charge = self._charge, None
        if charge is not None:
            await charge


class SwitchLimit:
    """One switch of a session, which is counted when it is made and not before.

    So a caller that may not switch, or comes too late, spends nothing of what the others are allowed.
    """

    def __init__(self, rates: RateLimits, charge: Charge) -> None:
        self._rates = rates
        self.charge = charge
        self.status: RateLimitStatus | None = None

    def raise_if_refused(self) -> None:
        self._rates.raise_if_refused(self.charge)

    def on_counted(self, count: int, reset_ms: int) -> None:
        self.status = self._rates.status_after(self.charge, count, reset_ms)


class ConnectionLimits:
    """How many WebSockets at once, and how many new ones a second; 0 everywhere: no limit."""

    def __init__(
        self,
        counters: Counters,
        per_session: int,
        per_caller: int,
        per_address: int,
        in_all: int,
        per_s: int,
        metrics: Metrics,
    ) -> None:
        """`per_caller` is how many one caller may have of one session."""
        self._counters = counters
        self._per_session = per_session
        self._per_caller = per_caller
        self._per_address = per_address
        self._in_all = in_all
        self._per_s = per_s
        self._metrics = metrics
        self._open = 0
        self._second = 0
        self._in_second = 0

    def count_and_check(self) -> str | None:
        """Count one more attempt in this second; which limit of this process, if any, it exceeds."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._per_s and self._in_second > self._per_s:
            return self._refused("connection_rate")
        if self._in_all and self._open >= self._in_all:
            return self._refused("process")
        return None

    async def enter(self, session_id: str | None, caller: str, address: str | None) -> str | None:
        """Let a client in, or return the limit that forbids it. One that was let in has to leave.

        Into a session, with a connection from an address, or both at once. `caller` is empty where no limit
        of its own applies.
        """
        self._open += address is not None
        entered: list[tuple[str, int]] = []
        for key, limit in self._limits_of(session_id, caller, address):
            if not await self._counters.enter(key, limit):
                for earlier in entered:
                    self._counters.leave(*earlier)
                self._open -= address is not None
                return self._refused(key.partition(":")[0])
            entered.append((key, limit))
        return None

    def leave(self, session_id: str | None, caller: str, address: str | None) -> None:
        self._open -= address is not None
        for key, limit in self._limits_of(session_id, caller, address):
            self._counters.leave(key, limit)

    def _limits_of(self, session_id: str | None, caller: str, address: str | None) -> list[tuple[str, int]]:
        """Those that there are."""
        # A caller's own limits come first: what they refuse was never counted against others.
        limits = []
        if session_id is not None and caller and self._per_caller:
            limits.append((f"caller:{session_id}:{caller}", self._per_caller))
        if address is not None and self._per_address:
            limits.append((f"address:{address}", self._per_address))
        if session_id is not None and self._per_session:
            limits.append((f"session:{session_id}", self._per_session))
        return limits

    def _refused(self, limit: str) -> str:
        self._metrics.limited.labels(limit).inc()
        return limit
