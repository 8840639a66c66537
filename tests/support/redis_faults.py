"""What can be wrong with a Redis that answers."""

import shutil

from tests.support.processes import wait_until
from tests.support.redis_server import RedisServer


def fill(redis: RedisServer) -> None:
    redis.client.config_set("maxmemory", 1)


def lose_its_disk(redis: RedisServer) -> None:
    with redis.client as client:
        client.config_set("save", "1 1")
        shutil.rmtree(redis.folder)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


def lose_its_replicas(redis: RedisServer) -> None:
    redis.client.config_set("min-replicas-to-write", 1)


def depose(redis: RedisServer) -> None:
    redis.client.replicaof("127.0.0.1", "1")
