"""All the WebSockets of one client: as few as carry what is followed."""

import asyncio
import json
import logging
from itertools import count

from lockstep_client.calls import checked_id, checked_key
from lockstep_client.errors import LockstepError
from lockstep_client.line import Line
from lockstep_client.pending_commands import Command
from lockstep_client.server_time import ServerTime
from lockstep_client.subscription import Subscription
from lockstep_client.tokens import AsyncTokens
from lockstep_client.types import CommandBody, CommandName, CommandResult
from lockstep_client.updates import Follower

log = logging.getLogger(__name__)

MAX_SUBSCRIPTIONS = 100
"""Of a connection; a server that allows fewer says so, and more connections are opened."""


class Sockets:
    """Opened when there is something to follow or to command, and kept until `close()`."""

    def __init__(self, url: str, tokens: AsyncTokens, server_time: ServerTime, timeout_s: float) -> None:
        self._url = url
        self._tokens = tokens
        self._time = server_time
        self._timeout_s = timeout_s
        self._ids = count(1)
        self._subscriptions: dict[str, Subscription] = {}
        self._lines: dict[Line, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._max_subscriptions = MAX_SUBSCRIPTIONS
        self._is_closed = False

    # --- following ---------------------------------------------------------------------------------------

    def follow(self, session_id: str) -> Follower:
        """Whoever follows has to `leave`."""
        session_id = checked_id(session_id)
        self._require_open()
        subscription = self._subscriptions.get(session_id)
        if subscription is None:
            subscription = self._subscriptions[session_id] = Subscription(session_id)
            self._place(subscription)
        follower = Follower(session_id)
        subscription.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        subscription = self._subscriptions.get(follower.session_id)
        if subscription is None or follower not in subscription.followers:
            return  # of one that has ended
        subscription.followers.remove(follower)
        if subscription.followers:
            return
        del self._subscriptions[subscription.session_id]
        for line in tuple(self._lines):
            line.subscriptions.drop(subscription)
            self._close_if_idle(line)

    @property
    def followed(self) -> list[str]:
        return list(self._subscriptions)

    def is_current(self, session_id: str) -> bool:
        subscription = self._subscriptions.get(session_id.lower())
        return subscription is not None and subscription.is_current

    def probe(self) -> None:
        for line in self._lines:
            line.probe()

    def _place(self, subscription: Subscription) -> None:
        """On the first connection that has room for it."""
        for line in self._lines:
            if len(line.subscriptions) < self._max_subscriptions:
                break
        else:
            line = self._open_line()
        line.subscriptions.add(subscription)

    def _on_overflow(self, line: Line, subscription: Subscription) -> None:
        """The server allows fewer than this connection was to have."""
        self._max_subscriptions = min(self._max_subscriptions, max(1, len(line.subscriptions)))
        self._place(subscription)

    def _on_ended(self, subscription: Subscription) -> None:
        if self._subscriptions.get(subscription.session_id) is subscription:
            del self._subscriptions[subscription.session_id]

    # --- commands ----------------------------------------------------------------------------------------

    async def command(
        self, session_id: str, name: CommandName, body: CommandBody | None, idempotency_key: str | None
    ) -> CommandResult:
        id_ = next(self._ids)
        message: dict[str, object] = {
            "type": "COMMAND",
            "id": id_,
            "sessionId": checked_id(session_id),
            "command": name,
            "idempotencyKey": checked_key(idempotency_key),
        }
        if body is not None:
            message["body"] = body
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
        self._require_open()
        line = next(iter(self._lines), None) or self._open_line()
        loop = asyncio.get_running_loop()
        command = Command(id_, text, loop.create_future(), loop.time() + self._timeout_s)
        line.commands.add(command)
        try:
            async with asyncio.timeout(self._timeout_s):
                return (await command.answer).said
        except TimeoutError:
            raise LockstepError("UNREACHABLE", f"No answer: {line.trouble or 'nothing came'}") from None
        finally:
            line.commands.withdraw(command)

    # --- connections -------------------------------------------------------------------------------------

    def _open_line(self) -> Line:
        line = Line(
            self._url, self._tokens, self._time, self._ids.__next__, self._on_overflow, self._on_ended
        )
        self._lines[line] = asyncio.create_task(self._run(line))
        return line

    async def _run(self, line: Line) -> None:
        try:
            await line.run()
        except Exception as error:
            if isinstance(error, LockstepError):
                log.warning("the connection has ended for good: %s", error)
            else:  # a bug of ours: whoever follows is not to believe that nothing happens
                log.exception("the connection cannot be kept up")
                error = LockstepError("INTERNAL_ERROR", f"A fault of this client: {error!r}")
            self._lines.pop(line, None)
            self._end(line, error)

    def _end(self, line: Line, error: LockstepError | None) -> None:
        """What the line carried ends with it."""
        line.subscriptions.lose(is_doubtful=False)
        line.commands.lose()
        for subscription in line.subscriptions:
            self._on_ended(subscription)
            subscription.end(error)
        line.commands.reject_all(error or LockstepError("CLOSED", "This client was closed"))

    def _close_if_idle(self, line: Line) -> None:
        """One stays for whatever comes next."""
        if line.is_idle and len(self._lines) > 1:
            task = self._lines.pop(line)
            task.cancel()
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _require_open(self) -> None:
        if self._is_closed:
            raise LockstepError("CLOSED", "This client was closed")

    async def close(self) -> None:
        """What is followed ends. Whether commands that had no answer are applied is unknown."""
        self._is_closed = True
        lines, self._lines = self._lines, {}
        for line, task in lines.items():
            task.cancel()
            self._end(line, None)
        tasks = [*lines.values(), *self._closing]
        if tasks:
            await asyncio.wait(tasks)
