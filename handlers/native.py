"""Chooses between the extension in C and its twin in Python: the one place that knows that there are two."""

import os

try:
    if os.environ.get("LOCKSTEP_TWIN") == "1":
        raise ImportError("the twin is asked for")
    from handlers._native import Line, Poller, Recipient, Recipients, send_all
except ImportError:  # or there was no compiler when this was installed
    from handlers.native_twin import Line, Poller, Recipient, Recipients, send_all

__all__ = ["Line", "Poller", "Recipient", "Recipients", "send_all"]
