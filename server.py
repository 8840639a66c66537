"""Puts Lockstep together: settings, broker, sessions, hub, routes; and takes it down in order."""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

try:
    import tornado  # noqa: F401
except ModuleNotFoundError as missing:
    sys.exit(f"lockstep: {missing.name} is missing: make install, then .venv/bin/python {' '.join(sys.argv)}")

from broker import open_broker
from broker.clock import TimeSource
from cli import run_command
from handlers import build_transport
from handlers.clients import Clients
from handlers.event_streams import EventStreams
from handlers.heartbeat import Heartbeat
from handlers.listeners import listen, url_of
from handlers.listening import ClientServer
from handlers.native import Recipients, why_missing
from handlers.origins import Hosts, Origins
from handlers.protocol_v1 import ProtocolV1
from handlers.protocol_v2 import ProtocolV2
from handlers.requests_v2 import Requests
from handlers.services import Services
from handlers.token_keys import TokenKeys
from handlers.tokens import Tokens
from lockstep import logs
from lockstep.config import Settings, read_settings
from lockstep.errors import GOING_AWAY, Close
from lockstep.limits import ConnectionLimits, RateLimits
from lockstep.live.deadlines import Deadlines
from lockstep.live.followers import Followers
from lockstep.live.hub import Hub
from lockstep.live.virtual_time import VirtualClock, VirtualTime
from lockstep.metrics import Metrics
from lockstep.perform import Performer
from lockstep.session_list import SessionList
from lockstep.sessions import Sessions
from lockstep.setting import SettingsError
from lockstep.tasks import Tasks
from lockstep.wire import encodings, protocol_v2

log = logging.getLogger(__name__)

GC_THRESHOLD = 10_000
# Larger blocks are given back to the system when they are freed. By default glibc raises this bound, and many
# large bodies at once leave a heap full of holes: mallopt(3). States of 1,000 participants stay below it:
# to map memory anew for each copy of one takes longer than all that is done with it.
MMAP_THRESHOLD_BYTES = 524_288
_M_MMAP_THRESHOLD = -3
# How long a new process waits for its broker before it accepts connections.
CONNECT_FIRST_S = 1.0
# A stopping process closes its clients at this pace: they come back to processes that have work to do.
CLOSES_PER_S = 500
# Clients that can be asked to wait are back within this time, CLOSES_PER_S of them where that is enough: to
# let in 500 a second takes a fifth of a core. More at once are better than some who are away for longer.
BACK_WITHIN_S = 9.999
# How long a stopping process answers at least: a proxy may have sent requests before it noticed.
LINGER_S = 0.3


_Client = TypeVar("_Client")


class Register(Protocol[_Client]):
    """Clients of one kind."""

    @property
    def connections(self) -> Collection[_Client]:
        """Those that have been let in."""

    def send_away(self, connection: _Client, how: Close, come_back_after_ms: int) -> None:
        """The process stops: end the connection."""


