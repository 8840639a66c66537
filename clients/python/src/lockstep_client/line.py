"""One WebSocket to the server, and the one after it when it has ended."""

import asyncio
import json
import logging
import time
from collections.abc import Callable

from lockstep_client.backoff import backoff_ms
from lockstep_client.carried import CarriedSubscriptions
from lockstep_client.connection import (
    CONNECT_WITHIN_S,
    Lost,
    TokenRefused,
    close_connection,
    open_connection,
)
from lockstep_client.conversation import Conversation
from lockstep_client.errors import LockstepError
from lockstep_client.messages import BadMessage
from lockstep_client.pending_commands import PendingCommands
from lockstep_client.server_time import ServerTime
from lockstep_client.subscription import Subscription
from lockstep_client.tokens import AsyncTokens
from lockstep_client.types import JsonObject
from lockstep_client.waiting import within

log = logging.getLogger(__name__)

STEADY_AFTER_S = 10.0
"""A connection that has lasted so long begins the backoff anew."""
MAX_WAIT_MS = 15_000
MAX_SENT_AWAY = 10
"""So often in a row a server is believed that says when to come back: in a rolling restart, several do."""
GOING_AWAY = 1001
MESSAGE_TOO_BIG = 1009


class Line:
    """Connects, and comes back after whatever happens, until it is cancelled, or refused for good."""

    def __init__(
        self,
        url: str,
        tokens: AsyncTokens,
        server_time: ServerTime,
        new_id: Callable[[], int],
        overflow: Callable[["Line", Subscription], None],
        ended: Callable[[Subscription], None],
    ) -> None:
        self._url = url
        self._tokens = tokens
        self._time = server_time
        self._new_id = new_id
        self._conversation: Conversation | None = None
        self._is_asked = asyncio.Event()
        """To come back before it is time."""
        self._refusals = 0
        """How many tokens in a row were refused before anything was said."""
        self.trouble = "not connected yet"
        """Why there is no connection, where there is none."""
        self.subscriptions = CarriedSubscriptions(
            self._send_json, new_id, server_time.now_ms, lambda each: overflow(self, each), ended
        )
        self.commands = PendingCommands(self._send)

    @property
    def is_idle(self) -> bool:
        return not self.subscriptions and not self.commands

    def probe(self) -> None:
        """Find out now whether the connection still stands; while waiting to come back, come back now."""
        if self._conversation is not None:
            self._conversation.probe()
        else:
            self._is_asked.set()

    async def run(self) -> None:
        """Raises LockstepError where it was refused for good; there is no other end."""
        attempt = sent_away = 0
        while True:
            began_s = time.monotonic()
            code, is_doubtful = None, False
            try:
                await self._converse()
            except Lost as lost:
                self.trouble, code = str(lost), lost.code
            except TokenRefused as refused:
                self.trouble = str(refused)
            except LockstepError:
                raise
            except BadMessage as bad:
                self.trouble, is_doubtful = f"the server sent {bad}", True
            except Exception as error:  # what looked like a state, for one, and was none
                self.trouble, is_doubtful = f"what the server sent makes no sense: {error!r}", True
            said = self._conversation
            self._conversation = None
            if code == MESSAGE_TOO_BIG:
                self.commands.reject_longest(LockstepError("MESSAGE_TOO_BIG", "Too long: send it by REST"))
            self.subscriptions.lose(is_doubtful=is_doubtful)
            self.commands.lose()
            if said is not None and said.is_welcome and time.monotonic() - began_s > STEADY_AFTER_S:
                attempt = sent_away = 0
            wait_ms = None
            if said is not None and said.is_welcome and sent_away < MAX_SENT_AWAY:
                # Whoever is sent away is expected elsewhere.
                wait_ms = said.reconnect_after_ms
                if wait_ms is not None or code == GOING_AWAY:
                    attempt = 0
                    sent_away += 1
            if wait_ms is None:
                wait_ms = backoff_ms(attempt)
                attempt += 1
            wait_ms = max(0, min(wait_ms, MAX_WAIT_MS))
            log.info("no connection to %s: %s; back in %.1f s", self._url, self.trouble, wait_ms / 1000)
            self._is_asked.clear()
            await within(wait_ms / 1000, self._is_asked)

    async def _converse(self) -> None:
        """One connection, from its token to its end, which is raised."""
        token = await self._token()
        try:
            connection = await open_connection(self._url, token)
            conversation = Conversation(
                connection, token, self._tokens, self._time, self._new_id, self.subscriptions, self.commands
            )
            self._conversation = conversation
            is_dead = True
            try:
                await conversation.run()
            except asyncio.CancelledError:
                is_dead = False
                raise
            finally:
                await close_connection(connection, is_dead=is_dead)
                if conversation.is_welcome:
                    self._refusals = 0
        except TokenRefused as refused:
            self._refusals += 1
            # What was just made for this connection was refused, too: no other will do better.
            if not self._tokens.refuse(token) or self._refusals > 1:
                raise LockstepError("UNAUTHORIZED", str(refused) or "This token is not valid") from refused
            raise

    async def _token(self) -> str | None:
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                return await self._tokens.token()
        except Exception as error:  # whatever the application's function raises
            raise Lost(f"no token: {error!r}") from error

    def _send(self, text: str) -> None:
        if self._conversation is not None:
            self._conversation.send(text)

    def _send_json(self, message: JsonObject) -> None:
        self._send(json.dumps(message, separators=(",", ":")))
