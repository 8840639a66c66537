"""All clients of a process: what their connections share, and the protocols that they may speak."""

import logging
from collections.abc import Sequence

from handlers.client_protocol import ClientProtocol
from handlers.connection import Connection
from handlers.heartbeat import Heartbeat
from handlers.read_scheduler import ReadScheduler
from lockstep.metrics import Metrics

log = logging.getLogger(__name__)


class Clients:
    """The `Service` of their connections."""

    def __init__(
        self,
        protocols: Sequence[ClientProtocol],
        heartbeat: Heartbeat,
        max_message_bytes: int,
        message_rate: int,
        compression: bool,
        metrics: Metrics,
    ) -> None:
        """The first of the protocols is spoken to a client that names none.

        `compression`: permessage-deflate is granted to clients that offer it.
        """
        self.protocols = {each.subprotocol: each for each in protocols}
        self.default_protocol = protocols[0]
        self.heartbeat = heartbeat
        self.read_scheduler = ReadScheduler()
        self.max_message_bytes = max_message_bytes
        self.message_rate = message_rate
        self.compression = compression
        self.metrics = metrics

    def on_end(self, connection: Connection) -> None:
        self.metrics.count_closed(connection.close_code)
        connection.protocol.on_end(connection)
        extra = {"session_id": connection.session_id, "close_code": connection.close_code}
        log.info("socket closed", extra=extra)
