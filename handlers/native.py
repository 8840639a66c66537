"""Chooses between the extension in C and its twin in Python: the one place that knows that there are two."""

import os

_is_twin_asked_for = os.environ.get("LOCKSTEP_TWIN") == "1"
why_missing = ""
"""Why there is no extension, although nobody has asked for its twin."""

try:
    if _is_twin_asked_for:
        raise ImportError
    from handlers._native import Line, Poller, Recipient, Recipients, send_all
except ImportError as error:  # or there was no compiler when this was installed
    why_missing = "" if _is_twin_asked_for else str(error)
    from handlers.native_twin import Line, Poller, Recipient, Recipients, send_all

__all__ = ["Line", "Poller", "Recipient", "Recipients", "send_all", "why_missing"]
