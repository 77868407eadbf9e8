"""A small world whose right answer is obvious: two taste groups, each of which wants the items of its own shelf.

Every user wants one item a day, drawn from the shelf in an order of their own, and never the same twice. It gives the
frames of a training set (docs/contracts.md) with features computed the slow and plain way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

START = datetime(2026, 1, 1, tzinfo=UTC)
TIMESTAMP = pl.Datetime("us", "UTC")
Frame = pl.DataFrame


@dataclass(frozen=True)
class TasteWorld:
    """Events, items and the moment up to which is learned."""

    events: Frame
    """`user_id, item_id, event_timestamp`, oldest first."""
    items: Frame
    """`item_id, title, category_path, price, arrival_seconds`."""
    as_of: datetime
    cutoff: datetime
    """Where the holdout begins."""

    def user_features(self, user_id: str, before: datetime, history_length: int = 50) -> dict[str, object]:
        """What was known of a user strictly before a moment."""
        past = self.events.filter((pl.col("user_id") == user_id) & (pl.col("event_timestamp") < before))
        ids = past["item_id"].to_list()
        shelf_of = dict(self.items.select("item_id", "category_path").iter_rows())
        shelves = [shelf_of[item_id].split(" > ")[0] for item_id in ids[-history_length:]]
        names = sorted(set(shelves), key=lambda shelf: (-shelves.count(shelf), shelf))
        counted = {
            f"num_events_{days}d": past.filter(pl.col("event_timestamp") >= before - timedelta(days=days)).height
            for days in (1, 7, 30)
        }
        return {
            "recent_item_ids": ids[-history_length:] or None,
            "recent_event_types": ["view"] * len(ids[-history_length:]) or None,
            "num_interactions": len(ids) or None,
            "last_interaction_seconds": int(past["event_timestamp"].max().timestamp()) if ids else None,
            "top_categories": names or None,
            "top_category_shares": [shelves.count(name) / len(shelves) for name in names] or None,
            **counted,
        }

    def item_features(self, item_id: str, moment: datetime) -> dict[str, object]:
        """What was known of an item at the midnight before a moment."""
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        past = self.events.filter((pl.col("item_id") == item_id) & (pl.col("event_timestamp") < midnight))
        windows = {
            f"item_events_{days}d": past.filter(pl.col("event_timestamp") >= midnight - timedelta(days=days))
            for days in (1, 7, 30)
        }
        content = self.items.row(by_predicate=pl.col("item_id") == item_id, named=True)
        return {
            **{name: frame.height for name, frame in windows.items()},
            "item_events_total": past.height,
            "item_users_30d": windows["item_events_30d"]["user_id"].n_unique(),
            **{name: content[name] for name in ("title", "category_path", "price", "arrival_seconds")},
        }

    def join(self, entities: Frame) -> Frame:
        """Item features of (item_id, event_timestamp) rows, each at its own moment."""
        known: dict[tuple[str, object], dict[str, object]] = {}
        rows = []
        for item_id, moment in entities.select("item_id", "event_timestamp").iter_rows():
            key = (item_id, moment.date())
            if key not in known:
                known[key] = self.item_features(item_id, moment)
            rows.append(known[key])
        return entities.hstack(pl.DataFrame(rows, infer_schema_length=None).get_columns())

    def examples(self) -> Frame:
        """`examples.parquet`."""
        ranker_start = self.cutoff - timedelta(days=3)
        part = (
            pl.when(pl.col("event_timestamp") > self.cutoff)
            .then(pl.lit("holdout"))
            .when(pl.col("event_timestamp") >= ranker_start)
            .then(pl.lit("ranker"))
            .otherwise(pl.lit("retriever"))
        )
        users = [self.user_features(u, t) for u, t in self.events.select("user_id", "event_timestamp").iter_rows()]
        labels = self.events.with_columns(event_type=pl.lit("view"), value=pl.lit(None, pl.Float64), part=part)
        return self.join(labels.hstack(pl.DataFrame(users, schema=USERS).get_columns()))

    def catalogue(self, moment: datetime) -> Frame:
        """`items_train.parquet` or `items_final.parquet`."""
        known = self.items.filter(pl.col("arrival_seconds") <= moment.timestamp()).sort("item_id")
        entities = known.select("item_id", pl.lit(moment, TIMESTAMP).alias("event_timestamp"))
        return self.join(entities).drop("event_timestamp")

    def holdout(self) -> tuple[Frame, Frame]:
        """`users_holdout.parquet` and `targets.parquet`."""
        late = self.events.filter(pl.col("event_timestamp") > self.cutoff)
        ids = sorted(late["user_id"].unique())
        instant = timedelta(microseconds=1)
        features = pl.DataFrame([self.user_features(u, self.cutoff + instant) for u in ids], schema=USERS)
        seen = [
            self.events.filter((pl.col("user_id") == u) & (pl.col("event_timestamp") <= self.cutoff))[
                "item_id"
            ].to_list()
            for u in ids
        ]
        lists = pl.Series(seen, dtype=pl.List(pl.String))
        users = pl.DataFrame({"user_id": ids}).hstack(features.get_columns())
        users = users.with_columns(seen_item_ids=lists, purchased_item_ids=pl.lit([], pl.List(pl.String)))
        return users, late.select("user_id", "item_id", "event_timestamp", event_type=pl.lit("view"))

    def write(self, folder: Path) -> Path:
        """Write the training set's files and return the folder."""
        import json

        folder.mkdir(parents=True, exist_ok=True)
        self.examples().write_parquet(folder / "examples.parquet")
        self.catalogue(self.cutoff).write_parquet(folder / "items_train.parquet")
        self.catalogue(self.as_of).write_parquet(folder / "items_final.parquet")
        users, targets = self.holdout()
        users.write_parquet(folder / "users_holdout.parquet")
        targets.write_parquet(folder / "targets.parquet")
        moments = {"as_of": self.as_of.isoformat(), "holdout_start": self.cutoff.isoformat()}
        meta = {**moments, "feature_service": "recommender_v1", "lake_versions": {}}
        (folder / "meta.json").write_text(json.dumps(meta))
        return folder


