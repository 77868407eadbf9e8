"""Sliding windows and decay: the definition, row by row, and many small updates against one computation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evensong.features.time_statistics import (
    DecayStatistic,
    StatisticsState,
    TotalStatistic,
    WindowStatistic,
    empty_state,
    merge,
    moments_of_change,
    power_of_two,
    read,
    read_at,
    read_levels,
    read_levels_at,
    update,
)
from evensong.types import TIMESTAMP, Frame

T0 = datetime(2026, 1, 1, tzinfo=UTC)
STATISTICS = [
    WindowStatistic(name="events_1d", days=1),
    WindowStatistic(name="spend_3d", days=3, column="value", event_types=("purchase",)),
    DecayStatistic(name="decayed", half_life_days=2),
    DecayStatistic(name="decayed_spend", half_life_days=1, column="value"),
    TotalStatistic(name="total", column="value"),
    DecayStatistic(name="taste", half_life_days=2, by="category"),
]

Event = tuple[str, float, float, str, float | None]


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def events(*rows: Event) -> Frame:
    return pl.DataFrame(
        [(user, at(hour), at(hour + late), kind, value, kind[:1]) for user, hour, late, kind, value in rows],
        schema={
            "user_id": pl.String,
            "event_timestamp": TIMESTAMP,
            "created_timestamp": TIMESTAMP,
            "event_type": pl.String,
            "value": pl.Float64,
            "category": pl.String,
        },
        orient="row",
    )


def state_of(frame: Frame, until: float) -> StatisticsState:
    return update(empty_state(), frame, STATISTICS, entity="user_id", until=at(until))


def values(frame: Frame, hour: float, user: str = "ann") -> dict[str, float]:
    found = read(state_of(frame, hour), STATISTICS, entity="user_id", entities=pl.Series([user]), at=at(hour))
    return {name: value for name, value in found.row(0, named=True).items() if name != "user_id"}


def test_a_window_holds_its_last_day_and_drops_what_is_a_day_old_to_the_microsecond() -> None:
    one = events(("ann", 0, 0, "view", None))
    assert values(one, 0)["events_1d"] == 1
    assert values(one, 23.999)["events_1d"] == 1
    assert values(one, 24)["events_1d"] == 0


def test_an_event_weighs_half_after_one_half_life() -> None:
    one = events(("ann", 5, 0, "view", 8.0))
    assert values(one, 5)["decayed"] == pytest.approx(1, abs=1e-9)
    assert values(one, 5 + 48)["decayed"] == pytest.approx(0.5, abs=1e-9)
    assert values(one, 5 + 24)["decayed_spend"] == pytest.approx(4, abs=1e-8)


def test_spend_sums_cents_exactly_and_counts_the_named_events_only() -> None:
    frame = events(("ann", 1, 0, "purchase", 0.1), ("ann", 2, 0, "purchase", 0.2), ("ann", 2, 0, "view", 9.0))
    assert values(frame, 3)["spend_3d"] == 0.3
    assert values(frame, 3)["total"] == 9.3


def test_a_late_event_counts_from_the_moment_it_is_known_at_the_age_it_has() -> None:
    late = events(("ann", 0, 10, "view", None))
    assert values(late, 9)["events_1d"] == 0
    assert values(late, 10)["events_1d"] == 1
    assert values(late, 24)["events_1d"] == 0
    assert values(late, 48)["decayed"] == pytest.approx(0.5, abs=1e-9)


def test_an_event_known_after_it_left_the_window_never_counts_there() -> None:
    assert values(events(("ann", 0, 30, "view", None)), 31)["events_1d"] == 0


def test_nobody_has_zeros() -> None:
    assert set(values(events(("ann", 0, 0, "view", 1.0)), 1, user="zoe").values()) == {0.0}


def test_a_statistic_by_a_column_keeps_its_levels_apart() -> None:
    frame = events(("ann", 0, 0, "view", None), ("ann", 0, 0, "view", None), ("ann", 0, 0, "cart", None))
    found = read_levels(state_of(frame, 0), STATISTICS, at=at(0))
    assert found.select("entity", "level", "value").rows() == [("ann", "c", 1.0), ("ann", "v", 2.0)]


def test_states_of_two_halves_add_up() -> None:
    rows: list[Event] = [("ann", 1, 0, "view", 3.0), ("bob", 2, 0, "purchase", 5.0), ("ann", 3, 1, "purchase", 0.7)]
    both = merge(state_of(events(*rows[:2]), 9), state_of(events(*rows[2:]), 9))
    assert both == state_of(events(*rows), 9)


def test_the_state_forgets_what_can_never_count_again() -> None:
    state = state_of(events(("ann", 0, 0, "view", None)), 24 * 400)
    assert state.marks.is_empty()


def test_a_batch_may_repeat_what_the_state_knows() -> None:
    frame = events(("ann", 1, 0, "view", 3.0), ("ann", 5, 0, "view", 4.0))
    assert update(state_of(frame, 2), frame, STATISTICS, entity="user_id", until=at(6)) == state_of(frame, 6)


def test_going_back_in_time_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot say what was"):
        update(state_of(events(), 5), events(), STATISTICS, entity="user_id", until=at(4))


def test_a_missing_column_and_an_infinite_amount_are_refused() -> None:
    with pytest.raises(ValueError, match="lack value"):
        state_of(events(("ann", 1, 0, "view", 3.0)).drop("value"), 2)
    with pytest.raises(ValueError, match="infinite"):
        state_of(events(("ann", 1, 0, "view", float("inf"))), 2)


def test_rows_are_due_as_events_become_known_and_at_the_end_of_days_in_which_one_leaves() -> None:
    statistics = [WindowStatistic(name="events_1d", days=1)]
    frame = events(("ann", 5, 0, "view", None))
    due = moments_of_change(frame, statistics, entity="user_id", state=empty_state(), until=at(24 * 9))
    assert due["moment"].to_list() == [at(5), at(48)]
    later = moments_of_change(
        frame,
        statistics,
        entity="user_id",
        state=update(empty_state(), frame, statistics, entity="user_id", until=at(24)),
        until=at(24 * 9),
    )
    assert later["moment"].to_list() == [at(48)]


rows = st.tuples(
    st.sampled_from(["ann", "bob"]),
    st.integers(0, 100).map(float),
    st.integers(0, 60).map(float),
    st.sampled_from(["view", "purchase"]),
    st.none() | st.floats(-1000, 1000, allow_nan=False),
)


@settings(max_examples=25, deadline=None)
@given(history=st.lists(rows, max_size=15), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_many_small_updates_equal_one_full_computation(history: list[Event], cuts: list[int]) -> None:
    frame = events(*history)
    state = empty_state()
    for cut in sorted(cuts):
        state = update(state, frame, STATISTICS, entity="user_id", until=at(cut))
        assert state == state_of(frame, cut)
    assert update(state, frame.reverse(), STATISTICS, entity="user_id", until=at(210)) == state_of(frame, 210)


@settings(max_examples=25, deadline=None)
@given(
    history=st.lists(rows, max_size=12),
    moments=st.lists(st.tuples(st.sampled_from(["ann", "bob", "zoe"]), st.integers(0, 300)), min_size=1, max_size=6),
    cut=st.integers(0, 300),
)
def test_values_at_any_moment_agree_with_the_definition(
    history: list[Event], moments: list[tuple[str, int]], cut: int
) -> None:
    frame = events(*history)
    cut = min(cut, *(hour for _, hour in moments))
    asked = pl.DataFrame(
        [(user, at(hour)) for user, hour in moments], schema={"user_id": pl.String, "moment": TIMESTAMP}, orient="row"
    )
    found = read_at(state_of(frame, cut), frame, STATISTICS, entity="user_id", moments=asked)
    assert found.select("user_id", "moment").equals(asked)
    for (user, hour), row in zip(moments, found.iter_rows(named=True), strict=True):
        expected = _by_definition(history, user, float(hour))
        # each amount is kept to the millionth, each decayed one to the billionth
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        single = read(state_of(frame, hour), STATISTICS, entity="user_id", entities=pl.Series([user]), at=at(hour))
        assert single.drop("user_id").row(0) == pytest.approx(
            tuple(row[name] for name in single.columns[1:]), abs=1e-12
        )


def _by_definition(history: list[Event], user: str, hour: float) -> dict[str, float]:
    known = [row for row in history if row[0] == user and row[1] + row[2] <= hour]
    return {
        "events_1d": sum(1.0 for _, t, _, _, _ in known if hour - 24 < t),
        "spend_3d": sum(x or 0.0 for _, t, _, kind, x in known if hour - 72 < t and kind == "purchase"),
        "decayed": sum(2 ** (-(hour - t) / 48) for _, t, _, _, _ in known),
        "decayed_spend": sum((x or 0.0) * 2 ** (-(hour - t) / 24) for _, t, _, _, x in known),
        "total": sum(x or 0.0 for *_, x in known),
    }


def test_rows_of_a_decay_end_when_less_than_a_hundredth_is_left() -> None:
    statistics = [DecayStatistic(name="decayed", half_life_days=1)]
    due = moments_of_change(
        events(("ann", 5, 0, "view", None)), statistics, entity="user_id", state=empty_state(), until=at(24 * 90)
    )
    assert due["moment"].to_list() == [at(5), *(at(24 * day) for day in range(1, 8))]


def test_levels_at_any_moment_are_those_of_the_state_at_that_moment() -> None:
    frame = events(("ann", 0, 0, "view", None), ("ann", 5, 0, "cart", None), ("bob", 7, 0, "view", None))
    moments = pl.DataFrame({"user_id": ["ann", "bob", "ann"], "moment": [at(6), at(6), at(2)]})
    found = read_levels_at(empty_state(), frame, STATISTICS, entity="user_id", moments=moments)
    assert found.select("row", "level").rows() == [(0, "c"), (0, "v"), (2, "v")]
    expected = read_levels(state_of(frame, 6), STATISTICS, at=at(6))
    assert found["value"][:2].to_list() == expected["value"].to_list()


def test_powers_of_two_do_not_depend_on_their_neighbours() -> None:
    exponents = np.random.default_rng(0).uniform(-70, 1, 999)
    powers = power_of_two(exponents)
    assert np.allclose(powers, 2.0**exponents, rtol=4e-16, atol=0)
    assert all(power_of_two(exponents[i : i + 1])[0] == powers[i] for i in range(0, 999, 7))
    assert power_of_two(np.array([-3.0, 0.0, 2.0])).tolist() == [0.125, 1.0, 4.0]
