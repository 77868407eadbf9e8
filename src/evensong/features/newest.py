"""What a table of things with several rows each said of them at each moment: the newest row known by then.

The newest row is the one with the largest `event_timestamp`, then `created_timestamp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import polars as pl

from evensong.features.state import with_known
from evensong.types import TIMESTAMP, Frame


def said_at_each_moment(
    table: Frame, values: Callable[[Frame], Frame], *, entity: str, since: datetime | None, until: datetime
) -> Frame:
    """One row a moment at which the entity's newest known row said something else than the one before.

    Args:
        values: the rows' values of interest, in the rows' order.
        since: leaves out the moments at or before it.
        until: the moment at which the table ends.

    Returns:
        The entity, the values, and the stamps, by entity and moment.
    """
    rows = with_known(table).filter(pl.col("known") <= until).sort(entity, "event_timestamp", "created_timestamp")
    rows = rows.with_row_index("rank")
    said = values(rows)
    newest = _ranks(rows, entity)
    found = pl.concat([newest, said[newest["rank"]]], how="horizontal")
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in [entity, *said.columns])
    found = found.filter(differs | (pl.int_range(pl.len()) == 0))
    if since is not None:
        found = found.filter(pl.col("known") > since)
    stamps = [pl.col("known").cast(TIMESTAMP).alias(name) for name in ("event_timestamp", "created_timestamp")]
    return found.select(entity, *said.columns, *stamps)


def newest_known(items: Frame, fields: Sequence[str]) -> Frame:
    """For each item and moment at which a row of it became known: `item_id, known, arrival`, the newest row's fields.

    `arrival` is the smallest `event_timestamp` known by then.
    """
    rows = with_known(items).sort("item_id", "event_timestamp", "created_timestamp", *fields, nulls_last=False)
    known = _ranks(rows.with_row_index("rank"), "item_id", pl.col("event_timestamp").cum_min().over("item_id"))
    return (
        known.with_columns(rows.select(fields)[known["rank"]].get_columns())
        .drop("rank")
        .rename({"event_timestamp": "arrival"})
    )


def still_counting(table: Frame, entity: str, until: datetime) -> Frame:
    """The rows, of those known at a moment, that any later answer depends on: each entity's newest and earliest one."""
    rows = with_known(table).filter(pl.col("known") <= until).drop("known")
    rows = rows.sort(entity, "event_timestamp", "created_timestamp")
    last = pl.col(entity).ne_missing(pl.col(entity).shift(-1)) | (pl.int_range(pl.len()) == pl.len() - 1)
    first = pl.col(entity).ne_missing(pl.col(entity).shift(1)) | (pl.int_range(pl.len()) == 0)
    return rows.filter(first | last)


def _ranks(rows: Frame, entity: str, *running: pl.Expr) -> Frame:
    """For each entity and moment at which a row became known: the largest `rank` known by then."""
    return (
        rows.sort(entity, "known", "rank")
        .select(entity, "known", pl.col("rank").cum_max().over(entity), *running)
        .unique([entity, "known"], keep="last", maintain_order=True)
    )
