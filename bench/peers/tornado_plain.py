"""A Tornado WebSocket server with its own pings, and nothing else: python tornado_plain.py PORT"""

import asyncio
import sys

from tornado.web import Application
from tornado.websocket import WebSocketHandler


class Socket(WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        pass


async def main(port: int) -> None:
    application = Application([("/ws", Socket)], websocket_ping_interval=5, websocket_ping_timeout=4)
    application.listen(port, "127.0.0.1", backlog=1024)
    await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
