"""How many examples the fuzzing takes: some in make test, as many as FUZZ says in make fuzz."""

import os

from hypothesis import HealthCheck, settings


def examples(some: int) -> settings:
    """So many, always the same ones; or FUZZ many, others each time."""
    many = int(os.environ.get("FUZZ", "0"))
    return settings(
        max_examples=many or some,
        derandomize=not many,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
