"""The feature report: what is missing, how values are spread and have moved, what is redundant, what the model needs.

A pure function from two frames to a `FeatureReport`; `feature_page` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from evensong.monitoring.drift import Drift, column_drift, kind_of
from evensong.types import Frame, Skew, Value

Score = Callable[[Frame], NDArray[Any]]
Metric = Callable[[Frame, NDArray[Any]], float]

#: Rows that correlations are computed from; more would tell nothing new.
_MOST_ROWS = 50_000
#: What is reported of a list, which itself has neither spread nor correlation, and of a vector.
LENGTH, ELEMENTS, NORM = " (length)", " (elements)", " (norm)"
#: Bins of a histogram; elements of lists, such as items, have many values.
NUM_BINS, ELEMENT_BINS = 10, 30


class Summary(Value):
    """How one feature's current values are spread: a number has quantiles, another kind just the number of values."""

    name: str
    type: str
    missing: float
    """Share of the current rows."""
    missing_training: float
    num_values: int
    mean: float | None = None
    deviation: float | None = None
    quantiles: tuple[float, ...] = ()
    """At 0, 5, 25, 50, 75, 95 and 100 per cent."""


class Importance(Value):
    """How much the metric loses when a feature's values are shuffled among the rows (Breiman, 2001, §10)."""

    name: str
    loss: float
    """Mean over the repeats; at or below zero the score does not need the feature."""
    deviation: float


class FeatureReport(Value):
    """All of it, as data."""

    title: str
    num_training: int
    num_current: int
    summaries: tuple[Summary, ...]
    drift: tuple[Drift, ...]
    correlated: tuple[str, ...] = ()
    """The names of the rows and columns of `correlation`."""
    correlation: tuple[tuple[float | None, ...], ...] = ()
    """Spearman's rank correlation of the current values, pairwise complete; none where a side does not vary."""
    redundant: tuple[tuple[str, ...], ...] = ()
    """Groups in which each feature is correlated with some other above the threshold."""
    redundant_above: float = 0.9
    model: str | None = None
    """Whose importance it is."""
    metric: float | None = None
    """Of the unshuffled rows."""
    importance: tuple[Importance, ...] = Field(default=())
    unread: tuple[str, ...] = ()
    """Features that the model does not read, so that nothing is lost without them."""
    served: tuple[Skew, ...] = ()
    """The largest difference of each served feature, and of the score, from the offline one."""
    served_message: str | None = None
    """What the skew check came to."""
    notes: tuple[str, ...] = ()
    """What is not in the report, and why."""


def build_report(
    training: Frame,
    current: Frame,
    *,
    features: Sequence[str] | None = None,
    aligned: Sequence[Sequence[str]] = (),
    title: str = "Features",
    redundant_above: float = 0.9,
) -> FeatureReport:
    """Compare the current rows with those of the training set.

    A list is reported by its length and by its elements, a vector (an array column) by its length in space and by the
    dimension that has moved most.

    Args:
        features: the columns to report on; none: all that both frames have.
        aligned: lists whose elements belong to each other one by one; their common length is reported once.
        redundant_above: correlations at or above it, of either sign, make features redundant.

    Raises:
        ValueError: a feature is missing on a side, or no feature is left.
    """
    names = list(features) if features is not None else [name for name in training.columns if name in current.columns]
    for side, frame in (("training", training), ("current", current)):
        if missing := [name for name in names if name not in frame.columns]:
            raise ValueError(f"the {side} frame lacks {', '.join(missing)}; it has {', '.join(frame.columns)}")
    if not names:
        raise ValueError("expected at least one feature that both frames have, found none; name them in `features`")
    told = {f"{name}{LENGTH}" for lists in aligned for name in [one for one in lists if one in names][1:]}
    parts = [part for name in names for part in _parts(training[name], current[name]) if part[1].name not in told]
    numbers = [after for before, after in parts if _is_number(after) and len(after) == len(current)]
    correlation = _correlations(numbers)
    correlated = [values.name for values in numbers]
    return FeatureReport(
        title=title,
        num_training=len(training),
        num_current=len(current),
        summaries=tuple(_summary(before, after) for before, after in parts),
        drift=tuple(
            column_drift(before, after, ELEMENT_BINS if after.name.endswith(ELEMENTS) else NUM_BINS)
            for before, after in parts
            if kind_of(before) and kind_of(after)
        ),
        correlated=tuple(correlated),
        correlation=tuple(tuple(None if np.isnan(r) else float(r) for r in row) for row in correlation),
        redundant=tuple(_groups(correlated, correlation, redundant_above)),
        redundant_above=redundant_above,
    )


