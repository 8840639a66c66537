"""A switch over the WebSocket, beside the same by REST: python -m bench.commands

Sixteen connections, one request in flight on each, a hundred running sessions: the load of "Switch by REST".
By REST they are keep-alive connections, and the answer is the state; over WebSockets of protocol v2 a switch
is a COMMAND, and its answer a RESULT. The last row has sixteen under way on a single WebSocket, as a back end
would that plays for many. Nobody follows the sessions.
"""

import argparse
import functools
import sys

from bench import contest
from bench.contest import Table
from bench.contestants import lockstep
from bench.rest import CONNECTIONS, SESSIONS, notes, row, turn
from lockstep.wire.protocol_v2 import SUBPROTOCOL

TITLE = "Commands over the WebSocket"
ROUNDS = 3
REST = "Lockstep, REST"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=CONNECTIONS)


def run(options: argparse.Namespace) -> list[Table]:
    server = lockstep(options.checkout)
    turns = {
        REST: functools.partial(turn, server, options),
        "Lockstep, WebSockets": functools.partial(turn, server, options, subprotocol=SUBPROTOCOL),
        "Lockstep, one WebSocket": functools.partial(
            turn, server, options, subprotocol=SUBPROTOCOL, is_shared=True
        ),
    }
    outcomes = contest.interleaved(turns, options, TITLE)
    columns = [
        *("switches", "per CPU-s", "rounds", "to REST", "per s", "p50 ms", "p99 ms"),
        *("server's core", "Redis", "load"),
    ]
    rows = [row(name, done, outcomes.get(REST)) for name, done in outcomes.items()]
    text = (
        f"{SESSIONS} sessions of two, {options.connections} requests under way. "
        "Server on one core, Redis and load on another."
    )
    return [Table(TITLE, columns, rows, text, notes(outcomes))]


if __name__ == "__main__":
    contest.main(sys.modules[__name__])
