"""A look at the Redis that production needs: each finding is ok, or says what to do."""

import asyncio

from broker import findings, rights
from broker.checks import wrong_mode
from broker.endpoint import parse
from broker.findings import Finding
from broker.keys import Channels, Keys
from broker.link import Link, Refused
from broker.resp import LinkDown, RespConnection
from lockstep.config import Settings
from lockstep.metrics import Metrics

START_TIMEOUT_S = 3.0


async def examine_redis(settings: Settings) -> list[Finding]:
    """Look at the Redis that the settings name."""

    async def nothing(connection: RespConnection) -> None:
        pass

    endpoint = parse(settings.broker)
    link = Link(endpoint, "commands", nothing, Metrics())
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await link.start()
        # Then the rest is of no use, and may not even be answered.
        if why := wrong_mode(await findings.info(link, "server"), await findings.info(link, "cluster")):
            return [(False, f"Redis: {why}")]
        return [
            await findings.version(link),
            await findings.eviction(link, settings),
            await _rights(link, settings),
            await findings.buffers(link),
            await findings.persistence(link),
            await findings.round_trip(link),
            await findings.clock(link),
            await findings.probe(link, endpoint, Channels(settings.routing, settings.prefix)),
        ]
    except TimeoutError:
        return [(False, "Redis: nobody answers; is it running, and is the address right?")]
    except (Refused, LinkDown) as error:
        return [(False, f"Redis: {error}; is it running, and are address and password right?")]
    finally:
        await link.close()


async def _rights(link: Link, settings: Settings) -> Finding:
    user = parse(settings.broker).username or "default"
    lacked = await rights.missing(link.call, user, settings.prefix, settings.routing)
    found = lacked or await rights.in_the_way(link.call, Keys(settings.prefix))
    return found is None, f"rights and keys: {found or 'all that is needed'}"
