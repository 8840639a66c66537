"""A supervised connection to Redis: it comes back by itself, and waits only while something moves on it."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import hiredis

from broker.endpoint import Endpoint
from broker.resp import Argument, LinkDown, RespConnection
from broker.sentinel import REFUSALS, Address, SentinelRefuses
from lockstep.beats import next_beat
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)

TICK_S = 0.25
PING_INTERVAL_S = 1.0
SILENCE_S = 3.0
CALL_TIMEOUT_S = 1.0
GREETING_TIMEOUT_S = 1.5
# A lost connection is mostly back at once; a call waits for it this long.
BACK_SOON_S = 0.5
RETRY_MIN_S = 0.02
RETRY_MAX_S = 0.25
COMPLAIN_EVERY_S = 5.0
# A replica is used this long before a new connection is tried, which may lead to the master instead.
REPLICA_S = 5.0

# Answers of a Redis that cannot serve now but soon will, or another one in its place.
PASSING_ERRORS = ("LOADING", "READONLY", "MASTERDOWN", "BUSY ", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS")
# A script's error that begins so changed nothing; what follows is Redis's own error.
REFUSED = "REFUSED "


async def greet(connection: RespConnection, endpoint: Endpoint) -> None:
    """Say who we are. Raises Refused or LinkDown."""
    for command in endpoint.greeting():
        reply = await connection.call(*command)
        if isinstance(reply, hiredis.ReplyError):
            if command[0] == "CLIENT" and not str(reply).startswith("NOAUTH"):
                continue  # a name is a convenience, also where the ACL forbids it
            if str(reply).startswith(REFUSALS):
                raise Refused(str(reply))
            raise LinkDown(sent=False, why=str(reply))
        if command[0] == "ROLE" and reply[0] != b"master":
            raise LinkDown(sent=False, why="it is not a master")


def passing_error(reply: Any) -> str:
    """Why Redis does not do now what it soon will; empty for any other reply."""
    if not isinstance(reply, hiredis.ReplyError):
        return ""
    why = str(reply).removeprefix(REFUSED)
    # An error that names its place in a script came from the midst of it.
    return why if why.startswith(PASSING_ERRORS) and "user_script" not in why else ""


class Refused(Exception):
    """Redis answers, but will never do what we need as long as it is set up like this."""


def never() -> bool:
    return False


class CommandLink(Protocol):
    """What commands are sent over: a connection that is kept up, to one Redis or to who has a partition."""

    @property
    def is_up(self) -> bool: ...

    @property
    def connection(self) -> RespConnection | None:
        """The connection now in use, if there is one."""

    def call(self, *arguments: Argument) -> Coroutine[Any, Any, Any]:
        """A command's reply. Raises LinkDown; error replies that are not passing are returned.

        Where the link is up the command is on its way when this returns, awaited or not.
        """


class Link:
    """Keeps a connection up. While it is down calls fail at once, so that nothing piles up.

    `on_up` prepares each new connection before anything else can use it; it may raise Refused.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        on_up: Callable[[RespConnection], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._name = name
        self._on_up = on_up
        self._connection: RespConnection | None = None
        # Where the connection leads, where Sentinel was asked.
        self.master: Address | None = None
        self._up = asyncio.Event()
        self._is_start = never
        self._has_been_up = False
        self._up_since_s = float("-inf")
        self._down_since_s = float("-inf")
        self._complained_at_s = float("-inf")
        self._away_since_s: float | None = None
        self._has_logged_fault = False
        # Why it will never be of use as it is set up; None once it has been.
        self.refusal: str | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._refused: asyncio.Future[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    @property
    def connection(self) -> RespConnection | None:
        """The connection now in use, if there is one."""
        return self._connection if self._up.is_set() else None

    async def start(self) -> None:
        """Return when the link is up for the first time. Raises Refused, then it never will be."""
        self._refused = asyncio.get_running_loop().create_future()
        self.open()
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait((up, self._refused), return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()
        finally:
            up.cancel()

    def open(self, is_start: Callable[[], bool] = never) -> None:
        """Begin to connect; calls wait for that as for a connection that was lost just now.

        As long as `is_start()`, the process does not start without this link, and ends with the line that
        `refusal` is.
        """
        self._is_start = is_start
        self._down_since_s = asyncio.get_running_loop().time()
        self._keeper = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def call(self, *arguments: Argument) -> Coroutine[Any, Any, Any]:
        """A command's reply. Raises LinkDown; error replies that are not passing are returned.

        Where the link is up the command is on its way when this returns, awaited or not.
        """
        connection = self.connection
        pending = None if connection is None else connection.call(*arguments)
        return self._reply(arguments, pending)

    async def _reply(self, arguments: tuple[Argument, ...], pending: "asyncio.Future[Any] | None") -> Any:
        while True:
            if pending is None:
                pending = (await self.connected()).call(*arguments)
            try:
                reply = await pending
                break
            except LinkDown as down:
                if down.sent:
                    self._metrics.redis_errors.labels("no answer").inc()
                    raise
                # The connection was lost before the call was sent: the next connection gets it.
                pending = None
        if isinstance(reply, hiredis.ReplyError) and not str(reply).startswith("NOSCRIPT"):
            self._metrics.redis_errors.labels("refused").inc()
            if why := passing_error(reply):
                if why.startswith("READONLY"):
                    self.look_for_master()
                raise LinkDown(sent=False, why=why)
        return reply

    def reset(self, why: str) -> None:
        """Give this connection up for a new one."""
        log.warning("connecting anew to Redis at %s (for %s): %s", self._endpoint.shown, self._name, why)
        self._mark_down()
        if self._connection is not None:
            self._connection.abort()

    def follow(self, master: Address) -> None:
        """Leave a master that Sentinel no longer names, though it may not know that yet itself."""
        if self.is_up and self.master != master:
            self.reset(f"Sentinel names another master, {master[0]}:{master[1]}")

    def look_for_master(self) -> None:
        """Connect anew where a replica answers, as after a failover: the name may lead to the master by now.

        One that stays a replica is read from meanwhile, so this is not done all the time.
        """
        if self.is_up and asyncio.get_running_loop().time() - self._up_since_s >= REPLICA_S:
            self.reset("it is not the master")

    async def connected(self) -> RespConnection:
        """The connection in use, or that which soon is. Raises LinkDown."""
        if not self._up.is_set():
            await self._wait_until_back()
        assert self._connection is not None
        return self._connection

    async def _wait_until_back(self) -> None:
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
                    self._refused.set_exception(Refused(str(error)))  # start() raises it
                elif self._has_been_up or not self._is_start():
                    self._complain(str(error))
                self.refusal = str(error)
            except (OSError, LinkDown) as error:
                self._complain(str(error) or "timed out")
            except Exception as error:
                # This is a bug, but a link that gave up here would never come back.
                if not self._has_logged_fault:
                    self._has_logged_fault = True
                    log.exception("a connection to Redis could not be made ready; this is tried again")
                self._complain(repr(error))
            finally:
                self._drop_connection()
            await asyncio.sleep(retry_s * random.uniform(0.5, 1))
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _connect(self) -> None:
        self._connection, self.master = await self._endpoint.connect(RespConnection)
        connection = self._connection
        greeting = asyncio.create_task(self._greet(connection))
        try:
            # It takes as long as it takes, while Redis goes on answering.
            while not greeting.done():
                now_s = asyncio.get_running_loop().time()
                connection.track_progress(now_s)
                left_s = connection.moved_at_s + GREETING_TIMEOUT_S - now_s
                if left_s <= 0:
                    raise TimeoutError
                await asyncio.wait((greeting,), timeout=min(left_s, TICK_S))
            greeting.result()
        finally:
            greeting.cancel()
            await asyncio.gather(greeting, return_exceptions=True)
        if connection.lost.done():
            raise LinkDown(sent=False, why="connection lost")
        connection.is_greeted = True
        connection.on_answered = self._metrics.redis.observe
        # At once, not when the keeper runs: calls in between have to wait for the next connection.
        connection.on_lost = lambda: self._mark_down() if self._connection is connection else None
        self._has_been_up = True
        self.refusal = None
        self._has_logged_fault = False
        self._up.set()
        self._up_since_s = asyncio.get_running_loop().time()
        if self._away_since_s is not None:
            away_s = asyncio.get_running_loop().time() - self._away_since_s
            log.warning(
                "Redis is back at %s (for %s), after %.1f s", self._endpoint.shown, self._name, away_s
            )
            self._away_since_s = None

    async def _greet(self, connection: RespConnection) -> None:
        await greet(connection, self._endpoint)
        await self._on_up(connection)

    async def _watch(self) -> None:
        """Return when the connection is lost, or has been silent for too long.

        What is arriving, or still on its way out, is waited for, however long it takes. It is too long only
        at two looks in succession: when this process itself stood still, the first look comes before what
        has arrived meanwhile is read.
        """
        connection, loop = self._connection, asyncio.get_running_loop()
        assert connection is not None
        pinged_at_s = 0.0
        was_late = False
        while not connection.lost.done():
            now_s = loop.time()
            connection.track_progress(now_s)
            silence_s = now_s - connection.moved_at_s
            is_late = silence_s > SILENCE_S or connection.stalled_s(now_s) > CALL_TIMEOUT_S
            if is_late and was_late:
                return
            was_late = is_late
            is_quiet = silence_s >= PING_INTERVAL_S
            if is_quiet and now_s - pinged_at_s >= PING_INTERVAL_S:
                pinged_at_s = now_s
                connection.ping()
            # Where all is well it is looked at when the process is awake anyway. Not where a call is waited
            # for, though it was sent just now: what moved since the last look counts as moved at this one.
            if is_quiet or connection.is_waited_for:
                await asyncio.wait((connection.lost,), timeout=TICK_S)
            else:
                await asyncio.wait((connection.lost, next_beat()), return_when=asyncio.FIRST_COMPLETED)

    def _mark_down(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._down_since_s = asyncio.get_running_loop().time()

    def _drop_connection(self) -> None:
        self._mark_down()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _complain(self, why: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._away_since_s is None:
            self._away_since_s = now_s
        if now_s - self._complained_at_s >= COMPLAIN_EVERY_S:
            self._complained_at_s = now_s
            log.warning("waiting for Redis at %s (for %s): %s", self._endpoint.shown, self._name, why)
