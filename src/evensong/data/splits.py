"""Splits: the moments before which a model learns, and after which it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from evensong.settings import SplitSettings
from evensong.types import Frame

#: The parts of a night's labels, oldest first.
PARTS = ("retriever", "ranker", "holdout")


@dataclass(frozen=True)
class Split:
    """Two parts of interactions: nothing in `train` was known or happened after anything in `holdout` began."""

    train: Frame
    holdout: Frame


@dataclass(frozen=True)
class Windows:
    """The moments that part a night's labels: retriever before `ranker_start`, ranker up to `holdout_start`."""

    training_start: datetime | None
    ranker_start: datetime
    holdout_start: datetime
    as_of: datetime


def windows(as_of: datetime, split: SplitSettings) -> Windows:
    """The night's windows; `training_start` is None when training takes all that there is."""
    holdout_start = as_of - timedelta(days=split.holdout_days)
    training_start = None if split.training_days is None else holdout_start - timedelta(days=split.training_days)
    return Windows(training_start, holdout_start - timedelta(days=split.ranker_days), holdout_start, as_of)


#: Reaching back for users never takes more than this share of the positive events from training.
MAX_HOLDOUT_SHARE = 0.2


def holdout_start(positive: Frame, as_of: datetime, split: SplitSettings) -> datetime:
    """Where the night's holdout begins: `holdout_days` before `as_of`, further back where too few users came since.

    It moves by whole `holdout_days` until `min_holdout_users` have a positive event that can judge (one that was not
    bound to be shown), and stops at `max_holdout_days` or at a fifth of the positive events.

    Args:
        positive: the positive events known at `as_of`: `user_id, event_timestamp, propensity`.
        as_of: the night's cutoff.
        split: the settings.
    """
    fair = pl.col("propensity").is_null() | (pl.col("propensity") < split.max_propensity)
    start = as_of - timedelta(days=split.holdout_days)
    while True:
        held_out = positive.filter(pl.col("event_timestamp") > start)
        further = start - timedelta(days=split.holdout_days)
        taken = positive.select((pl.col("event_timestamp") > further).sum()).item()
        if (
            held_out.filter(fair)["user_id"].n_unique() >= split.min_holdout_users
            or as_of - further > timedelta(days=split.max_holdout_days)
            or taken > MAX_HOLDOUT_SHARE * len(positive)
        ):
            return start
        start = further


def positives(interactions: Frame, split: SplitSettings) -> Frame:
    """The events that count as wanting the item, in the order in which they came.

    An event of a type with a smallest value (`split.min_value`) counts from that value on, and never without a value.
    """
    wanted = pl.col("event_type").is_in(list(split.positive_event_types))
    for event_type, least in sorted(split.min_value.items()):
        wanted &= (pl.col("event_type") != event_type) | (pl.col("value") >= least).fill_null(False)
    return interactions.filter(wanted)


def temporal_split(interactions: Frame, as_of: datetime, split: SplitSettings) -> Split:
    """Train on what was known by `as_of` minus the holdout days; hold out what happened after, known by `as_of`.

    An event that happened before the holdout but became known in it belongs to neither.
    """
    start = windows(as_of, split).holdout_start
    event, created = pl.col("event_timestamp"), pl.col("created_timestamp")
    known = (event <= as_of) & (created <= as_of)
    return Split(
        train=interactions.filter((event <= start) & (created <= start)),
        holdout=interactions.filter(known & (event > start)),
    )


def parts(interactions: Frame, as_of: datetime, split: SplitSettings) -> Frame:
    """The labels known at `as_of` and inside the training days, with the column `part`, one of PARTS."""
    found = windows(as_of, split)
    both = temporal_split(interactions, as_of, split)
    train = both.train
    if found.training_start is not None:
        train = train.filter(pl.col("event_timestamp") > found.training_start)
    late = pl.col("event_timestamp") > found.ranker_start
    part = pl.when(late).then(pl.lit("ranker")).otherwise(pl.lit("retriever")).alias("part")
    return pl.concat([train.with_columns(part), both.holdout.with_columns(part=pl.lit("holdout"))])


def leave_last_out(interactions: Frame) -> Split:
    """Hold out each user's last interaction, ties in time broken by the rows' order; users with one stay in training.

    Not temporal: what is held out of one user may be older than what is learnt of another. For comparing with papers.
    """
    newest_first = interactions.with_row_index("row").sort(
        ["user_id", "event_timestamp", "row"], descending=[False, True, True]
    )
    place = pl.int_range(pl.len()).over("user_id")
    last = newest_first.filter((place == 0) & (pl.len().over("user_id") > 1))["row"]
    held = pl.col("row").is_in(last.implode())
    rows = interactions.with_row_index("row")
    return Split(train=rows.filter(~held).drop("row"), holdout=rows.filter(held).drop("row"))
