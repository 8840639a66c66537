"""A client's connection, as the hub sees it, that remembers what it was sent."""

import json
from typing import Any

from lockstep.errors import Close
from lockstep.live.peers import Frames, Kind
from lockstep.wire.encodings import JSON, Encoding


class FakePeer:
    """Keeps what it is sent: messages parsed, closes as (code, reason), "disconnected" as that."""

    is_over = False
    encoding: Encoding = JSON
    subject: str | None = None

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.frames: list[bytes] = []

    @property
    def can_send(self) -> bool:
        return not self.is_over

    def send_batch(self, frames: Frames) -> None:
        for kind, frame in frames:
            self.send(frame, kind)

    def send(self, frame: bytes, kind: Kind = Kind.MESSAGE) -> None:
        self.frames.append(frame)
        self.got.append(json.loads(frame[2:] if frame[1] < 126 else frame[4:]))

    def close(self, how: Close) -> None:
        self.got.append((how.code, how.reason))

    def disconnect(self) -> None:
        self.got.append("disconnected")

    @property
    def heard(self) -> list[Any]:
        """In short: ("STATE_UPDATE", version), other messages by their type, closes by their code."""
        return [
            each[0]
            if isinstance(each, tuple)
            else each
            if isinstance(each, str)
            else (each["type"], each["state"].get("version"))
            if "state" in each
            else each["type"]
            for each in self.got
        ]
