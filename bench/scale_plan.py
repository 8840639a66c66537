"""What a deployment takes, from the measured costs: the tables of docs/scale.md.

Everything here is arithmetic on figures of docs/benchmarks-tables.md, but for the delays: those are
simulated, with arrivals by chance, at one master and at one process, since all of a kind have the same to do.
"""

import math
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bench.contest import number
from bench.measured import Missing, Tables
from bench.page import line, with_part
from bench.scale_model import Costs, calibrated, comparisons
from broker.keys import PARTITIONS

PARTS = ("costs", "check", "plan", "machine")
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"

# What is to be carried, and what we take for granted; docs/scale.md says so.
CLIENTS = 10_000_000
CHANGES_PER_S = 100_000
VISIT_S = 1800.0
PING_INTERVAL_S = 5.0
SPARING_PING_INTERVAL_S = 25.0
BUSY_SHARE = 0.5
# More than were measured shall be at no process.
CLIENTS_AT_A_PROCESS = 18_000
MACHINE_CORES = 32
MACHINE_BYTES = 128e9
MACHINE_BITS_PER_S = 25e9
PROCESS_BYTES = 60e6
# Ethernet, IP and TCP around what is sent; a ping is two packets and one that acknowledges.
PACKET_BYTES = 66
PING_BYTES = 3 * PACKET_BYTES + 2 + 6
EVENTS_KEPT = 100


@dataclass(frozen=True)
class Measured:
    """Costs of a deployment beside those of the model, each with the table that it is from."""

    model: Costs
    ping_us: float
    join_us: float
    switch_us: float
    client_bytes: float
    nginx_us: float
    redis_us: float
    redis_hearer_us: float
    session_bytes: float
    event_bytes: float
    channel_bytes: float
    message_bytes: float
    published_bytes: float


IDLE = "Idle connections: 18,000 of them"
HEARD = "Redis: publications and memory: a publication, by who hears it"
KEPT = "Redis: publications and memory: memory"
TOLD = "Changes: 2 participants, 1,000 clients"


def measured(tables: Tables) -> Measured:
    pings_per_s = 18_000 / PING_INTERVAL_S
    heard_16_us = tables.figure(HEARD, "16 processes", "Redis us per publication")
    heard_64_us = tables.figure(HEARD, "64 processes", "Redis us per publication")
    message_bytes = tables.figure(TOLD, "v2, changes", "bytes to each")
    return Measured(
        model=calibrated(tables),
        ping_us=tables.figure(IDLE, "Lockstep", "of a core") * 1e6 / pings_per_s,
        join_us=1e6
        / tables.figure("Handshakes and joins: joins", "Lockstep, protocol v2", "joins per CPU-s"),
        switch_us=1e6 / tables.figure("Switch by REST", "Lockstep", "requests per CPU-s"),
        client_bytes=tables.figure(IDLE, "Lockstep", "KB per connection") * 1024,
        nginx_us=tables.figure("Behind nginx: sessions of two", "1 process", "nginx's CPU us per message"),
        redis_us=tables.figure(
            "Redis: one master and three", "a Cluster of 3 masters", "Redis us per change"
        ),
        redis_hearer_us=max(0.0, heard_64_us - heard_16_us) / (64 - 16),
        session_bytes=tables.figure(KEPT, "a session of two that has begun", "bytes"),
        event_bytes=tables.figure(KEPT, "an event of its history, a switch", "bytes"),
        channel_bytes=tables.figure(KEPT, "a channel that one process hears", "bytes"),
        message_bytes=message_bytes,
        # A commit publishes both: the state, and behind it the change.
        published_bytes=tables.figure(TOLD, "v1, states", "bytes to each") + message_bytes,
    )


@dataclass(frozen=True)
class Load:
    """How many are in a session, whether they are at one process, and how often they are pinged."""

    name: str
    in_session: int
    is_together: bool
    ping_interval_s: float = PING_INTERVAL_S


