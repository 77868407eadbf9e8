"""The step that turns labels and features into what the models learn from and are judged on."""

from __future__ import annotations

import logging
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from evensong.data import splits, storage
from evensong.data.lake import Lake
from evensong.errors import NothingToLearnError
from evensong.features import filtering
from evensong.settings import Settings
from evensong.types import TIMESTAMP, Frame, Night

log = logging.getLogger(__name__)

#: A label at t sees what was known strictly before it.
INSTANT = timedelta(microseconds=1)
#: Labels joined at once, which bounds the memory of their feature lists.
CHUNK = 200_000


def build(settings: Settings, night: Night) -> str:
    """Write the night's `training_set/` (docs/contracts.md) and return its URI.

    Raises:
        NothingToLearnError: no event was known at `as_of`, or none that counts as positive lies in the training window.
        StaleFeaturesError: the feature tables do not reach `as_of`.
    """
    from evensong.features.offline import FeatureReader
    from evensong.features.refresh import require
    from evensong.features.store import RECOMMENDER

    labels, holdout_start = _labels(settings, night)
    require(settings, night.as_of)

    reader = FeatureReader(settings)
    items = {"train": _items(settings, reader, holdout_start), "final": _items(settings, reader, night.as_of)}
    users = _holdout_users(settings, reader, labels, holdout_start)
    targets = _targets(settings, labels, users)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _write_examples(place / "examples.parquet", reader, labels.drop("propensity"))
        for part, frame in items.items():
            frame.write_parquet(place / f"items_{part}.parquet")
        users.write_parquet(place / "users_holdout.parquet")
        targets.write_parquet(place / "targets.parquet")
        meta = _meta(settings, night, holdout_start, labels, items, users, targets)
        storage.write_json(str(place / "meta.json"), {**meta, "feature_service": RECOMMENDER})
        return storage.write_folder(place, settings.run_uri(night.run_id, "training_set"))


def holdout_start(settings: Settings, night: Night) -> datetime:
    """The moment at which training's view ends and the held-out events begin, as the night's training set says."""
    meta = storage.read_json(settings.run_uri(night.run_id, "training_set", "meta.json"))
    return datetime.fromisoformat(meta["holdout_start"])


def _labels(settings: Settings, night: Night) -> tuple[Frame, datetime]:
    """The positive events known at `as_of` and inside the training window, oldest first, each with its part.

    And where the holdout begins.
    """
    from evensong.features.state import with_known
    from evensong.features.transformations import INTERACTION_COLUMNS, positive_events

    split = settings.split
    known = Lake(settings.lake).scan("interactions", night.as_of).select(*INTERACTION_COLUMNS, "propensity").collect()
    if known.is_empty():
        raise NothingToLearnError(
            f"as_of {night.as_of:%Y-%m-%d %H:%M}: expected interactions known by then, found none; "
            "choose a later as_of, or import data that reaches back further"
        )
    positives = with_known(positive_events(known, split.positive_event_types, split.min_value))
    holdout_start = splits.holdout_start(positives, night.as_of, split)
    # The holdout is what training could not know: an event of before that arrives after T_h belongs to neither.
    held_out = pl.col("event_timestamp") > holdout_start
    trainable = pl.col("known") <= holdout_start
    ranker_start = holdout_start - timedelta(days=split.ranker_days)
    part = (
        pl.when(held_out)
        .then(pl.lit("holdout"))
        .when(pl.col("event_timestamp") >= ranker_start)
        .then(pl.lit("ranker"))
        .otherwise(pl.lit("retriever"))
    )
    labels = positives.filter(held_out | trainable).with_columns(part.alias("part"))
    if split.training_days is not None:
        first = holdout_start - timedelta(days=split.training_days)
        labels = labels.filter(pl.col("event_timestamp") >= first)
    columns = ["user_id", "item_id", "event_timestamp", "event_type", "value", "propensity", "part"]
    labels = labels.select(columns).sort("event_timestamp", "user_id", "item_id", "event_type", "value")
    if not labels["part"].is_in(["retriever", "ranker"]).any():
        raise NothingToLearnError(
            f"as_of {night.as_of:%Y-%m-%d %H:%M}: expected positive events ({', '.join(split.positive_event_types)}) "
            f"known at {holdout_start:%Y-%m-%d %H:%M}, where the holdout begins, found none among {len(known)} "
            "interactions; choose a later as_of, or change split.positive_event_types, min_value or training_days"
        )
    return labels.tail(split.max_examples), holdout_start


