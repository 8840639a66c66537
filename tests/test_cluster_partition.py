"""The way from a partition to whoever has it, and what is known of the one that answered."""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

import broker.cluster.masters as masters_module
import broker.cluster.partition as partition_module
from broker.clock import RedisClock
from broker.cluster.master import Master
from broker.cluster.masters import LEFT_AFTER_S, Masters
from broker.cluster.partition import PartitionClock, PartitionLink
from broker.endpoint import parse
from broker.resp import LinkDown, RespConnection
from broker.sentinel import Address
from lockstep.metrics import Metrics
from tests.support.fake_time import FakeTime
from tests.support.redis_server import RedisServer

HERE, THERE = ("127.0.0.1", 1), ("127.0.0.1", 2)


class Node:
    """A master that gives one reply to everything; it is its own link, and that its own connection."""

    is_up = True

    def __init__(self, address: Address, reply: Any = b"OK") -> None:
        self.address, self.reply = address, reply
        self.clock = RedisClock(Metrics())
        self.partitions: dict[int, Any] = {}
        self.left_at_s: float | None = None
        self.is_closed = False
        self.link: Any = self
        self.connection: Any = self

    def call(self, *arguments: Any) -> "asyncio.Future[Any]":
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_result(self.reply)
        return reply

    async def connected(self) -> Any:
        return self

    def open(self, is_start: Callable[[], bool]) -> None:
        pass

    async def close(self) -> None:
        self.is_closed = True


class TwoNodes:
    """The slot is on its way from the one to the other."""

    def __init__(self) -> None:
        self.here = Node(HERE, hiredis.ReplyError(f"ASK 3 {THERE[0]}:{THERE[1]}"))
        self.there = Node(THERE, [b"1700000000", b"0"])

    def master_of(self, partition: int) -> Any:
        return self.here

    def at(self, address: Address) -> Any:
        assert address == THERE
        return self.there

    def moved(self, partition: int, address: Address) -> None:
        raise AssertionError

    def look_soon(self) -> None:
        pass


async def test_a_reply_from_the_new_place_of_a_slot_measures_the_clock_there() -> None:
    nodes = TwoNodes()
    link = PartitionLink(3, nodes)
    sent_at_s = asyncio.get_running_loop().time()
    reply = await link.call("TIME")
    PartitionClock(link).measure(sent_at_s, reply)
    assert nodes.there.clock.is_measured
    assert not nodes.here.clock.is_measured


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(masters_module, "time", fake)
    return fake


class EachOther:
    """Two nodes of which each says that the other has the slot."""

    def __init__(self) -> None:
        self.count = 0
        self.nodes = [
            Node(here, hiredis.ReplyError(f"MOVED 3 {there[0]}:{there[1]}"))
            for here, there in ((HERE, THERE), (THERE, HERE))
        ]

    def master_of(self, partition: int) -> Any:
        return self.nodes[0]

    def moved(self, partition: int, address: Address) -> None:
        assert address == self.nodes[1].address
        self.count += 1
        self.nodes.reverse()

    def at(self, address: Address) -> Any:
        raise AssertionError

    def look_soon(self) -> None:
        pass


async def test_nodes_that_send_a_call_to_each_other_are_asked_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition_module, "RETRIED_FOR_S", 0.2)
    nodes = EachOther()
    with pytest.raises(LinkDown) as down:
        await PartitionLink(3, nodes).call("GET", "a")
    assert not down.value.sent
    # At once only the first time, then after 20, 40, 80, 100 ms and so on.
    assert 2 <= nodes.count <= 6


async def test_where_a_former_master_says_that_a_slot_has_gone_moves_nothing() -> None:
    nodes = EachOther()
    nodes.nodes[1].reply = b"found"
    called = PartitionLink(3, nodes).call("GET", "a")
    nodes.moved(3, THERE)  # before the reply is read
    assert await called == b"found"
    assert nodes.count == 1


@pytest.fixture
def masters() -> Masters:
    endpoint = parse("redis+cluster://127.0.0.1:1")
    return Masters(endpoint, Node, lambda partition, master: None)  # type: ignore[arg-type]


async def test_a_node_that_slots_are_on_their_way_to_is_kept_as_long_as_it_is_asked(
    masters: Masters, fake: FakeTime
) -> None:
    first: Any = masters.at(THERE)
    for _ in range(15):
        assert masters.at(THERE) is first
        for _ in range(2):
            masters._leave_others()
            fake.passed_s += 0.9 * LEFT_AFTER_S
        await asyncio.sleep(0)
    assert not first.is_closed
    masters._leave_others()
    await asyncio.sleep(0)
    assert first.is_closed


async def test_a_master_that_is_left_while_it_is_found_to_be_of_use_is_not_heard() -> None:
    server = RedisServer()
    others = asyncio.all_tasks()
    closing = asyncio.get_running_loop().create_future()

    async def check(_: RespConnection) -> None:
        checked = asyncio.get_running_loop().create_future()

        def close_and_go_on() -> None:
            closing.set_result(asyncio.create_task(master.close()))
            checked.set_result(None)

        asyncio.get_running_loop().call_soon(close_and_go_on)
        await checked

    endpoint = parse(f"redis+cluster://127.0.0.1:{server.port}")
    master = Master(endpoint, endpoint.nodes[0], check, lambda topics: None, lambda: None, Metrics())
    try:
        master.open()
        async with asyncio.timeout(10):
            await (await closing)
        assert asyncio.all_tasks() == others
    finally:
        server.close()
