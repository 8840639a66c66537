"""What a client does too much of: made for those that say anything at all."""

from collections import deque

MAX_INVALID = 10
INVALID_WITHIN_S = 10.0


class Excesses:
    """How many frames came in this second, and when the last invalid messages came. All times in s."""

    __slots__ = ("_frames", "_invalid_at_s", "_second")

    def __init__(self) -> None:
        self._second = self._frames = 0
        self._invalid_at_s: deque[float] | None = None

    def count_frame(self, now_s: float) -> int:
        """How many have come in this second."""
        if int(now_s) != self._second:
            self._second, self._frames = int(now_s), 0
        self._frames += 1
        return self._frames

    def count_invalid(self, now_s: float) -> bool:
        """True if the last MAX_INVALID invalid messages came within INVALID_WITHIN_S."""
        if self._invalid_at_s is None:
            self._invalid_at_s = deque(maxlen=MAX_INVALID)
        self._invalid_at_s.append(now_s)
        return len(self._invalid_at_s) == MAX_INVALID and now_s - self._invalid_at_s[0] <= INVALID_WITHIN_S
