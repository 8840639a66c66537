"""Both ends of a move, by their URLs: one Redis or a Cluster each, looked at before anything is done."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from broker.checks import require_usable
from broker.cluster.topology import View, ask_anew
from broker.endpoint import Endpoint, parse
from broker.link import Link, Refused
from broker.migration import Migration
from broker.migration_side import MigrationFailed, Side
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from lockstep.metrics import Metrics

START_TIMEOUT_S = 3.0


async def move(source_url: str, target_url: str, prefix: str, say: Callable[[str], None]) -> None:
    """Move the sessions with this prefix. Raises ValueError, whose text is one line."""
    ends = parse(source_url), parse(target_url)
    async with _opened("FROM", ends[0], prefix) as source, _opened("TO", ends[1], prefix) as target:
        await Migration(source, target, say).run()


@asynccontextmanager
async def _opened(name: str, endpoint: Endpoint, prefix: str) -> AsyncIterator[Side]:
    if endpoint.nodes and "{" in prefix:
        raise MigrationFailed(f"{name}: Redis Cluster gives {{ a meaning in names: the prefix must have none")
    async with AsyncExitStack() as stack:
        try:
            if endpoint.nodes:
                view = await _view(endpoint)
                links = {each: await _linked(name, endpoint.at(each), stack, True) for each in _masters(view)}
                partitions: Mapping[int | None, Link] = {
                    number: links[each] for number, each in enumerate(view.masters) if each is not None
                }
            else:
                partitions = {None: await _linked(name, endpoint, stack, False)}
        except (OSError, LinkDown, Refused) as error:
            raise MigrationFailed(
                f"{name} ({endpoint.shown}): {str(error) or 'it does not answer'}"
            ) from None
        yield Side(name, endpoint.shown, prefix, partitions, list(dict.fromkeys(partitions.values())))


async def _linked(name: str, endpoint: Endpoint, stack: AsyncExitStack, is_cluster: bool) -> Link:
    """A connection that is up. Raises OSError, LinkDown or Refused, which say why there is none."""

    async def require_ours(connection: RespConnection) -> None:
        await require_usable(connection, allow_eviction=name == "FROM", is_cluster=is_cluster)

    # By itself first: this says why nobody is there, where a link tries again and again.
    (await endpoint.connect(RespConnection))[0].abort()
    link = Link(endpoint, "commands", require_ours, Metrics())
    stack.push_async_callback(link.close)
    async with asyncio.timeout(START_TIMEOUT_S):
        await link.start()
    return link


async def _view(endpoint: Endpoint) -> View:
    """Who has which partition, as the nodes say that are named. Raises what the first of them raises."""
    answers = await asyncio.gather(
        *(ask_anew(endpoint, node) for node in endpoint.nodes), return_exceptions=True
    )
    views = [each for each in answers if isinstance(each, View)]
    if not views:
        raise next(each for each in answers if isinstance(each, BaseException))
    view = max(views, key=lambda each: (each.epoch, -each.masters.count(None)))
    if None in view.masters:
        raise LinkDown(
            False, f"{view.masters.count(None)} of its {len(view.masters)} partitions have no master"
        )
    return view


def _masters(view: View) -> Iterable[Address]:
    return dict.fromkeys(each for each in view.masters if each is not None)
