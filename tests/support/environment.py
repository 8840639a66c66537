"""What a process that a test starts finds in its environment."""

import os


def without_settings() -> dict[str, str]:
    """This process's environment, without settings; the choice of the extension or its twin is none."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LOCKSTEP_") or name == "LOCKSTEP_TWIN"
    }
