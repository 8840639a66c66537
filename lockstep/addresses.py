"""Which client a request comes from, through proxies that are trusted."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

MAX_REMEMBERED = 10_000
MAX_ADDRESS_LENGTH = 64
# The client of a request by a Unix socket that does not say for whom it is: it has no address.
UNIX_PEER = "unix"
# As proxies write it: 192.0.2.1, 192.0.2.1:567, 2001:db8::1, [2001:db8::1], [2001:db8::1]:567; or in quotes.
_FORWARDED = re.compile(r"""\s*"?(?:\[([^\[\]]+)\](?::\d+)?|([\d.]+)(?::\d+)?|([^\[\]"]+?))"?\s*""", re.ASCII)


class Addresses:
    """Tells which client a request is of. Only configured proxies are believed what X-Forwarded-For says."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """`trusted` are addresses or networks (10.0.0.0/8). Raises ValueError."""
        self.networks = [_network(each) for each in trusted]
        self._cached = lru_cache(MAX_REMEMBERED)(self._parse)

    def client_of(self, peer: str, forwarded_for: str | None) -> str:
        """The client, seen from the last proxy that is trusted: an address, of IPv6 its /64.

        `peer` is empty at a Unix socket: who connects there is trusted like a proxy, whatever is configured.
        What is no address (`unknown`) names nobody: then the client is the proxy that said so.
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
        """Is `peer` believed what it says of a request? It is empty at a Unix socket."""
        known = self._known(peer)
        return known is not None and known[1]

    def _known(self, text: str) -> tuple[str, bool] | None:
        """The client that an address stands for, and whether it is a trusted proxy's; None if it is none."""
        if not text:
            return UNIX_PEER, True  # its folder says who may connect to it: the proxy in front
        return None if len(text) > MAX_ADDRESS_LENGTH else self._cached(text)

    def _parse(self, text: str) -> tuple[str, bool] | None:
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
        # A household or a machine has a whole /64, and may use any address in it.
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
