"""Variants of a test that takes seconds: one in `make test`, the others in `make test-long`."""

from collections.abc import Sequence
from typing import Any

import pytest


def first_of(variants: Sequence[Any]) -> list[Any]:
    first, *others = variants
    return [first, *(_long(each) for each in others)]


def _long(variant: Any) -> Any:
    values = variant if isinstance(variant, tuple) else (variant,)
    return pytest.param(*values, marks=pytest.mark.long)
