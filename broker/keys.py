"""Every key, channel and slot in Redis: nothing else knows how they are spelled, the Lua scripts included.

On Redis Cluster the sessions are divided into partitions. All that belongs to one carries its number in
braces, by which Cluster finds the slot (and the master) of a key: so a script has all its keys in one place.
"""

import re
from binascii import crc_hqx

from lockstep.contract import Charge, IdempotencyRecord

# Recorded in Redis, since it is fixed for the life of the data.
PARTITIONS = 64
SLOTS = 16_384


def partition_of(name: str) -> int:
    """The partition of a session, by its id; of what belongs to no session, by its own name."""
    return crc_hqx(name.encode(), 0) % PARTITIONS


def partition_of_charge(charge: Charge) -> int:
    """That of whom it is about, so that what is counted of a session is counted where the session is."""
    kind, _, whose = charge.key.partition(":")
    return partition_of(whose or kind)


def slot_of(partition: int) -> int:
    """The slot of Redis Cluster that all names with this partition's tag are in."""
    return crc_hqx(b"%d" % partition, 0) % SLOTS


def glob_escaped(text: str) -> str:
    """A name as part of a pattern of Redis's (PSUBSCRIBE, ACL), in which it stands for itself alone."""
    return re.sub(r"([\\*?\[])", r"\\\1", text)


class Keys:
    """The keys of all that is kept under one prefix; on Cluster, of what one partition has of it.

    The partition `"*"` spells the patterns that the keys of all partitions match.
    """

    def __init__(self, prefix: str, partition: int | str | None = None) -> None:
        self._prefix = prefix
        # What stands in front of an id, and behind a name that is the whole key.
        self._tag = "" if partition is None else f"{{{partition}}}:"
        own = "" if partition is None else f":{{{partition}}}"
        # Sorted sets of session ids: by the instant of their next deadline, and of their lapse.
        self.deadlines = f"{prefix}deadlines{own}"
        self.sessions = f"{prefix}sessions{own}"
        # The epoch of the last creation.
        self.epoch = f"{prefix}epoch{own}"
        # How all processes route (see Channels), and how many partitions there are: both in partition 0.
        self.routing = f"{prefix}routing{own}"
        self.partitions = f"{prefix}partitions{own}"
        # A hash: the processes that have said who is present, and which of them the store has all of.
        self.presence_processes = f"{prefix}presence-processes{own}"

    def _of(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}:{self._tag}{name}"

    def state(self, session_id: str) -> str:
        """A string: the session's state as JSON."""
        return self._of("session", session_id)

    def events(self, session_id: str) -> str:
        """A stream: the session's last events, one for each version."""
        return self._of("events", session_id)

    def of_session(self, session_id: str) -> list[str]:
        """What a script that changes the session is given first."""
        return [self.state(session_id), self.events(session_id), self.deadlines, self.sessions]

    def record(self, key: str) -> str:
        """A string: the content of an idempotency record."""
        return self._of("idempotency", key)

    def records(self, record: IdempotencyRecord | None) -> list[str]:
        """Where the record is kept: nowhere, or under one name or two."""
        if record is None:
            return []
        names = (record.key,) if record.former_key is None else (record.key, record.former_key)
        return [self.record(name) for name in names]

    def window(self, charge: Charge) -> str:
        """A string: the count in a rate limit's current window, with whose end it expires."""
        return self._of("rl", charge.key)

    def occupancy(self, key: str) -> str:
        """A hash: how many each process has let into what is limited under this key."""
        return self._of("inside", key)

    def presence(self, session_id: str) -> str:
        """A hash: how many connections to the session each subject has at each process, and since when."""
        return self._of("presence", session_id)

    def presence_of(self, process: str) -> str:
        """A hash: the ids of the sessions that a process has entries of presence in."""
        return self._of("presence-of", process)

    def life_sign(self, process: str) -> str:
        """A string that expires soon after its process has died."""
        return self._of("process", process)


class Channels:
    """Which channels carry what, in the two ways to route.

    `all`: every process hears every session; two subscriptions, whatever the number of sessions.
    `targeted`: a process hears the sessions that it has clients for, each on channels of its own.

    On Cluster channels are sharded, as keys are: each partition has its own. Messages to its sessions come by
    one of them, and name their session; in targeted routing only those of other programs come by that one.
    """

    MODES = ("all", "targeted")

    def __init__(self, mode: str, prefix: str, partition: int | str | None = None) -> None:
        assert mode in self.MODES
        self.mode = mode
        self.is_targeted = mode == "targeted"
        self.is_sharded = partition is not None
        self._prefix = prefix
        self._tag = "" if partition is None else f"{{{partition}}}:"
        own = "" if partition is None else f":{{{partition}}}"
        # Updates of all sessions; in targeted routing only what other programs publish comes by it.
        self.updates = f"{prefix}session-updates{own}"
        # The channel of messages to sessions; on one Redis the beginning of its name, and an id follows.
        self.messages = f"{prefix}ws{own or ':'}"
        self._messages_bytes = len(self.messages.encode())

    @property
    def publish(self) -> str:
        """The command that publishes on these channels."""
        return "SPUBLISH" if self.is_sharded else "PUBLISH"

    @property
    def pattern(self) -> str | None:
        """What matches the message channels of all sessions, where every process hears them."""
        return None if self.is_targeted or self.is_sharded else glob_escaped(self.messages) + "*"

    def update(self, session_id: str) -> str:
        """The channel of the session's updates and of its end."""
        return f"{self.updates}:{session_id}" if self.is_targeted else self.updates

    def message(self, session_id: str) -> str:
        """The channel of messages that are relayed to the session's clients."""
        if not self.is_sharded:
            return self.messages + session_id
        # With its updates, which only processes with clients of the session hear.
        return self.update(session_id) if self.is_targeted else self.messages

    def of_session(self, session_id: str) -> tuple[str, ...]:
        """What a process with clients of this session subscribes to, in targeted routing."""
        update = self.update(session_id)
        return (update,) if self.is_sharded else (update, self.message(session_id))

    def probe(self, process: str) -> str:
        """The channel on which a process publishes to itself."""
        return f"{self._prefix}probe:{self._tag}{process}"

    def session_of(self, channel: bytes) -> str:
        """The session that a channel belongs to which matches the pattern."""
        return channel[self._messages_bytes :].decode("utf-8", "replace").lower()