USERS: dict[str, pl.DataType] = {
    "recent_item_ids": pl.List(pl.String()),
    "recent_event_types": pl.List(pl.String()),
    "num_interactions": pl.Int64(),
    "last_interaction_seconds": pl.Int64(),
    "top_categories": pl.List(pl.String()),
    "top_category_shares": pl.List(pl.Float32()),
    "num_events_1d": pl.Int64(),
    "num_events_7d": pl.Int64(),
    "num_events_30d": pl.Int64(),
}


def make(
    num_users: int = 40,
    shelf_size: int = 20,
    num_days: int = 14,
    seed: int = 1,
    newcomers: int = 0,
    num_popular: float = 10,
) -> TasteWorld:
    """Half of the users want shelf `a`, half shelf `b`; item `a00` is wanted first most often.

    About `num_popular` items of a shelf are wanted much more than the others, and the last `newcomers` users came three
    days before the cutoff.
    """
    rng = np.random.default_rng(seed)
    appeal = np.exp(-np.arange(shelf_size) / num_popular)
    rows = []
    for user in range(num_users):
        shelf = "ab"[user % 2]
        order = rng.choice(shelf_size, num_days, replace=False, p=appeal / appeal.sum())
        first = num_days - 5 if user >= num_users - newcomers else 0
        for day, item in enumerate(order):
            if day < first:
                continue
            moment = START + timedelta(days=day, seconds=int(rng.integers(0, 86_400)))
            rows.append((f"u{user:02d}", f"{shelf}{item:02d}", moment))
    events = pl.DataFrame(
        rows, schema={"user_id": pl.String, "item_id": pl.String, "event_timestamp": TIMESTAMP}, orient="row"
    ).sort("event_timestamp", "user_id", "item_id")
    items = pl.DataFrame(
        {
            "item_id": [f"{shelf}{item:02d}" for shelf in "ab" for item in range(shelf_size)],
            "title": [f"{name} thing {item}" for name in ("apple", "brick") for item in range(shelf_size)],
            "category_path": [f"{shelf} > {shelf}{item % 2}" for shelf in "ab" for item in range(shelf_size)],
            "price": [float(5 + 20 * (shelf == "b")) for shelf in "ab" for _ in range(shelf_size)],
            "arrival_seconds": [int(START.timestamp())] * (2 * shelf_size),
        }
    )
    as_of = START + timedelta(days=num_days)
    return TasteWorld(events, items, as_of, as_of - timedelta(days=2))
