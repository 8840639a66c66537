"""A supervised connection to Redis: it comes back by itself, and waits only while something moves on it.

The client library's connections would do for commands, at twice the cost; its Pub/Sub reader can
starve the event loop when a link goes silent. So this speaks RESP2 over hiredis itself.
"""

import asyncio
import fcntl
import logging
import random
import struct
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, cast

import hiredis

from broker.endpoint import Endpoint
from broker.sentinel import REFUSALS, Address, SentinelRefuses
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

TICK_S = 0.25
PING_INTERVAL_S = 1.0
SILENCE_S = 3.0
CALL_TIMEOUT_S = 1.0
GREETING_TIMEOUT_S = 1.5
# A connection that was just lost is mostly back at once; a call waits for that, and no longer.
BACK_SOON_S = 0.5
RETRY_MIN_S = 0.02
RETRY_MAX_S = 0.25
COMPLAIN_EVERY_S = 5.0
# A replica is asked for so long before a new connection may lead to the master instead.
REPLICA_S = 5.0

Argument = str | bytes | int

# Answers of a Redis that cannot serve now but will, or that another will serve instead of.
PASSING_ERRORS = ("LOADING", "READONLY", "MASTERDOWN", "BUSY ", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS")
# A script of ours says so that it changed nothing; what follows is Redis's own error.
REFUSED = "REFUSED "


class LinkDown(Exception):
    """No answer. `sent` says whether the request may have reached Redis."""

    def __init__(self, sent: bool, why: str = "no answer") -> None:
        super().__init__(why)
        self.sent = sent


class Refused(Exception):
    """Redis answers, but as things are set up it will never do what we need."""


class _Batch:
    """The calls of one turn of the loop, and the token that ECHO brings back behind their replies."""

    def __init__(self, token: bytes, sent_at_s: float) -> None:
        self.token = token
        self.sent_at_s = sent_at_s
        self.ends_at_byte = 0  # of all that is sent over the connection
        self.began_s = time.monotonic()  # exact, which the loop's own time need not be
        self.futures: list[asyncio.Future[Any]] = []
        self.replies: list[Any] = []


class Wire(asyncio.Protocol):
    """One connection's bytes: calls out and their replies in, or, once subscribed, pushes in.

    The calls of one turn of the loop go out in one piece, with an ECHO behind them. Their replies
    are believed when that has come back where it should: a reply that somebody in between has
    swallowed must not hand each caller another's.
    """

    def __init__(self) -> None:
        self.on_push: Callable[[list[Any]], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_answered: Callable[[float], None] | None = None  # told how long a round trip took, in s
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # When bytes last came in, or were last seen on their way out.
        self.moved_at_s = asyncio.get_running_loop().time()
        # Before it is greeted, a Redis may answer whatever we say with the same complaint.
        self.is_greeted = False
        # Why Redis closes, if it has said so: too many clients (before we ask), or protected mode.
        self._farewell = "no answer"
        self._reader = hiredis.Reader()
        self._unsent: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._batches: deque[_Batch] = deque()
        self._tokens = count()
        self._transport: asyncio.Transport | None = None
        self._sent_bytes = 0
        # How much of it had left this machine when that was last looked at, and for which call that was.
        self._arrived_bytes = 0
        self._looked_at: _Batch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.moved_at_s = asyncio.get_running_loop().time()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if self.on_push is not None:
                    self.on_push(reply)
                elif self._batches:
                    self._on_reply(self._batches[0], reply)
                elif isinstance(reply, hiredis.ReplyError):
                    self._farewell = str(reply)
        except hiredis.ProtocolError:
            log.exception(
                "what answers is no Redis, or something between changes its answers; connecting anew"
            )
            self.abort()

    def _on_reply(self, batch: _Batch, reply: Any) -> None:
        if len(batch.replies) < len(batch.futures):
            batch.replies.append(reply)
            return
        if reply != batch.token and (self.is_greeted or not isinstance(reply, hiredis.ReplyError)):
            log.warning("answers of Redis were lost or doubled on the way; connecting anew")
            self.abort()
            return
        self._batches.popleft()
        if self.on_answered is not None:
            self.on_answered(time.monotonic() - batch.began_s)
        for future, each in zip(batch.futures, batch.replies, strict=True):
            if not future.done():
                future.set_result(each)

    def call(self, *arguments: Argument) -> "asyncio.Future[Any]":
        """Send a command; the future's result is its reply, also where that is an error."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self.lost.done():
            _fail([future], sent=False, why=self._farewell)
            return future
        if not self._unsent:
            loop.call_soon(self._flush)
        self._unsent.append((arguments, future))
        return future

    async def ask(self, *arguments: Argument) -> Any:
        """Like `call`, but an error reply raises LinkDown: for what must not fail."""
        reply = await self.call(*arguments)
        if isinstance(reply, hiredis.ReplyError):
            raise LinkDown(sent=False, why=str(reply))
        return reply

    def ping(self) -> None:
        """Make Redis say something."""
        if self.on_push is not None:
            self.send("PING")
        elif not self._unsent:
            self._flush()

    def send(self, *arguments: Argument) -> None:
        """Send a command whose answer comes as a push."""
        assert self._transport is not None
        self._transport.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]

    def _flush(self) -> None:
        if self.lost.done():
            return
        batch = _Batch(b"%d" % next(self._tokens), asyncio.get_running_loop().time())
        pieces = []
        for arguments, future in self._unsent:
            pieces.append(hiredis.pack_command(arguments))  # type: ignore[arg-type]
            batch.futures.append(future)
        self._unsent.clear()
        self._batches.append(batch)
        assert self._transport is not None
        pieces.append(hiredis.pack_command(("ECHO", batch.token)))  # type: ignore[arg-type]
        data = b"".join(pieces)
        self._sent_bytes += len(data)
        batch.ends_at_byte = self._sent_bytes
        self._transport.write(data)

    @property
    def is_waited_for(self) -> bool:
        return bool(self._batches)

    def look(self, now_s: float) -> None:
        """See how far the oldest call has got; to be repeated while it is waited for."""
        if not self._batches:
            return
        oldest = self._batches[0]
        before_bytes, was_oldest = self._arrived_bytes, self._looked_at is oldest
        # Only of that call itself: what is sent behind it may just fill buffers that nobody empties.
        if not was_oldest or before_bytes < oldest.ends_at_byte:
            self._arrived_bytes = self._sent_bytes - self._unsent_bytes()
            if was_oldest and self._arrived_bytes > before_bytes:
                self.moved_at_s = now_s
        self._looked_at = oldest

    def stalled_s(self, now_s: float) -> float:
        """For how long a call has been waiting, and nothing of it, nor of any reply, has moved."""
        return now_s - max(self._batches[0].sent_at_s, self.moved_at_s) if self._batches else 0.0

    def _unsent_bytes(self) -> int:
        """What waits in this process, and, where the system tells, what the other end has not confirmed."""
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        sock = self._transport.get_extra_info("socket")
        try:
            waiting = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return unsent
        return unsent + int(struct.unpack("i", waiting)[0])

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        if not self.is_greeted and self._batches and self._batches[0].replies:
            reply = self._batches[0].replies[0]
            if isinstance(reply, hiredis.ReplyError):
                self._farewell = str(reply)
        for batch in self._batches:
            _fail(batch.futures, sent=True, why=self._farewell)
        _fail([future for _, future in self._unsent], sent=False, why=self._farewell)
        if self.on_lost is not None:
            self.on_lost()


def _fail(futures: list["asyncio.Future[Any]"], sent: bool, why: str) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(LinkDown(sent, why))
            future.exception()  # its caller may have left


class Link:
    """A connection that is kept up. While it is down, calls fail at once, so that nothing piles up.

    `on_up` prepares each new connection before anybody else can use it; it may raise Refused.
    """

    def __init__(
        self, endpoint: Endpoint, name: str, on_up: Callable[[Wire], Awaitable[None]], metrics: Metrics
    ) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._name = name
        self._on_up = on_up
        self._wire: Wire | None = None
        # Where the connection leads, if Sentinel was asked.
        self.master: Address | None = None
        self._up = asyncio.Event()
        self._has_been_up = False
        self._up_since_s = float("-inf")
        self._down_since_s = float("-inf")
        self._complained_at_s = float("-inf")
        self._away_since_s: float | None = None
        self._has_told_fault = False
        self._keeper: asyncio.Task[None] | None = None
        self._refused: asyncio.Future[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    @property
    def wire(self) -> Wire | None:
        """The connection now in use, if there is one."""
        return self._wire if self._up.is_set() else None

    async def start(self) -> None:
        """Return when the link is up for the first time. Raises Refused, then it never will be."""
        self._refused = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep_up())
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait((up, self._refused), return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()
        finally:
            up.cancel()

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def call(self, *arguments: Argument) -> Coroutine[Any, Any, Any]:
        """A command's reply. Raises LinkDown; error replies that are not passing are returned.

        Where the link is up the command is on its way when this returns, awaited or not.
        """
        asked = self._wire.call(*arguments) if self._wire is not None and self._up.is_set() else None
        return self._reply(arguments, asked)

    async def _reply(self, arguments: tuple[Argument, ...], asked: "asyncio.Future[Any] | None") -> Any:
        while True:
            if asked is None:
                if not self._up.is_set():
                    await self._back_soon()
                assert self._wire is not None
                asked = self._wire.call(*arguments)
            try:
                reply = await asked
                break
            except LinkDown as down:
                if down.sent:
                    self._metrics.redis_errors.labels("no answer").inc()
                    raise
                # The connection was lost in the very turn of the loop that asked: the next one takes it.
                asked = None
        if isinstance(reply, hiredis.ReplyError) and not str(reply).startswith("NOSCRIPT"):
            self._metrics.redis_errors.labels("refused").inc()
            why = str(reply).removeprefix(REFUSED)
            # What names its place in a script was said in the midst of it.
            if why.startswith(PASSING_ERRORS) and "user_script" not in why:
                if why.startswith("READONLY"):
                    self.look_for_master()
                raise LinkDown(sent=False, why=why)
        return reply

    def reset(self, why: str) -> None:
        """Give this connection up for a new one."""
        log.warning("connecting anew to Redis at %s (for %s): %s", self._endpoint.shown, self._name, why)
        self._mark_down()
        if self._wire is not None:
            self._wire.abort()

    def follow(self, master: Address) -> None:
        """Leave a master that is none any more for Sentinel, though it may not know that yet."""
        if self.is_up and self.master != master:
            self.reset(f"Sentinel names another master, {master[0]}:{master[1]}")

    def look_for_master(self) -> None:
        """A replica answers, as after a failover: perhaps the same name leads to the master by now.

        One that stays a replica is read from meanwhile, and looked at anew not all the time.
        """
        if self.is_up and asyncio.get_running_loop().time() - self._up_since_s >= REPLICA_S:
            self.reset("it is not the master")

    async def _back_soon(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._down_since_s > BACK_SOON_S:
            raise LinkDown(sent=False, why="Redis is away")
        try:
            async with asyncio.timeout(BACK_SOON_S):
                await self._up.wait()
        except TimeoutError:
            raise LinkDown(sent=False, why="Redis is away") from None

    async def _keep_up(self) -> None:
        retry_s = RETRY_MIN_S
        while True:
            try:
                await self._connect()
                retry_s = RETRY_MIN_S
                await self._watch()
                self._complain("connection lost")
            except (Refused, SentinelRefuses) as error:
                if self._refused is not None and not self._refused.done() and not self._has_been_up:
                    self._refused.set_exception(Refused(str(error)))  # whoever starts it says so
                else:
                    self._complain(str(error))
            except (OSError, LinkDown) as error:
                self._complain(str(error) or "timed out")
            except Exception as error:
                # Nobody expected it, but whoever gave up here would never come back.
                if not self._has_told_fault:
                    self._has_told_fault = True
                    log.exception("a connection to Redis could not be made ready; this is tried again")
                self._complain(repr(error))
            finally:
                self._drop_wire()
            await asyncio.sleep(retry_s * random.uniform(0.5, 1))
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _connect(self) -> None:
        self._wire, self.master = await self._endpoint.connect(Wire)
        wire = self._wire
        greeting = asyncio.create_task(self._greet(wire))
        try:
            # However much there is to say, as long as Redis answers.
            while not greeting.done():
                now_s = asyncio.get_running_loop().time()
                wire.look(now_s)
                left_s = wire.moved_at_s + GREETING_TIMEOUT_S - now_s
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait((greeting,), timeout=min(left_s, TICK_S))
            greeting.result()
        finally:
            greeting.cancel()
            await asyncio.gather(greeting, return_exceptions=True)
        if wire.lost.done():
            raise LinkDown(sent=False, why="connection lost")
        wire.is_greeted = True
        wire.on_answered = self._metrics.redis.observe
        # At once, not when the keeper's turn comes: calls in between shall wait for the next one.
        wire.on_lost = lambda: self._mark_down() if self._wire is wire else None
        self._has_been_up = True
        self._has_told_fault = False
        self._up.set()
        self._up_since_s = asyncio.get_running_loop().time()
        if self._away_since_s is not None:
            away_s = asyncio.get_running_loop().time() - self._away_since_s
            log.warning(
                "Redis is back at %s (for %s), after %.1f s", self._endpoint.shown, self._name, away_s
            )
            self._away_since_s = None

    async def _greet(self, wire: Wire) -> None:
        for command in self._endpoint.greeting():
            reply = await wire.call(*command)
            if isinstance(reply, hiredis.ReplyError):
                if command[0] == "CLIENT" and not str(reply).startswith("NOAUTH"):
                    continue  # a name is a convenience, also where the ACL forbids it
                if str(reply).startswith(REFUSALS):
                    raise Refused(str(reply))
                raise LinkDown(sent=False, why=str(reply))
            if command[0] == "ROLE" and reply[0] != b"master":
                raise LinkDown(sent=False, why="it is not a master")
        await self._on_up(wire)

    async def _watch(self) -> None:
        """Return when the connection is lost, or has been silent for too long.

        What is arriving, or still on its way out, is waited for, however long it takes.
        At two looks in succession: when this process itself stood still, the first comes before what
        has arrived meanwhile is read.
        """
        wire, loop = self._wire, asyncio.get_running_loop()
        assert wire is not None
        pinged_at_s = 0.0
        was_late = False
        while not wire.lost.done():
            now_s = loop.time()
            wire.look(now_s)
            silence_s = now_s - wire.moved_at_s
            is_late = silence_s > SILENCE_S or wire.stalled_s(now_s) > CALL_TIMEOUT_S
            if is_late and was_late:
                return
            was_late = is_late
            is_quiet = silence_s >= PING_INTERVAL_S
            if is_quiet and now_s - pinged_at_s >= PING_INTERVAL_S:
                pinged_at_s = now_s
                wire.ping()
            # Seldom where all is well: each look wakes a process that may have nothing else to do.
            pause_s = TICK_S if is_quiet or wire.is_waited_for else PING_INTERVAL_S - silence_s
            await asyncio.wait((wire.lost,), timeout=max(TICK_S, pause_s))

    def _mark_down(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._down_since_s = asyncio.get_running_loop().time()

    def _drop_wire(self) -> None:
        self._mark_down()
        if self._wire is not None:
            self._wire.abort()
            self._wire = None

    def _complain(self, why: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._away_since_s is None:
            self._away_since_s = now_s
        if now_s - self._complained_at_s >= COMPLAIN_EVERY_S:
            self._complained_at_s = now_s
            log.warning("waiting for Redis at %s (for %s): %s", self._endpoint.shown, self._name, why)