LOADS = (
    Load("two in a session, anywhere", 2, is_together=False),
    Load("two, together", 2, is_together=True),
    Load("two, together, a ping every 25 s", 2, is_together=True, ping_interval_s=SPARING_PING_INTERVAL_S),
    Load("30 in a session, together", 30, is_together=True),
    Load("1,000 in a session, anywhere", 1000, is_together=False),
    Load("1,000 in a session, together", 1000, is_together=True),
)


@dataclass(frozen=True)
class Plan:
    """What a load takes, when nothing is busier than half the time."""

    load: Load
    processes: int
    # For all processes, and of their time.
    cores: float
    shares: dict[str, float]
    nginx_cores: float
    masters: int
    redis_bytes: float
    machines: int
    client_bits_per_s: float
    redis_bits_per_s: float
    p50_ms: float
    p99_ms: float


def hearers(load: Load, processes: int) -> float:
    """At how many processes a session has clients, on average."""
    if load.is_together:
        return 1.0
    return float(processes * (1 - (1 - 1 / processes) ** load.in_session))


def sessions_at(load: Load, processes: int) -> float:
    """How many have clients at one process."""
    return CLIENTS / load.in_session * hearers(load, processes) / processes


def work_us(load: Load, processes: int, costs: Measured) -> dict[str, float]:
    """What all processes together do in a second, in microseconds of CPU time."""
    messages = CHANGES_PER_S * load.in_session
    heard = CHANGES_PER_S * hearers(load, processes)
    send_us = costs.model.send_us(CLIENTS / processes)
    once_us = costs.model.wake_us + costs.model.publication_us(sessions_at(load, processes))
    return {
        "pings": CLIENTS / load.ping_interval_s * costs.ping_us,
        "sends": messages * send_us,
        "publications": heard * once_us,
        "commands": CHANGES_PER_S * costs.switch_us,
        "joins": CLIENTS / VISIT_S * costs.join_us,
    }


def plan(load: Load, costs: Measured) -> Plan:
    processes = math.ceil(CLIENTS / CLIENTS_AT_A_PROCESS)
    while True:
        work = work_us(load, processes, costs)
        cores = sum(work.values()) / 1e6 / BUSY_SHARE
        if cores <= processes:
            break
        processes = math.ceil(cores)
    messages, heard_by = CHANGES_PER_S * load.in_session, hearers(load, processes)
    frames = messages + 2 * CLIENTS / load.ping_interval_s
    nginx_cores = frames * costs.nginx_us / 1e6 / BUSY_SHARE
    change_us = costs.redis_us + max(0.0, heard_by - 1) * costs.redis_hearer_us
    sessions = CLIENTS / load.in_session
    kept = costs.session_bytes + EVENTS_KEPT * costs.event_bytes + heard_by * costs.channel_bytes
    client_bytes = (
        messages * (costs.message_bytes + 2 * PACKET_BYTES) + CLIENTS / load.ping_interval_s * PING_BYTES
    )
    redis_bytes = CHANGES_PER_S * heard_by * costs.published_bytes
    machines = max(
        (cores + nginx_cores) / MACHINE_CORES,
        (CLIENTS * costs.client_bytes + processes * PROCESS_BYTES) / MACHINE_BYTES,
        (client_bytes + redis_bytes) * 8 / BUSY_SHARE / MACHINE_BITS_PER_S,
    )
    masters = math.ceil(CHANGES_PER_S * change_us / 1e6 / BUSY_SHARE)
    p50_ms, p99_ms = delays_ms(load, processes, masters, change_us, costs)
    return Plan(
        load=load,
        processes=processes,
        cores=cores,
        shares={name: each / sum(work.values()) for name, each in work.items()},
        nginx_cores=nginx_cores,
        masters=masters,
        redis_bytes=sessions * kept,
        machines=math.ceil(machines),
        client_bits_per_s=client_bytes * 8,
        redis_bits_per_s=redis_bytes * 8,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
    )


