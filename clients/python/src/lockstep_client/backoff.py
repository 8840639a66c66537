"""Whether to come back after a connection has ended, and when."""

import random as chance
from collections.abc import Callable
from typing import Literal

TOKEN_REFUSED = 4501
"""The token has run out, or is not good: another one may be."""


def after_close(code: int) -> Literal["retry", "refused"]:
    """What a WebSocket's close code asks for: come back, after 4501 with another token; or not like this.

    That a session was deleted is never said by one: a bare 1000 can come from anything on the way.
    """
    return "refused" if code == 1008 or (4500 <= code <= 4999 and code != TOKEN_REFUSED) else "retry"


def backoff_ms(attempt: int, random: Callable[[], float] = chance.random) -> float:
    """How long to wait, in ms, before attempt number `attempt` (from 0) to come back.

    Anything up to a limit that doubles, so that the clients of a server that was restarted don't all return
    in the same moment ("full jitter"). `random` gives numbers in [0, 1).
    """
    return random() * min(15_000, 500 << min(attempt, 5))
