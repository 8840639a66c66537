"""How messages travel in WebSocket frames. What they say is another's business: it is JSON here."""

import abc
from typing import Any

from lockstep.errors import MalformedJson
from lockstep.wire import strict_json
from lockstep.wire.frames import TEXT, encode_frame


class Encoding(abc.ABC):
    """One for each way to write a message. A frame for a room is made once for all."""

    @abc.abstractmethod
    def encode(self, message: bytes) -> bytes:
        """The whole frame of a message, which is JSON."""

    @abc.abstractmethod
    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        """What a client's message says, as builtins. Raises MalformedJson."""


class JsonText(Encoding):
    """The JSON itself, in text frames."""

    def encode(self, message: bytes) -> bytes:
        return encode_frame(TEXT, message)

    def decode(self, payload: bytes, *, is_binary: bool) -> Any:
        if is_binary:
            raise MalformedJson("Binary messages are not understood")
        return strict_json.loads(payload)


JSON = JsonText()
