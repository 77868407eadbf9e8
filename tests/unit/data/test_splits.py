"""Time parts the events, and nothing leaks across."""

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


def test_training_ends_where_the_holdout_begins() -> None:
    found = splits.temporal_split(world(), AS_OF, SplitSettings(holdout_days=2))
    assert found.holdout["item_id"].to_list() == ["day1", "day0"]
    assert found.train["created_timestamp"].max() <= AS_OF - timedelta(days=2)
    assert "day2" not in [*found.train["item_id"], *found.holdout["item_id"]], (
        "known too late for one, too old for the other"
    )


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


def test_the_ranker_learns_from_the_days_before_the_holdout() -> None:
    found = splits.parts(world(), AS_OF, SplitSettings(holdout_days=1, ranker_days=3, training_days=10))
    by_part = {part: found.filter(pl.col("part") == part)["item_id"].to_list() for part in splits.PARTS}
    assert by_part["holdout"] == ["day0"]
    assert by_part["ranker"] == ["day3", "day1"]
    assert by_part["retriever"] == [f"day{day}" for day in range(10, 3, -1)]


def test_an_event_after_as_of_is_nowhere() -> None:
    found = splits.parts(world(), AS_OF - timedelta(days=5), SplitSettings())
    assert found["event_timestamp"].max() <= AS_OF - timedelta(days=5)


def test_a_low_rating_or_an_impression_is_no_wish() -> None:
    events = pl.DataFrame(
        {
            "item_id": list("abcd"),
            "event_type": ["rating", "rating", "impression", "view"],
            "value": [3.0, 4.0, None, None],
        }
    )
    split = SplitSettings(min_value={"rating": 4})
    assert splits.positives(events, split)["item_id"].to_list() == ["b", "d"]
    without = events.with_columns(value=pl.lit(None, pl.Float64))
    assert splits.positives(without, split)["item_id"].to_list() == ["d"]


def test_leave_last_out_takes_each_users_last_row() -> None:
    found = splits.leave_last_out(world())
    assert sorted(found.holdout["item_id"]) == ["day0", "day1", "day2"]
    assert found.train.height == 27
    one = world().filter(pl.col("item_id") == "day5")
    assert splits.leave_last_out(one).holdout.is_empty()


def test_leave_last_out_breaks_ties_by_the_rows_order() -> None:
    same = world().head(3).with_columns(user_id=pl.lit("u"), event_timestamp=pl.lit(AS_OF))
    assert splits.leave_last_out(same).holdout["item_id"].to_list() == [same["item_id"][2]]
