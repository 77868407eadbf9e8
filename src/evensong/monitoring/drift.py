"""Drift: how far the values of a feature have moved from those that the model was trained on, as PSI and KL divergence.

Both compare two histograms over the same bins: quantiles of the training values for numbers, values for categories, and
one bin for what is missing. Each bin of each side gets half a row more (Jeffreys' prior), so an empty bin gives a large
number, not an infinite one.

- Population stability index: `sum((q - p) * ln(q / p))` (Siddiqi, Credit Risk Scorecards, 2006): below 0.10 nothing,
  0.10 to 0.25 some change, above 0.25 another population.
- Kullback–Leibler divergence of the current values from the training ones: `sum(q * ln(q / p))`, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.types import Frame, Value

SOME, MUCH = 0.10, 0.25
MISSING, OTHER = "missing", "other"


class Histogram(Value):
    """Shares of the rows by bin, on both sides; the bins of missing values and of rare categories are the last ones."""

    labels: tuple[str, ...]
    training: tuple[float, ...]
    current: tuple[float, ...]


class Drift(Value):
    """How far one feature has moved."""

    name: str
    psi: float
    kl: float
    verdict: Literal["stable", "some", "much"]
    num_training: int
    num_current: int
    histogram: Histogram


def drift(training: Frame, current: Frame, columns: Sequence[str] | None = None, num_bins: int = 10) -> list[Drift]:
    """Each column's drift, in the order given; without a list, that of every column both frames have and can be binned.

    Raises:
        ValueError: a named column is missing on a side, or is neither a number, text, nor true/false.
    """
    if columns is None:
        columns = [name for name in training.columns if name in current.columns and kind_of(training[name])]
    for name in columns:
        for side, frame in (("training", training), ("current", current)):
            if name not in frame.columns:
                raise ValueError(f"the {side} frame lacks {name}; it has {', '.join(frame.columns)}")
            if kind_of(frame[name]) is None:
                raise ValueError(
                    f"{name}: drift is of numbers, texts or true/false, the {side} frame has {frame[name].dtype}"
                )
    return [column_drift(training[name], current[name], num_bins) for name in columns]


def column_drift(training: pl.Series, current: pl.Series, num_bins: int = 10) -> Drift:
    """The drift of one column.

    Args:
        num_bins: quantile bins of a number; for a category that many values have a bin each, the rest share one.
    """
    numeric = kind_of(training) == "number" and kind_of(current) in ("number", None)
    labels, before, after = (_number_bins if numeric else _category_bins)(training, current, num_bins)
    p, q = smoothed(before), smoothed(after)
    psi = float(((q - p) * np.log(q / p)).sum())
    return Drift(
        name=training.name,
        psi=psi,
        kl=float((q * np.log(q / p)).sum()),
        verdict="stable" if psi < SOME else "some" if psi <= MUCH else "much",
        num_training=len(training),
        num_current=len(current),
        histogram=Histogram(labels=tuple(labels), training=_shares(before), current=_shares(after)),
    )


def smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of the bins with half a row more in each."""
    return (counts + 0.5) / (counts.sum() + 0.5 * len(counts))


def kind_of(values: pl.Series) -> Literal["number", "category"] | None:
    """How a column is binned; none: it is not."""
    kind = values.dtype
    if kind.is_numeric():
        return "number"
    if kind in (pl.String, pl.Boolean, pl.Categorical) or isinstance(kind, pl.Enum):
        return "category"
    return None


def _number_bins(
    training: pl.Series, current: pl.Series, num_bins: int
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    before, after = _finite(training), _finite(current)
    inner = np.quantile(before, np.linspace(0, 1, num_bins + 1)[1:-1]) if len(before) else np.zeros(0)
    borders = np.unique(inner)
    # A value that fills several bins by itself would share one with all below it: it gets borders on both its sides.
    heaps = [value for value in borders if (inner == value).sum() > 1]
    borders = np.unique(np.concatenate([borders, np.nextafter(np.array(heaps, float), np.inf)]))
    marks = [f"{border:.6g}" for border in borders]
    between = [f"{low} to {high}" for low, high in pairwise(marks)]
    labels = [f"under {marks[0]}", *between, f"from {marks[-1]}"] if marks else ["any"]
    counts = []
    for values, known in ((training, before), (current, after)):
        places = np.searchsorted(borders, known, side="right")
        found = np.bincount(places, minlength=len(borders) + 1)
        counts.append(np.append(found, len(values) - len(known)).astype(np.int64))
    return [*labels, MISSING], counts[0], counts[1]


def _category_bins(
    training: pl.Series, current: pl.Series, num_bins: int
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    before, after = (_counts(values) for values in (training, current))
    total = {
        name: before.get(name, 0) / max(1, len(training)) + after.get(name, 0) / max(1, len(current))
        for name in before | after
    }
    # By both sides, so that a value that is new today has its own bin too.
    kept = sorted(sorted(total, key=lambda name: (-total[name], name))[: max(num_bins, 1)])
    counts = []
    for values, found in ((training, before), (current, after)):
        here = [found.get(name, 0) for name in kept]
        missing = values.null_count()
        counts.append(np.array([*here, len(values) - missing - sum(here), missing], np.int64))
    return [*kept, OTHER, MISSING], counts[0], counts[1]


def _finite(values: pl.Series) -> NDArray[np.float64]:
    numbers = values.cast(pl.Float64).drop_nulls().to_numpy()
    return numbers[np.isfinite(numbers)]


def _counts(values: pl.Series) -> dict[str, int]:
    counted = values.cast(pl.String).drop_nulls().alias("value").value_counts()
    return dict(zip(counted["value"].to_list(), counted["count"].to_list(), strict=True))


def _shares(counts: NDArray[np.int64]) -> tuple[float, ...]:
    total = max(1, int(counts.sum()))
    return tuple(float(count) / total for count in counts)
