"""Settings: read and checked once at the start, flags over environment over file, then passed down."""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lockstep.addresses import Addresses
from lockstep.hosts import canonical_origin, split_host
from lockstep.lifetimes import Lifetimes
from lockstep.limits import MAX_RATE, Rate

# More than these is a slip, and some of it Redis could not work with.
MAX_KEPT_S = 10 * 365 * 86_400
MAX_DRAIN_S = 3600
MAX_KEEP_ALIVE_S = 86_400
MAX_PING_S = 3600
MAX_MESSAGE_BYTES = 16 * 1_048_576
MAX_COUNT = 1_000_000_000


class SettingsError(Exception):
    """One line that names the setting and says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default. Flag --ping-interval-s=5, variable LOCKSTEP_PING_INTERVAL_S."""

    port: int = 8080
    address: str = "127.0.0.1"
    broker: str = "memory://"
    prefix: str = ""
    routing: str = "all"
    allow_eviction: bool = False
    origins: str = ""
    hosts: str = ""
    ping_interval_s: float = 5.0
    ping_timeout_s: float = 4.0
    max_message_bytes: int = 16_384
    max_connections_per_session: int = 1000
    max_share_per_caller: float = 0.25
    max_connections_per_ip: int = 0
    max_connections: int = 0
    connection_rate: int = 0
    message_rate: int = 0
    rate_limit_general: str = "100/60"
    rate_limit_switch: str = "10/1"
    trusted_proxies: str = ""
    jwt_secret_file: str = ""
    jwt_public_key_file: str = ""
    jwt_audience: str = ""
    jwt_issuer: str = ""
    anonymous: str = "none"
    insecure: bool = False
    keep_alive_s: float = 75.0
    drain_s: float = 10.0
    keep_pending_s: float = 24 * 3600.0
    keep_running_s: float = 24 * 3600.0
    keep_running_without_deadline_s: float = 48 * 3600.0
    keep_paused_s: float = 7 * 24 * 3600.0
    keep_terminal_s: float = 3600.0
    log_level: str = "info"

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
        """Nobody from elsewhere can reach it."""
        return all(_is_loopback(each) for each in self.addresses)

    @property
    def addresses(self) -> list[str]:
        """Each once. `::` is all there are, of both families."""
        listed = list(dict.fromkeys(_listed(self.address)))
        return ["::"] if "::" in listed else listed

    @property
    def has_keys(self) -> bool:
        """Whether callers need tokens."""
        return bool(self.jwt_secret_file or self.jwt_public_key_file)

    @property
    def is_open_on_loopback(self) -> bool:
        """Everybody on this machine may do everything, and nobody from elsewhere is expected."""
        return self.is_on_loopback and not self.has_keys and not self.insecure

    @property
    def max_connections_per_caller(self) -> int:
        """To one session; 0: any number."""
        if self.is_open_on_loopback or self.max_share_per_caller >= 1:
            return 0
        return math.ceil(self.max_connections_per_session * self.max_share_per_caller)

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """Of requests by caller, and of switches by session."""
        return Rate.parse(self.rate_limit_general), Rate.parse(self.rate_limit_switch)

    @property
    def proxies(self) -> Addresses:
        return Addresses(_listed(self.trusted_proxies))

    @property
    def allowed_origins(self) -> frozenset[str]:
        """As browsers send them, or "*". Raises ValueError."""
        listed = _listed(self.origins)
        return frozenset(each if each == "*" else canonical_origin(each.rstrip("/")) for each in listed)

    @property
    def own_names(self) -> frozenset[str]:
        """What this server is called by. Raises ValueError."""
        return frozenset(_name(each) for each in _listed(self.hosts))


