"""Training-serving skew: how far a value that was served is from the one that training would have seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evensong.types import Skew


class _Absent:
    """Stands for a value that one side does not have at all, not even as a null."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def difference(served: Any, offline: Any) -> float:
    """0 for equal values, 1 for values that have nothing in common, between numbers `|a - b| / max(1, |a|, |b|)`.

    A list is as far as the farthest of its elements, and has nothing in common with one of another length. A missing
    value is equal to a missing value only, and what is absent on a side to nothing.
    """
    if served is ABSENT or offline is ABSENT:
        return 1.0
    if isinstance(served, float) and math.isnan(served):
        served = None
    if isinstance(offline, float) and math.isnan(offline):
        offline = None
    if served is None or offline is None:
        return 0.0 if served is offline else 1.0
    if _is_number(served) and _is_number(offline):
        apart = abs(served - offline) / max(1.0, abs(served), abs(offline))
        return apart if math.isfinite(apart) else float(served != offline)
    if _is_list(served) and _is_list(offline):
        if len(served) != len(offline):
            return 1.0
        return max((difference(one, other) for one, other in zip(served, offline, strict=True)), default=0.0)
    return float(served != offline)


def distance(served: Mapping[str, Any], offline: Mapping[str, Any], names: Iterable[str]) -> float:
    """The largest difference of the features of these names."""
    return max((difference(served.get(name, ABSENT), offline.get(name, ABSENT)) for name in names), default=0.0)


def largest(found: Iterable[tuple[str, str, Any, Any]]) -> list[Skew]:
    """By name the largest difference of `(name, request_id, served, offline)`, the largest of all first."""
    worst: dict[str, Skew] = {}
    for name, request_id, served, offline in found:
        apart = difference(served, offline)
        before = worst.get(name) or Skew(name=name, num_values=0, num_different=0, max_difference=0.0)
        update: dict[str, Any] = {
            "num_values": before.num_values + 1,
            "num_different": before.num_different + (apart > 0),
        }
        if apart > before.max_difference:
            update |= {
                "max_difference": apart,
                "request_id": request_id,
                "served": _short(served),
                "offline": _short(offline),
            }
        worst[name] = before.model_copy(update=update)
    return sorted(worst.values(), key=lambda skew: (-skew.max_difference, skew.name))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
