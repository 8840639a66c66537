"""Until server_time.py is here."""

import time


class ServerTime:
    def __init__(self) -> None:
        self._offset_ms = (time.time() - time.monotonic()) * 1000
        self.error_ms = float("inf")

    def local_ms(self) -> float:
        return time.monotonic() * 1000

    def now_ms(self) -> float:
        return self.local_ms() + self._offset_ms

    def learn(
        self, sent_ms: float, received_ms: float, timestamp_ms: float, received_at_ms: float, error_ms: float
    ) -> None:
        self._offset_ms = (timestamp_ms - received_ms + received_at_ms - sent_ms) / 2
        self.error_ms = (received_ms - sent_ms) / 2 + error_ms
