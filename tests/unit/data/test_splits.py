"""The holdout begins where enough users can judge, and never takes too much from training."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from evensong.data import splits
from evensong.data.lake import conform
from evensong.settings import SplitSettings
from evensong.types import Frame

AS_OF = datetime(2026, 1, 31, tzinfo=UTC)


def world() -> Frame:
    """One event a day for 30 days, the newest a second before as_of; one of them became known two days late."""
    days = list(range(30))
    times = [AS_OF - timedelta(days=day, seconds=1) for day in days]
    known = [time + timedelta(days=2) if day == 2 else time for day, time in zip(days, times, strict=True)]
    rows = pl.DataFrame(
        {
            "user_id": [f"u{day % 3}" for day in days],
            "item_id": [f"day{day}" for day in days],
            "event_type": ["view"] * 30,
            "event_timestamp": times,
            "created_timestamp": known,
        }
    )
    return conform("interactions", rows).sort("event_timestamp")


def days_held_out(positive: Frame, **split: float) -> float:
    start = splits.holdout_start(positive, AS_OF, SplitSettings.model_validate(split))
    return (AS_OF - start) / timedelta(days=1)


def test_the_holdout_reaches_back_until_enough_users_came() -> None:
    # each day brings one user, and after three days all three have come
    assert days_held_out(world(), min_holdout_users=1) == 1
    assert days_held_out(world(), min_holdout_users=3) == 3
    assert days_held_out(world(), min_holdout_users=3, holdout_days=2) == 4


def test_the_holdout_stops_at_its_bound_and_at_a_fifth_of_the_events() -> None:
    assert days_held_out(world(), min_holdout_users=4, max_holdout_days=5) == 5
    assert days_held_out(world(), min_holdout_users=4, max_holdout_days=30) == 6
    assert days_held_out(world(), min_holdout_users=4, holdout_days=9) == 9


def test_events_that_were_bound_to_be_shown_bring_no_user() -> None:
    newest = pl.col("event_timestamp") > AS_OF - timedelta(days=1)
    bound = world().with_columns(propensity=pl.when(newest).then(pl.lit(0.9)))
    assert days_held_out(bound, min_holdout_users=1) == 2
