"""A look at the Redis Cluster that production needs: each finding is ok, or says what to do."""

import asyncio
from contextlib import AsyncExitStack

from broker import findings, rights
from broker.checks import OLDEST_CLUSTER, info_fields, lacking_commands
from broker.cluster.topology import View, ask_anew
from broker.endpoint import Endpoint, parse
from broker.findings import Finding
from broker.keys import PARTITIONS, SLOTS, Channels, Keys
from broker.link import Link, Refused
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from lockstep.config import Settings
from lockstep.metrics import Metrics

START_TIMEOUT_S = 3.0
# Masters whose clocks differ by more give their sessions another time than the others have.
MAX_CLOCK_SPREAD_MS = 20


async def examine_cluster(settings: Settings) -> list[Finding]:
    """Look at the cluster that the settings name, by any of the nodes that they name."""
    endpoint = parse(settings.broker)
    answers = await asyncio.gather(
        *(ask_anew(endpoint, node) for node in endpoint.nodes), return_exceptions=True
    )
    views = [each for each in answers if isinstance(each, View)]
    away = [
        f"{endpoint.at(node).shown} ({str(each) or 'it does not answer'})"
        for node, each in zip(endpoint.nodes, answers, strict=True)
        if isinstance(each, BaseException)
    ]
    if not views:
        return [(False, f"Redis Cluster: none of its nodes can be used: {'; '.join(away)}")]
    view = max(views, key=lambda each: (each.epoch, -each.masters.count(None)))
    found = [(False, f"nodes: {each}; start it, or name another one in the setting broker") for each in away]
    async with AsyncExitStack() as stack:
        links: dict[Address, Link] = {}
        for address in dict.fromkeys(each for each in view.masters if each is not None):
            link = await _linked(endpoint.at(address), stack)
            if isinstance(link, Link):
                links[address] = link
            else:
                count = f"{view.masters.count(address)} of {PARTITIONS} partitions"
                found.append(
                    (False, f"{endpoint.at(address).shown}: {link} Until then {count} are not served")
                )
        if links:
            try:
                found += await _look_at_all(links, view, settings)
            except LinkDown as down:
                found.append((False, f"Redis Cluster: {down}"))
        for address, link in links.items():
            shown = endpoint.at(address).shown
            found += [
                (is_ok, f"{shown}: {text}")
                for is_ok, text in await _look_at_master(link, address, view, endpoint, settings)
            ]
    return found


async def _linked(endpoint: Endpoint, stack: AsyncExitStack) -> Link | str:
    """A connection that is up, or why there is none."""

    async def nothing(connection: RespConnection) -> None:
        pass

    link = Link(endpoint, "commands", nothing, Metrics())
    stack.push_async_callback(link.close)
    try:
        (await endpoint.connect(RespConnection))[0].abort()
        async with asyncio.timeout(START_TIMEOUT_S):
            await link.start()
    except (OSError, Refused) as error:
        return f"{str(error) or 'it does not answer'}; is it running, and are address and password right?"
    return link


async def _look_at_all(links: dict[Address, Link], view: View, settings: Settings) -> list[Finding]:
    first = next(iter(links.values()))
    found = [await _slots(first, len(links)), await _full_coverage(first)]
    offsets = [await findings.clock_offset_ms(link) for link in links.values()]
    spread_ms = max(offsets) - min(offsets)
    text = f"clocks of the masters: {spread_ms:.0f} ms between the first and the last"
    if spread_ms <= MAX_CLOCK_SPREAD_MS:
        found.append((True, text))
    else:
        found.append((False, f"{text}; sessions follow that of their master: let NTP set all"))
    if view.masters[0] in links:
        found.append(await _partitions(links[view.masters[0]], settings))
    return found


async def _slots(link: Link, masters: int) -> Finding:
    known = info_fields(await link.call("CLUSTER", "INFO"))
    lacking = SLOTS - int(known.get("cluster_slots_assigned", SLOTS))
    if lacking:
        what = f"{lacking:,} of {SLOTS:,}"
        return False, f"slots: nobody has {what}, so nothing starts: redis-cli --cluster fix HOST:PORT"
    if known.get("cluster_state", "ok") != "ok":
        return False, "slots: the cluster is not whole; is a master away (CLUSTER NODES)?"
    return True, f"slots: {masters} masters have all {SLOTS:,}"


async def _full_coverage(link: Link) -> Finding:
    wants_all = await findings.config(link, "cluster-require-full-coverage")
    if wants_all == "yes":
        return False, (
            "full coverage: while one master is away all sessions are refused, not just its own: "
            "CONFIG SET cluster-require-full-coverage no, at each node"
        )
    return True, f"full coverage: {'not shown by this Redis' if wants_all is None else 'not required'}"


async def _partitions(link: Link, settings: Settings) -> Finding:
    recorded = await link.call("GET", Keys(settings.prefix, 0).partitions)
    if recorded in (None, b"%d" % PARTITIONS):
        return True, f"partitions: {PARTITIONS}"
    shown = recorded.decode("utf-8", "replace") if isinstance(recorded, bytes) else recorded
    return False, f"partitions: {shown} are recorded, and not {PARTITIONS}: choose another --prefix"


async def _look_at_master(
    link: Link, address: Address, view: View, endpoint: Endpoint, settings: Settings
) -> list[Finding]:
    partitions = [number for number, each in enumerate(view.masters) if each == address]
    try:
        version = await findings.version(link, OLDEST_CLUSTER)
        if lacking := await lacking_commands(link.call):
            return [version, (False, f"Pub/Sub: Redis has no {lacking}: sharded channels are needed")]
        return [
            version,
            await findings.eviction(link, settings),
            await _rights(link, endpoint, partitions, settings),
            await findings.buffers(link),
            await findings.persistence(link),
            await _replicas(link),
            await findings.round_trip(link),
            await findings.clock(link),
            await findings.probe(
                link, endpoint.at(address), Channels(settings.routing, settings.prefix, partitions[0])
            ),
        ]
    except LinkDown as down:
        return [(False, str(down))]


async def _rights(link: Link, endpoint: Endpoint, partitions: list[int], settings: Settings) -> Finding:
    found = await rights.missing(
        link.call, endpoint.username or "default", settings.prefix, settings.routing, is_cluster=True
    )
    for number in partitions:
        found = found or await rights.in_the_way(link.call, Keys(settings.prefix, number))
    return found is None, f"rights and keys: {found or 'all that is needed'}"


async def _replicas(link: Link) -> Finding:
    known = await findings.info(link, "replication")
    if not known:
        return True, "replicas: not shown to this user (INFO)"
    count = sum(name.startswith("slave") and "state=online" in value for name, value in known.items())
    if count:
        return True, f"replicas: {count} in step"
    return False, "replicas: none in step; while it is away, so are its sessions: add one, or start it"
