"""Which master has which partition, as a node of the cluster says."""

import asyncio
from typing import Any, NamedTuple

import hiredis

from broker.checks import info_fields
from broker.endpoint import Endpoint
from broker.keys import PARTITIONS, slot_of
from broker.link import Refused, greet
from broker.resp import LinkDown, RespConnection
from broker.sentinel import REFUSALS, Address

ASK_TIMEOUT_S = 1.0


class View(NamedTuple):
    """What a node says. Where two differ, that of the higher epoch has seen the latest failover."""

    epoch: int
    masters: tuple[Address | None, ...]
    """Of each partition; None where nobody has its slot."""
    nodes: frozenset[Address]
    """All that have a part in a slot, replicas too."""


async def ask(connection: RespConnection, address: Address) -> View:
    """What the node at this address says. Raises LinkDown, and Refused where it is no node of a cluster."""
    async with asyncio.timeout(ASK_TIMEOUT_S):
        info, slots = await asyncio.gather(
            connection.call("CLUSTER", "INFO"), connection.call("CLUSTER", "SLOTS")
        )
    for reply in (info, slots):
        if isinstance(reply, hiredis.ReplyError):
            if "cluster support disabled" in str(reply):
                raise Refused("this is one Redis, not a Redis Cluster: name it as redis://host:port/db")
            if str(reply).startswith(REFUSALS):
                raise Refused(str(reply))
            raise LinkDown(sent=False, why=str(reply))
    return read_view(address, info, slots)


async def ask_anew(endpoint: Endpoint, address: Address) -> View:
    """The same over a connection of its own. Raises OSError, too."""
    connection, _ = await endpoint.at(address).connect(RespConnection)
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            await greet(connection, endpoint.at(address))
            return await ask(connection, address)
    finally:
        connection.abort()


def read_view(address: Address, info: Any, slots: Any) -> View:
    """The replies to CLUSTER INFO and CLUSTER SLOTS of the node at this address. Raises LinkDown."""
    try:
        epoch = int(info_fields(info).get("cluster_current_epoch", "0"))
        ranges = [
            (int(first), int(last), [_address(node, address) for node in nodes])
            for first, last, *nodes in slots
        ]
    except (TypeError, ValueError, IndexError, AttributeError):
        raise LinkDown(sent=False, why="what answers is no Redis Cluster") from None
    masters = tuple(
        next((nodes[0] for first, last, nodes in ranges if first <= slot_of(partition) <= last), None)
        for partition in range(PARTITIONS)
    )
    return View(epoch, masters, frozenset(node for _, _, nodes in ranges for node in nodes))


def _address(node: Any, asked: Address) -> Address:
    """A node's address. One without a host is where the node that was asked is."""
    host, port = node[0], int(node[1])
    return (host.decode() if host else asked[0]), port


class Redirection(NamedTuple):
    """A reply that says who is to be asked instead."""

    address: Address
    is_once: bool
    """For this command alone, which is still to be announced by ASKING: the slot is on its way there."""


def redirection_of(reply: Any, asked: Address) -> Redirection | None:
    """Of `MOVED slot host:port` and `ASK slot host:port`; None of any other reply."""
    if not isinstance(reply, hiredis.ReplyError):
        return None
    kind, _, rest = str(reply).partition(" ")
    if kind not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.partition(" ")[2].rpartition(":")
    return Redirection((host or asked[0], int(port)), kind == "ASK")
