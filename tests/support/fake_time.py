"""The two clocks of a machine, as a test moves and sets them."""

T0_S = 1_704_067_200.0


class FakeTime:
    """`time` for the code under test: both clocks run together until the wall clock is set."""

    def __init__(self) -> None:
        self.passed_s = 1000.0
        self.set_by_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    def time(self) -> float:
        return T0_S + self.passed_s + self.set_by_s
