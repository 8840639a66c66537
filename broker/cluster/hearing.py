"""What is published in a cluster, heard: each partition over the connection to the master that has it."""

import asyncio
from collections.abc import Callable, Collection, Iterable

from broker.keys import PARTITIONS, Channels, partition_of
from broker.link import Refused
from broker.subscriber import Subscriber
from broker.topic import Topic
from lockstep.contract import Listener

POLL_S = 0.02


class Hearing:
    """Knows over which connection each partition is heard, and tells the listener what may have been missed.

    What other programs publish to the whole cluster can be heard at any node: it is heard at one.
    """

    def __init__(self, routing: str, prefix: str, process: str) -> None:
        self._topics = [
            Topic(Channels(routing, prefix, number), process, number) for number in range(PARTITIONS)
        ]
        # Of no partition: in both ways to route all of it is heard.
        self._of_others = Topic(Channels("all", prefix), process, has_probe=False)
        self._heard_at: dict[Topic, Subscriber] = {}
        self._listener: Listener | None = None

    def begin(self, listener: Listener) -> None:
        """Hand to it what is heard; to be called before anything is."""
        self._listener = listener
        for topic in (*self._topics, self._of_others):
            topic.listener = listener

    async def until_heard(self, subscribers: Callable[[], Iterable[Subscriber]]) -> None:
        """Return when all of it is. Raises Refused where one of these will never be connected."""
        while not all(each.is_heard for each in (*self._topics, self._of_others)):
            at = list(subscribers())
            for refusal in [each.refusal for each in at if each.refusal is not None]:
                raise Refused(refusal)
            self.look(at)
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        for topic in self._topics:
            topic.close()

    async def hear(self, session_id: str) -> bool:
        """As ``Bus.hear``."""
        return await self._topics[partition_of(session_id)].hear(session_id)

    def unhear(self, session_id: str) -> None:
        """As ``Bus.unhear``."""
        self._topics[partition_of(session_id)].unhear(session_id)

    def on_moved(self, number: int, subscriber: Subscriber) -> None:
        """The partition is heard over this connection from now on, or as soon as it is there."""
        self._move(self._topics[number], subscriber)

    def look(self, subscribers: list[Subscriber]) -> None:
        """Hear what others publish at another node where the one is away; to be repeated.

        `subscribers` are those of all masters.
        """
        at = self._heard_at.get(self._of_others)
        if at not in subscribers or not at.is_up:
            up = next((each for each in subscribers if each.is_up), None)
            if up is not None:
                self._move(self._of_others, up)

    def _move(self, topic: Topic, subscriber: Subscriber) -> None:
        before = self._heard_at.get(topic)
        if before is subscriber:
            return
        if before is not None:
            before.remove(topic)
        self._heard_at[topic] = subscriber
        subscriber.add(topic)

    def on_gap(self, topics: Collection[Topic]) -> None:
        """These are heard from now on, or again; what was published before is not known."""
        assert self._listener is not None
        partitions = {topic.partition for topic in topics}
        if self._of_others in topics and self._of_others.has_received:
            # Others have published there, about whichever sessions.
            self._listener.on_gap()
        elif partitions != {None}:
            self._listener.on_gap(lambda session_id: partition_of(session_id) in partitions)