HELP = {
    "port": "port to listen on; 0 takes a free one",
    "address": "addresses to listen on, comma-separated; :: for all, of IPv4 and IPv6",
    "broker": "where sessions are kept: memory://, redis://host:port/db, rediss://, unix://, redis+sentinel://",
    "prefix": "what all keys and channels in Redis begin with",
    "routing": "all: every process hears every session; targeted: only those it has clients for",
    "allow_eviction": "yes: start even on a Redis that may evict sessions",
    "origins": "other sites whose pages may call (https://*.example.org, null), comma-separated; * for all",
    "hosts": "names, comma-separated, by which an open server on loopback is called, besides localhost",
    "ping_interval_s": "seconds between pings to a WebSocket client",
    "ping_timeout_s": "seconds within which a client must answer one",
    "max_message_bytes": "largest WebSocket message a client may send",
    "max_connections_per_session": "WebSockets of one session at all processes together; 0: any number",
    "max_share_per_caller": "the part of them that one caller (sub, else address) may take; 1: all",
    "max_connections_per_ip": "WebSockets of one address at all processes together; 0: any number",
    "max_connections": "WebSockets of this process at once; 0: any number",
    "connection_rate": "new WebSockets a second at this process; 0: any number",
    "message_rate": "messages and pings a second of one WebSocket client; 0: any number",
    "rate_limit_general": "REST requests of one caller, so many/in so many seconds; 0: any number",
    "rate_limit_switch": "switches of one session, so many/in so many seconds; 0: any number",
    "trusted_proxies": "addresses or networks whose X-Forwarded-For and X-Request-Start are believed",
    "jwt_secret_file": "file with the secret of tokens that are signed with HS256",
    "jwt_public_key_file": "file with public keys (PEM, or JWKS with kid) of tokens: RS256, ES256, EdDSA",
    "jwt_audience": "what a token must name as its audience (aud)",
    "jwt_issuer": "what a token must name as its issuer (iss)",
    "anonymous": "view: with keys, too, callers without a token may connect and read; none: they may not",
    "insecure": "yes: without keys, too, listen where others can reach it",
    "keep_alive_s": "seconds a connection is kept without a request; more than a proxy in front keeps it",
    "drain_s": "seconds a stopping process may take to finish",
    "keep_pending_s": "seconds a session that was not started is kept",
    "keep_running_s": "seconds a running session is kept after its last command or the deadline it left",
    "keep_running_without_deadline_s": "the same where no deadline was left",
    "keep_paused_s": "seconds a paused session is kept",
    "keep_terminal_s": "seconds a session is kept that has ended",
    "log_level": "debug, info, warning or error",
}


def read_settings(args: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from flags, LOCKSTEP_* variables and the file that --config names.

    Raises SettingsError for an unknown key, and for a value that cannot be used.
    """
    flags = dict(_flag(arg) for arg in args)
    variables = {
        name.removeprefix("LOCKSTEP_").lower(): (name, value)
        for name, value in environ.items()
        if name.startswith("LOCKSTEP_")
    }
    _, path = flags.pop("config", variables.pop("config", ("", None)))
    given: dict[str, tuple[str, Any]] = {} if path is None else _file(path)
    given |= variables | flags
    kinds = {field.name: type(field.default) for field in fields(Settings)}
    values = {}
    for key, (source, value) in given.items():
        if key not in kinds:
            raise SettingsError(f"{source}: no such setting{_did_you_mean(source, key, kinds)}")
        values[key] = _value(source, kinds[key], value)
    settings = Settings(**values)
    _check(settings, {key: source for key, (source, _) in given.items()})
    return settings


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


def usage() -> str:
    """Every setting as a flag, with its default and what it says."""
    lines = []
    for field in fields(Settings):
        default = ("no", "yes")[field.default] if isinstance(field.default, bool) else field.default
        flag = f"--{field.name.replace('_', '-')}={default}"
        lines.append(f"  {flag:<44} {HELP[field.name]}")
    return "\n".join(lines)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one that whoever wrote `word` may have meant."""
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def _did_you_mean(source: str, key: str, known: Iterable[str]) -> str:
    """The nearest setting, spelled as it would be where the unknown one stands."""
    meant = nearest(key, [*known, "config"])
    if meant is None:
        return "; lockstep --help lists them"
    if source.startswith("--"):
        meant = "--" + meant.replace("_", "-")
    elif source.startswith("LOCKSTEP_"):
        meant = "LOCKSTEP_" + meant.upper()
    return f"; did you mean {meant}?"


def _flag(arg: str) -> tuple[str, tuple[str, str]]:
    name, equals, value = arg.partition("=")
    if not name.startswith("--") or not equals:
        raise SettingsError(f"{arg}: settings are given as --name=value")
    return name[2:].replace("-", "_"), (name, value)


def _file(path: str) -> dict[str, tuple[str, Any]]:
    try:
        data = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"--config={path}: {error}") from None
    return {key: (f"{path}: {key}", value) for key, value in data.items()}


