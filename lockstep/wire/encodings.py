"""How clients are told what happens in a session: an encoding for each protocol that they may speak."""

import abc
from typing import Any

from lockstep.wire import protocol_v1
from lockstep.wire.frames import TEXT, encode_frame
from lockstep.wire.payloads import Deletion, Update


class Encoding(abc.ABC):
    """Makes whole WebSocket frames. Those for a room are made once and sent to all who speak the encoding."""

    @abc.abstractmethod
    def connected(self, session_id: str, now_ms: int) -> bytes: ...

    @abc.abstractmethod
    def state_update(self, update: Update) -> bytes: ...

    @abc.abstractmethod
    def state_sync(self, session_id: str, now_ms: int, state: bytes) -> bytes: ...

    @abc.abstractmethod
    def session_deleted(self, deletion: Deletion, now_ms: int) -> bytes: ...

    @abc.abstractmethod
    def relayed(self, message: bytes) -> bytes:
        """A message that the application has published for the session's clients."""

    @abc.abstractmethod
    def pong(self, now_ms: int, ping: dict[str, Any]) -> bytes: ...

    @abc.abstractmethod
    def error(self, code: str, message: str) -> bytes: ...


class JsonV1(Encoding):
    """Protocol v1: text frames with JSON. What the bus carries is what clients are sent, to the byte."""

    def connected(self, session_id: str, now_ms: int) -> bytes:
        return encode_frame(TEXT, protocol_v1.connected(session_id, now_ms))

    def state_update(self, update: Update) -> bytes:
        return encode_frame(TEXT, update.message)

    def state_sync(self, session_id: str, now_ms: int, state: bytes) -> bytes:
        return encode_frame(TEXT, protocol_v1.state_sync(session_id, now_ms, state))

    def session_deleted(self, deletion: Deletion, now_ms: int) -> bytes:
        return encode_frame(
            TEXT,
            deletion.message
            or protocol_v1.session_deleted(deletion.session_id, now_ms, deletion.epoch or ""),
        )

    def relayed(self, message: bytes) -> bytes:
        return encode_frame(TEXT, message)

    def pong(self, now_ms: int, ping: dict[str, Any]) -> bytes:
        return encode_frame(TEXT, protocol_v1.pong(now_ms, ping))

    def error(self, code: str, message: str) -> bytes:
        return encode_frame(TEXT, protocol_v1.error(code, message))


JSON_V1 = JsonV1()
