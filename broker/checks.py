"""What a Redis must be before a process starts with it, by what it says of itself."""

import asyncio
from typing import Any

from broker.link import Refused
from broker.marks import Call
from broker.resp import RespConnection

OLDEST_REDIS = (6, 2)
# There are sharded channels since.
OLDEST_CLUSTER = (7, 0)
SHARDED = ("SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH")


async def require_usable(connection: RespConnection, allow_eviction: bool, is_cluster: bool = False) -> None:
    """Raises Refused where it is too old, of the wrong kind, or may evict sessions."""
    server, memory, cluster = await asyncio.gather(
        *(connection.call("INFO", section) for section in ("server", "memory", "cluster"))
    )
    if why := wrong_mode(info_fields(server), info_fields(cluster), is_cluster):
        raise Refused(why)
    version = info_fields(server).get("redis_version")
    # Where INFO is forbidden nothing is known, and nothing is held against it.
    oldest = OLDEST_CLUSTER if is_cluster else OLDEST_REDIS
    if isinstance(server, bytes) and version_numbers(version or "0") < oldest:
        raise Refused(f"Redis is {version}, {oldest[0]}.{oldest[1]} or newer is needed")
    if is_cluster and (lacking := await lacking_commands(connection.call)):
        raise Refused(f"Redis has no {lacking}: sharded channels, which Redis 7.0 has, are needed")
    policy = info_fields(memory).get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not allow_eviction:
        raise Refused(
            f"Redis may evict sessions (maxmemory-policy is {policy}): "
            "set it to noeviction, or give --allow-eviction=yes"
        )


async def lacking_commands(call: Call) -> str:
    """Which commands of sharded channels there are not; none where that may not be asked."""
    reply = await call("COMMAND", "INFO", *SHARDED)
    known = reply if isinstance(reply, list) else []
    return " and no ".join(name for name, found in zip(SHARDED, known, strict=False) if found is None)


def wrong_mode(server: dict[str, str], cluster: dict[str, str], is_cluster: bool = False) -> str | None:
    """Why what answers cannot be used, by its INFO, though it speaks as Redis does; None if it can."""
    mode = "cluster" if cluster.get("cluster_enabled") == "1" else server.get("redis_mode")
    if mode == "cluster" and not is_cluster:
        return "this is a Redis Cluster: name it as redis+cluster://host:port,host:port"
    if mode == "sentinel":
        return "this is a Sentinel: name it as redis+sentinel://host:port/service/db"
    return None


def info_fields(reply: Any) -> dict[str, str]:
    """INFO's lines; none where this user may not ask."""
    if not isinstance(reply, bytes):
        return {}
    # The server names files of its own there, in whatever encoding.
    pairs = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def version_numbers(version: str) -> tuple[int, ...]:
    """(7, 2) of 7.2.4"""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
