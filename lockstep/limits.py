"""Who may have how much: requests in a window of time, and connections at once."""

import ipaddress
import math
import re
import time
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msgspec import Struct

from lockstep.contract import Charge, Counters
from lockstep.errors import BrokerUnavailable, RateLimited
from lockstep.metrics import Metrics

# Of so many clients the counts are kept here while the store is away, and refusals are remembered.
MAX_REMEMBERED = 10_000
ROOM_MADE_AT_ONCE = 1000
MAX_AMOUNT = 1_000_000_000
MAX_WINDOW_S = 366 * 86_400
MAX_RATE = f"at most {MAX_AMOUNT} in 1 to {MAX_WINDOW_S} s"
MAX_ADDRESS_LENGTH = 64
# As proxies write it: 192.0.2.1, 192.0.2.1:567, 2001:db8::1, [2001:db8::1], [2001:db8::1]:567; or in quotes.
_FORWARDED = re.compile(r"""\s*"?(?:\[([^\[\]]+)\](?::\d+)?|([\d.]+)(?::\d+)?|([^\[\]"]+?))"?\s*""", re.ASCII)

GENERAL = "Too many requests, please try again later"
SWITCH = "Too many cycle switches for this session, please slow down"


class Rate(Struct, frozen=True):
    """So many in a window that begins with the first; `amount` 0 means no limit."""

    amount: int
    window_s: int

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """From 100/60, or 0. Raises ValueError."""
        if text == "0":
            return cls(0, 1)
        found = re.fullmatch(r"([0-9]{1,10})/([0-9]{1,10})", text)
        if found is None or int(found[1]) > MAX_AMOUNT or not 1 <= int(found[2]) <= MAX_WINDOW_S:
            raise ValueError(f"{text!r} is not a rate")
        return cls(int(found[1]), int(found[2]))


class Standing(Struct, frozen=True):
    """Where a caller stands in his window; what RateLimit-* headers say."""

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
        # For many at once: who comes with ever new addresses would make each request go through all of them.
        live = [(key, window) for key, window in self._windows.items() if window[1] > now_s]
        self._windows = dict(live[-(MAX_REMEMBERED - ROOM_MADE_AT_ONCE) :])


class RateLimits:
    """REST's limits: by caller, and of switches by session. Shared by all processes through the store."""

    def __init__(self, counters: Counters, general: Rate, switch: Rate, metrics: Metrics) -> None:
        self._counters = counters
        self._general = general
        self._switch = switch
        self._metrics = metrics
        self._here = FixedWindows()
        # Until when the store need not be asked, since it has said no.
        self._refused_until_s: dict[str, float] = {}

    def charge(self, client: str) -> Awaitable[Standing] | None:
        """Begin to count a request; None where nothing limits it.

        Raises RateLimited, and so may what it returns. The count is on its way to the store then, so that
        what the caller asks of the store next goes along with it.
        """
        if not self._general.amount:
            return None
        charge = Charge(f"general:{client}", self._general.amount, self._general.window_s * 1000)
        self.raise_if_refused(charge)
        return self._standing(charge, self._counters.spend([charge]))

    def switches(self, session_id: str) -> "SwitchLimit | None":
        """What a switch of this session is counted by; None where nothing limits it."""
        if not self._switch.amount:
            return None
        charge = Charge(f"switch:{session_id}", self._switch.amount, self._switch.window_s * 1000)
        return SwitchLimit(self, charge)

    def raise_if_refused(self, charge: Charge) -> None:
        """Raises RateLimited where this process knows already that the window is full."""
        left_s = self._refused_until_s.get(charge.key, 0.0) - time.monotonic()
        if left_s > 0:
            raise self._refusal(charge, left_s)

    def standing(self, charge: Charge, count: int, reset_ms: int) -> Standing | None:
        """Where a caller stands who was counted; None, and known from now on, where that was one too many."""
        if count > charge.limit:
            if len(self._refused_until_s) >= MAX_REMEMBERED:
                self._refused_until_s.clear()
            self._refused_until_s[charge.key] = time.monotonic() + reset_ms / 1000
            return None
        return Standing(charge.limit, charge.limit - count, math.ceil(reset_ms / 1000))

    async def _standing(self, charge: Charge, counted: Awaitable[list[tuple[int, int]]]) -> Standing:
        try:
            ((count, reset_ms),) = await counted
        except BrokerUnavailable:
            count, reset_ms = self._here.spend(charge, time.monotonic())
        standing = self.standing(charge, count, reset_ms)
        if standing is None:
            raise self._refusal(charge, reset_ms / 1000)
        return standing

    def _refusal(self, charge: Charge, reset_s: float) -> RateLimited:
        kind = charge.key.partition(":")[0]
        self._metrics.limited.labels(kind).inc()
        standing = Standing(charge.limit, 0, max(1, math.ceil(reset_s)))
        return RateLimited(SWITCH if kind == "switch" else GENERAL, standing.reset_s, standing.headers())


