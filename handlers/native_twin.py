"""The same as the extension in C, in Python: where there was no compiler, and for whoever wants no C."""

import socket
from contextlib import suppress


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