def _value(source: str, kind: type, value: Any) -> Any:
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


def _listed(text: str) -> list[str]:
    return [stripped for part in text.split(",") if (stripped := part.strip())]


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _name(text: str) -> str:
    name, port = split_host(text)
    if port is not None:
        raise ValueError(f"{text!r} has a port")
    return name


def _is_usable(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    def require(holds: bool, key: str, wanted: str) -> None:
        if not holds:
            source = sources.get(key, "--" + key.replace("_", "-"))
            raise SettingsError(f"{source}: {getattr(settings, key)!r} is not {wanted}")

    require(0 <= settings.port <= 65_535, "port", "a port (0 to 65535)")
    require(bool(settings.addresses), "address", "an address")
    require(
        settings.is_on_loopback or settings.has_keys or settings.insecure,
        "address",
        "an address of this machine only: others need --jwt-secret-file or --jwt-public-key-file "
        "(or --insecure=yes)",
    )
    require(settings.routing in ("all", "targeted"), "routing", "all or targeted")
    require(
        0 < settings.ping_interval_s <= MAX_PING_S, "ping_interval_s", f"more than 0 and at most {MAX_PING_S}"
    )
    require(
        0 < settings.ping_timeout_s < settings.ping_interval_s,
        "ping_timeout_s",
        "between 0 and ping_interval_s",
    )
    require(
        128 <= settings.max_message_bytes <= MAX_MESSAGE_BYTES,
        "max_message_bytes",
        f"from 128 to {MAX_MESSAGE_BYTES}",
    )
    require(
        0 < settings.max_share_per_caller <= 1,
        "max_share_per_caller",
        "more than 0 and at most 1, such as 0.25",
    )
    require(settings.anonymous in ("none", "view"), "anonymous", "none or view")
    for key in (
        "max_connections_per_session",
        "max_connections_per_ip",
        "max_connections",
        "connection_rate",
        "message_rate",
    ):
        require(0 <= getattr(settings, key) <= MAX_COUNT, key, f"from 0 to {MAX_COUNT}")
    for key in ("rate_limit_general", "rate_limit_switch"):
        require(
            _is_usable(Rate.parse, getattr(settings, key)), key, f"a rate such as 100/60, or 0; {MAX_RATE}"
        )
    require(_is_usable(lambda _: settings.proxies, ""), "trusted_proxies", "a list of addresses or networks")
    require(0 <= settings.drain_s <= MAX_DRAIN_S, "drain_s", f"from 0 to {MAX_DRAIN_S}")
    require(
        0 < settings.keep_alive_s <= MAX_KEEP_ALIVE_S,
        "keep_alive_s",
        f"more than 0 and at most {MAX_KEEP_ALIVE_S}",
    )
    for field in fields(settings):
        if field.name.startswith("keep_"):
            kept_s = getattr(settings, field.name)
            require(0.001 <= kept_s <= MAX_KEPT_S, field.name, f"from 0.001 to {MAX_KEPT_S} (ten years)")
    require(
        _is_usable(lambda _: settings.allowed_origins, ""),
        "origins",
        "a list of origins such as https://example.org, https://*.example.org, capacitor://localhost or null",
    )
    require(
        _is_usable(lambda _: settings.own_names, ""),
        "hosts",
        "a list of names without ports, such as clock.example",
    )
    require(
        settings.log_level in ("debug", "info", "warning", "error"),
        "log_level",
        "debug, info, warning or error",
    )
