"""websockets' own `broadcast`, redis-py and uvloop: python websockets_broadcast.py PORT REDIS_PORT"""

import sys
from collections import defaultdict
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

rooms: dict[str, set[ServerConnection]] = defaultdict(set)


async def attend(connection: ServerConnection) -> None:
    assert connection.request is not None
    session_id = parse_qs(urlsplit(connection.request.path).query)["sessionId"][0]
    rooms[session_id].add(connection)
    try:
        await connection.wait_closed()
    finally:
        rooms[session_id].discard(connection)
        if not rooms[session_id]:
            del rooms[session_id]


async def main(port: int, redis_port: int) -> None:
    pubsub = redis.asyncio.Redis(port=redis_port).pubsub(ignore_subscribe_messages=False)
    await pubsub.psubscribe("ws:*")
    messages = pubsub.listen()
    await anext(messages)  # the confirmation
    async with serve(attend, "127.0.0.1", port, compression=None):
        async for message in messages:
            session_id = message["channel"].decode().removeprefix("ws:")
            broadcast(rooms.get(session_id, ()), message["data"].decode())


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