def _write_examples(path: Path, reader: Any, labels: Frame) -> None:
    """Each label with the features known strictly before it, joined a bounded number at a time."""
    import pyarrow.parquet as pq

    from evensong.features.store import RECOMMENDER

    writer, rows = None, 0
    for start in range(0, len(labels), CHUNK):
        chunk = labels.slice(start, CHUNK).rename({"event_timestamp": "label_timestamp"})
        moments = chunk.with_columns((pl.col("label_timestamp") - INSTANT).alias("event_timestamp"))
        joined = reader.join(moments, RECOMMENDER).with_columns(event_timestamp="label_timestamp")
        joined = joined.select([*labels.columns, *joined.drop(*labels.columns, "label_timestamp").columns])
        table = joined.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        rows += len(joined)
    assert writer is not None
    writer.close()
    if rows != len(labels):
        raise AssertionError(f"{len(labels)} labels went into the join, {rows} came out")


def _items(settings: Settings, reader: Any, moment: datetime) -> Frame:
    """Every item known at the moment, with its item features at that moment, by id."""
    from evensong.features.store import RECOMMENDER

    ids = Lake(settings.lake).current_items(moment).select("item_id").sort("item_id")
    return _features_at(reader, ids, moment, RECOMMENDER, "item")


def _holdout_users(settings: Settings, reader: Any, labels: Frame, moment: datetime) -> Frame:
    """The users with a held-out positive event: their features, and what they had met, where the holdout begins."""
    from evensong.features.refresh import seen_at
    from evensong.features.store import RECOMMENDER

    ids = labels.filter(pl.col("part") == "holdout").select("user_id").unique().sort("user_id")
    users = _features_at(reader, ids, moment, RECOMMENDER, "user")
    return users.join(seen_at(settings, moment), on="user_id", how="left", maintain_order="left")


def _features_at(reader: Any, ids: Frame, moment: datetime, service: str, entity: str) -> Frame:
    """The service's features of one entity's views, at one moment."""
    rows = ids.with_columns(pl.lit(moment, TIMESTAMP).alias("event_timestamp"))
    joined: Frame = reader.join(rows, service, of=f"{entity}_id")
    return joined.select([*ids.columns, *reader.features_of(service, f"{entity}_id")])


def _targets(settings: Settings, labels: Frame, users: Frame) -> Frame:
    """Held-out positives that can judge any model, without those that the filter rule would hide from the user.

    What a policy was bound to show can only confirm that policy: nothing else could be clicked. So where some positives
    were shown by chance, only those count; the others would keep any champion on its own slates for ever.
    """
    held_out = labels.filter(pl.col("part") == "holdout")
    by_chance = pl.col("propensity").is_null() | (pl.col("propensity") < settings.split.max_propensity)
    fair = held_out.filter(by_chance)
    if fair.is_empty() and len(held_out):
        log.warning(
            "every held-out event was shown with near certainty; all of them judge, in favour of who showed them"
        )
        fair = held_out
    targets = fair.select("user_id", "item_id", "event_timestamp", "event_type")
    for column in filtering.HIDDEN[settings.serving.filter]:
        pairs = users.select("user_id", pl.col(column).alias("item_id")).explode("item_id").drop_nulls()
        targets = targets.join(pairs, on=["user_id", "item_id"], how="anti", maintain_order="left")
    return targets.sort("user_id", "event_timestamp", "item_id", "event_type")


def _num_bound(settings: Settings, labels: Frame) -> int:
    """Held-out positives that stood on a slate with near certainty."""
    bound = (pl.col("part") == "holdout") & (pl.col("propensity") >= settings.split.max_propensity)
    return labels.filter(bound).height


def _meta(
    settings: Settings,
    night: Night,
    holdout_start: datetime,
    labels: Frame,
    items: dict[str, Frame],
    users: Frame,
    targets: Frame,
) -> dict[str, Any]:
    lake = Lake(settings.lake)
    from evensong.features.views import declared_views

    parts = dict(labels["part"].value_counts().sort("part").iter_rows())
    return {
        "as_of": night.as_of.isoformat(),
        "holdout_start": holdout_start.isoformat(),
        "ranker_start": (holdout_start - timedelta(days=settings.split.ranker_days)).isoformat(),
        "first_label": labels["event_timestamp"].min(),
        "last_label": labels["event_timestamp"].max(),
        "num_examples": {part: parts.get(part, 0) for part in ("retriever", "ranker", "holdout")},
        "num_items_train": len(items["train"]),
        "num_items_final": len(items["final"]),
        "num_users_holdout": len(users),
        "num_targets": len(targets),
        "num_bound_to_be_shown": _num_bound(settings, labels),
        "num_target_users": targets["user_id"].n_unique(),
        "filter": settings.serving.filter,
        "lake_versions": {
            **lake.versions(),
            **{f"features/{view}": lake.version(f"features/{view}") for view in declared_views(settings.features)},
        },
    }
