"""How many examples the fuzzing takes: some in make test, as many as FUZZ says in make fuzz."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


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


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # which JSON has not
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