def permutation_importance(
    frame: Frame,
    features: Sequence[str | tuple[str, ...]],
    score: Score,
    metric: Metric,
    *,
    num_repeats: int = 3,
    generator: np.random.Generator,
) -> list[Importance]:
    """What each feature is worth to the metric, largest first, ties by name.

    Columns that only mean something together, such as categories and their shares, are given as a tuple and shuffled as
    one, named `a + b`.

    Of two features that say the same each may look worthless alone; the redundant groups name them.
    """
    whole = metric(frame, score(frame))
    found = []
    for feature in features:
        names = [feature] if isinstance(feature, str) else list(feature)
        losses = []
        for _ in range(num_repeats):
            order = generator.permutation(len(frame))
            shuffled = frame.with_columns(frame[name].gather(order) for name in names)
            losses.append(float(whole - metric(shuffled, score(shuffled))))
        found.append(Importance(name=" + ".join(names), loss=float(np.mean(losses)), deviation=float(np.std(losses))))
    return sorted(found, key=lambda one: (-one.loss, one.name))


def _parts(before: pl.Series, after: pl.Series) -> list[tuple[pl.Series, pl.Series]]:
    """What is reported of a column on both sides, each with the name that it gets."""
    kind = after.dtype
    if isinstance(kind, pl.Array):
        norms = [_norms(side) for side in (before, after)]
        return [(norms[0], norms[1]), *_moved_most(before, after)]
    if isinstance(kind, pl.List):
        lengths = [side.list.len().alias(side.name + LENGTH) for side in (before, after)]
        elements = [
            side.explode(empty_as_null=False, keep_nulls=False).alias(side.name + ELEMENTS) for side in (before, after)
        ]
        return [(lengths[0], lengths[1]), (elements[0], elements[1])]
    if kind.is_temporal() and kind in (pl.Datetime, pl.Date):
        days = [(side.cast(pl.Datetime("us")).dt.epoch("us") / 86_400e6).alias(side.name) for side in (before, after)]
        return [(days[0], days[1])]
    return [(before, after)]


def _norms(vectors: pl.Series) -> pl.Series:
    """The length in space of each vector, null for one that says nothing."""
    norms = np.linalg.norm(_matrix(vectors), axis=1)
    return pl.Series(vectors.name + NORM, norms, nan_to_null=True).replace(0.0, None)


def _moved_most(before: pl.Series, after: pl.Series) -> list[tuple[pl.Series, pl.Series]]:
    """The dimension of a vector whose values have moved most."""
    sides = _matrix(before), _matrix(after)
    pairs = []
    for place in range(sides[1].shape[1]):
        one, other = (pl.Series(f"{after.name} [{place}]", side[:, place]) for side in sides)
        pairs.append((one, other))
    return sorted(pairs, key=lambda pair: -column_drift(pair[0], pair[1]).psi)[:1]


def _matrix(vectors: pl.Series) -> NDArray[np.float64]:
    size = vectors.dtype.size  # type: ignore[attr-defined]
    return vectors.to_numpy().astype(np.float64).reshape(len(vectors), size)


def _is_number(values: pl.Series) -> bool:
    return values.dtype.is_numeric() or values.dtype == pl.Boolean


def _summary(before: pl.Series, after: pl.Series) -> Summary:
    found = Summary(
        name=after.name,
        type=str(after.dtype),
        missing=_missing(after),
        missing_training=_missing(before),
        num_values=after.drop_nulls().n_unique() if kind_of(after) else 0,
    )
    numbers = _numbers(after) if after.dtype.is_numeric() else np.zeros(0)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return found
    quantiles = np.quantile(numbers, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    spread = {
        "mean": float(numbers.mean()),
        "deviation": float(numbers.std()),
        "quantiles": tuple(map(float, quantiles)),
    }
    return found.model_copy(update=spread)


def _missing(values: pl.Series) -> float:
    if not len(values):
        return 0.0
    absent = values.null_count() + (int(values.is_nan().sum()) if values.dtype.is_float() else 0)
    return absent / len(values)


def _numbers(values: pl.Series) -> NDArray[np.float64]:
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _correlations(columns: Sequence[pl.Series]) -> NDArray[np.float64]:
    """Spearman's correlation of each two columns over the rows that have both."""
    step = max(1, -(-len(columns[0]) // _MOST_ROWS)) if columns else 1
    table = [_numbers(values.gather_every(step)) for values in columns]
    found = np.full((len(table), len(table)), np.nan)
    for i, left in enumerate(table):
        for j, right in enumerate(table[: i + 1]):
            both = np.isfinite(left) & np.isfinite(right)
            if both.sum() < 3:
                continue
            a, b = (pl.Series(side[both]).rank("average").to_numpy() for side in (left, right))
            a, b = a - a.mean(), b - b.mean()
            size = np.sqrt((a @ a) * (b @ b))
            if size > 0:
                found[i, j] = found[j, i] = np.clip((a @ b) / size, -1, 1)
    return found


def _groups(names: Sequence[str], correlation: NDArray[np.float64], above: float) -> list[tuple[str, ...]]:
    """The connected components of "correlated above the threshold", of two features or more."""
    group = list(range(len(names)))
    for i, j in zip(*np.nonzero(np.nan_to_num(np.abs(correlation)) >= above), strict=True):
        low, high = sorted((group[i], group[j]))
        group = [low if of == high else of for of in group]
    members = [tuple(names[i] for i, of in enumerate(group) if of == one) for one in sorted(set(group))]
    return [found for found in members if len(found) > 1]
