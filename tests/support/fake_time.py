"""The two clocks of a machine, as a test moves and sets them."""

import asyncio
from collections.abc import Callable

T0_S = 1_704_067_200.0
CHECK_EVERY_S = 0.002


class FakeTime:
    """`time` for the code under test: both clocks run together until the wall clock is set."""

    def __init__(self) -> None:
        self.passed_s = 1000.0
        self.set_by_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    def time(self) -> float:
        return T0_S + self.passed_s + self.set_by_s


class FakeLoopTime:
    """`asyncio` for a module that takes from the running loop the time, and a timer to look at it again.

    The timer comes every few ms, whatever its delay: what happens then goes by the fake clock alone.
    """

    def __init__(self, fake: FakeTime) -> None:
        self._fake = fake

    def get_running_loop(self) -> "FakeLoopTime":
        return self

    def time(self) -> float:
        return self._fake.monotonic()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(CHECK_EVERY_S, callback)
