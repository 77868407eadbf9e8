"""Popularity counts a window, ranks every item, and leaves out what it is told to."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.models.popularity import Popularity

CUTOFF = datetime(2026, 1, 31, tzinfo=UTC)
IDS = ["a", "b", "c", "d"]

events = st.lists(st.tuples(st.sampled_from([*IDS, "gone"]), st.integers(-5, 50)), max_size=60)


def frame(rows: list[tuple[str, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": [item_id for item_id, _ in rows],
            "event_timestamp": [CUTOFF - timedelta(days=days) for _, days in rows],
        },
        schema={"item_id": pl.String, "event_timestamp": pl.Datetime("us", "UTC")},
    )


@settings(deadline=None)
@given(events)
def test_counts_are_those_of_the_window_and_every_item_is_ranked(rows: list[tuple[str, int]]) -> None:
    fitted = Popularity.fit(frame(rows), IDS, CUTOFF, days=30)
    counted = Counter(item_id for item_id, days in rows if 0 <= days < 30)
    older = Counter(item_id for item_id, days in rows if days >= 0)
    assert fitted.item_ids == sorted(IDS, key=lambda item_id: (-counted[item_id], -older[item_id], item_id))
    assert fitted.scores == [float(counted[item_id]) for item_id in fitted.item_ids]


def test_excluded_items_are_replaced_by_the_next() -> None:
    fitted = Popularity(IDS, [4.0, 3.0, 2.0, 0.0])
    assert fitted.top(2, exclude=["a", "c"]) == [("b", 3.0), ("d", 0.0)]
    assert [item_id for item_id, _ in fitted.top(10)] == IDS


def test_round_trip_through_json_values() -> None:
    fitted = Popularity(["ü", "b"], [1.0, 0.0])
    assert Popularity.from_dict(fitted.to_dict()) == fitted
