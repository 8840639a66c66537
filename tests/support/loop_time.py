"""The clock of an event loop, as a test moves it."""

import asyncio

# A test that waits for what never comes ends all the same: from then on the clock goes on by itself.
STANDS_STILL_S = 60.0
# An instant may be the sum of other floats than the one that it is compared with.
ROUNDING_S = 1e-6


class LoopTime:
    """From now on the clock of the running loop stands still, but for what a test lets pass.

    What the loop would do later comes when the test says so, however slow the machine is. Where it `runs` the
    clock goes on as before, and what is let pass is added to it. A test's own time limit goes by it, too.
    """

    def __init__(self, *, runs: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self._real_s = loop.time
        self._began_s = loop.time()
        self._stands_still_s = 0.0 if runs else STANDS_STILL_S
        self.passed_s = 0.0
        """What was let pass."""
        loop.time = self._now_s  # type: ignore[method-assign]

    def _now_s(self) -> float:
        waited_s = self._real_s() - self._began_s
        return self._began_s + self.passed_s + max(0.0, waited_s - self._stands_still_s)

    def skip(self, seconds: float) -> None:
        """So much has passed when the loop looks next at what is due."""
        self.passed_s += seconds + ROUNDING_S

    def go_on(self) -> None:
        """From now on it runs, as for a server that is to stop."""
        self._stands_still_s = min(self._stands_still_s, self._real_s() - self._began_s)

    async def pass_s(self, seconds: float) -> None:
        """Let so much pass, and the loop do what is due by then and what comes of it."""
        self.skip(seconds)
        await settled()


async def settled() -> None:
    """Let the loop do what can be done without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)
