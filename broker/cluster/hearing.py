"""What is published in the partitions of one master, heard."""

import asyncio
import logging
from typing import Any

import hiredis

from broker.endpoint import Endpoint
from broker.keys import Channels, partition_of
from broker.link import Link
from broker.resp import RespConnection
from lockstep.contract import Listener
from lockstep.metrics import Metrics
from lockstep.wire import attendances, payloads

log = logging.getLogger(__name__)


class ShardSubscriber:
    def __init__(self, endpoint: Endpoint, process: str, metrics: Metrics) -> None:
        self._process = process
        self._link = Link(endpoint, "updates", self._subscribe_all, metrics)
        self._listener: Listener | None = None
        self._partitions: dict[int, Channels] = {}
        self._is_open = False

    @property
    def is_up(self) -> bool:
        return self._link.is_up

    @property
    def has_partitions(self) -> bool:
        return bool(self._partitions)

    def add(self, number: int, channels: Channels) -> None:
        self._partitions[number] = channels
        if (connection := self._link.connection) is not None:
            connection.send("SSUBSCRIBE", channels.updates, channels.messages)

    def drop(self, number: int) -> None:
        self._partitions.pop(number, None)

    def open(self, listener: Listener) -> None:
        if not self._is_open:
            self._is_open = True
            self._listener = listener
            self._link.open()

    async def close(self) -> None:
        await self._link.close()

    async def _subscribe_all(self, connection: RespConnection) -> None:
        self._left = len(self._partitions) * 2
        self._done = asyncio.get_running_loop().create_future()
        connection.on_push = self._on_push
        for channels in self._partitions.values():
            connection.send("SSUBSCRIBE", channels.updates, channels.messages)
        await self._done
        assert self._listener is not None
        numbers = set(self._partitions)
        asyncio.get_running_loop().call_soon(
            self._listener.on_gap, lambda session_id: partition_of(session_id) in numbers
        )

    def _on_push(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._link.reset(str(reply))
            return
        assert self._listener is not None
        if reply[0] == b"ssubscribe":
            self._left -= 1
            if not self._left and not self._done.done():
                self._done.set_result(None)
        elif reply[0] == b"smessage":
            payload = reply[2]
            if reply[1].decode() in {each.messages for each in self._partitions.values()}:
                if found := payloads.read_addressed(payload):
                    self._listener.on_relayed(*found)
                return
            said = attendances.read_message(payload) if payload.startswith(attendances.BEGINNING) else None
            if said is None:
                self._listener.on_published(payload)
            elif said.process != self._process:
                self._listener.on_presence(said.session_id, said.process, said.attendances)
