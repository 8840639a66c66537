"""Every key and channel in Redis: nothing else knows how they are spelled, the Lua scripts included."""

import re

from lockstep.contract import Charge, IdempotencyRecord


def glob_escaped(text: str) -> str:
    """A name as part of a pattern of Redis's (PSUBSCRIBE, ACL), in which it stands for itself alone."""
    return re.sub(r"([\\*?\[])", r"\\\1", text)


class Keys:
    """The keys of all that is kept under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        # Sorted sets of session ids: by the instant of their next deadline, and of their lapse.
        self.deadlines = f"{prefix}deadlines"
        self.sessions = f"{prefix}sessions"
        # The epoch of the last creation, and how all processes route (see Channels).
        self.epoch = f"{prefix}epoch"
        self.routing = f"{prefix}routing"
        # A hash: the processes that have said who is present, and which of them the store has all of.
        self.presence_processes = f"{prefix}presence-processes"
        # What the keys of states and of signs of life begin with; an id follows, and nothing else.
        self.state_prefix = f"{prefix}session:"
        self.life_sign_prefix = f"{prefix}process:"

    def state(self, session_id: str) -> str:
        """A string: the session's state as JSON."""
        return self.state_prefix + session_id

    def events(self, session_id: str) -> str:
        """A stream: the session's last events, one for each version."""
        return f"{self._prefix}events:{session_id}"

    def of_session(self, session_id: str) -> list[str]:
        """What a script that changes the session is given first."""
        return [self.state(session_id), self.events(session_id), self.deadlines, self.sessions]

    def record(self, key: str) -> str:
        """A string: the content of an idempotency record."""
        return f"{self._prefix}idempotency:{key}"

    def records(self, record: IdempotencyRecord | None) -> list[str]:
        """Where the record is kept: nowhere, or under one name or two."""
        if record is None:
            return []
        names = (record.key,) if record.former_key is None else (record.key, record.former_key)
        return [self.record(name) for name in names]

    def window(self, charge: Charge) -> str:
        """A string: the count in a rate limit's current window, with whose end it expires."""
        return f"{self._prefix}rl:{charge.key}"

    def occupancy(self, key: str) -> str:
        """A hash: how many each process has let into what is limited under this key."""
        return f"{self._prefix}inside:{key}"

    def presence(self, session_id: str) -> str:
        """A hash: how many connections to the session each subject has at each process, and since when."""
        return f"{self._prefix}presence:{session_id}"

    def presence_of(self, process: str) -> str:
        """A hash: the ids of the sessions that a process has entries of presence in."""
        return f"{self._prefix}presence-of:{process}"

    def life_sign(self, process: str) -> str:
        """A string that expires soon after its process has died."""
        return self.life_sign_prefix + process


class Channels:
    """Which channels carry what, in the two ways to route.

    `all`: every process hears every session; two subscriptions, whatever the number of sessions.
    `targeted`: a process hears the sessions that it has clients for, each on channels of its own.
    """

    MODES = ("all", "targeted")

    def __init__(self, mode: str, prefix: str) -> None:
        assert mode in self.MODES
        self.mode = mode
        self.is_targeted = mode == "targeted"
        self._prefix = prefix
        # Updates of all sessions; in targeted routing only what other programs publish comes by it.
        self.updates = f"{prefix}session-updates"
        self._messages = f"{prefix}ws:"

    @property
    def pattern(self) -> str | None:
        """What matches the message channels of all sessions, where every process hears them."""
        return None if self.is_targeted else glob_escaped(self._messages) + "*"

    def update(self, session_id: str) -> str:
        """The channel of the session's updates and of its end."""
        return f"{self.updates}:{session_id}" if self.is_targeted else self.updates

    def message(self, session_id: str) -> str:
        """The channel of messages that are relayed to the session's clients."""
        return self._messages + session_id

    def of_session(self, session_id: str) -> tuple[str, str]:
        """What a process with clients of this session subscribes to, in targeted routing."""
        return self.update(session_id), self.message(session_id)

    def probe(self, process: str) -> str:
        """The channel on which a process publishes to itself."""
        return f"{self._prefix}probe:{process}"

    def session_of(self, channel: str) -> str | None:
        """The session that a message channel belongs to; None for any other channel."""
        return channel[len(self._messages) :].lower() if channel.startswith(self._messages) else None
