"""How messages travel in an event stream (WHATWG HTML, "Server-sent events"): as events."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from lockstep.errors import MalformedJson
from lockstep.rules.state_json import dumps
from lockstep.wire.encodings import Encoding
from lockstep.wire.protocol_v2 import Presence, PresenceList, Snapshot

CONTENT_TYPE = "text/event-stream; charset=utf-8"
COMMENT = b":\n\n"
"""Says nothing; it keeps proxies from taking the stream for dead."""
# What is behind the timestamp counts in UPDATE and SNAPSHOT, whose position is the event's id.
_BEGINS = re.compile(
    rb'\{"type":"(\w+)"'
    rb'(?:,"sessionId":"[^"]*","timestamp":\d+(?:,"from":"[^"]*")?,"position":(?:"([^"]*)"|null))?'
)
_NAMES_WITH_ID = (b"snapshot", b"update")
# Of JSON only the space between tokens can have line breaks, and each of them would end the event's line.
_IN_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class EventText(Encoding):
    """An event for each message, named by its type. SUBSCRIBED becomes what brings a follower up to date."""

    def encode(self, message: bytes) -> bytes:
        if b"\n" in message or b"\r" in message:
            message = message.translate(_IN_ONE_LINE)
        if message.startswith(b'{"type":"SUBSCRIBED"'):
            # A state that was damaged in the store is no JSON, and nothing can be made of it.
            with suppress(msgspec.MsgspecError, RecursionError):
                return b"".join(map(_event, _messages_of(message)))
        return _event(message)

    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        raise MalformedJson("An event stream has one direction")


EVENTS = EventText()


def _event(message: bytes) -> bytes:
    begins = _BEGINS.match(message)
    assert begins is not None
    name = begins[1].lower()
    if name in _NAMES_WITH_ID:
        # What has no position cannot be resumed: by an empty id the client forgets the one before.
        return b"event: %b\nid: %b\ndata: %b\n\n" % (name, begins[2] or b"", message)
    return b"event: %b\ndata: %b\n\n" % (name, message)


class _Subscribed(Struct, rename="camel"):
    session_id: str
    timestamp: int
    updates: list[Raw] | None = None
    position: str | None = None
    state: Raw = Raw(b"null")
    presence: PresenceList | UnsetType = UNSET


_SUBSCRIBED = msgspec.json.Decoder(_Subscribed)


def _messages_of(message: bytes) -> Iterator[bytes]:
    """The messages that say together what a SUBSCRIBED says."""
    said = _SUBSCRIBED.decode(message)
    if said.updates is not None:
        yield from map(bytes, said.updates)
    else:
        is_foreign = said.position is None and bytes(said.state) != b"null"
        yield dumps(
            Snapshot(
                session_id=said.session_id,
                timestamp=said.timestamp,
                position=said.position,
                reason="foreign" if is_foreign else "requested",
                state=said.state,
            )
        )
    if said.presence is not UNSET:
        present = said.presence.present
        yield dumps(
            Presence(
                session_id=said.session_id,
                timestamp=said.timestamp,
                joined=present,
                left=UNSET if present is UNSET else [],
                anonymous=said.presence.anonymous,
                total=said.presence.total,
            )
        )


def comment(text: str) -> bytes:
    """What people read who look at the stream; for clients it is nothing. `text` is one line."""
    return b": %b\n\n" % text.encode()


def retry(after_ms: int) -> bytes:
    """When the stream has ended, the client shall come back after so long."""
    return b"retry: %d\n\n" % after_ms
