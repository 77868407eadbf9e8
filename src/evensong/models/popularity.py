"""Owns the popularity model: the baseline that every model is held against, and the fallback for unknown users."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from evensong.types import Frame


@dataclass(frozen=True)
class Popularity:
    """Items, most wanted first, with the number of positive events that each got in the window."""

    item_ids: list[str]
    scores: list[float]

    @classmethod
    def fit(cls, positives: Frame, item_ids: Collection[str], cutoff: datetime, days: float) -> Popularity:
        """Count the positive events in `(cutoff - days, cutoff]`.

        Every one of `item_ids` is ranked, so that the list never runs out: items with no event in the window follow by
        their events before it; ties go by item id.

        Args:
            positives: `item_id, event_timestamp`, one row a positive event; rows after `cutoff` are ignored.
            item_ids: what may be recommended.
            cutoff: the end of the window.
            days: its length.
        """
        known = pl.DataFrame({"item_id": sorted(item_ids)}, schema={"item_id": pl.String})
        past = positives.lazy().filter(pl.col("event_timestamp") <= cutoff)
        recent = pl.col("event_timestamp") > cutoff - timedelta(days=days)
        counts = past.group_by("item_id").agg(recent.sum().cast(pl.Float64).alias("score"), pl.len().alias("total"))
        ranked = (
            known.join(counts.collect(), on="item_id", how="left")
            .with_columns(pl.col("score").fill_null(0.0), pl.col("total").fill_null(0))
            .sort(["score", "total", "item_id"], descending=[True, True, False])
        )
        return cls(ranked["item_id"].to_list(), ranked["score"].to_list())

    def top(self, k: int, exclude: Collection[str] = ()) -> list[tuple[str, float]]:
        """The `k` most popular items that are not in `exclude`, with their scores."""
        hidden = exclude if isinstance(exclude, set | frozenset) else set(exclude)
        chosen: list[tuple[str, float]] = []
        for item_id, score in zip(self.item_ids, self.scores, strict=True):
            if len(chosen) == k:
                break
            if item_id not in hidden:
                chosen.append((item_id, score))
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, for JSON."""
        return {"item_ids": self.item_ids, "scores": self.scores}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Popularity:
        """The model that `to_dict` described."""
        return cls([str(item_id) for item_id in value["item_ids"]], [float(score) for score in value["scores"]])