class Server:
    """One process of Lockstep."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        keys = TokenKeys.read(settings.jwt_secret_file, settings.jwt_public_key_file)
        self.metrics = metrics = Metrics()
        metrics.watch(metrics.ready, lambda: not self.not_ready())
        metrics.max_connections.set(settings.max_connections)
        source: TimeSource = time
        if settings.virtual_time:
            source = VirtualClock()
            log.warning("--virtual-time=yes: time stands still but for POST /v1/time/advance")
        self.broker = open_broker(settings, metrics, source)
        self.sessions = Sessions(self.broker, settings.lifetimes, metrics)
        self.deadlines = Deadlines(self.broker, self.sessions)
        self.hub = Hub(self.broker, self.sessions, self.deadlines, metrics, Recipients)
        self.heartbeat = Heartbeat(
            settings.ping_interval_s, settings.ping_timeout_s, metrics.loop_lag.observe
        )
        self._tasks = Tasks()
        self._is_draining = False
        limits = ConnectionLimits(
            self.broker,
            settings.max_connections_per_session,
            settings.max_connections_per_caller,
            settings.max_connections_per_ip,
            settings.max_connections,
            settings.connection_rate,
            metrics,
        )
        followers = Followers(self.hub, self.broker, self.sessions, metrics)
        self.streams = EventStreams(followers, limits, metrics)
        services = Services(
            sessions=self.sessions,
            session_list=SessionList(self.broker),
            presence=self.hub.presence,
            performer=Performer(self.sessions),
            streams=self.streams,
            shown_ms=self.broker.shown_ms,
            tokens=Tokens(keys, settings.jwt_audience, settings.jwt_issuer, settings.anonymous),
            origins=Origins(settings.allowed_origins),
            hosts=Hosts(settings.own_names) if settings.is_open_on_loopback else None,
            addresses=settings.proxies,
            rates=None
            if settings.is_open_on_loopback
            else RateLimits(self.broker, *settings.rates, metrics, source.monotonic),
            virtual_time=VirtualTime(source, self.broker, self.deadlines, self.hub, self._tell_time)
            if isinstance(source, VirtualClock)
            else None,
            metrics=metrics,
            not_ready=self.not_ready,
            not_served=self.broker.not_served,
            is_draining=lambda: self._is_draining,
        )
        v1 = ProtocolV1(self.hub, self.broker, limits, metrics)
        requests = Requests(
            followers,
            services.performer,
            self.broker,
            services.tokens,
            limits,
            services.rates,
            settings.max_subscriptions,
            metrics,
        )
        self._v2 = [
            ProtocolV2(
                subprotocol,
                encoding,
                requests,
                self.broker,
                limits,
                metrics,
                settings.ping_interval_s,
                stands_still=settings.virtual_time,
            )
            for subprotocol, encoding in (
                (protocol_v2.SUBPROTOCOL, encodings.JSON),
                (protocol_v2.MSGPACK_SUBPROTOCOL, encodings.MSGPACK),
            )
        ]
        self.clients = Clients(
            [v1, *self._v2],
            self.heartbeat,
            settings.max_message_bytes,
            settings.message_rate,
            settings.compression,
            metrics,
        )
        metrics.watch(metrics.connections, lambda: len(self._connections()))
        metrics.watch(metrics.streams, lambda: len(self.streams.connections))
        self.transport = build_transport(services, self.clients, settings.keep_alive_s)
        self.http = ClientServer(self.transport)

    def _tell_time(self) -> None:
        for protocol in self._v2:
            protocol.tell_time()

    def not_ready(self) -> list[str]:
        return (["draining"] if self._is_draining else []) + self.broker.not_ready()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Listen, and return when the broker is there. Raises ValueError if it cannot be used."""
        self.heartbeat.start()
        self.streams.heartbeat.start()
        connecting = asyncio.create_task(self.broker.start(self.hub))
        try:
            # Early requests wait in the kernel for these milliseconds. Without a broker the process listens
            # all the same, and answers that there is none.
            await asyncio.wait((connecting,), timeout=CONNECT_FIRST_S)
            self.http.add_sockets(sockets)
            await connecting
        finally:
            connecting.cancel()
        self.hub.start()
        self.deadlines.start()
        self._tasks.spawn(self.metrics.measure_lag())

    async def stop(self) -> None:
        """Finish what is in flight, close the clients, leave; never longer than the drain time."""
        self._is_draining = True
        self.hub.presence.drain()
        self.http.stop()
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self._drain()
        except TimeoutError:
            log.warning("stopping took longer than drain_s=%g: who is left is cut off", self.settings.drain_s)
        self.heartbeat.close()
        self.streams.heartbeat.close()
        await self._tasks.close()
        await self.deadlines.close()
        await self.hub.close()
        await self.broker.close()

    async def _drain(self) -> None:
        """Return when requests are answered and clients are gone, which are closed a few at a time."""
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        clients = self._connections()
        spread_s = min(len(clients) / CLOSES_PER_S, self.settings.drain_s / 2)
        linger_s = min(LINGER_S, self.settings.drain_s / 2)
        closed = 0
        while self.transport.in_flight or self._connections() or now_s() - began_s < linger_s:
            elapsed_s = now_s() - began_s
            first = closed
            if closed < len(clients):
                closed = (
                    int(len(clients) * elapsed_s / spread_s) + 1 if elapsed_s < spread_s else len(clients)
                )
                leaving = clients[first:closed]
            else:
                # Repeatedly: new clients may still have come by a connection that was open before.
                leaving = self._connections()
            for place, (register, connection) in enumerate(leaving, first):
                after_ms = come_back_after_ms(place, len(clients), spread_s)
                register.send_away(connection, GOING_AWAY, after_ms)
            await asyncio.sleep(0.01)

    def _connections(self) -> list[tuple[Register[Any], Any]]:
        registers: tuple[Register[Any], ...] = (*self.clients.protocols.values(), self.streams)
        return [(register, connection) for register in registers for connection in register.connections]


async def serve(settings: Settings, sockets: list[socket.socket]) -> None:
    if why_missing:
        log.warning("without its extension in C this needs more of the processor: %s", why_missing)
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        # A terminal that closes sends SIGHUP more than once.
        if stopped.is_set() and number != signal.SIGHUP:
            os._exit(1)  # the second one: at once
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            loop.add_signal_handler(number, on_signal, number)
    server = Server(settings)
    started = asyncio.create_task(server.start(sockets))
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait((started, stopping), return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        started.result()
        # What exists now stays: the collector need not look at it again, nor at the rest so often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 10)
        print(f"Lockstep is ready at {' and '.join(url_of(each) for each in sockets)}", flush=True)
        await stopping
    started.cancel()
    await server.stop()


def come_back_after_ms(place: int, count: int, closing_s: float) -> int:
    """How long a client that is sent away is asked to wait before it comes back: from 1 to 9,999 ms.

    It is number `place`, from 0, of `count` that are sent away evenly within `closing_s`. They are to come
    back as evenly, within `count` / CLOSES_PER_S or BACK_WITHIN_S, whichever is shorter; sooner than they
    are sent away they cannot. A client that is not among them waits as long as the last of them.
    """
    back_s = max(closing_s, min(count / CLOSES_PER_S, BACK_WITHIN_S))
    share = min(place, count) / max(count, 1)
    return max(1, round(share * (back_s - closing_s) * 1000))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop of uvloop where that is installed: it does the same, faster."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def main(args: Sequence[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    try:
        if run_command(args):
            return
        settings = read_settings(args, os.environ)
    except (SettingsError, ValueError) as error:
        sys.exit(f"lockstep: {error}")
    logs.configure(settings.log_level)
    try:
        sockets = listen(settings.addresses, settings.port, settings.unix_socket)
    except OSError as error:
        sys.exit(f"lockstep: {error.strerror}")
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(settings, sockets))
    except ValueError as error:
        sys.exit(f"lockstep: {error}")
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    main()
