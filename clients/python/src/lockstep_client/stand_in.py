"""Until backoff.py is here."""

import random


def backoff_ms(attempt: int) -> float:
    return 1.0 * random.random() * min(15_000, 500 * (1 << attempt))
