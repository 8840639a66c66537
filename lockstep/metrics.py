"""What operators see at /metrics: every figure of a process is named here, with bounded labels."""

from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep import __version__
from lockstep.beats import beat
from lockstep.logs import dropped_lines

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_QUICK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1011, *range(4000, 4010)})
_UNDERSTOOD = frozenset({"PING", "RECONNECT", "SUBSCRIBE", "UNSUBSCRIBE", "SYNC", "COMMAND", "REAUTH"})
# The _created series would double the text, and nobody looks at them.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _DroppedLines(Collector):
    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "lockstep_log_lines_dropped", "Log lines dropped because nobody read them.", dropped_lines()
        )


class _Tally(Collector):
    """A counter for what happens most often. Only the loop counts, so that none of it needs a lock."""

    def __init__(self, name: str, help_: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._help, self._labels = name, help_, labels
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int, {} if labels else {(): 0})

    def inc(self, *values: str) -> None:
        self.counts[values] += 1

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric(values, count)
        yield family


class Metrics:
    """The figures of one process, in a registry of their own.

    Counting is cheap enough for every message; nothing here waits or raises.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_DroppedLines())
        Gauge("lockstep_info", "The version that runs.", ["version"], registry=registry).labels(
            __version__
        ).set(1)

        def counter(name: str, help_: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, help_, labels, registry=registry)

        def tally(name: str, help_: str, labels: tuple[str, ...] = ()) -> _Tally:
            counted = _Tally(name, help_, labels)
            registry.register(counted)
            return counted

        def gauge(name: str, help_: str) -> Gauge:
            return Gauge(name, help_, registry=registry)

        def histogram(name: str, help_: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, help_, labels, buckets=_QUICK_S, registry=registry)

        self.connections = gauge("lockstep_connections", "Clients: WebSockets and event streams.")
        self.streams = gauge("lockstep_streams", "How many of the connections are event streams.")
        self.rooms = gauge("lockstep_rooms", "Sessions with clients at this process.")
        self.presence_subjects = gauge(
            "lockstep_presence_subjects",
            "Subjects with clients at this process, in each session that has presence.",
        )
        self.max_connections = gauge("lockstep_max_connections", "How many clients are let in; 0: no limit.")
        self.ready = gauge("lockstep_ready", "1 while /ready says so.")
        self.probe_age = gauge(
            "lockstep_probe_age_seconds", "Since a publication of its own came back to this process."
        )
        self.unserved_partitions = gauge(
            "lockstep_unserved_partitions", "Partitions of a Redis Cluster whose master does not answer."
        )
        self.opened = tally("lockstep_connections_opened_total", "Connections that began.")
        self._closed = tally("lockstep_connections_closed_total", "Connections that ended.", ("code",))
        self._messages = tally(
            "lockstep_messages_total", "Messages of and to clients.", ("direction", "type")
        )
        self.conflated = counter(
            "lockstep_conflated_states_total",
            "States that a newer one replaced before they were sent.",
        )
        self.slow_closes = counter("lockstep_slow_closes_total", "Clients closed for taking too little.")
        self.broadcast = histogram("lockstep_broadcast_seconds", "From a commit to the sockets of a room.")
        self.expiry_lateness = histogram(
            "lockstep_expiry_lateness_seconds", "From a deadline to the commit of its expiry."
        )
        self.gaps = counter("lockstep_gaps_total", "Times that publications may have been lost.")
        self.resyncs = counter("lockstep_resyncs_total", "Rooms that were sent the state after a loss.")
        self.limited = counter("lockstep_limited_total", "What a limit refused.", ("limit",))
        self.junk = counter("lockstep_junk_total", "Publications that were not understood, and dropped.")
        self.clock_steps = counter(
            "lockstep_clock_steps_total", "Times that the clock of Redis was set by more than 2 s."
        )
        self.clocks_apart = counter(
            "lockstep_clocks_apart_total",
            "Times that clocks of a Redis Cluster were found to differ by more than 20 ms.",
        )
        self.redis = histogram("lockstep_redis_seconds", "Round trips to Redis, of all that went together.")
        self.redis_errors = counter(
            "lockstep_redis_errors_total", "Calls that Redis refused or did not answer.", ("kind",)
        )
        self.loop_lag = histogram("lockstep_loop_lag_seconds", "How late the loop comes to what is due.")
        self._requests = histogram(
            "lockstep_request_seconds", "REST requests, by route and status.", ("method", "route", "code")
        )
        self._known_requests: dict[tuple[str, str, int], Histogram] = {}

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let the gauge show what `value` returns at the time of each scrape."""
        gauge.set_function(value)

    def count_closed(self, code: int | None) -> None:
        known = code in _CLOSE_CODES or (code is not None and 4500 <= code < 4510)
        self._closed.inc(str(code) if known else "none" if code is None else "other")

    def count_received(self, type_: str | None) -> None:
        """Count a client's message; None stands for one that was not understood."""
        known = "invalid" if type_ is None else type_ if type_ in _UNDERSTOOD else "unknown"
        self._messages.inc("in", known)

    def count_sent(self, type_: str, clients: int = 1) -> None:
        self._messages.counts["out", type_] += clients

    def observe_request(self, method: str, route: str, code: int, duration_s: float) -> None:
        """Count a request; `route` is a pattern, never a path, so that labels stay few."""
        key = (method, route, code)
        child = self._known_requests.get(key)
        if child is None:
            child = self._known_requests[key] = self._requests.labels(method, route, str(code))
        child.observe(duration_s)

    async def measure_lag(self) -> None:
        """Measure, for ever, how much later than asked for the loop comes to what is due at each beat."""
        while True:
            self.loop_lag.observe(await beat())

    def text(self) -> bytes:
        return generate_latest(self.registry)
