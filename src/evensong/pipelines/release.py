"""Counts of events for people outside, with differential privacy; what they cost stands in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from evensong.data.lake import Lake
from evensong.errors import ConfigurationError
from evensong.features.privacy import PrivacyLedger, release_counts
from evensong.settings import Settings
from evensong.types import CATEGORY_SEPARATOR, Night

COLUMNS = ("event_type", "category")


def ledger(settings: Settings) -> PrivacyLedger:
    """The ledger of this home: one budget for all its releases."""
    return PrivacyLedger(Path(settings.place("privacy", "ledger.jsonl")))


def run(settings: Settings, night: Night, column: str) -> dict[str, Any]:
    """Release how many events of each type, or of each first-level category, were known at `as_of`.

    The same night and column give the same release again, at no cost. The categories are those that the settings and
    the catalogue name, never read off the events.

    Raises:
        RefusedError: `privacy.epsilon` is not set, or the budget is spent.
        ConfigurationError: no such column, or nothing is in the catalogue.
    """
    if column not in COLUMNS:
        raise ConfigurationError(f"expected one of {', '.join(COLUMNS)} to count by, got {column}")
    lake = Lake(settings.lake)
    rows = lake.scan("interactions", night.as_of).select("user_id", "item_id", "event_type").collect()
    if column == "event_type":
        categories = list(settings.validation.event_types)
    else:
        level = pl.col("category_path").str.split(CATEGORY_SEPARATOR).list.first().alias(column)
        items = lake.current_items(night.as_of).select("item_id", level)
        categories = items[column].drop_nulls().unique().sort().to_list()
        rows = rows.join(items, on="item_id", how="left", maintain_order="left")
    if not categories:
        raise ConfigurationError(f"expected items with a category at {night.as_of.isoformat()}, found none")
    kept = ledger(settings)
    made = release_counts(
        rows.select("user_id", column),
        column,
        categories,
        name=f"events by {column} at {night.as_of.isoformat()}",
        settings=settings.privacy,
        ledger=kept,
    )
    return {
        "name": made.name,
        "values": made.values,
        "epsilon": made.epsilon,
        "scale": made.scale,
        "spent": kept.spent(),
        "budget": settings.privacy.budget,
        "ledger": str(kept.path),
    }
