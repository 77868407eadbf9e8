"""Category levels, price ranks, ages and conversion rates of small shops, and the prior that rates give."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from evensong.features.item_features import (
    category_levels,
    item_conversion,
    item_details,
    item_standing,
    price_ranks,
)
from evensong.features.rates import BetaPrior, fit_prior, smoothed_rates
from evensong.types import ITEMS, TIMESTAMP, Frame

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(days: float) -> datetime:
    return T0 + timedelta(days=days)


def shelf(*rows: tuple[str, str | None, float | None, float]) -> Frame:
    """Rows of the items table: item, category, price, day."""
    keys = ("item_id", "category_path", "price", "event_timestamp", "created_timestamp")
    found = [dict(zip(keys, (item, path, price, at(day), at(day)), strict=True)) for item, path, price, day in rows]
    return pl.DataFrame([{name: row.get(name) for name in ITEMS} for row in found], schema=ITEMS)


def log(*rows: tuple[str, str, float]) -> Frame:
    stamps = [(item, kind, T0 + timedelta(hours=hour), T0 + timedelta(hours=hour)) for item, kind, hour in rows]
    schema = {
        "item_id": pl.String,
        "event_type": pl.String,
        "event_timestamp": TIMESTAMP,
        "created_timestamp": TIMESTAMP,
    }
    return pl.DataFrame(stamps, schema=schema, orient="row")


def test_levels_name_the_way_down_and_end_where_the_path_ends() -> None:
    items = pl.DataFrame({"category_path": ["Home > Kitchen > Knives > Small", "Home", "", None]})
    found = category_levels(items).select(f"category_{n}" for n in (1, 2, 3))
    assert found.rows() == [
        ("Home", "Home > Kitchen", "Home > Kitchen > Knives"),
        ("Home", None, None),
        (None, None, None),
        (None, None, None),
    ]


def test_the_rank_is_the_share_of_cheaper_items_in_the_category() -> None:
    items = pl.DataFrame({"category_1": list("aaaabcc"), "price": [1.0, 2, 2, 9, 5, None, 7]})
    assert price_ranks(items)["price_rank"].to_list() == [0, 0.5, 0.5, 1, 0.5, None, 0.5]


def test_a_cheaper_item_of_the_category_moves_the_others_at_the_next_midnight() -> None:
    items = shelf(
        ("a", "x", 5, 0.2), ("b", "x > y", 9, 0.3), ("c", "z", 1, 0.4), ("d", "x", 1, 2.5), ("c", "z", 2, 4.5)
    )
    found = item_standing(items, until=at(9))
    assert found.select("item_id", "price_rank", "event_timestamp").rows() == [
        ("a", 0.0, at(1)),
        ("b", 1.0, at(1)),
        ("c", 0.5, at(1)),
        ("a", 0.5, at(3)),
        ("d", 0.0, at(3)),
    ]
    assert_frame_equal(item_standing(items, since=at(1), until=at(9)), found.tail(2))
    assert item_standing(items, until=at(2.9)).height == 3


def test_details_have_a_row_a_change() -> None:
    items = shelf(("a", "x", 5, 0), ("a", "x", 6, 1), ("a", "x", 6, 2)).with_columns(
        attributes=pl.Series(['{"size": 1}', '{"size": 1}', '{"size": 2}']), image_uri=pl.lit("a.png")
    )
    found = item_details(items, until=at(9))
    assert found.select("item_attributes", "item_image_uri", "event_timestamp").rows() == [
        ('{"size": 1}', "a.png", at(0)),
        ('{"size": 2}', "a.png", at(2)),
    ]
    assert_frame_equal(item_details(items, since=at(0), until=at(9)), found.tail(1))


def test_a_rate_of_few_views_stays_near_the_prior_and_of_many_near_its_own() -> None:
    rates = smoothed_rates(pl.Series([1, 500, 0]), pl.Series([1, 1000, 0]), BetaPrior(a=1, b=99))
    assert rates.to_list() == pytest.approx([2 / 101, 501 / 1100, 0.01])
    assert smoothed_rates(pl.Series([3]), pl.Series([0]), BetaPrior(a=1, b=1))[0] == 0.8


@pytest.mark.parametrize(("a", "b"), [(2.0, 38.0), (0.5, 4.5), (30.0, 70.0)])
def test_the_prior_of_simulated_rates_is_found_again(a: float, b: float) -> None:
    draw = np.random.default_rng(1)
    trials = draw.integers(1, 400, 4000)
    conversions = draw.binomial(trials, draw.beta(a, b, 4000))
    prior = fit_prior(pl.Series(conversions), pl.Series(trials))
    assert prior.mean == pytest.approx(a / (a + b), rel=0.05)
    assert prior.a + prior.b == pytest.approx(a + b, rel=0.15)


def test_smoothing_brings_rates_nearer_to_the_truth() -> None:
    draw = np.random.default_rng(2)
    truth = draw.beta(2, 50, 2000)
    trials = draw.integers(1, 40, 2000)
    conversions = draw.binomial(trials, truth)
    prior = fit_prior(pl.Series(conversions), pl.Series(trials))
    smoothed = smoothed_rates(pl.Series(conversions), pl.Series(trials), prior).to_numpy()
    assert ((smoothed - truth) ** 2).mean() < 0.3 * ((conversions / trials - truth) ** 2).mean()


def test_rates_that_differ_by_chance_alone_are_all_pulled_to_the_mean_and_a_given_strength_holds() -> None:
    same = fit_prior(pl.Series([10] * 50), pl.Series([100] * 50))
    assert same.a + same.b > 1e5
    given = fit_prior(pl.Series([10, 0]), pl.Series([100, 100]), strength=20)
    assert given.a + given.b == pytest.approx(20)


@pytest.mark.parametrize(
    ("conversions", "trials"), [([], []), ([0], [0]), ([0, 0], [5, 9]), ([1], [1]), ([1, 1], [1, 1])]
)
def test_hardly_any_data_still_gives_a_proper_prior(conversions: list[int], trials: list[int]) -> None:
    prior = fit_prior(pl.Series(conversions, dtype=pl.Int64), pl.Series(trials, dtype=pl.Int64))
    assert prior.a > 0
    assert prior.b > 0


def test_counts_stand_at_midnights_and_go_on_from_a_state() -> None:
    events = log(("a", "view", 1), ("a", "click", 2), ("a", "purchase", 3), ("a", "view", 30), ("b", "cart", 5))
    whole, end = item_conversion(events, until=at(40), half_life_days=7)
    assert whole["event_timestamp"].dt.hour().unique().to_list() == [0]
    second = whole.filter(pl.col("item_id") == "a").row(1, named=True)
    assert (second["item_views_1d"], second["item_views_7d"], second["item_purchases_7d"]) == (1, 3, 1)
    # three events decayed for 46 to 47 hours, one for 18
    assert second["item_decayed_events"] == pytest.approx(sum(2 ** -(h / 168) for h in (47, 46, 45, 18)), abs=1e-6)
    assert whole.filter(pl.col("item_id") == "a").row(-1, named=True)["item_views_30d"] == 0
    parts, state, before = [], None, at(-1)
    for day in (0.1, 1.5, 2, 17.3, 40):
        batch = events.filter((pl.col("event_timestamp") > before) & (pl.col("event_timestamp") <= at(day)))
        rows, state = item_conversion(batch, state=state, until=at(day), half_life_days=7)
        parts.append(rows)
        before = at(day)
    order = ["item_id", "event_timestamp"]
    assert_frame_equal(pl.concat(parts).sort(order), whole.sort(order))
    assert state is not None
    for part, rows in end.parts.items():
        assert_frame_equal(state.parts[part].sort(pl.all()), rows.sort(pl.all()), check_exact=True)
