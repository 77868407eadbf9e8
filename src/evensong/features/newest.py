"""What a table of things with several rows each said of them at each moment: the newest row known by then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import polars as pl

from evensong.types import TIMESTAMP, Frame


def said_at_each_moment(
    table: Frame, values: Callable[[Frame], Frame], *, entity: str, since: datetime | None, until: datetime
) -> Frame:
    """One row a moment at which the entity's newest known row said something else than the one before.

    The newest row is the one with the largest `event_timestamp`, then `created_timestamp`.

    Args:
        values: the rows' values of interest, in the rows' order.
        since: leaves out the moments at or before it.
        until: the moment at which the table ends.

    Returns:
        The entity, the values, and the stamps, by entity and moment.
    """
    rows = (
        table.with_columns(pl.max_horizontal("event_timestamp", "created_timestamp").alias("known"))
        .filter(pl.col("known") <= until)
        .sort(entity, "event_timestamp", "created_timestamp")
    )
    rows = rows.with_row_index("rank")
    said = values(rows)
    newest = (
        rows.select(entity, "known", "rank")
        .sort(entity, "known", "rank")
        .with_columns(pl.col("rank").cum_max().over(entity))
        .unique([entity, "known"], keep="last", maintain_order=True)
    )
    found = pl.concat([newest, said[newest["rank"]]], how="horizontal")
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in [entity, *said.columns])
    found = found.filter(differs | (pl.int_range(pl.len()) == 0))
    if since is not None:
        found = found.filter(pl.col("known") > since)
    stamps = [pl.col("known").cast(TIMESTAMP).alias(name) for name in ("event_timestamp", "created_timestamp")]
    return found.select(entity, *said.columns, *stamps)
