"""Hosts and origins, written as browsers write them, so that two of them can be compared as text."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

DEFAULT_PORTS = {"http": 80, "https": 443}
# No page has an origin of one of these schemes: a browser sends "null" for some of them.
_SCHEMES_WITHOUT_ORIGIN = frozenset({"about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_AUTHORITY = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def split_host(text: str) -> tuple[str, int | None]:
    """Host and port of `host`, `host:port` or `[IPv6]:port`; names in lower case, as DNS has them.

    Raises ValueError.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a host")
    host, port = found[1], None if found[2] is None else int(found[2])
    if port is not None and port > 65_535:
        raise ValueError(f"{port} is not a port")
    if host.startswith("["):
        return f"[{IPv6Address(host[1:-1]).compressed}]", port
    if not host.isascii():
        host = host.encode("idna").decode()
    host = host.lower()
    if not _NAME.fullmatch(host):
        raise ValueError(f"{host!r} is not a host")
    return host, port


def host_without_port(text: str) -> str:
    """The host that `text` names. Raises ValueError, also where it has a port."""
    host, port = split_host(text)
    if port is not None:
        raise ValueError(f"{text!r} has a port")
    return host


def is_loopback(address: str) -> bool:
    """True if only this machine can reach the address, or the name, to listen on."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_address(host: str) -> bool:
    """True if a host, as `split_host` gives it, is an IP address."""
    try:
        return host.startswith("[") or bool(IPv4Address(host))
    except ValueError:
        return False


def canonical_origin(text: str) -> str:
    """An origin as a browser sends it: in lower case, without its scheme's default port.

    `*.` before an HTTP or HTTPS name stands for its subdomains, `null` is itself. Raises ValueError.
    """
    if text == "null":
        return text
    scheme, separator, authority = text.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme) or scheme in _SCHEMES_WITHOUT_ORIGIN:
        raise ValueError(f"{text!r} is not an origin")
    is_wildcard = scheme in DEFAULT_PORTS and authority.startswith("*.")
    host, port = split_host(authority[2:] if is_wildcard else authority)
    if is_wildcard and is_address(host):
        raise ValueError(f"{host} has no subdomains")
    shown_port = "" if port in (None, DEFAULT_PORTS.get(scheme)) else f":{port}"
    return f"{scheme}://{'*.' if is_wildcard else ''}{host}{shown_port}"
