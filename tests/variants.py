"""Variants of a test: one of a kind runs every day, the others run among the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first_daily(variants: Iterable[Any], count: int = 1) -> list[Any]:
    """For `pytest.mark.parametrize`: all but the first `count` variants are slow. A tuple is one value an argument."""
    marked = []
    for number, variant in enumerate(variants):
        values = variant if isinstance(variant, tuple) else (variant,)
        marked.append(variant if number < count else pytest.param(*values, marks=pytest.mark.slow))
    return marked
