"""Settings: read and checked once at the start, flags over environment over file, then passed down."""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lockstep.addresses import Addresses
from lockstep.flags import flag_of, hint, read_flags
from lockstep.hosts import canonical_origin, host_without_port, is_loopback
from lockstep.lifetimes import Lifetimes
from lockstep.limits import MAX_RATE, Rate
from lockstep.setting import (
    Check,
    SettingsError,
    above_0_to,
    check_of,
    from_to,
    listed,
    one_of,
    path_within,
    read_by,
    setting,
)

# More than these is a slip, and some of it Redis could not work with.
MAX_KEPT_S = 10 * 365 * 86_400
MAX_DRAIN_S = 3600
MAX_KEEP_ALIVE_S = 86_400
MAX_PING_S = 3600
MAX_MESSAGE_BYTES = 16 * 1_048_576
MAX_COUNT = 1_000_000_000
# sockaddr_un has 108, the last of which is NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107


def _proxies(text: str) -> Addresses:
    return Addresses(listed(text))


def _origins(text: str) -> frozenset[str]:
    return frozenset(each if each == "*" else canonical_origin(each.rstrip("/")) for each in listed(text))


def _hosts(text: str) -> frozenset[str]:
    return frozenset(host_without_port(each) for each in listed(text))


_COUNT = from_to(0, MAX_COUNT)
_KEPT = from_to(0.001, MAX_KEPT_S, f"from 0.001 to {MAX_KEPT_S} (ten years)")
_BY_ADDRESS = ("port", "address")
_RATE = read_by(Rate.parse, f"a rate such as 100/60, or 0; {MAX_RATE}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting: --ping-interval-s=5, LOCKSTEP_PING_INTERVAL_S=5, or ping_interval_s = 5 in a file.

    A new one is a field here: its default (whose type is the setting's), its help and its check.
    """

    port: int = setting(
        8080, "port to listen on; 0 takes a free one", from_to(0, 65_535, "a port (0 to 65535)")
    )
    address: str = setting(
        "127.0.0.1",
        "addresses to listen on, comma-separated; :: for all, of IPv4 and IPv6",
        Check("an address", lambda text: bool(listed(text))),
    )
    unix_socket: str = setting(
        "",
        "path of a Unix socket to listen at, in place of port and address",
        path_within(MAX_SOCKET_PATH_BYTES),
    )
    broker: str = setting(
        "memory://",
        "where sessions are kept: memory://, redis://host:port/db, unix://, redis+sentinel://, redis+cluster://",
    )
    prefix: str = setting("", "what all keys and channels in Redis begin with")
    routing: str = setting(
        "all",
        "all: every process hears every session; targeted: only those it has clients for",
        one_of("all", "targeted"),
    )
    allow_eviction: bool = setting(False, "yes: start even on a Redis that may evict sessions")
    origins: str = setting(
        "",
        "other sites whose pages may call (https://*.example.org, null), comma-separated; * for all",
        read_by(
            _origins,
            "a list of origins such as "
            "https://example.org, https://*.example.org, capacitor://localhost or null",
        ),
    )
    hosts: str = setting(
        "",
        "names, comma-separated, by which an open server on loopback is called, besides localhost",
        read_by(_hosts, "a list of names without ports, such as clock.example"),
    )
    ping_interval_s: float = setting(
        5.0, "seconds between pings to a WebSocket client", above_0_to(MAX_PING_S)
    )
    ping_timeout_s: float = setting(4.0, "seconds within which a client must answer one")
    max_message_bytes: int = setting(
        16_384, "largest WebSocket message a client may send", from_to(128, MAX_MESSAGE_BYTES)
    )
    compression: bool = setting(
        True, "no: WebSocket messages are not compressed (permessage-deflate) for clients that offer it"
    )
    max_connections_per_session: int = setting(
        1000, "WebSockets of one session at all processes together; 0: any number", _COUNT
    )
    max_share_per_caller: float = setting(
        0.25,
        "the part of them that one caller (sub, else address) may take; 1: all",
        above_0_to(1, ", such as 0.25"),
    )
    max_subscriptions: int = setting(
        100, "sessions that one WebSocket of protocol v2 may follow", from_to(1, 10_000)
    )
    max_connections_per_ip: int = setting(
        0, "WebSockets of one address at all processes together; 0: any number", _COUNT
    )
    max_connections: int = setting(0, "WebSockets of this process at once; 0: any number", _COUNT)
    connection_rate: int = setting(0, "new WebSockets a second at this process; 0: any number", _COUNT)
    message_rate: int = setting(
        0, "messages and pings a second of one WebSocket client; 0: any number", _COUNT
    )
    rate_limit_general: str = setting(
        "100/60", "REST requests of one caller, so many/in so many seconds; 0: any number", _RATE
    )
    rate_limit_switch: str = setting(
        "10/1", "switches of one session, so many/in so many seconds; 0: any number", _RATE
    )
    trusted_proxies: str = setting(
        "",
        "addresses or networks whose X-Forwarded-For and X-Request-Start are believed",
        read_by(_proxies, "a list of addresses or networks"),
    )
    jwt_secret_file: str = setting("", "file with the secret of tokens that are signed with HS256")
    jwt_public_key_file: str = setting(
        "", "file with public keys (PEM, or JWKS with kid) of tokens: RS256, ES256, EdDSA"
    )
    jwt_audience: str = setting("", "what a token must name as its audience (aud)")
    jwt_issuer: str = setting("", "what a token must name as its issuer (iss)")
    anonymous: str = setting(
        "none",
        "view: with keys, too, callers without a token may connect and read; none: they may not",
        one_of("none", "view"),
    )
    insecure: bool = setting(False, "yes: without keys, too, listen where others can reach it")
    keep_alive_s: float = setting(
        75.0,
        "seconds a connection is kept without a request; more than a proxy in front keeps it",
        above_0_to(MAX_KEEP_ALIVE_S),
    )
    drain_s: float = setting(10.0, "seconds a stopping process may take to finish", from_to(0, MAX_DRAIN_S))
    keep_pending_s: float = setting(24 * 3600.0, "seconds a session that was not started is kept", _KEPT)
    keep_running_s: float = setting(
        24 * 3600.0, "seconds a running session is kept after its last command or the deadline it left", _KEPT
    )
    keep_running_without_deadline_s: float = setting(
        48 * 3600.0, "the same where no deadline was left", _KEPT
    )
    keep_paused_s: float = setting(7 * 24 * 3600.0, "seconds a paused session is kept", _KEPT)
    keep_terminal_s: float = setting(3600.0, "seconds a session is kept that has ended", _KEPT)
    virtual_time: bool = setting(
        False,
        "yes: time stands still but for POST /v1/time/advance; for tests, with memory:// on loopback only",
    )
    log_level: str = setting(
        "info", "debug, info, warning or error", one_of("debug", "info", "warning", "error")
    )

    @property
    def lifetimes(self) -> Lifetimes:
        return Lifetimes(
            pending_ms=int(self.keep_pending_s * 1000),
            running_ms=int(self.keep_running_s * 1000),
            running_without_deadline_ms=int(self.keep_running_without_deadline_s * 1000),
            paused_ms=int(self.keep_paused_s * 1000),
            terminal_ms=int(self.keep_terminal_s * 1000),
        )

    @property
    def is_on_loopback(self) -> bool:
        """True if only callers on this machine can reach it."""
        return bool(self.unix_socket) or all(is_loopback(each) for each in self.addresses)

    @property
    def addresses(self) -> list[str]:
        """Where to listen. `::` stands for all addresses, of both families."""
        each_once = list(dict.fromkeys(listed(self.address)))
        return ["::"] if "::" in each_once else each_once

    @property
    def has_keys(self) -> bool:
        """True if callers need tokens."""
        return bool(self.jwt_secret_file or self.jwt_public_key_file)

    @property
    def is_open_on_loopback(self) -> bool:
        """True if everybody on this machine may do everything, and nobody else can reach it."""
        return self.is_on_loopback and not self.has_keys and not self.insecure

    @property
    def max_connections_per_caller(self) -> int:
        """WebSockets to one session; 0: any number."""
        if self.is_open_on_loopback or self.max_share_per_caller >= 1:
            return 0
        return math.ceil(self.max_connections_per_session * self.max_share_per_caller)

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """The rate of requests by caller, and that of switches by session."""
        return Rate.parse(self.rate_limit_general), Rate.parse(self.rate_limit_switch)

    @property
    def proxies(self) -> Addresses:
        return _proxies(self.trusted_proxies)

    @property
    def allowed_origins(self) -> frozenset[str]:
        """As browsers send them, or "*". Raises ValueError."""
        return _origins(self.origins)

    @property
    def own_names(self) -> frozenset[str]:
        """The names by which this server is called. Raises ValueError."""
        return _hosts(self.hosts)


# handlers/native.py looks at it when it is imported, before there are settings.
_READ_ELSEWHERE = frozenset({"LOCKSTEP_TWIN"})


def read_settings(args: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from flags, LOCKSTEP_* variables and the file that --config names.

    Raises SettingsError for an unknown key, and for a value that cannot be used.
    """
    types = {field.name: type(field.default) for field in fields(Settings)}
    flags = {name: (flag_of(name), value) for name, value in read_flags(args, [*types, "config"]).items()}
    variables = {
        name.removeprefix("LOCKSTEP_").lower(): (name, value)
        for name, value in environ.items()
        if name.startswith("LOCKSTEP_") and name not in _READ_ELSEWHERE
    }
    _, path = flags.pop("config", variables.pop("config", ("", None)))
    given: dict[str, tuple[str, Any]] = {} if path is None else _read_file(path)
    for above in (variables, flags):
        given = _without_another_place(given, above) | above
    values = {}
    for name, (source, value) in given.items():
        if name not in types:
            raise SettingsError(f"{source}: no such setting{hint(source, name, [*types, 'config'])}")
        values[name] = _converted(source, types[name], value)
    settings = Settings(**values)
    if settings.unix_socket and (other := next((name for name in _BY_ADDRESS if name in given), None)):
        raise SettingsError(
            f"{given['unix_socket'][0]} and {given[other][0]}: a process listens at a Unix socket or at "
            "addresses, not at both"
        )
    _require_usable(settings, {name: source for name, (source, _) in given.items()})
    return settings


def _without_another_place(
    given: dict[str, tuple[str, Any]], above: Mapping[str, tuple[str, Any]]
) -> dict[str, tuple[str, Any]]:
    """What is given, without what `above` overrules by naming a place to listen of the other kind."""
    overruled = set(_BY_ADDRESS if above.get("unix_socket", ("", ""))[1] else ())
    if any(name in above for name in _BY_ADDRESS):
        overruled.add("unix_socket")
    return {name: each for name, each in given.items() if name not in overruled}


def masked(name: str, value: str) -> str:
    """A setting's value as it may be shown: without what may be a password in the broker's URL."""
    if name != "broker":
        return value
    # What follows a password in the query goes with it: it may be the rest of one that was not quoted.
    if found := re.search(r"[?&]\w*password=", value):
        value = value[: found.end()] + "***"
    before, at, place = value.rpartition("@")
    if not at:
        return value
    scheme, separator, secret = before.partition("://")
    if not separator:
        return f"***@{place}"
    user = secret.partition(":")[0]
    return f"{scheme + separator}{user + ':' if user else ''}***@{place}"


def _read_file(path: str) -> dict[str, tuple[str, Any]]:
    try:
        data = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"--config={path}: {error}") from None
    return {key: (f"{path}: {key}", value) for key, value in data.items()}


def _converted(source: str, kind: type, value: Any) -> Any:
    if kind is str and isinstance(value, str):
        return value
    if kind is bool:
        if isinstance(value, bool) or value in ("yes", "no"):
            return value in (True, "yes")
        raise SettingsError(f"{source}: {value!r} is not yes or no")
    try:
        if isinstance(value, str) or (type(value) in (int, float) and kind(value) == value):
            number = kind(value)
            if number == number and abs(number) != float("inf"):
                return number
    except (ValueError, OverflowError):
        pass
    wanted = {int: "a whole number", float: "a number", str: "a string"}[kind]
    raise SettingsError(f"{source}: {value!r} is not {wanted}")


def _require_usable(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raises SettingsError for the first value that is not what it has to be, with where it was given."""

    def require(holds: bool, name: str, wanted: str) -> None:
        if not holds:
            source = sources.get(name, flag_of(name))
            raise SettingsError(f"{source}: {getattr(settings, name)!r} is not {wanted}")

    for field in fields(settings):
        if check := check_of(field):
            require(check.holds(getattr(settings, field.name)), field.name, check.wanted)
    require(
        settings.is_on_loopback or settings.has_keys or settings.insecure,
        "address",
        "an address of this machine only: others need --jwt-secret-file or --jwt-public-key-file "
        "(or --insecure=yes)",
    )
    require(
        not settings.virtual_time or (settings.broker == "memory://" and settings.is_on_loopback),
        "virtual_time",
        "possible but with --broker=memory:// and addresses of this machine only",
    )
    require(
        0 < settings.ping_timeout_s < settings.ping_interval_s,
        "ping_timeout_s",
        "between 0 and ping_interval_s",
    )
