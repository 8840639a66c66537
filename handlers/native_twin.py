"""The same as the extension in C, in Python: where there was no compiler, and for whoever wants no C."""

import selectors
import socket
from contextlib import suppress
from typing import Any

from lockstep.live.recipients import PeerByPeer as Recipients

__all__ = ["Line", "Poller", "Recipient", "Recipients", "send_all"]

# Without data: two bytes, and the mask.
_PONG_BYTES = 6
_PONG_BEGINS = b"\x8a\x80"


class Line:
    """What several recipients may be sent through: a socket, in an order that its owner keeps."""

    __slots__ = ("clear_descriptor",)

    clear_descriptor: int
    """What may be sent to directly; -1 while something waits, or when nothing more may be sent."""


class Recipient:
    """One of an audience. It keeps what its line does not take (`took`)."""

    __slots__ = ("outgoing",)

    outgoing: Line


def send_all(descriptors: list[int], data: bytes) -> list[tuple[int, int]]:
    """Offer the data to each socket.

    Returns the index of each that did not take all of it, with the number of bytes that it took, or -1 where
    the socket is broken or the descriptor negative.
    """
    missed = []
    for index, descriptor in enumerate(descriptors):
        sent = _offer(descriptor, data) if descriptor >= 0 else -1
        if sent != len(data):
            missed.append((index, sent))
    return missed


def _offer(descriptor: int, data: bytes) -> int:
    """How many bytes the socket takes now; -1 if it is broken."""
    with suppress(OSError):
        sock = socket.socket(fileno=descriptor)
        try:
            return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        finally:
            sock.detach()
    return -1


class Poller:
    """Sockets that are pinged at one of so many ticks each. What its methods do, heartbeat.c says."""

    def __init__(self, ticks: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._ticks: list[dict[int, None]] = [{} for _ in range(ticks)]
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def fileno(self) -> int:
        return self._selector.fileno()

    def enter(self, descriptor: int, owner: Any) -> None:
        if descriptor in self._entries:
            raise ValueError("this descriptor is here already")
        self._selector.register(descriptor, selectors.EVENT_READ)
        self._entries[descriptor] = _Entry(owner)

    def leave(self, descriptor: int) -> None:
        self.unwatch(descriptor)
        self.displace(descriptor)
        self._entries.pop(descriptor, None)

    def watch(self, descriptor: int) -> None:
        entry = self._entries.get(descriptor)
        if entry is not None and not entry.is_watched:
            self._selector.register(descriptor, selectors.EVENT_READ)
            entry.is_watched = True

    def unwatch(self, descriptor: int) -> None:
        entry = self._entries.get(descriptor)
        if entry is not None and entry.is_watched:
            self._selector.unregister(descriptor)
            entry.is_watched = False

    def set_within_message(self, descriptor: int, is_within: bool) -> None:
        if (entry := self._entries.get(descriptor)) is not None:
            entry.is_within_message = is_within

    def place(self, descriptor: int, tick: int) -> None:
        if not 0 <= tick < len(self._ticks):
            raise IndexError("there is no such tick")
        self.displace(descriptor)
        if (entry := self._entries.get(descriptor)) is not None:
            self._ticks[tick][descriptor] = None
            entry.tick = tick

    def displace(self, descriptor: int) -> None:
        entry = self._entries.get(descriptor)
        if entry is not None and entry.tick is not None:
            del self._ticks[entry.tick][descriptor]
            entry.tick = None
            entry.owes_pong = False

    def ask(self, descriptor: int) -> None:
        if (entry := self._entries.get(descriptor)) is not None:
            entry.owes_pong = True

    def ask_all(self, tick: int) -> list[Any]:
        entries = [self._entries[each] for each in self._ticks[tick]]
        for entry in entries:
            entry.owes_pong = True
        return [entry.owner for entry in entries]

    def answered(self, descriptor: int) -> None:
        if (entry := self._entries.get(descriptor)) is not None:
            entry.owes_pong = False

    def owes_pong(self, descriptor: int) -> bool:
        entry = self._entries.get(descriptor)
        return entry is not None and entry.owes_pong

    def silent(self, tick: int) -> list[Any]:
        entries = [self._entries[each] for each in self._ticks[tick]]
        return [entry.owner for entry in entries if entry.owes_pong]

    def ready(self) -> list[Any]:
        found = []
        for key, _ in self._selector.select(0):
            entry = self._entries[key.fd]
            if not self._is_dealt_with(key.fd, entry):
                found.append(entry.owner)
        return found

    def owners(self) -> list[Any]:
        return [entry.owner for entry in self._entries.values()]

    def _is_dealt_with(self, descriptor: int, entry: "_Entry") -> bool:
        """True if a pong that is owed was all that there was to read, or nothing."""
        if not entry.owes_pong or entry.is_within_message:
            return False
        # Its family is not asked for: all that is done here is the same for each.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptor)
        try:
            data = sock.recv(_PONG_BYTES + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if len(data) != _PONG_BYTES or not data.startswith(_PONG_BEGINS):
                return False
            sock.recv(_PONG_BYTES, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False  # its owner meets it, too
        finally:
            sock.detach()
        entry.owes_pong = False
        return True


class _Entry:
    """One socket of a poller."""

    __slots__ = ("is_watched", "is_within_message", "owes_pong", "owner", "tick")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.tick: int | None = None
        self.is_watched = True
        self.owes_pong = self.is_within_message = False