def waits_us(kinds: list[tuple[float, float]], dice: random.Random, watched: int) -> list[float]:
    """What has come at random, so often a second and for so long: the waits of the kind that is watched.

    One thing is done after the other, in the order in which they come.
    """
    total_per_s = sum(per_s for per_s, _ in kinds)
    thresholds = list(accumulate(per_s / total_per_s for per_s, _ in kinds))
    backlog_us, found = 0.0, []
    for _ in range(2_000_000):
        backlog_us = max(0.0, backlog_us - dice.expovariate(total_per_s) * 1e6)
        toss = dice.random()
        kind = next((place for place, most in enumerate(thresholds) if toss < most), len(kinds) - 1)
        if kind == watched:
            found.append(backlog_us)
            if len(found) == 4000:
                break
        backlog_us += kinds[kind][1]
    return found


def delays_ms(
    load: Load, processes: int, masters: int, change_us: float, costs: Measured
) -> tuple[float, float]:
    """From a commit's arrival at its master to the client in the middle, the wires not counted."""
    dice = random.Random(1)
    at_master = waits_us([(CHANGES_PER_S / masters, change_us)], dice, watched=0)
    heard_by = hearers(load, processes)
    here = load.in_session / heard_by
    once_us = costs.model.wake_us + costs.model.publication_us(sessions_at(load, processes))
    sends_us = here * costs.model.send_us(CLIENTS / processes)
    at_process = waits_us(
        [
            (CHANGES_PER_S * heard_by / processes, once_us + sends_us),
            (CLIENTS / load.ping_interval_s / processes, costs.ping_us),
            (CHANGES_PER_S / processes, costs.switch_us),
            (CLIENTS / VISIT_S / processes, costs.join_us),
        ],
        dice,
        watched=0,
    )
    took_us = sorted(
        dice.choice(at_master) + change_us + dice.choice(at_process) + once_us + sends_us / 2
        for _ in range(4000)
    )
    return took_us[2000] / 1000, took_us[3960] / 1000


def table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(map(line, [header, rule, *rows]))


def costs_table(costs: Measured) -> str:
    model = costs.model
    rows = [
        [
            "a turn of a process's loop",
            f"{model.wake_us:.1f} us",
            "solved from: one message to 10 and to 100 clients; 50 sessions of two",
        ],
        [
            "a publication for somebody here, of one of few sessions",
            f"{model.few_publication_us:.1f} us",
            "the same",
        ],
        [
            "for each tenfold of the sessions, more",
            f"{model.publication_growth_us:.1f} us",
            "solved from: 9,000 sessions of two",
        ],
        [
            "a turn behind another process on the core, more",
            f"{model.other_us:.1f} us",
            "solved from: 4 processes, anywhere, routing=targeted",
        ],
        [
            "a publication for nobody here",
            f"{model.dropped_us:.1f} us",
            "solved from: 4 processes, anywhere, routing=all",
        ],
        [
            "a send of 1 KB, to one of few sockets",
            f"{model.few_send_us:.2f} us",
            "solved from: one message to 10 and to 100 clients",
        ],
        [
            "for each tenfold of the sockets, more",
            f"{model.send_growth_us:.2f} us",
            "solved from: fan-out to 5,000",
        ],
        ["a ping and its answer", f"{costs.ping_us:.1f} us", IDLE],
        ["a client that joins", f"{costs.join_us:,.0f} us", "Handshakes and joins: joins, protocol v2"],
        ["a switch, decided and committed", f"{costs.switch_us:,.0f} us", "Switch by REST"],
        ["memory of a client", f"{costs.client_bytes / 1024:.2f} KB", IDLE],
        ["nginx, for a message", f"{costs.nginx_us:.1f} us", "Behind nginx: sessions of two"],
        [
            "Redis, for a change that one process hears",
            f"{costs.redis_us:.1f} us",
            "Redis: one master and three",
        ],
        ["Redis, for each further process", f"{costs.redis_hearer_us:.2f} us", HEARD],
        ["Redis keeps of a session", f"{costs.session_bytes:,.0f} B", KEPT],
        ["of an event of its history", f"{costs.event_bytes:,.0f} B", KEPT],
        ["of a channel, for each process that hears it", f"{costs.channel_bytes:,.0f} B", KEPT],
        ["a change to a client (v2)", f"{costs.message_bytes:,.0f} B", TOLD],
        ["a change to a process", f"{costs.published_bytes:,.0f} B", f"{TOLD}: v1 and v2 together"],
    ]
    header = ["", "measured", "table"]
    return "\n".join(map(line, [header, ["---", "---:", "---"], *rows]))


