"""One batch to many connections: in C where that could be built, else one by one."""

from collections.abc import Sequence

from handlers.connection import Connection
from lockstep.live.audience import Deliver, one_by_one
from lockstep.live.peers import Batch

try:
    from handlers import _fanout
except ImportError:  # there was no compiler when this was installed
    deliver: Deliver = one_by_one
else:

    def _in_c(connections: Sequence[Connection], batch: Batch) -> None:
        descriptors = [connection.outgoing.clear_descriptor for connection in connections]
        for index, sent in _fanout.send_all(descriptors, batch.data):
            connections[index].took(batch, sent)

    deliver = _in_c
