"""Where a night's holdout begins: the moment up to which its models learn, and after which they are judged."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from evensong.settings import SplitSettings
from evensong.types import Frame

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
