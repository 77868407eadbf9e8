"""What a table said at each moment, and how little of it later nights need."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evensong.features.item_features import item_details, item_standing
from evensong.features.newest import still_counting
from evensong.features.transformations import item_content, with_category
from evensong.features.user_features import user_profile
from evensong.types import ITEMS, TIMESTAMP, USERS, Frame

T0 = datetime(2026, 1, 1, tzinfo=UTC)
#: A name, the day of a row, how late it arrived, what it says.
Said = tuple[str, int, int, int]


def at(days: float) -> datetime:
    return T0 + timedelta(days=days)


def catalogue(rows: list[Said]) -> Frame:
    said = [
        {
            "item_id": name,
            "title": f"t{what % 2}",
            "category_path": ["x", "x > y", "z", None][what % 4],
            "price": [None, 1.0, 2.0, 5.0, 1.0][what % 5],
            "attributes": f'{{"n": {what % 3}}}',
            "event_timestamp": at(day),
            "created_timestamp": at(day + late),
        }
        for name, day, late, what in rows
    ]
    return pl.DataFrame([{name: row.get(name) for name in ITEMS} for row in said], schema=ITEMS)


def people(rows: list[Said]) -> Frame:
    found = [(name, f'{{"age": {what}}}', at(day), at(day + late)) for name, day, late, what in rows]
    return pl.DataFrame(found, schema=USERS, orient="row")


rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 12), st.integers(0, 59)),
    max_size=10,
    unique_by=lambda row: row[:3],  # two rows of one key and both moments are one row of the lake
)


@pytest.mark.parametrize(
    ("view", "table", "key"),
    [
        (item_content, catalogue, "item_id"),
        (item_details, catalogue, "item_id"),
        (item_standing, catalogue, "item_id"),
        (user_profile, people, "user_id"),
    ],
)
@settings(max_examples=25, deadline=None)
@given(said=rows, cuts=st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_the_rows_that_still_count_and_the_new_ones_say_what_all_rows_say(
    view: Callable[..., Frame], table: Callable[[list[Said]], Frame], key: str, said: list[Said], cuts: list[int]
) -> None:
    everything = table(said)
    whole = view(everything, until=at(33))
    known = pl.max_horizontal("event_timestamp", "created_timestamp")
    held, before, parts = everything.clear(), at(-1), []
    for cut in [*sorted(cuts), 33]:
        new = everything.filter((known > before) & (known <= at(cut)))
        parts.append(view(pl.concat([held, new]), since=before, until=at(cut)))
        held, before = still_counting(pl.concat([held, new]), key, at(cut)), at(cut)
        assert held.group_by(key).len()["len"].max() in (None, 1, 2)
    order = [key, "event_timestamp"]
    assert_frame_equal(pl.concat(parts).sort(order), whole.sort(order), check_exact=True)


@settings(max_examples=25, deadline=None)
@given(
    said=rows, cut=st.integers(0, 30), asked=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=6)
)
def test_events_after_a_cut_meet_the_categories_of_all_rows(
    said: list[Said], cut: int, asked: list[tuple[str, int]]
) -> None:
    moments = [at(cut + days) for _, days in asked]
    events = pl.DataFrame(
        {"item_id": [item for item, _ in asked], "event_timestamp": moments, "created_timestamp": moments},
        schema={"item_id": pl.String, "event_timestamp": TIMESTAMP, "created_timestamp": TIMESTAMP},
    )
    everything = catalogue(said)
    known = pl.max_horizontal("event_timestamp", "created_timestamp")
    few = pl.concat([still_counting(everything, "item_id", at(cut)), everything.filter(known > at(cut))])
    assert_frame_equal(with_category(events, few), with_category(events, everything))
