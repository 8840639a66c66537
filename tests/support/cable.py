"""A connection to a server that can be pulled, for tests that have no event loop."""

import asyncio
import threading
from collections.abc import Callable

from tests.support.redis_server import Proxy


class Cable:
    """A connection to the server that can be pulled, from the test's own thread."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._proxy = Proxy(port)
        asyncio.run_coroutine_threadsafe(self._proxy.__aenter__(), self._loop).result(5)
        self.url = f"http://127.0.0.1:{self._proxy.port}"

    def pull(self) -> None:
        """Reset what is connected, and refuse what would be."""
        self._proxy.refuses = True
        self._loop.call_soon_threadsafe(self._proxy.cut)

    def plug_in(self) -> None:
        self._proxy.refuses = False
        self._proxy.swallows_requests = self._proxy.swallows_replies = False

    def swallow(self, *, requests: bool = False) -> None:
        """Nothing more comes back, or with `requests` arrives, and nothing is closed either."""
        if requests:
            self._proxy.swallows_requests = True
        else:
            self._proxy.swallows_replies = True

    def on_request(self, change: Callable[[bytes], bytes]) -> None:
        """Change each piece on its way to the server."""
        self._proxy.on_request = change

    def on_reply(self, change: Callable[[bytes], bytes]) -> None:
        """Change each piece that comes back."""
        self._proxy.on_reply = change

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._proxy.__aexit__(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
