"""Commands that have no answer yet: those of one connection, in their order."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass

from lockstep_client.backoff import backoff_ms
from lockstep_client.errors import LockstepError
from lockstep_client.messages import Result

MAX_UNDER_WAY = 6
"""Of more than 16 requests the server leaves the rest unread, our PINGs, too. The others: carried.py."""


@dataclass(eq=False, slots=True)
class Command:
    """It is sent again over each new connection until it has its answer; by its key it is applied once."""

    id: int
    text: str
    answer: asyncio.Future[Result]
    ends_at_s: float
    """By the loop's time: nobody waits for longer."""
    attempts: int = 0
    timer: asyncio.TimerHandle | None = None
    """Runs until it is sent again, where the server could not do it just then."""

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class PendingCommands:
    """Sends them while there is a connection, so many at once; one that has to wait holds up the others."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._commands: dict[int, Command] = {}
        self._under_way: set[int] = set()
        self._is_open = False

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, command: Command) -> None:
        self._commands[command.id] = command
        self._send_due()

    def withdraw(self, command: Command) -> None:
        """Nobody waits for it any more. Whether it is applied is unknown."""
        command.stop_timer()
        if self._commands.pop(command.id, None) is not None:
            self._send_due()
        if command.answer.done() and not command.answer.cancelled():
            command.answer.exception()  # which is nobody's loss

    def open(self) -> None:
        self._is_open = True
        self._send_due()

    def lose(self) -> None:
        """The connection has ended: the next one begins with the first."""
        self._is_open = False
        self._under_way.clear()
        for command in self._commands.values():
            command.stop_timer()

    def succeed(self, result: Result) -> None:
        if not isinstance(result.id, int):
            return
        self._under_way.discard(result.id)
        command = self._commands.pop(result.id, None)
        if command is not None and not command.answer.done():
            command.answer.set_result(result)
        self._send_due()

    def refuse(self, id_: object, error: LockstepError) -> bool:
        """False where it is no command that is refused."""
        if not isinstance(id_, int) or id_ not in self._under_way:
            return False
        self._under_way.discard(id_)
        command = self._commands.get(id_)
        if command is not None and not self._is_sent_again(command, error):
            self._reject(command, error)
        self._send_due()
        return True

    def _is_sent_again(self, command: Command, error: LockstepError) -> bool:
        """Whether it will be, where the server could not do it just then, and somebody waits for so long."""
        if error.retry_after_ms is None:
            return False
        loop = asyncio.get_running_loop()
        wait_s = (error.retry_after_ms + backoff_ms(command.attempts)) / 1000
        if loop.time() + wait_s > command.ends_at_s:
            return False
        command.attempts += 1
        command.timer = loop.call_later(wait_s, self._send_again, command)
        return True

    def reject_longest(self, error: LockstepError) -> None:
        """One of those under way was too long for the server, which says so by ending the connection."""
        candidates = [each for each in self._commands.values() if each.id in self._under_way]
        if candidates:
            self._reject(max(candidates, key=lambda each: len(each.text)), error)

    def reject_all(self, error: LockstepError) -> None:
        for command in tuple(self._commands.values()):
            self._reject(command, error)

    def _reject(self, command: Command, error: LockstepError) -> None:
        command.stop_timer()
        self._commands.pop(command.id, None)
        if not command.answer.done():
            command.answer.set_exception(copy.copy(error))  # several may raise it

    def _send_again(self, command: Command) -> None:
        command.timer = None
        self._send_due()

    def _send_due(self) -> None:
        if not self._is_open:
            return
        for command in self._commands.values():
            if command.timer is not None or len(self._under_way) >= MAX_UNDER_WAY:
                return
            if command.id not in self._under_way:
                self._under_way.add(command.id)
                self._send(command.text)
