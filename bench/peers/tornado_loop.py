"""Tornado as most would write it, write_message in a loop: python tornado_loop.py PORT REDIS_PORT"""

import asyncio
import sys
from collections import defaultdict

import redis.asyncio
from tornado.web import Application
from tornado.websocket import WebSocketClosedError, WebSocketHandler

rooms: dict[str, set["Socket"]] = defaultdict(set)


class Socket(WebSocketHandler):
    def open(self) -> None:
        self.set_nodelay(True)
        self.session_id = self.get_argument("sessionId")
        rooms[self.session_id].add(self)

    def on_message(self, message: str | bytes) -> None:
        pass

    def on_close(self) -> None:
        rooms[self.session_id].discard(self)
        if not rooms[self.session_id]:
            del rooms[self.session_id]


async def main(port: int, redis_port: int) -> None:
    pubsub = redis.asyncio.Redis(port=redis_port).pubsub()
    await pubsub.psubscribe("ws:*")
    messages = pubsub.listen()
    await anext(messages)  # the confirmation
    Application([("/ws", Socket)]).listen(port, "127.0.0.1", backlog=511)
    async for message in messages:
        text = message["data"].decode()
        for client in tuple(rooms.get(message["channel"].decode().removeprefix("ws:"), ())):
            try:
                client.write_message(text)
            except WebSocketClosedError:
                client.on_close()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
