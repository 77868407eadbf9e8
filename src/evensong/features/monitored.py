"""What Feast's monitoring asks of an offline store: figures of a table's columns, and a place to keep them.

Feast decides what is counted (feast/monitoring): a column is numeric or categorical, its figures are those of
`MetricsCalculator`, and they are kept as rows of four tables, told apart by Feast's keys. A list counts by its items.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
from feast.monitoring.metrics_calculator import MetricsCalculator
from feast.monitoring.monitoring_utils import (
    MONITORING_PARQUET_FILES,
    monitoring_parquet_meta,
    normalize_monitoring_row,
)

from evensong.data import storage
from evensong.types import TIMESTAMP, Frame

_TYPES: dict[str, pl.DataType] = {
    "metric_date": pl.Date(),
    **dict.fromkeys(("computed_at", "max_event_timestamp", "started_at", "completed_at"), TIMESTAMP),
    "is_baseline": pl.Boolean(),
    **dict.fromkeys(("row_count", "null_count", "total_row_count", "total_features"), pl.Int64()),
    **dict.fromkeys(("features_with_nulls", "total_feature_views"), pl.Int64()),
    **dict.fromkeys(("null_rate", "avg_null_rate", "max_null_rate", "mean", "stddev"), pl.Float64()),
    **dict.fromkeys(("min_val", "max_val", "p50", "p75", "p90", "p95", "p99"), pl.Float64()),
}


def figures(
    rows: pl.LazyFrame, columns: Sequence[tuple[str, str]], *, histogram_bins: int, top_n: int
) -> list[dict[str, Any]]:
    """Feast's figures of each column, one column in memory at a time.

    Args:
        columns: name and kind (`numeric` or `categorical`); a name that is no column is left out, as Feast leaves it.
    """
    calculator = MetricsCalculator(histogram_bins, top_n)
    known = rows.collect_schema().names()
    found = []
    for name, kind in columns:
        if name in known:
            column = rows.select(name).collect(engine="streaming")[name]
            found += calculator.compute_all(pl.DataFrame([_countable(column)]).to_arrow(), [(name, kind)])
            if isinstance(column.dtype, (pl.List, pl.Array)):
                missing, total = column.null_count(), len(column)
                found[-1] |= {"row_count": total, "null_count": missing, "null_rate": missing / total if total else 0.0}
    return found


class Tables:
    """Feast's four tables of figures and jobs, a Parquet file each, in a folder or below an S3 prefix."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def ensure(self) -> None:
        """Put an empty table where there is none."""
        for kind in MONITORING_PARQUET_FILES:
            if not storage.exists(self._place(kind)):
                storage.write_frame(self._place(kind), _frame([], kind))

    def save(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in the place of those with their key."""
        if not rows:
            return
        key = monitoring_parquet_meta(kind)[2]
        new = _frame(rows, kind).unique(key, keep="last", maintain_order=True)
        kept = self._read(kind).join(new, on=key, how="anti", nulls_equal=True, maintain_order="left")
        storage.write_frame(self._place(kind), pl.concat([kept, new]))

    def query(
        self, kind: str, project: str, equal: Mapping[str, Any], start: date | None, end: date | None
    ) -> list[dict[str, Any]]:
        """The rows of a project (of all, when it is empty) that have these values, as Feast shows them, by date."""
        rows = self._read(kind)
        wanted = {"project_id": project or None, **equal}
        rows = rows.filter(pl.col(name) == value for name, value in wanted.items() if value is not None)
        for bound, keep in ((start, pl.Expr.ge), (end, pl.Expr.le)):
            if bound is not None and kind != "job":
                rows = rows.filter(keep(pl.col("metric_date"), pl.lit(_date(bound))))
        rows = rows.sort("job_id" if kind == "job" else "metric_date", maintain_order=True)
        return [normalize_monitoring_row(row) for row in rows.to_dicts()]

    def end_baselines(self, project: str, equal: Mapping[str, Any]) -> None:
        """Let the matching figures of features no longer be a baseline."""
        wanted = {"project_id": project, **equal}
        matches = pl.all_horizontal(pl.col(name) == value for name, value in wanted.items() if value is not None)
        rows = self._read("feature").with_columns(pl.col("is_baseline") & ~matches)
        storage.write_frame(self._place("feature"), rows)

    def _place(self, kind: str) -> str:
        return storage.join(self._folder, MONITORING_PARQUET_FILES[kind])

    def _read(self, kind: str) -> Frame:
        place = self._place(kind)
        return storage.read_frame(place) if storage.exists(place) else _frame([], kind)


def _frame(rows: Sequence[Mapping[str, Any]], kind: str) -> Frame:
    schema = {name: _TYPES.get(name, pl.String()) for name in monitoring_parquet_meta(kind)[1]}
    columns = {name: [_as_type(row.get(name), dtype) for row in rows] for name, dtype in schema.items()}
    return pl.DataFrame(columns, schema=schema)


def _as_type(value: Any, dtype: pl.DataType) -> Any:
    """A value as Feast hands it over: moments may be text, and histograms are dictionaries."""
    if value is None:
        return None
    if dtype == pl.String:
        return value if isinstance(value, str) else json.dumps(value)
    if dtype == pl.Date:
        return _date(value)
    if dtype == TIMESTAMP:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return value


def _date(value: Any) -> date:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.date() if isinstance(value, datetime) else value


def _countable(column: pl.Series) -> pl.Series:
    """The column as the calculator can take it: items of lists, and nulls for what is no number."""
    while isinstance(column.dtype, (pl.List, pl.Array)):
        column = column.explode()
    if column.dtype.is_float():
        column = column.set(~column.is_finite().fill_null(False), None)
    return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column
