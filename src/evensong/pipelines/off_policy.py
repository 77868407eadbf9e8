"""What the log says of a challenger: the slates that were shown, and those that it would have shown instead."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.evaluation.evidence import OffPolicyEstimate
from evensong.evaluation.off_policy import estimates
from evensong.recommender.funnel import Recommender
from evensong.settings import Settings
from evensong.types import TIMESTAMP, EvaluationReport, Frame, Night


def run(settings: Settings, night: Night, report: EvaluationReport) -> tuple[OffPolicyEstimate, ...]:
    """The judged challenger's online value on the window's logged slates; none without logged propensities."""
    log = logged_slates(settings, night, report.window_start)
    if log.is_empty():
        return ()
    slates = challenger_slates(settings, night, log, report.window_start)
    return estimates(log, slates, seed=night.seed)


def logged_slates(settings: Settings, night: Night, window_start: datetime) -> Frame:
    """What was shown in the window: `request_id, user_id, item_id, position, propensity`, and `reward`, 1 if wanted.

    A shown item is an event that is not positive itself and carries position, propensity and request.
    """
    from evensong.features.transformations import positive_events

    rows = (
        Lake(settings.lake)
        .scan("interactions", night.as_of)
        .filter((pl.col("event_timestamp") > window_start) & pl.col("request_id").is_not_null())
        .select("request_id", "user_id", "item_id", "event_type", "value", "position", "propensity")
        .collect()
    )
    split = settings.split
    wanted = positive_events(rows, split.positive_event_types, split.min_value).select("request_id", "item_id").unique()
    positive = pl.col("event_type").is_in(list(split.positive_event_types))
    shown = rows.filter(~positive & pl.col("propensity").is_not_null() & pl.col("position").is_not_null())
    return (
        shown.select("request_id", "user_id", "item_id", "position", "propensity")
        .sort("user_id", "request_id", "position", "item_id", "propensity")
        .unique(["request_id", "item_id", "position"], keep="first", maintain_order=True)
        .join(wanted.with_columns(reward=pl.lit(1.0)), on=["request_id", "item_id"], how="left", maintain_order="left")
        .with_columns(pl.col("reward").fill_null(0.0))
    )


def challenger_slates(settings: Settings, night: Night, log: Frame, moment: datetime) -> Frame:
    """What the judged challenger would show each logged user, as long as the logged slates, at the window's start."""
    from evensong.features.offline import FeatureReader
    from evensong.features.refresh import seen_at
    from evensong.features.store import RECOMMENDER
    from evensong.pipelines import evaluate, train

    users = log.select("user_id").unique().sort("user_id")
    if len(users) > settings.evaluation.max_users:
        drawn = np.random.default_rng([night.seed, 8]).choice(len(users), settings.evaluation.max_users, replace=False)
        users = users[np.sort(drawn)]
    reader = FeatureReader(settings)
    rows = users.with_columns(
        pl.lit(None, pl.String).alias("item_id"), pl.lit(moment, TIMESTAMP).alias("event_timestamp")
    )
    features = reader.join(rows, RECOMMENDER).select("user_id", *reader.features_of(RECOMMENDER, "user_id"))
    features = features.join(seen_at(settings, moment), on="user_id", how="left", maintain_order="left")
    training_set = settings.run_uri(night.run_id, "training_set")
    items = train.read_items(training_set, final=False)
    with tempfile.TemporaryDirectory() as folder:
        retriever, ranker, index = (
            storage.fetch_folder(settings.run_uri(night.run_id, name), Path(folder, name))
            for name in ("retriever", "ranker", "index")
        )
        popularity = evaluate.popular(settings, training_set, items, moment, final=False)
        challenger = Recommender.of_parts(retriever, ranker, index, popularity)
    depth = log.select(pl.col("position").max()).item() + 1
    lists = challenger.recommend(
        features,
        challenger.prepare_items(items),
        now=moment,
        k=depth,
        exclude=evaluate.excluded(features, settings.serving.filter),
    )
    return lists.select("user_id", "item_id", position=pl.col("rank") - 1)
