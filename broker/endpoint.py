"""Where Redis is, by its URL: TCP, TLS, a Unix socket, the master that Sentinel names, or a Redis Cluster."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio.connection import parse_url

from broker.sentinel import Address, ask_for_master
from lockstep.config import masked

CONNECT_TIMEOUT_S = 1.0
EXAMPLES = (
    "memory://, redis://127.0.0.1:6379/0, unix:///run/redis.sock?db=0, "
    "redis+sentinel://a:26379,b:26379/service/0 or redis+cluster://a:6379,b:6379"
)
# What a URL's query may say.
SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
CREDENTIALS = {"username", "password"}
OPTIONS = {"db"} | CREDENTIALS | TLS_OPTIONS
# Of the scheme of one Redis, and of Cluster.
IS_TLS = {"rediss", "rediss+cluster"}
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "rediss+cluster")

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(frozen=True)
class Endpoint:
    """A Redis, and how to greet it. `shown` is its URL without what is secret."""

    shown: str
    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: str | None = None
    db: int = 0
    sentinels: tuple[Address, ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    # Some nodes of a Redis Cluster, which name the others.
    nodes: tuple[Address, ...] = ()

    def at(self, address: Address) -> "Endpoint":
        """The same of one node of the cluster."""
        host, port = address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return replace(self, shown=shown, host=host, port=port, nodes=())

    async def connect(self, factory: Callable[[], P]) -> tuple[P, Address | None]:
        """Open a connection; returns also where it leads, if Sentinel was asked.

        Raises OSError when nothing answers, and SentinelRefuses where that lasts until a password is changed.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if self.path is not None:
                return (await loop.create_unix_connection(factory, self.path))[1], None
            # Sentinel is asked anew for each connection: after a failover the answer is another.
            master = await self._ask_sentinels() if self.sentinels else None
            host, port = master or (self.host, self.port)
            return (await loop.create_connection(factory, host, port, ssl=self.tls))[1], master

    async def master(self) -> Address:
        """Where the master is by now. Raises OSError where most of the Sentinels do not answer."""
        return await self._ask_sentinels(at_least=len(self.sentinels) // 2 + 1)

    async def _ask_sentinels(self, at_least: int = 1) -> Address:
        greeting = _authentication(self.sentinel_username, self.sentinel_password)
        return await ask_for_master(self.sentinels, self.service, at_least, greeting)

    def greeting(self) -> list[tuple[str, ...]]:
        """The first commands on each connection."""
        commands = _authentication(self.username, self.password)
        if self.db:
            commands.append(("SELECT", str(self.db)))
        commands.append(("CLIENT", "SETNAME", "lockstep"))
        if self.sentinels:
            # Sentinel may name a master that has been replaced and does not know that yet.
            commands.append(("ROLE",))
        return commands


def _authentication(username: str | None, password: str | None) -> list[tuple[str, ...]]:
    if password is None:
        return []
    return [("AUTH", username, password) if username else ("AUTH", password)]


def parse(url: str) -> Endpoint:
    """redis://, rediss://, unix:// as redis-py reads them; redis+sentinel://h:p,h:p/service/db; and
    redis+cluster://h:p,h:p or rediss+cluster://, some nodes of a Redis Cluster.

    User and password before the hosts are Redis's, which one Redis and a Cluster also take as
    ?username=U&password=P; Sentinel's are ?sentinel_username=U&sentinel_password=P.

    Raises ValueError, saying what it cannot use and what could be; never with the password in it.
    """
    try:
        return _parse(url)
    except OSError as error:
        why = f"its certificates cannot be read ({error.strerror or error})"
    except ValueError as error:
        why = str(error)
    raise ValueError(
        f"broker: {masked('broker', url)!r} cannot be used: {why}; a broker looks like {EXAMPLES}"
    )


def _parse(url: str) -> Endpoint:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(
            f"the scheme must be memory, {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, and :// follow"
        )
    if any(character.isspace() for character in url):
        raise ValueError("there is a space in it")
    if scheme == "redis+sentinel":
        return _parse_sentinel(url)
    if scheme.endswith("+cluster"):
        return _parse_cluster(url)
    parts = urlsplit(url)
    if scheme == "unix":
        if not parts.path:
            raise ValueError("it names no socket")
    elif not parts.hostname:
        raise ValueError("it names no host")
    elif not _is_port(parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2] or "6379"):
        raise ValueError("its port is not one from 1 to 65535")
    elif not (parts.path in ("", "/") or parts.path[1:].isdecimal()):
        raise ValueError("behind the host comes /db, a number")
    if unknown := parse_qs(parts.query).keys() - OPTIONS:
        raise ValueError(f"{min(unknown)} is none of its options ({', '.join(sorted(OPTIONS))})")
    options: dict[str, Any] = dict(parse_url(url))
    endpoint = Endpoint(
        shown=masked("broker", url),
        username=options.get("username"),
        password=options.get("password"),
        db=int(options.get("db", 0)),
    )
    if scheme == "unix":
        return replace(endpoint, path=options["path"])
    endpoint = replace(endpoint, host=options.get("host", "127.0.0.1"), port=int(options.get("port", 6379)))
    return replace(endpoint, tls=_tls(options)) if scheme in IS_TLS else endpoint


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _parse_sentinel(url: str) -> Endpoint:
    endpoint, hosts, path, options = _parts_of_several(url)
    sentinels = _addresses(hosts, "Sentinel")
    service, _, db = path.partition("/")
    if not service or (db and not db.isdigit()):
        raise ValueError("after the hosts come /service and, if not 0, /db")
    if options.keys() - SENTINEL_OPTIONS:
        raise ValueError(f"the options of Sentinel are {' and '.join(sorted(SENTINEL_OPTIONS))}")
    return replace(
        endpoint,
        db=int(db or 0),
        sentinels=sentinels,
        service=service,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _parse_cluster(url: str) -> Endpoint:
    endpoint, hosts, path, options = _parts_of_several(url)
    nodes = _addresses(hosts, "node")
    if path:
        raise ValueError("a Redis Cluster has no /db")
    is_tls = url.partition("://")[0] in IS_TLS
    allowed = CREDENTIALS | TLS_OPTIONS if is_tls else CREDENTIALS
    if unknown := options.keys() - allowed:
        raise ValueError(f"{min(unknown)} is none of its options ({', '.join(sorted(allowed))})")
    return replace(
        endpoint,
        nodes=nodes,
        username=endpoint.username or options.get("username"),
        password=endpoint.password or options.get("password"),
        tls=_tls(options) if is_tls else None,
    )


def _parts_of_several(url: str) -> tuple[Endpoint, str, str, dict[str, str]]:
    """What a URL of several hosts has in common: who connects, the hosts, what follows, the options."""
    # urlsplit takes no list of hosts.
    rest, _, query = url.partition("://")[2].partition("?")
    credentials, at, rest = rest.rpartition("@")
    username, _, password = credentials.partition(":")
    hosts, _, path = rest.partition("/")
    # A plus stands for itself, not for a space as in forms.
    options = parse_qs(query.replace("+", "%2B"), keep_blank_values=True)
    endpoint = Endpoint(
        shown=masked("broker", url),
        username=unquote(username) or None,
        password=unquote(password) if at else None,
    )
    return endpoint, hosts, path, {name: values[0] for name, values in options.items()}


def _addresses(hosts: str, kind: str) -> tuple[Address, ...]:
    addresses = []
    for place, each in enumerate(hosts.split(","), 1):
        host, _, port = each.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host or "[" in host:
            host = ""
        if not host or not _is_port(port):
            # Not quoted: where something in front was not encoded, it may be a part of a password.
            raise ValueError(f"{kind} number {place} is not host:port or [IPv6]:port")
        addresses.append((host, int(port)))
    return tuple(addresses)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65_535
