"""The channels that are heard together, over connections that come and go."""

import asyncio
from typing import Any

import pytest

from broker.endpoint import parse
from broker.keys import Channels
from broker.subscriber import Subscriber
from broker.subscriptions import Subscriptions
from broker.topic import Topic
from lockstep.metrics import Metrics
from tests.support.brokers import Ears

SESSION, ANOTHER = (f"00000000-0000-4000-8000-00000000000{each}" for each in (1, 2))


class Connection:
    """Remembers what is sent, and confirms it when it is told to."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_push: Any = None
        self.sent: list[tuple[str, ...]] = []

    def send(self, *arguments: str) -> None:
        self.sent.append(arguments)

    async def confirm(self) -> None:
        """All that is subscribed to."""
        for command, *names in self.sent:
            for name in names:
                self.on_push([command.lower().encode(), name.encode(), 1])
        self.sent.clear()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.mark.parametrize("partition", [None, 3])
async def test_a_session_that_is_left_and_joined_while_others_are_subscribed_to_is_heard(
    partition: int | None,
) -> None:
    connection = Connection()
    subscriptions = Subscriptions(connection, lambda why: None, lambda channel: None)  # type: ignore[arg-type]
    topic = Topic(channels := Channels("targeted", "", partition), "process", partition)
    topic.listener = ears = Ears()
    await topic.hear(SESSION)
    subscribing = asyncio.create_task(topic.subscribe(subscriptions))
    await asyncio.sleep(0)
    await topic.hear(ANOTHER)
    await connection.confirm()
    assert channels.update(ANOTHER) in connection.sent[0]
    topic._leave_session(SESSION)  # as its timer does
    assert not await topic.hear(SESSION)
    await connection.confirm()
    await subscribing
    assert topic.is_heard
    connection.on_push([b"message", channels.update(SESSION).encode(), b"a payload"])
    assert ears.published == [b"a payload"]
    topic._leave_session(SESSION)
    assert channels.update(SESSION) in connection.sent[0]
    topic.close()


async def test_a_probe_of_a_topic_that_is_not_heard_any_more_is_not_waited_for() -> None:
    topic = Topic(Channels("all", "", 3), "process", 3)
    subscriber = Subscriber(parse("redis://127.0.0.1:1"), Metrics(), lambda topics: None)
    subscriber.add(topic)
    topic.probe_sent_at_s = topic.probe_received_at_s - 60
    assert subscriber.probe_age_s >= 60
    topic.withdraw()
    assert subscriber.probe_age_s < 30