class SwitchLimit:
    """One switch of a session, which is counted when it is made and not before.

    So nobody who may not switch, or comes too late, spends what the others are allowed.
    """

    def __init__(self, rates: RateLimits, charge: Charge) -> None:
        self._rates = rates
        self.charge = charge
        self.standing: Standing | None = None

    def raise_if_refused(self) -> None:
        self._rates.raise_if_refused(self.charge)

    def on_counted(self, count: int, reset_ms: int) -> None:
        self.standing = self._rates.standing(self.charge, count, reset_ms)


class Addresses:
    """Which client a request is of. X-Forwarded-For is believed of configured proxies only."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """`trusted` are addresses or networks (10.0.0.0/8). Raises ValueError."""
        self.networks = [_network(each) for each in trusted]
        self._look_at = lru_cache(MAX_REMEMBERED)(self._looked_at)

    def client_of(self, peer: str, forwarded_for: str | None) -> str:
        """Who a request came from, seen from the last proxy that is trusted: an address, of IPv6 its /64.

        What is no address (`unknown`) stands for nobody: then it is the proxy that said so.
        """
        client, is_trusted = self._known(peer) or (peer[:MAX_ADDRESS_LENGTH], False)
        if forwarded_for is not None and is_trusted:
            for hop in reversed(forwarded_for.split(",")):
                found = self._known(hop) if hop else None
                if found is None:
                    break
                client, is_trusted = found
                if not is_trusted:
                    break
        return client

    def is_proxy(self, peer: str) -> bool:
        """Is what `peer` says of a request believed?"""
        known = self._known(peer)
        return known is not None and known[1]

    def _known(self, text: str) -> tuple[str, bool] | None:
        """The client that an address stands for, and whether it is a trusted proxy's; None if it is none."""
        if not text:
            return "", bool(self.networks)  # a Unix socket, which only a proxy here can use
        return None if len(text) > MAX_ADDRESS_LENGTH else self._look_at(text)

    def _looked_at(self, text: str) -> tuple[str, bool] | None:
        found = _FORWARDED.fullmatch(text)
        if found is None:
            return None
        try:
            address = _unmapped(ipaddress.ip_address(found[1] or found[2] or found[3]))
        except ValueError:
            return None
        is_trusted = any(address in network for network in self.networks)
        if address.version == 4:
            return str(address), is_trusted
        # A household or a machine has a whole /64, and chooses in it as it likes.
        return str(ipaddress.ip_network((address, 64), strict=False)), is_trusted


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An address without its zone; IPv4 as itself, also where it was written as IPv6."""
    if address.version == 4:
        return address
    return address.ipv4_mapped or IPv6Address(int(address))


def _network(text: str) -> IPv4Network | IPv6Network:
    network = ipaddress.ip_network(text, strict=False)
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


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
        """`per_caller` is how many of a session's one caller may have."""
        self._counters = counters
        self._per_session = per_session
        self._per_caller = per_caller
        self._per_address = per_address
        self._in_all = in_all
        self._per_s = per_s
        self._metrics = metrics
        self._inside = 0
        self._second = 0
        self._in_second = 0

    def refuses_another(self) -> str | None:
        """Which limit of this process, if any, one more connection would exceed."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        if self._per_s and self._in_second > self._per_s:
            return self._refused("connection_rate")
        if self._in_all and self._inside >= self._in_all:
            return self._refused("process")
        return None

    async def enter(self, session_id: str, caller: str, address: str) -> str | None:
        """Let one in, or say which limit forbids it. Who was let in has to leave.

        `caller` is empty for whom its own share does not limit.
        """
        self._inside += 1
        entered: list[tuple[str, int]] = []
        for key, limit in self._counted(session_id, caller, address):
            if not await self._counters.enter(key, limit):
                for earlier in entered:
                    self._counters.leave(*earlier)
                self._inside -= 1
                return self._refused(key.partition(":")[0])
            entered.append((key, limit))
        return None

    def leave(self, session_id: str, caller: str, address: str) -> None:
        self._inside -= 1
        for key, limit in self._counted(session_id, caller, address):
            self._counters.leave(key, limit)

    def _counted(self, session_id: str, caller: str, address: str) -> list[tuple[str, int]]:
        # A caller's own limits come first: what they refuse never took a place from others.
        return [
            (f"caller:{session_id}:{caller}", self._per_caller if caller else 0),
            (f"address:{address}", self._per_address),
            (f"session:{session_id}", self._per_session),
        ]

    def _refused(self, limit: str) -> str:
        self._metrics.limited.labels(limit).inc()
        return limit
