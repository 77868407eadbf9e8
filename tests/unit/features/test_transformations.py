"""The feature rows against small worlds, and against counting them again at every moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evensong.features import transformations as t
from evensong.features.state import ViewState
from evensong.settings import SplitSettings
from evensong.types import ITEMS, TIMESTAMP, Frame

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
LATER = DAY0 + timedelta(days=100)
TYPES = SplitSettings().positive_event_types


def at(days: float) -> datetime:
    return DAY0 + timedelta(days=days)


def events(*rows: tuple[str, str, float] | tuple[str, str, float, float], event_type: str = "click") -> Frame:
    """Rows of (user, item, day of the event, day on which it became known)."""
    return pl.DataFrame(
        [(row[0], row[1], event_type, at(row[2]), None, at(row[-1])) for row in rows],
        schema={
            "user_id": pl.String,
            "item_id": pl.String,
            "event_type": pl.String,
            "event_timestamp": TIMESTAMP,
            "value": pl.Float64,
            "created_timestamp": TIMESTAMP,
        },
        orient="row",
    )


def catalogue(*rows: tuple[str, str | None, float] | tuple[str, str | None, float, float]) -> Frame:
    """Rows of (item, category path, day of the row, day on which it became known)."""
    return pl.DataFrame(
        [(row[0], f"The {row[0]}", row[1], None, None, None, at(row[2]), at(row[-1])) for row in rows],
        schema=ITEMS,
        orient="row",
    )


def history(interactions: Frame, items: Frame | None = None, **window: datetime) -> Frame:
    known = t.with_category(interactions, catalogue() if items is None else items)
    return t.user_history(known, history_length=3, num_top_categories=2, **{"until": LATER, **window})[0]


def activity(interactions: Frame, **window: datetime) -> Frame:
    return t.user_activity(interactions, **{"until": LATER, **window})[0]


def popularity(interactions: Frame, **window: datetime) -> Frame:
    return t.item_popularity(interactions, **{"until": LATER, **window})[0]


def seen(interactions: Frame, **window: datetime) -> Frame:
    return t.user_seen(interactions, positive_types=TYPES, seen_length=3, **{"until": LATER, **window})[0]


def test_history_is_the_last_events_oldest_first_at_each_moment() -> None:
    rows = history(events(("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "d", 4), ("v", "z", 2)))
    of_u = rows.filter(pl.col("user_id") == "u")
    assert of_u["recent_item_ids"].to_list() == [["a"], ["a", "b"], ["a", "b", "c"], ["b", "c", "d"]]
    assert of_u["num_interactions"].to_list() == [1, 2, 3, 4]
    assert of_u["event_timestamp"].to_list() == [at(1), at(2), at(3), at(4)]
    assert rows["created_timestamp"].equals(rows["event_timestamp"])


def test_events_of_one_moment_make_one_row() -> None:
    rows = history(events(("u", "b", 1), ("u", "a", 1)))
    assert rows["recent_item_ids"].to_list() == [["a", "b"]]


def test_a_late_event_changes_the_history_when_it_arrives_and_not_before() -> None:
    rows = history(events(("u", "b", 2), ("u", "a", 1, 3)))
    assert rows["event_timestamp"].to_list() == [at(2), at(3)]
    assert rows["recent_item_ids"].to_list() == [["b"], ["b", "a"]]
    assert rows["last_interaction_seconds"].to_list() == [int(at(2).timestamp())] * 2


def test_an_event_from_the_future_counts_from_its_own_time_on() -> None:
    rows = history(events(("u", "a", 5, 1)))
    assert rows["event_timestamp"].to_list() == [at(5)]


def test_taste_is_the_share_of_level_one_categories_as_known_at_the_event() -> None:
    items = catalogue(("a", "Food > Fruit", 0), ("b", "Toys", 0), ("c", "Food", 0), ("d", None, 0), ("b", "Food", 9))
    rows = history(events(("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "d", 4)), items)
    assert rows["top_categories"].to_list() == [["Food"], ["Food", "Toys"], ["Food", "Toys"], ["Food", "Toys"]]
    assert [[round(share, 3) for share in row] for row in rows["top_category_shares"].to_list()] == [
        [1.0],
        [0.5, 0.5],
        [0.667, 0.333],
        [0.667, 0.333],
    ]


def test_taste_does_not_leak_from_one_user_to_the_next() -> None:
    items = catalogue(("a", "Food", 0), ("b", "Toys", 0))
    rows = history(events(*[("u", "a", day) for day in range(1, 6)], ("v", "b", 1)), items)
    assert rows.filter(pl.col("user_id") == "v")["top_categories"].to_list() == [["Toys"]]


def test_a_category_that_was_not_known_at_the_event_does_not_count() -> None:
    rows = history(events(("u", "a", 1)), catalogue(("a", "Food", 0, 2)))
    assert rows["top_categories"].to_list() == [[]]


def test_an_impression_and_a_low_rating_are_no_positive_events() -> None:
    interactions = pl.concat(
        [events(("u", "a", 1), event_type="impression"), events(("u", "b", 2), event_type="rating")]
    )
    low = interactions.with_columns(value=pl.lit(2.0))
    assert t.positive_events(low, TYPES, {"rating": 4.0}).is_empty()
    high = low.with_columns(value=pl.lit(4.0))
    assert t.positive_events(high, TYPES, {"rating": 4.0})["item_id"].to_list() == ["b"]


def test_a_rating_without_a_value_does_not_reach_the_smallest_one() -> None:
    unknown = events(("u", "b", 2), event_type="rating").with_columns(value=pl.lit(None, pl.Float64))
    assert t.positive_events(unknown, TYPES, {"rating": 4.0}).is_empty()
    assert t.positive_events(unknown, TYPES, {"view": 4.0}).height == 1


def test_activity_falls_to_zero_when_the_last_window_empties() -> None:
    rows = activity(events(("u", "a", 0.5)))
    told = rows.select("event_timestamp", "num_events_1d", "num_events_7d", "num_events_30d").rows()
    assert told == [(at(0.5), 1, 1, 1), (at(2), 0, 1, 1), (at(8), 0, 0, 1), (at(31), 0, 0, 0)]


def test_a_window_ends_exactly_when_its_length_has_passed() -> None:
    rows = activity(events(("u", "a", 1), ("u", "b", 2)))
    assert dict(rows.select("event_timestamp", "num_events_1d").rows())[at(2)] == 1


def test_popularity_stands_at_midnight_and_counts_users_once() -> None:
    rows = popularity(events(("u", "a", 0.2), ("u", "a", 0.4), ("v", "a", 0.6)), until=at(1))
    assert rows.drop("created_timestamp").rows() == [("a", 3, 3, 3, 3, 2, at(1))]


def test_nothing_is_stamped_after_the_moment_at_which_the_view_ends() -> None:
    interactions = events(("u", "a", 0.5), ("u", "b", 1.5))
    for rows in (activity(interactions, until=at(1)), popularity(interactions, until=at(1))):
        assert rows["event_timestamp"].max() <= at(1)  # type: ignore[operator]
    assert history(interactions, until=at(1))["recent_item_ids"].to_list() == [["a"]]


def test_content_is_the_newest_known_row_and_the_first_arrival() -> None:
    items = catalogue(("a", "Food", 2), ("a", "Toys", 4), ("a", "Old", 1, 5))
    rows = t.item_content(items, until=LATER)
    assert rows.select("event_timestamp", "category_path", "arrival_seconds").rows() == [
        (at(2), "Food", int(at(2).timestamp())),
        (at(4), "Toys", int(at(2).timestamp())),
        (at(5), "Toys", int(at(1).timestamp())),
    ]


def test_seen_grows_by_day_and_remembers_the_newest() -> None:
    interactions = pl.concat(
        [
            events(("u", "a", 0.2), ("u", "b", 0.4), ("u", "c", 2.5), ("u", "d", 2.6)),
            events(("u", "b", 3.5), event_type="purchase"),
        ]
    )
    rows = seen(interactions)
    assert rows.select("event_timestamp", "seen_item_ids", "purchased_item_ids").rows() == [
        (at(1), ["a", "b"], []),
        (at(3), ["b", "c", "d"], []),
        (at(4), ["b", "c", "d"], ["b"]),
    ]


def test_seen_of_a_day_cut_short_ends_at_the_cut() -> None:
    rows = seen(events(("u", "a", 0.2), ("u", "b", 0.8)), until=at(0.5))
    assert rows.select("event_timestamp", "seen_item_ids").rows() == [(at(0.5), ["a"])]


def test_no_events_make_no_rows_with_every_column() -> None:
    none = events()
    made = [
        (history(none), t.USER_HISTORY),
        (activity(none), t.USER_ACTIVITY),
        (popularity(none), t.ITEM_POPULARITY),
        (t.item_content(catalogue(), until=LATER), t.ITEM_CONTENT),
        (seen(none), t.USER_SEEN),
    ]
    for rows, schema in made:
        assert rows.is_empty()
        assert dict(rows.schema) == schema


worlds = st.lists(
    st.tuples(
        st.sampled_from("uv"),
        st.sampled_from("abc"),
        st.integers(0, 40).map(lambda quarter: quarter / 4),
        st.integers(0, 12).map(lambda quarter: quarter / 4),
    ),
    max_size=12,
).map(lambda rows: [(user, item, day, day + late) for user, item, day, late in rows])


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_every_row_says_what_counting_again_at_its_moment_says(world: list[tuple[str, str, float, float]]) -> None:
    interactions = events(*world)
    for user, day1, day7, day30, moment, _ in activity(interactions).rows():
        counts = [_count(world, moment, days, user=user) for days in (1, 7, 30)]
        assert [day1, day7, day30] == counts
    for item, day1, day7, day30, total, users, moment, _ in popularity(interactions).rows():
        assert [day1, day7, day30, total] == [_count(world, moment, days, item=item) for days in (1, 7, 30, 999)]
        assert users == len({row[0] for row in _window(world, moment, 30) if row[1] == item})


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_between_two_rows_nothing_changed_at_midnight(world: list[tuple[str, str, float, float]]) -> None:
    told_of_all = popularity(events(*world), until=at(50)).sort("item_id", "event_timestamp")
    for item in {row[1] for row in world}:
        rows = told_of_all.filter(pl.col("item_id") == item)
        for midnight in range(51):
            told = rows.filter(pl.col("event_timestamp") <= at(midnight)).tail(1)
            counts = [_count(world, at(midnight), days, item=item) for days in (1, 7, 30, 999)]
            if told.is_empty():
                assert counts[-1] == 0
            else:
                assert list(told.row(0)[1:5]) == counts


@settings(max_examples=25, deadline=None)
@given(worlds, st.integers(0, 12) | st.integers(29, 45))  # late enough that events have left every window
def test_the_rows_since_a_midnight_are_the_tail_of_all_rows(
    world: list[tuple[str, str, float, float]], day: int
) -> None:
    interactions, items = events(*world), catalogue(("a", "Food", 0), ("b", "Toys", 1), ("a", "Toys", 3))
    since = at(day)
    pairs = [
        (history(interactions, items), history(interactions, items, since=since)),
        (activity(interactions), activity(interactions, since=since)),
        (popularity(interactions), popularity(interactions, since=since)),
        (t.item_content(items, until=LATER), t.item_content(items, since=since, until=LATER)),
        (
            seen(interactions),
            seen(interactions, since=since),
        ),
    ]
    for everything, tail in pairs:
        assert tail.equals(everything.filter(pl.col("event_timestamp") > since))


def _window(
    world: list[tuple[str, str, float, float]], moment: datetime, days: float
) -> list[tuple[str, str, float, float]]:
    return [
        row for row in world if max(at(row[2]), at(row[3])) <= moment and at(row[2]) > moment - timedelta(days=days)
    ]


def _count(
    world: list[tuple[str, str, float, float]],
    moment: datetime,
    days: float,
    user: str | None = None,
    item: str | None = None,
) -> int:
    return sum(
        (user is None or row[0] == user) and (item is None or row[1] == item) for row in _window(world, moment, days)
    )


VIEWS = {
    "user_history": (t.user_history, {"history_length": 3, "num_top_categories": 2}),
    "user_activity": (t.user_activity, {}),
    "item_popularity": (t.item_popularity, {}),
    "user_seen": (t.user_seen, {"positive_types": TYPES, "seen_length": 2}),
}


@pytest.mark.parametrize("view", VIEWS)
@settings(max_examples=15, deadline=None)
@given(world=worlds, cuts=st.lists(st.integers(0, 60).map(lambda n: n / 4 + 1 / 7), max_size=4))
def test_however_many_updates_give_the_rows_and_the_state_of_one(
    view: str, world: list[tuple[str, str, float, float]], cuts: list[float]
) -> None:
    function, arguments = VIEWS[view]
    items = catalogue(("a", "Food", 0), ("b", "Toys", 1), ("a", "Toys", 3))
    interactions = t.with_category(events(*world), items)
    whole, end = function(interactions, until=at(45), **arguments)  # type: ignore[operator]
    parts: list[Frame] = []
    state: ViewState | None = None
    before = DAY0 - timedelta(days=1)
    for cut in [*sorted(cuts), 45.0]:
        known = pl.max_horizontal("event_timestamp", "created_timestamp")
        batch = interactions.filter((known > before) & (known <= at(cut)))  # each event comes once
        rows, state = function(batch, state=state, until=at(cut), **arguments)  # type: ignore[operator]
        parts.append(rows)
        before = at(cut)
    keys = [whole.columns[0], "event_timestamp"]
    # what a cut day had seen so far is said at the cut as well
    at_cuts = pl.col("event_timestamp").is_in([at(cut) for cut in cuts]) if view == "user_seen" else pl.lit(False)
    assert_frame_equal(pl.concat(parts).filter(~at_cuts).sort(keys), whole.sort(keys), check_exact=True)
    assert state is not None
    assert state.parts.keys() == end.parts.keys()
    for part, rows in end.parts.items():
        assert_frame_equal(state.parts[part], rows, check_exact=True)


def test_what_was_forgotten_may_be_met_anew() -> None:
    interactions = events(("u", "a", 0.5), ("u", "b", 1.5), ("u", "c", 2.5), ("u", "a", 3.5), ("u", "c", 4.5))
    rows, _ = t.user_seen(interactions, until=LATER, positive_types=TYPES, seen_length=2)
    assert rows["seen_item_ids"].to_list() == [["a"], ["a", "b"], ["b", "c"], ["c", "a"]]
