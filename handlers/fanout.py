"""One batch to many connections."""

from collections.abc import Sequence

from handlers.connection import Connection
from handlers.native import send_all
from lockstep.live.peers import Batch


def deliver(connections: Sequence[Connection], batch: Batch) -> None:
    descriptors = [connection.outgoing.clear_descriptor for connection in connections]
    for index, sent in send_all(descriptors, batch.data):
        connections[index].took(batch, sent)