def check_table(costs: Costs, tables: Tables) -> str:
    rows = [
        [each.what, number(each.measured), number(each.simulated), f"{each.is_off_by:+.0%}"]
        for each in comparisons(costs, tables)
    ]
    return table(["point", "measured", "simulated", "off by"], rows)


def plan_table(plans: list[Plan]) -> str:
    rows = [
        [
            each.load.name,
            number(CHANGES_PER_S * each.load.in_session),
            f"{each.processes:,}",
            f"{each.cores:,.0f}",
            ", ".join(f"{name} {share:.0%}" for name, share in each.shares.items() if share >= 0.005),
            f"{each.nginx_cores:,.0f}",
            f"{each.masters:,}" if each.masters <= PARTITIONS else f"{each.masters:,}: too many",
            f"{each.redis_bytes / 1e9:,.0f}",
            f"{each.machines:,}",
            f"{each.client_bits_per_s / 1e9:,.1f}",
            f"{each.redis_bits_per_s / 1e9:,.1f}",
            f"{each.p50_ms:.1f}",
            f"{each.p99_ms:.1f}",
        ]
        for each in plans
    ]
    header = [
        *("sessions", "messages per s", "processes", "cores", "of their time", "nginx cores", "masters"),
        "Redis GB",
        *("machines", "to clients Gbit/s", "from Redis Gbit/s", "p50 ms", "p99 ms"),
    ]
    return table(header, rows)


def machine_table(plans: list[Plan], costs: Measured) -> str:
    """How many clients a machine has room for, by each of its resources."""
    rows = []
    for each in plans:
        core_share = (each.cores + each.nginx_cores) / CLIENTS
        limits = {
            "cores": MACHINE_CORES / core_share,
            "memory": MACHINE_BYTES / (costs.client_bytes + each.processes * PROCESS_BYTES / CLIENTS),
            "network": MACHINE_BITS_PER_S
            * BUSY_SHARE
            / ((each.client_bits_per_s + each.redis_bits_per_s) / CLIENTS),
        }
        cores = {"nginx": each.nginx_cores, "processes": each.cores}
        first = min(limits, key=lambda name: limits[name])
        words = (
            first
            if first != "cores"
            else f"cores, {max(cores, key=lambda name: cores[name])} the most of them"
        )
        rows.append([each.load.name, *(number(limit) for limit in limits.values()), words])
    return table(["sessions", "by cores", "by memory", "by network", "first"], rows)


def parts(tables: Tables) -> dict[str, str]:
    """The tables of docs/scale.md by their marks; a line that says why, where a figure is not recorded."""
    try:
        costs = measured(tables)
    except Missing as missing:
        why = f'Not computed: benchmarks-tables.md has no figure for "{missing}"; `make bench` measures it.'
        return dict.fromkeys(PARTS, why)
    plans = [plan(load, costs) for load in LOADS]
    return {
        "costs": costs_table(costs),
        "check": check_table(costs.model, tables),
        "plan": plan_table(plans),
        "machine": machine_table(plans, costs),
    }


def write(parts: dict[str, str]) -> None:
    page = PAGE.read_text()
    for name, text in parts.items():
        page = with_part(page, name, text)
    PAGE.write_text(page)
